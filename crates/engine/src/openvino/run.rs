//! Runs of a compiled model: each takes a request from those that are idle.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    ptr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use edgeward_graph::Tensor;

use super::{
    NAME,
    library::{NodeInfos, element_type},
    owned::Owned,
};
use crate::{
    Cancel, EngineError, NodeTime, Outputs, Profile, RunOptions, Session, TensorInfo,
    cancel::{self, Interrupt},
    check,
    estimate::Estimate,
};

/// A compiled model with the requests that run it.
pub(super) struct OpenVinoRun {
    pub compiled: Owned,
    pub idle: Mutex<Vec<Arc<Request>>>,
    pub inputs: Vec<TensorInfo>,
    pub outputs: Vec<TensorInfo>,
    pub input_names: Vec<CString>,
    /// False for inputs on which no output depends: the library has dropped them.
    pub used: Vec<bool>,
    pub output_names: Vec<CString>,
    /// True where every shape is known before a run. Else the library infers shapes along with a run, and one that is
    /// ended half-way leaves it with those of half a run: the next run fails. Such runs are not ended.
    pub fixed: bool,
    pub profile: Option<Mutex<(u64, HashMap<String, NodeTime>)>>,
    pub estimate: Estimate,
}

/// One run at a time, which any thread may end.
pub(super) struct Request(Owned);

impl Interrupt for Request {
    fn interrupt(&self) {
        let library = &self.0.shared.library;
        // SAFETY: the request lives; the library allows this from any thread while it runs.
        if let Err(error) = library.status(unsafe { (library.ov_infer_request_cancel)(self.0.handle) }) {
            tracing::warn!(%error, "a run is not ended");
        }
    }
}

impl Request {
    fn tensor(&self, name: &CStr) -> Result<Owned, EngineError> {
        // SAFETY: an out pointer and a zero-terminated name.
        Owned::new(&self.0.shared, self.0.shared.library.ov_tensor_free, |l, out| unsafe {
            (l.ov_infer_request_get_tensor)(self.0.handle, name.as_ptr(), out)
        })
    }

    fn set_tensor(&self, name: &CStr, tensor: &Owned) -> Result<(), EngineError> {
        let library = &self.0.shared.library;
        // SAFETY: request and tensor are ours, the name is zero-terminated.
        library.status(unsafe { (library.ov_infer_request_set_tensor)(self.0.handle, name.as_ptr(), tensor.handle) })
    }
}

/// Outputs that are smaller together are copied: to have them written into a caller's buffer costs as much as copying
/// this many bytes, as measured on an EPYC Zen 4.
const IN_PLACE_BYTES_MIN: usize = 256 << 10;

/// An output that a run writes into a caller's buffer.
struct Target<'a> {
    name: &'a CStr,
    shape: Vec<usize>,
    buffer: *mut u8,
    over: Owned,
}

impl OpenVinoRun {
    fn request(&self) -> Result<Arc<Request>, EngineError> {
        if let Some(idle) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(idle);
        }
        let shared = &self.compiled.shared;
        // SAFETY: an out pointer.
        let made = Owned::new(shared, shared.library.ov_infer_request_free, |l, out| unsafe {
            (l.ov_compiled_model_create_infer_request)(self.compiled.handle, out)
        });
        Ok(Arc::new(Request(made?)))
    }

    /// For requests whose run ended well. Another is not used again: what state it is in is not documented.
    fn give_back(&self, request: Arc<Request>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }

    fn infer(&self, request: &Arc<Request>, given: &[&Tensor], cancel: Option<&Cancel>) -> Result<(), EngineError> {
        let (shared, library) = (&request.0.shared, &request.0.shared.library);
        let used = self.input_names.iter().zip(given).zip(&self.used).filter(|(_, used)| **used);
        let tensors = used.map(|((name, tensor), _)| Ok((name, Owned::tensor(shared, tensor)?)));
        let tensors = tensors.collect::<Result<Vec<_>, EngineError>>()?;
        tensors.iter().try_for_each(|(name, tensor)| request.set_tensor(name, tensor))?;
        // One that is cancelled before the library takes note of the run is ended too late, by the check after it.
        let _under_way = match cancel.filter(|_| self.fixed) {
            Some(cancel) => Some(cancel.start(request.clone()).ok_or_else(|| cancel::cancelled(NAME))?),
            None => None,
        };
        // SAFETY: the request runs for this thread alone.
        let ran = library.status(unsafe { (library.ov_infer_request_infer)(request.0.handle) });
        cancel::check(NAME, cancel)?;
        ran?;
        self.profile.as_ref().map_or(Ok(()), |profile| self.record(request, profile))
    }

    fn read(&self, request: &Request, wanted: &[usize]) -> Result<Outputs, EngineError> {
        let outputs = wanted.iter().filter_map(|&i| Some((self.output_names.get(i)?, self.outputs.get(i)?)));
        outputs.map(|(name, info)| request.tensor(name)?.read(info.dtype)).collect()
    }

    /// The outputs that are to go into `buffers`; none where that cannot be: a shape is not known ahead, or a buffer
    /// lies askew, is empty or of another length; nor where it does not pay.
    fn targets(
        &self,
        given: &[&Tensor],
        wanted: &[usize],
        buffers: &mut [&mut [u8]],
    ) -> Result<Option<Vec<Target<'_>>>, EngineError> {
        let few = buffers.iter().map(|buffer| buffer.len()).sum::<usize>() < IN_PLACE_BYTES_MIN;
        if few || !check::one_buffer_each(wanted, buffers) {
            return Ok(None);
        }
        let mut targets = Vec::with_capacity(wanted.len());
        for (&index, buffer) in wanted.iter().zip(buffers) {
            let (Some(info), Some(name)) = (self.outputs.get(index), self.output_names.get(index)) else {
                return Ok(None);
            };
            let Some(shape) = check::shape_ahead(info, &self.inputs, given) else { return Ok(None) };
            let Some(kind) = element_type(info.dtype) else { return Ok(None) };
            if !check::holds(buffer, info.dtype, &shape) {
                return Ok(None);
            }
            // The targets go before the caller gets its buffers back, and the request forgets them in `put_back`.
            let over = Owned::over(&self.compiled.shared, kind, &shape, buffer.as_mut_ptr())?;
            targets.push(Target { name, shape, buffer: buffer.as_mut_ptr(), over });
        }
        Ok(Some(targets))
    }

    /// Runs with the caller's buffers as the outputs' memory; false where an output came to lie elsewhere or has
    /// another shape than the model declares.
    fn run_in_place(
        &self,
        given: &[&Tensor],
        cancel: Option<&Cancel>,
        targets: &[Target<'_>],
    ) -> Result<bool, EngineError> {
        let request = self.request()?;
        // A request that goes back must not know the caller's memory any more; one that fails goes away.
        let own = targets.iter().map(|t| request.tensor(t.name)).collect::<Result<Vec<_>, _>>()?;
        targets.iter().try_for_each(|t| request.set_tensor(t.name, &t.over))?;
        self.infer(&request, given, cancel)?;
        let lies = |t: &Target<'_>| {
            let made = request.tensor(t.name)?;
            Ok(made.data()? == t.buffer && made.dims(t.shape.iter().product::<usize>() == 1)? == t.shape)
        };
        let all = targets.iter().map(lies).collect::<Result<Vec<bool>, EngineError>>()?.into_iter().all(|lies| lies);
        targets.iter().zip(&own).try_for_each(|(t, own)| request.set_tensor(t.name, own))?;
        self.give_back(request);
        Ok(all)
    }

    fn record(&self, request: &Request, profile: &Mutex<(u64, HashMap<String, NodeTime>)>) -> Result<(), EngineError> {
        let library = &request.0.shared.library;
        let mut list = NodeInfos { infos: ptr::null_mut(), size: 0 };
        // SAFETY: the list has the layout of the header, its texts are zero-terminated, and it is given back once read.
        unsafe {
            library.status((library.ov_infer_request_get_profiling_info)(request.0.handle, &mut list))?;
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
        self.estimate.check(&self.inputs, &given)?;
        let request = self.request()?;
        self.infer(&request, &given, options.cancel)?;
        let outputs = self.read(&request, &wanted)?;
        self.give_back(request);
        Ok(outputs)
    }

    fn run_into(
        &self,
        inputs: &[(&str, &Tensor)],
        options: RunOptions<'_>,
        buffers: &mut [&mut [u8]],
    ) -> Result<Vec<Vec<usize>>, EngineError> {
        let (given, wanted) = check::request(NAME, (&self.inputs, &self.outputs), inputs, &options)?;
        self.estimate.check(&self.inputs, &given)?;
        if let Some(targets) = self.targets(&given, &wanted, buffers)? {
            // What the library refuses of a buffer (the model may declare what is not so) it says in many ways, so that
            // any failure is left to the run with memory of its own.
            if self.run_in_place(&given, options.cancel, &targets).unwrap_or(false) {
                return Ok(targets.into_iter().map(|target| target.shape).collect());
            }
        }
        check::copy_out(NAME, &self.run(inputs, options)?, buffers)
    }

    fn profile(&self) -> Option<Profile> {
        let recorded = self.profile.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let mut nodes: Vec<NodeTime> = recorded.1.values().cloned().collect();
        nodes.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.name.cmp(&b.name)));
        Some(Profile { runs: recorded.0, nodes })
    }
}
