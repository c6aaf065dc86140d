//! What is outside of the enclave: a name server and servers, on addresses of
//! 127.0.0.0/8 that no other test uses.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const A: u16 = 1;
const AAAA: u16 = 28;

/// A loopback address of this test alone.
pub fn address() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // Processes that test side by side differ in their ids.
    let [_, _, _, process] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + process / 4, process % 4 * 64 + high, low.max(1))
}

/// A name server that answers as it is told, with a time to live of 0.
pub struct NameServer {
    pub address: SocketAddr,
    zone: Arc<Mutex<HashMap<String, VecDeque<Vec<IpAddr>>>>>,
    broken: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    pub fn start() -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut server = NameServer {
            address: socket.local_addr().unwrap(),
            zone: Arc::default(),
            broken: Arc::default(),
            asked: Arc::default(),
            stop: Arc::default(),
            thread: None,
        };
        let (zone, broken) = (server.zone.clone(), server.broken.clone());
        let (asked, stop) = (server.asked.clone(), server.stop.clone());
        server.thread = Some(std::thread::spawn(move || {
            let mut query = [0; 1500];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut query) else { continue };
                asked.fetch_add(1, Ordering::Relaxed);
                let failing = broken.load(Ordering::Relaxed);
                let answer = answer(&query[..length], &mut zone.lock().unwrap(), failing);
                socket.send_to(&answer, client).unwrap();
            }
        }));
        server
    }

    /// What `name` leads to: one answer after the other, the last one for ever.
    pub fn says(&self, name: &str, answers: &[&[&str]]) {
        let parse = |list: &&[&str]| list.iter().map(|address| address.parse().unwrap()).collect();
        self.zone.lock().unwrap().insert(name.to_owned(), answers.iter().map(parse).collect());
    }

    /// SERVFAIL to everything from now on.
    pub fn breaks(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn answer(query: &[u8], zone: &mut HashMap<String, VecDeque<Vec<IpAddr>>>, broken: bool) -> Vec<u8> {
    let (mut name, mut at) = (String::new(), 12);
    while query[at] != 0 {
        let label = &query[at + 1..at + 1 + usize::from(query[at])];
        name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
        name.push('.');
        at += 1 + label.len();
    }
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let end = at + 5;
    let addresses = zone.get_mut(name.trim_end_matches('.')).map(|answers| {
        // A and AAAA are asked for together: the A question turns the page.
        if kind == A && answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() }
    });
    let code = match (&addresses, broken) {
        (_, true) => 2,
        (None, false) => 3,
        (Some(_), false) => 0,
    };
    let fitting = |address: &IpAddr| matches!((address, kind), (IpAddr::V4(_), A) | (IpAddr::V6(_), AAAA));
    let found: Vec<IpAddr> =
        addresses.unwrap_or_default().into_iter().filter(|address| code == 0 && fitting(address)).collect();
    let mut bytes = query[..2].to_vec();
    bytes.extend([0x81, 0x80 | code, 0, 1, 0, found.len() as u8, 0, 0, 0, 0]);
    bytes.extend(&query[12..end]);
    for address in found {
        bytes.extend([0xC0, 12]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 0]);
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        bytes.extend((octets.len() as u16).to_be_bytes());
        bytes.extend(octets);
    }
    bytes
}

/// An HTTP server that says its own name.
pub struct WebServer {
    pub address: SocketAddr,
    served: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WebServer {
    pub fn start(address: SocketAddr, says: &'static str) -> WebServer {
        let listener = TcpListener::bind(address).unwrap();
        let mut server = WebServer {
            address: listener.local_addr().unwrap(),
            served: Arc::default(),
            stop: Arc::default(),
            thread: None,
        };
        let (served, stop) = (server.served.clone(), server.stop.clone());
        server.thread = Some(std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                served.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    let mut client = client.unwrap();
                    let (mut head, mut piece): (Vec<u8>, _) = (Vec::new(), [0; 1024]);
                    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                        match client.read(&mut piece) {
                            Ok(0) | Err(_) => return,
                            Ok(count) => head.extend(&piece[..count]),
                        }
                    }
                    let length = says.len();
                    let _ = write!(
                        client,
                        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{says}"
                    );
                });
            }
        }));
        server
    }

    /// Connections that arrived.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = std::net::TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}
