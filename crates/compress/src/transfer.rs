//! What files cost to send.

use std::io::{self, Read};

use crate::CompressError;

/// How hard it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entropy {
    /// Level 9 of Zstandard: where entropy coding has done its most for weights, and text-like parts most of it.
    Most,
    /// Level 1, for gigabytes: ten times as fast.
    Fast,
}

/// Bytes that `source` has after Zstandard, in little memory. Errors: what cannot be read.
pub fn transfer_bytes(source: &mut dyn Read, entropy: Entropy) -> Result<u64, CompressError> {
    let level = match entropy {
        Entropy::Most => 9,
        Entropy::Fast => 1,
    };
    let failed = |error: io::Error| CompressError::Data(format!("cannot be compressed: {error}"));
    let mut encoder = zstd::stream::read::Encoder::new(source, level).map_err(failed)?;
    io::copy(&mut encoder, &mut io::sink()).map_err(failed)
}
