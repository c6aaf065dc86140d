//! Carries connections from the shim to the workload's own ports.
//!
//! ```text
//! shim ─vsock:port───────────────────────▶ permit ─▶ [ TLS ] ─▶ connect 127.0.0.1:port, then [::1]:port ─▶ relay
//! shim ─vsock:5704─▶ hello, PROXY header ──▲                 └ header first
//! ```
//! Bytes are never read here: TLS ends in the workload, or in
//! [`crate::attested_tls`] on the ports that the settings name. A port whose
//! workload reads PROXY headers is reached in the second way only: whoever
//! dials it directly could name any client.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use relay::{Carriers, Counters, Options, Vsock};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::settings::Settings;
use wire::{AnnouncedRequest, ProxyHeader, port};

use crate::attested_tls::AttestedTls;
use crate::claim::{Claim, Purpose};
use crate::frames::Frames;
use crate::listener::{self, Places};

/// Connections at once over all ports: two descriptors each, of 65,536.
const MAX_CONNECTIONS: usize = 16_384;
/// For a request to follow its hello; both come at once.
const REQUEST_WITHIN: Duration = Duration::from_secs(2);
/// For the workload to take a connection. Its kernel answers at once, unless the queue of
/// what it has not accepted is full: then the SYN is dropped and sent again after 1, 3 and
/// 7 s, here, and for two minutes without a limit.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Every listener and connection of the workload's ports.
#[derive(Debug)]
pub(crate) struct Ingress {
    listeners: TaskTracker,
    connections: TaskTracker,
    stop: CancellationToken,
    places: Arc<Places>,
    carriers: Arc<Carriers>,
    counters: Arc<Counters>,
}

/// Why the workload's ports cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngressError {
    #[error("cannot listen on vsock port {port}")]
    Taken { port: u32, source: io::Error },
}

impl Ingress {
    /// Listens for every ingress port of the settings, connections on `carriers`; TLS
    /// ends here where `tls` says so.
    pub(crate) fn open(
        settings: &Settings,
        claim: &Arc<Claim>,
        tls: Option<&Arc<AttestedTls>>,
        carriers: Arc<Carriers>,
    ) -> Result<Ingress, IngressError> {
        let ingress = Ingress {
            listeners: TaskTracker::new(),
            connections: TaskTracker::new(),
            stop: CancellationToken::new(),
            places: Arc::new(Places::new(MAX_CONNECTIONS)),
            carriers,
            counters: Arc::default(),
        };
        let plain = settings.ingress.iter().filter(|port| !settings.proxy_protocol.contains(port));
        for &port in plain {
            let tls = tls.filter(|tls| tls.ends_at(port)).cloned();
            ingress.listen(port.into(), move |stream, counters| {
                let tls = tls.clone();
                async move {
                    match tls {
                        Some(tls) => carry_tls(stream, port, &counters, &tls).await,
                        None => {
                            let options = Options { far_end_relays: true, ..Options::default() };
                            carry(stream, port, &counters, options).await;
                        }
                    }
                }
            })?;
        }
        if !settings.proxy_protocol.is_empty() {
            let (claim, ports) = (Arc::clone(claim), Arc::from(settings.proxy_protocol.as_slice()));
            ingress.listen(port::ANNOUNCED, move |stream, counters| {
                announced(Arc::clone(&claim), Arc::clone(&ports), stream, counters)
            })?;
        }
        Ok(ingress)
    }

    fn listen<F: Future<Output = ()> + Send + 'static>(
        &self,
        port: u32,
        serve: impl Fn(OwnedFd, Arc<Counters>) -> F + Send + 'static,
    ) -> Result<(), IngressError> {
        let listener = listener::bind(port).and_then(|socket| self.carriers.listener(socket));
        let listener = listener.map_err(|source| IngressError::Taken { port, source })?;
        let (places, stop) = (Arc::clone(&self.places), self.stop.clone());
        let (connections, counters) = (self.connections.clone(), Arc::clone(&self.counters));
        let carriers = Arc::clone(&self.carriers);
        let accepting = async move {
            let start = move |stream, place: OwnedSemaphorePermit| {
                let served = serve(stream, Arc::clone(&counters));
                let (carrier, seat) = carriers.place();
                let carried = async move {
                    served.await;
                    drop((place, seat));
                };
                connections.spawn_on(carried, &carrier);
            };
            listener::listen(listener, &format!("ingress {port}"), places, stop, start).await;
        };
        self.carriers.accept(self.listeners.track_future(accepting));
        Ok(())
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
async fn carry(vsock: OwnedFd, port: u16, counters: &Counters, options: Options) {
    if let Ok(workload) = connect(port).await
        && let Ok(vsock) = Vsock::new(vsock)
    {
        let _ = relay::relay_with(workload, vsock, counters, options).await;
    }
}

/// The same behind a handshake. The workload is dialled only for who has
/// shaken hands, and a connection without TLS's own end is a reset to it.
async fn carry_tls(vsock: OwnedFd, port: u16, counters: &Counters, tls: &AttestedTls) {
    if let Ok(vsock) = Vsock::new(vsock)
        && let Ok(mut client) = tls.accept(vsock).await
        && let Ok(workload) = connect(port).await
    {
        let _ = relay::relay_over(workload, &mut client, counters, Options::default()).await;
    }
}

/// The same for a client that the shim introduces.
async fn announced(claim: Arc<Claim>, ports: Arc<[u16]>, stream: OwnedFd, counters: Arc<Counters>) {
    // Boxed: its buffers must not stay with the connection for life.
    let Some((vsock, port, header)) = Box::pin(introduction(&claim, &ports, stream)).await else { return };
    let Ok(mut workload) = connect(port).await else { return };
    if workload.write_all(header.bytes()).await.is_ok() {
        drop(header);
        let options = Options { far_end_relays: true, ..Options::default() };
        let _ = relay::relay_with(workload, vsock, &counters, options).await;
    }
}

/// Whoever cannot show the session's token is told so and closed; so is a
/// header that is none, and a port whose workload reads no headers.
async fn introduction(claim: &Claim, ports: &[u16], stream: OwnedFd) -> Option<(Vsock, u16, ProxyHeader)> {
    let mut frames = Frames::new(Vsock::new(stream).ok()?);
    claim.greet(Purpose::Announced, &mut frames).await.ok()?;
    let request = tokio::time::timeout(REQUEST_WITHIN, frames.receive::<AnnouncedRequest>()).await;
    let AnnouncedRequest { port, header } = request.ok()?.ok()??;
    let header = ProxyHeader::parse(header.into()).ok()?;
    let vsock = frames.into_stream()?;
    ports.contains(&port).then_some((vsock, port, header))
}

/// A workload that has stopped accepting is as good as one that refuses: a client must not
/// wait for it in silence, nor keep the place of others.
async fn connect(port: u16) -> io::Result<TcpStream> {
    tokio::time::timeout(CONNECT_WITHIN, connect_to_either(port)).await?
}

async fn connect_to_either(port: u16) -> io::Result<TcpStream> {
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
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpSocket, UnixStream};
    use tokio::time::{Instant, timeout};
    use wire::{Greeting, Hello, PROTOCOL, Refusal, SessionToken};

    #[tokio::test]
    async fn a_workload_that_listens_on_either_loopback_is_reached() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let (dialled, accepted) = tokio::join!(connect(port), listener.accept());
            assert_eq!(dialled.unwrap().local_addr().unwrap(), accepted.unwrap().1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_that_has_stopped_accepting_holds_no_client() {
        let workload = TcpSocket::new_v4().unwrap();
        workload.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let workload = workload.listen(1).unwrap();
        let address = workload.local_addr().unwrap();
        // Until the kernel drops a SYN. The clock of these is the real one.
        let one_more = || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1));
        let mut queue = Vec::new();
        let full = loop {
            match one_more() {
                Ok(client) => queue.push(client),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::TimedOut, "after {}", queue.len());

        let (mut client, near) = UnixStream::pair().unwrap();
        let near = OwnedFd::from(near.into_std().unwrap());
        let counters = Counters::default();
        let begun = Instant::now();
        let carried = carry(near, address.port(), &counters, Options::default());
        timeout(Duration::from_secs(60), carried).await.expect("it is given up");
        assert_eq!(begun.elapsed().as_secs(), CONNECT_WITHIN.as_secs());
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "closed, as by one that refuses");
    }

    #[tokio::test(start_paused = true)]
    async fn an_introduction_that_stops_half_way_is_not_waited_for() {
        let hello = Hello { version: PROTOCOL, token: SessionToken::from_random([1; 16]) };
        let claim = Claim::default();
        let (near, far) = tokio::io::duplex(1024);
        Frames::new(far).send(&hello).await.unwrap();
        claim.greet(Purpose::Control, &mut Frames::new(near)).await.unwrap_err();
        assert!(claim.is_made(), "by a shim that did not wait for its welcome");

        let header = ProxyHeader::tcp("192.0.2.7:4711".parse().unwrap(), "10.0.0.1:443".parse().unwrap());
        let request = AnnouncedRequest { port: 7000, header: header.bytes().to_vec().into() };
        let (hello, request) = (wire::encode(&hello).unwrap(), wire::encode(&request).unwrap());
        let whole = [hello.as_slice(), request.as_slice()].concat();
        for said in [0, 3, hello.len() - 1, hello.len(), whole.len() - 1, whole.len()] {
            let begun = Instant::now();
            let (mut far, near) = UnixStream::pair().unwrap();
            far.write_all(&whole[..said]).await.unwrap();
            let near = OwnedFd::from(near.into_std().unwrap());
            let introduced =
                timeout(Duration::from_secs(60), introduction(&claim, &[7000], near)).await.unwrap();
            assert_eq!(introduced.is_some(), said == whole.len(), "after {said} bytes");
            assert!(begun.elapsed() < Duration::from_secs(3), "after {said} bytes: {:?}", begun.elapsed());
            let greeting = Frames::new(far).receive::<Greeting>().await.unwrap().unwrap();
            let refused = greeting == Greeting::Refused(Refusal::NotAHello);
            assert_eq!(refused, said < hello.len(), "after {said} bytes: {greeting:?}");
        }
    }
}
