//! Gradients of what transformers are made of.

use edgeward_graph::Tensor;

use crate::*;

fn layer_norm(engine: &dyn Engine, (rows, width): (usize, usize), offset: f32, threads: usize) {
    let shape = [rows, width];
    let x: Vec<f32> = numbers(1, rows * width).iter().map(|v| v * 2.0 + offset).collect();
    let (x, g, scale) = (tensor(&shape, &x), random(2, &shape), random(3, &[width]));
    let op = op("LayerNormGradient", threads).outputs(&[true; 3]).float("epsilon", 1e-3);
    let result = op.run(engine, &[Some(&g), Some(&x), Some(&scale)]).unwrap();
    let (scales, count) = (wide(&scale), width as f64);
    let (mut dx, mut dscale, mut dbias) = (Vec::new(), vec![0.0; width], vec![0.0; width]);
    for (x, g) in wide(&x).chunks(width).zip(wide(&g).chunks(width)) {
        let mean = x.iter().sum::<f64>() / count;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let deviation = (variance + f64::from(1e-3f32)).sqrt();
        let normal: Vec<f64> = x.iter().map(|x| (x - mean) / deviation).collect();
        let scaled: Vec<f64> = g.iter().zip(&scales).map(|(g, s)| g * s).collect();
        let all = scaled.iter().sum::<f64>() / count;
        let along = scaled.iter().zip(&normal).map(|(g, n)| g * n).sum::<f64>() / count;
        dx.extend(scaled.iter().zip(&normal).map(|(g, n)| (g - all - n * along) / deviation));
        for (at, (g, n)) in g.iter().zip(&normal).enumerate() {
            dscale[at] += g * n;
            dbias[at] += g;
        }
    }
    close("dx", &result[0], &shape, &dx, 1e-5);
    close("dscale", &result[1], &[width], &dscale, 1e-5);
    close("dbias", &result[2], &[width], &dbias, 1e-5);
}

/// The error function by a series without cancellation (Abramowitz and Stegun 7.1.6).
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, 0.0);
    for n in 1..200 {
        sum += term;
        term *= 2.0 * x * x / f64::from(2 * n + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn layer_norm_is_right(
        shape in (1..80usize, 1..70usize), offset in prop_oneof![Just(0.0f32), Just(1000.0)], threads in 1..3usize,
    ) {
        if let Some(engine) = engine() {
            layer_norm(&*engine, shape, offset, threads);
        }
    }

    #[test]
    fn softmax_is_right(rows in 1..300usize, width in 1..70usize, threads in 1..3usize) {
        if let Some(engine) = engine() {
            let shape = [1, rows, width];
            let (g, y) = (random(1, &shape), random(2, &shape));
            let result = op("SoftmaxGradient", threads).run(&*engine, &[Some(&g), Some(&y)]).unwrap();
            let mut expected = Vec::new();
            for (g, y) in wide(&g).chunks(width).zip(wide(&y).chunks(width)) {
                let sum: f64 = g.iter().zip(y).map(|(g, y)| g * y).sum();
                expected.extend(g.iter().zip(y).map(|(g, y)| y * (g - sum)));
            }
            close("dx", &result[0], &shape, &expected, 2e-6);
        }
    }

    #[test]
    fn repeated_indices_add_up(
        indices in prop::collection::vec(-50..50i64, 0..200), width in 1..40usize, threads in 1..3usize,
    ) {
        if let Some(engine) = engine() {
            let g = random(1, &[indices.len(), 1, width]);
            let at = Tensor::from_vec([indices.len(), 1], indices.clone()).unwrap();
            let result = op("GatherGradient", threads).int("rows", 50).run(&*engine, &[Some(&g), Some(&at)]).unwrap();
            let mut expected = vec![0.0; 50 * width];
            for (index, g) in indices.iter().zip(wide(&g).chunks(width)) {
                let row = usize::try_from(index.rem_euclid(50)).unwrap();
                g.iter().enumerate().for_each(|(c, g)| expected[row * width + c] += g);
            }
            close("dw", &result[0], &[50, width], &expected, 1e-6);
        }
    }
}

#[test]
fn gelu_is_right() {
    let Some(engine) = engine() else { return };
    let x: Vec<f32> = (-60_000..60_000).map(|i| i as f32 / 1e4).chain([-1e30, 1e30, f32::INFINITY]).collect();
    let (count, ones) = (x.len(), vec![1.0; x.len()]);
    let inputs = [tensor(&[count], &ones), tensor(&[count], &x)];
    let result = op("GeluGradient", 2).run(&*engine, &[Some(&inputs[0]), Some(&inputs[1])]).unwrap();
    let expected: Vec<f64> = x
        .iter()
        .map(|&x| {
            let x = f64::from(x).clamp(-8.0, 8.0);
            let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            0.5 * (1.0 + erf(x / 2f64.sqrt())) + x * density
        })
        .collect();
    close("dx", &result[0], &[count], &expected, 3e-7);
    let nan = tensor(&[1], &[f32::NAN]);
    let result = op("GeluGradient", 1).run(&*engine, &[Some(&tensor(&[1], &[1.0])), Some(&nan)]).unwrap();
    assert!(floats(&result[0])[0].is_nan());
}

#[test]
fn misfits_are_named() {
    let Some(engine) = engine() else { return };
    let (x, other) = (random(1, &[3, 4]), random(2, &[4, 3]));
    let (outside, flat) = (Tensor::from_vec([3], vec![0i64, 9, 1]).unwrap(), tensor(&[], &[1.0]));
    let table: Vec<(Op, Vec<&Tensor>, &str)> = vec![
        (op("LayerNormGradient", 1), vec![&x, &x, &x], "epsilon"),
        (op("LayerNormGradient", 1).float("epsilon", 1.0), vec![&x, &x, &x], "`scale`"),
        (op("SoftmaxGradient", 1), vec![&x, &other], "`g`"),
        (op("SoftmaxGradient", 1), vec![&flat, &flat], "`y`"),
        (op("GeluGradient", 1), vec![&x, &other], "`g`"),
        (op("GatherGradient", 1), vec![&x, &outside], "rows"),
        (op("GatherGradient", 1).int("rows", 5), vec![&x, &outside], "9"),
        (op("GatherGradient", 1).int("rows", 5), vec![&other, &outside], "`indices`"),
    ];
    for (op, inputs, text) in table {
        let inputs: Vec<Option<&Tensor>> = inputs.into_iter().map(Some).collect();
        let error = op.run(&*engine, &inputs).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(op.name) && error.contains("the_node"), "{}: {error}", op.name);
    }
}
