//! A part of a data set, and how one is cut in two.

use std::sync::Arc;

use edgeward_graph::Tensor;
use rand::{SeedableRng as _, rngs::ChaCha12Rng, seq::SliceRandom as _};

use super::{DataError, Dataset, Field};

/// Some rows of a data set, in an order of their own.
pub struct Subset {
    inner: Arc<dyn Dataset>,
    rows: Vec<usize>,
    labels: Option<Vec<u32>>,
}

impl Subset {
    /// These rows of `inner`; a row that it does not have is an error when it is asked for.
    pub fn new(inner: Arc<dyn Dataset>, rows: Vec<usize>) -> Self {
        let labels = inner.labels().and_then(|labels| rows.iter().map(|&row| labels.get(row).copied()).collect());
        Self { inner, rows, labels }
    }
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn fields(&self) -> &[Field] {
        self.inner.fields()
    }

    fn batch(&self, rows: &[usize]) -> Result<Vec<Tensor>, DataError> {
        let inner = rows.iter().map(|&row| self.rows.get(row).copied());
        let inner: Option<Vec<usize>> = inner.collect();
        self.inner.batch(&inner.ok_or_else(|| DataError::fit("an example beyond the end was asked for"))?)
    }

    fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    fn classes(&self) -> Option<&[String]> {
        self.inner.classes()
    }

    fn resized(&self, height: usize, width: usize) -> Option<Arc<dyn Dataset>> {
        Some(Arc::new(Self::new(self.inner.resized(height, width)?, self.rows.clone())))
    }
}

/// Cuts off `fraction` of the examples for validation: training part, then validation part. Each class keeps its share
/// where the data has classes; the same seed cuts the same way.
pub fn split_fraction(
    dataset: Arc<dyn Dataset>,
    fraction: f64,
    seed: u64,
) -> Result<(Arc<dyn Dataset>, Arc<dyn Dataset>), DataError> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(DataError::fit(format!("`{fraction}` is no part for validation; expected between 0 and 1")));
    }
    let mut groups: std::collections::BTreeMap<u32, Vec<usize>> = std::collections::BTreeMap::new();
    for row in 0..dataset.len() {
        let class = dataset.labels().and_then(|labels| labels.get(row).copied()).unwrap_or(0);
        groups.entry(class).or_default().push(row);
    }
    let mut rng = ChaCha12Rng::seed_from_u64(seed ^ 0x7370_6c69_7400_0000);
    let (mut train, mut val) = (Vec::new(), Vec::new());
    for rows in groups.values_mut() {
        rows.shuffle(&mut rng);
        let cut = (rows.len() as f64 * fraction).round() as usize;
        let (for_val, for_train) = rows.split_at(cut.min(rows.len()));
        val.extend_from_slice(for_val);
        train.extend_from_slice(for_train);
    }
    if train.is_empty() || val.is_empty() {
        let count = dataset.len();
        return Err(DataError::fit(format!("`{fraction}` of {count} examples leaves none on one side")));
    }
    train.sort_unstable();
    val.sort_unstable();
    let part = |rows| Arc::new(Subset::new(dataset.clone(), rows)) as Arc<dyn Dataset>;
    Ok((part(train), part(val)))
}
