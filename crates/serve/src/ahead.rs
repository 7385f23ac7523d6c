//! Reads a socket in large parts for who asks for small ones.
//!
//! TLS asks for a few kilobytes at a time, and each would be a call to the system: an image of 600 kB cost 150 of them. The memory is there
//! only while bytes arrive, so that idle connections hold none.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::connection::writes_through;

const PART_BYTES: usize = 128 * 1024;

/// A stream that is read ahead.
pub(crate) struct Ahead<S> {
    stream: S,
    /// What has come and was not asked for yet, from `at` to `end`; none while there is nothing.
    part: Option<Box<[u8]>>,
    at: usize,
    end: usize,
}

impl<S> Ahead<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, part: None, at: 0, end: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.at == this.end {
            let part = this.part.get_or_insert_with(|| vec![0; PART_BYTES].into_boxed_slice());
            let mut read = ReadBuf::new(part);
            let polled = Pin::new(&mut this.stream).poll_read(cx, &mut read);
            (this.at, this.end) = (0, read.filled().len());
            if this.end == 0 {
                this.part = None;
            }
            ready!(polled)?;
        }
        let part = this.part.as_deref().and_then(|part| part.get(this.at..this.end)).unwrap_or_default();
        let length = part.len().min(buf.remaining());
        buf.put_slice(part.get(..length).unwrap_or_default());
        this.at += length;
        Poll::Ready(Ok(()))
    }
}

writes_through!(Ahead, stream);

/// A stream that fills what its reader offers, as far as that goes without waiting.
///
/// TLS gives one record of 16 KiB at a time. The protocol sets memory aside for what it expects next, and hands out what has come: given
/// a record at a time, it sets aside half a megabyte anew for each.
pub(crate) struct Filled<S>(pub(crate) S);

impl<S: AsyncRead + Unpin> AsyncRead for Filled<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            let length = buf.filled().len();
            match Pin::new(&mut self.0).poll_read(cx, buf) {
                Poll::Ready(Ok(())) if buf.filled().len() > length => {}
                // The end, an error, or nothing more at present: told now where nothing came before, else with the next read.
                other if length == before => return other,
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

writes_through!(Filled, 0);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_come_in_their_order_however_they_are_read() {
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (mut near, far) = duplex(50_000);
        let (copy, mut read, mut stream) = (sent.clone(), Vec::new(), Filled(Ahead::new(far)));
        let writing = tokio::spawn(async move { near.write_all(&copy).await });
        let mut part = vec![0; 1];
        while let length @ 1.. = stream.read(&mut part).await.unwrap() {
            read.extend_from_slice(&part[..length]);
            part.resize((part.len() * 3 + 1) % 70_000 + 1, 0);
        }
        writing.await.unwrap().unwrap();
        assert!(read == sent);
        // Nothing is held of a stream that is idle.
        assert!(stream.0.part.is_none());
    }
}
