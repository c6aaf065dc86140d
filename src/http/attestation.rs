//! /v1/attestation: a nonce in, a document out.
//!
//! Answers: 200, 400 bad nonce, 405, 408, 413, 429 queue full, 502 agent trouble,
//! 503 not serving or busy, 504 agent too slow. Errors are `{"error": TEXT}`. No page of
//! another origin may read them: there is no CORS header, and none is wanted.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use tokio::time::timeout;

use super::{Answer, Pages, nonce, not_allowed, typed};
use crate::attestation::{NoDocument, Nonce};

/// Bytes of a POST: 1024 bytes of nonce in hex, and room for white space.
const LONGEST_BODY: usize = 4 * 1024;
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// The agent's queue is a second's work of the NSM or less.
const BUSY_FOR: Duration = Duration::from_secs(1);

pub(super) async fn answer(request: Request<Incoming>, pages: &Pages, client: IpAddr) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return not_allowed("GET, POST");
    }
    if !pages.status.borrow().attests {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the enclave is not ready");
    }
    let raw = wants_cbor(&request);
    let nonce = match read_nonce(request).await {
        Ok(nonce) => nonce,
        Err((code, reason)) => return error(code, &reason),
    };
    match pages.attestation.document(client, nonce).await {
        Ok(document) if raw => typed(StatusCode::OK, "application/cbor", document),
        Ok(document) => {
            let json = serde_json::json!({ "document": STANDARD.encode(document) });
            typed(StatusCode::OK, "application/json", json.to_string())
        }
        Err(reason) => refusal(&reason),
    }
}

/// True when the client names CBOR (or COSE, which a document is) as acceptable.
fn wants_cbor(request: &Request<Incoming>) -> bool {
    request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value
            .split(',')
            .filter_map(|range| range.split(';').next())
            .any(|range| matches!(range.trim(), "application/cbor" | "application/cose"))
    })
}

async fn read_nonce(request: Request<Incoming>) -> Result<Nonce, (StatusCode, String)> {
    let bad = |error: nonce::NonceError| (StatusCode::BAD_REQUEST, error.to_string());
    if request.method() == Method::GET {
        return nonce::from_query(request.uri().query().unwrap_or_default()).map_err(bad);
    }
    let body = Limited::new(request.into_body(), LONGEST_BODY);
    let body: Bytes = match timeout(BODY_WITHIN, body.collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let reason = format!("a request has at most {LONGEST_BODY} bytes");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, reason));
        }
        Ok(Err(error)) => return Err((StatusCode::BAD_REQUEST, error.to_string())),
        Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the request did not arrive".into())),
    };
    nonce::from_json(&body).map_err(bad)
}

fn refusal(reason: &NoDocument) -> Answer {
    let code = match reason {
        NoDocument::Full { .. } => StatusCode::TOO_MANY_REQUESTS,
        NoDocument::Busy(_) | NoDocument::NotRunning => StatusCode::SERVICE_UNAVAILABLE,
        NoDocument::Refused(_) | NoDocument::Unreachable(_) => StatusCode::BAD_GATEWAY,
        NoDocument::Late => StatusCode::GATEWAY_TIMEOUT,
    };
    let mut answer = error(code, &reason.to_string());
    let retry_after = match reason {
        NoDocument::Full { retry_after } => Some(*retry_after),
        NoDocument::Busy(_) => Some(BUSY_FOR),
        _ => None,
    };
    if let Some(retry_after) = retry_after {
        let seconds = HeaderValue::from(retry_after.as_secs_f64().ceil() as u64);
        answer.headers_mut().insert(RETRY_AFTER, seconds);
    }
    answer
}

fn error(code: StatusCode, reason: &str) -> Answer {
    typed(code, "application/json", serde_json::json!({ "error": reason }).to_string())
}
