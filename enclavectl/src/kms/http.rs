//! One request over HTTP/1.1, with TLS where the URL says so. The anchors are
//! the machine's own (SSL_CERT_FILE replaces them).

use std::{io, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, StatusCode, Uri,
    body::Bytes,
    header::{HOST, HeaderName},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// Answers are keys, tokens and signatures: none is longer.
const MAX_ANSWER: usize = 256 << 10;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("the URL is not http://HOST or https://HOST")]
    Url,
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("cannot begin TLS")]
    Tls(#[source] io::Error),
    #[error("this machine has no trusted certificates (install ca-certificates, or set SSL_CERT_FILE)")]
    NoAnchors,
    #[error("TLS cannot be used")]
    Config(#[source] rustls::Error),
    #[error("the request cannot be made")]
    Request(#[source] hyper::http::Error),
    #[error("the exchange broke")]
    Exchange(#[source] hyper::Error),
    #[error("the answer cannot be read: {0}")]
    Body(String),
    #[error("no answer in time")]
    Late,
}

impl HttpError {
    /// Whether the same request may succeed a moment later.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            HttpError::Connect(_)
                | HttpError::Tls(_)
                | HttpError::Exchange(_)
                | HttpError::Body(_)
                | HttpError::Late
        )
    }
}

pub(super) type Headers = Vec<(&'static str, String)>;

/// A request; `host` is added where the headers have none.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Uri,
    pub(super) headers: Headers,
    pub(super) body: Vec<u8>,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Request {
    pub(super) fn post(url: &Uri, headers: Headers, body: Vec<u8>) -> Request {
        Request { method: Method::POST, url: url.clone(), headers, body }
    }

    pub(super) fn get(url: &Uri, headers: Headers) -> Request {
        Request { method: Method::GET, url: url.clone(), headers, body: Vec::new() }
    }
}

/// Sends `request` on a connection of its own.
pub(super) async fn send(request: Request, within: Duration) -> Result<Answer, HttpError> {
    timeout(within, connect_and_exchange(request)).await.unwrap_or(Err(HttpError::Late))
}

async fn connect_and_exchange(request: Request) -> Result<Answer, HttpError> {
    let authority = request.url.authority().ok_or(HttpError::Url)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let secure = match request.url.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(HttpError::Url),
    };
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let connecting = timeout(CONNECT_WITHIN, TcpStream::connect((host.as_str(), port))).await;
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let stream = connecting.unwrap_or_else(|_| Err(late())).map_err(HttpError::Connect)?;
    if !secure {
        return exchange(stream, request).await;
    }
    let name = ServerName::try_from(host).map_err(|_| HttpError::Url)?;
    let stream = TlsConnector::from(tls()?).connect(name, stream).await.map_err(HttpError::Tls)?;
    exchange(stream, request).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request,
) -> Result<Answer, HttpError> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(HttpError::Exchange)?;
    let path = request.url.path_and_query().map_or("/", |path| path.as_str());
    let mut builder = hyper::Request::builder().method(request.method).uri(path);
    for (name, value) in &request.headers {
        builder = builder.header(HeaderName::from_static(name), value);
    }
    if !request.headers.iter().any(|(name, _)| *name == "host") {
        builder = builder.header(HOST, request.url.authority().map_or("", |authority| authority.as_str()));
    }
    let request = builder.body(Full::new(Bytes::from(request.body))).map_err(HttpError::Request)?;
    let asking = async {
        let answer = sender.send_request(request).await.map_err(HttpError::Exchange)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| HttpError::Body(error.to_string()))?.to_bytes();
        Ok(Answer { status, body })
    };
    let driver = tokio::spawn(connection);
    let answered = asking.await;
    driver.abort();
    answered
}

fn tls() -> Result<Arc<ClientConfig>, HttpError> {
    let mut anchors = RootCertStore::empty();
    anchors.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if anchors.is_empty() {
        return Err(HttpError::NoAnchors);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(HttpError::Config)?
        .with_root_certificates(anchors)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
