//! Training as a rewrite of graphs: from a forward graph and a loss to one ONNX graph that also computes gradients and
//! the optimiser's step.
//!
//! Any engine runs the result. Around it: the data, the loop with its metrics and checkpoints, and models to begin with.
//! The finished model is the forward graph's file with new weights.

pub mod data;
pub mod events;
pub mod metrics;
pub mod schedule;
pub mod starter;
pub mod trainer;

mod differentiate;
mod emit;
mod error;
mod expand;
mod gradient;
mod known;
mod loss;
mod optimise;
mod parameters;
mod prepare;
mod private;
mod recurrent;
mod rules;
mod shape;
mod spec;
mod step;

pub use differentiate::{Differentiated, differentiate};
pub use error::{ErrorKind, TrainError};
pub use expand::Mask;
pub use parameters::{Parameters, parameters};
pub use spec::{AdamSpec, Loss, LossSpec, LossTerm, OptimiserSpec, Pattern, PrivateSpec, StepSpec};
pub use step::{Role, Scalars, State, Step, build, finished};
