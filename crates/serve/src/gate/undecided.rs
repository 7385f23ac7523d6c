//! What is held of messages about which nothing is decided yet: whoever sends them may have no right to anything, so all of them together are
//! bounded. What came in one piece is never counted; a call is, once it keeps the server waiting.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{Gate, Peer};

/// Most that is held of one call before it is decided, and a little for the frame that goes beyond.
const CALL_BYTES_MAX: usize = 128 * 1024;
/// Most that all calls of one connection hold.
const CONNECTION_BYTES_MAX: usize = 4 << 20;
/// Most that all hold. Beyond it a connection has room for one call more, so that nobody is locked out by others.
const ALL_BYTES_MAX: usize = 256 << 20;

/// Bytes that are held.
#[derive(Debug, Default)]
pub(super) struct Undecided(AtomicUsize);

/// What one call holds; given back when it is dropped.
pub(crate) struct Held {
    gate: Arc<Gate>,
    peer: Arc<Peer>,
    bytes: usize,
}

impl Held {
    pub(super) fn new(gate: Arc<Gate>, peer: Arc<Peer>) -> Self {
        Self { gate, peer, bytes: 0 }
    }

    /// Counts `bytes` altogether; false where there is no room for them.
    #[must_use]
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        self.bytes += more;
        let of = |Undecided(held): &Undecided| held.fetch_add(more, Relaxed) + more;
        room(of(&self.peer.undecided), of(&self.gate.undecided))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for Undecided(held) in [&self.peer.undecided, &self.gate.undecided] {
            held.fetch_sub(self.bytes, Relaxed);
        }
    }
}

fn room(of_connection: usize, of_all: usize) -> bool {
    of_connection <= CONNECTION_BYTES_MAX && (of_all <= ALL_BYTES_MAX || of_connection <= CALL_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_and_all_of_them_are_bounded_and_one_call_has_its_place() {
        let rows = [
            (CONNECTION_BYTES_MAX, ALL_BYTES_MAX, true),
            (CONNECTION_BYTES_MAX + 1, CONNECTION_BYTES_MAX + 1, false),
            (CALL_BYTES_MAX, ALL_BYTES_MAX + CALL_BYTES_MAX, true),
            (CALL_BYTES_MAX + 1, ALL_BYTES_MAX + 1, false),
        ];
        for (of_connection, of_all, expected) in rows {
            assert_eq!(room(of_connection, of_all), expected, "{of_connection} {of_all}");
        }
    }
}
