//! A dense tensor in host memory: element type, shape and shared bytes.
//!
//! The bytes are those of ONNX raw data and of the wire: row-major, little-endian, so a tensor travels from a socket
//! or a file into an engine without a conversion. How an engine runs on it is left to the engines.

use std::borrow::Cow;

use bytes::Bytes;

use crate::DataType;

/// A dense, row-major tensor. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    dtype: DataType,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Clone, Debug, PartialEq)]
enum Data {
    Raw(Bytes),
    Strings(Vec<Bytes>),
}

/// Why bytes and a shape do not make a tensor.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The number of bytes is not what shape and element type ask for.
    #[error("{dtype} tensor of shape {shape:?} takes {expected} bytes, got {actual}")]
    Length {
        /// Element type.
        dtype: DataType,
        /// Shape asked for.
        shape: Vec<usize>,
        /// Bytes that shape and element type ask for.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// The number of elements is not the product of the shape.
    #[error("shape {shape:?} takes {expected} elements, got {actual}")]
    Count {
        /// Shape asked for.
        shape: Vec<usize>,
        /// Elements that the shape asks for.
        expected: usize,
        /// Elements given.
        actual: usize,
    },
    /// The product of the shape does not fit in memory.
    #[error("shape {0:?} has more elements than memory can address")]
    TooLarge(Vec<usize>),
    /// Tensors of these shapes do not join.
    #[error("shapes {first:?} and {other:?} do not join along the first dimension")]
    Shapes {
        /// Shape of the first.
        first: Vec<usize>,
        /// The shape that does not fit.
        other: Vec<usize>,
    },
    /// The parts asked for are not those of the tensor.
    #[error("shape {shape:?} has no parts of {sizes:?} along its first dimension")]
    Split {
        /// The tensor's shape.
        shape: Vec<usize>,
        /// Sizes asked for.
        sizes: Vec<usize>,
    },
    /// Another element type was asked for than the tensor holds.
    #[error("tensor holds {actual}, asked for {expected}")]
    Type {
        /// Element type asked for.
        expected: DataType,
        /// Element type held.
        actual: DataType,
    },
}

/// A Rust type that is the memory form of an ONNX element type.
pub trait Element: bytemuck::Pod {
    /// The ONNX element type.
    const DTYPE: DataType;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident),* $(,)?) => { $(impl Element for $rust { const DTYPE: DataType = DataType::$dtype; })* };
}
element!(f32 => Float32, f64 => Float64, half::f16 => Float16, half::bf16 => BFloat16, i8 => Int8, i16 => Int16,
    i32 => Int32, i64 => Int64, u8 => UInt8, u16 => UInt16, u32 => UInt32, u64 => UInt64);

/// Number of elements of `shape`; an error where it overflows.
pub fn element_count(shape: &[usize]) -> Result<usize, TensorError> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as usize / 16)
        .ok_or_else(|| TensorError::TooLarge(shape.to_vec()))
}

impl Tensor {
    /// A tensor over raw little-endian bytes (any type but [`DataType::String`]); packed for 4-bit and 2-bit types.
    pub fn from_raw(dtype: DataType, shape: impl Into<Vec<usize>>, bytes: Bytes) -> Result<Self, TensorError> {
        let shape = shape.into();
        let expected = dtype.byte_len(element_count(&shape)?);
        if dtype == DataType::String || bytes.len() != expected {
            return Err(TensorError::Length { dtype, shape, expected, actual: bytes.len() });
        }
        Ok(Self { dtype, shape, data: Data::Raw(bytes) })
    }

    /// A tensor that takes over `values` without copying them.
    pub fn from_vec<T: Element + Send + Sync>(
        shape: impl Into<Vec<usize>>,
        values: Vec<T>,
    ) -> Result<Self, TensorError> {
        let shape = shape.into();
        let expected = element_count(&shape)?;
        if values.len() != expected {
            return Err(TensorError::Count { shape, expected, actual: values.len() });
        }
        Ok(Self { dtype: T::DTYPE, shape, data: Data::Raw(bytes_of(values)) })
    }

    /// A [`DataType::Bool`] tensor.
    pub fn from_bools(shape: impl Into<Vec<usize>>, values: Vec<bool>) -> Result<Self, TensorError> {
        let bytes: Vec<u8> = values.into_iter().map(u8::from).collect();
        Self::from_raw(DataType::Bool, shape, bytes.into())
    }

    /// A [`DataType::String`] tensor; elements are bytes, by convention UTF-8.
    pub fn from_strings(shape: impl Into<Vec<usize>>, values: Vec<Bytes>) -> Result<Self, TensorError> {
        let shape = shape.into();
        let expected = element_count(&shape)?;
        if values.len() != expected {
            return Err(TensorError::Count { shape, expected, actual: values.len() });
        }
        Ok(Self { dtype: DataType::String, shape, data: Data::Strings(values) })
    }

    /// Element type.
    pub fn dtype(&self) -> DataType {
        self.dtype
    }

    /// Dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True where a dimension is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held, for strings the sum of their lengths.
    pub fn byte_len(&self) -> usize {
        match &self.data {
            Data::Raw(bytes) => bytes.len(),
            Data::Strings(values) => values.iter().map(Bytes::len).sum(),
        }
    }

    /// The raw bytes; none for strings.
    pub fn raw(&self) -> Option<&Bytes> {
        match &self.data {
            Data::Raw(bytes) => Some(bytes),
            Data::Strings(_) => None,
        }
    }

    /// The elements of a string tensor.
    pub fn strings(&self) -> Option<&[Bytes]> {
        match &self.data {
            Data::Raw(_) => None,
            Data::Strings(values) => Some(values),
        }
    }

    /// The elements, borrowed where the bytes are aligned for `T`, else copied.
    pub fn values<T: Element>(&self) -> Result<Cow<'_, [T]>, TensorError> {
        match &self.data {
            Data::Raw(bytes) if self.dtype == T::DTYPE => Ok(match bytemuck::try_cast_slice(bytes) {
                Ok(values) => Cow::Borrowed(values),
                Err(_) => Cow::Owned(bytemuck::allocation::pod_collect_to_vec(bytes)),
            }),
            _ => Err(TensorError::Type { expected: T::DTYPE, actual: self.dtype }),
        }
    }

    /// The same elements under another shape of equal size.
    pub fn reshaped(self, shape: impl Into<Vec<usize>>) -> Result<Self, TensorError> {
        let shape = shape.into();
        let expected = element_count(&shape)?;
        if expected != self.len() {
            return Err(TensorError::Count { shape, expected, actual: self.len() });
        }
        Ok(Self { shape, ..self })
    }

    /// The tensors one after the other along their first dimension. They must have one type and, but for that
    /// dimension, one shape; a single one is not copied.
    pub fn concat_first(tensors: &[&Self]) -> Result<Self, TensorError> {
        let [first, rest @ ..] = tensors else { return Err(TensorError::Shapes { first: vec![], other: vec![] }) };
        if rest.is_empty() {
            return Ok((*first).clone());
        }
        let inner = first.shape.get(1..);
        let mut shape = first.shape.clone();
        for other in rest {
            if other.dtype != first.dtype {
                return Err(TensorError::Type { expected: first.dtype, actual: other.dtype });
            }
            match shape.first_mut() {
                Some(sum) if other.shape.get(1..) == inner => *sum += other.shape[0],
                _ => return Err(TensorError::Shapes { first: first.shape.clone(), other: other.shape.clone() }),
            }
        }
        if first.dtype == DataType::String {
            return Self::from_strings(
                shape,
                tensors.iter().flat_map(|t| t.strings().unwrap_or_default()).cloned().collect(),
            );
        }
        if tensors.iter().any(|t| t.byte_len() * 8 != t.len() * first.dtype.bits()) {
            // Packed elements that end within a byte do not join by bytes.
            return Err(TensorError::Shapes { first: first.shape.clone(), other: shape });
        }
        Self::from_raw(first.dtype, shape, aligned(tensors.iter().filter_map(|t| t.raw())))
    }

    /// Parts of these sizes along the first dimension, which they must fill; they share the bytes.
    pub fn split_first(&self, sizes: &[usize]) -> Result<Vec<Self>, TensorError> {
        let refuse = || TensorError::Split { shape: self.shape.clone(), sizes: sizes.to_vec() };
        let (&whole, inner) = self.shape.split_first().ok_or_else(refuse)?;
        if sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size)) != Some(whole) {
            return Err(refuse());
        }
        let row = element_count(inner)?;
        let mut at = 0;
        let parts = sizes.iter().map(|&size| {
            let (from, to) = (at * row, (at + size) * row);
            at += size;
            let data = match &self.data {
                Data::Raw(bytes) if (self.dtype.bits() * from).is_multiple_of(8) => {
                    Data::Raw(bytes.slice(self.dtype.byte_len(from)..self.dtype.byte_len(to)))
                }
                Data::Raw(_) => return Err(refuse()),
                Data::Strings(values) => Data::Strings(values.get(from..to).ok_or_else(refuse)?.to_vec()),
            };
            let shape = std::iter::once(size).chain(inner.iter().copied()).collect();
            Ok(Self { dtype: self.dtype, shape, data })
        });
        parts.collect()
    }
}

/// The parts joined, beginning where engines use elements of any type.
fn aligned<'a>(parts: impl Iterator<Item = &'a Bytes> + Clone) -> Bytes {
    const ALIGNMENT: usize = 64;
    let length: usize = parts.clone().map(Bytes::len).sum();
    // Room to begin later instead of a type that is aligned: memory that is filled at once need not be zeroed before.
    let mut joined = Vec::with_capacity(length + ALIGNMENT);
    let before = (joined.as_ptr() as usize).wrapping_neg() % ALIGNMENT;
    joined.resize(before, 0);
    parts.for_each(|part| joined.extend_from_slice(part));
    Bytes::from(joined).slice(before..)
}

/// Shares the memory of `values` as bytes, keeping its alignment.
fn bytes_of<T: Element + Send + Sync>(values: Vec<T>) -> Bytes {
    struct Owner<T>(Vec<T>);
    impl<T: Element> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    Bytes::from_owner(Owner(values))
}
