//! An input in a few numbers, such that inputs that are near each other have sketches that are: sums over blocks of it, projected at random
//! (Achlioptas 2003, "Database-friendly random projections"). By a seed that callers do not know, so that none can hide in what it leaves out.

/// Numbers of a sketch.
const NUMBERS: usize = 16;
/// Sums that are projected; an input of fewer values has one for each.
const BLOCKS: usize = 256;
/// Beyond this a value is as large: squares of sums must stay numbers.
const LARGEST: f32 = 1e6;

/// A sketch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sketch([f32; NUMBERS]);

/// Makes sketches that can be compared with each other.
#[derive(Clone, Debug)]
pub struct Sketcher {
    /// For each block a bit for each number: which way it counts.
    signs: Vec<u16>,
}

impl Sketcher {
    /// By a seed.
    pub fn new(seed: u64) -> Self {
        // SplitMix64 (Steele, Lea and Flood 2014).
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as u16
        };
        Self { signs: (0..BLOCKS).map(|_| next()).collect() }
    }

    /// The sketch of `length` values.
    pub fn sketch(&self, values: impl Iterator<Item = f32>, length: usize) -> Sketch {
        let mut numbers = [0.0; NUMBERS];
        let per_block = length.div_ceil(BLOCKS).max(1);
        let (mut sum, mut within, mut block) = (0.0f32, 0, 0);
        let mut add = |sum: f32, block: usize| {
            let signs = self.signs.get(block).copied().unwrap_or_default();
            for (bit, number) in numbers.iter_mut().enumerate() {
                *number += if signs >> bit & 1 == 1 { sum } else { -sum };
            }
        };
        for value in values.take(length) {
            sum += if value.is_nan() { 0.0 } else { value.clamp(-LARGEST, LARGEST) };
            within += 1;
            if within == per_block {
                add(sum, block);
                (sum, within, block) = (0.0, 0, block + 1);
            }
        }
        add(sum, block);
        Sketch(numbers)
    }
}

impl Sketch {
    /// How far apart two are.
    pub(super) fn distance(&self, other: &Self) -> f32 {
        self.0.iter().zip(other.0).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
    }

    /// How far it is from nothing.
    pub(super) fn size(&self) -> f32 {
        self.0.iter().map(|a| a * a).sum::<f32>().sqrt()
    }
}
