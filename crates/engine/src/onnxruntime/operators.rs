//! Operators of our own, in the domain `edgeward`, that ONNX Runtime runs among its own.
//!
//! They are for training graphs, where its operators are slowest: weight gradients, BatchNormalization and passes over memory that can
//! be one. `bridge` speaks the C interface, `run` is what a kernel sees of it, `lanes` is the processor's arithmetic; a kernel knows
//! nothing of the first. Which graphs use them is for others to decide, after asking [`available`].
//!
//! Images are *blocked*: [N, C, H, W] is stored as [N, ceil(C/16), H, W, 16]. Spare channels of the last block hold finite rubbish,
//! which no operator lets reach a real channel.

use std::ffi::CStr;

mod bridge;
mod convolution;
mod depthwise;
mod geometry;
mod lanes;
mod layout;
mod mask;
mod normalisation;
mod pool;
mod run;
mod sequence;
mod sweep;
mod update;
mod weight_gradient;
mod weights;

use bridge::Attributes;
pub(super) use bridge::Domain;
use run::Run;

/// The domain's name in models; its version is 1.
const DOMAIN: &CStr = c"edgeward";

/// The domain's name, as models have it.
pub(super) fn domain() -> &'static str {
    DOMAIN.to_str().unwrap_or_default()
}

/// True for the name of an operator of the domain.
pub(super) fn knows(kind: &str) -> bool {
    specs().any(|spec| spec.name.to_str() == Ok(kind))
}

/// True where the operators of the domain `edgeward` can be used. Where not, no session knows them.
pub(crate) fn available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
}

/// What an operator does in a run; made once for each node.
trait Kernel: Send + Sync {
    /// Errors name what does not fit.
    ///
    /// # Safety
    /// The processor must have AVX-512F, as [`available`] says.
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String>;
}

/// An input or output as it is declared.
#[derive(Clone, Copy, PartialEq)]
enum Port {
    /// Float32.
    Floats,
    /// Float32, and may be left out.
    Optional,
    /// Int64.
    Indices,
}

/// An operator as it is declared.
struct Spec {
    name: &'static CStr,
    inputs: &'static [Port],
    outputs: &'static [Port],
    make: fn(&Attributes<'_>) -> Result<Box<dyn Kernel>, String>,
}

/// Every operator of the domain.
fn specs() -> impl Iterator<Item = &'static Spec> {
    [
        layout::SPECS,
        convolution::SPECS,
        weight_gradient::SPECS,
        normalisation::SPECS,
        mask::SPECS,
        pool::SPECS,
        update::SPECS,
        sequence::SPECS,
    ]
    .into_iter()
    .flatten()
}
