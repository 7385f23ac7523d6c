//! Which examples make which batch: pure functions of seed and epoch.

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha12Rng, seq::SliceRandom as _};

use super::{DataError, Dataset};

/// How examples are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sampling {
    /// All, in the order of the file; the last batch may be smaller.
    Sequential,
    /// All in an order of each epoch's own; a last batch that is not full is left out, since statistics over few
    /// examples would be poor, unless it is the only one.
    #[default]
    Shuffled,
    /// With replacement, every class as often as any other; as many as the data has.
    Balanced,
    /// Each example is in each batch with probability `batch / examples`, independently, as the accounting of private
    /// training asks for (Abadi et al. 2016, section 3.1). Batches differ in size and may be empty.
    Poisson,
}

/// What makes the batches of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Examples in one batch; on average, where Poisson draws them.
    pub batch: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// The same seed draws the same.
    pub seed: u64,
}

/// A generator for one purpose: equal arguments give equal numbers, others are independent.
pub(crate) fn generator(seed: u64, purpose: u64, epoch: u64, item: u64) -> ChaCha12Rng {
    let mut key = [0; 32];
    for (part, word) in key.as_chunks_mut::<8>().0.iter_mut().zip([seed, purpose, epoch, item]) {
        *part = word.to_le_bytes();
    }
    ChaCha12Rng::from_seed(key)
}

const PURPOSE_ORDER: u64 = 1;

impl Plan {
    /// The rows of every batch of an epoch. Errors: a batch of 0, or no classes to balance.
    pub fn batches(&self, dataset: &dyn Dataset, epoch: u64) -> Result<Vec<Vec<usize>>, DataError> {
        let rows = dataset.len();
        if self.batch == 0 {
            return Err(DataError::fit("a batch of `0` holds nothing; expected 1 or more"));
        }
        let mut rng = generator(self.seed, PURPOSE_ORDER, epoch, 0);
        let order: Vec<usize> = match self.sampling {
            Sampling::Sequential => (0..rows).collect(),
            Sampling::Shuffled => {
                let mut order: Vec<usize> = (0..rows).collect();
                order.shuffle(&mut rng);
                if rows > self.batch {
                    order.truncate(rows - rows % self.batch);
                }
                order
            }
            Sampling::Balanced => balanced(dataset, &mut rng)?,
            Sampling::Poisson => return Ok(poisson(rows, self.batch, &mut rng)),
        };
        Ok(order.chunks(self.batch).map(<[usize]>::to_vec).collect())
    }

    /// Batches of an epoch, known without drawing them.
    pub fn batch_count(&self, rows: usize) -> usize {
        let batch = self.batch.max(1);
        match self.sampling {
            Sampling::Shuffled if rows > batch => rows / batch,
            _ => rows.div_ceil(batch),
        }
    }
}

fn balanced(dataset: &dyn Dataset, rng: &mut ChaCha12Rng) -> Result<Vec<usize>, DataError> {
    let labels =
        dataset.labels().ok_or_else(|| DataError::fit("the targets are no classes, so none can be balanced"))?;
    let mut classes: std::collections::BTreeMap<u32, Vec<usize>> = std::collections::BTreeMap::new();
    labels.iter().enumerate().for_each(|(row, &label)| classes.entry(label).or_default().push(row));
    let classes: Vec<Vec<usize>> = classes.into_values().collect();
    let draw = |rng: &mut ChaCha12Rng| {
        let class = classes.get(rng.random_range(0..classes.len()))?;
        class.get(rng.random_range(0..class.len())).copied()
    };
    Ok((0..labels.len()).filter_map(|_| draw(rng)).collect())
}

fn poisson(rows: usize, batch: usize, rng: &mut ChaCha12Rng) -> Vec<Vec<usize>> {
    let rate = (batch as f64 / rows.max(1) as f64).min(1.0);
    let draw = |_| (0..rows).filter(|_| rng.random_bool(rate)).collect();
    (0..rows.div_ceil(batch)).map(draw).collect()
}

/// Weights that give every class the same say in a loss: `examples / (classes · examples of the class)`, as
/// scikit-learn's `balanced`; 0 for a class that never occurs.
pub fn class_weights(labels: &[u32], classes: usize) -> Vec<f32> {
    let mut counts = vec![0usize; classes];
    for &label in labels {
        if let Some(count) = counts.get_mut(label as usize) {
            *count += 1;
        }
    }
    let seen = counts.iter().filter(|&&count| count > 0).count().max(1);
    let weight = |count: usize| if count == 0 { 0.0 } else { labels.len() as f32 / (seen * count) as f32 };
    counts.into_iter().map(weight).collect()
}
