//! The demo's data: ten digits, each drawn anew with its place, size, slant and grain by chance.

use edgeward_graph::{Tensor, TensorError};

/// Pixels of a side.
pub const SIDE: usize = 28;
/// Digits that there are.
pub const CLASSES: usize = 10;

/// Cells of a glyph.
const WIDE: usize = 5;
const HIGH: usize = 7;
/// Rows of each digit from the top; the highest of five bits is the left cell.
const GLYPHS: [[u8; HIGH]; CLASSES] = [
    [0b01110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110],
    [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
    [0b01110, 0b10001, 0b00001, 0b00010, 0b00100, 0b01000, 0b11111],
    [0b11110, 0b00001, 0b00001, 0b01110, 0b00001, 0b00001, 0b11110],
    [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
    [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110],
    [0b01110, 0b10000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110],
    [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000],
    [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110],
    [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00001, 0b01110],
];

/// Numbers that are the same on every machine (SplitMix64, Steele et al. 2014).
pub struct Chance(pub u64);

impl Chance {
    /// From 0 to below 1.
    pub fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }

    fn between(&mut self, least: f32, most: f32) -> f32 {
        least + (most - least) * self.unit()
    }
}

/// How a glyph lies in the picture.
struct Pose {
    /// Middle of the glyph, in pixels.
    x: f32,
    y: f32,
    /// Pixels of a cell.
    cell: f32,
    /// Cells to the right for each cell up.
    slant: f32,
    /// The most that chance adds to a pixel.
    grain: f32,
}

const UPRIGHT: Pose = Pose { x: 14.0, y: 14.0, cell: 3.0, slant: 0.0, grain: 0.0 };

impl Pose {
    fn drawn(chance: &mut Chance) -> Self {
        Self {
            x: chance.between(11.0, 17.0),
            y: chance.between(11.0, 17.0),
            cell: chance.between(2.2, 3.4),
            slant: chance.between(-0.35, 0.35),
            grain: 0.5,
        }
    }
}

/// Ink of a cell, 0 or 1; none beyond the glyph.
fn ink(digit: usize, column: isize, row: isize) -> f32 {
    let rows = GLYPHS.get(digit).map_or(&[][..], |glyph| glyph);
    let bits = usize::try_from(row).ok().and_then(|row| rows.get(row)).copied().unwrap_or(0);
    let inside = (0..WIDE as isize).contains(&column);
    if inside && bits >> (WIDE as isize - 1 - column) & 1 == 1 { 1.0 } else { 0.0 }
}

/// Pixels from 0 to 1, row by row: between the middles of cells the ink fades.
fn draw(digit: usize, pose: &Pose, chance: &mut Chance) -> Vec<f32> {
    let pixel = |at: usize| {
        let (x, y) = ((at % SIDE) as f32 + 0.5 - pose.x, (at / SIDE) as f32 + 0.5 - pose.y);
        let row = y / pose.cell;
        let (column, row) = (x / pose.cell + pose.slant * row + WIDE as f32 / 2.0 - 0.5, row + HIGH as f32 / 2.0 - 0.5);
        let (left, above) = (column.floor(), row.floor());
        let (right_part, below_part) = (column - left, row - above);
        let cell = |right: isize, below: isize| ink(digit, left as isize + right, above as isize + below);
        let line = |below| cell(0, below) * (1.0 - right_part) + cell(1, below) * right_part;
        let found = line(0) * (1.0 - below_part) + line(1) * below_part;
        (found * 1.5 - 0.25).clamp(0.0, 1.0)
    };
    (0..SIDE * SIDE).map(|at| (pixel(at) + pose.grain * chance.unit()).min(1.0)).collect()
}

/// So many pictures, bytes `[count, 28, 28]`, and what they show, `[count]`: each digit as often.
pub fn drawn(count: usize, seed: u64) -> Result<(Tensor, Tensor), TensorError> {
    let mut chance = Chance(seed);
    let (mut pictures, mut digits) = (Vec::with_capacity(count * SIDE * SIDE), Vec::with_capacity(count));
    for digit in (0..CLASSES).cycle().take(count) {
        let pose = Pose::drawn(&mut chance);
        pictures.extend(draw(digit, &pose, &mut chance).into_iter().map(|value| (value * 255.0) as u8));
        digits.push(digit as u8);
    }
    Ok((Tensor::from_vec([count, SIDE, SIDE], pictures)?, Tensor::from_vec([count], digits)?))
}

/// A digit as it stands in the font, `[1, 1, 28, 28]`, from 0 to 1.
pub fn plain(digit: usize) -> Result<Tensor, TensorError> {
    Tensor::from_vec([1, 1, SIDE, SIDE], draw(digit, &UPRIGHT, &mut Chance(0)))
}
