//! Candidates whose weights alone are integers, in blocks: rounded to the nearest, or by what comes before them.

use std::collections::BTreeMap;

use edgeward_compress::{
    BlockBits, CompressError, GptqSpec, Layer, Quantised, Solved, gptq, gptq_cost, observe::Inputs, quantise_blocks,
    quantise_blocks_in_steps, report::DataKind,
};
use edgeward_graph::Model;

use super::{
    Work,
    candidates::{BLOCK, Candidate},
};
use crate::{
    failure::{Failure, Outcome},
    interrupt, print,
};

/// Examples that weights are rounded by.
const EXAMPLES: usize = 128;
/// The same in a hurry, and multiply-adds that are then worth it: a few seconds.
const EXAMPLES_QUICK: usize = 32;
const COST_QUICK: f64 = 1e10;

impl Work<'_> {
    /// Weights of MatMul and Gemm in blocks, if there are any of fitting width.
    pub fn blocks(&self, made: &mut Vec<Candidate>) -> Outcome {
        if self.prepared.layers.iter().all(|layer| layer.op == "Conv") {
            return Ok(());
        }
        let nearest = quantise_blocks(&self.prepared, BlockBits::Four, BLOCK)?;
        if nearest.layers == 0 {
            return Ok(());
        }
        let text = "weights of MatMul and Gemm as 4 bits in blocks of 32, activations as they are";
        made.push(self.keep_blocks("int4-weights", text, &nearest, BlockBits::Four)?);
        self.solved_blocks(made)?;
        if self.args.learn.qat.is_some() && self.is_mostly_blocks() {
            self.once_trained("int4-weights-qat", made, |made| self.blocks_after_training(made))?;
        }
        if !self.args.quick {
            let quantised = quantise_blocks(&self.prepared, BlockBits::Eight, BLOCK)?;
            let text = "weights of MatMul and Gemm as bytes in blocks of 32, activations as they are";
            made.push(self.keep_blocks("int8-weights", text, &quantised, BlockBits::Eight)?);
        }
        Ok(())
    }

    /// Whether enough weights are in MatMul and Gemm for their bits to be worth a training.
    fn is_mostly_blocks(&self) -> bool {
        let weights = |convolution: bool| -> usize {
            self.prepared.layers.iter().filter(|layer| (layer.op == "Conv") == convolution).map(Layer::weights).sum()
        };
        weights(false) >= weights(true)
    }

    /// Made-up inputs do not go together as real ones do, so nothing is rounded by them.
    fn solved_blocks(&self, made: &mut Vec<Candidate>) -> Outcome {
        let quick = self.args.quick;
        if self.material.kind == DataKind::Synthesised || (quick && gptq_cost(&self.prepared) > COST_QUICK) {
            return Ok(());
        }
        self.go_on("rounding weights by what comes before them")?;
        let load = |model: &Model| self.load(model);
        let examples = if quick { EXAMPLES_QUICK } else { EXAMPLES };
        let batches = || self.repeated(examples);
        let solved = gptq(&self.prepared, &GptqSpec::new(BlockBits::Four, BLOCK), &load, &batches);
        let Some(solved) = self.solved("rounded by what comes before them", solved)? else { return Ok(()) };
        let quantised = quantise_blocks_in_steps(&solved.prepared, BlockBits::Four, BLOCK, &solved.steps)?;
        let text =
            "weights of MatMul and Gemm as 4 bits in blocks of 32, each rounded by the errors of those before it";
        made.push(self.keep_blocks("int4-gptq", text, &quantised, BlockBits::Four)?);
        Ok(())
    }

    /// Weights that were rounded by data; none where no layer was, with a word about what went wrong.
    pub fn solved(&self, how: &str, solved: Result<Solved, CompressError>) -> Result<Option<Solved>, Failure> {
        match solved {
            Ok(solved) => Ok(Some(solved).filter(|solved| solved.layers > 0)),
            Err(error) => {
                self.show("going on")?;
                self.bar.suspend(|| print::note!("no weights {how}: {error}"));
                Ok(None)
            }
        }
    }

    /// Examples for as long as nobody interrupts.
    pub fn repeated(&self, examples: usize) -> Box<dyn Iterator<Item = Result<Inputs, CompressError>> + '_> {
        let go_on = |batch| {
            let stopped = interrupt::came().then(|| CompressError::Data("interrupted".to_owned()));
            stopped.map_or(batch, Err)
        };
        Box::new(self.material.calibrate(examples).map(go_on))
    }

    fn keep_blocks(
        &self,
        name: &str,
        recipe: &str,
        quantised: &Quantised,
        bits: BlockBits,
    ) -> Result<Candidate, Failure> {
        let size = if bits == BlockBits::Four { 0.5 } else { 1.0 };
        let bytes = |layer: &Layer| if layer.op == "Conv" { 4.0 } else { size };
        let noise: BTreeMap<String, f64> = self.noise(quantised)?;
        self.keep(name, recipe, &quantised.model, bytes, noise)
    }
}
