//! What activations are like on real inputs: a histogram of each, and the mean of each channel that goes into a layer.
//!
//! Memory is that of one batch's activations and 32 kB for each value, however many samples there are.

use std::collections::{BTreeSet, HashMap};

use edgeward_graph::Tensor;

use crate::{
    CompressError, Prepared,
    histogram::{Histogram, Method},
    observe::{self, Batches, Inputs, Load},
    range::Range,
};

/// What was observed.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    histograms: HashMap<String, Histogram>,
    means: HashMap<String, Means>,
    /// Batches that were run.
    pub batches: usize,
}

/// Sums, and greatest sizes, by channel.
#[derive(Clone, Debug, Default)]
struct Means {
    sums: Vec<f64>,
    /// The greatest size.
    most: Vec<f32>,
    count: f64,
}

/// Ranges by value.
pub type Ranges = HashMap<String, Range>;

impl Statistics {
    /// The range of each value that has one.
    pub fn ranges(&self, method: Method) -> Ranges {
        self.histograms.iter().filter_map(|(name, h)| Some((name.clone(), h.range(method)?))).collect()
    }

    /// Mean of each input channel of the layers that read `value`.
    pub(crate) fn channel_means(&self, value: &str) -> Option<Vec<f64>> {
        let means = self.means.get(value).filter(|means| means.count > 0.0)?;
        Some(means.sums.iter().map(|sum| sum / means.count).collect())
    }

    /// The greatest size of each input channel of the layers that read `value`.
    pub(crate) fn channel_most(&self, value: &str) -> Option<&[f32]> {
        self.means.get(value).filter(|means| means.count > 0.0).map(|means| means.most.as_slice())
    }

    /// Bytes that histograms and means take.
    pub fn bytes(&self) -> usize {
        let means =
            self.means.values().map(|means| means.sums.len() * (size_of::<f64>() + size_of::<f32>())).sum::<usize>();
        self.histograms.values().map(Histogram::bytes).sum::<usize>() + means
    }
}

/// Dimension of a layer's input that its channels are along.
#[derive(Clone, Copy)]
enum Channels {
    Second,
    Last,
}

/// Runs all batches and takes in what their activations are like. Errors: a value that the engine does not give, or a
/// batch that cannot be had.
pub fn calibrate(prepared: &Prepared, load: Load<'_>, batches: Batches<'_>) -> Result<Statistics, CompressError> {
    let given: BTreeSet<String> = prepared.model.inputs().into_iter().map(|port| port.name).collect();
    let watched = watched(prepared);
    let outputs: Vec<String> = watched.iter().filter(|name| !given.contains(*name)).cloned().collect();
    let session = load(&observe::with_outputs(&prepared.model, &outputs))?;
    let wanted: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let channels = channels(prepared);
    let mut statistics = Statistics::default();
    for batch in batches {
        let batch: Inputs = batch?;
        let values = if wanted.is_empty() { Vec::new() } else { observe::run(session.as_ref(), &batch, &wanted)? };
        let made = wanted.iter().copied().zip(&values);
        let inputs = batch.iter().filter(|(name, _)| watched.contains(name)).map(|(name, t)| (name.as_str(), t));
        for (name, tensor) in made.chain(inputs) {
            statistics.take(name, tensor, channels.get(name).copied());
        }
        statistics.batches += 1;
    }
    if statistics.batches == 0 {
        return Err(CompressError::Data("the data to calibrate with holds no examples".to_owned()));
    }
    Ok(statistics)
}

impl Statistics {
    fn take(&mut self, name: &str, tensor: &Tensor, channels: Option<Channels>) {
        let Ok(values) = tensor.values::<f32>() else { return };
        self.histograms.entry(name.to_owned()).or_default().add(&values);
        let Some(channels) = channels else { return };
        let shape = tensor.shape();
        let (count, inner) = match channels {
            Channels::Second => (shape.get(1).copied().unwrap_or(1), shape.iter().skip(2).product::<usize>()),
            Channels::Last => (shape.last().copied().unwrap_or(1), 1),
        };
        let (count, inner) = (count.max(1), inner.max(1));
        let means = self.means.entry(name.to_owned()).or_default();
        means.sums.resize(count, 0.0);
        means.most.resize(count, 0.0);
        // Run by run of one channel: a division for each number would take longer than the model.
        for example in values.chunks(count * inner) {
            let channels = means.sums.iter_mut().zip(&mut means.most);
            for ((sum, most), run) in channels.zip(example.chunks(inner)) {
                *sum += run.iter().map(|value| f64::from(*value)).sum::<f64>();
                *most = run.iter().fold(*most, |most, value| most.max(value.abs()));
            }
        }
        means.count += values.len() as f64 / count as f64;
    }
}

/// Every value of binary32 that a node reads or makes and that has elements: which are quantised is decided later.
fn watched(prepared: &Prepared) -> BTreeSet<String> {
    let graph = prepared.model.graph();
    let constants: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    let touches = |op: &str| crate::plan::quantisable(op);
    let nodes = graph.node.iter().filter(|node| touches(node.op_type()));
    let names = nodes.flat_map(|node| node.input.iter().chain(&node.output));
    names
        .filter(|name| !name.is_empty() && !constants.contains(name.as_str()) && prepared.is_float(name))
        .cloned()
        .collect()
}

fn channels(prepared: &Prepared) -> HashMap<&str, Channels> {
    let graph = prepared.model.graph();
    let layer = |layer: &crate::Layer| {
        let input = graph.node.get(layer.node)?.input.first()?;
        Some((input.as_str(), if layer.op == "Conv" { Channels::Second } else { Channels::Last }))
    };
    prepared.layers.iter().filter_map(layer).collect()
}
