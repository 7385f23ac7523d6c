//! BatchNormalization, alone and with the sum and activation after it, and gradients of activations.

use edgeward_graph::Tensor;

use crate::*;

#[derive(Clone, Debug)]
struct Case {
    shape: [usize; 4],
    /// Added to all of x: how much larger than its deviation the mean is.
    offset: f32,
    bounds: Option<[f32; 2]>,
    addend: bool,
    threads: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let bounds =
        prop_oneof![Just(None), Just(Some([0.0, f32::INFINITY])), Just(Some([0.0, 0.7])), Just(Some([-0.5, 0.5]))];
    let shape = [1..7usize, 1..40, 1..12, 1..12];
    let offset = prop_oneof![Just(0.0f32), Just(3.0), Just(-1000.0), Just(20_000.0)];
    (shape, offset, bounds, any::<bool>(), 1..3usize).prop_map(|(shape, offset, bounds, addend, threads)| Case {
        shape,
        offset,
        bounds,
        addend,
        threads,
    })
}

impl Case {
    fn op(&self, name: &'static str) -> Op {
        let op = op(name, self.threads).float("epsilon", 1e-3);
        match self.bounds {
            Some([low, high]) if high.is_finite() => op.float("low", low).float("high", high),
            Some([low, _]) => op.float("low", low),
            None => op,
        }
    }

    /// The channel of the number at a place of a plain image.
    fn channel(&self, at: usize) -> usize {
        at / (self.shape[2] * self.shape[3]) % self.shape[1]
    }

    /// Sums of each channel.
    fn sums(&self, values: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut sums = vec![0.0; self.shape[1]];
        values.enumerate().for_each(|(at, v)| sums[self.channel(at)] += v);
        sums
    }

    fn pixels(&self) -> f64 {
        (self.shape[0] * self.shape[2] * self.shape[3]) as f64
    }
}

fn forward(engine: &dyn Engine, case: &Case) -> (Tensor, Tensor, [Tensor; 3]) {
    let count = case.shape[1];
    let x = random(1, &case.shape);
    let x = tensor(&case.shape, &floats(&x).iter().map(|v| v * 2.0 + case.offset).collect::<Vec<_>>());
    let (scale, bias, addend) = (random(2, &[count]), random(3, &[count]), random(4, &case.shape));
    let there = blocked(&addend);
    let addition = case.addend.then_some(&there);
    let op = case.op("BatchNorm").outputs(&[true; 3]);
    let result = op.run(engine, &[Some(&blocked(&x)), Some(&scale), Some(&bias), addition]).unwrap();
    let values = wide(&x);
    let mean: Vec<f64> = case.sums(values.iter().copied()).iter().map(|s| s / case.pixels()).collect();
    let distances = values.iter().enumerate().map(|(at, v)| (v - mean[case.channel(at)]).powi(2));
    let variance: Vec<f64> = case.sums(distances).iter().map(|s| s / case.pixels()).collect();
    let (scales, biases, addends) = (wide(&scale), wide(&bias), wide(&addend));
    let expected: Vec<f64> = values
        .iter()
        .enumerate()
        .map(|(at, v)| {
            let c = case.channel(at);
            let normal = (v - mean[c]) / (variance[c] + f64::from(1e-3f32)).sqrt() * scales[c] + biases[c];
            let sum = normal + if case.addend { addends[at] } else { 0.0 };
            case.bounds.map_or(sum, |[low, high]| sum.clamp(low.into(), high.into()))
        })
        .collect();
    let y = plain(&result[0], count);
    close("y", &y, &case.shape, &expected, 1e-5);
    close("mean", &result[1], &[count], &mean, 1e-6);
    close("variance", &result[2], &[count], &variance, 1e-5);
    (x, y, [scale, result[1].clone(), result[2].clone()])
}

fn backward(engine: &dyn Engine, case: &Case, x: &Tensor, y: &Tensor, [scale, mean, variance]: &[Tensor; 3]) {
    let count = case.shape[1];
    let g = random(5, &case.shape);
    let (low, high) = case.bounds.map_or((f64::NEG_INFINITY, f64::INFINITY), |[l, h]| (l.into(), h.into()));
    let masked: Vec<f64> =
        wide(&g).iter().zip(wide(y)).map(|(g, y)| if low < y && y < high { *g } else { 0.0 }).collect();
    let deviation: Vec<f64> = wide(variance).iter().map(|v| (v + f64::from(1e-3f32)).sqrt()).collect();
    let means = wide(mean);
    let normal: Vec<f64> =
        wide(x).iter().enumerate().map(|(at, v)| (v - means[case.channel(at)]) / deviation[case.channel(at)]).collect();
    let dbias = case.sums(masked.iter().copied());
    let dscale = case.sums(masked.iter().zip(&normal).map(|(g, n)| g * n));
    let scales = wide(scale);
    let dx: Vec<f64> = masked
        .iter()
        .zip(&normal)
        .enumerate()
        .map(|(at, (g, n))| {
            let c = case.channel(at);
            scales[c] / deviation[c] * (g - dbias[c] / case.pixels() - n * dscale[c] / case.pixels())
        })
        .collect();
    let (gb, xb, yb) = (blocked(&g), blocked(x), blocked(y));
    let inputs = [Some(&gb), Some(&xb), Some(scale), Some(mean), Some(variance), case.bounds.map(|_| &yb)];
    let result = case.op("BatchNormGradient").outputs(&[true; 4]).run(engine, &inputs).unwrap();
    close("dx", &plain(&result[0], count), &case.shape, &dx, 1e-5);
    close("dscale", &result[1], &[count], &dscale, 1e-5);
    close("dbias", &result[2], &[count], &dbias, 1e-5);
    close("masked", &plain(&result[3], count), &case.shape, &masked, 0.0);
    let fewer = case.op("BatchNormGradient").outputs(&[true, true, true]).run(engine, &inputs).unwrap();
    assert_eq!(fewer, result[..3]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn normalisation_is_right(case in cases()) {
        if let Some(engine) = engine() {
            let (x, y, vectors) = forward(&*engine, &case);
            backward(&*engine, &case, &x, &y, &vectors);
        }
    }

    #[test]
    fn activations_pass_what_was_within(count in 0..70_000usize, high in prop_oneof![Just(f32::INFINITY), Just(0.5)]) {
        if let Some(engine) = engine() {
            let (g, y) = (random(1, &[count]), random(2, &[count]));
            let op = op("ReluGradient", 2).float("low", 0.0).float("high", high);
            let dx = op.run(&*engine, &[Some(&g), Some(&y)]).unwrap().remove(0);
            let expected: Vec<f32> = floats(&g)
                .iter()
                .zip(floats(&y))
                .map(|(g, y)| if 0.0 < y && y < high { *g } else { 0.0 })
                .collect();
            prop_assert_eq!(floats(&dx), expected);
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    let Some(engine) = engine() else { return };
    let x = tensor(&[1, 1, 1, 2, 16], &[f32::NAN; 32]);
    let ones = tensor(&[16], &[1.0; 16]);
    let op = op("BatchNorm", 1).float("epsilon", 1e-5).float("low", 0.0);
    let y = op.run(&*engine, &[Some(&x), Some(&ones), Some(&ones)]).unwrap();
    assert!(floats(&y[0]).iter().all(|v| v.is_nan()));
}

#[test]
fn misfits_are_named() {
    let Some(engine) = engine() else { return };
    let (x, vector, other) = (random(1, &[2, 2, 3, 3, 16]), random(2, &[20]), random(3, &[33]));
    let table: Vec<(Op, Vec<&Tensor>, &str)> = vec![
        (op("BatchNorm", 1), vec![&x, &vector, &vector], "epsilon"),
        (op("BatchNorm", 1).float("epsilon", 1.0), vec![&x, &other, &other], "`x`"),
        (op("BatchNorm", 1).float("epsilon", 1.0), vec![&x, &vector, &other], "`bias`"),
        (op("BatchNorm", 1).float("epsilon", 1.0), vec![&x, &vector, &vector, &other], "`addend`"),
        (op("BatchNormGradient", 1).float("epsilon", 1.0), vec![&other, &x, &vector, &vector, &vector], "`g`"),
        (op("BatchNormGradient", 1).float("epsilon", 1.0), vec![&x, &x, &vector, &other, &vector], "`mean`"),
        (op("ReluGradient", 1), vec![&x, &x], "low"),
        (op("ReluGradient", 1).float("low", 0.0), vec![&x, &vector], "`y`"),
    ];
    for (op, inputs, text) in table {
        let inputs: Vec<Option<&Tensor>> = inputs.into_iter().map(Some).collect();
        let error = op.run(&*engine, &inputs).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(op.name) && error.contains("the_node"), "{}: {error}", op.name);
    }
}
