//! A listening socket whose connections start unwatched, so that their carrier
//! is the first runtime to watch them and the last.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// A listening socket of any family. As for [`crate::Vsock`], Tokio's type for sockets
/// without addresses watches it; nothing but accept(2) is ever called on it.
#[derive(Debug)]
pub struct Listener(UnixStream);

impl Listener {
    /// Watches `socket`, which listens and does not block, with the runtime of the caller.
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Listener> {
        UnixStream::from_std(socket.into().into()).map(Listener)
    }

    /// The next connection, which does not block, and its peer's address if that is an
    /// internet address. Every error of accept(2) is returned; the listener lives on.
    pub async fn accept(&self) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accept = || Ok(acceptfrom_with(&self.0, flags)?);
        let (connection, peer) = self.0.async_io(Interest::READABLE, accept).await?;
        Ok((connection, peer.and_then(|peer| SocketAddr::try_from(peer).ok())))
    }
}
