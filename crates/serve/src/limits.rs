//! What a peer may use, where the configuration does not say otherwise.

use std::time::Duration;

/// Bounds of the listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that are open at the same time, over all listeners.
    pub connections_max: usize,
    /// Bytes of a request's head; at least [`Limits::HEAD_BYTES_LEAST`].
    pub head_bytes_max: u32,
    /// Lines of a request's head over HTTP/1.1.
    pub head_lines_max: usize,
    /// Bytes of all files together that a load brings along.
    pub load_bytes_max: usize,
    /// How long a peer may take no byte of an answer that is ready.
    pub unread_max: Duration,
}

impl Limits {
    /// What the protocol's own first buffer holds: no head can be bounded more tightly.
    pub const HEAD_BYTES_LEAST: u32 = 8 * 1024;
    /// Heads of more bytes than this are no requests.
    pub const HEAD_BYTES_MOST: u32 = 1 << 20;

    /// The bound of heads, within what is possible.
    pub(crate) fn head_bytes(&self) -> usize {
        self.head_bytes_max.clamp(Self::HEAD_BYTES_LEAST, Self::HEAD_BYTES_MOST) as usize
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            head_bytes_max: 64 * 1024,
            head_lines_max: 100,
            load_bytes_max: 512 << 20,
            unread_max: Duration::from_secs(60),
        }
    }
}
