//! Promise: `attest` and `tls-tunnel` hand out what an accepted enclave says
//! and nothing else, over real sockets.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a broken fixture ends the test

#[path = "../../attestation/tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attestation::binding::Purpose;
use attestation::rustls::{EnclaveIdentity, session};
use attestation::{Fingerprint, Untrusted};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use support::encode::{NULL, bstr, uint};
use support::signer::{Certificate, Fixture, LEAF, SIGNED_AT};
use tempfile::TempDir;

const PCR0: &str = "a0";
const WITHIN: Duration = Duration::from_secs(20);

/// A Nitro machine whose documents are of now.
struct Machine(Fixture);

impl Machine {
    fn new() -> Machine {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let mut fixture = Fixture::honest();
        for certificate in &mut fixture.certificates {
            certificate.not_before += now - SIGNED_AT;
            certificate.not_after += now - SIGNED_AT;
        }
        fixture.bundle = Some(fixture.certificates[..LEAF].iter().map(Certificate::der).collect());
        fixture.set("timestamp", uint(now as u64 * 1000));
        Machine(fixture)
    }

    fn sign(&mut self, user_data: Option<&[u8]>, nonce: Option<&[u8]>) -> Vec<u8> {
        let value = |bytes: Option<&[u8]>| bytes.map_or(vec![NULL], bstr);
        self.0.set("user_data", value(user_data));
        self.0.set("nonce", value(nonce));
        self.0.document()
    }

    fn root(&mut self) -> String {
        let document = self.sign(None, None);
        let root = Untrusted::parse(&document).unwrap().claimed_certificates().next().unwrap().to_vec();
        let fingerprint: Fingerprint =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &root).as_ref().try_into().unwrap();
        hex::encode(fingerprint)
    }
}

/// What a shim or an enclave does with one connection.
type Serve = Box<dyn FnMut(TcpStream) + Send>;

/// Serves connections one after the other; gives its address. The thread ends with the test.
fn listen(mut serve: Serve) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || listener.incoming().for_each(|stream| serve(stream.unwrap())));
    address
}

/// A shim that answers each request with what `answer` makes of the nonce in it.
fn shim(mut answer: impl FnMut(&[u8]) -> (&'static str, Vec<u8>) + Send + 'static) -> String {
    listen(Box::new(move |mut stream| {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let headers: Vec<_> = lines.map_while(|line| line.ok().filter(|line| !line.is_empty())).collect();
        assert!(headers.iter().any(|header| header.eq_ignore_ascii_case("accept: application/cbor")));
        let nonce = first.strip_prefix("GET /v1/attestation?nonce=").unwrap().split(' ').next().unwrap();
        let (status, body) = answer(&hex::decode(nonce).unwrap());
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
    }))
}

/// An enclave that ends TLS and echoes until the client's half is shut.
fn enclave(mut machine: Machine, sessions: bool) -> String {
    let identity = Arc::new(EnclaveIdentity::generate().unwrap());
    let bound = identity.binding(Purpose::TlsCertificate).to_bytes();
    identity.install(&machine.sign(Some(&bound), None)).unwrap();
    let mut config = identity.server_config().unwrap();
    config.alpn_protocols = if sessions { vec![session::ALPN.to_vec()] } else { vec![] };
    let config = Arc::new(config);
    listen(Box::new(move |stream| {
        let _ = echo(stream, &config, |nonce| {
            let bound = identity.binding(Purpose::TlsSession).to_bytes();
            machine.sign(Some(&bound), Some(nonce))
        });
    }))
}

fn echo(
    tcp: TcpStream,
    config: &Arc<ServerConfig>,
    mut sign: impl FnMut(&[u8]) -> Vec<u8>,
) -> std::io::Result<()> {
    let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), tcp);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    if tls.conn.alpn_protocol() == Some(session::ALPN) {
        let mut challenge = [0; 32];
        tls.read_exact(&mut challenge)?;
        let nonce = session::nonce(&tls.conn, &challenge).unwrap();
        tls.write_all(&session::answer(&sign(&nonce)).unwrap())?;
    }
    let mut heard = Vec::new();
    tls.read_to_end(&mut heard)?;
    if heard == b"cut" {
        tls.write_all(b"half an ans")?;
        return Ok(()); // without close_notify
    }
    tls.write_all(&heard)?;
    tls.conn.send_close_notify();
    tls.conn.complete_io(&mut tls.sock).map(drop)
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enclavectl")).args(arguments).output().expect("enclavectl runs")
}

/// Exit code, the code in the refusal, standard error.
fn judged(arguments: &[&str]) -> (i32, String, String) {
    let output = run(&[arguments, &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let code = report["code"].as_str().unwrap_or_default().to_owned();
    (output.status.code().unwrap(), code, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_document_is_fetched_with_a_nonce_of_its_own_and_written_when_it_is_good() {
    let mut machine = Machine::new();
    let (root, pcr0) = (machine.root(), PCR0.repeat(48));
    let mut seen = Vec::new();
    let address = shim(move |nonce| {
        assert!(nonce.len() == 32 && !seen.contains(&nonce.to_vec()), "a nonce came twice");
        seen.push(nonce.to_vec());
        ("200 OK", machine.sign(None, Some(nonce)))
    });
    let url = format!("http://{address}");
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("document");
    let flags = ["attest", &url, "--root-fingerprint", &root, "-o", file.to_str().unwrap()];
    assert_eq!(judged(&[&flags[..], &["--pcr0", &"11".repeat(48)]].concat()).0, 4);
    assert!(!file.exists(), "what is refused is not written");
    assert_eq!(judged(&[&flags[..], &["--pcr0", &pcr0]].concat()).0, 0);
    assert!(Untrusted::parse(&std::fs::read(&file).unwrap()).is_ok());
    assert_eq!(judged(&["attest", &url, "--pcr0", &pcr0]).1, "chain.untrusted-root");
    assert_eq!(run(&[&flags[..], &["--no-verify"]].concat()).status.code(), Some(0));
}

#[test]
fn a_replay_an_error_and_silence_are_told_apart() {
    let mut machine = Machine::new();
    let (root, pcr0) = (machine.root(), PCR0.repeat(48));
    let old = machine.sign(None, Some(b"yesterday's"));
    let replaying = format!("http://{}", shim(move |_| ("200 OK", old.clone())));
    let busy = shim(|_| ("429 Too Many Requests", br#"{"error":"too many requests are waiting"}"#.to_vec()));
    let endless = format!("http://{}", shim(|_| ("200 OK", vec![0; 17 * 1024])));
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flags = ["--root-fingerprint", &root, "--pcr0", &pcr0];
    let attest = |url: &str| judged(&[&["attest", url], &flags[..]].concat());
    assert_eq!((attest(&replaying).0, attest(&replaying).1.as_str()), (4, "policy.nonce-mismatch"));
    let (code, _, error) = attest(&format!("http://{busy}/v1/attestation"));
    assert!(code == 74 && error.contains("429") && error.contains("requests are waiting"), "{code} {error}");
    assert_eq!(attest(&endless).0, 74);
    assert_eq!(attest(&format!("http://{dead}")).0, 74);
    for wrong in ["https://host", "http://host/?nonce=00", "host"] {
        assert_eq!(attest(wrong).0, 64, "{wrong}");
    }
    assert_eq!(run(&["attest", &replaying]).status.code(), Some(64), "nothing is expected");
    assert_eq!(run(&["attest", &replaying, "--no-verify"]).status.code(), Some(64), "no file is named");
}

#[test]
fn a_handshake_shows_who_the_server_is() {
    let mut machine = Machine::new();
    let (root, pcr0) = (machine.root(), PCR0.repeat(48));
    let trusted = ["--root-fingerprint", &root, "--pcr0", &pcr0];
    let (plain, sessions) = (enclave(machine, false), {
        let mut machine = Machine::new();
        (machine.root(), enclave(machine, true))
    });
    let attest = |address: &str, flags: &[&str]| judged(&[&["attest", "--connect", address], flags].concat());
    assert_eq!(attest(&plain, &trusted).0, 0);
    assert_eq!(
        attest(&plain, &["--root-fingerprint", &root, "--pcr0", &"11".repeat(48)]).1,
        "policy.pcr-mismatch"
    );
    assert_eq!(attest(&plain, &["--pcr0", &pcr0]).0, 3);
    let (code, _, error) = attest(&plain, &[&trusted[..], &["--session"]].concat());
    assert!(code == 74, "an enclave without the mode: {error}");
    let bound = ["--root-fingerprint", &sessions.0, "--pcr0", &pcr0, "--session"];
    assert_eq!(attest(&sessions.1, &bound).0, 0);
    let text = run(&[&["attest", "--connect", &sessions.1], &bound[..]].concat());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("VERIFIED\nhandshake signed by the enclave's key\n"), "{text}");
}

/// A running tunnel; gone with the test.
struct Tunnel {
    child: Child,
    address: String,
}

impl Tunnel {
    fn open(flags: &[&str]) -> Tunnel {
        let mut child = Command::new(env!("CARGO_BIN_EXE_enclavectl"))
            .arg("tls-tunnel")
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}")).trim().to_owned();
        Tunnel { child, address }
    }

    /// What comes back for `text` after the client's half is shut.
    fn ask(&self, text: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(WITHIN))?;
        stream.write_all(text)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_tunnel_carries_both_ways_and_keeps_half_close() {
    for session in [false, true] {
        let mut machine = Machine::new();
        let (root, pcr0) = (machine.root(), PCR0.repeat(48));
        let address = enclave(machine, session);
        let mut flags = vec!["--connect", &address, "--root-fingerprint", &root, "--pcr0", &pcr0];
        flags.extend(session.then_some("--session"));
        let tunnel = Tunnel::open(&flags);
        let large: Vec<u8> = (0..1_000_000u32).map(|index| (index % 251) as u8).collect();
        for text in [&b"question"[..], &large] {
            assert!(tunnel.ask(text).unwrap() == text, "session {session}");
        }
    }
}

#[test]
fn an_answer_that_is_cut_never_looks_whole() {
    let mut machine = Machine::new();
    let (root, pcr0) = (machine.root(), PCR0.repeat(48));
    let address = enclave(machine, false);
    let tunnel = Tunnel::open(&["--connect", &address, "--root-fingerprint", &root, "--pcr0", &pcr0]);
    let ended = tunnel.ask(b"cut").map_err(|error| error.kind());
    assert_eq!(ended, Err(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn a_tunnel_to_a_stranger_does_not_open() {
    let address = enclave(Machine::new(), false);
    let output = run(&["tls-tunnel", "--connect", &address, "--pcr0", &PCR0.repeat(48)]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 0));
    assert!(String::from_utf8(output.stderr).unwrap().contains("chain.untrusted-root"));
}
