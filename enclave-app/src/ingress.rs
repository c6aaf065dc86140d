//! Carries client connections from the shim to the workload's own ports.
//!
//! ```text
//! shim ─vsock:port─▶ permit ─▶ connect 127.0.0.1:port, then [::1]:port ─▶ relay
//! ```
//! Bytes are never read here: TLS ends in the workload.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use relay::Counters;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_vsock::VsockStream;

use crate::listener;

/// Connections at once over all ports.
const MAX_CONNECTIONS: usize = 4096;

/// Every listener and connection of the workload's ports.
#[derive(Debug)]
pub(crate) struct Ingress {
    listeners: TaskTracker,
    connections: TaskTracker,
    stop: CancellationToken,
}

/// A port that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on vsock port {port}")]
pub(crate) struct PortTaken {
    port: u16,
    source: io::Error,
}

impl Ingress {
    /// Listens on every port of `ports`.
    pub(crate) fn open(ports: &[u16]) -> Result<Ingress, PortTaken> {
        let ingress = Ingress {
            listeners: TaskTracker::new(),
            connections: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let counters = Arc::new(Counters::default());
        for &port in ports {
            let listener = listener::bind(port.into()).map_err(|source| PortTaken { port, source })?;
            let (permits, stop) = (Arc::clone(&permits), ingress.stop.clone());
            let (connections, counters) = (ingress.connections.clone(), Arc::clone(&counters));
            ingress.listeners.spawn(async move {
                listener::listen(listener, &format!("ingress {port}"), permits, stop, |stream, permit| {
                    let counters = Arc::clone(&counters);
                    connections.spawn(async move {
                        carry(stream, port, &counters).await;
                        drop(permit);
                    });
                })
                .await;
            });
        }
        Ok(ingress)
    }

    /// Takes nothing new and waits until every connection has ended.
    pub(crate) async fn drain(&self) {
        self.stop.cancel();
        self.listeners.close();
        self.listeners.wait().await;
        self.connections.close();
        self.connections.wait().await;
    }
}

/// Without a drain (the workload was never started) the listeners end with it.
impl Drop for Ingress {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One connection. A reset is the client's affair or the workload's, and the
/// shim counts both; the console is for what concerns the enclave as a whole.
async fn carry(vsock: VsockStream, port: u16, counters: &Counters) {
    if let Ok(workload) = connect(port).await {
        let options = relay::Options { far_end_relays: true, ..relay::Options::default() };
        let _ = relay::relay_with(workload, vsock, counters, options).await;
    }
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut outcome = Err(io::ErrorKind::ConnectionRefused.into());
    for address in loopbacks {
        outcome = TcpStream::connect((address, port)).await;
        if let Ok(stream) = &outcome {
            // Small answers must not wait for an acknowledgement of the previous one.
            stream.set_nodelay(true)?;
            break;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_workload_that_listens_on_either_loopback_is_reached() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let (dialled, accepted) = tokio::join!(connect(port), listener.accept());
            assert_eq!(dialled.unwrap().local_addr().unwrap(), accepted.unwrap().1);
        }
    }
}
