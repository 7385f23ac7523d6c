//! Between the C interface and kernels: declares operators, makes kernels of nodes, and keeps errors and panics on this side.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ort_sys::{
    ONNXTensorElementDataType as Element, OrtApi, OrtCustomOp, OrtCustomOpDomain,
    OrtCustomOpInputOutputCharacteristic as Characteristic, OrtErrorCode, OrtKernelContext, OrtKernelInfo, OrtMemType,
    OrtSessionOptions, OrtStatusPtr,
};

use super::{DOMAIN, Kernel, Port, Run, Spec, available, specs};
use crate::{
    EngineError,
    onnxruntime::{Runtime, call},
};

/// The domain as sessions are told of it; null where the operators cannot be used. It lives as long as the library.
///
/// Under a lock, for the runtime looks whether it knows a domain and notes it in two steps: of two sessions made at once,
/// one fails.
pub(in crate::onnxruntime) struct Domain(Mutex<Pointer>);

struct Pointer(*mut OrtCustomOpDomain);

// SAFETY: the runtime takes the domain from any thread, and nobody changes it once it is declared.
unsafe impl Send for Pointer {}

/// While it is held, no other session is told of the domain.
pub(in crate::onnxruntime) struct Adding<'d> {
    _alone: MutexGuard<'d, Pointer>,
}

impl Domain {
    /// None, until [`Domain::register`].
    pub(in crate::onnxruntime) fn none() -> Self {
        Self(Mutex::new(Pointer(ptr::null_mut())))
    }

    /// Declares every operator, where they can be used.
    pub(in crate::onnxruntime) fn register(runtime: &Runtime) -> Result<Self, EngineError> {
        if !available() {
            return Ok(Self::none());
        }
        let mut domain = ptr::null_mut();
        call!(runtime, CreateCustomOpDomain(DOMAIN.as_ptr(), &mut domain))?;
        for spec in specs() {
            let declared: &'static Declared = Box::leak(Box::new(Declared { functions: functions(), spec }));
            call!(runtime, CustomOpDomain_Add(domain, &declared.functions))?;
        }
        Ok(Self(Mutex::new(Pointer(domain))))
    }

    /// Lets the session of these options use the operators; it must be made before the result is dropped.
    pub(in crate::onnxruntime) fn add(
        &self,
        runtime: &Runtime,
        options: *mut OrtSessionOptions,
    ) -> Result<Adding<'_>, EngineError> {
        let domain = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !domain.0.is_null() {
            call!(runtime, AddCustomOpDomain(options, domain.0))?;
        }
        Ok(Adding { _alone: domain })
    }
}

/// An operator as the runtime sees it, and what its functions need.
#[repr(C)]
struct Declared {
    /// First, so that a pointer to it is a pointer to the whole.
    functions: OrtCustomOp,
    spec: &'static Spec,
}

/// A node's kernel.
struct Node {
    api: &'static OrtApi,
    name: String,
    kernel: Box<dyn Kernel>,
}

fn functions() -> OrtCustomOp {
    OrtCustomOp {
        version: ort_sys::ORT_API_VERSION,
        CreateKernel: None,
        GetName: Some(name),
        GetExecutionProviderType: Some(provider),
        GetInputType: Some(input_type),
        GetInputTypeCount: Some(input_count),
        GetOutputType: Some(output_type),
        GetOutputTypeCount: Some(output_count),
        KernelCompute: None,
        KernelDestroy: Some(destroy),
        GetInputCharacteristic: Some(input_characteristic),
        GetOutputCharacteristic: Some(output_characteristic),
        GetInputMemoryType: Some(memory_type),
        GetVariadicInputMinArity: Some(arity),
        GetVariadicInputHomogeneity: Some(arity),
        GetVariadicOutputMinArity: Some(arity),
        GetVariadicOutputHomogeneity: Some(arity),
        CreateKernelV2: Some(create),
        KernelComputeV2: Some(compute),
        InferOutputShapeFn: None,
        GetStartVersion: Some(version),
        GetEndVersion: Some(version),
        GetMayInplace: None,
        ReleaseMayInplace: None,
        GetAliasMap: None,
        ReleaseAliasMap: None,
    }
}

fn spec(op: *const OrtCustomOp) -> &'static Spec {
    // SAFETY: the runtime passes what was registered, the first field of a `Declared` that is never freed.
    unsafe { (*op.cast::<Declared>()).spec }
}

unsafe extern "system" fn name(op: *const OrtCustomOp) -> *const c_char {
    spec(op).name.as_ptr()
}

/// Null is the processor.
unsafe extern "system" fn provider(_: *const OrtCustomOp) -> *const c_char {
    ptr::null()
}

fn element(ports: &[Port], index: usize) -> Element {
    match ports.get(index) {
        Some(Port::Indices) => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        _ => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
    }
}

unsafe extern "system" fn input_type(op: *const OrtCustomOp, index: usize) -> Element {
    element(spec(op).inputs, index)
}

unsafe extern "system" fn output_type(op: *const OrtCustomOp, index: usize) -> Element {
    element(spec(op).outputs, index)
}

unsafe extern "system" fn input_count(op: *const OrtCustomOp) -> usize {
    spec(op).inputs.len()
}

unsafe extern "system" fn output_count(op: *const OrtCustomOp) -> usize {
    spec(op).outputs.len()
}

fn characteristic(ports: &[Port], index: usize) -> Characteristic {
    match ports.get(index) {
        Some(Port::Optional) => Characteristic::INPUT_OUTPUT_OPTIONAL,
        _ => Characteristic::INPUT_OUTPUT_REQUIRED,
    }
}

unsafe extern "system" fn input_characteristic(op: *const OrtCustomOp, index: usize) -> Characteristic {
    characteristic(spec(op).inputs, index)
}

unsafe extern "system" fn output_characteristic(op: *const OrtCustomOp, index: usize) -> Characteristic {
    characteristic(spec(op).outputs, index)
}

unsafe extern "system" fn memory_type(_: *const OrtCustomOp, _: usize) -> OrtMemType {
    OrtMemType::OrtMemTypeDefault
}

/// Nothing is variadic; the runtime asks all the same.
unsafe extern "system" fn arity(_: *const OrtCustomOp) -> c_int {
    1
}

unsafe extern "system" fn version(_: *const OrtCustomOp) -> c_int {
    1
}

unsafe extern "system" fn create(
    op: *const OrtCustomOp,
    api: *const OrtApi,
    info: *const OrtKernelInfo,
    kernel: *mut *mut c_void,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes its own table, which is static.
    let api: &'static OrtApi = unsafe { &*api };
    let attributes = Attributes { api, info, _node: std::marker::PhantomData };
    let spec = spec(op);
    let name = format!("`{}` (node `{}`)", spec.name.to_string_lossy(), attributes.node());
    let made = guarded(|| (spec.make)(&attributes));
    status(
        api,
        &name.clone(),
        made.map(|made| {
            let node = Box::into_raw(Box::new(Node { api, name, kernel: made }));
            // SAFETY: the place for the result, which `destroy` gets back.
            unsafe { *kernel = node.cast() };
        }),
    )
}

unsafe extern "system" fn compute(kernel: *mut c_void, context: *mut OrtKernelContext) -> OrtStatusPtr {
    // SAFETY: made by `create`, and destroyed after the last run. Runs overlap, so it is only read.
    let node = unsafe { &*kernel.cast::<Node>() };
    // SAFETY: the context is this run's; operators are registered where the processor has what they need.
    status(node.api, &node.name, guarded(|| unsafe { node.kernel.run(&Run::new(node.api, context)) }))
}

unsafe extern "system" fn destroy(kernel: *mut c_void) {
    if !kernel.is_null() {
        // SAFETY: made by `create`; the runtime destroys it once.
        drop(unsafe { Box::from_raw(kernel.cast::<Node>()) });
    }
}

/// A panic must not cross into C.
fn guarded<R>(work: impl FnOnce() -> Result<R, String>) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("failed inside; this is a defect".to_owned()))
}

fn status(api: &OrtApi, name: &str, result: Result<(), String>) -> OrtStatusPtr {
    let Err(text) = result else { return OrtStatusPtr(ptr::null_mut()) };
    let text = CString::new(format!("{name}: {text}").replace('\0', " ")).unwrap_or_default();
    // SAFETY: the text is copied.
    unsafe { (api.CreateStatus)(OrtErrorCode::ORT_INVALID_ARGUMENT, text.as_ptr()) }
}

/// Attributes of a node.
pub(super) struct Attributes<'a> {
    api: &'static OrtApi,
    info: *const OrtKernelInfo,
    _node: std::marker::PhantomData<&'a OrtKernelInfo>,
}

impl Attributes<'_> {
    fn found(&self, status: OrtStatusPtr) -> bool {
        if status.0.is_null() {
            return true;
        }
        // SAFETY: made by this library, and not used after.
        unsafe { (self.api.ReleaseStatus)(status.0) };
        false
    }

    fn node(&self) -> String {
        let mut text = [0u8; 256];
        let mut length = text.len();
        // SAFETY: the call writes at most `length` bytes, the last a zero.
        let found = unsafe { (self.api.KernelInfo_GetNodeName)(self.info, text.as_mut_ptr().cast(), &mut length) };
        if !self.found(found) {
            return String::new();
        }
        CStr::from_bytes_until_nul(&text).map(|t| t.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Whole numbers; none where there are none.
    fn maybe_ints(&self, name: &CStr) -> Option<Vec<i64>> {
        let read = |values: *mut i64, count: &mut usize| {
            // SAFETY: without a place for them, the call only counts; else it writes at most `count` numbers.
            let status =
                unsafe { (self.api.KernelInfoGetAttributeArray_int64)(self.info, name.as_ptr(), values, count) };
            self.found(status)
        };
        let mut count = 0;
        if !read(ptr::null_mut(), &mut count) {
            return None;
        }
        let mut values = vec![0; count];
        read(values.as_mut_ptr(), &mut count).then_some(values)
    }

    /// The number, or the error where the attribute is there and of another type.
    fn of_type<T>(&self, name: &CStr, found: Option<T>, what: &str) -> Result<Option<T>, String> {
        if found.is_some() {
            return Ok(found);
        }
        let (mut whole, mut fraction, mut count, mut length) = (0, 0.0, 0, 0);
        // SAFETY: places for single numbers; without places for lists and texts, the calls only count.
        let there = unsafe {
            let (info, name) = (self.info, name.as_ptr());
            [
                (self.api.KernelInfoGetAttribute_int64)(info, name, &mut whole),
                (self.api.KernelInfoGetAttribute_float)(info, name, &mut fraction),
                (self.api.KernelInfoGetAttributeArray_int64)(info, name, ptr::null_mut(), &mut count),
                (self.api.KernelInfoGetAttributeArray_float)(info, name, ptr::null_mut(), &mut count),
                (self.api.KernelInfoGetAttribute_string)(info, name, ptr::null_mut(), &mut length),
            ]
        };
        if there.map(|status| self.found(status)).contains(&true) {
            return Err(format!("the attribute {name:?} must be {what}"));
        }
        Ok(None)
    }

    /// A number; none where it is missing.
    fn maybe_float(&self, name: &CStr) -> Result<Option<f32>, String> {
        let mut value = 0.0;
        // SAFETY: the name is a C string and the place takes the value.
        let status = unsafe { (self.api.KernelInfoGetAttribute_float)(self.info, name.as_ptr(), &mut value) };
        self.of_type(name, self.found(status).then_some(value), "a float")
    }

    /// A number that must be there.
    pub(super) fn float(&self, name: &CStr) -> Result<f32, String> {
        self.maybe_float(name)?.ok_or_else(|| format!("the attribute {name:?} is missing"))
    }

    /// A number, or `default` where it is missing.
    pub(super) fn float_or(&self, name: &CStr, default: f32) -> Result<f32, String> {
        Ok(self.maybe_float(name)?.unwrap_or(default))
    }

    /// A whole number of at least `least`; none where it is missing.
    fn maybe_int(&self, name: &CStr, least: usize) -> Result<Option<usize>, String> {
        let mut value = 0;
        // SAFETY: the name is a C string and the place takes the value.
        let status = unsafe { (self.api.KernelInfoGetAttribute_int64)(self.info, name.as_ptr(), &mut value) };
        let found = self.found(status).then_some(value);
        let Some(value) = self.of_type(name, found, "a whole number")? else { return Ok(None) };
        let value = usize::try_from(value).ok().filter(|&v| v >= least).map(Some);
        value.ok_or_else(|| format!("the attribute {name:?} must be a whole number, at least {least}"))
    }

    /// A size that must be there, at least 1.
    pub(super) fn size(&self, name: &CStr) -> Result<usize, String> {
        self.maybe_int(name, 1)?.ok_or_else(|| format!("the attribute {name:?} is missing"))
    }

    /// A size of at least 1, or 1 where it is missing.
    pub(super) fn size_or_one(&self, name: &CStr) -> Result<usize, String> {
        Ok(self.maybe_int(name, 1)?.unwrap_or(1))
    }

    /// True where the number is not 0; false where it is missing.
    pub(super) fn flag(&self, name: &CStr) -> Result<bool, String> {
        Ok(self.maybe_int(name, 0)?.unwrap_or(0) != 0)
    }

    /// Whole numbers from `least` to a million, or `default` where they are missing and there is one.
    pub(super) fn ints<const COUNT: usize>(
        &self,
        name: &CStr,
        least: usize,
        default: Option<[usize; COUNT]>,
    ) -> Result<[usize; COUNT], String> {
        let Some(given) = self.of_type(name, self.maybe_ints(name), "whole numbers")? else {
            return default.ok_or_else(|| format!("the attribute {name:?} must be {COUNT} whole numbers"));
        };
        let fit = |v: &i64| usize::try_from(*v).ok().filter(|v| (least..=1_000_000).contains(v));
        let fit =
            given.iter().map(fit).collect::<Option<Vec<_>>>().and_then(|all| <[usize; COUNT]>::try_from(all).ok());
        fit.ok_or_else(|| {
            format!("the attribute {name:?} is {given:?}; it must be {COUNT} whole numbers from {least} to a million")
        })
    }
}
