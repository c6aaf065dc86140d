//! Talking to the agent: dial a vsock port, say hello, then exchange frames.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use minicbor::{Decode, Encode};
use nitro_device::Cid;
use relay::Vsock;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use wire::{
    AnnouncedRequest, Attach, FrameError, FrameReader, Greeting, Hello, PROTOCOL, ProxyHeader, Refusal,
    SessionToken, port,
};

/// How long a hello may take, and one frame to be taken by the agent.
const PATIENCE: Duration = Duration::from_secs(2);
/// Before something that the agent did not take is tried again.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(500)];
/// Most bytes that one read takes from a conversation.
const READ_SIZE: usize = 8 * 1024;

/// Connects to a port of a context; the time limit is an error of kind `TimedOut`.
pub(crate) async fn dial(cid: u32, port: u32, within: Duration) -> io::Result<Vsock> {
    match timeout(within, Vsock::connect(cid, port)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Tries again for less than a second: an agent whose queue is full is alive, and has
/// room soon. The last attempt's error.
pub(crate) async fn persistently<T, F>(attempt: impl Fn() -> F) -> Result<T, SessionError>
where
    F: Future<Output = Result<T, SessionError>>,
{
    for pause in PAUSES {
        if let Ok(done) = attempt().await {
            return Ok(done);
        }
        sleep(pause).await;
    }
    attempt().await
}

/// The enclave and the secret that makes it ours.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    cid: Cid,
    token: SessionToken,
    /// When the agent was last asked for a sign of life, and whether it gave one.
    witnessed: Arc<Mutex<Option<(Instant, bool)>>>,
}

/// Why the agent cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("cannot dial port {port} of the enclave")]
    Dial { port: u32, source: io::Error },
    #[error("the connection to the agent broke")]
    Broken(#[from] io::Error),
    #[error("the agent closed the connection")]
    Closed,
    #[error("the agent sent no frame of protocol {PROTOCOL}")]
    Frame(#[from] FrameError),
    #[error("the agent refused")]
    Refused(#[from] Refusal),
    #[error("the agent was silent for {0:?}")]
    Silent(Duration),
}

impl Session {
    /// A session with a new random token.
    ///
    /// From getrandom(2), which fails on no kernel that can run enclaves; a
    /// library's own generator takes tens of milliseconds to start.
    pub(crate) fn new(cid: Cid) -> Result<Session, getrandom::Error> {
        let mut token = [0; 16];
        getrandom::fill(&mut token)?;
        Ok(Session { cid, token: SessionToken::from_random(token), witnessed: Arc::default() })
    }

    /// The enclave's.
    pub(crate) fn cid(&self) -> Cid {
        self.cid
    }

    /// A conversation on one of the agent's own ports, past its greeting.
    pub(crate) async fn open(&self, port: u32) -> Result<Conversation, SessionError> {
        self.greet(self.reach(port).await?, port).await
    }

    /// Whether the agent lives now. One greeting answers everybody who asked before it
    /// began: a thousand streams that end together are no flood.
    pub(crate) async fn is_alive(&self) -> bool {
        let asked = Instant::now();
        let mut witnessed = self.witnessed.lock().await;
        if let Some((_, alive)) = witnessed.filter(|(begun, _)| *begun >= asked) {
            return alive;
        }
        let begun = Instant::now();
        // Only our agent has a port where an answer means nothing but that it lives. A dial
        // alone is no sign of life: the queue of a listener outlives its owner for a moment.
        let alive = persistently(|| self.open(port::ATTESTATION)).await.is_ok();
        *witnessed = Some((begun, alive));
        alive
    }

    /// A connection to one of the agent's own ports; nothing is said yet.
    pub(crate) async fn reach(&self, port: u32) -> Result<Conversation, SessionError> {
        let dialled = dial(self.cid.get(), port, PATIENCE).await;
        dialled.map(Conversation::over).map_err(|source| SessionError::Dial { port, source })
    }

    /// A connection to the workload's `port` on which the agent has introduced
    /// the client: it reads the token, and the workload reads `header` first.
    pub(crate) async fn introduce(
        &self,
        port: u16,
        header: &ProxyHeader,
        within: Duration,
    ) -> Result<Vsock, SessionError> {
        let dialled = dial(self.cid.get(), port::ANNOUNCED, within).await;
        let mut stream = dialled.map_err(|source| SessionError::Dial { port: port::ANNOUNCED, source })?;
        let mut frames = wire::encode(&self.hello())?;
        frames.extend(wire::encode(&AnnouncedRequest { port, header: header.bytes().to_vec().into() })?);
        let greeted = async {
            stream.write_all(&frames).await?;
            only_frame(&mut stream).await
        };
        match timeout(PATIENCE, greeted).await {
            Ok(Ok(Greeting::Welcome { .. })) => Ok(stream),
            Ok(Ok(Greeting::Refused(refusal))) => Err(refusal.into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(SessionError::Silent(PATIENCE)),
        }
    }

    fn hello(&self) -> Hello {
        Hello { version: PROTOCOL, token: self.token.clone() }
    }

    /// Brings the connection that the agent asked for by this number.
    pub(crate) async fn attach(&self, stream: u64) -> Result<Attached, SessionError> {
        let mut conversation = self.reach(wire::port::STREAM).await?;
        conversation.send(&self.hello()).await?;
        conversation.send(&Attach { stream }).await?;
        let Conversation { stream, reader } = self.welcomed(conversation, wire::port::STREAM).await?;
        Ok(Attached { stream, first_bytes: reader.into_rest() })
    }

    /// Says hello on a connection to `port`.
    pub(crate) async fn greet(
        &self,
        mut conversation: Conversation,
        port: u32,
    ) -> Result<Conversation, SessionError> {
        conversation.send(&self.hello()).await?;
        self.welcomed(conversation, port).await
    }

    async fn welcomed(
        &self,
        mut conversation: Conversation,
        port: u32,
    ) -> Result<Conversation, SessionError> {
        match timeout(PATIENCE, conversation.receive::<Greeting>()).await {
            Ok(Ok(Greeting::Welcome { build })) => {
                tracing::debug!(port, agent = build, "welcomed by the agent");
                Ok(conversation)
            }
            Ok(Ok(Greeting::Refused(refusal))) => Err(refusal.into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(SessionError::Silent(PATIENCE)),
        }
    }
}

/// One frame, and not a byte of what follows it.
async fn only_frame<T: for<'a> Decode<'a, ()>>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, SessionError> {
    let mut bytes = vec![0; wire::frame::PREFIX];
    stream.read_exact(&mut bytes).await?;
    let mut reader = FrameReader::new();
    reader.push(&bytes);
    let body = reader.announced()?;
    bytes.resize(body, 0);
    stream.read_exact(&mut bytes).await?;
    reader.push(&bytes);
    reader.next_message()?.ok_or(SessionError::Closed)
}

/// A connection to the workload, past its frames.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) stream: Vsock,
    /// What the workload had already sent.
    pub(crate) first_bytes: Vec<u8>,
}

/// A connection that carries frames.
#[derive(Debug)]
pub(crate) struct Conversation<S = Vsock> {
    stream: S,
    reader: FrameReader,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    /// Frames over `stream`; nothing is said yet.
    pub(crate) fn over(stream: S) -> Conversation<S> {
        Conversation { stream, reader: FrameReader::new() }
    }

    /// Sends one frame. Not cancel-safe: a frame may be cut.
    pub(crate) async fn send<T: Encode<()>>(&mut self, message: &T) -> Result<(), SessionError> {
        let frame = wire::encode(message)?;
        match timeout(PATIENCE, self.stream.write_all(&frame)).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(SessionError::Silent(PATIENCE)),
        }
    }

    /// The next frame. Cancel-safe.
    pub(crate) async fn receive<T: for<'a> Decode<'a, ()>>(&mut self) -> Result<T, SessionError> {
        loop {
            if let Some(message) = self.reader.next_message()? {
                return Ok(message);
            }
            let mut bytes = [0; READ_SIZE];
            match self.stream.read(&mut bytes).await? {
                0 => return Err(SessionError::Closed),
                count => self.reader.push(&bytes[..count]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn a_busy_agent_is_asked_again_and_a_dead_one_for_less_than_a_second() {
        let attempts = Cell::new(0);
        let busy = |until: u32| {
            let attempts = &attempts;
            move || {
                attempts.set(attempts.get() + 1);
                std::future::ready(if attempts.get() < until { Err(SessionError::Closed) } else { Ok(()) })
            }
        };
        assert!(persistently(busy(4)).await.is_ok());
        assert_eq!(attempts.take(), 4);
        let begun = Instant::now();
        assert!(matches!(persistently(busy(5)).await, Err(SessionError::Closed)));
        assert_eq!(attempts.take(), 4);
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert!(persistently(busy(1)).await.is_ok());
        assert_eq!(attempts.take(), 1);
    }
}
