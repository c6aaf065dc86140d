//! Promise: the agent ends TLS with a key that only an enclave of the expected
//! image can have, and today's programs reach it through a tunnel.
#![allow(clippy::unwrap_used, clippy::panic)] // a broken fixture ends the test

mod machine;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use machine::{Image, Node, Shim, client, program_path};

const HEAD: &str = "name: hello\nversion: '1'\nentrypoint: [/hello]\nuser: app\ningress: [8080, 8081]\n";

fn enclavectl(arguments: &[&str]) -> Output {
    Command::new(program_path("enclavectl")).args(arguments).output().unwrap()
}

/// What a client of this image on this node expects.
fn expectations(node: &Node, image: &Path) -> Vec<String> {
    let root = node.path().join("dev-root.pem");
    ["--root-pem", root.to_str().unwrap(), "--eif", image.to_str().unwrap()].map(str::to_owned).to_vec()
}

fn attest(address: SocketAddr, expected: &[String], flags: &[&str]) -> (i32, serde_json::Value) {
    let address = address.to_string();
    let mut arguments = vec!["attest", "--json", "--connect", &address];
    arguments.extend(expected.iter().map(String::as_str).chain(flags.iter().copied()));
    let output = enclavectl(&arguments);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code().unwrap(), report)
}

/// A running `enclavectl tls-tunnel`; gone with the test.
struct Tunnel {
    child: Child,
    address: SocketAddr,
}

impl Tunnel {
    fn open(server: SocketAddr, expected: &[String], flags: &[&str]) -> Tunnel {
        let mut child = Command::new(program_path("enclavectl"))
            .args(["tls-tunnel", "--listen", "127.0.0.1:0", "--connect", &server.to_string()])
            .args(expected)
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}"));
        Tunnel { child, address: address.trim().parse().unwrap() }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn curl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("curl").args(["-sS", "--max-time", "30"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn curl_talks_to_the_accepted_enclave_through_the_tunnel_and_to_no_other() {
    let node = Node::new();
    let image = Image::from_manifest(&node, &format!("{HEAD}attested_tls: {{ports: [8080, 8081]}}\n"));
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    let (server, expected) = (shim.ingress(8080), expectations(&node, &image.path));

    let (code, report) = attest(server, &expected, &[]);
    assert_eq!((code, &report["checked"]["handshake"]), (0, &true.into()), "{report}");
    assert_eq!(report["pcrs"]["PCR0"], image.measurements["PCR0"]);
    let other =
        Image::from_manifest(&node, &format!("{HEAD}workdir: /run\nattested_tls: {{ports: [8080]}}\n"));
    let stranger = expectations(&node, &other.path);
    assert_eq!(attest(server, &stranger, &[]).0, 4, "another image");
    assert_eq!(attest(server, &expected[2..], &[]).0, 3, "AWS's root");
    // Nothing plain is answered where TLS ends.
    assert!(client::get(server, "/").is_err());

    let tunnel = Tunnel::open(server, &expected, &[]);
    let url = |path: &str| format!("http://{}{path}", tunnel.address);
    assert!(String::from_utf8(curl(&[&url("/")])).unwrap().contains("Hello from an enclave"));
    let payload: Vec<u8> =
        (0..20_000_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let file = node.scratch().join("payload");
    std::fs::write(&file, &payload).unwrap();
    let data = format!("@{}", file.display());
    let sum = curl(&["--data-binary", &data, &url("/sha256")]);
    assert_eq!(String::from_utf8(sum).unwrap(), hex::encode(digest(&SHA256, &payload)), "into the enclave");
    let echoed = curl(&["--data-binary", &data, &url("/echo")]);
    assert!(echoed == payload, "there and back");
    assert_eq!(node.stats()["vsock_writes_over_32k"], 0, "writes to a vsock over 32 KiB");

    // Half-close goes through two ends of TLS.
    let counting = Tunnel::open(shim.ingress(8081), &expected, &[]);
    let mut stream = client::connect(counting.address).unwrap();
    stream.write_all(&payload[..100_000]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&hex::encode(digest(&SHA256, &payload[..100_000]))), "{answer}");
    // One that is cut is not taken for a whole one: the workload counts no end.
    let mut cut = TcpStream::connect(shim.ingress(8081)).unwrap();
    cut.write_all(b"\x16\x03\x01").unwrap();
    drop(cut);
    shim.signal(nix::sys::signal::Signal::SIGTERM);
    drop((tunnel, counting));
    assert_eq!(shim.exit_code(Duration::from_secs(30)), 0);
}

#[test]
fn a_document_of_the_very_session_is_given_where_the_settings_allow_it() {
    let node = Node::new();
    let manifest = format!("{HEAD}attested_tls: {{ports: [8080], session: true}}\n");
    let image = Image::from_manifest(&node, &manifest);
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    let (server, expected) = (shim.ingress(8080), expectations(&node, &image.path));
    let (code, report) = attest(server, &expected, &["--session"]);
    assert_eq!((code, &report["checked"]["nonce"]), (0, &true.into()), "{report}");
    assert_eq!(attest(server, &expected, &[]).0, 0, "who does not ask is served as well");
    let tunnel = Tunnel::open(server, &expected, &["--session"]);
    let page = curl(&[&format!("http://{}/", tunnel.address)]);
    assert!(String::from_utf8(page).unwrap().contains("Hello from an enclave"));
    // A program that offers other protocols is not turned away: they are the workload's.
    let hello = Command::new("openssl")
        .args(["s_client", "-connect", &server.to_string(), "-alpn", "http/1.1", "-tls1_3", "-brief"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&hello.stderr);
    assert!(said.contains("CONNECTION ESTABLISHED") && said.contains("TLSv1.3"), "{said}");
    let older = Command::new("openssl")
        .args(["s_client", "-connect", &server.to_string(), "-tls1_2", "-brief"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!older.status.success(), "TLS 1.2 is off: {}", String::from_utf8_lossy(&older.stderr));

    let plain = Image::from_manifest(&node, &format!("{HEAD}attested_tls: {{ports: [8080]}}\n"));
    let mut shim = Shim::start(&node, &plain);
    shim.ready();
    let address = shim.ingress(8080).to_string();
    let mut arguments = vec!["attest", "--session", "--connect", &address];
    let expected = expectations(&node, &plain.path);
    arguments.extend(expected.iter().map(String::as_str));
    assert_eq!(enclavectl(&arguments).status.code(), Some(74), "where they do not, there is none");
}
