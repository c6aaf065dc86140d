//! Promise: with a pin only the image that was meant is given to the enclave,
//! and what is compared is what lies in its memory. With `require_signature`
//! only an image with a good signature over its own PCR0.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's

mod machine;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use machine::{Image, Node, Shim};
use minicbor::Encoder;

const SOON: Duration = Duration::from_secs(20);

/// Donating memory fails with EIO, which is 71: a 65 was decided before.
fn forbid_donation(node: &Node) {
    std::fs::create_dir_all(node.path()).unwrap();
    let fault = r#"[{"ioctl": "NE_SET_USER_MEMORY_REGION", "errno": 5}]"#;
    std::fs::write(node.path().join("faults.json"), fault).unwrap();
}

fn pcr(image: &Image, register: &str) -> String {
    image.measurements[register].as_str().unwrap().to_owned()
}

#[test]
fn the_image_that_was_meant_is_launched() {
    let node = Node::new();
    let image = Image::hello(&node);
    let pins = ["0", "1", "2"].map(|n| format!("--expect-pcr{n}={}", pcr(&image, &format!("PCR{n}"))));
    let mut shim = Shim::with_flags(&node, &image, &pins.each_ref().map(String::as_str));
    shim.ready();
    assert_eq!(shim.get("/").status, 200);
    assert!(shim.log().contains("\"pins compared\""), "{}", shim.log());
}

#[test]
fn another_image_is_65_for_each_register_before_its_memory_is_given_away() {
    let node = Node::new();
    let image = Image::hello(&node);
    forbid_donation(&node);
    for register in ["pcr0", "pcr1", "pcr2", "pcr8"] {
        let wrong = "a5".repeat(48);
        let flag = format!("--expect-{register}={wrong}");
        let mut shim = Shim::with_flags(&node, &image, &[&flag]);
        assert_eq!(shim.exit_code(SOON), 65, "{register}:\n{}", shim.log());
        let named = [register.to_uppercase(), wrong, format!("expect.{register}")];
        assert!(named.iter().all(|text| shim.log().contains(text)), "{register}:\n{}", shim.log());
    }
    // Without a pin nothing is measured, and the launch gets as far as the donation.
    let mut shim = Shim::start(&node, &image);
    assert_eq!(shim.exit_code(SOON), 71, "{}", shim.log());
    assert!(!shim.log().contains("\"pins compared\""), "{}", shim.log());
}

#[test]
fn pins_are_also_read_from_the_file() {
    let node = Node::new();
    let image = Image::hello(&node);
    let config = format!("memory_mib: 64\nexpect: {{pcr0: {}}}\n", "00".repeat(48));
    let mut shim = Shim::with_config(&node, &image, &config);
    assert_eq!(shim.exit_code(SOON), 65, "{}", shim.log());
}

#[test]
fn a_required_signature_must_be_there_be_good_and_be_over_this_image() {
    let node = Node::new();
    let image = Image::hello(&node);
    let Some(signer) = Signer::new(node.scratch()) else { return };
    let good = signer.sign(&image.path, &pcr(&image, "PCR0"), "good.eif");
    let of_another = signer.sign(&image.path, &"11".repeat(48), "other.eif");

    let run = |eif: &Path, flags: &[&str]| {
        let config = machine::shim::config_file(&node, machine::shim::MEMORY_64);
        let flags = [&["--require-signature"], flags].concat();
        Shim::spawn(&node, &config, eif, &flags)
    };
    let mut unsigned = run(&image.path, &[]);
    assert_eq!(unsigned.exit_code(SOON), 65, "{}", unsigned.log());
    assert!(unsigned.log().contains("is not signed"), "{}", unsigned.log());

    let mut forged = run(&of_another, &["--device", "/nonexistent/device"]);
    assert_eq!(forged.exit_code(SOON), 65, "before the device:\n{}", forged.log());
    assert!(forged.log().contains("is signed, the image measures"), "{}", forged.log());

    let mut signed = run(&good, &["--expect-pcr8", &signer.pcr8()]);
    signed.ready();
}

/// A key and certificate by openssl, and the section by hand.
struct Signer {
    certificate: String,
    key: EcdsaKeyPair,
}

impl Signer {
    fn new(directory: &Path) -> Option<Signer> {
        let (key, certificate) = (directory.join("key.pem"), directory.join("certificate.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test", "-newkey", "ec"])
            .args(["-pkeyopt", "ec_paramgen_curve:secp384r1", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .stderr(Stdio::null())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: openssl makes no certificate here");
            return None;
        }
        let key = from_pem(&std::fs::read_to_string(key).unwrap());
        Some(Signer {
            certificate: std::fs::read_to_string(certificate).unwrap(),
            key: EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &key).unwrap(),
        })
    }

    fn pcr8(&self) -> String {
        eif::Pcr::of(&from_pem(&self.certificate)).to_string()
    }

    /// A copy of the image with a signature over `pcr0`.
    fn sign(&self, image: &Path, pcr0: &str, name: &str) -> PathBuf {
        let protected = [0xA1, 0x01, 0x38, 0x22];
        let mut payload = Encoder::new(Vec::new());
        payload.map(2).unwrap().str("register_index").unwrap().u64(0).unwrap();
        payload.str("register_value").unwrap();
        integers(&mut payload, &hex::decode(pcr0).unwrap());
        let payload = payload.into_writer();
        let mut signed = Encoder::new(Vec::new());
        signed.array(4).unwrap().str("Signature1").unwrap();
        signed.bytes(&protected).unwrap().bytes(&[]).unwrap().bytes(&payload).unwrap();
        let signature = self.key.sign(&SystemRandom::new(), &signed.into_writer()).unwrap();
        let mut cose = Encoder::new(Vec::new());
        cose.array(4).unwrap().bytes(&protected).unwrap().map(0).unwrap();
        cose.bytes(&payload).unwrap().bytes(signature.as_ref()).unwrap();
        let mut section = Encoder::new(Vec::new());
        section.array(1).unwrap().map(2).unwrap().str("signing_certificate").unwrap();
        integers(&mut section, self.certificate.as_bytes());
        section.str("signature").unwrap();
        integers(&mut section, &cose.into_writer());

        let path = image.with_file_name(name);
        let bytes = with_section(std::fs::read(image).unwrap(), 4, &section.into_writer());
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn integers(encoder: &mut Encoder<Vec<u8>>, bytes: &[u8]) {
    encoder.array(bytes.len() as u64).unwrap();
    for byte in bytes {
        encoder.u8(*byte).unwrap();
    }
}

fn from_pem(text: &str) -> Vec<u8> {
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(body).unwrap()
}

/// The format's header by its offsets, on purpose not by the library under test.
fn with_section(mut image: Vec<u8>, kind: u16, payload: &[u8]) -> Vec<u8> {
    let index = usize::from(u16::from_be_bytes([image[26], image[27]]));
    let (offset, size) = (image.len() as u64, payload.len() as u64);
    image[26..28].copy_from_slice(&(index as u16 + 1).to_be_bytes());
    image[28 + 8 * index..36 + 8 * index].copy_from_slice(&offset.to_be_bytes());
    image[284 + 8 * index..292 + 8 * index].copy_from_slice(&size.to_be_bytes());
    image.extend(kind.to_be_bytes());
    image.extend([0, 0]);
    image.extend(size.to_be_bytes());
    image.extend(payload);
    let mut crc = u32::MAX;
    for byte in image[..544].iter().chain(&image[548..]) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & 0u32.wrapping_sub(crc & 1));
        }
    }
    image[544..548].copy_from_slice(&(!crc).to_be_bytes());
    image
}
