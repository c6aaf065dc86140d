//! Reads a nonce from a query or a JSON body.
//!
//! The encoding is named, never guessed: `deadbeef` is good hex and good
//! base64. Base64 is the standard or the URL alphabet, with or without padding.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::attestation::{Nonce, NonceLength};

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Why a request holds no nonce.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NonceError {
    #[error("give one nonce: nonce (hex) or nonce_base64")]
    Missing,
    #[error("unknown parameter {0:?}")]
    Unknown(String),
    #[error("nonce is not hex")]
    NotHex,
    #[error("nonce_base64 is not base64")]
    NotBase64,
    #[error("the body is not the expected JSON object: {0}")]
    NotJson(String),
    #[error(transparent)]
    Length(#[from] NonceLength),
}

/// From `nonce=HEX` or `nonce_base64=BASE64`.
pub(super) fn from_query(query: &str) -> Result<Nonce, NonceError> {
    let mut given = Given::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let slot = match name {
            "nonce" => &mut given.nonce,
            "nonce_base64" => &mut given.nonce_base64,
            _ => return Err(NonceError::Unknown(name.to_owned())),
        };
        if slot.replace(percent_decoded(value)).is_some() {
            return Err(NonceError::Missing);
        }
    }
    given.decode()
}

/// From `{"nonce": HEX}` or `{"nonce_base64": BASE64}`.
pub(super) fn from_json(body: &[u8]) -> Result<Nonce, NonceError> {
    let given: Given =
        serde_json::from_slice(body).map_err(|error| NonceError::NotJson(error.to_string()))?;
    given.decode()
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    nonce: Option<String>,
    nonce_base64: Option<String>,
}

impl Given {
    fn decode(self) -> Result<Nonce, NonceError> {
        let bytes = match (self.nonce, self.nonce_base64) {
            (Some(hex), None) => hex::decode(hex).map_err(|_| NonceError::NotHex)?,
            (None, Some(text)) => STANDARD
                .decode(&text)
                .or_else(|_| URL_SAFE.decode(&text))
                .map_err(|_| NonceError::NotBase64)?,
            _ => return Err(NonceError::Missing),
        };
        Ok(Nonce::try_from(bytes)?)
    }
}

/// Base64 holds `+`, `/` and `=`, which careful clients escape. What is no
/// escape stays as it is, and is then no base64 either.
fn percent_decoded(value: &str) -> String {
    let mut decoded = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('%') {
        decoded.push_str(before);
        match after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if byte.is_ascii() => {
                decoded.push(char::from(byte));
                rest = &after[2..];
            }
            _ => {
                decoded.push('%');
                rest = after;
            }
        }
    }
    decoded.push_str(rest);
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nonce(bytes: &[u8]) -> Nonce {
        Nonce::try_from(bytes.to_vec()).unwrap()
    }

    #[test]
    fn the_same_bytes_in_every_spelling() {
        let expected = nonce(&[0xfb, 0xef, 0xff]);
        for query in [
            "nonce=fbefff",
            "nonce=FBEFFF",
            "nonce_base64=++//",
            "nonce_base64=--__",
            "nonce_base64=%2B%2b%2F/",
        ] {
            assert_eq!(from_query(query).as_ref(), Ok(&expected), "{query}");
        }
        assert_eq!(from_json(br#"{"nonce":"fbefff"}"#), Ok(expected));
        assert_eq!(from_query("nonce_base64=AQ=="), Ok(nonce(&[1])));
        assert_eq!(from_query("nonce_base64=AQ"), Ok(nonce(&[1])));
    }

    #[test]
    fn what_is_no_nonce_is_refused_with_its_reason() {
        for (query, reason) in [
            ("", NonceError::Missing),
            ("nonce=01&nonce_base64=AQ", NonceError::Missing),
            ("nonce=01&nonce=02", NonceError::Missing),
            ("nonce=0", NonceError::NotHex),
            ("nonce=xy", NonceError::NotHex),
            ("nonce_base64=%zz", NonceError::NotBase64),
            ("user_data=01", NonceError::Unknown("user_data".into())),
        ] {
            assert_eq!(from_query(query), Err(reason), "{query}");
        }
        for query in ["nonce=".to_owned(), format!("nonce={}", "00".repeat(1025))] {
            assert!(matches!(from_query(&query), Err(NonceError::Length(_))), "{query}");
        }
        for body in [&b"[]"[..], b"{\"nonce\":1}", b"{\"nonce\":\"00\",\"user_data\":\"00\"}", b"\xff"] {
            assert!(matches!(from_json(body), Err(NonceError::NotJson(_))), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn no_query_and_no_body_panics(query in ".{0,64}", body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = from_query(&query);
            let _ = from_query(&format!("nonce={query}"));
            let _ = from_query(&format!("nonce_base64={query}"));
            let _ = from_json(&body);
        }
    }
}
