//! One direction of a relay.
//!
//! ```text
//! Waiting ──bytes──▶ Emptying ──buffer empty──▶ Waiting
//!    └──end of stream──▶ (Held) ─▶ Closing ──shut down──▶ Done
//! ```
//! While a write must wait, reading goes on up to one full write: small pieces
//! become one larger write, and nothing ever waits for more.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::VSOCK_WRITE_MAX;
use crate::pool::Buffer;
use crate::vsock::SLICES;

/// Which half failed.
#[derive(Debug)]
pub(crate) enum Error {
    Read(io::Error),
    Write(io::Error),
}

#[derive(Debug)]
pub(crate) struct Direction {
    /// There is one while bytes are under way.
    buffer: Option<Buffer>,
    /// `buffer[start..end]` is read and not yet written.
    start: usize,
    end: usize,
    ended: bool,
    flushed: bool,
    done: bool,
    write_max: usize,
    moved: u64,
    suspects: bool,
    holds_end: bool,
}

impl Direction {
    /// A direction that has read `held` already.
    pub(crate) fn after(held: Vec<u8>, write_max: usize) -> Direction {
        let mut direction = Direction::new(write_max);
        if !held.is_empty() {
            direction.end = held.len();
            direction.buffer = Some(Buffer::of(held));
        }
        direction
    }

    /// A direction that writes at most `write_max` bytes at once.
    pub(crate) fn new(write_max: usize) -> Direction {
        Direction {
            buffer: None,
            start: 0,
            end: 0,
            ended: false,
            flushed: true,
            done: false,
            write_max,
            moved: 0,
            suspects: false,
            holds_end: false,
        }
    }

    /// Bytes written so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether an end of stream by a reader that also takes nothing any more is a fault.
    pub(crate) fn suspect_full_close(&mut self, suspects: bool) {
        self.suspects = suspects;
    }

    /// Whether an end of stream is kept back instead of passed on.
    pub(crate) fn hold_end(&mut self, holds: bool) {
        self.holds_end = holds;
    }

    /// Everything was passed on but an end that is kept back.
    pub(crate) fn is_held(&self) -> bool {
        self.holds_end && self.ended && !self.done && self.held() == 0
    }

    /// Goes as far as the sockets let it; ready once the writer is shut down.
    pub(crate) fn poll<R: AsyncRead + AsyncWrite, W: AsyncWrite>(
        &mut self,
        context: &mut Context<'_>,
        mut reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
        counter: &AtomicU64,
    ) -> Poll<Result<(), Error>> {
        while !self.done {
            if self.held() > 0 {
                if self.poll_drain(context, writer.as_mut(), counter)?.is_pending() {
                    self.collect(context, reader)?;
                    return Poll::Pending;
                }
            } else if self.ended && self.holds_end {
                return Poll::Pending;
            } else if self.ended {
                ready!(writer.as_mut().poll_shutdown(context)).map_err(Error::Write)?;
                self.done = true;
            } else if self.poll_fill(context, reader.as_mut())?.is_pending() {
                self.poll_flush(context, writer)?;
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Bytes read and not yet written.
    fn held(&self) -> usize {
        self.end - self.start
    }

    /// Reads what is there until a full write to a vsock is held.
    fn collect<R: AsyncRead + AsyncWrite>(
        &mut self,
        context: &mut Context<'_>,
        mut reader: Pin<&mut R>,
    ) -> Result<(), Error> {
        while !self.ended && self.held() < VSOCK_WRITE_MAX {
            if self.poll_fill(context, reader.as_mut())?.is_pending() {
                break;
            }
        }
        Ok(())
    }

    /// Reads once behind what is held. A buffer is kept only if there are bytes for it.
    fn poll_fill<R: AsyncRead + AsyncWrite>(
        &mut self,
        context: &mut Context<'_>,
        mut reader: Pin<&mut R>,
    ) -> Poll<Result<(), Error>> {
        let mut buffer = self.buffer.take().unwrap_or_else(Buffer::take);
        let bytes = buffer.bytes_mut();
        bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.held());
        let mut free = ReadBuf::new(&mut bytes[self.end..]);
        let outcome = reader.as_mut().poll_read(context, &mut free);
        let count = free.filled().len();
        self.end += count;
        if self.held() > 0 {
            self.buffer = Some(buffer);
        }
        ready!(outcome).map_err(Error::Read)?;
        self.ended = count == 0;
        if self.ended && self.suspects {
            self.refuse_full_close(context, reader)?;
        }
        Poll::Ready(Ok(()))
    }

    /// A write of nothing fails exactly if the peer has closed both ways.
    fn refuse_full_close<R: AsyncWrite>(
        &self,
        context: &mut Context<'_>,
        reader: Pin<&mut R>,
    ) -> Result<(), Error> {
        match reader.poll_write(context, &[]) {
            Poll::Ready(Err(error)) => Err(Error::Read(error)),
            _ => Ok(()),
        }
    }

    /// Writes once: one piece, or several of `write_max` bytes in one call.
    fn poll_drain<W: AsyncWrite>(
        &mut self,
        context: &mut Context<'_>,
        writer: Pin<&mut W>,
        counter: &AtomicU64,
    ) -> Poll<Result<(), Error>> {
        let Some(buffer) = &self.buffer else { return Poll::Ready(Ok(())) };
        let held = &buffer.bytes()[self.start..self.end];
        let written = if held.len() > self.write_max && writer.is_write_vectored() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(held.chunks(self.write_max)) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            writer.poll_write_vectored(context, &slices[..count])
        } else {
            writer.poll_write(context, &held[..held.len().min(self.write_max)])
        };
        let count = ready!(written).map_err(Error::Write)?;
        if count == 0 {
            return Poll::Ready(Err(Error::Write(io::ErrorKind::WriteZero.into())));
        }
        self.start += count;
        self.moved += count as u64;
        counter.fetch_add(count as u64, Ordering::Relaxed);
        self.flushed = false;
        if self.held() == 0 {
            (self.start, self.end) = (0, 0);
            self.buffer = None;
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
