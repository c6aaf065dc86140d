//! The engines on the asynchronous runtime: accept, dial, carry.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use relay::{Carriers, Counters, Options, VSOCK_WRITE_MAX};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};

use super::{Engine, Listener, Runtime, splice};
use crate::endpoint::Endpoint;

const OWNED: usize = 256 * 1024;

pub(super) fn run(
    engine: Engine,
    runtime: Runtime,
    listener: Listener,
    listen: Endpoint,
    to: Endpoint,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let accepting = match runtime {
        Runtime::Shared => Builder::new_multi_thread().enable_all().build()?,
        Runtime::PerCore => Builder::new_current_thread().enable_all().build()?,
    };
    let spread = match runtime {
        Runtime::Shared => Spread::Shared(accepting.handle().clone()),
        Runtime::PerCore => Spread::PerCore(Carriers::start(usize::MAX)?),
    };
    let dealer = Dealer { engine, to, spread, counters: Arc::default() };
    println!("ready");
    accepting.block_on(async {
        match listen {
            Endpoint::Tcp(_) => {
                let listener = TcpListener::from_std(OwnedFd::from(listener).into())?;
                loop {
                    dealer.deal(Near::Tcp(listener.accept().await?.0.into_std()?));
                }
            }
            Endpoint::Vsock { .. } => {
                let listener = VsockListener::from(OwnedFd::from(listener));
                loop {
                    dealer.deal(Near::Vsock(OwnedFd::from(listener.accept().await?.0)));
                }
            }
        }
    })
}

/// Where a connection's task goes.
enum Spread {
    Shared(Handle),
    PerCore(Carriers),
}

/// An accepted connection that no runtime knows yet.
enum Near {
    Tcp(std::net::TcpStream),
    Vsock(OwnedFd),
}

struct Dealer {
    engine: Engine,
    to: Endpoint,
    spread: Spread,
    counters: Arc<Counters>,
}

impl Dealer {
    fn deal(&self, near: Near) {
        let (engine, to, counters) = (self.engine, self.to, Arc::clone(&self.counters));
        let (runtime, place) = match &self.spread {
            Spread::Shared(runtime) => (runtime.clone(), None),
            Spread::PerCore(carriers) => {
                let (runtime, place) = carriers.place();
                (runtime, Some(place))
            }
        };
        runtime.spawn(async move {
            // A broken connection is its peers' affair; they see it.
            let _ = connection(engine, near, to, &counters).await;
            drop(place);
        });
    }
}

async fn connection(engine: Engine, near: Near, to: Endpoint, counters: &Counters) -> io::Result<()> {
    let (tcp, vsock) = match (near, to) {
        (Near::Tcp(tcp), Endpoint::Vsock { cid, port }) => {
            (TcpStream::from_std(tcp)?, VsockStream::connect(VsockAddr::new(cid, port)).await?)
        }
        (Near::Vsock(vsock), Endpoint::Tcp(address)) => {
            (TcpStream::connect(address).await?, VsockStream::from(vsock))
        }
        _ => return Err(io::Error::other("one side must be TCP, the other vsock")),
    };
    tcp.set_nodelay(true)?;
    carry(engine, tcp, vsock, counters).await
}

async fn carry(
    engine: Engine,
    mut tcp: TcpStream,
    vsock: VsockStream,
    counters: &Counters,
) -> io::Result<()> {
    match engine {
        Engine::Small => copy_bidirectional(&mut tcp, &mut Capped(vsock)).await.map(drop),
        Engine::Owned => {
            copy_bidirectional_with_sizes(&mut tcp, &mut Capped(vsock), OWNED, OWNED).await.map(drop)
        }
        Engine::Splice => splice::carry(tcp, vsock).await,
        Engine::BetweenRelays => {
            let options = Options { far_end_relays: true, ..Options::default() };
            relay::relay_with(tcp, vsock, counters, options).await.map(drop).map_err(io::Error::other)
        }
        _ => relay::relay(tcp, vsock, counters).await.map(drop).map_err(io::Error::other),
    }
}

/// A vsock with the write cap, for engines that know of none.
struct Capped(VsockStream);

impl AsyncRead for Capped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Capped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, &bytes[..bytes.len().min(VSOCK_WRITE_MAX)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.first().map_or(&[][..], |slice| slice);
        self.poll_write(context, first)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
