//! Between plain images, [N, C, H, W], and blocked ones.

use super::{Kernel, Port, Spec, bridge::Attributes, lanes::Block, run::Run};

pub(super) const SPECS: &[Spec] = &[
    Spec { name: c"ToBlocked", inputs: &[Port::Floats], outputs: &[Port::Floats], make: |_| Ok(Box::new(ToBlocked)) },
    Spec { name: c"FromBlocked", inputs: &[Port::Floats], outputs: &[Port::Floats], make: FromBlocked::make },
];

struct ToBlocked;

impl Kernel for ToBlocked {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let x = run.input(0, "x")?;
        let [n, c, h, w] = x.dims("x")?;
        let (blocks, plane) = (c.div_ceil(16), h * w);
        let out = run.blocked(0, [n, blocks, h, w])?;
        run.chunks(out, plane, |index, out| {
            let (image, block) = (index / blocks, index % blocks);
            let channels = 16.min(c - block * 16);
            let from = (image * c + block * 16) * plane;
            into_blocks(&x.data[from..from + channels * plane], out);
        })
    }
}

/// Planes of up to 16 channels side by side, with zeros in spare lanes.
#[target_feature(enable = "avx512f")]
fn into_blocks(planes: &[f32], out: &mut [Block]) {
    let plane = out.len();
    if planes.len() < 16 * plane {
        out.fill([0.0; 16]);
    }
    // A few pixels at a time, so that their blocks stay in the first cache.
    for (start, out) in (0..plane).step_by(16).zip(out.chunks_mut(16)) {
        for (channel, from) in planes.chunks_exact(plane).enumerate().take(16) {
            for (block, value) in out.iter_mut().zip(&from[start..]) {
                block[channel] = *value;
            }
        }
    }
}

struct FromBlocked {
    channels: usize,
}

impl FromBlocked {
    fn make(attributes: &Attributes<'_>) -> Result<Box<dyn Kernel>, String> {
        Ok(Box::new(Self { channels: attributes.size(c"channels")? }))
    }
}

impl Kernel for FromBlocked {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let ([n, _, h, w], x) = run.input(0, "x")?.channels("x", self.channels)?;
        from_blocked(run, x, [n, self.channels, h, w])
    }
}

/// Makes the first output, of `dims`, of blocked data.
#[target_feature(enable = "avx512f")]
pub(super) fn from_blocked(run: &Run<'_>, x: &[Block], dims: [usize; 4]) -> Result<(), String> {
    let [_, c, h, w] = dims;
    let (blocks, plane) = (c.div_ceil(16), h * w);
    let out = run.output(0, &dims)?;
    run.chunks(out, c * plane, |image, out| {
        for (block, out) in out.chunks_mut((16 * plane).max(1)).enumerate() {
            let from = (image * blocks + block) * plane;
            out_of_blocks(&x[from..from + plane], out);
        }
    })
}

#[target_feature(enable = "avx512f")]
fn out_of_blocks(blocks: &[Block], planes: &mut [f32]) {
    let plane = blocks.len();
    for (start, blocks) in (0..plane).step_by(16).zip(blocks.chunks(16)) {
        for (channel, to) in planes.chunks_exact_mut(plane).enumerate().take(16) {
            for (value, block) in to[start..].iter_mut().zip(blocks) {
                *value = block[channel];
            }
        }
    }
}
