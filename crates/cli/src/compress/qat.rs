//! Candidates that were trained to be integers: begun with the ranges that were observed, rounded while they learn, and
//! exported as the same static integers that are tried without training.

use std::collections::BTreeSet;

use edgeward_compress::{
    Bias, BlockBits, Form, Learnt, Ranges, Rounded, StaticSpec, WeightBits, join, quantise_blocks_in_steps,
    quantise_static_in_steps, round_in_training,
};

use super::{
    Work,
    candidates::{BLOCK, Calibrated, Candidate},
    distil::Course,
};
use crate::failure::Failure;

/// The learning rate: small, since the weights are good already.
const RATE: f64 = 0.0002;
/// The original's word is taken as it is.
const TEMPERATURE: f32 = 1.0;

impl Work<'_> {
    /// Static integers, after training with rounding; with fewer bits for weights too, unless it shall be quick.
    pub fn static_after_training(&self, calibrated: &Calibrated, made: &mut Vec<Candidate>) -> Result<(), Failure> {
        let Some(epochs) = self.args.learn.qat else { return Ok(()) };
        self.once_trained("int8-qat", made, |made| {
            let names = ("int8-qat", "int8-inputs-qat");
            self.trained_static(calibrated, WeightBits::of_this_machine(), names, epochs, made)
        })?;
        if self.args.quick {
            return Ok(());
        }
        // What training begins with, to hold its result against.
        let text = "weights as 4 bits in bytes, activations as bytes";
        self.fewer_bits(calibrated, WeightBits::Four, ("int4", text), made)?;
        self.once_trained("int4-qat", made, |made| {
            self.trained_static(calibrated, WeightBits::Four, ("int4-qat", "int4-inputs-qat"), epochs, made)
        })
    }

    fn trained_static(
        &self,
        calibrated: &Calibrated,
        weights: WeightBits,
        (chains, inputs): (&str, &str),
        epochs: u64,
        made: &mut Vec<Candidate>,
    ) -> Result<(), Failure> {
        let spec = |form| StaticSpec { weights, bias: Bias::AsItIs, ..self.spec(form, &BTreeSet::new()) };
        let chained = spec(Form::Chains);
        let rounded = Rounded::Static { ranges: &calibrated.ranges, spec: &chained };
        let learnt = self.learn_rounded(&rounded, &calibrated.ranges, epochs, chains)?;
        let bits = if weights == WeightBits::Four { "4 bits in bytes" } else { "bytes" };
        for (form, name) in [(Form::Chains, chains), (Form::Inputs, inputs)] {
            let (ranges, statistics) = (&learnt.ranges, &calibrated.statistics);
            let quantised = quantise_static_in_steps(&learnt.prepared, ranges, statistics, &spec(form), &learnt.steps)?;
            let recipe = format!("weights as {bits}, activations as bytes, trained for it for {epochs} epochs");
            made.push(self.keep(name, &recipe, &quantised.model, |_| 1.0, self.noise(&quantised)?)?);
        }
        Ok(())
    }

    /// Weights of MatMul and Gemm as 4 bits in blocks, after training with rounding.
    pub fn blocks_after_training(&self, made: &mut Vec<Candidate>) -> Result<(), Failure> {
        let Some(epochs) = self.args.learn.qat else { return Ok(()) };
        let name = "int4-weights-qat";
        let rounded = Rounded::Blocks { block: BLOCK };
        let learnt = self.learn_rounded(&rounded, &Ranges::new(), epochs, name)?;
        let quantised = quantise_blocks_in_steps(&learnt.prepared, BlockBits::Four, BLOCK, &learnt.steps)?;
        let recipe =
            format!("weights of MatMul and Gemm as 4 bits in blocks of {BLOCK}, trained for it for {epochs} epochs");
        let half = |layer: &edgeward_compress::Layer| if layer.op == "Conv" { 4.0 } else { 0.5 };
        made.push(self.keep(name, &recipe, &quantised.model, half, self.noise(&quantised)?)?);
        Ok(())
    }

    fn learn_rounded(
        &self,
        rounded: &Rounded<'_>,
        ranges: &Ranges,
        epochs: u64,
        title: &str,
    ) -> Result<Learnt, Failure> {
        let rounding = round_in_training(&self.prepared, rounded)?;
        let joined = join(&rounding.forward, &self.prepared, &self.distil_spec(TEMPERATURE))?;
        let (frozen, factors) = (&rounding.frozen, &rounding.factors);
        let rate = self.args.learn.qat_rate.unwrap_or(RATE);
        let trained = self.learn(&Course { joined: &joined, frozen, factors, epochs, rate, title })?;
        Ok(rounding.learnt(&self.prepared, ranges, &trained)?)
    }
}
