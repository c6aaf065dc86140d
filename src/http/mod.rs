//! The shim's own HTTP server: health, readiness, metrics, attestation.
//!
//! ```text
//! GET  /healthz          200 while the process runs
//! GET  /readyz           200 while clients are served and the agent answers, else 503; phase and steps
//! GET  /metrics          Prometheus text
//! GET  /v1/attestation?nonce=HEX | ?nonce_base64=BASE64
//! POST /v1/attestation   {"nonce": HEX} | {"nonce_base64": BASE64}
//! ```
//! Everything that a client sends is bounded in size and time, and what one
//! address may hold in number. Over TLS where `http.tls` names a certificate.

mod attestation;
mod nonce;
mod places;
pub(crate) mod tls;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attestation::Attestation;
use crate::proxy::BindError;
use crate::supervisor::Status;
use crate::timeline::{Step, Timeline};
use places::Places;

/// A request's head must arrive within this time, and no connection idles longer.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const LONGEST_HEAD: usize = 16 * 1024;
const BACK_OFF: Duration = Duration::from_millis(100);

pub(crate) type Answer = Response<Full<Bytes>>;

/// What the pages are made of.
#[derive(Debug, Clone)]
pub(crate) struct Pages {
    pub(crate) status: watch::Receiver<Status>,
    /// Whether the agent answers.
    pub(crate) pulse: watch::Receiver<bool>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) attestation: Attestation,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) debug: bool,
}

/// Listens on `listen` (`http.listen`).
pub(crate) async fn bind(listen: SocketAddr) -> Result<TcpListener, BindError> {
    let fault = |source| BindError { listen, knob: "http.listen", source };
    let listener = TcpListener::bind(listen).await.map_err(fault)?;
    let listen = listener.local_addr().map_err(fault)?;
    tracing::info!(server = "http", address = %listen, "http bound");
    Ok(listener)
}

/// Serves until `stop`, then lets requests that are being answered finish.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    pages: Pages,
    stop: CancellationToken,
) {
    let tls = tls.map(TlsAcceptor::from);
    let clients = TaskTracker::new();
    let places = Arc::new(Places::default());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, address)) => {
                // Closed at once: a client that waits in silence learns nothing.
                let Some(place) = places.take(address.ip()) else { continue };
                let (tls, pages, stop) = (tls.clone(), pages.clone(), stop.clone());
                clients.spawn(async move {
                    welcome(client, address.ip(), tls, pages, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP client");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = sleep(BACK_OFF) => {}
                }
            }
        }
    }
    clients.close();
    clients.wait().await;
}

/// Shakes hands first, where the listener has a certificate.
async fn welcome(
    client: TcpStream,
    address: IpAddr,
    tls: Option<TlsAcceptor>,
    pages: Pages,
    stop: CancellationToken,
) {
    // Fails only on a connection that is gone.
    let _ = client.set_nodelay(true);
    let Some(tls) = tls else { return converse(client, address, pages, stop).await };
    let shaken = stop.run_until_cancelled(timeout(HEAD_WITHIN, tls.accept(client))).await;
    match shaken {
        Some(Ok(Ok(client))) => converse(client, address, pages, stop).await,
        Some(Ok(Err(error))) => tracing::debug!(%error, "an HTTP client's handshake failed"),
        Some(Err(_)) | None => {}
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    client: S,
    address: IpAddr,
    pages: Pages,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(answer(request, &pages, address).await) }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(LONGEST_HEAD)
            .serve_connection(TokioIo::new(client), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP client's connection broke");
    }
}

async fn answer(request: Request<Incoming>, pages: &Pages, client: IpAddr) -> Answer {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/v1/attestation" => attestation::answer(request, pages, client).await,
        "/healthz" | "/readyz" | "/metrics" if !reads => not_allowed("GET, HEAD"),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => readyz(pages),
        "/metrics" => metrics(pages),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// The phase, then a line for every step so far.
fn readyz(pages: &Pages) -> Answer {
    let status = pages.status.borrow().clone();
    let answers = *pages.pulse.borrow();
    let code = if status.ready && answers { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut page = format!("{}\n", status.phase);
    if !answers {
        page.push_str("the agent does not answer\n");
    }
    if pages.debug {
        page.push_str("debug mode: all PCRs are zero\n");
    }
    for Step { step, at_ms } in pages.timeline.steps() {
        page.push_str(&format!("{at_ms:>6} ms  {step}\n"));
    }
    text(code, page)
}

fn metrics(pages: &Pages) -> Answer {
    let mut page = String::new();
    match prometheus_client::encoding::text::encode(&mut page, &pages.registry) {
        Ok(()) => typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", page),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(code, "text/plain; charset=utf-8", body)
}

fn typed(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests;
