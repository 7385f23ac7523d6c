//! Ending a run of ONNX Runtime's: between two operators, by the options that it was started with.

use std::{ptr, sync::Arc};

use ort_sys::OrtRunOptions;

use super::{Runtime, call};
use crate::{EngineError, cancel::Interrupt};

/// Options of one run, released on drop.
pub(super) struct Terminate {
    runtime: Arc<Runtime>,
    options: *mut OrtRunOptions,
}

// SAFETY: the library documents that a run may be ended from any thread; nothing else is done with the options.
unsafe impl Send for Terminate {}
// SAFETY: as above.
unsafe impl Sync for Terminate {}

impl Drop for Terminate {
    fn drop(&mut self) {
        // SAFETY: this is the only owner, and the run has ended; null is allowed.
        unsafe { (self.runtime.api.ReleaseRunOptions)(self.options) }
    }
}

impl Terminate {
    pub(super) fn new(runtime: &Arc<Runtime>) -> Result<Arc<Self>, EngineError> {
        let mut this = Self { runtime: runtime.clone(), options: ptr::null_mut() };
        call!(runtime, CreateRunOptions(&mut this.options))?;
        Ok(Arc::new(this))
    }

    pub(super) fn options(&self) -> *const OrtRunOptions {
        self.options
    }
}

impl Interrupt for Terminate {
    fn interrupt(&self) {
        if let Err(error) = call!(self.runtime, RunOptionsSetTerminate(self.options)) {
            tracing::warn!(%error, "a run is not ended");
        }
    }
}
