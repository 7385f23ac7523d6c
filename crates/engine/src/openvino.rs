//! OpenVINO, opened at run time, by its C interface.
//!
//! Inputs are used where they lie; outputs are copied, since they belong to a request that runs again. Runs overlap:
//! each takes a request from a pool. The library would compute f32 models in bf16 where the processor can; here it is
//! held to f32, since an engine must not change a model's answers on its own.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_void},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    ptr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use edgeward_graph::{DataType, Limits, Tensor};

use crate::{
    Engine, EngineError, EngineInfo, ErrorKind, NodeTime, Outputs, Profile, RunOptions, Session, SessionOptions,
    Source, TensorInfo, check, source,
};

mod library;

use library::{Handle, INVALID_C_PARAM, Library, NodeInfos, Property, Shape, c_string, element_type, error};

pub(crate) use library::NAME;

/// OpenVINO.
pub struct OpenVino {
    shared: Arc<Shared>,
    info: EngineInfo,
}

struct Shared {
    library: Library,
    core: Handle,
}

// SAFETY: the core and compiled models are thread-safe as the library documents; requests have one owner at a time.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl OpenVino {
    /// Opens `libopenvino_c`. The error says what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, String> {
        let (library, version) = Library::open(path)?;
        let core = library.core().map_err(|e| e.to_string())?;
        let providers = library.devices(core).map_err(|e| e.to_string())?;
        let info = EngineInfo { version, library: Some(path.to_owned()), providers };
        Ok(Self { shared: Arc::new(Shared { library, core }), info })
    }

    /// The device asked for; the first that is there of several.
    fn device(&self, wanted: &[String]) -> Result<CString, EngineError> {
        let known = |name: &str| self.info.providers.iter().any(|p| p == name || p.split('.').next() == Some(name));
        if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
            let text = format!("unknown device `{unknown}`, this library offers {}", self.info.providers.join(", "));
            return Err(error(ErrorKind::Unsupported, text));
        }
        c_string(wanted.first().map_or("CPU", String::as_str))
    }
}

impl Engine for OpenVino {
    fn name(&self) -> &'static str {
        NAME
    }

    fn info(&self) -> EngineInfo {
        self.info.clone()
    }

    fn load(&self, source: &Source, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let (inputs, outputs) = check::interface(NAME, &source::checked(NAME, source, &Limits::default())?)?;
        for info in inputs.iter().chain(&outputs) {
            if element_type(info.dtype).is_none() {
                let text = format!("`{}` is {}, which is not served through OpenVINO", info.name, info.dtype);
                return Err(error(ErrorKind::Unsupported, text));
            }
        }
        let device = self.device(&options.providers)?;
        let model = Owned::model(&self.shared, source).map_err(refusal)?;
        let compiled = compile(&self.shared, &model, &device, options).map_err(refusal)?;
        let names = |infos: &[TensorInfo]| infos.iter().map(|i| c_string(&i.name)).collect::<Result<Vec<_>, _>>();
        let (input_names, output_names) = (names(&inputs)?, names(&outputs)?);
        let used = input_names.iter().map(|name| uses(&compiled, name)).collect();
        let profile = options.profile.then(Mutex::default);
        let idle = Mutex::default();
        Ok(Box::new(OpenVinoRun { compiled, idle, inputs, outputs, input_names, used, output_names, profile }))
    }
}

/// Whatever fails while the file is read or compiled is what the engine lacks, since the file itself was checked.
fn refusal(e: EngineError) -> EngineError {
    let broken = e.message().contains("Failed to parse") || e.message().contains("Could not parse");
    error(if broken { ErrorKind::InvalidModel } else { ErrorKind::Unsupported }, e.message())
}

type Free = unsafe extern "C" fn(Handle);

/// A handle that is given back on drop.
struct Owned {
    shared: Arc<Shared>,
    handle: Handle,
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
    fn new(
        shared: &Arc<Shared>,
        free: Free,
        make: impl FnOnce(&Library, *mut Handle) -> i32,
    ) -> Result<Self, EngineError> {
        let mut handle = ptr::null_mut();
        shared.library.status(make(&shared.library, &mut handle))?;
        Ok(Self { shared: shared.clone(), handle, free })
    }

    fn model(shared: &Arc<Shared>, source: &Source) -> Result<Self, EngineError> {
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
    fn tensor(shared: &Arc<Shared>, tensor: &Tensor) -> Result<Self, EngineError> {
        let unsupported = || error(ErrorKind::Unsupported, format!("{} has no counterpart here", tensor.dtype()));
        let dtype = element_type(tensor.dtype()).ok_or_else(unsupported)?;
        let bytes = tensor.raw().ok_or_else(unsupported)?;
        let mut dims: Vec<i64> = tensor.shape().iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
        let shape = Shape { rank: dims.len() as i64, dims: dims.as_mut_ptr() };
        let free = shared.library.ov_tensor_free;
        let aligned = (bytes.as_ptr() as usize).is_multiple_of(tensor.dtype().byte_len(1).max(1));
        if aligned && !bytes.is_empty() {
            let data = bytes.as_ptr().cast_mut().cast::<c_void>();
            // SAFETY: the library reads inputs only; shape and type take just as many bytes as there are.
            return Self::new(shared, free, |l, out| unsafe {
                (l.ov_tensor_create_from_host_ptr)(dtype, shape, data, out)
            });
        }
        // SAFETY: the shape is copied by the call.
        let made = Self::new(shared, free, |l, out| unsafe { (l.ov_tensor_create)(dtype, shape, out) })?;
        if !bytes.is_empty() {
            let data = made.data()?;
            // SAFETY: the library allocated what shape and type take, which is the length of `bytes`.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len()) };
        }
        Ok(made)
    }

    fn data(&self) -> Result<*mut u8, EngineError> {
        let mut data = ptr::null_mut();
        // SAFETY: an out pointer.
        self.shared.library.status(unsafe { (self.shared.library.ov_tensor_data)(self.handle, &mut data) })?;
        Ok(data.cast())
    }

    /// Dimensions of a tensor; `single` where it holds one element.
    fn dims(&self, single: bool) -> Result<Vec<usize>, EngineError> {
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
    fn read(&self, dtype: DataType) -> Result<Tensor, EngineError> {
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

fn compile(shared: &Arc<Shared>, model: &Owned, device: &CStr, options: &SessionOptions) -> Result<Owned, EngineError> {
    let mut settings = vec![("INFERENCE_PRECISION_HINT", "f32".to_owned())];
    if let Some(threads) = options.threads.map(std::num::NonZeroUsize::get).filter(|_| device == c"CPU") {
        // The library counts the threads of all streams together; runs overlap only in streams of their own.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let streams = (cores / threads).max(1);
        settings.push(("NUM_STREAMS", streams.to_string()));
        settings.push(("INFERENCE_NUM_THREADS", (streams * threads).to_string()));
    }
    if options.profile {
        settings.push(("PERF_COUNT", "YES".to_owned()));
    }
    let texts = settings
        .iter()
        .map(|(key, value)| Ok((c_string(key)?, c_string(value)?)))
        .collect::<Result<Vec<_>, EngineError>>()?;
    let properties: Vec<Property> =
        texts.iter().map(|(key, value)| Property { key: key.as_ptr(), value: value.as_ptr().cast() }).collect();
    // SAFETY: all texts are zero-terminated and outlive the call.
    Owned::new(shared, shared.library.ov_compiled_model_free, |l, out| unsafe {
        (l.ov_core_compile_model_props)(
            shared.core,
            model.handle,
            device.as_ptr(),
            properties.len(),
            properties.as_ptr(),
            out,
        )
    })
}

/// True where the compiled model has this input.
fn uses(compiled: &Owned, name: &CStr) -> bool {
    let library = &compiled.shared.library;
    // SAFETY: an out pointer and a zero-terminated name.
    Owned::new(&compiled.shared, library.ov_output_const_port_free, |l, out| unsafe {
        (l.ov_compiled_model_input_by_name)(compiled.handle, name.as_ptr(), out)
    })
    .is_ok()
}

struct OpenVinoRun {
    compiled: Owned,
    idle: Mutex<Vec<Owned>>,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    input_names: Vec<CString>,
    /// False for inputs on which no output depends: the library has dropped them.
    used: Vec<bool>,
    output_names: Vec<CString>,
    profile: Option<Mutex<(u64, HashMap<String, NodeTime>)>>,
}

impl OpenVinoRun {
    fn request(&self) -> Result<Owned, EngineError> {
        if let Some(idle) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(idle);
        }
        let shared = &self.compiled.shared;
        // SAFETY: an out pointer.
        Owned::new(shared, shared.library.ov_infer_request_free, |l, out| unsafe {
            (l.ov_compiled_model_create_infer_request)(self.compiled.handle, out)
        })
    }

    fn run_on(&self, request: &Owned, given: &[&Tensor], wanted: &[usize]) -> Result<Outputs, EngineError> {
        let (shared, library) = (&request.shared, &request.shared.library);
        let used = self.input_names.iter().zip(given).zip(&self.used).filter(|(_, used)| **used);
        let tensors = used.map(|((name, tensor), _)| Ok((name, Owned::tensor(shared, tensor)?)));
        let tensors = tensors.collect::<Result<Vec<_>, EngineError>>()?;
        for (name, tensor) in &tensors {
            // SAFETY: request and tensor are ours, the name is zero-terminated.
            library.status(unsafe {
                (library.ov_infer_request_set_tensor)(request.handle, name.as_ptr(), tensor.handle)
            })?;
        }
        // SAFETY: the request is used by this thread alone.
        library.status(unsafe { (library.ov_infer_request_infer)(request.handle) })?;
        if let Some(profile) = &self.profile {
            self.record(request, profile)?;
        }
        let outputs = wanted.iter().filter_map(|&i| Some((self.output_names.get(i)?, self.outputs.get(i)?)));
        let outputs = outputs.map(|(name, info)| {
            // SAFETY: an out pointer and a zero-terminated name.
            let tensor = Owned::new(shared, library.ov_tensor_free, |l, out| unsafe {
                (l.ov_infer_request_get_tensor)(request.handle, name.as_ptr(), out)
            })?;
            tensor.read(info.dtype)
        });
        outputs.collect()
    }

    fn record(&self, request: &Owned, profile: &Mutex<(u64, HashMap<String, NodeTime>)>) -> Result<(), EngineError> {
        let library = &request.shared.library;
        let mut list = NodeInfos { infos: ptr::null_mut(), size: 0 };
        // SAFETY: the list has the layout of the header, its texts are zero-terminated, and it is given back once read.
        unsafe {
            library.status((library.ov_infer_request_get_profiling_info)(request.handle, &mut list))?;
            let text = |pointer| CStr::from_ptr(pointer).to_string_lossy().into_owned();
            let mut profile = profile.lock().unwrap_or_else(PoisonError::into_inner);
            profile.0 += 1;
            for info in (0..list.size).map(|i| &*list.infos.add(i)).filter(|info| info.status == 2) {
                let name = text(info.node_name);
                let time = profile.1.entry(name.clone()).or_insert_with(|| NodeTime {
                    name,
                    op_type: text(info.node_type),
                    total: Duration::ZERO,
                    count: 0,
                });
                time.total += Duration::from_micros(info.real_us.max(0) as u64);
                time.count += 1;
            }
            (library.ov_profiling_info_list_free)(&mut list);
        }
        Ok(())
    }
}

impl Session for OpenVinoRun {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(&self, inputs: &[(&str, &Tensor)], options: RunOptions<'_>) -> Result<Outputs, EngineError> {
        let (given, wanted) = check::request(NAME, (&self.inputs, &self.outputs), inputs, &options)?;
        let request = self.request()?;
        let outputs = self.run_on(&request, &given, &wanted);
        // A request that failed is not used again: what state it is in is not documented.
        if outputs.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        }
        outputs
    }

    fn run_into(
        &self,
        inputs: &[(&str, &Tensor)],
        options: RunOptions<'_>,
        buffers: &mut [&mut [u8]],
    ) -> Result<Vec<Vec<usize>>, EngineError> {
        check::copy_out(NAME, &self.run(inputs, options)?, buffers)
    }

    fn profile(&self) -> Option<Profile> {
        let recorded = self.profile.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let mut nodes: Vec<NodeTime> = recorded.1.values().cloned().collect();
        nodes.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.name.cmp(&b.name)));
        Some(Profile { runs: recorded.0, nodes })
    }
}
