//! Operators of our own, in the domain `edgeward`, that ONNX Runtime runs among its own.
//!
//! They are for training graphs, where its operators are slowest: weight gradients, BatchNormalization and passes over memory that can
//! be one. `bridge` speaks the C interface, `run` is what a kernel sees of it, `lanes` is the processor's arithmetic; a kernel knows
//! nothing of the first. Which graphs use them is for others to decide, after asking [`available`].
//!
//! Images are *blocked*: [N, C, H, W] is stored as [N, ceil(C/16), H, W, 16]. Spare channels of the last block hold finite rubbish,
//! which no operator lets reach a real channel.
//!
//! | operator | inputs | attributes | outputs |
//! |---|---|---|---|
//! | `ToBlocked` | plain x | | blocked |
//! | `FromBlocked` | x | `channels` | plain |
//! | `Conv` | x, plain w, bias? | `channels` of x, `strides`, `pads`, `dilations`, `group` (1, or all channels), `plain` (1: x is plain) | y |
//! | `ConvWeightGradient` | x, dy | those, `kernel_shape`, `outputs`, `each_image` (1: one for each, in one group) | plain dw |
//! | `ConvInputGradient` | dy, plain w | those of `Conv`, `size` of x | dx, plain where x is |
//! | `BatchNorm` | x, scale, bias, addend? | `epsilon`, `low`, `high` (bounds of y) | y, mean?, variance? |
//! | `BatchNormGradient` | g, x, scale, mean, variance, y? | those; g passes where y is within the bounds | dx, dscale?, dbias?, passed g? |
//! | `ReluGradient` | g, y | `low`, `high` | g where y is within |
//! | `MaxPool` | x | `kernel_shape`, `strides`, `pads`, `dilations` | y |
//! | `MaxPoolGradient` | g, x, y | those | dx |
//! | `GlobalAveragePool` | x | `channels` | plain [N, C, 1, 1] |
//! | `GlobalAveragePoolGradient` | plain g | `size` of x | dx |
//! | `Sgd` | w, g, velocity, rate | `momentum`, `nesterov`, `weight_decay` | w, velocity |
//! | `Adam` | w, g, mean, square, rate, inverse_mean, inverse_square_root | `beta1`, `beta2`, `epsilon`, `weight_decay`, `decoupled` | w, mean, square |
//! | `LayerNormGradient` | g, x, scale | `epsilon` | dx, dscale?, dbias? |
//! | `SoftmaxGradient`, `GeluGradient` | g, y; g, x | | dx |
//! | `GatherGradient` | g, indices | `rows` | [rows, …] as one axis |
//!
//! All numbers are float32, indices int64; images are blocked where not said otherwise; what has a `?` may be left out. Sums do not
//! depend on the number of threads.

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
