//! Signatures of requests to AWS, version 4 (AWS General Reference, "Create a
//! signed AWS API request"): a POST of JSON to the root path.

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};

/// Who signs.
pub(super) struct Keys<'a> {
    /// Names the secret.
    pub(super) access: &'a str,
    /// Never leaves this program.
    pub(super) secret: &'a str,
    /// Beside temporary credentials.
    pub(super) token: Option<&'a str>,
}

/// What is signed besides the body.
pub(super) struct Signed<'a> {
    /// As in the name of the endpoint.
    pub(super) service: &'a str,
    /// As in the name of the endpoint.
    pub(super) region: &'a str,
    /// With the port, if it is not the scheme's.
    pub(super) host: &'a str,
    /// The operation (`x-amz-target`).
    pub(super) target: &'a str,
    /// `YYYYMMDDTHHMMSSZ`.
    pub(super) now: &'a str,
}

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";

/// The headers of the request, `authorization` being the last.
pub(super) fn sign(keys: &Keys<'_>, signed: &Signed<'_>, body: &[u8]) -> Vec<(&'static str, String)> {
    // In the order of their names, as they are signed.
    let mut headers = vec![
        ("content-type", CONTENT_TYPE.to_owned()),
        ("host", signed.host.to_owned()),
        ("x-amz-date", signed.now.to_owned()),
    ];
    headers.extend(keys.token.map(|token| ("x-amz-security-token", token.to_owned())));
    headers.push(("x-amz-target", signed.target.to_owned()));

    let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical = format!("POST\n/\n\n{lines}\n{names}\n{}", hex::encode(digest(&SHA256, body)));

    let date = signed.now.get(..8).unwrap_or_default();
    let scope = format!("{date}/{}/{}/aws4_request", signed.region, signed.service);
    let hashed = hex::encode(digest(&SHA256, canonical.as_bytes()));
    let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{hashed}", signed.now);

    let mut key = format!("AWS4{}", keys.secret).into_bytes();
    for part in [date, signed.region, signed.service, "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex::encode(mac(&key, &text));
    let credential = format!("{}/{scope}", keys.access);
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}");
    headers.push(("authorization", authorization));
    headers
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}
