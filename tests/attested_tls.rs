//! Promise: the agent ends TLS with a key that only an enclave of the expected
//! image can have, and today's programs reach it through a tunnel.
#![allow(clippy::unwrap_used, clippy::panic)] // a broken fixture ends the test

mod machine;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use machine::{Image, Node, Shim, client, program_path};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

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
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&hex::encode(digest(&SHA256, &payload[..100_000]))), "{answer}");
    shim.signal(nix::sys::signal::Signal::SIGTERM);
    drop((tunnel, counting));
    assert_eq!(shim.exit_code(Duration::from_secs(30)), 0);
}

/// What TLS promises and TCP does not: nobody on the way can shorten a stream.
#[test]
fn a_stream_that_is_cut_is_not_taken_for_a_whole_one() {
    let node = Node::new();
    let manifest = format!("{HEAD}logs: forward\nattested_tls: {{ports: [8081]}}\n");
    let mut shim = Shim::start(&node, &Image::from_manifest(&node, &manifest));
    shim.ready();
    let body = vec![7; 100_000];
    let whole = format!("{} {}\n", body.len(), hex::encode(digest(&SHA256, &body)));
    for (ends_tls, answer) in [(true, whole.as_str()), (false, "")] {
        let mut stream = shaken(shim.ingress(8081));
        stream.write_all(&body).unwrap();
        if ends_tls {
            stream.conn.send_close_notify();
        }
        stream.flush().unwrap();
        // After a record's end: no byte is missing but those of the end itself.
        stream.sock.shutdown(Shutdown::Write).unwrap();
        let mut answered = Vec::new();
        let ended = stream.read_to_end(&mut answered);
        assert_eq!(String::from_utf8(answered).unwrap(), answer, "{ended:?}");
        assert_eq!(ended.is_ok(), ends_tls, "{ended:?}");
    }
    let cut = "hello: counting: Connection reset by peer";
    shim.until(Duration::from_secs(10), "the workload sees a reset", |shim| shim.log().contains(cut));
}

/// A connection after its handshake.
fn shaken(server: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let name = ServerName::try_from("enclave").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, client::connect(server).unwrap());
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream
}

/// Accepts every certificate: these tests are about streams.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
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
