//! A copy of a model, trained on what it answers; pure.

use rand::{rngs::StdRng, seq::SliceRandom as _};

use super::maths::{normal, rng};

/// A model that an attacker trains on another's answers: one hidden layer of rectified units, or none; softmax; cross-entropy with the
/// victim's scores, by Adam (Kingma and Ba 2014, algorithm 1).
pub struct Surrogate {
    layers: Vec<Layer>,
}

struct Layer {
    inputs: usize,
    outputs: usize,
    /// Row by row of inputs, then the biases.
    weights: Vec<f32>,
    gradient: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// How long and fast a surrogate learns.
#[derive(Clone, Copy, Debug)]
pub struct Learning {
    /// Hidden units; 0 for none.
    pub hidden: usize,
    /// Times that each row is seen.
    pub epochs: usize,
    /// Step of Adam.
    pub rate: f32,
}

const BATCH: usize = 32;

impl Layer {
    fn new(inputs: usize, outputs: usize, rng: &mut StdRng) -> Self {
        let scale = (2.0 / inputs.max(1) as f32).sqrt();
        let size = inputs * outputs + outputs;
        let mut weights: Vec<f32> = (0..inputs * outputs).map(|_| normal(rng) * scale * 0.5).collect();
        weights.resize(size, 0.0);
        let zeros = || vec![0.0; size];
        Self { inputs, outputs, weights, gradient: zeros(), first: zeros(), second: zeros() }
    }

    fn forward(&self, input: &[f32]) -> Vec<f32> {
        let (matrix, bias) = self.weights.split_at(self.inputs * self.outputs);
        let mut output = bias.to_vec();
        for (value, row) in input.iter().zip(matrix.chunks_exact(self.outputs)).filter(|(value, _)| **value != 0.0) {
            output.iter_mut().zip(row).for_each(|(sum, weight)| *sum += value * weight);
        }
        output
    }

    /// Adds to the gradient, and returns that of the input.
    fn backward(&mut self, input: &[f32], above: &[f32]) -> Vec<f32> {
        let (matrix, bias) = self.gradient.split_at_mut(self.inputs * self.outputs);
        bias.iter_mut().zip(above).for_each(|(sum, change)| *sum += change);
        for (value, row) in input.iter().zip(matrix.chunks_exact_mut(self.outputs)).filter(|(value, _)| **value != 0.0)
        {
            row.iter_mut().zip(above).for_each(|(sum, change)| *sum += value * change);
        }
        let dot = |row: &[f32]| row.iter().zip(above).map(|(weight, change)| weight * change).sum();
        self.weights.chunks_exact(self.outputs).take(self.inputs).map(dot).collect()
    }

    fn step(&mut self, rate: f32, time: i32, rows: usize) {
        let (one, two) = (1.0 - 0.9f32.powi(time), 1.0 - 0.999f32.powi(time));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((weight, gradient), (first, second)) in self.weights.iter_mut().zip(&mut self.gradient).zip(moments) {
            let mean = std::mem::take(gradient) / rows as f32;
            *first = 0.9 * *first + 0.1 * mean;
            *second = 0.999 * *second + 0.001 * mean * mean;
            *weight -= rate * (*first / one) / ((*second / two).sqrt() + 1e-8);
        }
    }
}

impl Surrogate {
    /// Learns from rows and what the victim said of each.
    pub fn train(rows: &[Vec<f32>], targets: &[Vec<f64>], classes: usize, learning: Learning) -> Self {
        let mut rng = rng();
        let width = rows.first().map_or(0, Vec::len);
        let layers = match learning.hidden {
            0 => vec![Layer::new(width, classes, &mut rng)],
            hidden => vec![Layer::new(width, hidden, &mut rng), Layer::new(hidden, classes, &mut rng)],
        };
        let mut surrogate = Self { layers };
        let mut order: Vec<usize> = (0..rows.len().min(targets.len())).collect();
        let mut time = 0;
        for _ in 0..learning.epochs {
            order.shuffle(&mut rng);
            for batch in order.chunks(BATCH) {
                batch.iter().for_each(|&at| surrogate.learn(&rows[at], &targets[at]));
                time += 1;
                surrogate.layers.iter_mut().for_each(|layer| layer.step(learning.rate, time, batch.len()));
            }
        }
        surrogate
    }

    fn learn(&mut self, row: &[f32], target: &[f64]) {
        let (inputs, logits) = self.run(row);
        let mut above: Vec<f32> = softmax(&logits).iter().zip(target).map(|(is, should)| is - *should as f32).collect();
        for (layer, input) in self.layers.iter_mut().zip(&inputs).rev() {
            above = layer.backward(input, &above);
            // The derivative of what rectified the layer below.
            above.iter_mut().zip(input).filter(|(_, input)| **input <= 0.0).for_each(|(change, _)| *change = 0.0);
        }
    }

    /// What goes into each layer, and what comes out of the last.
    fn run(&self, row: &[f32]) -> (Vec<Vec<f32>>, Vec<f32>) {
        let (mut inputs, mut current) = (Vec::new(), row.to_vec());
        for (at, layer) in self.layers.iter().enumerate() {
            let mut output = layer.forward(&current);
            if at + 1 < self.layers.len() {
                output.iter_mut().for_each(|value| *value = value.max(0.0));
            }
            inputs.push(std::mem::replace(&mut current, output));
        }
        (inputs, current)
    }

    /// The class of a row.
    pub fn label(&self, row: &[f32]) -> usize {
        let (_, logits) = self.run(row);
        logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class)
    }

    /// Share of rows of which it says what the victim says.
    pub fn agreement(&self, rows: &[Vec<f32>], labels: &[usize]) -> f64 {
        let agree = rows.iter().zip(labels).filter(|(row, label)| self.label(row) == **label).count();
        agree as f64 / rows.len().min(labels.len()).max(1) as f64
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shares: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let total: f32 = shares.iter().sum();
    shares.iter().map(|share| share / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surrogates_learn_what_is_linear_and_what_is_not() {
        let mut rng = rng();
        let rows: Vec<Vec<f32>> = (0..400).map(|_| (0..4).map(|_| normal(&mut rng)).collect()).collect();
        let sure = |label: usize| vec![1.0 - label as f64, label as f64];
        let linear: Vec<usize> = rows.iter().map(|row| usize::from(row[0] + row[1] > 0.0)).collect();
        let bent: Vec<usize> = rows.iter().map(|row| usize::from(row[0] * row[1] > 0.0)).collect();
        let learning = |hidden| Learning { hidden, epochs: 60, rate: 0.02 };
        let train = |labels: &[usize], hidden| {
            let targets: Vec<_> = labels[..300].iter().map(|&label| sure(label)).collect();
            Surrogate::train(&rows[..300], &targets, 2, learning(hidden)).agreement(&rows[300..], &labels[300..])
        };
        assert!(train(&linear, 0) > 0.9);
        assert!(train(&bent, 0) < 0.7, "no line parts these");
        assert!(train(&bent, 16) > 0.85);
    }
}
