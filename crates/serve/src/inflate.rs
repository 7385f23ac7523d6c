//! Undoes compression within bounds: what was made to fill memory is refused while it is still small.

use std::io::{self, Read as _};

/// What anything compressed may grow to.
const BYTES_MAX: usize = 1 << 30;
/// What is this many times its compressed size, beyond [`BYTES_FREE`], was made to fill memory.
const RATIO_MAX: usize = 200;
/// What anything compressed may grow to in any case.
const BYTES_FREE: usize = 16 << 20;

/// How bytes were compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Gzip,
    Deflate,
}

/// Why there are no bytes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflateError {
    #[error("the compressed body is damaged: {0}")]
    Damaged(#[from] io::Error),
    #[error("the compressed body of {0} bytes grows beyond {1}; send it without compression")]
    Large(usize, usize),
}

/// The bytes that were compressed; at most `bytes_max`.
pub(crate) fn inflate(form: Form, compressed: &[u8], bytes_max: usize) -> Result<Vec<u8>, InflateError> {
    let max = compressed.len().saturating_mul(RATIO_MAX).clamp(BYTES_FREE, BYTES_MAX).min(bytes_max);
    let (mut out, limit) = (Vec::new(), max as u64 + 1);
    match form {
        Form::Gzip => flate2::read::GzDecoder::new(compressed).take(limit).read_to_end(&mut out)?,
        Form::Deflate => flate2::read::ZlibDecoder::new(compressed).take(limit).read_to_end(&mut out)?,
    };
    if out.len() > max { Err(InflateError::Large(compressed.len(), max)) } else { Ok(out) }
}
