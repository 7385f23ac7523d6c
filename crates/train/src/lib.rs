//! Training: gradients as a graph rewrite, the data, the metrics, the starters and the loop.

pub mod data;
pub mod events;
pub mod metrics;
pub mod schedule;
pub mod starter;
