//! What activations are like on real inputs: a histogram of each, and the mean of each channel that goes into a layer.
//!
//! Memory is that of one batch's activations and 32 kB for each value, however many samples there are.

use std::{
    collections::{BTreeSet, HashMap},
    ops::ControlFlow,
};

use edgeward_graph::Tensor;
use rayon::prelude::*;

use crate::{
    CompressError, Prepared,
    histogram::{Histogram, Method},
    observe::{self, Batches, Inputs, Load},
    plan,
    range::Range,
};

/// What was observed.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    values: HashMap<String, Observed>,
    /// Batches that were run.
    pub batches: usize,
}

/// What was observed of one value.
#[derive(Clone, Debug, Default)]
struct Observed {
    histogram: Histogram,
    /// Where a layer reads it, the dimension that the layer's channels are along.
    channels: Option<Channels>,
    means: Means,
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
        self.values.iter().filter_map(|(name, of)| Some((name.clone(), of.histogram.range(method)?))).collect()
    }

    /// Mean of each input channel of the layers that read `value`.
    pub(crate) fn channel_means(&self, value: &str) -> Option<Vec<f64>> {
        let means = self.means(value)?;
        Some(means.sums.iter().map(|sum| sum / means.count).collect())
    }

    /// The greatest size of each input channel of the layers that read `value`.
    pub(crate) fn channel_most(&self, value: &str) -> Option<&[f32]> {
        self.means(value).map(|means| means.most.as_slice())
    }

    fn means(&self, value: &str) -> Option<&Means> {
        self.values.get(value).map(|of| &of.means).filter(|means| means.count > 0.0)
    }

    /// Bytes that histograms and means take.
    pub fn bytes(&self) -> usize {
        let means = |means: &Means| means.sums.len() * (size_of::<f64>() + size_of::<f32>());
        self.values.values().map(|of| of.histogram.bytes() + means(&of.means)).sum()
    }
}

/// Dimension of a layer's input that its channels are along.
#[derive(Clone, Copy, Debug)]
enum Channels {
    Second,
    Last,
}

/// Runs all batches and takes in what their activations are like. Errors: a value that the engine does not give, or a
/// batch that cannot be had.
pub fn calibrate(prepared: &Prepared, load: Load<'_>, batches: Batches<'_>) -> Result<Statistics, CompressError> {
    calibrate_while(prepared, load, batches, &mut |_, _| ControlFlow::Continue(()))
}

/// The same, where `each` has what was observed after each batch, and the results of the graph itself, and may say that this was enough.
pub fn calibrate_while(
    prepared: &Prepared,
    load: Load<'_>,
    batches: Batches<'_>,
    each: &mut dyn FnMut(&Statistics, Vec<Tensor>) -> ControlFlow<()>,
) -> Result<Statistics, CompressError> {
    let given: BTreeSet<String> = prepared.model.inputs().into_iter().map(|port| port.name).collect();
    let watched = watched(prepared);
    let outputs: Vec<String> = watched.iter().filter(|name| !given.contains(*name)).cloned().collect();
    let session = load(&observe::with_outputs(&prepared.model, &outputs))?;
    let results: Vec<String> = prepared.model.outputs().into_iter().map(|port| port.name).collect();
    let alone = results.iter().filter(|name| !outputs.contains(name));
    let wanted: Vec<&str> = outputs.iter().chain(alone).map(String::as_str).collect();
    let channels = channels(prepared);
    let begun = |name: &String| {
        let of = Observed { channels: channels.get(name.as_str()).copied(), ..Observed::default() };
        (name.clone(), of)
    };
    let mut statistics = Statistics { values: watched.iter().map(begun).collect(), batches: 0 };
    for batch in batches {
        let batch: Inputs = batch?;
        let values = observe::run(session.as_ref(), &batch, &wanted)?;
        let made: HashMap<&str, &Tensor> = wanted.iter().copied().zip(&values).collect();
        let given = batch.iter().map(|(name, tensor)| (name.as_str(), tensor));
        statistics.take(&made.iter().map(|(name, tensor)| (*name, *tensor)).chain(given).collect());
        let results =
            results.iter().filter_map(|name| made.get(name.as_str()).map(|tensor| (*tensor).clone())).collect();
        if each(&statistics, results).is_break() {
            break;
        }
    }
    if statistics.batches == 0 {
        return Err(CompressError::Data("the data to calibrate with holds no examples".to_owned()));
    }
    Ok(statistics)
}

impl Statistics {
    /// Takes in the values of one run, on all cores.
    fn take(&mut self, made: &HashMap<&str, &Tensor>) {
        let seen = self.values.iter_mut().filter_map(|(name, of)| Some((of, *made.get(name.as_str())?)));
        let seen: Vec<(&mut Observed, &Tensor)> = seen.collect();
        seen.into_par_iter().with_max_len(1).for_each(|(of, tensor)| of.take(tensor));
        self.batches += 1;
    }
}

impl Observed {
    fn take(&mut self, tensor: &Tensor) {
        let Ok(values) = tensor.values::<f32>() else { return };
        self.histogram.add(&values);
        let Some(channels) = self.channels else { return };
        let shape = tensor.shape();
        let (count, inner) = match channels {
            Channels::Second => (shape.get(1).copied().unwrap_or(1), shape.iter().skip(2).product::<usize>()),
            Channels::Last => (shape.last().copied().unwrap_or(1), 1),
        };
        let (count, inner) = (count.max(1), inner.max(1));
        let means = &mut self.means;
        means.sums.resize(count, 0.0);
        means.most.resize(count, 0.0);
        // Run by run of one channel: a division for each number would take longer than the model.
        for example in values.chunks(count * inner) {
            let channels = means.sums.iter_mut().zip(&mut means.most);
            for ((sum, most), run) in channels.zip(example.chunks(inner)) {
                let (all, size) = sum_and_most(run);
                *sum += all;
                *most = most.max(size);
            }
        }
        means.count += values.len() as f64 / count as f64;
    }
}

/// The sum of numbers, and their greatest size, 16 at a time.
fn sum_and_most(values: &[f32]) -> (f64, f32) {
    let (mut sums, mut most) = ([0f64; 16], [0f32; 16]);
    for chunk in values.chunks(16) {
        for ((sum, most), value) in sums.iter_mut().zip(&mut most).zip(chunk) {
            *sum += f64::from(*value);
            *most = if value.abs() > *most { value.abs() } else { *most };
        }
    }
    (sums.iter().sum(), most.into_iter().fold(0.0, f32::max))
}

/// Every value of binary32 that a node reads or makes and that has elements: which are quantised is decided later. What only a Relu
/// or a Clip from 0 reads is left out: where it is quantised, it is with their range.
fn watched(prepared: &Prepared) -> BTreeSet<String> {
    let graph = prepared.model.graph();
    let constants: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    let links = prepared.links();
    let clipped: BTreeSet<&str> = (0..graph.node.len())
        .filter(|&index| plan::clip_behind(prepared, &links, index).is_some())
        .filter_map(|index| graph.node.get(index)?.output.first().map(String::as_str))
        .collect();
    let nodes = graph.node.iter().filter(|node| plan::quantisable(node.op_type()));
    let names = nodes.flat_map(|node| node.input.iter().chain(&node.output));
    let counts =
        |name: &&String| !name.is_empty() && !constants.contains(name.as_str()) && !clipped.contains(name.as_str());
    names.filter(counts).filter(|name| prepared.is_float(name)).cloned().collect()
}

fn channels(prepared: &Prepared) -> HashMap<&str, Channels> {
    let graph = prepared.model.graph();
    let layer = |layer: &crate::Layer| {
        let input = graph.node.get(layer.node)?.input.first()?;
        Some((input.as_str(), if layer.op == "Conv" { Channels::Second } else { Channels::Last }))
    };
    prepared.layers.iter().filter_map(layer).collect()
}
