//! What is kept of each connection while it is open, and how long a silent one may be.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::enclave::{Enclave, rootfs};
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
