//! Reads requests of the workload: bytes in, a [`Wanted`] or a refusal out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde::Deserialize;

use super::answers::Answer;
use crate::attestation::LONGEST_FIELD;

/// Registers of the workload. Those below belong to the machine.
const OWN_PCRS: std::ops::RangeInclusive<u16> = 16..=31;
/// Registers that there are.
const PCRS: u16 = 32;
/// Most random bytes that one request gets: sixteen calls of the module.
const MOST_RANDOM: usize = 4096;
/// Bytes that a register may be extended with at once.
const LONGEST_EXTENSION: usize = 1024;

/// What is asked of the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Module,
    Document { fields: Fields, raw: bool },
    Pcr(u16),
    Extend { index: u16, data: Vec<u8> },
    Lock(u16),
    Random(usize),
}

/// Of a document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) user_data: Option<Vec<u8>>,
    pub(super) nonce: Option<Vec<u8>>,
    pub(super) public_key: Option<Vec<u8>>,
}

pub(super) fn parse(head: &Parts, body: &[u8]) -> Result<Wanted, Answer> {
    let path: Vec<&str> = head.uri.path().trim_start_matches('/').split('/').collect();
    let method = &head.method;
    match path.as_slice() {
        ["v1", "module"] => allow(method, &Method::GET).map(|()| Wanted::Module),
        ["v1", "attestation"] => {
            allow(method, &Method::POST)?;
            Ok(Wanted::Document { fields: fields(body)?, raw: wants_cbor(head) })
        }
        ["v1", "random"] => {
            allow(method, &Method::GET)?;
            random(head.uri.query().unwrap_or_default()).map(Wanted::Random)
        }
        ["v1", "pcrs", index] => {
            allow(method, &Method::GET)?;
            pcr(index, 0..=PCRS - 1).map(Wanted::Pcr)
        }
        ["v1", "pcrs", index, "extend"] => {
            allow(method, &Method::POST)?;
            Ok(Wanted::Extend { index: pcr(index, OWN_PCRS)?, data: extension(body)? })
        }
        ["v1", "pcrs", index, "lock"] => {
            allow(method, &Method::POST)?;
            pcr(index, OWN_PCRS).map(Wanted::Lock)
        }
        _ => Err(Answer::refusal(StatusCode::NOT_FOUND, "there is no such thing here")),
    }
}

fn allow(method: &Method, allowed: &Method) -> Result<(), Answer> {
    if method == allowed {
        return Ok(());
    }
    Err(Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("only {allowed} is possible here")))
}

fn wants_cbor(head: &Parts) -> bool {
    let accepted = head.headers.get_all(hyper::header::ACCEPT);
    accepted.iter().any(|value| value.as_bytes() == b"application/cbor")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentBody {
    user_data: Option<String>,
    user_data_base64: Option<String>,
    nonce: Option<String>,
    nonce_base64: Option<String>,
    public_key: Option<String>,
    public_key_base64: Option<String>,
}

fn fields(body: &[u8]) -> Result<Fields, Answer> {
    let body: DocumentBody = json(body)?;
    let fields = Fields {
        user_data: bytes("user_data", body.user_data, body.user_data_base64)?,
        nonce: bytes("nonce", body.nonce, body.nonce_base64)?,
        public_key: bytes("public_key", body.public_key, body.public_key_base64)?,
    };
    // The module signs it, and every verifier refuses it.
    if fields.public_key.as_ref().is_some_and(Vec::is_empty) {
        return Err(bad("public_key is empty: leave it out"));
    }
    if fields.user_data.as_deref().is_some_and(attestation::binding::is_reserved) {
        let reason = "user_data begins with the prefix that is reserved for the agent";
        return Err(Answer::refusal(StatusCode::FORBIDDEN, reason).code("reserved-user-data"));
    }
    Ok(fields)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExtensionBody {
    data: Option<String>,
    data_base64: Option<String>,
}

fn extension(body: &[u8]) -> Result<Vec<u8>, Answer> {
    let body: ExtensionBody = json(body)?;
    let data = bytes("data", body.data, body.data_base64)?;
    let within = |data: &Vec<u8>| (1..=LONGEST_EXTENSION).contains(&data.len());
    data.filter(within).ok_or_else(|| bad(&format!("data has 1 to {LONGEST_EXTENSION} bytes")))
}

/// An object; serde would take an array of the fields in their order for one too.
fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Answer> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(bad("the body is no JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| bad(&format!("the body is not as documented: {error}")))
}

/// A field in hexadecimal, or in base64 under the name with that ending.
fn bytes(name: &str, hexadecimal: Option<String>, base64: Option<String>) -> Result<Option<Vec<u8>>, Answer> {
    let bytes = match (hexadecimal, base64) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(bad(&format!("{name} is given twice"))),
        (Some(text), None) => {
            hex::decode(text).map_err(|error| bad(&format!("{name} is not hexadecimal: {error}")))?
        }
        (None, Some(text)) => {
            STANDARD.decode(text).map_err(|error| bad(&format!("{name}_base64 is not base64: {error}")))?
        }
    };
    match bytes.len() {
        0..=LONGEST_FIELD => Ok(Some(bytes)),
        length => Err(bad(&format!("{name} has {length} bytes, at most {LONGEST_FIELD} are possible"))),
    }
}

fn pcr(index: &str, allowed: std::ops::RangeInclusive<u16>) -> Result<u16, Answer> {
    let found = index.parse().ok().filter(|index| allowed.contains(index));
    found.ok_or_else(|| {
        let reason = format!("{index:?} is no register from {} to {}", allowed.start(), allowed.end());
        bad(&reason).code("pcr-index")
    })
}

fn random(query: &str) -> Result<usize, Answer> {
    let count = query.strip_prefix("bytes=").and_then(|count| count.parse().ok());
    count
        .filter(|count| (1..=MOST_RANDOM).contains(count))
        .ok_or_else(|| bad(&format!("ask for ?bytes=N, 1 to {MOST_RANDOM}")))
}

fn bad(reason: &str) -> Answer {
    Answer::refusal(StatusCode::BAD_REQUEST, reason)
}
