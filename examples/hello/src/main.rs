//! A small server to run in an enclave: the demonstration's workload, and the
//! instrument by which the tests see what a workload sees and may do.
//!
//! ```text
//! 8080  HTTP/1.1, see [`http`]
//! 8443  the same; for the agent to put TLS before it (`attested_tls` in the manifest)
//! 8081  raw TCP: counts what comes, answers after the peer's half-close, see [`count`]
//! 8082  raw TCP: half-closes first, counts what still comes, see [`count`]
//! ```
//! SIGTERM: no new connection, requests in flight are finished, exit 0.

#![forbid(unsafe_code)]

mod agent;
mod count;
mod http;
mod probe;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const HTTP_PORT: u16 = 8080;
const ATTESTED_PORT: u16 = 8443;
const COUNT_PORT: u16 = 8081;
const SHUT_DOWN_PORT: u16 = 8082;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let connections = TaskTracker::new();
    let web = listen(HTTP_PORT).await?;
    let attested = listen(ATTESTED_PORT).await?;
    let counter = listen(COUNT_PORT).await?;
    let shut_down = listen(SHUT_DOWN_PORT).await?;
    println!("hello: listening on {HTTP_PORT} and {COUNT_PORT}");
    notify()?;
    tokio::join!(
        accept(web, &connections, &stop, |stream| http::serve(stream, stop.clone())),
        accept(attested, &connections, &stop, |stream| http::serve(stream, stop.clone())),
        accept(counter, &connections, &stop, count::serve),
        accept(shut_down, &connections, &stop, count::serve_shut_down),
        async {
            terminate.recv().await;
            println!("hello: stopping");
            stop.cancel();
        }
    );
    connections.close();
    connections.wait().await;
    println!("hello: stopped");
    Ok(())
}

/// Says that it is ready, where somebody listens for it (sd_notify(3)).
/// HELLO_SILENT=1 keeps it quiet.
fn notify() -> anyhow::Result<()> {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    if std::env::var_os("HELLO_SILENT").is_none() {
        UnixDatagram::unbound()?
            .send_to(b"READY=1", &socket)
            .with_context(|| format!("cannot notify {}", socket.display()))?;
    }
    Ok(())
}

async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Serves every connection in a task of its own until `stop`.
async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    connections: &TaskTracker,
    stop: &CancellationToken,
    serve: impl Fn(TcpStream) -> F,
) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => drop(connections.spawn(serve(stream))),
            Err(error) => {
                // Out of descriptors, usually: connections that end make room.
                eprintln!("hello: cannot accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}
