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
