//! One client's connection, from admission to its last byte.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use relay::{Moved, RelayError};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use super::metrics::Outcome;
use super::{Target, Traffic};
use crate::exit::chain;
use crate::session::dial;

/// Numbers connections in logs.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Dials the enclave and carries until both directions have ended. `place` is
/// given back on return.
pub(super) async fn carry(
    client: TcpStream,
    peer: SocketAddr,
    target: Target,
    traffic: Traffic,
    place: OwnedSemaphorePermit,
) {
    let conn = NEXT.fetch_add(1, Ordering::Relaxed);
    let span = tracing::debug_span!("connection", conn, %peer, cid = %target.cid, port = target.port);
    traffic.metrics.open.inc();
    let abort = traffic.abort.clone();
    let outcome = async {
        tokio::select! {
            () = abort.cancelled() => Outcome::Aborted,
            outcome = through(client, target, &traffic) => outcome,
        }
    }
    .instrument(span)
    .await;
    traffic.metrics.open.dec();
    traffic.metrics.ended(outcome);
    drop(place);
}

async fn through(client: TcpStream, target: Target, traffic: &Traffic) -> Outcome {
    // Fails only on a connection that is gone, which the relay will find out.
    let _ = client.set_nodelay(true);
    let enclave = match dial(target.cid.get(), target.port.into(), traffic.dial_timeout).await {
        Ok(enclave) => enclave,
        Err(error) => {
            tracing::debug!(%error, "the enclave cannot be dialled");
            reset(&client);
            return dial_outcome(&error);
        }
    };
    let options = relay::Options { far_end_relays: target.has_agent, ..relay::Options::default() };
    match relay::relay_with(client, enclave, &traffic.metrics.bytes, options).await {
        Ok(Moved { to_vsock, from_vsock }) => {
            tracing::debug!(to_vsock, from_vsock, "completed");
            Outcome::Completed
        }
        Err(error) => {
            tracing::debug!(reason = chain(&error), "broke");
            match error {
                RelayError::Tcp { .. } => Outcome::ClientFailed,
                RelayError::Vsock { .. } => Outcome::EnclaveFailed,
                RelayError::Idle { .. } => Outcome::Idle,
            }
        }
    }
}

/// Lets the client see a reset instead of a clean end.
pub(super) fn reset(client: &TcpStream) {
    // Fails only on a connection that is gone.
    let _ = socket2::SockRef::from(client).set_linger(Some(Duration::ZERO));
}

fn dial_outcome(error: &io::Error) -> Outcome {
    match error.kind() {
        // A vsock answers a dial to a port without listener with a reset.
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused => Outcome::DialRefused,
        io::ErrorKind::TimedOut => Outcome::DialLate,
        _ => Outcome::DialFailed,
    }
}
