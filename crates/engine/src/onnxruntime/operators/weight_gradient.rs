//! `ConvWeightGradient`: the sum over all images and pixels of input times output gradient, for each tap; or one sum for each image.
//!
//! Each task has some blocks of outputs and inputs to itself and goes through all images, so that sums do not depend on the threads.
//! Sixteen sums (8 inputs by 2 blocks of outputs) stay in registers while the pixels of one tap pass.

use super::{
    Kernel, Port, Spec,
    bridge::Attributes,
    convolution::Settings,
    depthwise,
    geometry::Window,
    lanes::{Block, Lanes, add, fma, load, splat, store, zero},
    run::{Run, zeros},
};

pub(super) const SPECS: &[Spec] = &[Spec {
    name: c"ConvWeightGradient",
    inputs: &[Port::Floats, Port::Floats],
    outputs: &[Port::Floats],
    make: WeightGradient::make,
}];

struct WeightGradient {
    settings: Settings,
    window: Window,
    kernel: [usize; 2],
    outputs: usize,
    sums: Sums,
}

/// What is added up.
#[derive(Clone, Copy, PartialEq)]
enum Sums {
    /// All images: [outputs, inputs, kernel…].
    Whole,
    /// Each image by itself: [images, outputs, inputs, kernel…].
    EachImage,
}

impl WeightGradient {
    fn make(attributes: &Attributes<'_>) -> Result<Box<dyn Kernel>, String> {
        let settings = Settings::of(attributes)?;
        let kernel = attributes.ints(c"kernel_shape", 1, None)?;
        let outputs = attributes.size(c"outputs")?;
        if settings.depthwise && outputs != settings.channels {
            return Err(format!("`outputs` is {outputs}, expected the {} `channels`", settings.channels));
        }
        let sums = if attributes.flag(c"each_image")? { Sums::EachImage } else { Sums::Whole };
        if settings.depthwise && sums == Sums::EachImage {
            return Err("`each_image` goes with one `group` only".to_owned());
        }
        Ok(Box::new(Self { window: settings.window.with_kernel(kernel), settings, kernel, outputs, sums }))
    }
}

impl Kernel for WeightGradient {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let (x, dy) = (run.input(0, "x")?, run.input(1, "dy")?);
        let ([n, output_blocks, oh, ow], dy) = dy.channels("dy", self.outputs)?;
        let channels = self.settings.channels;
        let inputs = if self.settings.depthwise { 1 } else { channels };
        let (images, size) = if self.settings.plain {
            let [images, c, h, w] = x.dims("x")?;
            if c != channels {
                return Err(format!("`x` has {c} channels, expected {channels}"));
            }
            (images, [h, w])
        } else {
            let ([images, _, h, w], _) = x.channels("x", channels)?;
            (images, [h, w])
        };
        if images != n {
            return Err(format!("`x` has {images} images and `dy` {n}"));
        }
        self.window.check(size, [oh, ow])?;
        let shape = [images, self.outputs, inputs, self.kernel[0], self.kernel[1]];
        let dw = run.output(0, if self.sums == Sums::EachImage { &shape } else { &shape[1..] })?;
        let taps = self.window.kernel_size();
        if self.settings.depthwise {
            let blocks = x.data.as_chunks().0;
            let sums = depthwise::weight_gradient(run, &self.window, (blocks, size), (dy, [oh, ow]), output_blocks)?;
            for (channel, taps) in dw.chunks_exact_mut(taps).enumerate() {
                let from = sums.iter().skip(channel / 16 * taps.len());
                taps.iter_mut().zip(from).for_each(|(to, from)| *to = from[channel % 16]);
            }
            return Ok(());
        }
        let width = if self.settings.plain { 1 } else { 16 };
        // Where every pixel meets itself, all rows are one.
        let (size, output) = if self.window.keeps_pixels() { ([1, oh * ow], [1, oh * ow]) } else { (size, [oh, ow]) };
        let work = Work {
            window: &self.window,
            dy,
            size,
            output,
            images,
            inputs: inputs.div_ceil(width),
            outputs: output_blocks,
            inside: [0, 1].map(|i| {
                let axis = &self.window.0[i];
                (0..axis.kernel).map(|tap| axis.inside(tap, size[i], output[i])).collect()
            }),
        };
        let split = work.split(self.sums);
        let mut sums = zeros(split.tasks() * split.task_blocks(taps * width))?;
        if self.settings.plain {
            work.run::<1>(run, x.data.as_chunks().0, &split, &mut sums)?;
        } else {
            work.run::<16>(run, x.data.as_chunks().0, &split, &mut sums)?;
        }
        let unpack = Unpack { sums: &sums, split: &split, taps, width, inputs };
        // A block of outputs at a time, so that each block of sums is read once.
        let block = 16 * inputs * taps;
        match self.sums {
            Sums::Whole => run.chunks(dw, block, |output, dw| unpack.block(0..split.parts, output, dw)),
            Sums::EachImage => run.chunks(dw, self.outputs * inputs * taps, |image, dw| {
                dw.chunks_mut(block).enumerate().for_each(|(output, dw)| unpack.block(image..image + 1, output, dw));
            }),
        }
    }
}

/// Puts sums into ONNX's order.
struct Unpack<'a> {
    sums: &'a [Block],
    split: &'a Split,
    taps: usize,
    width: usize,
    inputs: usize,
}

impl Unpack<'_> {
    /// Adds up the parts of one block of outputs: `dw` is [outputs, inputs, taps].
    #[target_feature(enable = "avx512f")]
    fn block(&self, parts: std::ops::Range<usize>, output: usize, dw: &mut [f32]) {
        let Self { sums, split, taps, width, inputs } = *self;
        for input in 0..inputs {
            for tap in 0..taps {
                let mut total = [0.0; 16];
                for part in parts.clone() {
                    let place = split.place(part, output, input / width, taps * width) + tap * width + input % width;
                    total.iter_mut().zip(&sums[place]).for_each(|(t, s)| *t += s);
                }
                let to = dw.iter_mut().skip(input * taps + tap).step_by(inputs * taps);
                to.zip(total).for_each(|(to, total)| *to = total);
            }
        }
    }
}

/// How the work is split into tasks: by shape alone.
struct Split {
    /// Parts of the images, added up at the end.
    parts: usize,
    /// Blocks of outputs of a task, an even number; and blocks of inputs.
    outputs: usize,
    inputs: usize,
    /// Tasks of one part along outputs and inputs.
    along: [usize; 2],
}

impl Split {
    fn tasks(&self) -> usize {
        self.parts * self.along[0] * self.along[1]
    }

    /// Blocks of a task's sums: [output][input][tap and lane].
    fn task_blocks(&self, each: usize) -> usize {
        self.outputs * self.inputs * each
    }

    /// Where the sums of a block of outputs and inputs begin.
    fn place(&self, part: usize, output: usize, input: usize, each: usize) -> usize {
        let task = (part * self.along[0] + output / self.outputs) * self.along[1] + input / self.inputs;
        task * self.task_blocks(each) + (output % self.outputs * self.inputs + input % self.inputs) * each
    }
}

/// Tasks that keep a few threads busy to the end.
const TASKS: usize = 8;
/// Pixels of one visit: two blocks of output gradients and one of inputs fill half of the first cache.
const VISIT_PIXELS: usize = 128;

struct Work<'a> {
    window: &'a Window,
    dy: &'a [Block],
    size: [usize; 2],
    output: [usize; 2],
    images: usize,
    /// Blocks of inputs, or channels of a plain image; and blocks of outputs.
    inputs: usize,
    outputs: usize,
    /// For each tap along rows and columns, the outputs that it gives a pixel.
    inside: [Vec<(usize, usize)>; 2],
}

/// Images and rows that are visited together.
struct Visit {
    images: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
}

impl Work<'_> {
    fn split(&self, sums: Sums) -> Split {
        if sums == Sums::EachImage && self.images >= TASKS {
            return Split {
                parts: self.images,
                outputs: self.outputs.next_multiple_of(2),
                inputs: self.inputs,
                along: [1, 1],
            };
        }
        let outputs = self.outputs.div_ceil(TASKS).next_multiple_of(2);
        let along_outputs = self.outputs.div_ceil(outputs);
        let inputs = self.inputs.div_ceil(TASKS.div_ceil(along_outputs));
        let along = [along_outputs, self.inputs.div_ceil(inputs)];
        let tasks = along[0] * along[1];
        let parts = match sums {
            Sums::EachImage => self.images,
            Sums::Whole if tasks * 2 > TASKS => 1,
            Sums::Whole => (TASKS / tasks).min(self.images).max(1),
        };
        Split { parts, outputs, inputs, along }
    }

    #[target_feature(enable = "avx512f")]
    fn run<const I: usize>(
        &self,
        run: &Run<'_>,
        x: &[[f32; I]],
        split: &Split,
        sums: &mut [Block],
    ) -> Result<(), String> {
        let each = self.window.kernel_size() * I;
        run.chunks(sums, split.task_blocks(each), |task, sums| {
            let (rest, inputs) = (task / split.along[1], task % split.along[1] * split.inputs);
            let (part, outputs) = (rest / split.along[0], rest % split.along[0] * split.outputs);
            let images = self.images * part / split.parts..self.images * (part + 1) / split.parts;
            for visit in self.visits(images) {
                for output in (outputs..self.outputs.min(outputs + split.outputs)).step_by(2) {
                    for input in inputs..self.inputs.min(inputs + split.inputs) {
                        let at = ((output - outputs) * split.inputs + input - inputs) * each;
                        let (first, second) = sums[at..].split_at_mut(split.inputs * each);
                        let second = if output + 1 < self.outputs { &mut second[..each] } else { &mut [] };
                        let sums = [&mut first[..each], second];
                        if I == 1 {
                            self.plain_taps::<I>(&visit, x, (input, output), sums);
                        } else {
                            self.taps::<I>(&visit, x, (input, output), sums);
                        }
                    }
                }
            }
        })
    }

    /// Whole images while they are small, else some rows of one.
    fn visits(&self, images: std::ops::Range<usize>) -> impl Iterator<Item = Visit> + '_ {
        let [rows, columns] = self.output;
        let together = (VISIT_PIXELS / (rows * columns).max(1)).max(1);
        let some = (VISIT_PIXELS / columns.max(1)).clamp(1, rows.max(1));
        let end = images.end;
        images.step_by(together).flat_map(move |image| {
            (0..rows)
                .step_by(some)
                .map(move |row| Visit { images: image..(image + together).min(end), rows: row..(row + some).min(rows) })
        })
    }

    /// All taps of one visit, for a block of inputs and one or two of outputs.
    #[target_feature(enable = "avx512f")]
    fn taps<const I: usize>(
        &self,
        visit: &Visit,
        x: &[[f32; I]],
        (input, output): (usize, usize),
        [first, second]: [&mut [Block]; 2],
    ) {
        let columns = self.window.0[1].kernel;
        for tap in 0..self.window.kernel_size() {
            let taps = [tap / columns, tap % columns];
            let range = self.inside[1][taps[1]];
            let (first, second) = (&mut first[tap * I..(tap + 1) * I], second.get_mut(tap * I..(tap + 1) * I));
            match second {
                Some(second) => {
                    for half in 0..2 {
                        let part = half * 8..half * 8 + 8;
                        let sums = [&mut first[part.clone()], &mut second[part]];
                        self.tap::<I, 2, 8>(visit, x, (input, output), (taps, half, range), sums);
                    }
                }
                None => self.tap::<I, 1, 16>(visit, x, (input, output), (taps, 0, range), [first]),
            }
        }
    }

    /// The same for one channel of plain images: taps of a row take the place of inputs.
    #[target_feature(enable = "avx512f")]
    fn plain_taps<const I: usize>(
        &self,
        visit: &Visit,
        x: &[[f32; I]],
        (input, output): (usize, usize),
        [first, second]: [&mut [Block]; 2],
    ) {
        let columns = self.window.0[1].kernel;
        // Outputs to which all taps of a row give a pixel, where a kernel is made for as many.
        let low = self.inside[1].iter().map(|r| r.0).max().unwrap_or(0);
        let high = self.inside[1].iter().map(|r| r.1).min().unwrap_or(0).max(low);
        let all = if [3, 5, 7].contains(&columns) { (low, high) } else { (0, 0) };
        for row in 0..self.window.0[0].kernel {
            let taps = row * columns..(row + 1) * columns;
            let (first, second) = (&mut first[taps.clone()], second.get_mut(taps));
            let at = (input, output);
            let whole = ([row, 0], 0, all);
            match second {
                Some(second) => {
                    match columns {
                        3 => self.tap::<I, 2, 3>(visit, x, at, whole, [first, second]),
                        5 => self.tap::<I, 2, 5>(visit, x, at, whole, [first, second]),
                        7 => self.tap::<I, 2, 7>(visit, x, at, whole, [first, second]),
                        _ => {}
                    }
                    for (tap, range) in self.rests(all) {
                        let sums = [&mut first[tap..=tap], &mut second[tap..=tap]];
                        self.tap::<I, 2, 1>(visit, x, at, ([row, tap], 0, range), sums);
                    }
                }
                None => {
                    match columns {
                        3 => self.tap::<I, 1, 3>(visit, x, at, whole, [first]),
                        5 => self.tap::<I, 1, 5>(visit, x, at, whole, [first]),
                        7 => self.tap::<I, 1, 7>(visit, x, at, whole, [first]),
                        _ => {}
                    }
                    for (tap, range) in self.rests(all) {
                        self.tap::<I, 1, 1>(visit, x, at, ([row, tap], 0, range), [&mut first[tap..=tap]]);
                    }
                }
            }
        }
    }

    /// For each tap of a row, the outputs that it gives a pixel before and after those of `all`.
    fn rests(&self, all: (usize, usize)) -> impl Iterator<Item = (usize, (usize, usize))> + '_ {
        self.inside[1].iter().enumerate().flat_map(move |(tap, &(low, high))| {
            let both = if all.0 < all.1 { [(low, all.0), (all.1, high)] } else { [(low, high), (0, 0)] };
            both.map(|range| (tap, range))
        })
    }

    /// One tap of one visit, for a range of columns: `L` inputs, or taps side by side in a plain image, by `O` blocks of outputs.
    #[target_feature(enable = "avx512f")]
    fn tap<const I: usize, const O: usize, const L: usize>(
        &self,
        visit: &Visit,
        x: &[[f32; I]],
        (input, output): (usize, usize),
        ([kh, kw], part, (left, right)): ([usize; 2], usize, (usize, usize)),
        mut sums: [&mut [Block]; O],
    ) {
        let [rows, columns] = &self.window.0;
        let ([height, width], [out_height, out_width]) = (self.size, self.output);
        let (top, bottom) = self.inside[0][kh];
        if left >= right {
            return;
        }
        let mut lanes = [[zero(); L]; O];
        for (lanes, sums) in lanes.iter_mut().zip(&sums) {
            for (lane, sum) in lanes.iter_mut().zip(sums.iter()) {
                *lane = load(sum);
            }
        }
        for image in visit.images.clone() {
            for row in visit.rows.start.max(top)..visit.rows.end.min(bottom) {
                let from = (image * self.inputs + input) * height * width;
                let from = from + rows.pixel(kh, row) * width + columns.pixel(kw, left);
                let reach = if I == 1 { (L - 1) * columns.dilation } else { 0 };
                let pixels = &x[from..from + (right - left - 1) * columns.stride + reach + 1];
                let mut dy: [&[Block]; O] = [&[]; O];
                for (o, dy) in dy.iter_mut().enumerate() {
                    let from = ((image * self.outputs + output + o) * out_height + row) * out_width;
                    *dy = &self.dy[from + left..from + right];
                }
                if I == 1 && L > 1 {
                    strip_taps(pixels, (columns.stride, columns.dilation), &dy, &mut lanes);
                } else {
                    strip::<I, O, L>(pixels, columns.stride, part, dy, &mut lanes);
                }
            }
        }
        for (lanes, sums) in lanes.iter().zip(&mut sums) {
            for (lane, sum) in lanes.iter().zip(sums.iter_mut()) {
                store(sum, *lane);
            }
        }
    }
}

/// Pixels of one row.
#[inline]
#[target_feature(enable = "avx512f")]
fn strip<const I: usize, const O: usize, const L: usize>(
    pixels: &[[f32; I]],
    stride: usize,
    part: usize,
    dy: [&[Block]; O],
    lanes: &mut [[Lanes; L]; O],
) {
    let count = dy[0].len();
    // A single input would have each pixel wait for the one before: four go side by side.
    let mut at = if L == 1 { strip_apart(pixels, stride, &dy, lanes) } else { 0 };
    while at < count {
        let Some(x) = pixels.get(at * stride).and_then(|p| p.as_chunks::<L>().0.get(part)) else { return };
        let mut gradients = [zero(); O];
        for o in 0..O {
            gradients[o] = load(&dy[o][at]);
        }
        for l in 0..L {
            let x = splat(x[l]);
            for o in 0..O {
                lanes[o][l] = fma(x, gradients[o], lanes[o][l]);
            }
        }
        at += 1;
    }
}

/// As [`strip`] for the first lane, as far as there are four pixels; returns how many there were.
#[inline]
#[target_feature(enable = "avx512f")]
fn strip_apart<const I: usize, const O: usize, const L: usize>(
    pixels: &[[f32; I]],
    stride: usize,
    dy: &[&[Block]; O],
    lanes: &mut [[Lanes; L]; O],
) -> usize {
    let mut apart = [[zero(); 4]; O];
    let groups = dy.map(|dy| dy.as_chunks::<4>().0);
    for group in 0..groups[0].len() {
        for at in 0..4 {
            let x = splat(pixels[(group * 4 + at) * stride][0]);
            for o in 0..O {
                apart[o][at] = fma(x, load(&groups[o][group][at]), apart[o][at]);
            }
        }
    }
    for (lanes, [a, b, c, d]) in lanes.iter_mut().zip(apart) {
        lanes[0] = add(lanes[0], add(add(a, b), add(c, d)));
    }
    groups[0].len() * 4
}

/// Pixels of one row of a plain image, for taps side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn strip_taps<const I: usize, const O: usize, const L: usize>(
    pixels: &[[f32; I]],
    (stride, dilation): (usize, usize),
    dy: &[&[Block]; O],
    lanes: &mut [[Lanes; L]; O],
) {
    let mut at = 0;
    while at < dy[0].len() {
        let x = &pixels[at * stride..at * stride + (L - 1) * dilation + 1];
        let mut gradients = [zero(); O];
        for o in 0..O {
            gradients[o] = load(&dy[o][at]);
        }
        for l in 0..L {
            let x = splat(x[l * dilation][0]);
            for o in 0..O {
                lanes[o][l] = fma(x, gradients[o], lanes[o][l]);
            }
        }
        at += 1;
    }
}
