//! Binds, listens, accepts, admits. The accept loop ends only when it is told.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::metrics::Outcome;
use super::{Target, Traffic, connection};
use crate::config::Ingress;
use crate::exit::{Blame, Exit};

/// Connections that the kernel holds for us between two accepts.
const BACKLOG: u32 = 1024;
const FIRST_BACK_OFF: Duration = Duration::from_millis(5);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(1);

/// Why clients cannot be listened for.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen} ({knob})")]
pub(crate) struct BindError {
    pub(crate) listen: SocketAddr,
    pub(crate) knob: &'static str,
    pub(crate) source: io::Error,
}

impl Blame for BindError {
    fn exit(&self) -> Exit {
        match self.source.kind() {
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::PermissionDenied => Exit::Usage,
            _ => Exit::Resources,
        }
    }

    fn fix(&self) -> String {
        let knob = self.knob;
        match self.source.kind() {
            io::ErrorKind::AddrInUse => format!("free the port, or choose another one for {knob}"),
            io::ErrorKind::AddrNotAvailable => {
                format!("choose an address of this pod for {knob}, e.g. 0.0.0.0")
            }
            io::ErrorKind::PermissionDenied => format!("choose a port above 1023 for {knob}"),
            _ => format!("see the cause; {knob} may need another value"),
        }
    }
}

/// A bound socket that does not listen yet.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: TcpSocket,
    /// With the port that the kernel chose for 0.
    listen: SocketAddr,
    port: u16,
}

/// Takes the addresses of `ingress`.
pub(crate) fn bind(ingress: &[Ingress]) -> Result<Vec<Bound>, BindError> {
    ingress
        .iter()
        .map(|&Ingress { listen, port }| {
            let bound = || {
                let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                socket.set_reuseaddr(true)?;
                socket.bind(listen)?;
                let listen = socket.local_addr()?;
                tracing::info!(address = %listen, port, "ingress bound");
                Ok(Bound { socket, listen, port })
            };
            bound().map_err(|source| BindError { listen, knob: "ingress.listen", source })
        })
        .collect()
}

impl Bound {
    /// Begins to listen.
    pub(crate) fn listen(self) -> Result<(TcpListener, u16), BindError> {
        let Bound { socket, listen, port } = self;
        let listener =
            socket.listen(BACKLOG).map_err(|source| BindError { listen, knob: "ingress.listen", source })?;
        Ok((listener, port))
    }
}

/// Accepts until `closing`. No error ends the loop: a listener that is out of
/// descriptors waits and tries again.
pub(crate) async fn accept(
    listener: TcpListener,
    target: Target,
    traffic: Traffic,
    closing: CancellationToken,
) {
    let mut back_off = FIRST_BACK_OFF;
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, peer)) => {
                back_off = FIRST_BACK_OFF;
                admit(client, peer, target, &traffic);
            }
            Err(error) => {
                traffic.metrics.accept_errors.inc();
                if !out_of_resources(&error) {
                    // The client went away between SYN and accept.
                    tracing::debug!(%error, "a connection was lost before it was accepted");
                    continue;
                }
                tracing::warn!(%error, ?back_off, "cannot accept connections");
                tokio::select! {
                    () = closing.cancelled() => return,
                    () = sleep(back_off) => {}
                }
                back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            }
        }
    }
}

/// A place, or a reset: a client is never left waiting in silence.
fn admit(client: TcpStream, peer: SocketAddr, target: Target, traffic: &Traffic) {
    match Arc::clone(&traffic.admission).try_acquire_owned() {
        Ok(place) => {
            let connection = connection::carry(client, peer, target, traffic.clone(), place);
            traffic.connections.spawn(connection);
        }
        Err(_) => {
            tracing::debug!(%peer, "refused: limits.connections are open");
            connection::reset(&client);
            traffic.metrics.ended(Outcome::Full);
        }
    }
}

fn out_of_resources(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS))
}
