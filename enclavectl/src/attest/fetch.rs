//! Asks a shim for a document over plain HTTP: the nonce protects the answer.

use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use attestation::MAX_DOCUMENT;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::failure::{Blame, Failure, OrBlame};

/// The relay's own deadline is shorter.
const WITHIN: Duration = Duration::from_secs(30);
const NONCE_LEN: usize = 32;
const PATH: &str = "/v1/attestation";

pub(super) fn fresh_nonce() -> anyhow::Result<Vec<u8>> {
    let mut nonce = vec![0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|error| anyhow!("no randomness: {error}"))?;
    Ok(nonce)
}

/// The document that the shim at `url` gives for `nonce`. It is not looked into.
pub(super) async fn document(url: &Uri, nonce: &[u8]) -> Result<Vec<u8>, Failure> {
    if url.scheme_str() != Some("http") || url.query().is_some() {
        let wrong = anyhow!("{url} is not http://HOST[:PORT][/PATH]");
        return Err(Failure::new(Blame::Usage, wrong));
    }
    let asked = timeout(WITHIN, ask(url, nonce)).await;
    asked
        .context("no answer in time")
        .and_then(|answer| answer)
        .with_context(|| url.to_string())
        .or_blame(Blame::Io)
}

async fn ask(url: &Uri, nonce: &[u8]) -> anyhow::Result<Vec<u8>> {
    let authority = url.authority().context("no host is named")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream =
        TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await.context("cannot connect")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let path = if url.path() == "/" { PATH } else { url.path() };
    let request = Request::get(format!("{path}?nonce={}", hex::encode(nonce)))
        .header(HOST, authority.as_str())
        .header(ACCEPT, "application/cbor")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let answer = sender.send_request(request).await.context("no answer")?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_DOCUMENT).collect().await;
        let body = body.map_err(|error| anyhow!("the answer cannot be read: {error}"))?.to_bytes();
        anyhow::Ok((status, body))
    };
    let driver = tokio::spawn(connection);
    let answered = exchange.await;
    driver.abort();
    let (status, body) = answered?;
    ensure!(status == StatusCode::OK, "the shim answers {status}: {}", reason(&body));
    Ok(body.to_vec())
}

/// `{"error": TEXT}`, or the beginning of whatever else came, on one line.
fn reason(body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let text = json.as_ref().and_then(|json| json["error"].as_str().map(str::to_owned));
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    text.chars().take(200).map(|char| if char.is_control() { ' ' } else { char }).collect()
}
