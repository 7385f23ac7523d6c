//! A data set in memory: one tensor for each field, the examples along its first dimension.

use bytes::Bytes;
use edgeward_graph::{DataType, Tensor};

use super::{DataError, Dataset, Field, Role, convert};

/// Classes beyond this number are taken for quantities.
const CLASSES_MAX: u32 = 1 << 16;

/// Fields in memory.
#[derive(Clone, Debug)]
pub struct Columns {
    fields: Vec<Field>,
    tensors: Vec<Tensor>,
    rows: usize,
    labels: Option<Vec<u32>>,
    classes: Option<Vec<String>>,
}

impl Columns {
    /// From name, role and tensor `[rows, …]` of each field; all must have the same number of rows.
    pub fn new(columns: Vec<(String, Role, Tensor)>) -> Result<Self, DataError> {
        let mut rows = None;
        let (mut fields, mut tensors) = (Vec::new(), Vec::new());
        for (name, role, tensor) in columns {
            let Some((&count, shape)) = tensor.shape().split_first() else {
                return Err(DataError::fit(format!("`{name}` is a single value; expected one for each example")));
            };
            if *rows.get_or_insert(count) != count {
                let first = fields.first().map_or("", |field: &Field| &field.name);
                let had = rows.unwrap_or_default();
                return Err(DataError::fit(format!("`{name}` has {count} examples, `{first}` has {had}")));
            }
            if tensor.dtype() != DataType::String && !tensor.dtype().bits().is_multiple_of(8) {
                return Err(DataError::fit(format!("`{name}` is {}; expected whole bytes", tensor.dtype())));
            }
            fields.push(Field { name, dtype: tensor.dtype(), shape: shape.to_vec(), role });
            tensors.push(tensor);
        }
        let labels = fields.iter().zip(&tensors).find(|(field, _)| field.role == Role::Target);
        let labels = labels.and_then(|(field, tensor)| class_numbers(field, tensor));
        Ok(Self { fields, tensors, rows: rows.unwrap_or(0), labels, classes: None })
    }

    /// With the names of the classes.
    #[must_use]
    pub fn with_classes(self, classes: Vec<String>) -> Self {
        Self { classes: Some(classes), ..self }
    }

    /// The whole of a field.
    pub fn tensor(&self, field: usize) -> Option<&Tensor> {
        self.tensors.get(field)
    }
}

/// Whole numbers from 0, one for each example: classes.
fn class_numbers(field: &Field, tensor: &Tensor) -> Option<Vec<u32>> {
    if field.dtype == DataType::String || field.shape.iter().product::<usize>() != 1 {
        return None;
    }
    let values = convert::to_f64(tensor)?;
    let class = |value: f64| (value >= 0.0 && value.fract() == 0.0 && value < f64::from(CLASSES_MAX)).then_some(value);
    values.into_iter().map(|value| class(value).map(|value| value as u32)).collect()
}

impl Dataset for Columns {
    fn len(&self) -> usize {
        self.rows
    }

    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn batch(&self, rows: &[usize]) -> Result<Vec<Tensor>, DataError> {
        self.fields.iter().zip(&self.tensors).map(|(field, tensor)| gather(field, tensor, rows)).collect()
    }

    fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }
}

fn gather(field: &Field, tensor: &Tensor, rows: &[usize]) -> Result<Tensor, DataError> {
    let absent = |row: usize| DataError::fit(format!("there is no example {row} of `{}`", field.name));
    let shape: Vec<usize> = std::iter::once(rows.len()).chain(field.shape.iter().copied()).collect();
    let count: usize = field.shape.iter().product();
    let made = if let Some(strings) = tensor.strings() {
        let mut out: Vec<Bytes> = Vec::with_capacity(rows.len() * count);
        for &row in rows {
            out.extend_from_slice(strings.get(row * count..(row + 1) * count).ok_or_else(|| absent(row))?);
        }
        Tensor::from_strings(shape, out)
    } else {
        let raw = tensor.raw().map_or(&[][..], |bytes| bytes);
        let size = field.dtype.byte_len(count);
        let mut out = Vec::with_capacity(rows.len() * size);
        for &row in rows {
            if row >= tensor.shape().first().copied().unwrap_or(0) {
                return Err(absent(row));
            }
            out.extend_from_slice(raw.get(row * size..(row + 1) * size).ok_or_else(|| absent(row))?);
        }
        Tensor::from_raw(field.dtype, shape, out.into())
    };
    made.map_err(|error| DataError::fit(format!("`{}`: {error}", field.name)))
}
