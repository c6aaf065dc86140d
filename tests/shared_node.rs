//! Promise: enclaves of one node do not get into each other's way, and nobody
//! else on the node gets into an enclave's control.

mod machine;

use std::time::Duration;

use machine::{Image, Node, Shim};

#[test]
fn two_shims_started_together_both_serve() {
    let node = Node::new();
    let image = Image::hello(&node);
    let mut first = Shim::start(&node, &image);
    let mut second = Shim::start(&node, &image);
    first.ready();
    second.ready();
    assert_eq!(node.running().len(), 2);
    for shim in [&mut first, &mut second] {
        let answer = shim.get("/");
        assert_eq!(answer.status, 200);
    }
    // One ends; the other is not touched.
    first.signal(nix::sys::signal::Signal::SIGKILL);
    first.exit_code(Duration::from_secs(5));
    machine::within(Duration::from_secs(5), "one enclave is left", || node.running().len() == 1);
    assert_eq!(second.get("/").status, 200);
}

#[test]
fn a_stranger_on_the_node_gets_nowhere() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let cid = node.running()[0];
    // A hello with a token of zeros, as a frame: length, then [version, token] in CBOR.
    let script = format!(
        r#"
import socket, struct
hello = bytes([0x82, {version}, 0x50]) + bytes(16)
frame = struct.pack(">I", len(hello)) + hello
for port in ({control}, {attestation}):
    for first in (frame, b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 4096):
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.settimeout(20)
        s.connect(({cid}, port))
        try:
            s.sendall(first)
            answer = b""
            while True:
                piece = s.recv(4096)
                if not piece:
                    break
                answer += piece
        except ConnectionResetError:
            answer += b"<reset>"
        print(port, len(first), answer.hex())
        assert b"document" not in answer and len(answer) < 64, answer
        s.close()
"#,
        control = wire::port::CONTROL,
        attestation = wire::port::ATTESTATION,
        version = wire::PROTOCOL,
    );
    let output = node.command(&machine::python()).arg("-c").arg(script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));

    // Each port refuses in the agent's own words, a hello by its token and the rest for being none.
    let word = |refusal| hex::encode(wire::encode(&wire::Greeting::Refused(refusal)).unwrap());
    let (claimed, no_hello) = (word(wire::Refusal::AlreadyClaimed), word(wire::Refusal::NotAHello));
    let expected = [wire::port::CONTROL, wire::port::ATTESTATION]
        .into_iter()
        .flat_map(|port| [(port, &claimed), (port, &no_hello), (port, &no_hello), (port, &no_hello)]);
    assert_eq!(text.lines().count(), 8, "{text}");
    for (line, (port, refusal)) in text.lines().zip(expected) {
        assert!(line.starts_with(&format!("{port} ")) && line.contains(refusal), "{port}: {text}");
    }
    // And the rightful shim goes on.
    assert_eq!(shim.get("/").status, 200);
    let http = shim.http();
    assert_eq!(machine::client::get(http, "/v1/attestation?nonce=00ff").unwrap().status, 200);
}

#[test]
fn a_shim_that_finds_its_enclave_claimed_ends_with_76() {
    // The stranger is spinning before the shim starts and nearly always wins.
    assert!((0..5).any(|_| a_stranger_claims_first()), "the shim was faster five times");
}

/// A race for a new enclave. If a stranger wins, the shim says so with 76; else the shim
/// serves and the stranger is refused.
#[allow(clippy::unwrap_used)] // a failure here is the test's
fn a_stranger_claims_first() -> bool {
    let node = Node::new();
    // A claimer that dials every CID's control port as soon as it exists, with a token of its own.
    let script = r#"
import socket, struct, sys, time
hello = bytes([0x82, VERSION, 0x50]) + b"0123456789abcdef"
frame = struct.pack(">I", len(hello)) + hello
deadline = time.monotonic() + 30
print("claiming", flush=True)
while time.monotonic() < deadline:
    try:
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.connect((77, 5700))
        s.sendall(frame)
        print("claimed", s.recv(100).hex(), flush=True)
        sys.stdin.read()
        break
    except OSError:
        s.close()
"#;
    let script = script.replace("VERSION", &wire::PROTOCOL.to_string());
    let mut claimer = node
        .command(&machine::python())
        .arg("-c")
        .arg(script)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(claimer.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "claiming");
    let mut shim = Shim::with_config(&node, &Image::hello(&node), "memory_mib: 64\ncid: 77\n");
    let claimed = lines.next().unwrap().unwrap();
    let welcome = claimed.contains(
        &hex::encode(wire::encode(&wire::Greeting::Welcome { build: String::new() }).unwrap())[8..10],
    );
    drop(claimer.stdin.take());
    claimer.wait().unwrap();
    let refused = hex::encode(wire::encode(&wire::Greeting::Refused(wire::Refusal::AlreadyClaimed)).unwrap());
    if claimed.contains(&refused) {
        shim.ready();
        return false;
    }
    assert!(welcome, "{claimed}");
    assert_eq!(shim.exit_code(Duration::from_secs(10)), 76, "{}", shim.log());
    assert!(shim.log().contains("claimed"), "{}", shim.log());
    true
}
