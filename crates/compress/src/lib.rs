//! Models made smaller and faster, as rewrites of graphs: prepared, calibrated, quantised, compared.
//!
//! Everything here is a function of graphs, tensors and sessions. Which candidates are tried, how they are timed and where
//! files go is for callers; what a report says and shows is in [`report`].

pub mod choose;
pub mod histogram;
pub mod interval;
pub mod observe;
pub mod prune;
pub mod report;

mod adaround;
mod average_precision;
mod boxes;
mod calibrate;
mod compare;
mod correct;
mod detector;
mod distil;
mod dynamic;
mod edit;
mod equalise;
mod error;
mod focus;
mod fuse;
mod gptq;
mod halves;
mod large;
mod moments;
mod nbits;
mod page;
mod plan;
mod prepare;
mod qat;
mod qdq;
mod qoperator;
mod range;
mod recurrent;
mod rescale;
mod sensitivity;
mod settle;
mod smooth;
mod tables;
mod transfer;
mod upgrade;
mod weights;

pub use adaround::{adaround, adaround_cost};
pub use average_precision::{Matched, Truth};
pub use boxes::{Detection, Rect, Suppression};
pub use calibrate::{Ranges, Statistics, calibrate, calibrate_while};
pub use compare::{Agreement, Compared, noise};
pub use detector::{BoxForm, Detector, Run, pictures};
pub use distil::{DistilSpec, Joined, Labels, Pair, Scores, Shortened, join, pairs_by_order, shorten};
pub use dynamic::{Convolutions, DynamicSpec, quantise_dynamic, quantise_pairs};
pub use equalise::{Rescaled, equalise};
pub use error::{CompressError, ErrorKind};
pub use gptq::{GptqSpec, Solved, gptq, gptq_cost};
pub use halves::{Half, halve};
pub use large::{LargeForm, WHOLE_BYTES_MAX, large_bytes_max, quantise_large};
pub use moments::Repeat;
pub use nbits::{BlockBits, quantise_blocks, quantise_blocks_in_steps};
pub use plan::{Form, Plan, plan};
pub use prepare::{Layer, Prepared, prepare, prepare_in_place};
pub use qat::{Learnt, Rounded, Rounding, WeightSteps, round_in_training};
pub use qdq::{Bias, Quantised, StaticSpec, quantise_static, quantise_static_in_steps};
pub use qoperator::to_operators;
pub use range::{Activations, Range, Steps};
pub use recurrent::quantise_recurrent;
pub use sensitivity::{Sensitivity, layer_errors};
pub use settle::Settling;
pub use smooth::{ALPHA, smooth};
pub use transfer::{Entropy, transfer_bytes};
pub use weights::{Integers, WeightBits};
