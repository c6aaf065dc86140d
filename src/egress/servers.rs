//! Asks name servers, over UDP and, where an answer is too long, over TCP.
//!
//! Both families at once, one server after the other, all of them twice. Every
//! question has a socket of its own: its port is the kernel's random choice,
//! connected, so that only the server's own datagrams arrive.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use egress::Name;
use egress::stub::{Family, LONGEST_DATAGRAM, NoAnswer, Question, Said};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::exit::{Blame, Exit};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// As many as libraries take from the file (resolv.conf(5)).
const MOST_SERVERS: usize = 3;
/// For one server to answer once.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;

/// Why names cannot be resolved at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoResolver {
    #[error("cannot read /etc/resolv.conf to resolve the names of egress rules")]
    Unreadable(#[source] io::Error),
    #[error("/etc/resolv.conf names no server to resolve the names of egress rules")]
    NoServer,
}

impl Blame for NoResolver {
    fn exit(&self) -> Exit {
        Exit::Usage
    }

    fn fix(&self) -> String {
        "name servers under resolver.servers, or give the pod an /etc/resolv.conf that names one".into()
    }
}

/// What all servers together say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Of both families, never none, and for how long they hold.
    Addresses(Vec<IpAddr>, Duration),
    /// There is no such name, or it has no address, and for how long that holds.
    NoSuchName(Duration),
    /// None of them answers.
    Nobody,
}

#[derive(Debug)]
pub(super) struct Servers(Vec<SocketAddr>);

/// Those of /etc/resolv.conf.
pub(super) fn of_this_machine() -> Result<Vec<SocketAddr>, NoResolver> {
    of_file(Path::new(RESOLV_CONF))
}

fn of_file(path: &Path) -> Result<Vec<SocketAddr>, NoResolver> {
    let text = fs::read_to_string(path).map_err(NoResolver::Unreadable)?;
    match parse(&text) {
        servers if servers.is_empty() => Err(NoResolver::NoServer),
        servers => Ok(servers),
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(str::split_whitespace).filter_map(|mut words| {
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    words.take(MOST_SERVERS).map(|address| SocketAddr::new(address, PORT)).collect()
}

impl Servers {
    pub(super) fn new(servers: Vec<SocketAddr>) -> Servers {
        Servers(servers)
    }

    pub(super) async fn ask(&self, name: &Name) -> Answer {
        let (four, six) = tokio::join!(self.ask_for(name, Family::Four), self.ask_for(name, Family::Six));
        match (four, six) {
            // One family's failure takes nothing from the other's answer.
            (Answer::Addresses(mut four, ttl), Answer::Addresses(six, other)) => {
                four.extend(six);
                Answer::Addresses(four, ttl.min(other))
            }
            (found @ Answer::Addresses(..), _) | (_, found @ Answer::Addresses(..)) => found,
            (Answer::NoSuchName(four), Answer::NoSuchName(six)) => Answer::NoSuchName(four.min(six)),
            _ => Answer::Nobody,
        }
    }

    async fn ask_for(&self, name: &Name, family: Family) -> Answer {
        for server in std::iter::repeat_n(&self.0, ROUNDS).flatten() {
            let mut random = [0; 32];
            if let Err(error) = getrandom::fill(&mut random) {
                tracing::debug!(%name, %error, "no random bytes for a question");
                return Answer::Nobody;
            }
            let question = Question::new(name, family, random);
            match timeout(ANSWERED_WITHIN, ask_one(*server, &question)).await {
                Ok(Ok(Said::Addresses(addresses, ttl))) if !addresses.is_empty() => {
                    return Answer::Addresses(addresses, Duration::from_secs(ttl.into()));
                }
                Ok(Ok(Said::Addresses(_, ttl) | Said::NoSuchName(ttl))) => {
                    return Answer::NoSuchName(Duration::from_secs(ttl.into()));
                }
                Ok(Ok(other)) => tracing::debug!(%server, %name, ?other, "a name server cannot answer"),
                Ok(Err(error)) => tracing::debug!(%server, %name, %error, "a name server cannot be asked"),
                Err(_) => tracing::debug!(%server, %name, "a name server does not answer"),
            }
        }
        Answer::Nobody
    }
}

async fn ask_one(server: SocketAddr, question: &Question) -> io::Result<Said> {
    let unspecified: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((unspecified, 0)).await?;
    socket.connect(server).await?;
    socket.send(question.bytes()).await?;
    let mut answer = [0; LONGEST_DATAGRAM];
    loop {
        let length = socket.recv(&mut answer).await?;
        match question.read(&answer[..length]) {
            Ok(Said::Truncated) => return ask_by_tcp(server, question).await,
            Ok(said) => return Ok(said),
            Err(NoAnswer::Another) => {}
            Err(NoAnswer::Malformed) => return Err(malformed()),
        }
    }
}

async fn ask_by_tcp(server: SocketAddr, question: &Question) -> io::Result<Said> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.bytes().len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question.bytes()].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    question.read(&answer).map_err(|_| malformed())
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the answer cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn resolv_conf_names_servers_and_nothing_else_of_it_is_used() {
        let text = "search a.com\n# nameserver 9.9.9.9\nnameserver 10.0.0.2\nnameserver fd00::2\nnameserver x\noptions ndots:5\n";
        let expected: [SocketAddr; 2] = ["10.0.0.2:53".parse().unwrap(), "[fd00::2]:53".parse().unwrap()];
        assert_eq!(parse(text), expected);
        assert!(parse("search a.com\n").is_empty());
        assert_eq!(parse(&"nameserver 1.1.1.1\n".repeat(5)).len(), MOST_SERVERS);
    }

    #[test]
    fn a_machine_without_name_servers_is_the_operators_to_mend() {
        let directory = tempfile::tempdir().unwrap();
        let missing = of_file(&directory.path().join("missing")).unwrap_err();
        assert!(matches!(missing, NoResolver::Unreadable(_)));
        let empty = directory.path().join("empty");
        fs::write(&empty, "search a.com\n").unwrap();
        let none = of_file(&empty).unwrap_err();
        assert!(matches!(none, NoResolver::NoServer));
        for error in [missing, none] {
            let failure = crate::exit::Failure::from(error);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.explanation.cause.contains("/etc/resolv.conf"), "{failure:?}");
            assert!(failure.explanation.fix.contains("resolver.servers"), "{failure:?}");
        }
    }

    /// Flags and the answers' count, then one A record if `address` is there.
    fn answer(query: &[u8], flags: [u8; 2], address: Option<[u8; 4]>) -> Vec<u8> {
        let kind_at = query[12..].iter().position(|byte| *byte == 0).unwrap() + 13;
        let fitting = address.filter(|_| query[kind_at + 1] == 1);
        let mut bytes = [&query[..2], &flags, &[0, 1, 0, u8::from(fitting.is_some()), 0, 0, 0, 0]].concat();
        bytes.extend(&query[12..kind_at + 4]);
        if let Some(address) = fitting {
            bytes.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 7, 0, 4]);
            bytes.extend(address);
        }
        bytes
    }

    #[tokio::test]
    async fn a_server_that_fails_is_passed_over_and_a_long_answer_is_fetched_by_tcp() {
        let failing = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let by_tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let long = UdpSocket::bind(by_tcp.local_addr().unwrap()).await.unwrap();
        let servers = Servers::new(vec![failing.local_addr().unwrap(), long.local_addr().unwrap()]);
        let serve = async move {
            let mut query = [0; 512];
            let mut datagram = [0; 512];
            loop {
                tokio::select! {
                    Ok((length, client)) = failing.recv_from(&mut query) => {
                        failing.send_to(&answer(&query[..length], [0x81, 0x82], None), client).await.unwrap();
                    }
                    Ok((length, client)) = long.recv_from(&mut datagram) => {
                        // First somebody else's answer, which must not count.
                        let mut forged = answer(&datagram[..length], [0x81, 0x80], Some([6, 6, 6, 6]));
                        forged[0] ^= 1;
                        long.send_to(&forged, client).await.unwrap();
                        long.send_to(&answer(&datagram[..length], [0x83, 0x80], None), client).await.unwrap();
                    }
                    Ok((mut stream, _)) = by_tcp.accept() => {
                        let length = stream.read_u16().await.unwrap();
                        let mut question = vec![0; length.into()];
                        stream.read_exact(&mut question).await.unwrap();
                        let whole = answer(&question, [0x81, 0x80], Some([192, 0, 2, 1]));
                        stream.write_u16(whole.len() as u16).await.unwrap();
                        stream.write_all(&whole).await.unwrap();
                    }
                }
            }
        };
        let name = "long.example.com".parse().unwrap();
        let said = tokio::select! {
            said = servers.ask(&name) => said,
            () = serve => panic!("the server ended"),
        };
        let address = vec!["192.0.2.1".parse().unwrap()];
        assert_eq!(said, Answer::Addresses(address, Duration::from_secs(7)));
    }
}
