//! Tells kubelet that a plugin serves.

use std::io;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};

use super::api::registration_client::RegistrationClient;
use super::api::{KUBELET_SOCKET, RegisterRequest, VERSION};
use super::service::OPTIONS;

/// Kubelet dials back within `Register` and gives itself 10 s for that.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// What HTTP/2 has to call a peer that has no name.
const ORIGIN: &str = "http://localhost";

/// Why kubelet does not know of us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistrationError {
    #[error("cannot connect to {} (is kubelet running?)", .path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("kubelet does not speak HTTP/2")]
    Handshake(#[source] hyper::Error),
    #[error("kubelet refuses: {:?}: {}", .0.code(), .0.message())]
    Refused(tonic::Status),
    #[error("kubelet has not answered within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
}

/// Registers `resource`, served on the socket `endpoint` of `plugins`.
pub(crate) async fn register(
    plugins: &Path,
    endpoint: &str,
    resource: &str,
) -> Result<(), RegistrationError> {
    let request = RegisterRequest {
        version: VERSION.into(),
        endpoint: endpoint.into(),
        resource_name: resource.into(),
        options: Some(OPTIONS),
    };
    timeout(ANSWER_WITHIN, call(plugins.join(KUBELET_SOCKET), request))
        .await
        .unwrap_or(Err(RegistrationError::Silent))
}

async fn call(path: PathBuf, request: RegisterRequest) -> Result<(), RegistrationError> {
    let stream =
        UnixStream::connect(&path).await.map_err(|source| RegistrationError::Connect { path, source })?;
    let (kubelet, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(RegistrationError::Handshake)?;
    let mut client = RegistrationClient::with_origin(Kubelet(kubelet), http::Uri::from_static(ORIGIN));
    let answer = async move {
        let answer = client.register(request).await;
        answer.map(drop).map_err(RegistrationError::Refused)
    };
    // The connection ends after the answer, because its only client is gone then.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

/// The connection as tonic wants it.
#[derive(Debug)]
struct Kubelet(SendRequest<Body>);

impl Service<Request<Body>> for Kubelet {
    type Response = hyper::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
