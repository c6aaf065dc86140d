//! Where credentials for AWS come from, in the order of AWS's own programs.
//!
//! ```text
//! environment ▶ profile ▶ web identity (EKS) ▶ container (ECS, EKS) ▶ instance
//! ```
//! The first source that is configured decides: if it fails, that is the
//! error, and no other one is tried in its place.

use std::{fs, io, path::PathBuf, time::Duration};

use hyper::{Method, StatusCode, Uri, http::uri::InvalidUri};
use serde::Deserialize;

use super::{
    http::{self, Headers, HttpError, Request},
    profile::{self, ProfileError},
    sigv4::Keys,
    variable,
};

/// Sources near this machine answer at once, or are not there.
const NEAR: Duration = Duration::from_secs(5);
const FAR: Duration = Duration::from_secs(20);
/// How long a token of the instance's metadata service is good for, in seconds.
const TOKEN_TTL: &str = "300";

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("cannot use a profile")]
    Profile(#[from] ProfileError),
    #[error("cannot read the token {}", .path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("the URL of {what} is wrong")]
    Url { what: &'static str, source: InvalidUri },
    #[error("AWS_CONTAINER_CREDENTIALS_FULL_URI is {url}, which is neither https nor this machine")]
    OpenUrl { url: Uri },
    #[error("{what} cannot be asked")]
    Http { what: &'static str, source: HttpError },
    #[error("{what} answers {status}")]
    Refused { what: &'static str, status: StatusCode },
    #[error("{what} answers with something else than credentials")]
    Answer { what: &'static str },
    #[error(
        "nothing is configured (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, or give the \
         instance or pod a role), and there is no instance metadata service"
    )]
    Nothing(#[source] HttpError),
    #[error("nothing is configured (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile)")]
    NothingAllowed,
}

/// Credentials, perhaps temporary ones.
#[derive(Deserialize)]
pub(crate) struct Credentials {
    #[serde(rename = "AccessKeyId")]
    pub(super) access_key: String,
    #[serde(rename = "SecretAccessKey")]
    pub(super) secret_key: String,
    #[serde(rename = "Token")]
    pub(super) token: Option<String>,
}

impl Credentials {
    pub(super) fn as_keys(&self) -> Keys<'_> {
        Keys { access: &self.access_key, secret: &self.secret_key, token: self.token.as_deref() }
    }
}

/// The credentials of whoever runs this program.
pub(super) async fn find(region: &str) -> Result<Credentials, CredentialsError> {
    if let (Some(access_key), Some(secret_key)) =
        (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"))
    {
        return Ok(Credentials { access_key, secret_key, token: variable("AWS_SESSION_TOKEN") });
    }
    if let Some(credentials) = profile::credentials()? {
        return Ok(credentials);
    }
    if let (Some(token), Some(role)) = (variable("AWS_WEB_IDENTITY_TOKEN_FILE"), variable("AWS_ROLE_ARN")) {
        return web_identity(token.into(), &role, region).await;
    }
    if let Some(path) = variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        return container(&format!("http://169.254.170.2{path}")).await;
    }
    if let Some(url) = variable("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        return container(&url).await;
    }
    instance().await
}

/// AssumeRoleWithWebIdentity of STS; the token is the proof, so nothing is signed.
async fn web_identity(path: PathBuf, role: &str, region: &str) -> Result<Credentials, CredentialsError> {
    const WHAT: &str = "STS";
    let token = fs::read_to_string(&path).map_err(|source| CredentialsError::Token { path, source })?;
    let session = variable("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "enclavectl".to_owned());
    let endpoint = ["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"].into_iter().find_map(variable);
    let suffix = super::suffix(role.split(':').nth(1).unwrap_or_default());
    let url = endpoint.unwrap_or_else(|| format!("https://sts.{region}.{suffix}"));
    let body = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", role),
        ("RoleSessionName", &session),
        ("WebIdentityToken", token.trim()),
    ]
    .map(|(name, value)| format!("{name}={}", escaped(value)))
    .join("&");
    let headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
    let request = Request::post(&parse(WHAT, &url)?, headers, body.into_bytes());
    let xml = String::from_utf8_lossy(&ask(WHAT, request, FAR).await?).into_owned();
    let field = |name: &str| {
        let (_, rest) = xml.split_once(&format!("<{name}>"))?;
        let (value, _) = rest.split_once('<')?;
        Some(value.to_owned())
    };
    let found = || {
        Some(Credentials {
            access_key: field("AccessKeyId")?,
            secret_key: field("SecretAccessKey")?,
            token: Some(field("SessionToken")?),
        })
    };
    found().ok_or(CredentialsError::Answer { what: WHAT })
}

/// What is not unreserved (RFC 3986 section 2.3) as `%XX`.
fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

async fn container(url: &str) -> Result<Credentials, CredentialsError> {
    const WHAT: &str = "the container's credentials endpoint";
    let url = parse(WHAT, url)?;
    // The addresses that AWS's programs allow without TLS.
    let near = ["127.0.0.1", "localhost", "[::1]", "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];
    if url.scheme_str() != Some("https") && !url.host().is_some_and(|host| near.contains(&host)) {
        return Err(CredentialsError::OpenUrl { url });
    }
    let mut headers = Headers::new();
    if let Some(path) = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        let path = PathBuf::from(path);
        let token = fs::read_to_string(&path).map_err(|source| CredentialsError::Token { path, source })?;
        headers.push(("authorization", token.trim().to_owned()));
    } else if let Some(token) = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN") {
        headers.push(("authorization", token));
    }
    let answer = ask(WHAT, Request::get(&url, headers), NEAR).await?;
    serde_json::from_slice(&answer).map_err(|_| CredentialsError::Answer { what: WHAT })
}

/// The instance's role, by version 2 of its metadata service.
async fn instance() -> Result<Credentials, CredentialsError> {
    const WHAT: &str = "the instance metadata service";
    if variable("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err(CredentialsError::NothingAllowed);
    }
    let base = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    let base = base.unwrap_or_else(|| "http://169.254.169.254".to_owned());
    let base = base.trim_end_matches('/');
    let request = Request {
        method: Method::PUT,
        url: parse(WHAT, &format!("{base}/latest/api/token"))?,
        headers: vec![("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_TTL.to_owned())],
        body: Vec::new(),
    };
    let token = http::send(request, NEAR).await.map_err(CredentialsError::Nothing)?;
    if token.status != StatusCode::OK {
        return Err(CredentialsError::Refused { what: WHAT, status: token.status });
    }
    let token = String::from_utf8_lossy(&token.body).into_owned();
    let roles = format!("{base}/latest/meta-data/iam/security-credentials/");
    let get = |url: &str| {
        let headers = vec![("x-aws-ec2-metadata-token", token.clone())];
        parse(WHAT, url).map(|url| Request::get(&url, headers))
    };
    let role = ask(WHAT, get(&roles)?, NEAR).await?;
    let role = String::from_utf8_lossy(&role).trim().to_owned();
    let answer = ask(WHAT, get(&format!("{roles}{role}"))?, NEAR).await?;
    serde_json::from_slice(&answer).map_err(|_| CredentialsError::Answer { what: WHAT })
}

async fn ask(what: &'static str, request: Request, within: Duration) -> Result<Vec<u8>, CredentialsError> {
    let answer = http::send(request, within).await;
    let answer = answer.map_err(|source| CredentialsError::Http { what, source })?;
    if answer.status != StatusCode::OK {
        return Err(CredentialsError::Refused { what, status: answer.status });
    }
    Ok(answer.body.to_vec())
}

fn parse(what: &'static str, url: &str) -> Result<Uri, CredentialsError> {
    url.parse().map_err(|source| CredentialsError::Url { what, source })
}
