//! Tensors as ONNX Runtime's values, borrowed on the way in and owned on the way out.

use std::{ffi::c_void, ptr, sync::Arc};

use bytes::Bytes;
use edgeward_graph::{DataType, Tensor};
use ort_sys::{OrtAllocatorType, OrtMemType, OrtMemoryInfo, OrtValue};

use super::{Runtime, c_type, call, error};
use crate::{
    EngineError, ErrorKind,
    check::{self, ALIGN},
};

/// A value of the library, released on drop. It may point into an input's tensor or a caller's buffer, which `'a` keeps.
pub(super) struct Value<'a> {
    runtime: Arc<Runtime>,
    pointer: *mut OrtValue,
    _memory: std::marker::PhantomData<&'a [u8]>,
}

// SAFETY: a value is plain data with one owner.
unsafe impl Send for Value<'_> {}
// SAFETY: shared access only reads.
unsafe impl Sync for Value<'_> {}

impl Drop for Value<'_> {
    fn drop(&mut self) {
        // SAFETY: this is the only owner; null is allowed.
        unsafe { (self.runtime.api.ReleaseValue)(self.pointer) }
    }
}

impl<'a> Value<'a> {
    /// Takes over a value that a run has filled; null where the run failed before.
    pub(super) fn own(runtime: &Arc<Runtime>, pointer: *mut OrtValue) -> Self {
        Self { runtime: runtime.clone(), pointer, _memory: std::marker::PhantomData }
    }

    /// The value of an input; numbers stay where they lie.
    pub(super) fn of(runtime: &Arc<Runtime>, tensor: &'a Tensor) -> Result<Self, EngineError> {
        let shape = c_shape(tensor.shape());
        let unsupported = || error(ErrorKind::Unsupported, format!("{} has no counterpart here", tensor.dtype()));
        let dtype = c_type(tensor.dtype()).ok_or_else(unsupported)?;
        let mut value = Self::own(runtime, ptr::null_mut());
        if let Some(strings) = tensor.strings() {
            let mut allocator = ptr::null_mut();
            call!(runtime, GetAllocatorWithDefaultOptions(&mut allocator))?;
            call!(runtime, CreateTensorAsOrtValue(allocator, shape.as_ptr(), shape.len(), dtype, &mut value.pointer))?;
            strings.iter().enumerate().try_for_each(|(index, text)| value.fill(index, text))?;
            return Ok(value);
        }
        let bytes = tensor.raw().map(|raw| raw.as_ref()).unwrap_or_default();
        if bytes.is_empty() || !(bytes.as_ptr() as usize).is_multiple_of(ALIGN) {
            value.copy_in(bytes, &shape, dtype)?;
            return Ok(value);
        }
        value.lay_over(bytes.as_ptr().cast_mut(), bytes.len(), &shape, dtype)?;
        Ok(value)
    }

    /// Sets one string, which may hold any bytes: the call that takes all at once ends each at its first zero.
    fn fill(&mut self, index: usize, text: &[u8]) -> Result<(), EngineError> {
        let mut buffer = ptr::null_mut();
        call!(self.runtime, GetResizedStringTensorElementBuffer(self.pointer, index, text.len(), &mut buffer))?;
        // SAFETY: the string was made to hold as many bytes.
        unsafe { ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast::<u8>(), text.len()) };
        Ok(())
    }

    /// A value that a run writes straight into `buffer`; none where length, type or alignment do not allow it.
    pub(super) fn over(
        runtime: &Arc<Runtime>,
        dtype: DataType,
        shape: &[usize],
        buffer: &'a mut [u8],
    ) -> Result<Option<Self>, EngineError> {
        let Some(kind) = c_type(dtype).filter(|_| check::holds(buffer, dtype, shape)) else { return Ok(None) };
        let mut value = Self::own(runtime, ptr::null_mut());
        value.lay_over(buffer.as_mut_ptr(), buffer.len(), &c_shape(shape), kind)?;
        Ok(Some(value))
    }

    /// Makes the value of memory that lives as long as `'a`; written by a run only where it is an output.
    fn lay_over(
        &mut self,
        data: *mut u8,
        length: usize,
        shape: &[i64],
        dtype: ort_sys::ONNXTensorElementDataType,
    ) -> Result<(), EngineError> {
        let info = memory_info(&self.runtime)?;
        let (data, out) = (data.cast::<c_void>(), &mut self.pointer);
        let made = call!(
            self.runtime,
            CreateTensorWithDataAsOrtValue(info, data, length, shape.as_ptr(), shape.len(), dtype, out)
        );
        // SAFETY: made by this library just now; the value keeps a copy of it.
        unsafe { (self.runtime.api.ReleaseMemoryInfo)(info) };
        made
    }

    fn copy_in(
        &mut self,
        bytes: &[u8],
        shape: &[i64],
        dtype: ort_sys::ONNXTensorElementDataType,
    ) -> Result<(), EngineError> {
        let mut allocator = ptr::null_mut();
        call!(self.runtime, GetAllocatorWithDefaultOptions(&mut allocator))?;
        call!(self.runtime, CreateTensorAsOrtValue(allocator, shape.as_ptr(), shape.len(), dtype, &mut self.pointer))?;
        let mut data = ptr::null_mut();
        call!(self.runtime, GetTensorMutableData(self.pointer, &mut data))?;
        // SAFETY: the value was made for as many bytes as the tensor's type and shape ask for.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), data.cast::<u8>(), bytes.len()) };
        Ok(())
    }

    pub(super) fn pointer(&self) -> *const OrtValue {
        self.pointer
    }

    /// For a run to write the result to; the value stays the owner.
    pub(super) fn target(&mut self) -> *mut OrtValue {
        self.pointer
    }

    fn header(&self) -> Result<(DataType, Vec<usize>), EngineError> {
        let mut info = ptr::null_mut();
        call!(self.runtime, GetTensorTypeAndShape(self.pointer, &mut info))?;
        let (mut rank, mut dtype) = (0, ort_sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED);
        let result = call!(self.runtime, GetDimensionsCount(info, &mut rank))
            .and_then(|()| call!(self.runtime, GetTensorElementType(info, &mut dtype)))
            .and_then(|()| {
                let mut dims = vec![0i64; rank];
                call!(self.runtime, GetDimensions(info, dims.as_mut_ptr(), rank)).map(|()| dims)
            });
        // SAFETY: made by the first call and not used after.
        unsafe { (self.runtime.api.ReleaseTensorTypeAndShapeInfo)(info) };
        let shape = result?.into_iter().map(|d| usize::try_from(d).unwrap_or(0)).collect();
        let known = DataType::ALL.iter().copied().find(|&t| c_type(t) == Some(dtype));
        known.map(|t| (t, shape)).ok_or_else(|| error(ErrorKind::Unsupported, "an output's element type is unknown"))
    }

    /// The tensor of a result; its bytes keep the value alive.
    pub(super) fn into_tensor(self) -> Result<Tensor, EngineError> {
        let fail = |e: edgeward_graph::TensorError| error(ErrorKind::Failed, e.to_string());
        let (dtype, shape) = self.header()?;
        if dtype == DataType::String {
            let count = shape.iter().product();
            return Tensor::from_strings(shape, self.strings(count)?).map_err(fail);
        }
        let mut data = ptr::null_mut();
        call!(self.runtime, GetTensorMutableData(self.pointer, &mut data))?;
        let length = dtype.byte_len(shape.iter().product());
        let owned = Owned { data: data.cast::<u8>(), length, _value: Value::own(&self.runtime, self.pointer) };
        std::mem::forget(self);
        Tensor::from_raw(dtype, shape, Bytes::from_owner(owned)).map_err(fail)
    }

    fn strings(&self, count: usize) -> Result<Vec<Bytes>, EngineError> {
        let mut total = 0;
        call!(self.runtime, GetStringTensorDataLength(self.pointer, &mut total))?;
        let (mut text, mut offsets) = (vec![0u8; total], vec![0usize; count]);
        call!(
            self.runtime,
            GetStringTensorContent(self.pointer, text.as_mut_ptr().cast(), total, offsets.as_mut_ptr(), count)
        )?;
        let text = Bytes::from(text);
        let ends = offsets.iter().copied().skip(1).chain([total]);
        Ok(offsets.iter().zip(ends).map(|(&start, end)| text.slice(start..end)).collect())
    }
}

fn c_shape(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect()
}

fn memory_info(runtime: &Runtime) -> Result<*mut OrtMemoryInfo, EngineError> {
    let mut info = ptr::null_mut();
    let kind = OrtMemType::OrtMemTypeDefault;
    call!(runtime, CreateCpuMemoryInfo(OrtAllocatorType::OrtDeviceAllocator, kind, &mut info))?;
    Ok(info)
}

struct Owned {
    data: *const u8,
    length: usize,
    _value: Value<'static>,
}

// SAFETY: the bytes belong to the value, which is owned here and no longer written by anyone.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the value holds this many bytes for as long as it lives.
        unsafe { std::slice::from_raw_parts(self.data, self.length) }
    }
}
