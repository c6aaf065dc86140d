//! Addresses of either family, and blocking sockets on them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

use anyhow::{Context, bail};
use socket2::{Domain, SockAddr, Socket, Type};

/// Queue of connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// `tcp:ADDRESS:PORT` or `vsock:CID:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Tcp(SocketAddr),
    Vsock { cid: u32, port: u32 },
}

impl Endpoint {
    pub(crate) fn listen(self) -> io::Result<Socket> {
        let socket = self.socket()?;
        if matches!(self, Endpoint::Tcp(_)) {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&self.address())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    }

    /// A peer's connection.
    pub(crate) fn dial(self) -> io::Result<Socket> {
        let socket = self.dial_plainly()?;
        prepare(&socket, self)?;
        Ok(socket)
    }

    /// A relay's connection.
    pub(crate) fn dial_plainly(self) -> io::Result<Socket> {
        let socket = self.socket()?;
        socket.connect(&self.address())?;
        if matches!(self, Endpoint::Tcp(_)) {
            socket.set_tcp_nodelay(true)?;
        }
        Ok(socket)
    }

    fn socket(self) -> io::Result<Socket> {
        let domain = match self {
            Endpoint::Tcp(address) => Domain::for_address(address),
            Endpoint::Vsock { .. } => Domain::VSOCK,
        };
        Socket::new(domain, Type::STREAM, None)
    }

    fn address(self) -> SockAddr {
        match self {
            Endpoint::Tcp(address) => address.into(),
            Endpoint::Vsock { cid, port } => SockAddr::vsock(cid, port),
        }
    }
}

/// SO_SNDBUF, which the kernel doubles, at which an AF_UNIX socket takes eight
/// pieces of 31 KiB.
const EIGHT_PIECES: usize = 125 * 1024;

/// Makes a peer's socket what it would be on Nitro: small answers do not wait
/// for an acknowledgement, and a vsock holds the 256 KiB of
/// `VIRTIO_VSOCK_DEFAULT_BUF_SIZE`, of which its emulation offers less.
pub(crate) fn prepare(socket: &Socket, endpoint: Endpoint) -> io::Result<()> {
    match endpoint {
        Endpoint::Tcp(_) => socket.set_tcp_nodelay(true),
        Endpoint::Vsock { .. } => socket.set_send_buffer_size(EIGHT_PIECES),
    }
}

impl FromStr for Endpoint {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Endpoint> {
        match text.split_once(':') {
            Some(("tcp", address)) => Ok(Endpoint::Tcp(address.parse().context(address.to_owned())?)),
            Some(("vsock", address)) => {
                let (cid, port) = address.split_once(':').context("vsock:CID:PORT")?;
                Ok(Endpoint::Vsock { cid: cid.parse()?, port: port.parse()? })
            }
            _ => bail!("{text} is neither tcp:ADDRESS:PORT nor vsock:CID:PORT"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(formatter, "tcp:{address}"),
            Endpoint::Vsock { cid, port } => write!(formatter, "vsock:{cid}:{port}"),
        }
    }
}
