//! HTTP CONNECT and SOCKS5 on one port, told apart by the first byte.
//!
//! ```text
//! first byte 5 ─▶ methods ─▶ request ─┐
//! else ─▶ head of a CONNECT ──────────┴─▶ policy ─▶ dial ─▶ answer ─▶ relay
//! ```
//! For what has no address of its own: literal addresses and wide ranges of ports.

use std::io;
use std::time::Duration;

use egress::socks::{self, Reply};
use egress::{Target, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wire::Undialled;

use super::Shared;
use super::dials::Attached;
use super::gateway;

/// From the connection to the whole request.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
/// For an answer to be taken.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
const PIECE: usize = 2048;

/// One client of the proxy.
pub(super) async fn serve(client: TcpStream, shared: &Shared) {
    // Without a place it is reset at once: slow clients cannot shut others out for longer than they may ask.
    let Some(place) = shared.undecided.take("egress: undecided") else { return gateway::reset(client) };
    let mut asking = Asking { client, bytes: Vec::new() };
    let asked = timeout(ASKED_WITHIN, asking.ask()).await;
    drop(place);
    match asked {
        Ok(Ok(Asked { target, as_socks })) => asking.connect(target, as_socks, shared).await,
        Ok(Err(Refused::Told(reason))) => shared.tell(|| format!("egress: proxy: {reason}")),
        Ok(Err(Refused::Gone)) => {}
        Err(_) => {
            shared.tell(|| format!("egress: proxy: no whole request within {ASKED_WITHIN:?}"));
            gateway::reset(asking.client);
        }
    }
}

struct Asked {
    target: Target,
    as_socks: bool,
}

enum Refused {
    /// The client has been answered.
    Told(String),
    Gone,
}

impl From<io::Error> for Refused {
    fn from(_: io::Error) -> Refused {
        Refused::Gone
    }
}

struct Asking {
    client: TcpStream,
    /// Read and not understood yet; in the end, what belongs to the connection.
    bytes: Vec<u8>,
}

impl Asking {
    async fn ask(&mut self) -> Result<Asked, Refused> {
        self.read().await?;
        if self.bytes.first() == Some(&socks::VERSION) {
            let target = self.ask_by_socks().await?;
            return Ok(Asked { target, as_socks: true });
        }
        loop {
            match connect::read(&self.bytes) {
                Ok(Some(request)) => {
                    self.bytes.drain(..request.length);
                    return Ok(Asked { target: request.target, as_socks: false });
                }
                Ok(None) => self.read().await?,
                Err(error) => {
                    let text = error.to_string();
                    self.client.write_all(page(error.status(), &text).as_bytes()).await?;
                    return Err(Refused::Told(text));
                }
            }
        }
    }

    async fn ask_by_socks(&mut self) -> Result<Target, Refused> {
        let chosen = loop {
            match socks::methods(&self.bytes) {
                Ok(Some(((), length))) => break length,
                Ok(None) => self.read().await?,
                Err(error) => {
                    self.client.write_all(&socks::NO_METHOD).await?;
                    return Err(Refused::Told(error.to_string()));
                }
            }
        };
        self.bytes.drain(..chosen);
        self.client.write_all(&socks::NO_AUTHENTICATION).await?;
        loop {
            match socks::request(&self.bytes) {
                Ok(Some((target, length))) => {
                    self.bytes.drain(..length);
                    return Ok(target);
                }
                Ok(None) => self.read().await?,
                Err(error) => {
                    self.client.write_all(&error.reply().message()).await?;
                    return Err(Refused::Told(error.to_string()));
                }
            }
        }
    }

    /// More bytes. What is not understood never grows beyond the longest head and a piece.
    async fn read(&mut self) -> Result<(), Refused> {
        let mut piece = [0; PIECE];
        match self.client.read(&mut piece).await? {
            0 => Err(Refused::Gone),
            count => {
                self.bytes.extend(&piece[..count]);
                Ok(())
            }
        }
    }

    async fn connect(mut self, target: Target, as_socks: bool, shared: &Shared) {
        let dialled = match shared.allows(&target) {
            true => shared.dials.dial(&target).await,
            false => Err(Undialled::Denied),
        };
        if let Err(reason) = &dialled {
            shared.tell(|| format!("egress: {target}: {reason}"));
        }
        let answered = timeout(ANSWERED_WITHIN, self.answer(&dialled, as_socks)).await;
        if let (Ok(Ok(())), Ok(attached)) = (answered, dialled) {
            gateway::carry(self.client, attached, self.bytes, shared).await;
        }
    }

    async fn answer(&mut self, dialled: &Result<Attached, Undialled>, as_socks: bool) -> io::Result<()> {
        let client = &mut self.client;
        match (dialled, as_socks) {
            (Ok(_), true) => client.write_all(&Reply::Succeeded.message()).await,
            (Ok(_), false) => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await,
            (Err(reason), true) => client.write_all(&reply(*reason).message()).await,
            (Err(reason), false) => {
                client.write_all(page(status(*reason), &reason.to_string()).as_bytes()).await
            }
        }
    }
}

fn page(status: &str, text: &str) -> String {
    let text = format!("{text}\n");
    let head = "Content-Type: text/plain; charset=utf-8\r\nConnection: close";
    format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

fn status(reason: Undialled) -> &'static str {
    match reason {
        Undialled::BadTarget => "400 Bad Request",
        Undialled::Denied | Undialled::AddressDenied => "403 Forbidden",
        Undialled::NoSuchName | Undialled::Unresolved | Undialled::Refused | Undialled::Unreachable => {
            "502 Bad Gateway"
        }
        Undialled::Late => "504 Gateway Timeout",
        Undialled::Full => "503 Service Unavailable",
    }
}

fn reply(reason: Undialled) -> Reply {
    match reason {
        Undialled::BadTarget | Undialled::Full => Reply::Failed,
        Undialled::Denied | Undialled::AddressDenied => Reply::NotAllowed,
        Undialled::NoSuchName | Undialled::Unresolved | Undialled::Late => Reply::HostUnreachable,
        Undialled::Unreachable => Reply::NetworkUnreachable,
        Undialled::Refused => Reply::Refused,
    }
}
