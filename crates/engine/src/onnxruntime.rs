//! ONNX Runtime, opened at run time, by its C interface.
//!
//! Inputs are used where they lie and outputs are handed on without a copy: a tensor's bytes keep the runtime's value
//! alive. Runs overlap, as the C interface allows; the safe Rust wrapper does not, which is why this room speaks C.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    ptr,
    sync::Arc,
};

use edgeward_graph::{DataType, Limits, Tensor};
use ort_sys::{GraphOptimizationLevel, OrtApi, OrtApiBase, OrtEnv, OrtLoggingLevel, OrtSession, OrtSessionOptions};

use crate::{
    Cancel, Engine, EngineError, EngineInfo, ErrorKind, Outputs, Profile, RunOptions, Session, SessionOptions, Source,
    TensorInfo, cancel, check, source,
};

mod allocator;
mod lower;
#[cfg_attr(not(target_arch = "x86_64"), path = "onnxruntime/no_operators.rs")]
pub(crate) mod operators;
mod profile;
mod provider;
mod terminate;
mod value;

use terminate::Terminate;
use value::Value;

pub(crate) const NAME: &str = "onnxruntime";

/// Calls a function of the C interface and turns its status into a result.
macro_rules! call {
    ($runtime:expr, $function:ident ( $($argument:expr),* $(,)? )) => {
        // SAFETY: pointers come from this library and live as long as their owners in this module; the interface is
        // thread-safe except where an owner hands out `&mut`.
        $runtime.status(unsafe { ($runtime.api.$function)($($argument),*) })
    };
}
use call;

/// The library's function table and its environment.
pub(crate) struct Runtime {
    api: &'static OrtApi,
    env: *mut OrtEnv,
    operators: operators::Domain,
}

// SAFETY: the environment is used read-only after creation, and the interface states that it is thread-safe.
unsafe impl Send for Runtime {}
// SAFETY: as above.
unsafe impl Sync for Runtime {}

impl Runtime {
    fn status(&self, status: ort_sys::OrtStatusPtr) -> Result<(), EngineError> {
        if status.0.is_null() {
            return Ok(());
        }
        // SAFETY: a status that is not null holds a code and a text until it is released here.
        let (code, text) = unsafe {
            let code = (self.api.GetErrorCode)(status.0);
            let text = CStr::from_ptr((self.api.GetErrorMessage)(status.0)).to_string_lossy().into_owned();
            (self.api.ReleaseStatus)(status.0);
            (code, text)
        };
        use ort_sys::OrtErrorCode as Code;
        let kind = match code {
            Code::ORT_NOT_IMPLEMENTED => ErrorKind::Unsupported,
            Code::ORT_INVALID_ARGUMENT => ErrorKind::InvalidInput,
            Code::ORT_INVALID_PROTOBUF | Code::ORT_INVALID_GRAPH | Code::ORT_NO_MODEL | Code::ORT_NO_SUCHFILE => {
                ErrorKind::InvalidModel
            }
            _ => ErrorKind::Failed,
        };
        Err(error(kind, text))
    }
}

fn error(kind: ErrorKind, message: impl Into<String>) -> EngineError {
    EngineError::new(NAME, kind, message)
}

fn c_string(text: impl Into<Vec<u8>>) -> Result<CString, EngineError> {
    CString::new(text).map_err(|_| error(ErrorKind::InvalidInput, "a name holds a zero byte"))
}

/// ONNX Runtime.
pub struct OnnxRuntime {
    runtime: Arc<Runtime>,
    info: EngineInfo,
}

impl OnnxRuntime {
    /// Opens the library. The error says what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, String> {
        let fail = |e: libloading::Error| format!("cannot open `{}`: {e}", path.display());
        // SAFETY: running a library's initialisers is what opening an engine means; the path is the user's own choice.
        let library = unsafe { libloading::Library::new(path) }.map_err(fail)?;
        // SAFETY: the symbol has had this type since the first release.
        let base = unsafe { library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0") };
        // SAFETY: the function has no preconditions; its result is static and holds these two functions.
        let (api, version) = unsafe {
            let base = &*base.map_err(fail)?();
            let version = CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned();
            ((base.GetApi)(ort_sys::ORT_API_VERSION).as_ref(), version)
        };
        let api: &'static OrtApi = api.ok_or_else(|| {
            format!(
                "`{}` is version {version}, too old: 1.{} or newer is needed",
                path.display(),
                ort_sys::ORT_API_VERSION
            )
        })?;
        // The library stays open: its threads and static tables outlive every session.
        std::mem::forget(library);
        let mut runtime = Runtime { api, env: ptr::null_mut(), operators: operators::Domain::none() };
        let name = c"edgeward".as_ptr();
        let mut env = ptr::null_mut();
        let made = call!(runtime, CreateEnv(OrtLoggingLevel::ORT_LOGGING_LEVEL_FATAL, name, &mut env));
        runtime.env = env;
        made.and_then(|()| call!(runtime, DisableTelemetryEvents(runtime.env))).map_err(|e| e.to_string())?;
        allocator::register(&runtime).map_err(|e| e.to_string())?;
        runtime.operators = operators::Domain::register(&runtime).map_err(|e| e.to_string())?;
        let providers = providers(&runtime).map_err(|e| e.to_string())?;
        let info = EngineInfo { version, library: Some(path.to_owned()), providers };
        Ok(Self { runtime: Arc::new(runtime), info })
    }
}

fn providers(runtime: &Runtime) -> Result<Vec<String>, EngineError> {
    let (mut list, mut count): (*mut *mut c_char, i32) = (ptr::null_mut(), 0);
    call!(runtime, GetAvailableProviders(&mut list, &mut count))?;
    // SAFETY: the call above filled `count` zero-terminated names.
    let names = (0..usize::try_from(count).unwrap_or(0))
        .map(|i| unsafe { CStr::from_ptr(*list.add(i)) }.to_string_lossy().into_owned())
        .collect();
    call!(runtime, ReleaseAvailableProviders(list, count))?;
    Ok(names)
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn info(&self) -> EngineInfo {
        self.info.clone()
    }

    fn load(&self, source: &Source, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let model = source::checked(NAME, source, &Limits::default())?;
        let (inputs, outputs) = check::interface(NAME, &model)?;
        // Our own operators compute on the processor.
        let lowered = if options.lower && options.providers.is_empty() { lower::lowered(&model) } else { None };
        let own = lowered.as_ref().unwrap_or(&model).opset_of(operators::domain()).is_some();
        let lowered = lowered.and_then(|model| Some(Source::Bytes(model.to_bytes().ok()?.into())));
        let source = lowered.as_ref().unwrap_or(source);
        let names =
            |infos: &[TensorInfo]| infos.iter().map(|i| c_string(i.name.as_str())).collect::<Result<Vec<_>, _>>();
        let (input_names, output_names) = (names(&inputs)?, names(&outputs)?);
        let profile = options.profile.then(profile::Recorder::new).transpose()?;
        let settings = Settings::new(&self.runtime, options, &self.info, profile.as_ref())?;
        let adding = own.then(|| self.runtime.operators.add(&self.runtime, settings.options)).transpose()?;
        let session = create(&self.runtime, source, &settings)?;
        drop(adding);
        let runtime = self.runtime.clone();
        Ok(Box::new(OrtRun { runtime, session, inputs, outputs, input_names, output_names, profile }))
    }
}

/// Session options, released on drop.
struct Settings<'r> {
    runtime: &'r Runtime,
    options: *mut OrtSessionOptions,
}

impl Drop for Settings<'_> {
    fn drop(&mut self) {
        // SAFETY: created by this library and used by nobody else.
        unsafe { (self.runtime.api.ReleaseSessionOptions)(self.options) }
    }
}

impl<'r> Settings<'r> {
    fn new(
        runtime: &'r Runtime,
        wanted: &SessionOptions,
        info: &EngineInfo,
        profile: Option<&profile::Recorder>,
    ) -> Result<Self, EngineError> {
        let mut this = Self { runtime, options: ptr::null_mut() };
        call!(runtime, CreateSessionOptions(&mut this.options))?;
        let threads = wanted.threads.map_or(0, |n| i32::try_from(n.get()).unwrap_or(i32::MAX));
        call!(runtime, SetIntraOpNumThreads(this.options, threads))?;
        call!(runtime, SetInterOpNumThreads(this.options, 1))?;
        call!(runtime, SetSessionGraphOptimizationLevel(this.options, GraphOptimizationLevel::ORT_ENABLE_ALL))?;
        // Spinning threads steal the cores from the server's other work; waking them costs microseconds. A training step is
        // a thousand nodes in a row, and nothing else runs beside it.
        this.entry(c"session.intra_op.allow_spinning", if wanted.lower { c"1" } else { c"0" })?;
        call!(runtime, DisableCpuMemArena(this.options))?;
        this.entry(c"session.use_env_allocators", c"1")?;
        if let Some(profile) = profile {
            let prefix = c_string(profile.prefix().as_os_str().as_bytes())?;
            call!(runtime, EnableProfiling(this.options, prefix.as_ptr()))?;
        }
        for provider in &wanted.providers {
            provider::add(runtime, this.options, provider, &info.providers)?;
        }
        Ok(this)
    }

    fn entry(&self, key: &CStr, value: &CStr) -> Result<(), EngineError> {
        call!(self.runtime, AddSessionConfigEntry(self.options, key.as_ptr(), value.as_ptr()))
    }
}

fn create(runtime: &Runtime, source: &Source, settings: &Settings<'_>) -> Result<*mut OrtSession, EngineError> {
    let mut session = ptr::null_mut();
    let result = match source {
        Source::File(path) => {
            let path = c_string(path.as_os_str().as_bytes())?;
            call!(runtime, CreateSession(runtime.env, path.as_ptr(), settings.options, &mut session))
        }
        Source::Bytes(bytes) => {
            let data = bytes.as_ptr().cast::<c_void>();
            call!(runtime, CreateSessionFromArray(runtime.env, data, bytes.len(), settings.options, &mut session))
        }
    };
    result.map_err(|e| {
        // Whatever the library's own class: a load that fails on an operator lets the next engine try.
        let lacks = [
            "No Op registered for",
            "is not a registered function/op",
            "NOT_IMPLEMENTED",
            "Could not find an implementation",
            "opset",
        ];
        let kind = match e.kind() {
            ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ if lacks.iter().any(|text| e.message().contains(text)) => ErrorKind::Unsupported,
            _ => ErrorKind::InvalidModel,
        };
        error(kind, e.message())
    })?;
    Ok(session)
}

struct OrtRun {
    runtime: Arc<Runtime>,
    session: *mut OrtSession,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    profile: Option<profile::Recorder>,
}

// SAFETY: `Run` may be called from several threads at once on one session, as the interface states.
unsafe impl Send for OrtRun {}
// SAFETY: as above.
unsafe impl Sync for OrtRun {}

impl Drop for OrtRun {
    fn drop(&mut self) {
        // SAFETY: no run is under way, since a run borrows the session.
        unsafe { (self.runtime.api.ReleaseSession)(self.session) };
    }
}

impl OrtRun {
    fn execute(
        &self,
        given: &[&Tensor],
        wanted: &[usize],
        cancel: Option<&Cancel>,
        results: &mut [*mut ort_sys::OrtValue],
    ) -> Result<(), EngineError> {
        let terminate = cancel.map(|_| Terminate::new(&self.runtime)).transpose()?;
        let values = given.iter().map(|t| Value::of(&self.runtime, t)).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const ort_sys::OrtValue> = values.iter().map(Value::pointer).collect();
        let input_names: Vec<*const c_char> = self.input_names.iter().map(|n| n.as_ptr()).collect();
        let output_names: Vec<*const c_char> =
            wanted.iter().filter_map(|&i| self.output_names.get(i)).map(|n| n.as_ptr()).collect();
        let _under_way = match (cancel, &terminate) {
            (Some(cancel), Some(run)) => Some(cancel.start(run.clone()).ok_or_else(|| cancel::cancelled(NAME))?),
            _ => None,
        };
        let ran = call!(
            self.runtime,
            Run(
                self.session,
                terminate.as_deref().map_or(ptr::null(), Terminate::options),
                input_names.as_ptr(),
                pointers.as_ptr(),
                pointers.len(),
                output_names.as_ptr(),
                output_names.len(),
                results.as_mut_ptr(),
            )
        );
        cancel::check(NAME, cancel)?;
        ran
    }
}

/// What the runtime says where a value given for an output has another shape than the output: by its own inference
/// before the run, or by the operator in it.
const OTHER_SHAPE: [&str; 3] =
    ["invalid dimensions for output", "Invalid rank for output", "shape verification failed"];

impl OrtRun {
    /// Runs with the caller's buffers as the outputs' memory; none, before the run, where that cannot be.
    fn run_in_place(
        &self,
        inputs: &[(&str, &Tensor)],
        options: RunOptions<'_>,
        buffers: &mut [&mut [u8]],
    ) -> Result<Option<Vec<Vec<usize>>>, EngineError> {
        let (given, wanted) = check::request(NAME, (&self.inputs, &self.outputs), inputs, &options)?;
        if !check::one_buffer_each(&wanted, buffers) {
            return Ok(None);
        }
        let (mut values, mut shapes) = (Vec::with_capacity(wanted.len()), Vec::with_capacity(wanted.len()));
        for (info, buffer) in wanted.iter().filter_map(|&i| self.outputs.get(i)).zip(buffers) {
            let Some(shape) = check::shape_ahead(info, &self.inputs, &given) else { return Ok(None) };
            let Some(value) = Value::over(&self.runtime, info.dtype, &shape, buffer)? else { return Ok(None) };
            values.push(value);
            shapes.push(shape);
        }
        let mut targets: Vec<_> = values.iter_mut().map(Value::target).collect();
        self.execute(&given, &wanted, options.cancel, &mut targets)?;
        Ok(Some(shapes))
    }
}

impl Session for OrtRun {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(&self, inputs: &[(&str, &Tensor)], options: RunOptions<'_>) -> Result<Outputs, EngineError> {
        let (given, wanted) = check::request(NAME, (&self.inputs, &self.outputs), inputs, &options)?;
        let mut results = vec![ptr::null_mut(); wanted.len()];
        let ran = self.execute(&given, &wanted, options.cancel, &mut results);
        let values: Vec<Value<'_>> = results.into_iter().map(|v| Value::own(&self.runtime, v)).collect();
        ran?;
        values.into_iter().map(Value::into_tensor).collect()
    }

    fn run_into(
        &self,
        inputs: &[(&str, &Tensor)],
        options: RunOptions<'_>,
        buffers: &mut [&mut [u8]],
    ) -> Result<Vec<Vec<usize>>, EngineError> {
        match self.run_in_place(inputs, options, buffers) {
            Ok(Some(shapes)) => Ok(shapes),
            // The model declares another shape than its output has: the runtime refuses the buffer, not the run.
            Err(e) if !OTHER_SHAPE.iter().any(|text| e.message().contains(text)) => Err(e),
            _ => check::copy_out(NAME, &self.run(inputs, options)?, buffers),
        }
    }

    fn profile(&self) -> Option<Profile> {
        self.profile.as_ref().map(|recorder| recorder.read(&self.runtime, self.session))
    }
}

/// The library that this engine was opened from.
impl OnnxRuntime {
    /// Path of the shared library.
    pub fn library(&self) -> Option<&PathBuf> {
        self.info.library.as_ref()
    }
}

/// ONNX's element types carry the same numbers in the C interface up to float4e2m1.
fn c_type(dtype: DataType) -> Option<ort_sys::ONNXTensorElementDataType> {
    use ort_sys::ONNXTensorElementDataType as C;
    Some(match dtype {
        DataType::Float32 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DataType::UInt8 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DataType::Int8 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DataType::UInt16 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DataType::Int16 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DataType::Int32 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DataType::Int64 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DataType::String => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
        DataType::Bool => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DataType::Float16 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DataType::Float64 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DataType::UInt32 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DataType::UInt64 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DataType::BFloat16 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DataType::Float8E4M3Fn => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN,
        DataType::Float8E4M3Fnuz => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ,
        DataType::Float8E5M2 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2,
        DataType::Float8E5M2Fnuz => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ,
        DataType::UInt4 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4,
        DataType::Int4 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4,
        DataType::Float4E2M1 => C::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT4E2M1,
        _ => return None,
    })
}
