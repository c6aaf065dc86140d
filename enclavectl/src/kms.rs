//! A private key in AWS KMS: its `Sign` operation over HTTPS.
//!
//! ```text
//! message ─hash─▶ Sign {KeyId, Message, DIGEST} ─SigV4─▶ kms.REGION ─▶ DER ─▶ r, s
//!                                                  ▲
//!                  environment, profile, web identity, container, instance
//! ```
//! Only what is needed of AWS's protocols: one request, signed. The key never
//! leaves KMS, and nothing here is trusted with more than making a signature:
//! the image's writer verifies it against the certificate.

mod credentials;
mod http;
mod profile;
mod sigv4;

use std::{env, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use eif::signature::{Curve, KeyFailure, SigningKey};
use hyper::{StatusCode, Uri, http::uri::InvalidUri};
use serde::Deserialize;

use self::{
    credentials::{Credentials, CredentialsError},
    http::{HttpError, Request},
    sigv4::Signed,
};

/// How often a request is tried that KMS did not really answer.
const ATTEMPTS: u32 = 3;
/// The pause before the second; doubled before each further one.
const PAUSE: Duration = Duration::from_millis(250);
const WITHIN: Duration = Duration::from_secs(20);

/// Why KMS gave no signature.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KmsError {
    #[error("{0:?} is no ARN of a KMS key or alias (arn:aws:kms:REGION:ACCOUNT:key/ID)")]
    Arn(String),
    #[error("the endpoint of KMS, {endpoint:?}, is no URL")]
    Endpoint { endpoint: String, source: InvalidUri },
    #[error("cannot prepare requests")]
    Runtime(#[source] std::io::Error),
    #[error("there are no credentials for AWS")]
    Credentials(#[from] CredentialsError),
    #[error("cannot ask KMS at {endpoint}")]
    Http { endpoint: String, source: HttpError },
    #[error("KMS refuses to sign with {arn}: {status}, {kind}: {message}{hint}")]
    Refused { arn: String, status: StatusCode, kind: String, message: String, hint: &'static str },
    #[error("KMS answers with something else than a signature")]
    Answer,
}

/// A key in KMS.
pub(crate) struct KmsKey {
    arn: String,
    region: String,
    endpoint: Uri,
}

impl KmsKey {
    /// The key of this ARN. AWS_ENDPOINT_URL_KMS and AWS_ENDPOINT_URL replace
    /// the region's endpoint, as in AWS's own programs.
    pub(crate) fn open(arn: &str) -> Result<KmsKey, KmsError> {
        let wrong = || KmsError::Arn(arn.to_owned());
        let parts: Vec<_> = arn.splitn(6, ':').collect();
        let &["arn", partition, "kms", region, account, resource] = parts.as_slice() else {
            return Err(wrong());
        };
        let named =
            ["key/", "alias/"].iter().any(|kind| resource.len() > kind.len() && resource.starts_with(kind));
        let word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        if !(named
            && account
            && partition.starts_with("aws")
            && word(partition)
            && word(region)
            && !region.is_empty())
        {
            return Err(wrong());
        }
        let endpoint = ["AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL"]
            .into_iter()
            .find_map(variable)
            .unwrap_or_else(|| format!("https://kms.{region}.{}", suffix(partition)));
        let parsed = endpoint.parse().map_err(|source| KmsError::Endpoint { endpoint, source })?;
        Ok(KmsKey { arn: arn.to_owned(), region: region.to_owned(), endpoint: parsed })
    }

    async fn sign_digest(&self, curve: Curve, digest: &[u8]) -> Result<Vec<u8>, KmsError> {
        let credentials = credentials::find(&self.region).await?;
        let body = serde_json::json!({
            "KeyId": self.arn,
            "Message": BASE64_STANDARD.encode(digest),
            "MessageType": "DIGEST",
            "SigningAlgorithm": algorithm(curve),
        })
        .to_string();
        let mut pause = PAUSE;
        for _ in 1..ATTEMPTS {
            match self.ask(&credentials, &body).await {
                Err(error) if error.may_pass() => tokio::time::sleep(pause).await,
                answer => return answer.and_then(|der| fixed(curve, &der)),
            }
            pause *= 2;
        }
        self.ask(&credentials, &body).await.and_then(|der| fixed(curve, &der))
    }

    /// The signature in DER.
    async fn ask(&self, credentials: &Credentials, body: &str) -> Result<Vec<u8>, KmsError> {
        let describe = |source| KmsError::Http { endpoint: self.endpoint.to_string(), source };
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let host = self.endpoint.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let headers = sigv4::sign(
            &credentials.as_keys(),
            &Signed { service: "kms", region: &self.region, host, target: "TrentService.Sign", now: &now },
            body.as_bytes(),
        );
        let request = Request::post(&self.endpoint, headers, body.as_bytes().to_vec());
        let answer = http::send(request, WITHIN).await.map_err(describe)?;
        if answer.status == StatusCode::OK {
            let answer: SignAnswer = serde_json::from_slice(&answer.body).map_err(|_| KmsError::Answer)?;
            return BASE64_STANDARD.decode(answer.signature).map_err(|_| KmsError::Answer);
        }
        let refusal: Refusal = serde_json::from_slice(&answer.body).unwrap_or_default();
        // A namespace may stand before the name.
        let kind = refusal.kind.rsplit('#').next().unwrap_or_default().to_owned();
        let hint = hint(&kind);
        Err(KmsError::Refused {
            arn: self.arn.clone(),
            status: answer.status,
            kind,
            message: one_line(&refusal.message),
            hint,
        })
    }
}

impl SigningKey for KmsKey {
    fn sign(&self, curve: Curve, message: &[u8]) -> Result<Vec<u8>, KeyFailure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(KmsError::Runtime)?;
        let digest = curve.digest(message);
        Ok(runtime.block_on(self.sign_digest(curve, digest.as_ref()))?)
    }
}

impl KmsError {
    /// Whether the same request may succeed a moment later.
    fn may_pass(&self) -> bool {
        match self {
            KmsError::Http { source, .. } => source.may_pass(),
            KmsError::Refused { status, kind, .. } => {
                status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || matches!(kind.as_str(), "ThrottlingException" | "Throttling" | "RequestLimitExceeded")
            }
            _ => false,
        }
    }
}

/// What KMS answers to `Sign`.
#[derive(Deserialize)]
struct SignAnswer {
    #[serde(rename = "Signature")]
    signature: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    #[serde(rename = "__type")]
    kind: String,
    #[serde(alias = "Message")]
    message: String,
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn algorithm(curve: Curve) -> &'static str {
    match curve {
        Curve::P256 => "ECDSA_SHA_256",
        Curve::P384 => "ECDSA_SHA_384",
        Curve::P521 => "ECDSA_SHA_512",
    }
}

fn fixed(curve: Curve, der: &[u8]) -> Result<Vec<u8>, KmsError> {
    curve.fixed_from_der(der).ok_or(KmsError::Answer)
}

/// Where a partition's services are (AWS General Reference, "Service endpoints").
fn suffix(partition: &str) -> &'static str {
    match partition {
        "aws-cn" => "amazonaws.com.cn",
        "aws-iso" => "c2s.ic.gov",
        "aws-iso-b" => "sc2s.sgov.gov",
        _ => "amazonaws.com",
    }
}

/// What to do about a refusal.
fn hint(kind: &str) -> &'static str {
    match kind {
        "AccessDeniedException" => " (allow kms:Sign on the key to this identity)",
        "ExpiredTokenException" => " (the credentials have expired: log in again)",
        "InvalidSignatureException" | "RequestExpired" => " (is this machine's clock right?)",
        "InvalidKeyUsageException" => " (the key must be one of SIGN_VERIFY on the certificate's curve)",
        "NotFoundException" => " (is the key in this region and account?)",
        _ => "",
    }
}

fn one_line(text: &str) -> String {
    text.chars().take(300).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_names_region_and_partition() {
        let arn = "arn:aws-cn:kms:cn-north-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        let key = KmsKey::open(arn).unwrap();
        assert_eq!(key.region, "cn-north-1");
        assert_eq!(key.endpoint.host(), Some("kms.cn-north-1.amazonaws.com.cn"));
        assert!(KmsKey::open("arn:aws:kms:eu-central-1:123456789012:alias/images").is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for arn in [
            "arn:aws:kms",
            "arn:aws:s3:eu-central-1:123456789012:key/1",
            "arn:aws:kms::123456789012:key/1",
            "arn:aws:kms:eu-central-1:12345:key/1",
            "arn:aws:kms:eu-central-1:123456789012:key/",
            "arn:aws:kms:eu-central-1:123456789012:grant/1",
            "arn:aws:kms:evil.example/:123456789012:key/1",
        ] {
            assert!(matches!(KmsKey::open(arn), Err(KmsError::Arn(_))), "{arn}");
        }
    }
}
