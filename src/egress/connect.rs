//! Connects to the first of several addresses that answers.
//!
//! One attempt after the other, each with a head start, families in turns
//! (Happy Eyeballs, RFC 8305): an address that swallows packets costs a quarter
//! of a second, one that refuses costs nothing.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use wire::Undialled;

use super::reason;

/// The head start of an attempt. Source: RFC 8305, section 5.
const HEAD_START: Duration = Duration::from_millis(250);
/// Of a name with more addresses only the first are tried.
const MOST_ADDRESSES: usize = 16;
/// A server that vanished is noticed, and NAT on the way keeps its entry.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The connection and its address. Attempts that are not needed are dropped.
pub(super) async fn first(
    addresses: Vec<SocketAddr>,
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), Undialled> {
    let mut waiting = in_turns(addresses).into_iter();
    let mut attempts = JoinSet::new();
    let mut failed = None;
    loop {
        match waiting.next() {
            Some(address) => {
                attempts.spawn(async move { (TcpStream::connect(address).await, address) });
            }
            None if attempts.is_empty() => return Err(failed.unwrap_or(Undialled::Unreachable)),
            None => {}
        }
        tokio::select! {
            Some(Ok((attempt, address))) = attempts.join_next() => match attempt {
                Ok(stream) => {
                    prepare(&stream);
                    return Ok((stream, address));
                }
                Err(error) => {
                    tracing::debug!(%address, %error, "cannot connect");
                    let reason = reason(&error);
                    failed = failed.filter(|known| says_more(*known) >= says_more(reason)).or(Some(reason));
                }
            },
            () = sleep(HEAD_START), if waiting.len() > 0 => {}
            () = sleep_until(deadline) => return Err(Undialled::Late),
        }
    }
}

/// IPv6 and IPv4 alternate; each family keeps the resolver's order.
fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let pairs = std::iter::from_fn(|| match [six.next(), four.next()] {
        [None, None] => None,
        pair => Some(pair),
    });
    pairs.flatten().flatten().take(MOST_ADDRESSES).collect()
}

/// Of several failures the one is told that came furthest.
fn says_more(reason: Undialled) -> u8 {
    match reason {
        Undialled::Refused => 3,
        Undialled::Late => 2,
        Undialled::Full => 1,
        _ => 0,
    }
}

/// Fails only on a connection that is gone, which the relay will find out.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    async fn refusing() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn an_address_that_refuses_does_not_keep_from_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let (_, address) = first(vec![refusing().await, good], soon()).await.unwrap();
        assert_eq!(address, good);
    }

    #[tokio::test]
    async fn an_address_that_is_silent_costs_its_head_start_only() {
        // A full backlog answers nothing: further attempts wait in SYN_SENT.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = socket.listen(0).unwrap();
        let address = silent.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
        {
            filling.push(connected.unwrap());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let begun = Instant::now();
        let (_, connected) = first(vec![address, good], soon()).await.unwrap();
        assert_eq!(connected, good);
        assert!(begun.elapsed() >= HEAD_START && begun.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn without_an_answer_the_failure_that_came_furthest_is_told() {
        let unreachable = "[2001:db8::1]:9".parse().unwrap();
        let told = first(vec![unreachable, refusing().await], soon()).await;
        assert_eq!(told.err(), Some(Undialled::Refused));
        assert_eq!(first(Vec::new(), soon()).await.err(), Some(Undialled::Unreachable));
    }

    #[test]
    fn families_take_turns_and_keep_their_order() {
        let parse = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter().map(|address| address.parse().unwrap()).collect()
        };
        let given = parse(&["1.1.1.1:1", "1.1.1.2:1", "[2001::1]:1", "1.1.1.3:1"]);
        assert_eq!(in_turns(given), parse(&["[2001::1]:1", "1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1"]));
    }
}
