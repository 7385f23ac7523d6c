//! A message in the pieces in which it came, without a copy of those that are long.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

/// Shorter ones are put together: each piece for itself would take more memory than it holds.
const SHORT_BYTES: usize = 4 * 1024;

/// Bytes in their order.
#[derive(Default)]
pub(super) struct Pieces {
    parts: Vec<Bytes>,
    /// Short ones, behind all others.
    short: BytesMut,
    length: usize,
}

impl Pieces {
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.length += bytes.len();
        if bytes.len() < SHORT_BYTES {
            self.short.extend_from_slice(&bytes);
            return;
        }
        self.end_short();
        self.parts.push(bytes);
    }

    fn end_short(&mut self) {
        if !self.short.is_empty() {
            self.parts.push(self.short.split().freeze());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// The first bytes in one piece, at most so many.
    pub(super) fn first(&self, bytes_max: usize) -> Cow<'_, [u8]> {
        let cut = |bytes: &'_ [u8]| bytes.len().min(bytes_max);
        match (self.parts.as_slice(), self.short.is_empty()) {
            ([one], true) => Cow::Borrowed(one.get(..cut(one)).unwrap_or_default()),
            ([], _) => Cow::Borrowed(self.short.get(..cut(&self.short)).unwrap_or_default()),
            _ => {
                let mut whole = Vec::with_capacity(self.length.min(bytes_max));
                for part in self.parts.iter().map(|part| &**part).chain([&*self.short]) {
                    whole.extend_from_slice(part.get(..part.len().min(bytes_max - whole.len())).unwrap_or_default());
                }
                Cow::Owned(whole)
            }
        }
    }

    pub(super) fn into_parts(mut self) -> Vec<Bytes> {
        self.end_short();
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_pieces_their_order_is_kept() {
        for lengths in [&[][..], &[3], &[5000], &[1, 2, 5000, 4, 4, 9000, 1], &[4096, 4095], &[0, 0]] {
            let (mut pieces, mut whole) = (Pieces::default(), Vec::new());
            for (at, &length) in lengths.iter().enumerate() {
                let piece: Vec<u8> = (0..length).map(|byte| (byte * 7 + at * 31) as u8).collect();
                whole.extend_from_slice(&piece);
                pieces.push(piece.into());
                for bytes_max in [0, 1, 4097, usize::MAX] {
                    assert!(*pieces.first(bytes_max) == whole[..whole.len().min(bytes_max)], "{lengths:?} {bytes_max}");
                }
            }
            assert_eq!(pieces.len(), whole.len());
            assert!(pieces.into_parts().concat() == whole, "{lengths:?}");
        }
    }

    #[test]
    fn single_bytes_take_no_piece_each() {
        let mut pieces = Pieces::default();
        (0..100_000).for_each(|_| pieces.push(Bytes::from_static(b"x")));
        assert_eq!((pieces.len(), pieces.into_parts().len()), (100_000, 1));
    }
}
