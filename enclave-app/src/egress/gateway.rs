//! Takes connections to the addresses of names.
//!
//! ```text
//! accept ─▶ carrier ─▶ which address? ─┬─ of a name ─▶ policy ─▶ dial ─▶ relay
//!                                      │                  └ refused ─┴─▶ reset
//!                                      └─ the gateway's: DNS or proxy, by the port
//! ```
//! The workload's connect succeeds before anything is known of the target: a
//! refusal is a reset right after it. A connection stays on one carrier from its
//! accept to its end; the shim's vsock comes to it there, after its hello.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use egress::{Host, Target};
use nix::sys::socket::{setsockopt, sockopt};
use relay::{Carriers, Listener, Vsock};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dials::Attached;
use super::network::{DNS_PORT, GATEWAY, PROXY_PORT};
use super::{Shared, proxy, resolver};
use crate::listener::{self, Accept, Places};

/// For the few bytes that came with the connection to be taken.
const FIRST_BYTES_WITHIN: Duration = Duration::from_secs(10);

/// Clients as they are accepted: no runtime watches them yet.
struct Clients(Listener);

impl Accept for Clients {
    type Stream = std::net::TcpStream;

    async fn accept(&mut self) -> io::Result<std::net::TcpStream> {
        Ok(self.0.accept().await?.0.into())
    }

    fn refuse(client: std::net::TcpStream) {
        reset(client);
    }
}

/// Accepts until `closing`; connections go on until `stop`.
pub(super) async fn accept(
    listener: Listener,
    shared: Arc<Shared>,
    carriers: Arc<Carriers>,
    places: Arc<Places>,
    connections: TaskTracker,
    (closing, stop): (CancellationToken, CancellationToken),
) {
    listener::listen(Clients(listener), "egress", places, closing, |client, place| {
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        let (carrier, seat) = carriers.place();
        let served = async move {
            stop.run_until_cancelled(serve(client, &shared)).await;
            drop((place, seat));
        };
        connections.spawn_on(served, &carrier);
    })
    .await;
}

async fn serve(client: std::net::TcpStream, shared: &Shared) {
    let Ok(client) = TcpStream::from_std(client) else { return };
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
        Ok(attached) => carry(client, attached, Vec::new(), shared).await,
        Err(reason) => {
            shared.tell(|| format!("egress: {target}: {reason}"));
            reset(client);
        }
    }
}

/// Carries until both directions have ended; `already_read` are bytes that the
/// client has already sent.
pub(super) async fn carry(client: TcpStream, attached: Attached, already_read: Vec<u8>, shared: &Shared) {
    let (mut client, Attached { stream, first_bytes }) = (client, attached);
    let first = timeout(FIRST_BYTES_WITHIN, client.write_all(&first_bytes)).await;
    drop(first_bytes);
    match (first, Vsock::new(stream)) {
        (Ok(Ok(())), Ok(stream)) => {
            let options = relay::Options { far_end_relays: true, already_read, ..relay::Options::default() };
            // A reset is the workload's affair or the server's, and the shim counts both.
            let _ = relay::relay_with(client, stream, &shared.counters, options).await;
        }
        _ => reset(client),
    }
}

/// Lets the client see a reset instead of a clean end.
pub(super) fn reset(client: impl AsFd) {
    // Fails only on a connection that is gone.
    let _ = setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}

#[cfg(test)]
mod tests {
    use super::super::{Dials, Egress};
    use super::*;
    use egress::names::Names;
    use std::net::Ipv4Addr;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;
    use wire::ToShim;

    /// An egress on loopback with `places`, whose one name, api.example.com, is 127.0.0.1.
    fn egress(carriers: &Arc<Carriers>, places: usize) -> (Egress, Arc<Shared>, SocketAddr) {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let policy = vec![format!("api.example.com:{}", address.port())].try_into().unwrap();
        let mut names = Names::new(Ipv4Addr::LOCALHOST, 1);
        names.address(&"api.example.com".parse().unwrap()).unwrap();
        let shared = Arc::new(Shared::new(policy, Arc::new(Dials::default()), names));
        let egress = Egress::with(Arc::clone(carriers), places);
        egress.accept(carriers.listener(socket).unwrap(), &shared);
        (egress, shared, address)
    }

    #[tokio::test]
    async fn a_connection_is_a_carriers_task_from_its_accept_to_its_end_and_a_drain_waits_for_it() {
        let carriers = Arc::new(Carriers::start(2).unwrap());
        let (egress, shared, address) = egress(&carriers, 8);
        let mut client = TcpStream::connect(address).await.unwrap();
        let ToShim::Dial { stream, .. } = shared.dials.next_request().await else { panic!("no dial") };
        assert_eq!(carriers.tasks(), 1, "it waits on a carrier");
        assert_eq!(egress.places.free(), 7);

        let (mut shim, near) = UnixStream::pair().unwrap();
        let stream_to_shim = near.into_std().unwrap().into();
        let attached = Attached { stream: stream_to_shim, first_bytes: b"first, ".to_vec() };
        shared.dials.settle(stream, Ok(attached));
        shim.write_all(b"then").await.unwrap();
        client.write_all(b"question").await.unwrap();
        let mut said = [0; 11];
        client.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"first, then");
        assert_eq!(carriers.tasks(), 1, "it is carried where it waited");

        let drained = egress.drain();
        tokio::pin!(drained);
        assert!(timeout(Duration::ZERO, &mut drained).await.is_err());
        egress.listeners.wait().await;
        assert!(timeout(Duration::ZERO, &mut drained).await.is_err(), "a connection is open");
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
        client.shutdown().await.unwrap();
        let mut asked = Vec::new();
        shim.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"question");
        drop(shim);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "a clean end");
        drained.await;
        assert_eq!(egress.places.free(), 8);
    }

    #[tokio::test]
    async fn an_enclave_that_is_over_resets_what_is_open() {
        let carriers = Arc::new(Carriers::start(1).unwrap());
        let (egress, shared, address) = egress(&carriers, 8);
        let mut client = TcpStream::connect(address).await.unwrap();
        let ToShim::Dial { stream, .. } = shared.dials.next_request().await else { panic!("no dial") };
        let (_shim, near) = UnixStream::pair().unwrap();
        let attached = Attached { stream: near.into_std().unwrap().into(), first_bytes: b"x".to_vec() };
        shared.dials.settle(stream, Ok(attached));
        client.read_exact(&mut [0]).await.unwrap();
        drop(egress);
        let end = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_client_without_a_place_is_reset_and_the_next_finds_the_one_that_was_given_back() {
        let carriers = Arc::new(Carriers::start(1).unwrap());
        let (egress, shared, address) = egress(&carriers, 1);
        let mut first = TcpStream::connect(address).await.unwrap();
        let ToShim::Dial { stream, .. } = shared.dials.next_request().await else { panic!("no dial") };
        // The reset may overtake the end of the connect.
        let end = match TcpStream::connect(address).await {
            Ok(mut second) => second.read(&mut [0]).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);

        shared.dials.refuse(stream, wire::Undialled::Refused);
        assert_eq!(first.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        // The place is given back right after the reset.
        while egress.places.free() == 0 {
            tokio::task::yield_now().await;
        }
        let _third = TcpStream::connect(address).await.unwrap();
        let ToShim::Dial { .. } = shared.dials.next_request().await else { panic!("no dial") };
    }
}
