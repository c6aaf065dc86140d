//! `/healthz`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const CLIENTS: usize = 32;
/// A request's head must arrive within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// No connection lives longer.
const CLIENT_WITHIN: Duration = Duration::from_secs(60);
const BACK_OFF: Duration = Duration::from_millis(100);
const PROMETHEUS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// What the pages are made of.
#[derive(Debug, Clone)]
pub(crate) struct Pages {
    pub(crate) registry: Arc<Registry>,
    /// Streams of each resource; kubelet knows the plugin when every one is heard.
    pub(crate) watchers: Arc<[watch::Receiver<usize>]>,
}

/// The address is taken, or not ours.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen} (--metrics-listen)")]
pub(crate) struct BindError {
    listen: SocketAddr,
    source: io::Error,
}

pub(crate) async fn bind(listen: SocketAddr) -> Result<TcpListener, BindError> {
    let fault = |source| BindError { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(fault)?;
    let address = listener.local_addr().map_err(fault)?;
    tracing::info!(%address, "http bound");
    Ok(listener)
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, pages: Pages, stop: CancellationToken) {
    let clients = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match (accepted, Arc::clone(&places).try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                let client = answer_all(stream, pages.clone(), stop.clone());
                clients.spawn(async move {
                    client.await;
                    drop(place);
                });
            }
            (Ok(_), Err(_)) => tracing::warn!(limit = CLIENTS, "http client refused: too many"),
            (Err(error), _) => {
                tracing::warn!(%error, "cannot accept");
                sleep(BACK_OFF).await;
            }
        }
    }
    clients.close();
    clients.wait().await;
}

async fn answer_all(stream: TcpStream, pages: Pages, stop: CancellationToken) {
    let answer = service_fn(|request| {
        let response = pages.answer(&request);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::select! {
        () = stop.cancelled() => {}
        ended = timeout(CLIENT_WITHIN, connection) => {
            if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "http connection failed");
            }
        }
    }
}

impl Pages {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return page(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        }
        match request.uri().path() {
            "/healthz" => page(StatusCode::OK, "ok\n"),
            "/readyz" if self.heard() => page(StatusCode::OK, "ok\n"),
            "/readyz" => page(StatusCode::SERVICE_UNAVAILABLE, "kubelet does not listen yet\n"),
            "/metrics" => self.metrics(),
            _ => page(StatusCode::NOT_FOUND, "no such page\n"),
        }
    }

    fn heard(&self) -> bool {
        self.watchers.iter().all(|watchers| *watchers.borrow() > 0)
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            return page(StatusCode::INTERNAL_SERVER_ERROR, "cannot write the metrics\n");
        }
        let mut response = page(StatusCode::OK, text);
        response.headers_mut().insert(CONTENT_TYPE, PROMETHEUS);
        response
    }
}

fn page(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}
