//! What is tried: half-size floats, dynamic integers, static integers in two forms, and what `rescaled.rs`, `weights.rs`, `mixed.rs` and
//! `qat.rs` make of these.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::PathBuf,
    rc::Rc,
};

use edgeward_compress::{
    Activations, Bias, Compared, CompressError, Convolutions, DynamicSpec, Form, Half, Prepared, Quantised, Ranges,
    Sensitivity, Settling, StaticSpec, Statistics, WeightBits, calibrate_while, halve,
    histogram::Method,
    noise, observe,
    observe::Inputs,
    quantise_dynamic, quantise_pairs, quantise_recurrent, quantise_static,
    report::{LayerFigures, OnEngine, Variant},
};
use edgeward_graph::{Model, Tensor};

use super::{Original, Work, judge, timing::Timed};
use crate::{
    failure::{Failure, OrInput as _, Outcome},
    print,
};

/// Examples that methods of calibration are told apart by.
const COMPARED: usize = 32;
const COMPARED_QUICK: usize = 8;
/// Weights that share a scale, where weights alone are quantised.
pub const BLOCK: usize = 32;
/// Examples that layers are told apart by.
pub const LAYER_EXAMPLES: usize = 8;
const LAYER_EXAMPLES_QUICK: usize = 4;

/// What names of variants of a form end with, and what is bytes in it, in words.
pub const fn told(form: Form) -> (&'static str, &'static str) {
    match form {
        Form::Chains => ("", "weights and chains of activations as bytes"),
        Form::Inputs => ("-inputs", "weights and what goes into multiplications as bytes"),
    }
}

/// A graph in a file.
pub struct Candidate {
    /// Name of the variant.
    pub name: String,
    /// How it was made.
    pub recipe: String,
    /// Its file.
    pub path: PathBuf,
    /// Layer by layer.
    pub layers: Vec<LayerFigures>,
}

impl Candidate {
    /// The model as it came.
    pub fn original(path: PathBuf) -> Self {
        Self { name: "original".to_owned(), recipe: "as it came".to_owned(), path, layers: Vec::new() }
    }

    /// A variant that nobody has judged yet.
    pub fn variant(&self, timed: &[Timed]) -> Variant {
        let engine = |timed: &Timed| OnEngine {
            engine: timed.engine.clone(),
            p50_ms: timed.p50_ms,
            per_second: timed.per_second,
            core_ms: timed.core_ms,
            refused: timed.refused.clone(),
        };
        Variant {
            name: self.name.clone(),
            recipe: self.recipe.clone(),
            engine: None,
            figures: None,
            engines: timed.iter().map(engine).collect(),
            metric: None,
            interval: None,
            agreement: None,
            layers: self.layers.clone(),
            pareto: false,
            refused: None,
            file: None,
        }
    }
}

/// What static quantisation begins with.
pub struct Calibrated {
    /// The graph that was observed.
    pub prepared: Rc<Prepared>,
    /// What was observed.
    pub statistics: Statistics,
    /// The ranges that served best.
    pub ranges: Ranges,
    /// How nearly their model says what the original says.
    pub cosine: f64,
    method: Method,
    /// Examples after which ranges had settled, where that was before the last.
    examples: Option<usize>,
    /// All layers as bytes by these ranges, in chains: what they were compared by.
    chains: Quantised,
}

impl Calibrated {
    /// The method that the ranges are by, in words.
    pub fn method(&self) -> String {
        let method = self.method.name();
        self.examples.map_or_else(
            || method.to_owned(),
            |examples| format!("{method} of {examples} examples, after which they had settled"),
        )
    }
}

impl Work<'_> {
    /// Makes all candidates and writes their files.
    pub fn candidates(&self, original: &super::Original) -> Result<(Vec<Candidate>, Vec<Sensitivity>), Failure> {
        let mut made = Vec::new();
        self.go_on("halving weights")?;
        let halved = halve(&self.prepared, Half::Binary16)?;
        made.push(self.keep(
            "fp16",
            "weights as binary16, made binary32 when loaded",
            &halved,
            |_| 2.0,
            BTreeMap::new(),
        )?);
        if !self.args.quick {
            let (text, halved) =
                ("weights as bfloat16, made binary32 when loaded", halve(&self.prepared, Half::BFloat16)?);
            made.push(self.keep("bf16", text, &halved, |_| 2.0, BTreeMap::new())?);
        }
        if self.prepared.layers.is_empty() {
            let text =
                "no Conv, MatMul or Gemm of the model has constant weights of float32, which is what is quantised";
            self.bar.suspend(|| print::note!("{text}"));
        }
        self.dynamic(&mut made)?;
        let mut sensitivity = Vec::new();
        if !self.prepared.layers.is_empty() {
            match self.calibrated() {
                Ok(calibrated) => {
                    let calibrated = Rc::new(calibrated);
                    sensitivity = self.all_static(&calibrated, original, &mut made)?;
                    self.static_after_training(&calibrated, &mut made)?;
                }
                Err(Failure::Input(error)) => return Err(Failure::Input(error)),
                Err(failure) => print::note!("no static quantisation: {}", failure.message()),
            }
        }
        Ok((made, sensitivity))
    }

    fn dynamic(&self, made: &mut Vec<Candidate>) -> Result<(), Failure> {
        let has = |convolution: bool| self.prepared.layers.iter().any(|layer| (layer.op == "Conv") == convolution);
        let spec =
            |convolutions| DynamicSpec { weights: WeightBits::of_this_machine(), convolutions, keep: BTreeSet::new() };
        if has(false) {
            self.go_on("quantising weights")?;
            let quantised = quantise_dynamic(&self.prepared, &spec(Convolutions::Floats))?;
            let text = "weights of MatMul and Gemm as bytes, activations by the range of each run";
            let bytes = |layer: &edgeward_compress::Layer| if layer.op == "Conv" { 4.0 } else { 1.0 };
            made.push(self.keep("int8-dynamic", text, &quantised.model, bytes, self.noise(&quantised)?)?);
            if !self.args.quick {
                let pairs = quantise_pairs(&self.prepared, &quantised)?;
                let text = "the same, products of two activations (attention) as well";
                if pairs.layers > 0 {
                    made.push(self.keep("int8-dynamic-pairs", text, &pairs.model, bytes, self.noise(&pairs)?)?);
                }
            }
        }
        if self.prepared.model.graph().node.iter().any(|node| node.is_standard() && node.op_type() == "LSTM") {
            let (spec, bits) = (spec(Convolutions::Floats), WeightBits::of_this_machine());
            let dynamic = quantise_dynamic(&self.prepared, &spec)?;
            let quantised = quantise_recurrent(&self.prepared, &dynamic, bits)?;
            if quantised.layers > 0 {
                let text = "weights of LSTM, MatMul and Gemm as bytes, activations by the range of each run";
                made.push(self.keep(
                    "int8-lstm",
                    text,
                    &quantised.model,
                    |layer| if layer.op == "Conv" { 4.0 } else { 1.0 },
                    self.noise(&quantised)?,
                )?);
            }
        }
        self.blocks(made)?;
        if has(true) && !self.args.quick {
            let quantised = quantise_dynamic(&self.prepared, &spec(Convolutions::Quantised))?;
            let text = "all weights as bytes, activations by the range of each run";
            made.push(self.keep("int8-dynamic-conv", text, &quantised.model, |_| 1.0, self.noise(&quantised)?)?);
        }
        Ok(())
    }

    /// Observes ranges and takes the method whose model says most nearly what the original says.
    pub fn calibrated(&self) -> Result<Calibrated, Failure> {
        self.calibrated_of(&self.prepared)
    }

    /// The same of a graph that computes what the prepared one does.
    pub fn calibrated_of(&self, prepared: &Rc<Prepared>) -> Result<Calibrated, Failure> {
        let methods = if self.args.quick { &[Method::MinMax, Method::Percentile][..] } else { &Method::ALL[..] };
        let inputs = self.compared()?;
        let (statistics, expected, examples) = self.observed(prepared, inputs.len())?;
        let mut best: Option<(f64, Method, Ranges, Quantised)> = None;
        for &method in methods {
            self.go_on(&format!("calibrating by {}", method.name()))?;
            let ranges = statistics.ranges(method);
            let spec = self.spec(Form::Chains, &BTreeSet::new());
            let chains = quantise_static(prepared, &ranges, &statistics, &spec)?;
            let cosine = self.cosine(&chains.model, &inputs, &expected)?;
            if best.as_ref().is_none_or(|(most, ..)| cosine > *most) {
                best = Some((cosine, method, ranges, chains));
            }
        }
        let none = || CompressError::Data("nothing was calibrated".to_owned());
        let (cosine, method, ranges, chains) = best.ok_or_else(none)?;
        let examples = (examples < self.material.calibrated).then_some(examples);
        Ok(Calibrated { prepared: Rc::clone(prepared), statistics, ranges, cosine, method, examples, chains })
    }

    /// Inputs that graphs are compared on.
    pub fn compared(&self) -> Result<Vec<Inputs>, Failure> {
        let examples = if self.args.quick { COMPARED_QUICK } else { COMPARED };
        self.material.calibrate(examples).collect::<Result<_, _>>().or_input()
    }

    /// How nearly a model says what is expected.
    pub fn cosine(&self, model: &Model, inputs: &[Inputs], expected: &[Vec<Tensor>]) -> Result<f64, CompressError> {
        let mut compared = Compared::default();
        for (expected, got) in expected.iter().zip(&self.results(model, inputs)?) {
            compared.add(expected, got, 1);
        }
        Ok(compared.agreement().cosine)
    }

    /// What was observed, the graph's results of the first `kept` runs, and how many examples it was. In a hurry it ends where ranges have
    /// settled, unless a number of examples was asked for.
    fn observed(&self, prepared: &Prepared, kept: usize) -> Result<(Statistics, Vec<Vec<Tensor>>, usize), Failure> {
        self.go_on("observing ranges")?;
        let load = |model: &Model| self.load(model);
        let rows = Cell::new(0);
        let mut batches = self.material.calibrate_counted(&rows);
        let (mut results, mut settling) = (Vec::new(), Settling::default());
        let hurried = self.args.quick && self.args.calibration.is_none();
        let mut each = |statistics: &Statistics, of_run: Vec<Tensor>| {
            if results.len() < kept {
                results.push(of_run);
            }
            let settled = hurried && settling.settled(statistics, rows.get());
            if settled && results.len() == kept { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let statistics = calibrate_while(prepared, &load, &mut batches, &mut each)?;
        drop(batches);
        self.observed.set(self.observed.get().max(rows.get()));
        Ok((statistics, results, rows.get()))
    }

    /// What a model says.
    pub fn results(&self, model: &Model, inputs: &[Inputs]) -> Result<Vec<Vec<Tensor>>, CompressError> {
        let session = self.load(model)?;
        let names: Vec<String> = session.outputs().iter().map(|output| output.name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        inputs.iter().map(|inputs| observe::run(session.as_ref(), inputs, &names)).collect()
    }

    /// What static quantisation is asked for.
    pub fn spec(&self, form: Form, keep: &BTreeSet<String>) -> StaticSpec {
        StaticSpec {
            form,
            activations: Activations::of_this_machine(),
            weights: WeightBits::of_this_machine(),
            bias: Bias::Corrected,
            keep: keep.clone(),
        }
    }

    fn all_static(
        &self,
        calibrated: &Rc<Calibrated>,
        original: &Original,
        made: &mut Vec<Candidate>,
    ) -> Result<Vec<Sensitivity>, Failure> {
        self.both_forms(calibrated, ("int8", ""), made)?;
        if WeightBits::of_this_machine() != WeightBits::Seven {
            // As fast as bytes, and a tenth less to send: what is left out of a byte is not entropy.
            let text = "weights as 7 bits in bytes, chains of activations as bytes";
            self.fewer_bits(calibrated, WeightBits::Seven, ("int7", text), made)?;
        }
        let nearest = self.rescaled(calibrated, made)?;
        if self.args.quick {
            return Ok(Vec::new());
        }
        let none = BTreeSet::new();
        self.operators(&self.quantised(calibrated, Form::Chains, &none)?, made)?;
        self.rounded(calibrated, WeightBits::Four, made)?;
        let mut lossy = Vec::new();
        for base in nearest {
            let all = self.quantised(&base.calibrated, base.form, &none)?;
            if self.drop(&all.model, base.form, original)? > self.args.max_drop {
                lossy.push(base);
            }
        }
        if lossy.is_empty() {
            return Ok(Vec::new());
        }
        self.rounded(calibrated, WeightBits::of_this_machine(), made)?;
        self.mixed(&lossy, original, made)
    }

    /// Chains of bytes whose weights use a part of their byte.
    pub fn fewer_bits(
        &self,
        calibrated: &Calibrated,
        weights: WeightBits,
        (name, recipe): (&str, &str),
        made: &mut Vec<Candidate>,
    ) -> Outcome {
        self.go_on(&format!("quantising: {name}"))?;
        let spec = StaticSpec { weights, ..self.spec(Form::Chains, &BTreeSet::new()) };
        let quantised = quantise_static(&calibrated.prepared, &calibrated.ranges, &calibrated.statistics, &spec)?;
        if quantised.layers > 0 {
            made.push(self.keep(name, recipe, &quantised.model, |_| 1.0, self.noise(&quantised)?)?);
        }
        Ok(())
    }

    /// All layers as bytes, in both forms; `before` is what was done to the model before.
    pub fn both_forms(
        &self,
        calibrated: &Calibrated,
        (name, before): (&str, &str),
        made: &mut Vec<Candidate>,
    ) -> Outcome {
        let (none, method) = (BTreeSet::new(), calibrated.method());
        for form in [Form::Chains, Form::Inputs] {
            let (end, text) = told(form);
            let named = (format!("{name}{end}"), format!("{before}{text}, ranges by {method}"));
            self.static_candidate(calibrated, form, &none, (&named.0, &named.1), made)?;
        }
        Ok(())
    }

    /// The graph that was calibrated, but for `keep` as integers.
    pub fn quantised(
        &self,
        calibrated: &Calibrated,
        form: Form,
        keep: &BTreeSet<String>,
    ) -> Result<Quantised, Failure> {
        if form == Form::Chains && keep.is_empty() {
            return Ok(calibrated.chains.clone());
        }
        let spec = self.spec(form, keep);
        Ok(quantise_static(&calibrated.prepared, &calibrated.ranges, &calibrated.statistics, &spec)?)
    }

    /// Layers as bytes, but for `keep`, in one form.
    pub fn static_candidate(
        &self,
        calibrated: &Calibrated,
        form: Form,
        keep: &BTreeSet<String>,
        (name, recipe): (&str, &str),
        made: &mut Vec<Candidate>,
    ) -> Result<(), Failure> {
        self.go_on(&format!("quantising: {name}"))?;
        let quantised = self.quantised(calibrated, form, keep)?;
        if quantised.layers > 0 {
            let bytes = |layer: &edgeward_compress::Layer| if keep.contains(&layer.name) { 4.0 } else { 1.0 };
            let noise = self.noise_to(&calibrated.prepared, &quantised)?;
            made.push(self.keep(name, recipe, &quantised.model, bytes, noise)?);
        }
        Ok(())
    }

    /// How much the metric drops on the engine that a form is for; all of it where that refuses the graph.
    pub fn drop(&self, model: &Model, form: Form, original: &Original) -> Result<f64, Failure> {
        let Ok(session) = self.load_for(form, model) else { return Ok(f64::INFINITY) };
        let verdict = judge::variant(session.as_ref(), &self.material, &self.reference, self.metric);
        Ok(verdict.map_or(f64::INFINITY, |verdict| original.verdict.metric - verdict.metric))
    }

    /// Noise of each layer; nothing where the engine does not give a layer's result.
    pub fn noise(&self, quantised: &Quantised) -> Result<BTreeMap<String, f64>, Failure> {
        self.noise_to(&self.prepared, quantised)
    }

    /// The same beside another graph that computes what the prepared one does.
    pub fn noise_to(&self, prepared: &Prepared, quantised: &Quantised) -> Result<BTreeMap<String, f64>, Failure> {
        // A part of its own: what is quantised is ready before.
        self.go_on("noise of each layer")?;
        let load = |model: &Model| self.load(model);
        let examples = if self.args.quick { LAYER_EXAMPLES_QUICK } else { LAYER_EXAMPLES };
        let mut batches = self.material.calibrate(examples);
        let found = noise(&load, &prepared.model, &quantised.model, &quantised.results, &mut batches);
        Ok(found.unwrap_or_default())
    }

    /// Bytes of a layer's weights in the original.
    pub fn bytes_before(&self, layer: &edgeward_compress::Layer) -> u64 {
        let own = layer.weights() as u64 * 4;
        self.layer_bytes.get(self.prepared.title(layer).as_ref()).copied().unwrap_or(own)
    }

    /// Writes a candidate's file. `bytes` is the size of one weight of a layer.
    pub fn keep(
        &self,
        name: &str,
        recipe: &str,
        model: &Model,
        bytes: impl Fn(&edgeward_compress::Layer) -> f64,
        noise: BTreeMap<String, f64>,
    ) -> Result<Candidate, Failure> {
        let recipe = self.of.map_or_else(|| recipe.to_owned(), |of| format!("of the {of}: {recipe}"));
        let layer = |layer: &edgeward_compress::Layer| LayerFigures {
            name: self.prepared.title(layer).into_owned(),
            op: layer.op.clone(),
            bytes_before: self.bytes_before(layer),
            bytes: (layer.weights() as f64 * bytes(layer)) as u64,
            snr_db: noise.get(&layer.name).copied().filter(|ratio| ratio.is_finite()),
        };
        self.written(self.named(name), recipe, model, self.prepared.layers.iter().map(layer).collect())
    }

    /// Writes the file of a model that is no variant of what is prepared: its layers are its own, those of `prepared`.
    pub fn keep_own(
        &self,
        name: &str,
        recipe: String,
        model: &Model,
        prepared: &Prepared,
    ) -> Result<Candidate, Failure> {
        let layer = |layer: &edgeward_compress::Layer| LayerFigures {
            name: prepared.title(layer).into_owned(),
            op: layer.op.clone(),
            bytes_before: layer.weights() as u64 * 4,
            bytes: layer.weights() as u64 * 4,
            snr_db: None,
        };
        self.written(name.to_owned(), recipe, model, prepared.layers.iter().map(layer).collect())
    }

    fn written(
        &self,
        name: String,
        recipe: String,
        model: &Model,
        layers: Vec<LayerFigures>,
    ) -> Result<Candidate, Failure> {
        let path = self.kept.path(&format!("{name}.onnx"));
        model.write(&path)?;
        Ok(Candidate { name, recipe, path, layers })
    }
}
