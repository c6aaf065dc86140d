//! A vsock whose writes keep the cap and cost few system calls.
//!
//! A plain write is cut at the cap. A vectored write here is one `sendmmsg(2)`: every slice is a write of its
//! own to the vsock, as long as the slice and no longer. A short read means
//! that the socket is empty, so the read that would say so is not made.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmmsg};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use crate::VSOCK_WRITE_MAX;

/// A read that brings this many bytes is followed by another one without
/// asking whether there is more: while they are passed on, more arrives.
const BULK: usize = 2 * VSOCK_WRITE_MAX;
/// Slices of one vectored write.
pub(crate) const SLICES: usize = 8;

/// A connected vsock, watched by one runtime from its dial to its close.
///
/// It is any stream socket at heart: Tokio's type for those without addresses only
/// receives and shuts down here, which no family does differently.
#[derive(Debug)]
pub struct Vsock {
    socket: UnixStream,
}

impl Vsock {
    /// Watches a connected, non-blocking socket that no runtime watches, or no more.
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Vsock> {
        Ok(Vsock { socket: UnixStream::from_std(socket.into().into())? })
    }

    /// Dials `port` of the context `cid`. A port where nobody listens is
    /// `ECONNRESET`; a context that does not answer `ETIMEDOUT` after two seconds
    /// (net/vmw_vsock/af_vsock.c).
    pub async fn connect(cid: u32, port: u32) -> io::Result<Vsock> {
        let socket = Socket::new(Domain::VSOCK, Type::STREAM.nonblocking(), None)?;
        let under_way = match socket.connect(&SockAddr::vsock(cid, port)) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => true,
            Err(error) => return Err(error),
        };
        let vsock = Vsock::new(socket)?;
        if under_way {
            vsock.socket.writable().await?;
            if let Some(error) = vsock.socket.take_error()? {
                return Err(error);
            }
        }
        Ok(vsock)
    }

    /// Tries `write` whenever the socket may have room for `length` bytes.
    fn poll_send(
        &self,
        context: &mut Context<'_>,
        length: usize,
        write: impl Fn(&UnixStream) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(context))?;
            let mut sent = 0;
            let outcome = self.socket.try_io(Interest::WRITABLE, || {
                sent = write(&self.socket)?;
                // Full now: the call that would say so is not made.
                if sent < length { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match outcome {
                _ if sent > 0 => return Poll::Ready(Ok(sent)),
                Ok(()) => return Poll::Ready(Ok(sent)),
                Err(error) if passes(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Vsock {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            let mut received = None;
            let outcome = self.socket.try_io(Interest::READABLE, || {
                let (_, count) = recv(&self.socket, &mut *room, RecvFlags::empty())?;
                received = Some(count);
                let emptied = 0 < count && count < room.len().min(BULK);
                if emptied { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (received, outcome) {
                (Some(count), _) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(error)) if !passes(&error) => return Poll::Ready(Err(error)),
                (None, _) => {}
            }
        }
    }
}

impl AsyncWrite for Vsock {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(VSOCK_WRITE_MAX)];
        self.poll_send(context, bytes.len(), |socket| send(socket, bytes, SendFlags::NOSIGNAL))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let slices = &slices[..slices.len().min(SLICES)];
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.poll_send(context, length, |socket| send_each(socket, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// The socket is not ready after all, or a signal came.
fn passes(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The kernel stops at the first message that it cannot take whole, so the
/// bytes sent are always a prefix (net/socket.c, `__sys_sendmmsg`).
fn send_each(socket: &UnixStream, slices: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
    let mut none: [SendAncillaryBuffer<'_, '_, '_>; SLICES] = Default::default();
    let mut messages: Vec<MMsgHdr<'_>> = slices
        .iter()
        .zip(&mut none)
        .map(|(slice, control)| MMsgHdr::new(std::slice::from_ref(slice), control))
        .collect();
    let count = sendmmsg(socket, &mut messages, SendFlags::NOSIGNAL)?;
    Ok(messages[..count].iter().map(MMsgHdr::bytes_sent).sum())
}
