//! Upkeep.

fn main() {}
