//! Random graphs in f64: the gradient along a direction is the slope of the outputs along it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use edgeward_engine::{Engine, Registry, RegistryConfig, RunOptions};
use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{AttributeProto, NodeProto},
};
use edgeward_train::differentiate;
use proptest::prelude::*;
use support::{load, model, node, noise, port};

/// Inputs by name and shape; what is made of them has one of these shapes.
const INPUTS: [(&str, &[usize]); 5] =
    [("a", &[3, 4]), ("b", &[3, 4]), ("row", &[4]), ("column", &[3, 1]), ("scalar", &[])];

/// An operation of a random graph: which, and on which two of the values before it.
type Operation = (u8, usize, usize);

/// Writes operations as nodes.
struct Writer {
    nodes: Vec<NodeProto>,
    constants: Vec<(String, Tensor)>,
    /// Names and shapes.
    values: Vec<(String, Vec<usize>)>,
}

impl Writer {
    fn new() -> Self {
        let values = INPUTS.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        Self { nodes: Vec::new(), constants: Vec::new(), values }
    }

    fn op(&mut self, kind: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let name = format!("v{}", self.nodes.len());
        self.nodes.push(node(kind, inputs, &[&name], attributes));
        name
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let name = format!("c{}", self.constants.len());
        self.constants.push((name.clone(), Tensor::from_vec([values.len()], values.to_vec()).unwrap()));
        name
    }

    fn number(&mut self, value: f64) -> String {
        let name = format!("c{}", self.constants.len());
        self.constants.push((name.clone(), Tensor::from_vec([], vec![value]).unwrap()));
        name
    }

    /// A value of the shape [3, 4]: `x`, broadcast where it is another.
    fn wide(&mut self, x: usize) -> String {
        let (name, shape) = self.values[x % self.values.len()].clone();
        if shape == [3, 4] {
            return name;
        }
        let target = self.ints(&[3, 4]);
        self.op("Expand", &[&name, &target], vec![])
    }

    fn add(&mut self, (kind, first, second): Operation) {
        let one = self.values[first % self.values.len()].clone();
        let other = self.values[second % self.values.len()].clone();
        let int = AttributeProto::of_int;
        let made = match kind % 17 {
            0..=2 => {
                let op = ["Add", "Sub", "Mul"][usize::from(kind % 17)];
                (self.op(op, &[&one.0, &other.0], vec![]), joined(&one.1, &other.1))
            }
            3..=5 => {
                let op = ["Tanh", "Sigmoid", "Sin"][usize::from(kind % 17) - 3];
                (self.op(op, &[&one.0], vec![]), one.1)
            }
            6 => {
                let (square, number) = (self.op("Mul", &[&other.0, &other.0], vec![]), self.number(1.5));
                let below = self.op("Add", &[&square, &number], vec![]);
                (self.op("Div", &[&one.0, &below], vec![]), joined(&one.1, &other.1))
            }
            7 => {
                let (a, b) = (self.wide(first), self.wide(second));
                let turned = self.op("Transpose", &[&b], vec![]);
                let square = self.op("MatMul", &[&a, &turned], vec![]);
                let bounded = self.op("Tanh", &[&square], vec![]);
                (self.op("MatMul", &[&bounded, &b], vec![]), vec![3, 4])
            }
            8 => {
                let a = self.wide(first);
                let axes = AttributeProto::of_ints("axes", vec![1]);
                (self.op("ReduceMean", &[&a], vec![axes]), vec![3, 1])
            }
            9 => {
                let a = self.wide(first);
                (self.op("Softmax", &[&a], vec![int("axis", i64::from(kind / 17 % 2))]), vec![3, 4])
            }
            10 => {
                let (a, ends) = (self.wide(first), self.ints(&[-1]));
                let (starts, axes, zero) = (self.ints(&[1]), self.ints(&[1]), self.ints(&[0]));
                let head = self.op("Slice", &[&a, &zero, &starts, &axes], vec![]);
                let tail = self.op("Slice", &[&a, &starts, &ends, &axes], vec![]);
                (self.op("Concat", &[&tail, &head, &head], vec![int("axis", 1)]), vec![3, 4])
            }
            11 => {
                let a = self.wide(first);
                let epsilon = AttributeProto::of_float("epsilon", 0.25);
                (self.op("LayerNormalization", &[&a, "row"], vec![epsilon]), vec![3, 4])
            }
            12 => {
                let (square, number) = (self.op("Mul", &[&one.0, &one.0], vec![]), self.number(0.5));
                let positive = self.op("Add", &[&square, &number], vec![]);
                (self.op("Sqrt", &[&positive], vec![]), one.1)
            }
            13 => {
                let (a, places) = (self.wide(first), self.ints(&[2, 0, 2]));
                (self.op("Gather", &[&a, &places], vec![]), vec![3, 4])
            }
            14 => {
                let (a, target) = (self.wide(first), self.ints(&[4, 3]));
                let flat = self.op("Reshape", &[&a, &target], vec![]);
                (self.op("Transpose", &[&flat], vec![]), vec![3, 4])
            }
            15 => {
                let (a, b) = (self.wide(first), self.wide(second));
                (self.op("Gemm", &[&a, &b], vec![int("transA", 1)]), vec![4, 4])
            }
            _ => {
                let (a, pads, cut) = (self.wide(first), self.ints(&[1, 0, 0, 0]), self.ints(&[0]));
                let end = self.ints(&[3]);
                let padded = self.op("Pad", &[&a, &pads], vec![]);
                (self.op("Slice", &[&padded, &cut, &end, &cut], vec![]), vec![3, 4])
            }
        };
        // Matrices of another shape go back to the common one.
        let made = if made.1 == [4, 4] {
            let (wide, zero, end) = (made.0, self.ints(&[0]), self.ints(&[3]));
            (self.op("Slice", &[&wide, &zero, &end, &zero], vec![]), vec![3, 4])
        } else {
            made
        };
        self.values.push(made);
    }

    /// The sum of the last values is the graph's output.
    fn finish(mut self) -> Model {
        let last: Vec<usize> = (0..self.values.len()).rev().take(4).collect();
        let parts: Vec<String> = last.iter().map(|&i| self.wide(i)).collect();
        let everything: Vec<String> = (0..INPUTS.len()).map(|i| self.wide(i)).collect();
        let names: Vec<&str> = parts.iter().chain(&everything).map(String::as_str).collect();
        let sum = self.op("Sum", &names, vec![]);
        self.nodes.push(node("Tanh", &[&sum], &["y"], vec![]));
        let inputs = INPUTS.iter().map(|(name, shape)| {
            let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
            port(name, DataType::Float64, &dims.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let constants = self.constants.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        model(self.nodes, inputs.collect(), vec![port("y", DataType::Float64, &["3", "4"])], constants)
    }
}

/// Shapes of this test broadcast: the longer in each dimension.
fn joined(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank).map(|i| at(a, i).max(at(b, i))).collect()
}

fn wide_noise(seed: u64, shape: &[usize]) -> Tensor {
    let values = noise(seed, shape).values::<f32>().unwrap().iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    Tensor::from_vec(shape, values).unwrap()
}

fn moved(x: &Tensor, along: &Tensor, by: f64) -> Tensor {
    let (x_values, along) = (x.values::<f64>().unwrap(), along.values::<f64>().unwrap());
    let values = x_values.iter().zip(along.iter()).map(|(x, d)| x + by * d).collect::<Vec<_>>();
    Tensor::from_vec(x.shape(), values).unwrap()
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    a.values::<f64>().unwrap().iter().zip(b.values::<f64>().unwrap().iter()).map(|(a, b)| a * b).sum()
}

/// Slope of `seed · y` along a direction by central differences, and by the gradients.
fn slopes(engine: &dyn Engine, forward: &Model, seed: u64) -> (f64, f64) {
    let names: Vec<String> = INPUTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let made = differentiate(forward, &["y".to_owned()], &names).unwrap();
    let inputs: Vec<Tensor> = INPUTS.iter().zip(1..).map(|((_, s), i)| wide_noise(seed + i, s)).collect();
    let along: Vec<Tensor> = INPUTS.iter().zip(11..).map(|((_, s), i)| wide_noise(seed + i, s)).collect();
    let weights = wide_noise(seed + 21, &[3, 4]);
    let session = load(engine, forward, 1);
    let at = |by: f64| {
        let places: Vec<Tensor> = inputs.iter().zip(&along).map(|(x, d)| moved(x, d, by)).collect();
        let feed: Vec<(&str, &Tensor)> = INPUTS.iter().map(|(name, _)| *name).zip(&places).collect();
        dot(&session.run(&feed, RunOptions::default()).unwrap()[0], &weights)
    };
    let step = 1e-5;
    let difference = (at(step) - at(-step)) / (2.0 * step);
    let mut feed: Vec<(&str, &Tensor)> = INPUTS.iter().map(|(name, _)| *name).zip(&inputs).collect();
    feed.push((&made.seeds[0], &weights));
    let wanted: Vec<&str> = made.gradients.iter().map(String::as_str).collect();
    let options = RunOptions { outputs: Some(&wanted), ..RunOptions::default() };
    let gradients = load(engine, &made.graph, 1).run(&feed, options).unwrap();
    (difference, gradients.iter().zip(&along).map(|(g, d)| dot(g, d)).sum())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gradients_are_slopes(
        operations in prop::collection::vec((any::<u8>(), 0usize..40, 0usize..40), 1..14),
        seed in 0u64..1_000_000,
    ) {
        // Only this engine computes in f64.
        let Ok(engine) = Registry::new(RegistryConfig::default()).get("onnxruntime") else {
            eprintln!("skipped: ONNX Runtime is not installed");
            return Ok(());
        };
        let mut writer = Writer::new();
        operations.iter().for_each(|operation| writer.add(*operation));
        let (difference, slope) = slopes(engine.as_ref(), &writer.finish(), seed);
        prop_assert!(
            (difference - slope).abs() <= 1e-6 * difference.abs().max(1.0),
            "a difference of {difference}, gradients of {slope}"
        );
    }
}
