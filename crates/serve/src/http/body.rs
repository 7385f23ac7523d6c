//! Reads a body into one piece of memory while it arrives.

use axum::body::Body;
use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;

/// Where binary tensors begin, so that engines use them where they lie.
const ALIGNMENT: usize = 64;
/// What is set aside for a length that a header only claims: addresses, the memory comes as it is written to.
const CLAIM_BYTES_MAX: usize = 4 << 20;
/// How much larger the memory becomes when what came fills it.
const GROWTH: usize = 4;

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    /// Larger than any may be.
    #[error("the body is larger than {0} bytes; send fewer rows at once")]
    Long(usize),
    /// It ended early or paused for too long.
    #[error("the body cannot be read to its end: {0}")]
    Broken(axum::Error),
}

/// How a body is read.
pub(super) struct Expected {
    /// What its header claims.
    pub(super) length: Option<u64>,
    /// The number of the byte that is to lie where engines like it.
    pub(super) aligned: usize,
    /// Bytes that are taken at most.
    pub(super) bytes_max: usize,
}

/// The whole body.
pub(super) async fn read(mut body: Body, expected: &Expected) -> Result<Bytes, Unread> {
    let Expected { length, aligned, bytes_max } = *expected;
    let claimed = usize::try_from(length.unwrap_or(0)).unwrap_or(usize::MAX);
    if claimed > bytes_max {
        return Err(Unread::Long(bytes_max));
    }
    let mut whole = BytesMut::with_capacity(claimed.min(CLAIM_BYTES_MAX) + ALIGNMENT);
    // The address of byte `aligned` is rounded up to the alignment.
    let before = (whole.as_ptr() as usize).wrapping_add(aligned).wrapping_neg() % ALIGNMENT;
    whole.resize(before, 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Unread::Broken)?.into_data() else { continue };
        if data.len() > bytes_max - (whole.len() - before) {
            return Err(Unread::Long(bytes_max));
        }
        if data.len() > whole.capacity() - whole.len() {
            // No more than was claimed, or than what has come deserves.
            let room = claimed.saturating_sub(whole.len() - before).min(whole.len() * (GROWTH - 1));
            whole.reserve(room.max(data.len()));
        }
        whole.extend_from_slice(&data);
    }
    whole.advance(before);
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn parts(parts: Vec<Vec<u8>>) -> Body {
        Body::from_stream(stream::iter(parts.into_iter().map(Ok::<_, std::io::Error>)))
    }

    async fn read_as(body: Body, expected: Expected) -> Result<Bytes, Unread> {
        read(body, &expected).await
    }

    #[tokio::test]
    async fn whatever_the_claim_the_body_is_whole_and_lies_where_asked() {
        let all: Vec<Vec<u8>> = (0..100u32).map(|i| vec![i as u8; 1 + (i * 7919 % 40_000) as usize]).collect();
        let expected = all.concat();
        let read = |body, length, aligned| read_as(body, Expected { length, aligned, bytes_max: 1 << 30 });
        for claim in [None, Some(0), Some(7), Some(expected.len() as u64), Some(u64::from(u32::MAX) / 4)] {
            let body = read(parts(all.clone()), claim, 169).await.unwrap();
            assert!(body == expected, "{claim:?}");
        }
        for aligned in [0, 1, 63, 64, 169] {
            let body = read(parts(all[..20].to_vec()), Some(all[..20].concat().len() as u64), aligned).await.unwrap();
            assert!(body == all[..20].concat(), "{aligned}");
            assert!((body.as_ptr() as usize + aligned).is_multiple_of(ALIGNMENT), "{aligned}");
        }
        assert!(matches!(read(parts(all.clone()), Some(u64::MAX), 0).await, Err(Unread::Long(_))));
        let short = |length| Expected { length, aligned: 0, bytes_max: expected.len() - 1 };
        for claim in [None, Some(7), Some(expected.len() as u64)] {
            assert!(matches!(read_as(parts(all.clone()), short(claim)).await, Err(Unread::Long(_))), "{claim:?}");
        }
    }
}
