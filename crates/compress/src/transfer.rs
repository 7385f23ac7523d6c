//! What a file costs to send.

use crate::CompressError;

/// Level of Zstandard: where entropy coding has done its most for weights, and text-like parts most of it.
const LEVEL: i32 = 9;

/// Bytes of `file` after Zstandard.
pub fn transfer_bytes(file: &[u8]) -> Result<u64, CompressError> {
    let compressed = zstd::bulk::compress(file, LEVEL);
    let length = compressed.map_err(|error| CompressError::Data(format!("cannot be compressed: {error}")))?.len();
    Ok(length as u64)
}
