//! Which layers lose the most by becoming integers: each alone, by what its loss does to the model's results.

use crate::{
    Bias, CompressError, Form, Prepared, Ranges, StaticSpec, Statistics,
    observe::{self, Batches, Inputs, Load},
    quantise_static,
};

/// A layer and what it costs alone.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Sensitivity {
    /// The layer's value.
    pub layer: String,
    /// Squared error of all results over their squared size.
    pub error: f64,
}

/// Quantises one layer at a time and runs the batches, which are kept in memory meanwhile; the worst layer comes first.
/// `spec.keep` is left as it is.
pub fn layer_errors(
    prepared: &Prepared,
    ranges: &Ranges,
    statistics: &Statistics,
    spec: &StaticSpec,
    load: Load<'_>,
    batches: Batches<'_>,
    mut each: impl FnMut() -> Result<(), CompressError>,
) -> Result<Vec<Sensitivity>, CompressError> {
    let batches: Vec<Inputs> = batches.collect::<Result<_, _>>()?;
    let expected = results(load(&prepared.model)?.as_ref(), &batches)?;
    let mut found = Vec::new();
    for layer in prepared.layers.iter().filter(|layer| !spec.keep.contains(&layer.name)) {
        each()?;
        let others = prepared.layers.iter().filter(|other| other.name != layer.name);
        let keep = others.map(|other| other.name.clone()).collect();
        // Inputs alone, whatever the form: what lies between layers is not this layer's.
        let alone = StaticSpec { keep, form: Form::Inputs, bias: Bias::Corrected, ..spec.clone() };
        let model = quantise_static(prepared, ranges, statistics, &alone)?.model;
        let error = error(&expected, &results(load(&model)?.as_ref(), &batches)?);
        found.push(Sensitivity { layer: layer.name.clone(), error });
    }
    found.sort_by(|a, b| b.error.total_cmp(&a.error));
    Ok(found)
}

fn results(session: &dyn edgeward_engine::Session, batches: &[Inputs]) -> Result<Vec<Vec<f32>>, CompressError> {
    let names: Vec<String> = session.outputs().iter().map(|output| output.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut all = Vec::new();
    for batch in batches {
        for tensor in observe::run(session, batch, &names)? {
            all.push(tensor.values::<f32>().map(std::borrow::Cow::into_owned).unwrap_or_default());
        }
    }
    Ok(all)
}

/// The worst of all results: one that is small must not hide behind one that is large.
fn error(expected: &[Vec<f32>], got: &[Vec<f32>]) -> f64 {
    let one = |(expected, got): (&Vec<f32>, &Vec<f32>)| {
        if expected.len() != got.len() {
            return f64::INFINITY;
        }
        let signal: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
        let noise: f64 = expected.iter().zip(got).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
        if noise == 0.0 { 0.0 } else { noise / signal.max(f64::MIN_POSITIVE) }
    };
    expected.iter().zip(got).map(one).fold(0.0, f64::max)
}
