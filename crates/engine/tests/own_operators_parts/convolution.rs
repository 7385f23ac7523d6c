//! Layouts and convolutions.

use edgeward_graph::Tensor;

use crate::*;

/// A convolution and its images.
#[derive(Clone, Debug)]
struct Case {
    images: usize,
    channels: usize,
    outputs: usize,
    size: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 4],
    dilations: [usize; 2],
    depthwise: bool,
    plain: bool,
    threads: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (prop_oneof![1..4usize, 8..11usize], 1..40usize, 1..40usize, [1..13usize, 1..31]);
    let windows = ([1..4usize, 1..4], [1..4usize, 1..4], [0..3usize, 0..3, 0..3, 0..3], [1..3usize, 1..3]);
    (sizes, windows, 0..4usize, 1..3usize).prop_map(|(sizes, windows, kind, threads)| {
        let (images, channels, outputs, size) = sizes;
        let (kernel, strides, pads, dilations) = windows;
        let (depthwise, plain) = (kind == 1 && channels > 1, kind == 2);
        let outputs = if depthwise { channels } else { outputs };
        Case { images, channels, outputs, size, kernel, strides, pads, dilations, depthwise, plain, threads }
    })
}

impl Case {
    fn op(&self, name: &'static str) -> Op {
        let group = if self.depthwise { self.channels } else { 1 };
        let op = op(name, self.threads).ints("strides", &self.strides).ints("pads", &self.pads);
        let op = op.ints("dilations", &self.dilations).int("group", group).int("channels", self.channels);
        op.int("plain", usize::from(self.plain))
    }

    /// Rows and columns of the output, where the windows fit.
    fn output(&self) -> Option<[usize; 2]> {
        let along = |i: usize| {
            let padded = self.size[i] + self.pads[i] + self.pads[i + 2];
            Some(padded.checked_sub((self.kernel[i] - 1) * self.dilations[i] + 1)? / self.strides[i] + 1)
        };
        Some([along(0)?, along(1)?])
    }

    fn x_shape(&self) -> [usize; 4] {
        [self.images, self.channels, self.size[0], self.size[1]]
    }

    fn w_shape(&self) -> [usize; 4] {
        [self.outputs, if self.depthwise { 1 } else { self.channels }, self.kernel[0], self.kernel[1]]
    }

    /// Calls `each` with the places in x, w and y of every product.
    fn products(&self, mut each: impl FnMut(usize, usize, usize)) {
        let ([oh, ow], [h, w], [kh, kw]) = (self.output().unwrap(), self.size, self.kernel);
        let inputs = self.w_shape()[1];
        let pixel = |i: usize, out: usize, tap: usize| {
            (out * self.strides[i] + tap * self.dilations[i]).checked_sub(self.pads[i]).filter(|&p| p < self.size[i])
        };
        for (n, o, i) in itertools(self.images, self.outputs, inputs) {
            let c = if self.depthwise { o } else { i };
            for (row, ky, kx) in itertools(oh, kh, kw) {
                let Some(y) = pixel(0, row, ky) else { continue };
                for column in 0..ow {
                    let Some(x) = pixel(1, column, kx) else { continue };
                    let from = ((n * self.channels + c) * h + y) * w + x;
                    let weight = ((o * inputs + i) * kh + ky) * kw + kx;
                    each(from, weight, ((n * self.outputs + o) * oh + row) * ow + column);
                }
            }
        }
    }

    fn given(&self, x: &Tensor) -> Tensor {
        if self.plain { x.clone() } else { blocked(x) }
    }
}

fn itertools(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |a| (0..b).flat_map(move |b| (0..c).map(move |c| (a, b, c))))
}

fn check(engine: &dyn Engine, case: &Case, with_bias: bool) {
    let (x, w) = (random(1, &case.x_shape()), random(2, &case.w_shape()));
    let given = case.given(&x);
    let bias = with_bias.then(|| random(4, &[case.outputs]));
    let conv = case.op("Conv").run(engine, &[Some(&given), Some(&w), bias.as_ref()]);
    let Some([oh, ow]) = case.output() else {
        let error = conv.unwrap_err().to_string();
        assert!(error.contains("does not fit") && error.contains("the_node"), "{error}");
        return;
    };
    let y_shape = [case.images, case.outputs, oh, ow];
    let dy = random(3, &y_shape);
    let (wx, ww, wdy) = (wide(&x), wide(&w), wide(&dy));
    let (mut y, mut dw, mut dx) = (vec![0.0; wdy.len()], vec![0.0; ww.len()], vec![0.0; wx.len()]);
    if let Some(bias) = &bias {
        let bias = wide(bias);
        y.iter_mut().enumerate().for_each(|(at, y)| *y = bias[at / (oh * ow) % case.outputs]);
    }
    case.products(|i, k, o| {
        y[o] += wx[i] * ww[k];
        dw[k] += wx[i] * wdy[o];
        dx[i] += wdy[o] * ww[k];
    });
    close("y", &plain(&conv.unwrap()[0], case.outputs), &y_shape, &y, 2e-6);
    let dy = blocked(&dy);
    let gradient = case.op("ConvWeightGradient").ints("kernel_shape", &case.kernel).int("outputs", case.outputs);
    let first = gradient.run(engine, &[Some(&given), Some(&dy)]).unwrap();
    close("dw", &first[0], &case.w_shape(), &dw, 4e-6);
    // On as many threads and on others.
    for threads in [case.threads, 3 - case.threads] {
        let again = Op { threads, ..gradient.clone() };
        assert_eq!(first, again.run(engine, &[Some(&given), Some(&dy)]).unwrap());
    }
    if !case.depthwise {
        check_each_image(engine, case, &gradient, (&x, &wide(&x)), (&dy, &wdy));
    }
    let gradient = case.op("ConvInputGradient").ints("size", &case.size);
    let result = gradient.run(engine, &[Some(&dy), Some(&w)]).unwrap().remove(0);
    let result = if case.plain { result } else { plain(&result, case.channels) };
    close("dx", &result, &case.x_shape(), &dx, 2e-6);
}

/// Each image's gradient by itself, and that the images' order does not matter to it.
fn check_each_image(
    engine: &dyn Engine,
    case: &Case,
    gradient: &Op,
    (x, wx): (&Tensor, &[f64]),
    (dy, wdy): (&Tensor, &[f64]),
) {
    let weights: usize = case.w_shape().iter().product();
    let outputs = wdy.len() / case.images;
    let mut each = vec![0.0; case.images * weights];
    case.products(|i, k, o| each[o / outputs * weights + k] += wx[i] * wdy[o]);
    let shape: Vec<usize> = std::iter::once(case.images).chain(case.w_shape()).collect();
    let gradient = gradient.clone().int("each_image", 1);
    let result = gradient.run(engine, &[Some(&case.given(x)), Some(dy)]).unwrap();
    close("each image's dw", &result[0], &shape, &each, 4e-6);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn convolutions_are_right(case in cases(), with_bias: bool) {
        if let Some(engine) = engine() {
            check(&*engine, &case, with_bias);
        }
    }

    #[test]
    fn layouts_keep_every_value(n in 1..4usize, c in 1..40usize, h in 1..20usize, w in 1..20usize, threads in 1..3usize) {
        if let Some(engine) = engine() {
            let x = random(5, &[n, c, h, w]);
            let there = op("ToBlocked", threads).run(&*engine, &[Some(&x)]).unwrap().remove(0);
            prop_assert_eq!(&plain(&there, c), &x);
            let spare: f32 = floats(&there).iter().sum::<f32>() - floats(&x).iter().sum::<f32>();
            prop_assert!(spare.abs() < 1e-2);
            let back = op("FromBlocked", threads).int("channels", c).run(&*engine, &[Some(&blocked(&x))]).unwrap();
            prop_assert_eq!(&back[0], &x);
        }
    }
}

#[test]
fn large_convolutions_are_right() {
    let Some(engine) = engine() else { return };
    // Several tiles, tasks, parts and visits.
    for (channels, outputs, size, kernel, strides) in [
        (3, 40, [33, 47], [7, 7], [2, 2]),
        (1, 16, [9, 23], [5, 5], [1, 1]),
        (70, 100, [16, 29], [3, 3], [1, 1]),
        (200, 33, [7, 7], [1, 1], [1, 1]),
        (33, 200, [14, 14], [3, 3], [2, 2]),
    ] {
        let case = Case {
            images: 10,
            channels,
            outputs,
            size,
            kernel,
            strides,
            pads: [kernel[0] / 2; 4],
            dilations: [1; 2],
            depthwise: false,
            plain: channels < 16,
            threads: 2,
        };
        check(&*engine, &case, true);
    }
}

#[test]
fn misfits_are_named() {
    let Some(engine) = engine() else { return };
    let (x, w, dy) = (random(1, &[2, 1, 5, 5, 16]), random(2, &[4, 8, 3, 3]), random(3, &[2, 1, 3, 3, 16]));
    let conv = || op("Conv", 1).int("channels", 8);
    let negative_pads = || {
        let mut op = conv().ints("pads", &[0; 5]);
        op.attributes.iter_mut().filter(|a| a.ints.len() == 5).for_each(|a| a.ints[0] = -1);
        op
    };
    let wide = random(1, &[2, 2, 5, 5, 16]);
    let input = || op("ConvInputGradient", 1).int("channels", 8);
    let weight = || op("ConvWeightGradient", 1).int("channels", 8).int("outputs", 4).ints("kernel_shape", &[3, 3]);
    let table: Vec<(Op, Vec<&Tensor>, &str)> = vec![
        (op("Conv", 1), vec![&x, &w], "channels"),
        (conv().ints("strides", &[0, 1]), vec![&x, &w], "strides"),
        (conv().ints("pads", &[1, 1]), vec![&x, &w], "pads"),
        (conv().ints("dilations", &[1, 2_000_000]), vec![&x, &w], "dilations"),
        (conv().ints("strides", &[1; 20]), vec![&x, &w], "strides"),
        (conv().float("strides", 1.0), vec![&x, &w], "strides"),
        (negative_pads(), vec![&x, &w], "pads"),
        (conv().int("group", 2), vec![&x, &w], "group"),
        (conv().int("group", 0), vec![&x, &w], "group"),
        (conv().float("group", 1.0), vec![&x, &w], "group"),
        (conv().ints("plain", &[1]), vec![&x, &w], "plain"),
        (conv(), vec![&wide, &w], "`x`"),
        (conv(), vec![&w, &w], "`x`"),
        (conv(), vec![&x, &x], "`w`"),
        (conv(), vec![&x, &w, &w], "`bias`"),
        (op("Conv", 1).int("channels", 9), vec![&x, &w], "`w`"),
        (input(), vec![&dy, &w], "size"),
        (input().ints("size", &[6, 5]), vec![&dy, &w], "[4, 3]"),
        (weight(), vec![&x, &x], "[3, 3]"),
        (weight().int("group", 8), vec![&x, &dy], "outputs"),
        (op("FromBlocked", 1).int("channels", 17), vec![&x], "`x`"),
        (op("ToBlocked", 1), vec![&x], "`x`"),
    ];
    for (op, inputs, text) in table {
        let inputs: Vec<Option<&Tensor>> = inputs.into_iter().map(Some).collect();
        let error = op.run(&*engine, &inputs).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(op.name) && error.contains("the_node"), "{}: {error}", op.name);
    }
}

#[test]
fn empty_batches_pass() {
    let Some(engine) = engine() else { return };
    let (x, w) = (tensor(&[0, 1, 5, 5, 16], &[]), random(2, &[4, 8, 3, 3]));
    let y = op("Conv", 1).int("channels", 8).run(&*engine, &[Some(&x), Some(&w)]).unwrap();
    assert_eq!(y[0].shape(), [0, 1, 3, 3, 16]);
    let gradient = op("ConvWeightGradient", 1).int("channels", 8).int("outputs", 4).ints("kernel_shape", &[3, 3]);
    let dw = gradient.run(&*engine, &[Some(&x), Some(&y[0])]).unwrap();
    assert_eq!(floats(&dw[0]), vec![0.0; 4 * 8 * 9]);
}
