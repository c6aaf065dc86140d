//! Asks name servers, by hickory-resolver: over UDP and, where an answer is too
//! long or does not repeat the case of the question's letters, over TCP.
//!
//! Both families at once, one server after the other, all of them twice. Every
//! server is a resolver of its own: one pool of them all takes the first word,
//! also a failing server's "I cannot say". They remember nothing;
//! [`names`](super::names) does.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::{Pin, pin};
use std::time::Duration;

use egress::Name;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::{Resolver, TokioResolver};
use tokio::time::timeout;

use crate::exit::{Blame, Exit};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// As many as libraries take from the file (resolv.conf(5)).
const MOST_SERVERS: usize = 3;
/// For one server to answer once.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
/// For the second family, when the first has addresses. Source: RFC 8305, section 3.
const OTHER_FAMILY_WITHIN: Duration = Duration::from_millis(50);
/// Bytes of an answer over UDP: what fits every path (DNS flag day 2020).
const LONGEST_DATAGRAM: u16 = 1232;

/// Why names cannot be resolved at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoResolver {
    #[error("cannot read /etc/resolv.conf to resolve the names of egress rules")]
    Unreadable(#[source] io::Error),
    #[error("/etc/resolv.conf names no server to resolve the names of egress rules")]
    NoServer,
    #[error("the resolver of the names of egress rules cannot be made")]
    Library(#[source] NetError),
}

impl Blame for NoResolver {
    fn exit(&self) -> Exit {
        match self {
            NoResolver::Unreadable(_) | NoResolver::NoServer => Exit::Usage,
            NoResolver::Library(_) => Exit::Bug,
        }
    }

    fn fix(&self) -> String {
        match self {
            NoResolver::Unreadable(_) | NoResolver::NoServer => {
                "name servers under resolver.servers, or give the pod an /etc/resolv.conf that names one"
                    .into()
            }
            NoResolver::Library(_) => "report it".into(),
        }
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
pub(super) struct Servers(Vec<(SocketAddr, TokioResolver)>);

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
    pub(super) fn new(servers: &[SocketAddr]) -> Result<Servers, NoResolver> {
        let resolvers = servers.iter().map(|server| Ok((*server, resolver(*server)?)));
        Ok(Servers(resolvers.collect::<Result<_, NetError>>().map_err(NoResolver::Library)?))
    }

    pub(super) async fn ask(&self, name: &Name) -> Answer {
        let mut four = pin!(self.ask_for(name, RecordType::A));
        let mut six = pin!(self.ask_for(name, RecordType::AAAA));
        let (four, six) = tokio::select! {
            said = &mut four => { let other = after(&said, six).await; (said, other) }
            said = &mut six => { let other = after(&said, four).await; (other, said) }
        };
        match (four, six) {
            // One family's failure or silence takes nothing from the other's answer.
            (Answer::Addresses(mut four, ttl), Answer::Addresses(six, other)) => {
                four.extend(six);
                Answer::Addresses(four, ttl.min(other))
            }
            (found @ Answer::Addresses(..), _) | (_, found @ Answer::Addresses(..)) => found,
            (Answer::NoSuchName(four), Answer::NoSuchName(six)) => Answer::NoSuchName(four.min(six)),
            _ => Answer::Nobody,
        }
    }

    async fn ask_for(&self, name: &Name, kind: RecordType) -> Answer {
        // The last dot: as it stands, within no search domain.
        let absolute = format!("{name}.");
        for (server, resolver) in std::iter::repeat_n(&self.0, ROUNDS).flatten() {
            let failed = match resolver.lookup(absolute.as_str(), kind).await {
                Ok(lookup) => {
                    let answers = lookup.answers();
                    let ttl = answers.iter().map(|record| record.ttl).min().unwrap_or(0);
                    let addresses: Vec<_> =
                        answers.iter().filter_map(|record| record.data.ip_addr()).collect();
                    let ttl = Duration::from_secs(ttl.into());
                    return if addresses.is_empty() {
                        Answer::NoSuchName(ttl)
                    } else {
                        Answer::Addresses(addresses, ttl)
                    };
                }
                // Without its zone's word (RFC 2308, section 5) a denial does not hold at all.
                Err(NetError::Dns(DnsError::NoRecordsFound(denied))) => {
                    return Answer::NoSuchName(Duration::from_secs(denied.negative_ttl.unwrap_or(0).into()));
                }
                Err(error) => error,
            };
            tracing::debug!(%server, %name, error = %failed, "a name server cannot answer");
        }
        Answer::Nobody
    }
}

/// What the other family is, once one has `said`: of addresses that are there only the
/// moment of RFC 8305, section 3, is given away.
async fn after(said: &Answer, other: Pin<&mut impl Future<Output = Answer>>) -> Answer {
    match said {
        Answer::Addresses(..) => timeout(OTHER_FAMILY_WITHIN, other).await.unwrap_or(Answer::Nobody),
        _ => other.await,
    }
}

/// Asks one server, once, about absolute names, and remembers nothing.
fn resolver(server: SocketAddr) -> Result<TokioResolver, NetError> {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    let servers = vec![NameServerConfig::new(server.ip(), true, connections.into())];
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    let mut options = ResolverOpts::default();
    options.attempts = 0;
    options.timeout = ANSWERED_WITHIN;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.case_randomization = true;
    options.edns_payload_len = LONGEST_DATAGRAM;
    Resolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UdpSocket};

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

    #[test]
    fn a_resolver_that_cannot_be_made_is_a_mistake_of_this_program() {
        let failure = crate::exit::Failure::from(NoResolver::Library(NetError::NoConnections));
        assert_eq!(failure.exit, Exit::Bug);
        assert!(failure.explanation.cause.contains("cannot be made"), "{failure:?}");
        assert_eq!(failure.explanation.fix, "report it");
    }

    const GOOD: [u8; 2] = [0x81, 0x80];
    const SERVFAIL: [u8; 2] = [0x81, 0x82];
    const NO_SUCH_NAME: [u8; 2] = [0x81, 0x83];
    const TRUNCATED: [u8; 2] = [0x83, 0x80];

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

    /// Says to each question over TCP that its name is at `address`.
    async fn serve_by_tcp(listener: &TcpListener, address: [u8; 4]) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut question = vec![0; length.into()];
        stream.read_exact(&mut question).await.unwrap();
        let whole = answer(&question, GOOD, Some(address));
        stream.write_u16(whole.len() as u16).await.unwrap();
        stream.write_all(&whole).await.unwrap();
    }

    /// What `servers` say of a name while `serve` serves.
    async fn asked(servers: &[&UdpSocket], serve: impl Future<Output = ()>) -> Answer {
        let servers: Vec<_> = servers.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let servers = Servers::new(&servers).unwrap();
        let name = "www.example.com".parse().unwrap();
        tokio::select! {
            said = servers.ask(&name) => said,
            () = serve => panic!("the server ended"),
        }
    }

    fn at(address: [u8; 4]) -> Answer {
        Answer::Addresses(vec![address.into()], Duration::from_secs(7))
    }

    #[tokio::test]
    async fn a_server_that_fails_is_passed_over_and_a_long_answer_is_fetched_by_tcp() {
        let failing = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let by_tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let long = UdpSocket::bind(by_tcp.local_addr().unwrap()).await.unwrap();
        let serve = async {
            let (mut first, mut second) = ([0; 512], [0; 512]);
            loop {
                tokio::select! {
                    Ok((length, client)) = failing.recv_from(&mut first) => {
                        failing.send_to(&answer(&first[..length], SERVFAIL, None), client).await.unwrap();
                    }
                    Ok((length, client)) = long.recv_from(&mut second) => {
                        // First somebody else's answer, which must not count.
                        let mut forged = answer(&second[..length], GOOD, Some([6, 6, 6, 6]));
                        forged[0] ^= 1;
                        long.send_to(&forged, client).await.unwrap();
                        long.send_to(&answer(&second[..length], TRUNCATED, None), client).await.unwrap();
                    }
                    () = serve_by_tcp(&by_tcp, [192, 0, 2, 1]) => {}
                }
            }
        };
        assert_eq!(asked(&[&failing, &long], serve).await, at([192, 0, 2, 1]));
    }

    #[tokio::test]
    async fn an_answer_that_does_not_repeat_the_case_of_every_letter_is_not_believed() {
        let by_tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let forger = UdpSocket::bind(by_tcp.local_addr().unwrap()).await.unwrap();
        let serve = async {
            let mut query = [0; 512];
            loop {
                tokio::select! {
                    Ok((length, client)) = forger.recv_from(&mut query) => {
                        let mut forged = answer(&query[..length], GOOD, Some([6, 6, 6, 6]));
                        // The first letter, after the length of its label.
                        forged[13] ^= 0x20;
                        forger.send_to(&forged, client).await.unwrap();
                    }
                    () = serve_by_tcp(&by_tcp, [192, 0, 2, 2]) => {}
                }
            }
        };
        assert_eq!(asked(&[&forger], serve).await, at([192, 0, 2, 2]));
    }

    #[tokio::test]
    async fn a_denial_holds_as_long_as_its_zone_says_and_without_its_word_not_at_all() {
        // The record's own time, and the last of its five numbers after two root names.
        let soa = |ttl: u32, minimum: u32| {
            let head = [&[0xC0, 12, 0, 6, 0, 1], &ttl.to_be_bytes()[..], &[0, 22, 0, 0]].concat();
            [head, vec![0; 16], minimum.to_be_bytes().to_vec()].concat()
        };
        for (flags, authority, seconds) in [
            (NO_SUCH_NAME, Some(soa(900, 60)), 60),
            (NO_SUCH_NAME, Some(soa(30, 60)), 30),
            (GOOD, Some(soa(900, 7)), 7),
            (NO_SUCH_NAME, None, 0),
        ] {
            let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let serve = async {
                let mut query = [0; 512];
                while let Ok((length, client)) = server.recv_from(&mut query).await {
                    let mut denial = answer(&query[..length], flags, None);
                    denial[9] = u8::from(authority.is_some());
                    denial.extend(authority.iter().flatten());
                    server.send_to(&denial, client).await.unwrap();
                }
            };
            let expected = Answer::NoSuchName(Duration::from_secs(seconds));
            assert_eq!(asked(&[&server], serve).await, expected, "{flags:?} {authority:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_silent_about_one_family_does_not_keep_the_other_waiting() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let serve = async {
            let mut query = [0; 512];
            while let Ok((length, client)) = server.recv_from(&mut query).await {
                let answer = answer(&query[..length], GOOD, Some([192, 0, 2, 1]));
                // Only the answer about IPv4 has an address in it.
                if answer[7] == 1 {
                    server.send_to(&answer, client).await.unwrap();
                }
            }
        };
        let begun = std::time::Instant::now();
        assert_eq!(asked(&[&server], serve).await, at([192, 0, 2, 1]));
        assert!(begun.elapsed() < ANSWERED_WITHIN, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn where_every_server_fails_nobody_answers() {
        let failing = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let serve = async {
            let mut query = [0; 512];
            while let Ok((length, client)) = failing.recv_from(&mut query).await {
                failing.send_to(&answer(&query[..length], SERVFAIL, None), client).await.unwrap();
            }
        };
        assert_eq!(asked(&[&failing], serve).await, Answer::Nobody);
    }
}
