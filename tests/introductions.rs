//! Promise: a workload may know who its client is, and only its own shim can
//! tell it; a client may be sent to a port by the name that it asks for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's

mod machine;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use machine::{Image, Node, Shim, client};
use wire::ProxyHeader;

const MANIFEST: &str = "proxy_protocol: [7000]\n";

/// An echo that is given a header: it sends back what it was told.
fn image(node: &Node) -> Image {
    Image::of_bench(node, "echo", 7000, MANIFEST)
}

fn answer(stream: &mut TcpStream, question: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(question)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// A reset is another error to each call that finds it: read, shutdown, write.
fn is_reset(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), ConnectionReset | NotConnected | BrokenPipe)
}

#[test]
fn the_workload_is_told_who_the_client_is() {
    let node = Node::new();
    let ingress = "\n  - {listen: 127.0.0.1:0, port: 7000, send_proxy: true}";
    let mut shim = Shim::with_ingress(&node, &image(&node), ingress, "memory_mib: 128\n");
    shim.ready();
    let mut stream = client::connect(shim.ingress(7000)).unwrap();
    let expected = ProxyHeader::tcp(stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let answer = answer(&mut stream, b"hello").unwrap();
    assert_eq!(answer, [expected.bytes(), b"hello"].concat());
}

#[test]
fn a_load_balancers_word_is_passed_on_and_nobody_elses() {
    let node = Node::new();
    let ingress = "\n  - {listen: 127.0.0.1:0, port: 7000, accept_proxy: true, send_proxy: true}";
    let config = "memory_mib: 128\nlimits: {header_timeout: 500ms}\n";
    let mut shim = Shim::with_ingress(&node, &image(&node), ingress, config);
    shim.ready();
    let address = shim.ingress(7000);
    // A TLV behind the addresses, as load balancers add: it is passed on as it came.
    let client_address: SocketAddr = "192.0.2.7:4711".parse().unwrap();
    let mut header = ProxyHeader::tcp(client_address, "10.0.0.1:443".parse().unwrap()).bytes().to_vec();
    header[15] += 5;
    header.extend([0xEA, 0, 2, 1, 2]);
    let told = answer(&mut client::connect(address).unwrap(), &[&header[..], b"hello"].concat()).unwrap();
    assert_eq!(told, [&header[..], b"hello"].concat());

    for (question, outcome) in
        [(&b"GET / HTTP/1.1\r\n\r\n"[..], "no_proxy_header"), (&header[..20], "client_failed")]
    {
        let refused = answer(&mut client::connect(address).unwrap(), question).unwrap_err();
        assert!(is_reset(&refused), "{outcome}: {refused}");
        counted(&mut shim, outcome);
    }
    // One byte and then nothing: not for longer than limits.header_timeout.
    let mut slow = client::connect(address).unwrap();
    slow.write_all(b"\r").unwrap();
    let refused = slow.read(&mut [0]).unwrap_err();
    assert!(is_reset(&refused), "{refused}");
    counted(&mut shim, "header_late");
}

fn counted(shim: &mut Shim, outcome: &str) {
    let name = format!("enclave_shim_ingress_connections_total{{outcome=\"{outcome}\"}}");
    shim.until(Duration::from_secs(5), outcome, |_| true);
    machine::within(Duration::from_secs(5), outcome, || shim.metric(&name) == Some(1.0));
}

#[test]
fn nobody_else_on_the_node_can_introduce_a_client() {
    let node = Node::new();
    let ingress = "\n  - {listen: 127.0.0.1:0, port: 7000, send_proxy: true}";
    let mut shim = Shim::with_ingress(&node, &image(&node), ingress, "memory_mib: 128\n");
    shim.ready();
    let header = ProxyHeader::tcp("198.51.100.1:1".parse().unwrap(), "10.0.0.1:2".parse().unwrap());
    let request = wire::AnnouncedRequest { port: 7000, header: header.bytes().to_vec().into() };
    let refused = wire::encode(&wire::Greeting::Refused(wire::Refusal::AlreadyClaimed)).unwrap();
    // Directly the port does not exist; by way of the agent another token is refused.
    let script = format!(
        r#"
import socket, struct
def dial(port):
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(20)
    s.connect(({cid}, port))
    return s
try:
    dial(7000)
    raise SystemExit("the workload's port can be dialled")
except (ConnectionResetError, ConnectionRefusedError):
    pass
hello = bytes([0x82, {protocol}, 0x50]) + bytes(16)
s = dial({announced})
s.sendall(struct.pack(">I", len(hello)) + hello + bytes.fromhex("{request}"))
answer = b""
while True:
    try:
        piece = s.recv(4096)
    except ConnectionResetError:
        break
    if not piece:
        break
    answer += piece
assert answer == bytes.fromhex("{refused}"), answer
"#,
        cid = node.running()[0],
        protocol = wire::PROTOCOL,
        announced = wire::port::ANNOUNCED,
        request = hex::encode(wire::encode(&request).unwrap()),
        refused = hex::encode(refused),
    );
    let output = node.command(&machine::python()).arg("-c").arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The rightful shim goes on.
    let mut stream = client::connect(shim.ingress(7000)).unwrap();
    assert!(answer(&mut stream, b"hello").unwrap().ends_with(b"hello"));
}

#[test]
fn a_client_goes_to_the_port_of_the_host_that_it_asks_for() {
    let node = Node::new();
    // 8080 is HTTP, 8081 counts what it gets: the same request tells which one it was.
    let ingress = "\n  - {listen: '[::1]:0', port: 8080, host: {count.example.com: 8081}}
  - {listen: 127.0.0.1:0, sni: {tls.example.com: 8081}}";
    let mut shim = Shim::with_ingress(&node, &Image::hello(&node), ingress, "memory_mib: 64\n");
    shim.ready();
    let address = shim.ingress(8080);
    assert!(address.is_ipv6());
    for (host, expected) in [("count.example.com", "46 "), ("web.example.com", "HTTP/1.0 200")] {
        let request = format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n");
        let answer = answer(&mut client::connect(address).unwrap(), request.as_bytes()).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let expected =
            if host.starts_with("count") { format!("{} ", request.len()) } else { expected.to_owned() };
        assert!(answer.starts_with(&expected), "{host}: {answer}");
    }
}

/// The first flight of a TLS client that asks for `name`.
fn client_hello(name: &'static str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn a_tls_client_goes_to_the_port_of_its_server_name_and_a_name_without_route_is_reset() {
    let node = Node::new();
    // No port of their own: who names nobody known has nowhere to go.
    let ingress = "\n  - {listen: 127.0.0.2:0, sni: {count.example.com: 8081, web.example.com: 8080}}
  - {listen: 127.0.0.3:0, host: {web.example.com: 8080}}";
    let mut shim = Shim::with_ingress(&node, &Image::hello(&node), ingress, "memory_mib: 64\n");
    shim.ready();
    let (by_sni, by_host) = (shim.ingress_at("127.0.0.2"), shim.ingress_at("127.0.0.3"));

    let hello = client_hello("count.example.com");
    let counted = answer(&mut client::connect(by_sni).unwrap(), &hello).unwrap();
    let expected = format!("{} {}\n", hello.len(), hex::encode(digest(&SHA256, &hello)));
    assert_eq!(String::from_utf8_lossy(&counted), expected, "the whole hello and nothing else");
    // The same listener leads elsewhere by another name: an HTTP server makes nothing of a hello.
    let web = answer(&mut client::connect(by_sni).unwrap(), &client_hello("web.example.com"));
    assert!(!web.is_ok_and(|answer| answer == counted));

    let no_route = "enclave_shim_ingress_connections_total{outcome=\"no_route\"}";
    let unknown = [
        (by_sni, client_hello("other.example.com")),
        (by_sni, b"GET / HTTP/1.0\r\nHost: count.example.com\r\n\r\n".to_vec()),
        (by_host, b"GET / HTTP/1.0\r\nHost: other.example.com\r\n\r\n".to_vec()),
        (by_host, b"GET / HTTP/1.0\r\n\r\n".to_vec()),
    ];
    for (number, (address, question)) in unknown.iter().enumerate() {
        let refused = answer(&mut client::connect(*address).unwrap(), question).unwrap_err();
        assert!(is_reset(&refused), "{number}: {refused}");
        assert_eq!(shim.metric(no_route), Some((number + 1) as f64));
    }
    let request = b"GET / HTTP/1.0\r\nHost: web.example.com\r\n\r\n";
    let answer = answer(&mut client::connect(by_host).unwrap(), request).unwrap();
    assert!(answer.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_client_that_is_slow_to_say_whom_it_wants_is_reset_and_keeps_nobody_waiting() {
    let node = Node::new();
    let ingress = "\n  - {listen: '[::1]:0', port: 8080, host: {count.example.com: 8081}}
  - {listen: 127.0.0.1:0, port: 8081, sni: {tls.example.com: 8081}}";
    let config = "memory_mib: 64\nlimits: {header_timeout: 1s}\n";
    let mut shim = Shim::with_ingress(&node, &Image::hello(&node), ingress, config);
    shim.ready();
    let (by_host, by_sni) = (shim.ingress(8080), shim.ingress(8081));
    // The beginning of a request, and of a TLS hello: a handshake record of 512 bytes.
    for (address, beginning) in [
        (by_host, &b""[..]),
        (by_host, b"GET / HTTP/1.1\r\nHo"),
        (by_sni, b""),
        (by_sni, b"\x16\x03\x01\x02\x00\x01"),
    ] {
        let mut slow = client::connect(address).unwrap();
        slow.write_all(beginning).unwrap();
        assert_eq!(client::get(by_host, "/").unwrap().status, 200, "another is served meanwhile");
        let refused = slow.read(&mut [0]).unwrap_err();
        assert!(is_reset(&refused), "{beginning:?}: {refused}");
    }
    let late = "enclave_shim_ingress_connections_total{outcome=\"header_late\"}";
    assert_eq!(shim.metric(late), Some(4.0));
}
