//! Images in a registry, by the OCI distribution specification.
//!
//! ```text
//! docker://NAME ─▶ credentials ─▶ connect ─▶ manifest ─▶ config, layers ─▶ unnamed files
//! --push NAME   ─▶ credentials ─▶ connect ─▶ layer, config ─▶ manifest (the tag appears last)
//! ```
//!
//! Nothing that a registry says is believed: whoever reads compares digests and
//! sizes. Plain HTTP is spoken with this very machine, or where it was asked for.

mod credentials;
mod pull;
mod push;

use std::{net::IpAddr, time::Duration};

use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use tokio::runtime::Runtime;

pub(crate) use self::{
    credentials::CredentialsError,
    pull::Pulled,
    push::{Push, PushedImage},
};
pub(crate) use oci_client::RegistryOperation;

/// To answer at all, and between two pieces of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A transfer is started this often before it has failed.
const ATTEMPTS: u32 = 4;
/// Before the second attempt; doubled before each further one.
const PAUSE: Duration = Duration::from_millis(250);

/// Why a registry was of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("cannot reach registry {registry}{}", plain_http_hint(.registry))]
    Unreachable { registry: String, source: Box<OciDistributionError> },
    #[error("registry {registry} denies access to {name} {who}", who = who(*.anonymous))]
    Denied { registry: String, name: String, anonymous: bool, source: Box<OciDistributionError> },
    #[error("registry {registry} has no {name}")]
    NotFound { registry: String, name: String, source: Box<OciDistributionError> },
    #[error("the transfer of {name} was interrupted {ATTEMPTS} times")]
    Interrupted { name: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("registry {registry} answers {actual} for {expected}")]
    WrongDigest { registry: String, expected: String, actual: String },
    #[error("{name} has more than the {size} bytes that its manifest states")]
    TooLong { name: String, size: u64 },
    #[error("registry {registry} gives an unusable answer for {name}")]
    Protocol { registry: String, name: String, source: Box<OciDistributionError> },
    #[error("cannot {doing} for {name}")]
    File { doing: &'static str, name: String, source: std::io::Error },
    #[error("cannot start the registry client")]
    Start(#[source] std::io::Error),
}

fn who(anonymous: bool) -> &'static str {
    if anonymous {
        "without credentials (docker login, or DOCKER_CONFIG, provides them)"
    } else {
        "with the credentials of Docker's configuration"
    }
}

fn plain_http_hint(registry: &str) -> &'static str {
    if is_loopback(registry) { "" } else { " (with --plain-http it would be asked without TLS)" }
}

/// A registry that has let us in, and the name of an image there.
pub(crate) struct Registry {
    runtime: Runtime,
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
}

impl Registry {
    /// Introduces itself to the registry of `reference`.
    pub(crate) fn connect(
        reference: &Reference,
        operation: RegistryOperation,
        plain_http: bool,
    ) -> Result<Registry, RegistryError> {
        let auth = credentials::of_registry(reference.resolve_registry())?;
        // One transfer at a time, or a few that wait for each other.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(RegistryError::Start)?;
        let mut protocols = protocols(reference.resolve_registry(), plain_http);
        loop {
            let protocol = protocols.pop().unwrap_or_default();
            let config = ClientConfig {
                protocol,
                // Layers are streamed; every registry must take a whole blob in one request.
                use_monolithic_push: true,
                read_timeout: Some(READ_TIMEOUT),
                connect_timeout: Some(CONNECT_TIMEOUT),
                user_agent: concat!("enclavectl/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            };
            let client = Client::try_from(config);
            let client = client.map_err(|error| RegistryError::of(error, reference, &auth))?;
            match runtime.block_on(client.auth(reference, &auth, operation)) {
                Err(OciDistributionError::RequestError(error))
                    if error.is_connect() && !refuses_certificate(&error) && !protocols.is_empty() => {}
                Err(error) => return Err(RegistryError::of(error, reference, &auth)),
                Ok(_) => return Ok(Registry { runtime, client, auth, reference: reference.clone() }),
            }
        }
    }

    fn error(&self, error: OciDistributionError) -> RegistryError {
        RegistryError::of(error, &self.reference, &self.auth)
    }
}

/// In the order from last to first. What runs on this machine may speak either,
/// and nobody is between; as Docker does it.
fn protocols(registry: &str, plain_http: bool) -> Vec<ClientProtocol> {
    let http = ClientProtocol::HttpsExcept(vec![registry.to_owned()]);
    match (plain_http, is_loopback(registry)) {
        (true, _) => vec![http],
        (false, true) => vec![http, ClientProtocol::Https],
        (false, false) => vec![ClientProtocol::Https],
    }
}

/// Then the other end speaks TLS, and nothing else must be tried.
fn refuses_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(error) = at {
        if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        // What an `io::Error` wraps is not its source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        at = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl RegistryError {
    fn of(error: OciDistributionError, reference: &Reference, auth: &RegistryAuth) -> RegistryError {
        let (registry, name) = (reference.resolve_registry().to_owned(), reference.whole());
        let anonymous = matches!(auth, RegistryAuth::Anonymous);
        let kind = Kind::of(&error);
        let source = Box::new(error);
        match kind {
            Kind::Denied => RegistryError::Denied { registry, name, anonymous, source },
            Kind::NotFound => RegistryError::NotFound { registry, name, source },
            Kind::Unreachable => RegistryError::Unreachable { registry, source },
            Kind::Interrupted => RegistryError::Interrupted { name, source },
            Kind::Protocol => RegistryError::Protocol { registry, name, source },
        }
    }

    /// Whether the same again may go well.
    fn is_transient(&self) -> bool {
        matches!(self, RegistryError::Interrupted { .. } | RegistryError::Unreachable { .. })
    }
}

/// What an error of the client comes to.
#[derive(Clone, Copy)]
enum Kind {
    Denied,
    NotFound,
    Unreachable,
    Interrupted,
    Protocol,
}

impl Kind {
    fn of(error: &OciDistributionError) -> Kind {
        use OciErrorCode as Code;
        match error {
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::ServerError { code: 401 | 403, .. } => Kind::Denied,
            OciDistributionError::ServerError { code: 404, .. } => Kind::NotFound,
            // The server's own trouble, or its proxy's, passes.
            OciDistributionError::ServerError { code: 429 | 500.., .. } => Kind::Interrupted,
            OciDistributionError::RegistryError { envelope, .. } => {
                let has = |codes: &[Code]| envelope.errors.iter().any(|error| codes.contains(&error.code));
                if has(&[Code::Unauthorized, Code::Denied]) {
                    Kind::Denied
                } else if has(&[Code::ManifestUnknown, Code::NameUnknown, Code::NotFound, Code::BlobUnknown])
                {
                    Kind::NotFound
                } else {
                    Kind::Protocol
                }
            }
            OciDistributionError::RequestError(error) if error.is_connect() => Kind::Unreachable,
            OciDistributionError::RequestError(error) if !error.is_builder() => Kind::Interrupted,
            OciDistributionError::IoError(_) => Kind::Interrupted,
            _ => Kind::Protocol,
        }
    }
}

/// Repeats what was interrupted, after a pause that doubles.
async fn persistently<T>(
    mut attempt: impl AsyncFnMut() -> Result<T, RegistryError>,
) -> Result<T, RegistryError> {
    let mut pause = PAUSE;
    for _ in 1..ATTEMPTS {
        match attempt().await {
            Err(error) if error.is_transient() => tokio::time::sleep(pause).await,
            outcome => return outcome,
        }
        pause *= 2;
    }
    attempt().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_asked_without_tls_unless_the_user_says_so() {
        let http = |registry: &str| vec![ClientProtocol::HttpsExcept(vec![registry.to_owned()])];
        for local in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000"] {
            assert_eq!(protocols(local, false), [http(local), vec![ClientProtocol::Https]].concat());
        }
        for other in ["example.org", "127.0.0.1.example.org", "localhost.example.org:80", "10.0.0.1:5000"] {
            assert_eq!(protocols(other, false), [ClientProtocol::Https], "{other}");
            assert_eq!(protocols(other, true), http(other), "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_interruption_is_tried_again_and_a_refusal_is_not() {
        let interrupted = || RegistryError::Interrupted { name: "x".to_owned(), source: "cut".into() };
        let mut attempts = 0;
        let outcome = persistently(async || {
            attempts += 1;
            if attempts < ATTEMPTS { Err(interrupted()) } else { Ok(attempts) }
        });
        assert_eq!(outcome.await.unwrap(), ATTEMPTS);
        let mut attempts = 0;
        let outcome = persistently(async || -> Result<(), _> {
            attempts += 1;
            Err(RegistryError::TooLong { name: "x".to_owned(), size: 1 })
        });
        assert!(outcome.await.is_err());
        assert_eq!(attempts, 1);
    }
}
