//! What is kept and counted of each connection, how long a silent one may be, and what the
//! workload is told of one that is not made.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::enclave::{Enclave, GATEWAY, rootfs};
use crate::machine::{self, Node};
use crate::outside::{NameServer, address};

/// The spans of a log line with this message, the outermost first.
fn spans(log: &str, message: &str) -> Vec<Value> {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.rfind(|line| line["fields"]["message"] == message);
    line.and_then(|line| line["spans"].as_array().cloned()).unwrap_or_default()
}

/// A server that is api.example.com, who says so, and the rules that lead there.
fn api() -> (NameServer, TcpListener, Vec<String>) {
    let here = address();
    let names = NameServer::start();
    names.says("api.example.com", &[&[&here.to_string()]]);
    let listener = TcpListener::bind(SocketAddr::from((here, 80))).unwrap();
    (names, listener, vec!["api.example.com:80".to_owned(), format!("{here}:80")])
}

#[test]
fn a_silent_connection_ends_after_the_idle_timeout_and_each_has_one_span_with_its_fields() {
    let node = Node::new();
    let (names, listener, rules) = api();
    let root = rootfs(&node, &[] as &[&Path]);
    let limits = "limits: {idle_timeout: 2s}\n";
    let mut enclave = Enclave::with(&node, &root, &rules, &rules, names.address, limits);
    enclave.run("(sleep 60 | nc api.example.com 80) >/dev/null 2>&1 &");
    let (mut server, _) = listener.accept().unwrap();
    let accepted = Instant::now();
    let end = server.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset, "a cut is a reset");
    assert!(accepted.elapsed() >= Duration::from_millis(1500), "after {:?}", accepted.elapsed());
    machine::within(Duration::from_secs(10), "the silent connection is counted", || {
        enclave.ended("idle") == 1
    });

    let log = enclave.shim.log();
    let cid = node.running()[0].to_string();
    let [egress] = spans(&log, "egress allowed").try_into().expect("one span");
    assert_eq!((&egress["name"], &egress["host"]), (&"egress".into(), &"api.example.com".into()));
    assert_eq!((&egress["port"], &egress["cid"]), (&80.into(), &cid.clone().into()));
    assert!(egress["stream"].is_u64(), "{egress}");
    let [ingress] = spans(&log, "completed").try_into().expect("one span");
    assert_eq!((&ingress["name"], &ingress["port"]), (&"connection".into(), &8080.into()));
    assert_eq!(ingress["cid"], cid);
    assert!(ingress["conn"].is_u64(), "{ingress}");
    assert!(ingress["peer"].as_str().unwrap().parse::<SocketAddr>().is_ok(), "{ingress}");
}

/// Whoever has ended its own direction sees nothing on the socket that tells an enclave's
/// end of stream from its death: the shim asks the agent, and gets no answer.
#[test]
fn a_server_that_has_ended_its_direction_sees_the_enclaves_death_as_a_reset() {
    let node = Node::new();
    let (names, listener, rules) = api();
    let root = rootfs(&node, &[] as &[&Path]);
    let enclave = Enclave::start(&node, &root, &rules, &rules, names.address);
    enclave.run("(sleep 60 | nc api.example.com 80 & echo $! >/tmp/nc) >/dev/null 2>&1");
    let (mut server, _) = listener.accept().unwrap();
    // Held still, the client keeps its direction open when it is told of the end.
    enclave.run("kill -STOP $(cat /tmp/nc)");
    server.shutdown(Shutdown::Write).unwrap();
    machine::within(Duration::from_secs(20), "the client has been told (CLOSE_WAIT)", || {
        enclave.run("cat /proc/net/tcp").lines().any(|line| line.split_whitespace().nth(3) == Some("08"))
    });
    node.kill_enclave(node.running()[0]);
    let end = server.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset, "a death is no end of stream");
}

#[test]
fn bytes_are_counted_by_direction_from_the_first_to_the_last() {
    let node = Node::new();
    let (names, listener, rules) = api();
    let root = rootfs(&node, &[] as &[&Path]);
    let mut enclave = Enclave::start(&node, &root, &rules, &rules, names.address);
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        client.write_all(b"abc").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
    });
    assert_eq!(enclave.run("printf 12345 | timeout 15 nc api.example.com 80"), "abc");
    server.join().unwrap();
    machine::within(Duration::from_secs(10), "it is counted", || enclave.ended("completed") == 1);
    let mut counted = |direction: &str| {
        enclave.shim.metric(&format!("enclave_shim_egress_bytes_total{{direction=\"{direction}\"}}"))
    };
    assert_eq!((counted("to_server"), counted("to_enclave")), (Some(5.0), Some(3.0)));
}

/// A port of `address` that answers no dial: the queue of its listener is full.
fn silent(address: SocketAddr) -> (socket2::Socket, Vec<TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(0).unwrap();
    let mut waiting = Vec::new();
    while let Ok(dialled) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(dialled);
    }
    (socket, waiting)
}

#[test]
fn the_proxy_tells_why_the_shim_has_not_connected_in_both_of_its_languages() {
    let node = Node::new();
    let (names, here) = (NameServer::start(), address());
    names.says("inside.example.com", &[&["127.0.0.1"]]);
    names.says("other.example.com", &[&[&here.to_string()]]);
    let _silent = silent((here, 82).into());
    let both =
        ["inside.example.com:80", "nowhere.example.com:80", "other.example.com:81-82"].map(str::to_owned);
    let image = [&["denied.example.com:80".to_owned()], &both[..]].concat();
    let shim = [&[format!("{here}:81-82")], &both[..]].concat();
    let root = rootfs(&node, &[] as &[&Path]);
    let mut enclave =
        Enclave::with(&node, &root, &image, &shim, names.address, "limits: {egress_timeout: 1s}\n");
    for (name, port, status, code, outcome) in [
        ("denied.example.com", 80, "403", "02", "denied"),
        ("inside.example.com", 80, "403", "02", "address_denied"),
        ("nowhere.example.com", 80, "502", "04", "no_such_name"),
        ("other.example.com", 81, "502", "05", "refused"),
        ("other.example.com", 82, "504", "04", "late"),
    ] {
        let request = format!("CONNECT {name}:{port} HTTP/1.1\\r\\n\\r\\n");
        let told = enclave.run(&format!("printf '{request}' | timeout 15 nc {GATEWAY} 3128 | head -c 12"));
        assert_eq!(told, format!("HTTP/1.1 {status}"), "{name}:{port}");
        // Methods, then the request; the last of the reply's first two numbers tells.
        let request =
            format!("\\005\\001\\000\\005\\001\\000\\003\\{:03o}{name}\\000\\{port:03o}", name.len());
        let told = enclave.run(&format!(
            "printf '{request}' | timeout 15 nc {GATEWAY} 3128 | /bin/busybox xxd -p | head -c 8"
        ));
        assert_eq!(told.trim(), format!("050005{code}"), "{name}:{port}");
        machine::within(Duration::from_secs(10), outcome, || enclave.ended(outcome) == 2);
    }
}
