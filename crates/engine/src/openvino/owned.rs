//! What the library hands out, given back on drop: models, requests, tensors.

use std::{ffi::CString, os::unix::ffi::OsStrExt as _, ptr, sync::Arc};

use bytes::Bytes;
use edgeward_graph::{DataType, Tensor};

use super::{
    Shared,
    library::{Handle, INVALID_C_PARAM, Library, Shape, element_type, error},
};
use crate::{EngineError, ErrorKind, Source};

type Free = unsafe extern "C" fn(Handle);

/// A handle that is given back on drop.
pub(super) struct Owned {
    pub shared: Arc<Shared>,
    pub handle: Handle,
    free: Free,
}

// SAFETY: see `Shared`.
unsafe impl Send for Owned {}
// SAFETY: see `Shared`.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the handle came from this library, and this is its only owner.
        unsafe { (self.free)(self.handle) }
    }
}

impl Owned {
    /// Takes over what `make` puts into its out pointer.
    pub fn new(
        shared: &Arc<Shared>,
        free: Free,
        make: impl FnOnce(&Library, *mut Handle) -> i32,
    ) -> Result<Self, EngineError> {
        let mut handle = ptr::null_mut();
        shared.library.status(make(&shared.library, &mut handle))?;
        Ok(Self { shared: shared.clone(), handle, free })
    }

    pub fn model(shared: &Arc<Shared>, source: &Source) -> Result<Self, EngineError> {
        let free = shared.library.ov_model_free;
        match source {
            Source::File(path) => {
                let path = CString::new(path.as_os_str().as_bytes())
                    .map_err(|_| error(ErrorKind::InvalidModel, "the path holds a zero byte"))?;
                // SAFETY: the path is zero-terminated; no second file is named.
                Self::new(shared, free, |l, out| unsafe {
                    (l.ov_core_read_model)(shared.core, path.as_ptr(), ptr::null(), out)
                })
            }
            // SAFETY: the buffer has the length given, and is read before the call returns.
            Source::Bytes(bytes) => Self::new(shared, free, |l, out| unsafe {
                (l.ov_core_read_model_from_memory_buffer)(
                    shared.core,
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    ptr::null_mut(),
                    out,
                )
            }),
        }
    }

    /// A tensor over the bytes of `tensor`, which must stay where they are while it is in use; empty ones and ones
    /// that lie askew are copied.
    pub fn tensor(shared: &Arc<Shared>, tensor: &Tensor) -> Result<Self, EngineError> {
        let unsupported = || error(ErrorKind::Unsupported, format!("{} has no counterpart here", tensor.dtype()));
        let dtype = element_type(tensor.dtype()).ok_or_else(unsupported)?;
        let bytes = tensor.raw().ok_or_else(unsupported)?;
        let aligned = (bytes.as_ptr() as usize).is_multiple_of(tensor.dtype().byte_len(1).max(1));
        if aligned && !bytes.is_empty() {
            // The library reads inputs only; shape and type take just as many bytes as there are.
            return Self::over(shared, dtype, tensor.shape(), bytes.as_ptr().cast_mut());
        }
        let mut dims = c_dims(tensor.shape());
        let shape = Shape { rank: dims.len() as i64, dims: dims.as_mut_ptr() };
        let free = shared.library.ov_tensor_free;
        // SAFETY: the shape is copied by the call.
        let made = Self::new(shared, free, |l, out| unsafe { (l.ov_tensor_create)(dtype, shape, out) })?;
        if !bytes.is_empty() {
            let data = made.data()?;
            // SAFETY: the library allocated what shape and type take, which is the length of `bytes`.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len()) };
        }
        Ok(made)
    }

    /// A tensor over memory of the caller's, which must hold what shape and type take, and outlive its use.
    pub fn over(shared: &Arc<Shared>, kind: i32, shape: &[usize], data: *mut u8) -> Result<Self, EngineError> {
        let mut dims = c_dims(shape);
        let shape = Shape { rank: dims.len() as i64, dims: dims.as_mut_ptr() };
        // SAFETY: the shape is copied by the call; the memory is the caller's to answer for.
        Self::new(shared, shared.library.ov_tensor_free, |l, out| unsafe {
            (l.ov_tensor_create_from_host_ptr)(kind, shape, data.cast(), out)
        })
    }

    pub fn data(&self) -> Result<*mut u8, EngineError> {
        let mut data = ptr::null_mut();
        // SAFETY: an out pointer.
        self.shared.library.status(unsafe { (self.shared.library.ov_tensor_data)(self.handle, &mut data) })?;
        Ok(data.cast())
    }

    /// Dimensions of a tensor; `single` where it holds one element.
    pub fn dims(&self, single: bool) -> Result<Vec<usize>, EngineError> {
        let library = &self.shared.library;
        let mut shape = Shape { rank: 0, dims: ptr::null_mut() };
        // SAFETY: an out pointer; the dimensions belong to the caller until they are given back.
        unsafe {
            match (library.ov_tensor_get_shape)(self.handle, &mut shape) {
                // The call refuses to give the shape of a scalar.
                INVALID_C_PARAM if single => return Ok(Vec::new()),
                status => library.status(status)?,
            }
            let rank = usize::try_from(shape.rank).unwrap_or(0);
            let dims = (0..rank).map(|i| usize::try_from(*shape.dims.add(i)).unwrap_or(0)).collect();
            (library.ov_shape_free)(&mut shape);
            Ok(dims)
        }
    }

    /// A copy of an output, which must be of type `dtype`.
    pub fn read(&self, dtype: DataType) -> Result<Tensor, EngineError> {
        let library = &self.shared.library;
        let (mut kind, mut length) = (0, 0);
        // SAFETY: out pointers.
        unsafe {
            library.status((library.ov_tensor_get_element_type)(self.handle, &mut kind))?;
            library.status((library.ov_tensor_get_byte_size)(self.handle, &mut length))?;
        }
        let dims = self.dims(length == dtype.byte_len(1))?;
        if Some(kind) != element_type(dtype) {
            return Err(error(ErrorKind::Failed, format!("an output came as type {kind}, the model declares {dtype}")));
        }
        let bytes = if length == 0 {
            Bytes::new()
        } else {
            let data = self.data()?;
            // SAFETY: the library says that this many bytes are there, and nobody writes before the request runs again.
            Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(data, length) })
        };
        Tensor::from_raw(dtype, dims, bytes).map_err(|e| error(ErrorKind::Failed, e.to_string()))
    }
}

fn c_dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect()
}
