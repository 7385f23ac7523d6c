//! Weights between ONNX's order, [outputs, inputs of a group, taps], and blocks of a kernel's.

use super::{
    lanes::Block,
    run::{Run, zeros},
};

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
        let blocks = summed.div_ceil(width);
        let each = self.taps * width;
        let mut packed = zeros(lanes.div_ceil(16) * blocks * each)?;
        run.chunks(&mut packed, each, |chunk, out| {
            let (lane, sum) = (chunk / blocks * 16, chunk % blocks * width);
            let (lanes, sums) = (16.min(lanes - lane), width.min(summed - sum));
            match direction {
                Direction::Forward => self.outputs_in_lanes((lane, lanes), (sum, sums), (width, out)),
                Direction::Backward => self.inputs_in_lanes((lane, lanes), (sum, sums), (width, out)),
            }
        })?;
        Ok(packed)
    }

    fn outputs_in_lanes(
        &self,
        (lane, lanes): (usize, usize),
        (sum, sums): (usize, usize),
        (width, out): (usize, &mut [Block]),
    ) {
        let mut rows: [&[f32]; 16] = [&[]; 16];
        for (at, row) in rows.iter_mut().enumerate().take(lanes) {
            let start = ((lane + at) * self.inputs + sum) * self.taps;
            *row = &self.data[start..start + sums * self.taps];
        }
        for i in 0..sums {
            for tap in 0..self.taps {
                let block = &mut out[tap * width + i];
                for (to, row) in block.iter_mut().zip(&rows) {
                    *to = row.get(i * self.taps + tap).copied().unwrap_or_default();
                }
            }
        }
    }

    fn inputs_in_lanes(
        &self,
        (lane, lanes): (usize, usize),
        (sum, sums): (usize, usize),
        (width, out): (usize, &mut [Block]),
    ) {
        for i in 0..sums {
            let start = ((sum + i) * self.inputs + lane) * self.taps;
            let row = &self.data[start..start + lanes * self.taps];
            for tap in 0..self.taps {
                let block = &mut out[tap * width + i];
                for (at, to) in block.iter_mut().enumerate() {
                    *to = row.get(at * self.taps + tap).copied().unwrap_or_default();
                }
            }
        }
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
