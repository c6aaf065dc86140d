//! One direction of a relay.
//!
//! ```text
//! Carrying ──end of stream──▶ Emptying ──buffer empty──▶ Closing ──shut down──▶ Done
//! ```
//! While a write must wait, reading goes on into the free part of the buffer:
//! small pieces become one larger write, and nothing ever waits for more.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Which half failed.
#[derive(Debug)]
pub(crate) enum Error {
    Read(io::Error),
    Write(io::Error),
}

#[derive(Debug)]
pub(crate) struct Direction {
    buffer: Box<[u8]>,
    /// `buffer[start..end]` is read and not yet written.
    start: usize,
    end: usize,
    ended: bool,
    flushed: bool,
    done: bool,
    write_max: usize,
    moved: u64,
}

impl Direction {
    /// A direction with a buffer of `capacity` bytes that writes at most `write_max` at once.
    pub(crate) fn new(capacity: usize, write_max: usize) -> Direction {
        Direction {
            buffer: vec![0; capacity].into_boxed_slice(),
            start: 0,
            end: 0,
            ended: false,
            flushed: true,
            done: false,
            write_max,
            moved: 0,
        }
    }

    /// Bytes written so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    /// Goes as far as the sockets let it; ready once the writer is shut down.
    pub(crate) fn poll<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        context: &mut Context<'_>,
        mut reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
        counter: &AtomicU64,
    ) -> Poll<Result<(), Error>> {
        while !self.done {
            let filled = self.poll_fill(context, reader.as_mut())?;
            if self.start < self.end {
                ready!(self.poll_drain(context, writer.as_mut(), counter))?;
            } else if self.ended {
                ready!(writer.as_mut().poll_shutdown(context)).map_err(Error::Write)?;
                self.done = true;
            } else if filled.is_pending() {
                self.poll_flush(context, writer)?;
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once into the free end of the buffer, if there is one.
    fn poll_fill<R: AsyncRead>(
        &mut self,
        context: &mut Context<'_>,
        reader: Pin<&mut R>,
    ) -> Poll<Result<(), Error>> {
        if self.ended || self.end == self.buffer.len() {
            return Poll::Ready(Ok(()));
        }
        let mut free = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(reader.poll_read(context, &mut free)).map_err(Error::Read)?;
        let count = free.filled().len();
        self.ended = count == 0;
        self.end += count;
        Poll::Ready(Ok(()))
    }

    /// Writes once, at most `write_max` bytes.
    fn poll_drain<W: AsyncWrite>(
        &mut self,
        context: &mut Context<'_>,
        writer: Pin<&mut W>,
        counter: &AtomicU64,
    ) -> Poll<Result<(), Error>> {
        let end = self.end.min(self.start.saturating_add(self.write_max));
        let count =
            ready!(writer.poll_write(context, &self.buffer[self.start..end])).map_err(Error::Write)?;
        if count == 0 {
            return Poll::Ready(Err(Error::Write(io::ErrorKind::WriteZero.into())));
        }
        self.start += count;
        self.moved += count as u64;
        counter.fetch_add(count as u64, Ordering::Relaxed);
        self.flushed = false;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Sockets have nothing to flush; a buffering writer must not sit on the
    /// last bytes while the reader is idle.
    fn poll_flush<W: AsyncWrite>(
        &mut self,
        context: &mut Context<'_>,
        writer: Pin<&mut W>,
    ) -> Result<(), Error> {
        if !self.flushed && writer.poll_flush(context).map_err(Error::Write)?.is_ready() {
            self.flushed = true;
        }
        Ok(())
    }
}
