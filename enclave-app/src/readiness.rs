//! When the workload counts as ready.
//!
//! It is never dialled to find out: a probe is a connection that it did not
//! expect. The kernel's table of TCP sockets says who listens.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::net::UnixDatagram;
use wire::settings::{Ready, Settings};

/// Between two looks at the table: doubled from the first to the second.
const POLL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// `TCP_LISTEN`. Source: Linux `include/net/tcp_states.h`.
const LISTEN: &str = "0A";

/// The rule of the settings, ready to be waited for.
#[derive(Debug)]
pub(crate) enum Rule {
    /// It has been started.
    Started,
    /// It listens on all of these ports.
    Listens(Vec<u16>),
    /// It says so here.
    Notifies(UnixDatagram),
}

impl Rule {
    /// Opens what the rule needs, before the workload starts: its socket is at
    /// `notify`, which the launcher shows to the workload.
    pub(crate) fn new(settings: &Settings, notify: &Path) -> io::Result<Rule> {
        Ok(match settings.ready {
            Ready::Started => Rule::Started,
            Ready::Listen if settings.ingress.is_empty() => Rule::Started,
            Ready::Listen => Rule::Listens(settings.ingress.clone()),
            Ready::Notify => Rule::Notifies(notify_socket(notify)?),
        })
    }

    /// Returns once the workload, started as `workload`, is ready.
    pub(crate) async fn met(self, workload: Pid) {
        match self {
            Rule::Started => {}
            Rule::Listens(ports) => listens(&ports, workload).await,
            Rule::Notifies(socket) => notified(&socket).await,
        }
    }
}

fn notify_socket(path: &Path) -> io::Result<UnixDatagram> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let socket = UnixDatagram::bind(path)?;
    // The workload may run as any user.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o666))?;
    Ok(socket)
}

/// A datagram of lines `NAME=value`; other names are the workload's affair.
/// Source: sd_notify(3).
async fn notified(socket: &UnixDatagram) {
    let mut datagram = [0; 4096];
    loop {
        match socket.recv(&mut datagram).await {
            Ok(length) if datagram[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") => {
                return;
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(POLL.1).await,
        }
    }
}

/// The tables are read as `workload` sees them: it may have a network of its own.
async fn listens(ports: &[u16], workload: Pid) {
    let mut pause = POLL.0;
    loop {
        // Unreadable once the workload has ended, which ends this wait from outside.
        let tables: String = ["tcp", "tcp6"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(format!("/proc/{workload}/net/{name}")).ok())
            .collect();
        if ports.iter().all(|port| tables.lines().any(|line| is_listener(line, *port))) {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(POLL.1);
    }
}

/// True for a socket that takes what ingress dials: `sl local remote state …`.
/// Source: Linux `Documentation/networking/proc_net_tcp.rst`.
fn is_listener(line: &str, port: u16) -> bool {
    let mut columns = line.split_ascii_whitespace();
    let (Some(local), Some(state)) = (columns.nth(1), columns.nth(1)) else { return false };
    let Some((address, local_port)) = local.split_once(':') else { return false };
    state == LISTEN
        && u16::from_str_radix(local_port, 16) == Ok(port)
        && address_of(address).is_some_and(is_dialled)
}

fn is_dialled(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_unspecified() || address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST
}

/// Words of 32 bits in hexadecimal, each in the machine's byte order.
fn address_of(text: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for word in text.as_bytes().chunks(8) {
        let word = std::str::from_utf8(word).ok().filter(|word| word.len() == 8)?;
        bytes.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
    }
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REST: &str =
        "00000000:00000000 00:00000000 00000000     0        0 12345 1 0000000000000000 100 0 0 10 0";

    fn line(local: &str, state: &str) -> String {
        format!("   0: {local} 00000000:0000 {state} {REST}")
    }

    #[test]
    fn listeners_are_found_on_every_address_that_ingress_dials() {
        let v6 = |tail: &str| format!("000000000000000000000000{tail}:1F90");
        for local in [
            "00000000:1F90".to_owned(),
            "0100007F:1F90".to_owned(),
            v6("00000000"),
            v6("01000000"),
            "0000000000000000FFFF00000100007F:1F90".to_owned(),
        ] {
            assert!(is_listener(&line(&local, LISTEN), 8080), "{local}");
        }
    }

    #[test]
    fn other_states_ports_and_addresses_are_not_ready() {
        assert!(!is_listener(&line("00000000:1F90", "01"), 8080), "established");
        assert!(!is_listener(&line("00000000:1F91", LISTEN), 8080), "another port");
        assert!(!is_listener(&line("0200000A:1F90", LISTEN), 8080), "10.0.0.2 is not loopback");
        assert!(!is_listener("  sl  local_address rem_address   st tx_queue rx_queue", 8080), "the heading");
    }

    #[tokio::test]
    async fn the_kernel_s_own_table_is_understood() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let other = std::net::TcpListener::bind("[::1]:0").unwrap();
        let ports = [port, other.local_addr().unwrap().port()];
        tokio::time::timeout(Duration::from_secs(10), listens(&ports, Pid::this())).await.unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let both = [port, free];
        let early = tokio::time::timeout(Duration::from_millis(50), listens(&both, Pid::this()));
        assert!(early.await.is_err(), "nobody listens on {free}");
    }

    #[tokio::test]
    async fn only_ready_1_makes_ready() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/notify.sock");
        let socket = notify_socket(&path).unwrap();
        let workload = UnixDatagram::unbound().unwrap();
        for text in ["STATUS=READY=1", "READY=0", "READY=10"] {
            workload.send_to(text.as_bytes(), &path).await.unwrap();
        }
        let early = tokio::time::timeout(Duration::from_millis(50), notified(&socket)).await;
        assert!(early.is_err());
        workload.send_to(b"STATUS=up\nREADY=1\n", &path).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), notified(&socket)).await.unwrap();
    }

    proptest! {
        #[test]
        fn no_line_panics(line in ".{0,200}", port in any::<u16>()) {
            is_listener(&line, port);
        }
    }
}
