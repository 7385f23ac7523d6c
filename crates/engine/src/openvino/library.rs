//! The functions of OpenVINO's C interface that are called here, looked up when the library is opened.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    path::Path,
    ptr,
};

use edgeward_graph::DataType;

use crate::{EngineError, ErrorKind};

pub(crate) const NAME: &str = "openvino";

pub(super) fn error(kind: ErrorKind, message: impl Into<String>) -> EngineError {
    EngineError::new(NAME, kind, message)
}

/// A handle of the library's.
pub(super) type Handle = *mut c_void;

/// `ov_shape_t`, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub rank: i64,
    pub dims: *mut i64,
}

/// `ov_property_t`; every value set here is text.
#[repr(C)]
pub(super) struct Property {
    pub key: *const c_char,
    pub value: *const c_void,
}

/// `ov_available_devices_t`.
#[repr(C)]
struct Devices {
    names: *mut *mut c_char,
    size: usize,
}

/// `ov_version_t`.
#[repr(C)]
struct Version {
    build: *const c_char,
    description: *const c_char,
}

/// `ov_profiling_info_t`.
#[repr(C)]
pub(super) struct NodeInfo {
    pub status: i32,
    pub real_us: i64,
    pub cpu_us: i64,
    pub node_name: *const c_char,
    pub exec_type: *const c_char,
    pub node_type: *const c_char,
}

/// `ov_profiling_info_list_t`.
#[repr(C)]
pub(super) struct NodeInfos {
    pub infos: *mut NodeInfo,
    pub size: usize,
}

type Status = i32;
const NOT_IMPLEMENTED: Status = -2;
const PARAMETER_MISMATCH: Status = -4;
pub(super) const INVALID_C_PARAM: Status = -14;
const INFER_CANCELLED: Status = -13;

macro_rules! library {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The opened library. It is never closed: its threads may outlive every session.
        pub(super) struct Library {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Library {
            fn look_up(library: &libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: the types are those of the headers of the pinned release; `open` refuses other releases.
                unsafe { Ok(Self { $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())?,)* }) }
            }
        }
    };
}

library! {
    ov_get_openvino_version: fn(*mut c_void) -> Status;
    ov_version_free: fn(*mut c_void);
    ov_get_last_err_msg: fn() -> *const c_char;
    ov_free: fn(*const c_char);
    ov_core_create: fn(*mut Handle) -> Status;
    ov_core_get_available_devices: fn(Handle, *mut c_void) -> Status;
    ov_available_devices_free: fn(*mut c_void);
    ov_core_read_model: fn(Handle, *const c_char, *const c_char, *mut Handle) -> Status;
    ov_core_read_model_from_memory_buffer: fn(Handle, *const c_char, usize, Handle, *mut Handle) -> Status;
    ov_model_is_dynamic: fn(Handle) -> bool;
    ov_model_free: fn(Handle);
    ov_core_compile_model_props: fn(Handle, Handle, *const c_char, usize, *const Property, *mut Handle) -> Status;
    ov_compiled_model_free: fn(Handle);
    ov_compiled_model_input_by_name: fn(Handle, *const c_char, *mut Handle) -> Status;
    ov_output_const_port_free: fn(Handle);
    ov_compiled_model_create_infer_request: fn(Handle, *mut Handle) -> Status;
    ov_infer_request_free: fn(Handle);
    ov_infer_request_set_tensor: fn(Handle, *const c_char, Handle) -> Status;
    ov_infer_request_get_tensor: fn(Handle, *const c_char, *mut Handle) -> Status;
    ov_infer_request_infer: fn(Handle) -> Status;
    ov_infer_request_cancel: fn(Handle) -> Status;
    ov_infer_request_get_profiling_info: fn(Handle, *mut NodeInfos) -> Status;
    ov_profiling_info_list_free: fn(*mut NodeInfos);
    ov_tensor_create: fn(i32, Shape, *mut Handle) -> Status;
    ov_tensor_create_from_host_ptr: fn(i32, Shape, *mut c_void, *mut Handle) -> Status;
    ov_tensor_get_shape: fn(Handle, *mut Shape) -> Status;
    ov_tensor_get_element_type: fn(Handle, *mut i32) -> Status;
    ov_tensor_get_byte_size: fn(Handle, *mut usize) -> Status;
    ov_tensor_data: fn(Handle, *mut *mut c_void) -> Status;
    ov_tensor_free: fn(Handle);
    ov_shape_free: fn(*mut Shape) -> Status;
}

impl Library {
    /// Opens the library, whose version must be of the series that the declarations were made from.
    pub fn open(path: &Path) -> Result<(Self, String), String> {
        let fail = |e: libloading::Error| format!("cannot open `{}`: {e}", path.display());
        // SAFETY: running a library's initialisers is what opening an engine means; the path is the user's own choice.
        let opened = unsafe { libloading::Library::new(path) }.map_err(fail)?;
        let library = Self::look_up(&opened).map_err(fail)?;
        // Closing it would pull the code from under threads of its own.
        std::mem::forget(opened);
        let version = library.version().map_err(|e| format!("cannot open `{}`: {e}", path.display()))?;
        if !version.starts_with("2026.") && !version.starts_with("2025.") {
            return Err(format!("`{}` is OpenVINO {version}, expected 2025 or 2026", path.display()));
        }
        Ok((library, version))
    }

    /// Turns a status into a result, with the library's last message.
    pub fn status(&self, status: Status) -> Result<(), EngineError> {
        let kind = match status {
            0 => return Ok(()),
            NOT_IMPLEMENTED => ErrorKind::Unsupported,
            PARAMETER_MISMATCH => ErrorKind::InvalidInput,
            INFER_CANCELLED => ErrorKind::Cancelled,
            _ => ErrorKind::Failed,
        };
        // SAFETY: the message is zero-terminated and belongs to the caller until it is given back.
        let text = unsafe {
            let text = (self.ov_get_last_err_msg)();
            if text.is_null() {
                format!("status {status}")
            } else {
                let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
                (self.ov_free)(text);
                owned
            }
        };
        Err(error(kind, shortened(&text)))
    }

    fn version(&self) -> Result<String, EngineError> {
        let mut version = Version { build: ptr::null(), description: ptr::null() };
        let raw = ptr::from_mut(&mut version).cast();
        // SAFETY: the struct has the layout of the header, and is given back after it is read.
        unsafe {
            self.status((self.ov_get_openvino_version)(raw))?;
            let text = CStr::from_ptr(version.build).to_string_lossy().into_owned();
            (self.ov_version_free)(raw);
            Ok(text.split('-').next().unwrap_or_default().to_owned())
        }
    }

    pub fn core(&self) -> Result<Handle, EngineError> {
        let mut core = ptr::null_mut();
        // SAFETY: an out pointer.
        self.status(unsafe { (self.ov_core_create)(&mut core) })?;
        Ok(core)
    }

    /// Names of the devices that the library can use here.
    pub fn devices(&self, core: Handle) -> Result<Vec<String>, EngineError> {
        let mut devices = Devices { names: ptr::null_mut(), size: 0 };
        let raw = ptr::from_mut(&mut devices).cast();
        // SAFETY: the struct has the layout of the header, and is given back after it is read.
        unsafe {
            self.status((self.ov_core_get_available_devices)(core, raw))?;
            let names = (0..devices.size).map(|i| CStr::from_ptr(*devices.names.add(i)).to_string_lossy().into_owned());
            let names = names.collect();
            (self.ov_available_devices_free)(raw);
            Ok(names)
        }
    }
}

/// The library reports where in its own source it failed; callers want the reason.
fn shortened(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| {
        let source = line.starts_with("Exception from ") || line.starts_with("Check '") || line.starts_with("Stack");
        !line.is_empty() && !source
    });
    let reason: Vec<&str> = lines.take(8).collect();
    if reason.is_empty() { text.trim().to_owned() } else { reason.join("; ") }
}

pub(super) fn c_string(text: &str) -> Result<CString, EngineError> {
    CString::new(text).map_err(|_| error(ErrorKind::InvalidInput, "a name holds a zero byte"))
}

/// `ov_element_type_e` by element type; none for those without a counterpart or a use.
pub(super) fn element_type(dtype: DataType) -> Option<i32> {
    Some(match dtype {
        DataType::Bool => 1,
        DataType::BFloat16 => 2,
        DataType::Float16 => 3,
        DataType::Float32 => 4,
        DataType::Float64 => 5,
        DataType::Int8 => 7,
        DataType::Int16 => 8,
        DataType::Int32 => 9,
        DataType::Int64 => 10,
        DataType::UInt8 => 16,
        DataType::UInt16 => 17,
        DataType::UInt32 => 18,
        DataType::UInt64 => 19,
        _ => return None,
    })
}
