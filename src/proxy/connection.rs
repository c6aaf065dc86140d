//! One client's connection, from admission to its last byte.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use relay::{Moved, Options, Place, RelayError, Vsock};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::{Instrument, Span, field};
use wire::ProxyHeader;

use super::metrics::Outcome;
use super::opening::{self, Opening, OpeningError};
use super::{Door, Terms};
use crate::enclave::session::{SessionError, dial};
use crate::exit::chain;

/// Numbers connections in logs.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Dials the enclave and carries until both directions have ended. `places` are
/// given back on return.
pub(super) async fn carry(
    client: std::net::TcpStream,
    peer: SocketAddr,
    door: Door,
    terms: Arc<Terms>,
    places: (OwnedSemaphorePermit, Place),
) {
    let conn = NEXT.fetch_add(1, Ordering::Relaxed);
    let span = tracing::debug_span!(
        "connection",
        conn,
        %peer,
        cid = %door.cid,
        port = field::Empty,
        client = field::Empty
    );
    let open = terms.metrics.carried.opened();
    let (outcome, refused) = through(client, peer, &door, &terms).instrument(span).await;
    drop(open);
    terms.metrics.ended(outcome);
    // Whoever sees its reset has been counted.
    drop(refused);
    drop(places);
}

/// Returns how it ended; with the client where it was refused, so that its reset can wait.
async fn through(
    client: std::net::TcpStream,
    peer: SocketAddr,
    door: &Door,
    terms: &Terms,
) -> (Outcome, Option<TcpStream>) {
    let mut client = match TcpStream::from_std(client) {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(%error, "a connection cannot be watched");
            return (Outcome::ClientFailed, None);
        }
    };
    // Boxed: what is needed for a moment must not stay with the connection for life.
    let opened = Box::pin(terms.abort.run_until_cancelled(open(&mut client, peer, door, terms))).await;
    let (enclave, already_read) = match opened.unwrap_or(Err(Outcome::Aborted)) {
        Ok(opened) => opened,
        Err(outcome) => {
            reset(&client);
            return (outcome, Some(client));
        }
    };
    let options =
        Options { idle_timeout: terms.idle_timeout, far_end_relays: door.session.is_some(), already_read };
    // Boxed, for the same reason as above.
    let is_alive =
        door.session.clone().map(|session| move || Box::pin(async move { session.is_alive().await }));
    let bytes = &terms.metrics.carried.bytes;
    // Pinned here: handed over by value it would be held twice.
    let relay = pin!(relay::relay_witnessed(client, enclave, bytes, options, is_alive));
    let Some(ended) = terms.abort.run_until_cancelled(relay).await else { return (Outcome::Aborted, None) };
    let outcome = match ended {
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
    };
    (outcome, None)
}

/// Finds out where the client goes, and opens the way there.
async fn open(
    client: &mut TcpStream,
    peer: SocketAddr,
    door: &Door,
    terms: &Terms,
) -> Result<(Vsock, Vec<u8>), Outcome> {
    let Opening { header, mut already_read, port } = introduce(client, door, terms).await?;
    let span = Span::current();
    span.record("port", port);
    if let Some(address) = header.as_ref().and_then(ProxyHeader::client) {
        span.record("client", field::display(address));
    }
    let header = door.ingress.send_proxy.then(|| match (header, client.local_addr()) {
        (Some(header), _) => header,
        (None, local) => ProxyHeader::tcp(peer, local.unwrap_or(door.ingress.listen)),
    });
    let dialled = match (&header, &door.session) {
        (Some(header), Some(session)) => session.introduce(port, header, terms.dial_timeout).await,
        (header, _) => {
            // An image that is not ours reads the header itself, and nobody vouches for it.
            if let Some(header) = header {
                already_read.splice(0..0, header.bytes().iter().copied());
            }
            let dialled = dial(door.cid.get(), port.into(), terms.dial_timeout).await;
            dialled.map_err(|source| SessionError::Dial { port: port.into(), source })
        }
    };
    dialled.map(|enclave| (enclave, already_read)).map_err(|error| {
        tracing::debug!(reason = chain(&error), "the enclave cannot be dialled");
        dial_outcome(&error)
    })
}

async fn introduce(client: &mut TcpStream, door: &Door, terms: &Terms) -> Result<Opening, Outcome> {
    if let (false, Some(port)) = (opening::is_needed(&door.ingress), door.ingress.port) {
        return Ok(Opening { header: None, already_read: Vec::new(), port });
    }
    let error = match timeout(terms.header_timeout, opening::read(client, &door.ingress)).await {
        Ok(Ok(opening)) => return Ok(opening),
        Ok(Err(error)) => error,
        Err(_) => {
            tracing::debug!("refused: nothing within limits.header_timeout said where it goes");
            return Err(Outcome::HeaderLate);
        }
    };
    tracing::debug!(reason = chain(&error), "refused");
    Err(match error {
        OpeningError::Proxy(_) => Outcome::NoProxyHeader,
        OpeningError::NoRoute(_) => Outcome::NoRoute,
        OpeningError::Lost(_) => Outcome::ClientFailed,
    })
}

/// Lets the client see a reset instead of a clean end.
pub(super) fn reset(client: &impl AsFd) {
    // Fails only on a connection that is gone.
    let _ = socket2::SockRef::from(client).set_linger(Some(Duration::ZERO));
}

fn dial_outcome(error: &SessionError) -> Outcome {
    match error {
        SessionError::Dial { source, .. } => match source.kind() {
            // A vsock answers a dial to a port without listener with a reset.
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused => Outcome::DialRefused,
            io::ErrorKind::TimedOut => Outcome::DialLate,
            _ => Outcome::DialFailed,
        },
        SessionError::Silent(_) => Outcome::DialLate,
        SessionError::Refused(_) => Outcome::DialRefused,
        _ => Outcome::DialFailed,
    }
}
