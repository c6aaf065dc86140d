//! The engines on the asynchronous runtime: accept, dial, carry.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use relay::{Carriers, Counters, Options, VSOCK_WRITE_MAX, Vsock};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio_vsock::{VsockAddr, VsockStream};

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
    let (failed, failure) = oneshot::channel();
    let accept = move |spread| async move {
        let dealer = Dealer { engine, to, spread, counters: Arc::default() };
        // Told below; nobody else waits for it.
        let _ = failed.send(dealer.accept(listener, listen).await);
    };
    let waiting = Builder::new_current_thread().build()?;
    match runtime {
        Runtime::Shared => {
            let shared = Builder::new_multi_thread().enable_all().build()?;
            shared.spawn(accept(Spread::Shared(shared.handle().clone())));
            println!("ready");
            waiting.block_on(failure).map_err(io::Error::other)?
        }
        Runtime::PerCore => {
            let carriers = Arc::new(Carriers::start(usize::MAX)?);
            carriers.accept(accept(Spread::PerCore(Arc::clone(&carriers))));
            println!("ready");
            waiting.block_on(failure).map_err(io::Error::other)?
        }
    }
}

/// Where a connection's task goes.
enum Spread {
    Shared(Handle),
    PerCore(Arc<Carriers>),
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
    /// Deals for as long as accepting works.
    async fn accept(&self, listener: Listener, listen: Endpoint) -> io::Result<()> {
        let listener = relay::Listener::new(listener)?;
        loop {
            let (near, _) = listener.accept().await?;
            self.deal(match listen {
                Endpoint::Tcp(_) => Near::Tcp(near.into()),
                Endpoint::Vsock { .. } => Near::Vsock(near),
            });
        }
    }

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
    let explored = Explored::of(engine);
    match (near, to) {
        (Near::Tcp(tcp), Endpoint::Vsock { cid, port }) => {
            let tcp = TcpStream::from_std(tcp)?;
            tcp.set_nodelay(true)?;
            match explored {
                Some(explored) => {
                    explored.carry(tcp, VsockStream::connect(VsockAddr::new(cid, port)).await?).await
                }
                None => ours(engine, tcp, Vsock::connect(cid, port).await?, counters).await,
            }
        }
        (Near::Vsock(vsock), Endpoint::Tcp(address)) => {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            match explored {
                Some(explored) => explored.carry(tcp, VsockStream::from(vsock)).await,
                None => ours(engine, tcp, Vsock::new(vsock)?, counters).await,
            }
        }
        _ => Err(io::Error::other("one side must be TCP, the other vsock")),
    }
}

async fn ours(engine: Engine, tcp: TcpStream, vsock: Vsock, counters: &Counters) -> io::Result<()> {
    let far_end_relays = engine == Engine::BetweenRelays;
    let options = Options { far_end_relays, ..Options::default() };
    relay::relay_with(tcp, vsock, counters, options).await.map(drop).map_err(io::Error::other)
}

/// The engines that did not win.
#[derive(Debug, Clone, Copy)]
enum Explored {
    Small,
    Owned,
    Splice,
}

impl Explored {
    fn of(engine: Engine) -> Option<Explored> {
        match engine {
            Engine::Small => Some(Explored::Small),
            Engine::Owned => Some(Explored::Owned),
            Engine::Splice => Some(Explored::Splice),
            _ => None,
        }
    }

    async fn carry(self, mut tcp: TcpStream, vsock: VsockStream) -> io::Result<()> {
        match self {
            Explored::Small => copy_bidirectional(&mut tcp, &mut Capped(vsock)).await.map(drop),
            Explored::Owned => {
                copy_bidirectional_with_sizes(&mut tcp, &mut Capped(vsock), OWNED, OWNED).await.map(drop)
            }
            Explored::Splice => splice::carry(tcp, vsock).await,
        }
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
