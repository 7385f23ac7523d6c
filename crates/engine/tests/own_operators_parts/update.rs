//! Optimisers' steps.

use edgeward_graph::Tensor;

use crate::*;

fn inputs(count: usize) -> [Tensor; 4] {
    let square: Vec<f32> = numbers(4, count).iter().map(|v| v * v).collect();
    [random(1, &[count]), random(2, &[count]), random(3, &[count]), tensor(&[count], &square)]
}

fn scalar(value: f32) -> Tensor {
    tensor(&[], &[value])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn descent_is_right(count in 0..40_000usize, nesterov: bool, decay in prop_oneof![Just(0.0f32), Just(0.01)]) {
        if let Some(engine) = engine() {
            let [w, g, v, _] = inputs(count);
            let op = op("Sgd", 2).outputs(&[true; 2]).float("momentum", 0.9).int("nesterov", usize::from(nesterov));
            let op = op.float("weight_decay", decay);
            let result = op.run(&*engine, &[Some(&w), Some(&g), Some(&v), Some(&scalar(0.1))]).unwrap();
            let momentum = f64::from(0.9f32);
            let gradient: Vec<f64> =
                wide(&w).iter().zip(wide(&g)).map(|(w, g)| g + f64::from(decay) * w).collect();
            let velocity: Vec<f64> = wide(&v).iter().zip(&gradient).map(|(v, g)| momentum * v + g).collect();
            let next: Vec<f64> = wide(&w)
                .iter()
                .zip(gradient.iter().zip(&velocity))
                .map(|(w, (g, v))| w - f64::from(0.1f32) * if nesterov { g + momentum * v } else { *v })
                .collect();
            close("w", &result[0], &[count], &next, 1e-6);
            close("velocity", &result[1], &[count], &velocity, 1e-6);
        }
    }

    #[test]
    fn adam_is_right(count in 0..40_000usize, decoupled: bool, decay in prop_oneof![Just(0.0f32), Just(0.01)]) {
        if let Some(engine) = engine() {
            let [w, g, m, s] = inputs(count);
            let (rate, above_mean, above_root) = (0.01f32, 5.0f32, 20.0f32);
            let op = op("Adam", 2).outputs(&[true; 3]).float("beta1", 0.9).float("beta2", 0.999).float("epsilon", 1e-3);
            let op = op.float("weight_decay", decay).int("decoupled", usize::from(decoupled));
            let scalars = [scalar(rate), scalar(above_mean), scalar(above_root)];
            let given: Vec<Option<&Tensor>> = [&w, &g, &m, &s].into_iter().chain(&scalars).map(Some).collect();
            let result = op.run(&*engine, &given).unwrap();
            let (b1, b2, decay) = (f64::from(0.9f32), f64::from(0.999f32), f64::from(decay));
            let (mut weights, mut means, mut squares) = (Vec::new(), Vec::new(), Vec::new());
            for (((w, g), m), s) in wide(&w).into_iter().zip(wide(&g)).zip(wide(&m)).zip(wide(&s)) {
                let gradient = if decoupled { g } else { g + decay * w };
                let mean = b1 * m + (1.0 - b1) * gradient;
                let square = b2 * s + (1.0 - b2) * gradient * gradient;
                let direction = mean / (square.sqrt() * f64::from(above_root) + f64::from(1e-3f32)) * f64::from(above_mean);
                let pull = if decoupled { decay * w } else { 0.0 };
                weights.push(w - f64::from(rate) * (direction + pull));
                means.push(mean);
                squares.push(square);
            }
            close("w", &result[0], &[count], &weights, 1e-6);
            close("mean", &result[1], &[count], &means, 1e-6);
            close("square", &result[2], &[count], &squares, 1e-6);
        }
    }
}

#[test]
fn misfits_are_named() {
    let Some(engine) = engine() else { return };
    let (w, other, rate) = (random(1, &[3, 4]), random(2, &[4, 3]), scalar(0.1));
    let sgd = || op("Sgd", 1).outputs(&[true; 2]).float("momentum", 0.9);
    let adam = || op("Adam", 1).outputs(&[true; 3]).float("beta1", 0.9).float("beta2", 0.9).float("epsilon", 1e-8);
    let table: Vec<(Op, Vec<&Tensor>, &str)> = vec![
        (op("Sgd", 1).outputs(&[true; 2]), vec![&w, &w, &w, &rate], "momentum"),
        (sgd().float("nesterov", 1.0), vec![&w, &w, &w, &rate], "nesterov"),
        (sgd().int("weight_decay", 1), vec![&w, &w, &w, &rate], "weight_decay"),
        (sgd(), vec![&w, &other, &w, &rate], "`g`"),
        (sgd(), vec![&w, &w, &other, &rate], "`velocity`"),
        (sgd(), vec![&w, &w, &w, &w], "`rate`"),
        (adam(), vec![&w, &w, &w, &other, &rate, &rate, &rate], "`square`"),
        (adam(), vec![&w, &w, &w, &w, &rate, &w, &rate], "`inverse_mean`"),
    ];
    for (op, inputs, text) in table {
        let inputs: Vec<Option<&Tensor>> = inputs.into_iter().map(Some).collect();
        let error = op.run(&*engine, &inputs).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(op.name) && error.contains("the_node"), "{}: {error}", op.name);
    }
}
