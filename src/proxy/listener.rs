//! Binds, listens, accepts, admits. The accept loop ends only when it is told.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use relay::{Carriers, Listener};
use socket2::TcpKeepalive;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::metrics::Outcome;
use super::{Door, Traffic, connection};
use crate::config::Ingress;
use crate::exit::{Blame, Exit};

/// Connections that the kernel holds for us between two accepts.
const BACKLOG: u32 = 1024;
/// Keep-alive probes that may stay without an answer.
const PROBES: u32 = 4;
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
    ingress: Ingress,
}

/// Takes the addresses of `ingress`. What is set on a listener holds for the
/// connections that it accepts (Linux clones the socket).
pub(crate) fn bind(ingress: &[Ingress], keep_alive: Duration) -> Result<Vec<Bound>, BindError> {
    let each = |ingress: &Ingress| {
        bind_one(ingress, keep_alive).map_err(|source| BindError {
            listen: ingress.listen,
            knob: "ingress.listen",
            source,
        })
    };
    ingress.iter().map(each).collect()
}

fn bind_one(ingress: &Ingress, keep_alive: Duration) -> io::Result<Bound> {
    let socket = if ingress.listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    if !keep_alive.is_zero() {
        // The kernel counts whole seconds, at least one.
        let seconds = |time: Duration| time.max(Duration::from_secs(1));
        let probes = TcpKeepalive::new()
            .with_time(seconds(keep_alive))
            .with_interval(seconds(keep_alive / PROBES))
            .with_retries(PROBES);
        socket2::SockRef::from(&socket).set_tcp_keepalive(&probes)?;
    }
    socket.bind(ingress.listen)?;
    let ingress = Ingress { listen: socket.local_addr()?, ..ingress.clone() };
    tracing::info!(address = %ingress.listen, port = ingress.port, "ingress bound");
    Ok(Bound { socket, ingress })
}

impl Bound {
    /// Begins to listen, for `carriers` to accept.
    pub(super) fn listen(self, carriers: &Carriers) -> Result<(Listener, Ingress), BindError> {
        let Bound { socket, ingress } = self;
        let listener = socket
            .listen(BACKLOG)
            .and_then(TcpListener::into_std)
            .and_then(|listener| carriers.listener(listener))
            .map_err(|source| BindError { listen: ingress.listen, knob: "ingress.listen", source })?;
        Ok((listener, ingress))
    }
}

/// Accepts until `closing`. No error ends the loop: a listener that is out of
/// descriptors, or may not accept, waits and tries again.
pub(super) async fn accept(listener: Listener, door: Door, traffic: Traffic, closing: CancellationToken) {
    let mut back_off = FIRST_BACK_OFF;
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        // TCP always has an address for a connection.
        let accepted = accepted.and_then(|(client, peer)| {
            peer.map(|peer| (client, peer)).ok_or_else(|| io::ErrorKind::NotConnected.into())
        });
        match accepted {
            Ok((client, peer)) => {
                back_off = FIRST_BACK_OFF;
                admit(client.into(), peer, &door, &traffic);
            }
            Err(error) => {
                traffic.terms.metrics.accept_errors.inc();
                if is_the_connections(&error) {
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
fn admit(client: TcpStream, peer: SocketAddr, door: &Door, traffic: &Traffic) {
    let Ok(place) = Arc::clone(&traffic.admission).try_acquire_owned() else {
        tracing::debug!(%peer, "refused: limits.connections are open");
        connection::reset(&client);
        traffic.terms.metrics.ended(Outcome::Full);
        return;
    };
    let (carrier, seat) = traffic.carriers.place();
    let connection = connection::carry(client, peer, door.clone(), Arc::clone(&traffic.terms), (place, seat));
    traffic.connections.spawn_on(connection, &carrier);
}

/// An error of the connection that would have been accepted, gone with it (accept(2)). Any
/// other may come again at once, and for ever.
fn is_the_connections(error: &io::Error) -> bool {
    use Errno::{
        ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EPROTO,
    };
    let errno = error.raw_os_error().map(Errno::from_raw);
    let lost =
        [ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EPROTO];
    errno.is_some_and(|errno| lost.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_went_with_a_connection_is_followed_by_the_next_accept_at_once() {
        let of = |errno: Errno| is_the_connections(&errno.into());
        assert!(of(Errno::ECONNABORTED) && of(Errno::EPROTO));
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::EPERM] {
            assert!(!of(errno), "{errno}");
        }
    }

    #[tokio::test]
    async fn accepted_connections_have_the_listeners_options_in_either_family() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let ingress: Ingress = serde_saphyr::from_str(&format!("listen: '{address}'\nport: 1")).unwrap();
            let bound = bind(&[ingress], Duration::from_secs(8)).unwrap().remove(0);
            let carriers = Carriers::start(1).unwrap();
            let (listener, ingress) = bound.listen(&carriers).unwrap();
            let client = TcpStream::connect(ingress.listen).unwrap();
            let (accepted, peer) = listener.accept().await.unwrap();
            assert_eq!(peer, Some(client.local_addr().unwrap()));
            let socket = socket2::SockRef::from(&accepted);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(8));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(2));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
            drop(client);
        }
    }
}
