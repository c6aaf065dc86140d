//! Opens TLS connections to one enclave, each verified before it is handed out.

use std::error::Error as _;
use std::io;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use attestation::rustls::client::cause;
use attestation::rustls::{AttestedServerVerifier, EvidenceError, session};
use attestation::{Clock, Verified};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::failure::{Blame, Failure, OrBlame};
use crate::verify::expect::Expected;
use crate::verify::report;

/// Connect, handshake and, if asked for, the session's document.
const WITHIN: Duration = Duration::from_secs(20);
/// An enclave or two behind one address, and their chains.
const CHAINS: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(15);

/// `HOST:PORT`, the host in brackets when it is an IPv6 address.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    text: String,
    name: ServerName<'static>,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Target> {
        let (host, port) = text.rsplit_once(':').context("expected HOST:PORT")?;
        let _: u16 = port.parse().context("the port is not a number from 0 to 65535")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).context("the host is neither a name nor an address")?;
        Ok(Target { text: text.to_owned(), name })
    }
}

/// Makes verified connections to one target.
pub(crate) struct Dialler {
    target: Target,
    verifier: AttestedServerVerifier,
    connector: TlsConnector,
    session: bool,
}

/// A connection that ends in an accepted enclave.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TlsStream<TcpStream>,
    /// The server's certificate.
    pub(crate) evidence: Vec<u8>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot connect to {target}")]
    Connect { target: String, source: io::Error },
    #[error("{target} does not answer in time")]
    Late { target: String },
    #[error("no TLS with {target}")]
    Tls { target: String, source: io::Error },
    #[error("{target} gives no document for a session")]
    NoSession { target: String },
    #[error("{target} is not accepted")]
    Refused { target: String, source: EvidenceError },
}

impl DialError {
    /// A refusal is a verdict; anything else is trouble on the way.
    pub(crate) fn report(self, json: bool) -> Result<ExitCode, Failure> {
        match self {
            DialError::Refused { source, .. } => {
                report::print_refusal(source.code(), source.class(), &source, json).or_blame(Blame::Io)?;
                Ok(ExitCode::from(source.class().exit_code()))
            }
            other => Err(Failure::new(Blame::Io, other)),
        }
    }
}

impl Dialler {
    pub(crate) fn new(target: Target, expected: &Expected, session: bool) -> Result<Dialler, Failure> {
        let verifier = AttestedServerVerifier::of(&expected.verifier().with_chain_cache(CHAINS));
        let config = verifier.clone().client_config().map_err(|error| anyhow!(error));
        let mut config = config.or_blame(Blame::Io)?;
        if session {
            config.alpn_protocols = vec![session::ALPN.to_vec()];
        }
        Ok(Dialler { target, verifier, connector: TlsConnector::from(Arc::new(config)), session })
    }

    /// Connects, and hands out nothing that was not verified.
    pub(crate) async fn dial(&self) -> Result<Connection, DialError> {
        let target = self.target.text.clone();
        timeout(WITHIN, self.connect()).await.unwrap_or(Err(DialError::Late { target }))
    }

    /// What the certificate of a connection says.
    pub(crate) fn verify<'a>(&self, evidence: &'a [u8]) -> Result<Verified<'a>, EvidenceError> {
        self.verifier.verify(evidence, Clock::System)
    }

    async fn connect(&self) -> Result<Connection, DialError> {
        let target = || self.target.text.clone();
        let tcp = TcpStream::connect(&self.target.text).await;
        let tcp = tcp.map_err(|source| DialError::Connect { target: target(), source })?;
        // Small requests are not held back; without it they are only slower.
        let _ = tcp.set_nodelay(true);
        let stream = self.connector.connect(self.target.name.clone(), tcp).await;
        let mut stream = stream.map_err(|source| self.refusal(source))?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let evidence = certificates.first().map(|certificate| certificate.to_vec()).unwrap_or_default();
        if self.session {
            self.bind(&mut stream, &evidence).await?;
        }
        Ok(Connection { stream, evidence })
    }

    /// Asks for a document of this session and judges it (see [`session`]).
    async fn bind(&self, stream: &mut TlsStream<TcpStream>, evidence: &[u8]) -> Result<(), DialError> {
        let target = || self.target.text.clone();
        if stream.get_ref().1.alpn_protocol() != Some(session::ALPN) {
            return Err(DialError::NoSession { target: target() });
        }
        let tls = |source| DialError::Tls { target: target(), source };
        let challenge = session::challenge().map_err(|error| tls(io::Error::other(error)))?;
        let nonce = session::nonce(stream.get_ref().1, &challenge);
        let nonce = nonce.map_err(|error| tls(io::Error::other(error)))?;
        stream.write_all(&challenge).await.map_err(tls)?;
        stream.flush().await.map_err(tls)?;
        let mut head = [0; 2];
        stream.read_exact(&mut head).await.map_err(tls)?;
        let length = session::answer_length(head).ok_or(DialError::NoSession { target: target() })?;
        let mut document = vec![0; length];
        stream.read_exact(&mut document).await.map_err(tls)?;
        let verdict = self.verifier.verify_session(evidence, &document, nonce, Clock::System);
        verdict.map(drop).map_err(|source| DialError::Refused { target: target(), source })
    }

    fn refusal(&self, error: io::Error) -> DialError {
        let target = self.target.text.clone();
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner.or_else(|| error.source()?.downcast_ref()).and_then(cause) {
            Some(source) => DialError::Refused { target, source: source.clone() },
            None => DialError::Tls { target, source: error },
        }
    }
}
