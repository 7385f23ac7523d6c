//! `Conv` and `ConvInputGradient`: two-dimensional, in one group or one for each channel.

use super::{
    Kernel, Port, Spec,
    bridge::Attributes,
    depthwise,
    geometry::{Plan, Window},
    lanes::Block,
    layout::from_blocked,
    run::{Run, View, zeros},
    sweep::Convolution,
    weights::{Direction, Plain, channel_blocks},
};

pub(super) const SPECS: &[Spec] = &[
    Spec {
        name: c"Conv",
        inputs: &[Port::Floats, Port::Floats, Port::Optional],
        outputs: &[Port::Floats],
        make: |attributes| Ok(Box::new(Conv(Settings::of(attributes)?))),
    },
    Spec {
        name: c"ConvInputGradient",
        inputs: &[Port::Floats, Port::Floats],
        outputs: &[Port::Floats],
        make: InputGradient::make,
    },
];

/// What the operators of a convolution have in common.
pub(super) struct Settings {
    pub window: Window,
    /// One group for each channel, instead of one.
    pub depthwise: bool,
    /// x is [N, C, H, W].
    pub plain: bool,
    pub channels: usize,
}

impl Settings {
    pub(super) fn of(attributes: &Attributes<'_>) -> Result<Self, String> {
        let channels = attributes.size(c"channels")?;
        let group = attributes.size_or_one(c"group")?;
        let plain = attributes.flag(c"plain")?;
        let depthwise = group > 1;
        if depthwise && group != channels {
            return Err(format!("`group` is {group}; 1 and the {channels} `channels` are known"));
        }
        if depthwise && plain {
            return Err("`plain` goes with one `group` only".to_owned());
        }
        Ok(Self { window: Window::of(attributes)?, depthwise, plain, channels })
    }

    /// The weights, and the windows of their size.
    fn weights<'a>(&self, w: &View<'a, f32>) -> Result<(Plain<'a>, Window), String> {
        let [outputs, inputs, height, width] = w.dims("w")?;
        let expected = if self.depthwise { 1 } else { self.channels };
        if inputs != expected || (self.depthwise && outputs != self.channels) || outputs == 0 {
            let Self { channels, .. } = self;
            return Err(format!("`w` has the shape {:?}, which does not fit {channels} channels", w.shape()));
        }
        if height * width == 0 {
            return Err(format!("`w` has the shape {:?}, a kernel without taps", w.shape()));
        }
        let plain = Plain { data: w.data, outputs, inputs, taps: height * width };
        Ok((plain, self.window.with_kernel([height, width])))
    }
}

struct Conv(Settings);

impl Kernel for Conv {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let (x, bias) = (run.input(0, "x")?, run.optional(2)?);
        let (weights, window) = self.0.weights(&run.input(1, "w")?)?;
        let bias = bias.map(|b| b.expect("bias", &[weights.outputs])).transpose()?.map(channel_blocks);
        let outputs = weights.outputs.div_ceil(16);
        let begin = |n: usize, size: [usize; 2]| {
            let output = window.output(size)?;
            let out = run.blocked(0, [n, outputs, output[0], output[1]])?;
            Ok::<_, String>((Plan::forward(&window, size, output), output[0] * output[1], out))
        };
        if self.0.plain {
            let [n, c, h, w] = x.dims("x")?;
            if c != self.0.channels {
                return Err(format!("`x` has {c} channels, expected {}", self.0.channels));
            }
            let (plan, output_plane, out) = begin(n, [h, w])?;
            let convolution = Convolution::<1> {
                plan: &plan,
                images: x.data.as_chunks().0,
                image_blocks: c,
                image_plane: h * w,
                image_width: w,
                weights: &weights.pack(run, Direction::Forward, 1)?,
                taps: weights.taps,
                bias: bias.as_deref(),
                outputs,
                output_plane,
            };
            return convolution.run(run, n, out);
        }
        let ([n, blocks, h, w], images) = x.channels("x", self.0.channels)?;
        let (plan, output_plane, out) = begin(n, [h, w])?;
        if self.0.depthwise {
            let weights = &weights.pack_depthwise();
            let depthwise = depthwise::Convolution { plan: &plan, weights, taps: window.kernel_size(), blocks };
            return depthwise.run(run, (images, [h, w]), bias.as_deref(), (out, output_plane));
        }
        let convolution = Convolution::<16> {
            plan: &plan,
            images,
            image_blocks: blocks,
            image_plane: h * w,
            image_width: w,
            weights: &weights.pack(run, Direction::Forward, 16)?,
            taps: weights.taps,
            bias: bias.as_deref(),
            outputs,
            output_plane,
        };
        convolution.run(run, n, out)
    }
}

struct InputGradient {
    settings: Settings,
    size: [usize; 2],
}

impl InputGradient {
    fn make(attributes: &Attributes<'_>) -> Result<Box<dyn Kernel>, String> {
        Ok(Box::new(Self { settings: Settings::of(attributes)?, size: attributes.ints(c"size", 1, None)? }))
    }

    /// Fills `out`, [N][block][H][W].
    #[target_feature(enable = "avx512f")]
    fn fill(&self, run: &Run<'_>, dy: &View<'_, f32>, out: &mut [Block]) -> Result<(), String> {
        let (weights, window) = self.settings.weights(&run.input(1, "w")?)?;
        let ([n, blocks, h, w], dy) = dy.channels("dy", weights.outputs)?;
        window.check(self.size, [h, w])?;
        let plan = Plan::backward(&window, self.size, [h, w]);
        let output_plane = self.size[0] * self.size[1];
        if self.settings.depthwise {
            let weights = &weights.pack_depthwise();
            let depthwise = depthwise::Convolution { plan: &plan, weights, taps: window.kernel_size(), blocks };
            return depthwise.run(run, (dy, [h, w]), None, (out, output_plane));
        }
        let convolution = Convolution::<16> {
            plan: &plan,
            images: dy,
            image_blocks: blocks,
            image_plane: h * w,
            image_width: w,
            weights: &weights.pack(run, Direction::Backward, 16)?,
            taps: weights.taps,
            bias: None,
            outputs: self.settings.channels.div_ceil(16),
            output_plane,
        };
        convolution.run(run, n, out)
    }
}

impl Kernel for InputGradient {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let dy = run.input(0, "dy")?;
        let ([n, ..], _) = dy.blocked("dy")?;
        let ([h, w], c) = (self.size, self.settings.channels);
        if self.settings.plain {
            let mut blocks = zeros(n * c.div_ceil(16) * h * w)?;
            self.fill(run, &dy, &mut blocks)?;
            return from_blocked(run, &blocks, [n, c, h, w]);
        }
        self.fill(run, &dy, run.blocked(0, [n, c.div_ceil(16), h, w])?)
    }
}
