//! Weights between ONNX's order, [outputs, inputs of a group, taps], and blocks of a kernel's.

use super::{lanes::Block, run::Run};

/// Plain weights and their sizes.
#[derive(Clone, Copy)]
pub(super) struct Plain<'a> {
    pub data: &'a [f32],
    pub outputs: usize,
    pub inputs: usize,
    pub taps: usize,
}

/// What is summed over, and what the lanes are.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Direction {
    /// Sums over inputs, lanes are outputs.
    Forward,
    /// Sums over outputs, lanes are inputs.
    Backward,
}

impl Plain<'_> {
    /// As [block of lanes][block summed over][tap][`width` summed over] of blocks; zeros where there is no channel.
    pub(super) fn pack(&self, run: &Run<'_>, direction: Direction, width: usize) -> Result<Vec<Block>, String> {
        let (lanes, summed) = match direction {
            Direction::Forward => (self.outputs, self.inputs),
            Direction::Backward => (self.inputs, self.outputs),
        };
        let (lane_step, sum_step) = match direction {
            Direction::Forward => (self.inputs * self.taps, self.taps),
            Direction::Backward => (self.taps, self.inputs * self.taps),
        };
        let blocks = summed.div_ceil(width);
        let each = self.taps * width;
        let mut packed = vec![[0.0; 16]; lanes.div_ceil(16) * blocks * each];
        run.chunks(&mut packed, each, |chunk, out| {
            let (first_lane, first) = (chunk / blocks * 16, chunk % blocks * width);
            let here = 16.min(lanes - first_lane);
            for i in 0..width.min(summed - first) {
                for tap in 0..self.taps {
                    let Some(block) = out.get_mut(tap * width + i) else { continue };
                    let start = first_lane * lane_step + (first + i) * sum_step + tap;
                    let from = self.data.get(start..).unwrap_or_default().iter().step_by(lane_step);
                    block.iter_mut().take(here).zip(from).for_each(|(to, from)| *to = *from);
                }
            }
        })?;
        Ok(packed)
    }

    /// Depthwise weights as [block][tap] of blocks.
    pub(super) fn pack_depthwise(&self) -> Vec<Block> {
        let mut packed = vec![[0.0; 16]; self.outputs.div_ceil(16) * self.taps];
        for (channel, taps) in self.data.chunks_exact(self.taps.max(1)).enumerate() {
            for (tap, weight) in taps.iter().enumerate() {
                if let Some(block) = packed.get_mut(channel / 16 * self.taps + tap) {
                    block[channel % 16] = *weight;
                }
            }
        }
        packed
    }
}

/// A vector of channels as blocks, with zeros in spare lanes.
pub(super) fn channel_blocks(values: &[f32]) -> Vec<Block> {
    let block = |chunk: &[f32]| {
        let mut block = [0.0; 16];
        block.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        block
    };
    values.chunks(16).map(block).collect()
}
