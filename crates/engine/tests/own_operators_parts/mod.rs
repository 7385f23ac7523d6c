//! One file for each family of operators.

mod convolution;
mod normalisation;
mod pool;
mod sequence;
mod update;
