//! Promise: an image becomes a running, reachable, attested enclave, and no
//! byte is lost or changed on the way.

mod machine;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use machine::{Image, Node, Shim, client, program_path};

const MIB: usize = 1 << 20;

#[test]
fn a_64_mib_image_is_ready_within_two_seconds() {
    let node = Node::new();
    let image = Image::padded(&node, 64);
    assert!(std::fs::metadata(&image.path).unwrap().len() >= 64 * MIB as u64);
    let mut shim = Shim::with_config(&node, &image, "memory_mib: 320\n");
    let took = shim.ready();
    println!("ready after {took:?}");
    let limit = machine::limit(Duration::from_secs(2), Duration::from_secs(60));
    assert!(took < limit, "ready after {took:?}\n{}", shim.log());
}

#[test]
fn a_quarter_gibibyte_each_way_keeps_its_hash_and_the_write_cap() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let address = shim.ingress(8080);
    let payload: Vec<u8> = pattern(256 * MIB);
    let sent = hex::encode(digest(&SHA256, &payload));

    let answer = client::post(address, "/sha256", &payload).unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text().trim(), sent, "into the enclave");

    let answer = client::get(address, &format!("/bytes/{}", payload.len())).unwrap();
    assert_eq!(answer.body.len(), payload.len());
    let whole = client::post(address, "/sha256", &answer.body).unwrap();
    assert_eq!(
        whole.text().trim(),
        hex::encode(digest(&SHA256, &answer.body)),
        "out of the enclave and back"
    );
    let small = client::get(address, "/bytes/1000000").unwrap();
    assert_eq!(small.body, answer.body[..1_000_000], "the bytes do not depend on how many are asked for");

    assert_eq!(node.stats()["vsock_writes_over_32k"], 0, "writes to a vsock over 32 KiB");
}

/// The check above can fail: a program that writes 64 KiB at once is counted.
#[test]
fn a_writer_over_the_cap_is_counted() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let cid = node.running()[0];
    let script = format!(
        "import socket\ns = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\ns.connect(({cid}, 8081))\n\
         s.sendall(b'x' * 65536)\ns.shutdown(socket.SHUT_WR)\nassert b'65536' in s.recv(200)\n"
    );
    let output = node.command(&machine::python()).arg("-c").arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(node.stats()["vsock_writes_over_32k"].as_u64().unwrap() >= 1, "{}", node.stats());
}

#[test]
fn half_close_reaches_the_enclave_and_its_answer_still_returns() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let mut stream = client::connect(shim.ingress(8081)).unwrap();
    let payload = pattern(5 * MIB + 17);
    stream.write_all(&payload).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&payload.len().to_string()), "{answer}");
    assert!(answer.contains(&hex::encode(digest(&SHA256, &payload))), "{answer}");
}

#[test]
fn the_enclave_may_half_close_first_and_still_receives_everything() {
    let node = Node::new();
    let image = Image::from_manifest(&node, &machine::image::HELLO.replace("8081]", "8081, 8082]"));
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    let web = shim.ingress(8080);
    let mut stream = client::connect(shim.ingress(8082)).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the enclave's end of stream arrives first");
    let payload = pattern(5 * MIB + 3);
    stream.write_all(&payload).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let expected = format!("{} {}\n", payload.len(), hex::encode(digest(&SHA256, &payload)));
    shim.until(Duration::from_secs(10), "the enclave has counted it all", |_| {
        client::get(web, "/last").is_ok_and(|answer| answer.text() == expected)
    });
}

#[test]
fn two_hundred_connections_at_once_are_all_served() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let address = shim.ingress(8081);
    let mut streams: Vec<_> = (0..200).map(|_| client::connect(address).unwrap()).collect();
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("client {index}").as_bytes()).unwrap();
    }
    machine::within(Duration::from_secs(10), "all 200 are open at once", || {
        shim.metric("enclave_shim_ingress_connections_open") == Some(200.0)
    });
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let expected = hex::encode(digest(&SHA256, format!("client {index}").as_bytes()));
        assert!(answer.contains(&expected), "connection {index}: {answer}");
    }
}

#[test]
fn a_document_with_our_nonce_verifies_against_the_image_and_nothing_else() {
    let node = Node::new();
    let image = Image::hello(&node);
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    let nonce = "00112233445566778899aabbccddeeff";
    let headers = "Accept: application/cbor\r\n";
    let path = format!("/v1/attestation?nonce={nonce}");
    let answer = client::request(shim.http(), "GET", &path, headers, b"").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let document = node.scratch().join("document.cbor");
    std::fs::write(&document, &answer.body).unwrap();

    let verify = |arguments: &[&str]| {
        let output = Command::new(program_path("enclavectl"))
            .arg("verify")
            .arg(&document)
            .args(["--json", "--eif"])
            .arg(&image.path)
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let root = node.path().join("dev-root.pem");
    let root = root.to_str().unwrap();
    let (code, verdict) = verify(&["--root-pem", root, "--nonce", nonce]);
    assert_eq!(code, 0, "{verdict}");
    assert!(verdict.contains(image.measurements["PCR0"].as_str().unwrap()), "{verdict}");
    assert_eq!(verify(&["--root-pem", root, "--nonce", "ff"]).0, 4, "another nonce");
    assert_eq!(verify(&["--nonce", nonce]).0, 3, "AWS's root instead of the development root");
    let other = Image::from_manifest(&node, &machine::image::HELLO.replace("workdir: /tmp", "workdir: /run"));
    let output = Command::new(program_path("enclavectl"))
        .arg("verify")
        .arg(&document)
        .args(["--root-pem", root, "--nonce", nonce, "--eif"])
        .arg(&other.path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "another image's measurements: {output:?}");
}

#[test]
fn attestation_takes_a_nonce_and_nothing_else() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let http = shim.http();
    for path in [
        "/v1/attestation",
        "/v1/attestation?nonce=",
        "/v1/attestation?nonce=xyz",
        "/v1/attestation?nonce=00&user_data=00",
        &format!("/v1/attestation?nonce={}", "00".repeat(1025)),
    ] {
        let answer = client::get(http, path).unwrap();
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
    }
    let longest = format!("/v1/attestation?nonce={}", "5a".repeat(1024));
    assert_eq!(client::get(http, &longest).unwrap().status, 200);
}

/// Bytes that no shift or swap leaves alike.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
