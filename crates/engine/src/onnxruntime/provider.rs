//! ONNX Runtime's execution providers: which calls add one, and how it takes its options.

use std::{
    ffi::{CString, c_char},
    ptr,
};

use ort_sys::OrtSessionOptions;

use super::{Runtime, c_string, call, error};
use crate::{EngineError, ErrorKind, Provider};

/// What the library appends to the short name.
const SUFFIX: &str = "ExecutionProvider";
const CPU: &str = "CPUExecutionProvider";

/// Adds a provider to the options of a session, by the name that `engine list` shows, with or without its ending.
pub(super) fn add(
    runtime: &Runtime,
    session: *mut OrtSessionOptions,
    provider: &Provider,
    offered: &[String],
) -> Result<(), EngineError> {
    let given = provider.name.as_str();
    let known = offered.iter().find(|name| *name == given || name.strip_suffix(SUFFIX) == Some(given));
    let Some(name) = known.map(String::as_str) else {
        let text = format!("unknown provider `{given}`, this library offers {}", offered.join(", "));
        return Err(error(ErrorKind::Unsupported, text));
    };
    let options = Options::new(provider)?;
    let added = match name {
        CPU if provider.options.is_empty() => Ok(()),
        CPU => Err(error(ErrorKind::Unsupported, "it takes no options; threads are set by `--threads`")),
        "CUDAExecutionProvider" => cuda(runtime, session, &options),
        "TensorrtExecutionProvider" => tensorrt(runtime, session, &options),
        _ => {
            let short = c_string(short(name))?;
            let (keys, values) = (options.keys.as_ptr(), options.values.as_ptr());
            call!(
                runtime,
                SessionOptionsAppendExecutionProvider(session, short.as_ptr(), keys, values, options.keys.len())
            )
        }
    };
    added.map_err(|e| {
        // The library often says no more than that it cannot; what it was told is the first thing to look at.
        let told: Vec<String> = provider.options.iter().map(|(key, value)| format!("`{key}={value}`")).collect();
        let told = if told.is_empty() { String::new() } else { format!(" with {}", told.join(", ")) };
        error(ErrorKind::Unsupported, format!("provider `{name}`{told}: {}", e.message()))
    })
}

/// The generic call has names of its own for some.
fn short(name: &str) -> &str {
    match name.strip_suffix(SUFFIX).unwrap_or(name) {
        "Azure" => "AZURE",
        "Xnnpack" => "XNNPACK",
        "Dml" => "DML",
        other => other,
    }
}

/// Keys and values as the library takes them.
struct Options {
    keys: Vec<*const c_char>,
    values: Vec<*const c_char>,
    _texts: Vec<CString>,
}

impl Options {
    fn new(provider: &Provider) -> Result<Self, EngineError> {
        let of = |text: &String| c_string(text.as_str());
        let (keys, values): (Vec<_>, Vec<_>) = provider.options.iter().unzip();
        let keys = keys.into_iter().map(of).collect::<Result<Vec<_>, _>>()?;
        let values = values.into_iter().map(of).collect::<Result<Vec<_>, _>>()?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect();
        Ok(Self { keys: pointers(&keys), values: pointers(&values), _texts: keys.into_iter().chain(values).collect() })
    }
}

fn cuda(runtime: &Runtime, session: *mut OrtSessionOptions, options: &Options) -> Result<(), EngineError> {
    let (keys, values) = (options.keys.as_ptr(), options.values.as_ptr());
    let mut made = ptr::null_mut();
    call!(runtime, CreateCUDAProviderOptions(&mut made))?;
    let added = call!(runtime, UpdateCUDAProviderOptions(made, keys, values, options.keys.len()))
        .and_then(|()| call!(runtime, SessionOptionsAppendExecutionProvider_CUDA_V2(session, made)));
    // SAFETY: created above, and copied by the session's options.
    unsafe { (runtime.api.ReleaseCUDAProviderOptions)(made) };
    added
}

fn tensorrt(runtime: &Runtime, session: *mut OrtSessionOptions, options: &Options) -> Result<(), EngineError> {
    let (keys, values) = (options.keys.as_ptr(), options.values.as_ptr());
    let mut made = ptr::null_mut();
    call!(runtime, CreateTensorRTProviderOptions(&mut made))?;
    let added = call!(runtime, UpdateTensorRTProviderOptions(made, keys, values, options.keys.len()))
        .and_then(|()| call!(runtime, SessionOptionsAppendExecutionProvider_TensorRT_V2(session, made)));
    // SAFETY: created above, and copied by the session's options.
    unsafe { (runtime.api.ReleaseTensorRTProviderOptions)(made) };
    added
}
