//! What has to be read of a client before it is carried: who it is, whom it wants.
//!
//! ```text
//! PROXY header (accept_proxy) ─▶ first bytes until the name is known (sni, host) ─▶ port
//! ```
//! What was read goes on to the enclave unchanged, except for the header.
//! Nothing is decrypted, and only the first request of a connection is looked
//! at: everything behind it goes where that one went.

use std::io;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};
use wire::proxy::FIXED;
use wire::{ProxyError, ProxyHeader};

use crate::config::{Ingress, NameIn};

/// Bytes within which a name must come: browsers' hellos and headers are shorter.
const LONGEST: usize = 32 * 1024;
const PIECE: usize = 4096;
/// Header lines of a request.
const HEADERS: usize = 100;

/// Where a client goes, and what comes first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opening {
    /// What the load balancer said.
    pub(super) header: Option<ProxyHeader>,
    pub(super) already_read: Vec<u8>,
    /// The workload's.
    pub(super) port: u16,
}

/// Why a client is not carried.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpeningError {
    #[error("the client did not come through a proxy")]
    Proxy(#[from] ProxyError),
    #[error("no route leads to {}", .0.as_deref().unwrap_or("a client that names nobody"))]
    NoRoute(Option<String>),
    #[error("the client went away")]
    Lost(#[from] io::Error),
}

/// True when there is something to read.
pub(super) fn is_needed(ingress: &Ingress) -> bool {
    ingress.accept_proxy || ingress.routed_by().is_some()
}

/// Reads what `ingress` has to know, and not a byte that the relay could not pass on.
pub(super) async fn read(
    client: &mut (impl AsyncRead + Unpin),
    ingress: &Ingress,
) -> Result<Opening, OpeningError> {
    let header = if ingress.accept_proxy { Some(proxy_header(client).await?) } else { None };
    let mut already_read = Vec::new();
    let name = match ingress.routed_by() {
        Some(place) => name(client, place, &mut already_read).await?,
        None => None,
    };
    match ingress.port_for(name.as_deref()) {
        Some(port) => Ok(Opening { header, already_read, port }),
        None => Err(OpeningError::NoRoute(name)),
    }
}

async fn proxy_header(client: &mut (impl AsyncRead + Unpin)) -> Result<ProxyHeader, OpeningError> {
    let mut fixed = [0; FIXED];
    client.read_exact(&mut fixed).await?;
    let mut bytes = fixed.to_vec();
    bytes.resize(ProxyHeader::length(&fixed)?, 0);
    client.read_exact(&mut bytes[FIXED..]).await?;
    Ok(ProxyHeader::parse(bytes)?)
}

/// The name that a client asks for; none if it speaks something else, or ends
/// or goes on too long before it has said so.
async fn name(
    client: &mut (impl AsyncRead + Unpin),
    place: NameIn,
    already_read: &mut Vec<u8>,
) -> io::Result<Option<String>> {
    let mut hello = Acceptor::default();
    let mut piece = vec![0; PIECE];
    while already_read.len() < LONGEST {
        let count = client.read(&mut piece).await?;
        already_read.extend_from_slice(&piece[..count]);
        let seen = match place {
            _ if count == 0 => Seen::Nothing,
            NameIn::Sni => server_name(&mut hello, &piece[..count]),
            NameIn::Host => host(already_read),
        };
        match seen {
            Seen::Name(name) => return Ok(Some(name)),
            Seen::Nothing => return Ok(None),
            Seen::TooLittle => {}
        }
    }
    Ok(None)
}

enum Seen {
    Name(String),
    /// There is no name, and none will come.
    Nothing,
    TooLittle,
}

impl From<Option<String>> for Seen {
    fn from(name: Option<String>) -> Seen {
        name.map_or(Seen::Nothing, Seen::Name)
    }
}

/// `piece` follows what `hello` has seen.
fn server_name(hello: &mut Acceptor, mut piece: &[u8]) -> Seen {
    while !piece.is_empty() {
        if hello.read_tls(&mut piece).is_err() {
            return Seen::Nothing;
        }
        match hello.accept() {
            Ok(Some(accepted)) => return accepted.client_hello().server_name().map(str::to_owned).into(),
            Ok(None) => {}
            Err(_) => return Seen::Nothing,
        }
    }
    Seen::TooLittle
}

/// The target's own authority wins over the Host line (RFC 9112, section 3.2.2).
fn host(bytes: &[u8]) -> Seen {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Seen::TooLittle,
        Err(_) => return Seen::Nothing,
    }
    let target = request.path.and_then(|path| path.split_once("://")).filter(|(scheme, _)| is_scheme(scheme));
    let authority = target.map(|(_, rest)| rest.split(['/', '?']).next().unwrap_or_default());
    let mut lines = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    let line = lines.next().and_then(|header| std::str::from_utf8(header.value).ok());
    if lines.next().is_some() {
        return Seen::Nothing;
    }
    authority.or(line).map(|host| without_port(host).to_owned()).into()
}

/// RFC 3986, section 3.1. A path that only holds an address somewhere has a slash before it.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn without_port(host: &str) -> &str {
    match host.trim().rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::{AsyncWriteExt, duplex};

    fn ingress(yaml: &str) -> Ingress {
        serde_saphyr::from_str(&format!("listen: 127.0.0.1:1\n{yaml}")).unwrap()
    }

    /// What is made of `bytes`, which come `step` at a time, and what is left to the relay.
    async fn opened(yaml: &str, bytes: &[u8], step: usize) -> (Result<Opening, OpeningError>, Vec<u8>) {
        let (mut near, mut far) = duplex(step);
        let (ingress, bytes) = (ingress(yaml), bytes.to_vec());
        let sender = tokio::spawn(async move {
            let _ = far.write_all(&bytes).await;
        });
        let opening = read(&mut near, &ingress).await;
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        sender.await.unwrap();
        (opening, rest)
    }

    fn client_hello(name: &'static str) -> Vec<u8> {
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn a_tls_client_goes_where_its_server_name_leads_and_no_byte_is_lost() {
        let yaml = "sni: {a.example.com: 1, '*.example.com': 2}\nport: 3";
        for (name, port) in [("a.example.com", 1), ("b.example.com", 2), ("example.org", 3)] {
            let hello = client_hello(name);
            for step in [1, 7, 4096] {
                let (opening, rest) = opened(yaml, &hello, step).await;
                let opening = opening.unwrap();
                assert_eq!(opening.port, port, "{name}");
                assert_eq!([opening.already_read, rest].concat(), hello, "{name} by {step}");
            }
        }
    }

    #[tokio::test]
    async fn an_http_client_goes_where_its_host_leads() {
        for (request, port) in [
            ("GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\nrest", Some(1)),
            ("GET / HTTP/1.1\r\nhost:  A.EXAMPLE.COM:8080 \r\n\r\n", Some(1)),
            ("GET http://a.example.com/x HTTP/1.1\r\nHost: b.example.com\r\n\r\n", Some(1)),
            ("GET /login?next=https://b.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n\r\n", Some(1)),
            ("GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a.example.com\r\nHost: b.example.com\r\n\r\n", None),
            ("GET / HTTP/1.0\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a.example.com\r\n", None),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
            ("\x16\x03\x01", None),
        ] {
            let (opening, _) = opened("host: {a.example.com: 1}", request.as_bytes(), 5).await;
            assert_eq!(opening.ok().map(|opening| opening.port), port, "{request}");
        }
    }

    #[tokio::test]
    async fn a_name_that_never_comes_is_not_waited_for_without_end() {
        let endless = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 2 * LONGEST]].concat();
        let (opening, _) = opened("host: {a.example.com: 1}", &endless, 4096).await;
        assert!(matches!(opening, Err(OpeningError::NoRoute(None))), "{opening:?}");
        let (opening, _) = opened("host: {a.example.com: 1}\nport: 2", &endless, 4096).await;
        assert_eq!(opening.unwrap().port, 2);
    }

    #[tokio::test]
    async fn the_proxys_header_is_taken_off_and_the_first_byte_behind_it_is_the_clients() {
        let header = ProxyHeader::tcp("192.0.2.7:5".parse().unwrap(), "10.0.0.1:443".parse().unwrap());
        let bytes = [header.bytes(), b"hello"].concat();
        let (opening, rest) = opened("port: 1\naccept_proxy: true", &bytes, 3).await;
        let opening = opening.unwrap();
        assert_eq!((opening.header, opening.already_read), (Some(header), Vec::new()));
        assert_eq!(rest, b"hello");
    }

    #[tokio::test]
    async fn a_client_without_the_header_is_not_let_through() {
        let (opening, _) = opened("port: 1\naccept_proxy: true", b"GET / HTTP/1.1\r\n\r\n", 64).await;
        assert!(matches!(opening, Err(OpeningError::Proxy(ProxyError::Signature))), "{opening:?}");
        let (opening, _) = opened("port: 1\naccept_proxy: true", b"\r\n\r\n", 64).await;
        assert!(matches!(opening, Err(OpeningError::Lost(_))), "{opening:?}");
    }
}
