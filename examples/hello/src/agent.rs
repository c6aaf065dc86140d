//! A client of the agent's socket: how a program in an enclave asks for
//! documents, registers and random bytes. What may be asked is described in
//! docs/attestation.md, "Inside the enclave".

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Where the agent listens for the workload.
const SOCKET: &str = "/run/enclave/agent.sock";

/// One request: `ask(Method::POST, "/v1/attestation", r#"{"user_data": "00ff"}"#)`.
pub(crate) async fn ask(
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(SOCKET).await.with_context(|| format!("cannot connect to {SOCKET}"))?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let request = Request::builder().method(method).uri(path).header(HOST, "agent");
    let request = request.body(Full::new(body.into()))?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        anyhow::Ok((head.status, body))
    };
    // The connection's own end is of no interest once the answer is here.
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}
