//! OpenVINO, opened at run time, by its C interface.
//!
//! Inputs are used where they lie, and outputs are written into a caller's buffers; without such they are copied, since
//! they belong to a request that runs again. Runs overlap: each takes a request from a pool. The library would compute f32 models in bf16 where the processor can; here it is
//! held to f32, since an engine must not change a model's answers on its own.

use std::{
    ffi::{CStr, CString},
    path::Path,
    sync::{Arc, Mutex},
};

use edgeward_graph::Limits;

use crate::{
    Engine, EngineError, EngineInfo, ErrorKind, Provider, Session, SessionOptions, Source, TensorInfo, check,
    estimate::Estimate, source,
};

mod library;
mod owned;
mod run;

use library::{Handle, Library, Property, c_string, element_type, error};
use owned::Owned;
use run::OpenVinoRun;

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

    /// The device asked for, the first of several, and what it is told.
    fn device<'w>(&self, wanted: &'w [Provider]) -> Result<(CString, Option<&'w Provider>), EngineError> {
        let known = |name: &str| self.info.providers.iter().any(|p| p == name || p.split('.').next() == Some(name));
        if let Some(Provider { name, .. }) = wanted.iter().find(|wanted| !known(&wanted.name)) {
            let text = format!("unknown device `{name}`, this library offers {}", self.info.providers.join(", "));
            return Err(error(ErrorKind::Unsupported, text));
        }
        let first = wanted.first();
        Ok((c_string(first.map_or("CPU", |first| &first.name))?, first))
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
        let graph = source::checked(NAME, source, &Limits::default())?;
        let (inputs, outputs) = check::interface(NAME, &graph)?;
        for info in inputs.iter().chain(&outputs) {
            if element_type(info.dtype).is_none() {
                let text = format!("`{}` is {}, which is not served through OpenVINO", info.name, info.dtype);
                return Err(error(ErrorKind::Unsupported, text));
            }
        }
        let (device, told) = self.device(&options.providers)?;
        let model = Owned::model(&self.shared, source).map_err(refusal)?;
        let compiled = compile(&self.shared, &model, (&device, told), options).map_err(refusal)?;
        let names = |infos: &[TensorInfo]| infos.iter().map(|i| c_string(&i.name)).collect::<Result<Vec<_>, _>>();
        let (input_names, output_names) = (names(&inputs)?, names(&outputs)?);
        let used = input_names.iter().map(|name| uses(&compiled, name)).collect();
        let profile = options.profile.then(Mutex::default);
        let idle = Mutex::default();
        // SAFETY: the model lives; the call reads it.
        let fixed = !unsafe { (self.shared.library.ov_model_is_dynamic)(model.handle) };
        let estimate = Estimate::new(NAME, &graph, |dtype| dtype.byte_len(1) as u64);
        Ok(Box::new(OpenVinoRun {
            compiled,
            idle,
            inputs,
            outputs,
            input_names,
            used,
            output_names,
            fixed,
            profile,
            estimate,
        }))
    }
}

/// Whatever fails while the file is read or compiled is what the engine lacks, since the file itself was checked.
fn refusal(e: EngineError) -> EngineError {
    let broken = e.message().contains("Failed to parse") || e.message().contains("Could not parse");
    error(if broken { ErrorKind::InvalidModel } else { ErrorKind::Unsupported }, e.message())
}

fn compile(
    shared: &Arc<Shared>,
    model: &Owned,
    (device, told): (&CStr, Option<&Provider>),
    options: &SessionOptions,
) -> Result<Owned, EngineError> {
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
    // Set last, so that it wins.
    let told = told.into_iter().flat_map(|told| &told.options);
    settings.extend(told.map(|(key, value)| (key.as_str(), value.clone())));
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
