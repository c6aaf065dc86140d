//! Resolves names, and remembers what they led to.
//!
//! ```text
//! /etc/hosts ─▶ remembered, in its time ─▶ name servers ─▶ remembered, out of its time
//! ```
//! When no server answers any more, the last good answer is used on for a
//! while: a name server's bad hour is not the workload's. That a name does not
//! exist is believed at once, and remembered for a moment. Nothing here decides: every answer, also a
//! remembered one, goes through the policy at each connection.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use egress::Name;
use tokio::time::{Instant, timeout};
use wire::Undialled;

use super::Metrics;
use super::servers::{self, Answer, NoResolver, Servers};
use crate::config::Resolver;

const HOSTS: &str = "/etc/hosts";
/// Names that are remembered; with wildcard rules a workload may ask for any number.
const MOST_REMEMBERED: usize = 4096;
/// However long an answer claims to hold.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// For name servers to answer where a remembered answer may stand in for theirs (RFC 8767, section 5).
const STALE_AFTER: Duration = Duration::from_millis(1800);
/// However long a zone denies a name: one that comes to be is wanted soon.
const LONGEST_DENIAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Names {
    servers: Servers,
    hosts: HashMap<Name, Vec<IpAddr>>,
    stale: Duration,
    remembered: Mutex<HashMap<Name, Remembered>>,
}

#[derive(Debug, Clone)]
struct Remembered {
    /// None: there is no such name.
    addresses: Vec<IpAddr>,
    until: Instant,
    at: Instant,
}

impl Names {
    /// Reads /etc/hosts, and /etc/resolv.conf unless servers are given.
    pub(super) fn new(config: &Resolver) -> Result<Names, NoResolver> {
        let servers = match config.servers.as_slice() {
            [] => servers::of_this_machine()?,
            servers => servers.to_vec(),
        };
        // The first random bytes may need a file, where a static libc has no getrandom(2);
        // the questions come when there are none any more. A failure shows there again.
        let _ = getrandom::fill(&mut [0; 1]);
        Ok(Names {
            servers: Servers::new(&servers)?,
            // A pod without the file just has no names of its own.
            hosts: parse_hosts(&fs::read_to_string(HOSTS).unwrap_or_default()),
            stale: config.stale.duration(),
            remembered: Mutex::default(),
        })
    }

    /// All addresses of a name, never none.
    pub(super) async fn addresses(&self, name: &Name, metrics: &Metrics) -> Result<Vec<IpAddr>, Undialled> {
        if let Some(addresses) = self.hosts.get(name) {
            return Ok(addresses.clone());
        }
        let remembered = self.lock().get(name).cloned();
        if let Some(known) = remembered.as_ref().filter(|known| Instant::now() < known.until) {
            return match known.addresses.is_empty() {
                true => Err(Undialled::NoSuchName),
                false => Ok(known.addresses.clone()),
            };
        }
        let usable =
            remembered.filter(|known| !known.addresses.is_empty() && known.until.elapsed() < self.stale);
        match self.ask(name, usable.is_some()).await {
            Answer::Addresses(addresses, ttl) => {
                self.remember(name, &addresses, ttl.min(LONGEST_TTL));
                Ok(addresses)
            }
            Answer::NoSuchName(ttl) => {
                self.remember(name, &[], ttl.min(LONGEST_DENIAL));
                Err(Undialled::NoSuchName)
            }
            Answer::Nobody => {
                tracing::debug!(%name, remembered = usable.is_some(), "no name server answers");
                let known = usable.ok_or(Undialled::Unresolved)?;
                metrics.stale.inc();
                Ok(known.addresses)
            }
        }
    }

    /// Where there is a good answer to fall back on, nobody waits for servers that are silent.
    async fn ask(&self, name: &Name, remembered: bool) -> Answer {
        let answer = self.servers.ask(name);
        match remembered {
            true => timeout(STALE_AFTER, answer).await.unwrap_or(Answer::Nobody),
            false => answer.await,
        }
    }

    fn remember(&self, name: &Name, addresses: &[IpAddr], ttl: Duration) {
        let mut remembered = self.lock();
        if remembered.len() >= MOST_REMEMBERED && !remembered.contains_key(name) {
            // A workload may ask for any number of names that do not exist: these go first.
            let age = |(_, known): &(&Name, &Remembered)| (!known.addresses.is_empty(), known.at);
            let oldest = remembered.iter().min_by_key(age).map(|(name, _)| name.clone());
            oldest.and_then(|oldest| remembered.remove(&oldest));
        }
        let now = Instant::now();
        remembered
            .insert(name.clone(), Remembered { addresses: addresses.to_vec(), until: now + ttl, at: now });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Remembered>> {
        // Every step leaves the table whole.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lines of an address and names (hosts(5)). What cannot be read is another's affair.
fn parse_hosts(text: &str) -> HashMap<Name, Vec<IpAddr>> {
    let mut hosts: HashMap<Name, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        for name in words.filter_map(|word| word.parse().ok()) {
            hosts.entry(name).or_default().push(address);
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_hosts_file_is_read_as_libraries_read_it() {
        let text =
            "# a comment\n127.0.0.1 localhost\n10.0.0.7\tdb.internal DB # here\n::1 localhost\nnonsense x\n";
        let hosts = parse_hosts(text);
        let of = |name: &str| hosts.get(&name.parse().unwrap()).cloned().unwrap_or_default();
        assert_eq!(of("db"), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(of("localhost").len(), 2);
        assert_eq!(of("here"), [] as [IpAddr; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_the_oldest_goes() {
        let servers = vec!["127.0.0.1:1".parse().unwrap()];
        let names = Names::new(&Resolver { servers, ..Resolver::default() }).unwrap();
        let address = ["192.0.2.1".parse().unwrap()];
        for number in 0..MOST_REMEMBERED + 10 {
            names.remember(&format!("n{number}.example").parse().unwrap(), &address, Duration::ZERO);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(names.lock().len(), MOST_REMEMBERED);
        assert!(!names.lock().contains_key(&"n0.example".parse().unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn denials_make_room_before_addresses_do() {
        let servers = vec!["127.0.0.1:1".parse().unwrap()];
        let names = Names::new(&Resolver { servers, ..Resolver::default() }).unwrap();
        let good = "good.example".parse().unwrap();
        names.remember(&good, &["192.0.2.1".parse().unwrap()], Duration::ZERO);
        for number in 0..2 * MOST_REMEMBERED {
            tokio::time::advance(Duration::from_millis(1)).await;
            names.remember(&format!("n{number}.example").parse().unwrap(), &[], LONGEST_DENIAL);
        }
        assert_eq!(names.lock().len(), MOST_REMEMBERED);
        assert!(names.lock().contains_key(&good));
    }

    /// Answers every A question with what `say` makes of its number, every other with
    /// nothing, both for 7 s; says how many A questions came.
    fn server(say: fn(usize) -> Option<[u8; 4]>) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&asked);
        // It ends with the test's process.
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                let end = query[12..length].iter().position(|byte| *byte == 0).unwrap() + 17;
                let is_a = query[end - 3] == 1;
                let found = if is_a { say(counter.fetch_add(1, Ordering::SeqCst)) } else { None };
                let mut answer = query[..end].to_vec();
                answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
                answer[if found.is_some() { 7 } else { 9 }] = 1;
                answer.extend([0xC0, 12, 0, if found.is_some() { 1 } else { 6 }, 0, 1, 0, 0, 0, 7]);
                match found {
                    Some(address) => answer.extend([&[0, 4], &address[..]].concat()),
                    // Two root names and five numbers: the last is the minimum.
                    None => answer.extend([&[0, 22, 0, 0], &[0; 16][..], &[0, 0, 0, 7]].concat()),
                }
                socket.send_to(&answer, client).unwrap();
            }
        });
        (address, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn while_servers_are_silent_the_last_answer_serves_soon_and_for_as_long_after_its_time_as_told() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let hour = Duration::from_secs(3600);
        let resolver = Resolver { servers: vec![silent.local_addr().unwrap(); 3], ..Resolver::default() };
        assert_eq!(resolver.stale.duration(), hour);
        let names = Names::new(&resolver).unwrap();
        let (name, metrics) = ("old.example".parse().unwrap(), Metrics::default());
        let address = ["192.0.2.1".parse().unwrap()];
        names.remember(&name, &address, 2 * hour);
        // Out of its time for half an hour; three silent servers take 12 s to be given up.
        tokio::time::advance(2 * hour + hour / 2).await;
        let asked = Instant::now();
        assert_eq!(names.addresses(&name, &metrics).await.unwrap(), address);
        assert!(asked.elapsed() <= STALE_AFTER + Duration::from_millis(100), "{:?}", asked.elapsed());
        assert_eq!(metrics.stale.get(), 1);
        tokio::time::advance(hour / 2).await;
        assert_eq!(names.addresses(&name, &metrics).await, Err(Undialled::Unresolved));
        assert_eq!(metrics.stale.get(), 1);
    }

    /// Moves the clock while nothing is under way.
    async fn after(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn an_answer_serves_for_its_time_and_then_the_servers_are_asked_again() {
        let (address, asked) = server(|number| Some([192, 0, 2, number as u8]));
        let names = Names::new(&Resolver { servers: vec![address], ..Resolver::default() }).unwrap();
        let (name, metrics) = ("ttl.example".parse().unwrap(), Metrics::default());
        let look_up = async |last: u8| {
            let found = names.addresses(&name, &metrics).await.unwrap();
            assert_eq!(found, [IpAddr::from([192, 0, 2, last])]);
        };
        look_up(0).await;
        after(Duration::from_secs(6)).await;
        look_up(0).await;
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        after(Duration::from_secs(1)).await;
        look_up(1).await;
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn that_a_name_does_not_exist_is_remembered_for_as_long_as_its_zone_says() {
        let (address, asked) = server(|number| (number > 0).then_some([192, 0, 2, 1]));
        let names = Names::new(&Resolver { servers: vec![address], ..Resolver::default() }).unwrap();
        let (name, metrics) = ("new.example".parse().unwrap(), Metrics::default());
        for _ in 0..3 {
            assert_eq!(names.addresses(&name, &metrics).await, Err(Undialled::NoSuchName));
        }
        after(Duration::from_secs(6)).await;
        assert_eq!(names.addresses(&name, &metrics).await, Err(Undialled::NoSuchName));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        after(Duration::from_secs(1)).await;
        assert_eq!(names.addresses(&name, &metrics).await.unwrap().len(), 1);
    }
}
