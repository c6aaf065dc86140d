//! Ends TLS in the workload's place, with a key that is born here and a
//! certificate that carries a document about it.
//!
//! ```text
//! key ─▶ binding ─▶ NSM ─▶ document ─▶ certificate ─▶ handshakes
//!            ▲                             │
//!            └── two minutes, or half of what is left of its chain ──┘
//!
//! client ─vsock─▶ TLS 1.3 ─▶ [ challenge ─▶ document of the session ] ─▶ plain bytes
//! ```
//! The bracket is for clients that offer it, where the measured settings allow
//! it. When the NSM fails, the last certificate is served on: clients judge its age.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use attestation::binding::Purpose;
use attestation::rustls::{EnclaveIdentity, ServerError, session};
use nitro_device::nsm::Attestation;
use relay::VSOCK_WRITE_MAX;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use wire::settings;

use crate::log::{chain, log};
use crate::nsm::{Lane, Module, Notary};

/// Handshake and, if asked for, the session's document.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries when the NSM fails: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What every port of attested TLS shares.
pub(crate) struct AttestedTls {
    ports: Vec<u16>,
    identity: Arc<EnclaveIdentity>,
    plain: Arc<ServerConfig>,
    /// For clients that offer [`session::ALPN`], where that is allowed.
    session: Option<Arc<ServerConfig>>,
    notary: Notary,
    /// Whether there is a certificate.
    serves: watch::Sender<bool>,
}

impl AttestedTls {
    /// Makes the key; `None` where the settings name no port.
    pub(crate) fn new(
        settings: &settings::AttestedTls,
        notary: Notary,
    ) -> Result<Option<AttestedTls>, ServerError> {
        if settings.is_off() {
            return Ok(None);
        }
        let identity = Arc::new(EnclaveIdentity::generate()?);
        let plain = identity.server_config()?;
        let session = settings.session.then(|| {
            let mut config = plain.clone();
            config.alpn_protocols = vec![session::ALPN.to_vec()];
            Arc::new(config)
        });
        let (ports, plain, serves) = (settings.ports.clone(), Arc::new(plain), watch::Sender::new(false));
        Ok(Some(AttestedTls { ports, identity, plain, session, notary, serves }))
    }

    /// Whether TLS ends here for connections to `port`.
    pub(crate) fn ends_at(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// Waits for the first certificate.
    pub(crate) async fn serves(&self) {
        // Never fails: `self` is the sender.
        let _ = self.serves.subscribe().wait_for(|serves| *serves).await;
    }

    /// Makes certificates for as long as it is polled.
    pub(crate) async fn renew(&self) {
        let mut retry = RETRY.0;
        loop {
            match self.certify().await {
                Ok(due) => {
                    retry = RETRY.0;
                    self.serves.send_replace(true);
                    sleep(due).await;
                }
                Err(cause) => {
                    if retry == RETRY.0 {
                        log(&format!("cannot make a certificate, will go on trying: {cause}"));
                    }
                    sleep(retry).await;
                    retry = (2 * retry).min(RETRY.1);
                }
            }
        }
    }

    /// Installs a new certificate; returns when the next one is due.
    async fn certify(&self) -> Result<Duration, String> {
        let document = self.document(Lane::Agent, Purpose::TlsCertificate, None).await?;
        self.identity.install(&document).map_err(|error| chain(&error))
    }

    async fn document(
        &self,
        lane: Lane,
        purpose: Purpose,
        nonce: Option<session::Nonce>,
    ) -> Result<Vec<u8>, String> {
        let user_data = self.identity.binding(purpose).to_bytes();
        let sign = move |module: &mut dyn Module| {
            let nonce = nonce.as_ref().map(<[u8; 48]>::as_slice);
            module.attest(&Attestation { user_data: Some(&user_data), nonce, public_key: None })
        };
        self.notary.ask(lane, sign).await.0.map_err(|error| chain(&error))
    }

    /// Shakes hands; what is read from and written to the result is the client's plain text.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<TlsStream<Capped<S>>> {
        timeout(HANDSHAKE_WITHIN, self.shake_hands(Capped(stream)))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let offers =
            hello.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == session::ALPN));
        // A client that offers other protocols gets none selected: they are the workload's.
        let config = self.session.as_ref().filter(|_| offers).unwrap_or(&self.plain);
        let mut stream = hello.into_stream(Arc::clone(config)).await?;
        if stream.get_ref().1.alpn_protocol() == Some(session::ALPN) {
            self.bind(&mut stream).await?;
        }
        Ok(stream)
    }

    /// A document of this very session (see [`session`]).
    async fn bind<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut TlsStream<S>) -> io::Result<()> {
        let mut challenge = session::Challenge::default();
        stream.read_exact(&mut challenge).await?;
        let nonce = session::nonce(stream.get_ref().1, &challenge).map_err(io::Error::other)?;
        let document = self.document(Lane::Sessions, Purpose::TlsSession, Some(nonce)).await;
        let answer = session::answer(&document.map_err(io::Error::other)?);
        stream.write_all(&answer.ok_or(io::ErrorKind::InvalidData)?).await?;
        stream.flush().await
    }
}

/// A vsock under TLS: no write is longer than the cap, however many records wait.
#[derive(Debug)]
pub(crate) struct Capped<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Capped<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

/// Not vectored: what `S` makes of slices is its own affair.
impl<S: AsyncWrite + Unpin> AsyncWrite for Capped<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, &bytes[..bytes.len().min(VSOCK_WRITE_MAX)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
