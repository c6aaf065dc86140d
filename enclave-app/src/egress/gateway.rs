//! Takes connections to the addresses of names.
//!
//! ```text
//! accept ─▶ which address? ─┬─ of a name ─▶ policy ─▶ dial ─▶ relay
//!                           │                  └ refused ─┴─▶ reset
//!                           └─ the gateway's: DNS or proxy, by the port
//! ```
//! The workload's connect succeeds before anything is known of the target: a
//! refusal is a reset right after it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use egress::{Host, Target};
use relay::Vsock;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dials::Attached;
use super::network::{DNS_PORT, GATEWAY, PROXY_PORT};
use super::{Shared, proxy, resolver};
use crate::listener::{self, Accept};

/// For the few bytes that came before the relay to be taken.
const FIRST_BYTES_WITHIN: Duration = Duration::from_secs(10);

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        Ok(TcpListener::accept(self).await?.0)
    }
}

/// Accepts until `closing`; connections go on until `stop`.
pub(super) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    connections: TaskTracker,
    (closing, stop): (CancellationToken, CancellationToken),
) {
    listener::listen(listener, "egress", permits, closing, |stream, permit| {
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        connections.spawn(async move {
            stop.run_until_cancelled(serve(stream, &shared)).await;
            drop(permit);
        });
    })
    .await;
}

async fn serve(client: TcpStream, shared: &Shared) {
    // Fails only on a connection that is gone.
    let _ = client.set_nodelay(true);
    let Ok(SocketAddr::V4(local)) = client.local_addr() else { return };
    match (*local.ip(), local.port()) {
        (GATEWAY, DNS_PORT) => resolver::serve_tcp(client, shared).await,
        (GATEWAY, PROXY_PORT) => proxy::serve(client, shared).await,
        (address, port) => {
            let name = shared.names().name(address).cloned();
            match name {
                Some(name) => to_name(client, Target { host: Host::Name(name), port }, shared).await,
                None => {
                    shared.tell(|| format!("egress: {}:{port} stands for no name", IpAddr::V4(address)));
                    reset(client);
                }
            }
        }
    }
}

async fn to_name(client: TcpStream, target: Target, shared: &Shared) {
    if !shared.allows(&target) {
        return reset(client);
    }
    match shared.dials.dial(&target).await {
        Ok(attached) => carry(client, attached, &[], shared).await,
        Err(reason) => {
            shared.tell(|| format!("egress: {target}: {reason}"));
            reset(client);
        }
    }
}

/// Carries until both directions have ended; `early` are bytes that the client
/// has already sent.
pub(super) async fn carry(client: TcpStream, attached: Attached, early: &[u8], shared: &Shared) {
    let (mut client, Attached { mut stream, first_bytes }) = (client, attached);
    let first = async {
        client.write_all(&first_bytes).await?;
        for piece in early.chunks(relay::VSOCK_WRITE_MAX) {
            stream.write_all(piece).await?;
        }
        io::Result::Ok(())
    };
    match timeout(FIRST_BYTES_WITHIN, first).await {
        Ok(Ok(())) => {
            let options = relay::Options { far_end_relays: true, ..relay::Options::default() };
            // A reset is the workload's affair or the server's, and the shim counts both.
            if let Ok(stream) = Vsock::new(OwnedFd::from(stream)) {
                let _ = relay::relay_with(client, stream, &shared.counters, options).await;
            }
        }
        Ok(Err(_)) | Err(_) => reset(client),
    }
}

/// Lets the client see a reset instead of a clean end.
pub(super) fn reset(client: TcpStream) {
    // Fails only on a connection that is gone.
    let _ = client.set_zero_linger();
}
