//! Pooling and its gradients.

use crate::*;

#[derive(Clone, Debug)]
struct Case {
    shape: [usize; 4],
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 4],
    threads: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let windows = ([1..4usize, 1..4], [1..4usize, 1..4], [0..3usize, 0..3, 0..3, 0..3]);
    ([1..4usize, 1..40, 1..14, 1..14], windows, 1..3usize).prop_map(|(shape, (kernel, strides, pads), threads)| {
        let pads = [0, 1, 2, 3].map(|i| pads[i].min(kernel[i % 2] - 1));
        Case { shape, kernel, strides, pads, threads }
    })
}

fn check(engine: &dyn Engine, case: &Case) {
    let Case { shape: [n, c, h, w], kernel, strides, pads, .. } = *case;
    let op = |name| {
        let op = op(name, case.threads).ints("kernel_shape", &kernel);
        op.ints("strides", &strides).ints("pads", &pads)
    };
    // Few values, so that several places have the maximum.
    let x: Vec<f32> = numbers(1, n * c * h * w).iter().map(|v| (v * 3.0).round()).collect();
    let x = tensor(&case.shape, &x);
    let result = op("MaxPool").run(engine, &[Some(&blocked(&x))]);
    let along = |i: usize, size: usize| Some((size + pads[i] + pads[i + 2]).checked_sub(kernel[i])? / strides[i] + 1);
    let (Some(oh), Some(ow)) = (along(0, h), along(1, w)) else {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("does not fit"), "{error}");
        return;
    };
    let (values, g) = (floats(&x), random(2, &[n, c, oh, ow]));
    let (mut y, mut dx) = (vec![0.0; n * c * oh * ow], vec![0.0; values.len()]);
    for (at, g) in wide(&g).iter().enumerate() {
        let (plane, row, column) = (at / (oh * ow), at / ow % oh, at % ow);
        let mut first: Option<usize> = None;
        for (ky, kx) in (0..kernel[0]).flat_map(|ky| (0..kernel[1]).map(move |kx| (ky, kx))) {
            let (Some(py), Some(px)) =
                ((row * strides[0] + ky).checked_sub(pads[0]), (column * strides[1] + kx).checked_sub(pads[1]))
            else {
                continue;
            };
            let place = (plane * h + py) * w + px;
            if py < h && px < w && first.is_none_or(|f| values[place] > values[f]) {
                first = Some(place);
            }
        }
        y[at] = f64::from(values[first.unwrap()]);
        dx[first.unwrap()] += g;
    }
    let given = result.unwrap().remove(0);
    close("y", &plain(&given, c), &[n, c, oh, ow], &y, 0.0);
    let inputs = [Some(&blocked(&g)), Some(&blocked(&x)), Some(&given)];
    let result = op("MaxPoolGradient").run(engine, &inputs).unwrap();
    close("dx", &plain(&result[0], c), &case.shape, &dx, 1e-6);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn maxima_are_right(case in cases()) {
        if let Some(engine) = engine() {
            check(&*engine, &case);
        }
    }

    #[test]
    fn averages_are_right(n in 1..4usize, c in 1..40usize, h in 1..20usize, w in 1..20usize, threads in 1..3usize) {
        if let Some(engine) = engine() {
            let x = random(1, &[n, c, h, w]);
            let y = op("GlobalAveragePool", threads).int("channels", c).run(&*engine, &[Some(&blocked(&x))]).unwrap();
            let means: Vec<f64> =
                wide(&x).chunks(h * w).map(|plane| plane.iter().sum::<f64>() / (h * w) as f64).collect();
            close("y", &y[0], &[n, c, 1, 1], &means, 1e-6);
            let g = random(2, &[n, c, 1, 1]);
            let dx = op("GlobalAveragePoolGradient", threads).ints("size", &[h, w]).run(&*engine, &[Some(&g)]).unwrap();
            let shares: Vec<f64> =
                wide(&g).iter().flat_map(|g| std::iter::repeat_n(g / (h * w) as f64, h * w)).collect();
            close("dx", &plain(&dx[0], c), &[n, c, h, w], &shares, 1e-6);
        }
    }
}

#[test]
fn misfits_are_named() {
    let Some(engine) = engine() else { return };
    let (x, flat) = (random(1, &[2, 2, 3, 3, 16]), random(2, &[20]));
    let pool = |name| op(name, 1).ints("kernel_shape", &[2, 2]);
    let table = [
        (op("MaxPool", 1), vec![&x], "kernel_shape"),
        (pool("MaxPool").ints("pads", &[2, 0, 0, 0]), vec![&x], "pads"),
        (pool("MaxPool"), vec![&flat], "`x`"),
        (pool("MaxPoolGradient"), vec![&x, &x, &x], "`g`"),
        (op("GlobalAveragePool", 1).int("channels", 3), vec![&x], "`x`"),
        (op("GlobalAveragePoolGradient", 1), vec![&x], "size"),
        (op("GlobalAveragePoolGradient", 1).ints("size", &[2, 2]), vec![&flat], "`g`"),
    ];
    for (op, inputs, text) in table {
        let inputs: Vec<_> = inputs.into_iter().map(Some).collect();
        let error = op.run(&*engine, &inputs).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(op.name) && error.contains("the_node"), "{}: {error}", op.name);
    }
}
