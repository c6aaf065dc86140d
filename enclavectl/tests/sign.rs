//! Promise: an image is signed by the certificate's key or not written at
//! all; what is printed is what nitro-cli prints.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod workshop;

use std::fs;

use eif::Pcr;
use workshop::{CURVES, Workshop, failed, json, succeeded};

/// Flags of the signer called `name`.
fn by(name: &str) -> [String; 4] {
    let certificate = format!("{name}.pem");
    ["--signing-certificate".to_owned(), certificate, "--private-key".to_owned(), format!("{name}.key")]
}

fn as_strs(flags: &[String; 4]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

#[test]
fn a_build_signs_with_a_key_on_each_curve_and_inspect_finds_the_signature_good() {
    for (curve, _) in CURVES {
        let workshop = Workshop::new();
        if !workshop.signer("signer", curve) {
            return;
        }
        let unsigned = json(&workshop.build("plain.eif", &[]).output().unwrap());
        let built = json(&workshop.build("out.eif", &as_strs(&by("signer"))).output().unwrap());
        let inspected = workshop.inspect("out.eif");
        assert_eq!(built["Measurements"], inspected["Measurements"]);
        for name in ["PCR0", "PCR1", "PCR2"] {
            assert_eq!(built["Measurements"][name], unsigned["Measurements"][name], "{curve} {name}");
        }
        let der = workshop.openssl(&["x509", "-in", "signer.pem", "-outform", "DER"]);
        assert_eq!(built["Measurements"]["PCR8"], Pcr::of(&der).to_string());
        assert_eq!((&inspected["IsSigned"], &inspected["SignatureCheck"]), (&true.into(), &true.into()));

        let pcr8 =
            json(&workshop.enclavectl(&["pcr", "--signing-certificate", "signer.pem"]).output().unwrap());
        assert_eq!(pcr8["PCR8"], built["Measurements"]["PCR8"]);
    }
}

#[test]
fn the_certificate_is_shown_as_openssl_shows_it() {
    let workshop = Workshop::new();
    if !workshop.signer("signer", CURVES[1].0) {
        return;
    }
    succeeded(&workshop.build("out.eif", &as_strs(&by("signer"))).output().unwrap());
    let shown = &workshop.inspect("out.eif")["SigningCertificate"];
    let issuer = &shown["IssuerName"];
    assert_eq!(issuer["commonName"], "signer");
    assert_eq!((&issuer["countryName"], &issuer["organizationName"]), (&"DE".into(), &"workshop".into()));
    assert_eq!(shown["Algorithm"], "ecdsa-with-SHA256");
    let dates = workshop.openssl(&["x509", "-in", "signer.pem", "-noout", "-startdate", "-enddate"]);
    let dates = String::from_utf8(dates).unwrap();
    for (name, label) in [("NotBefore", "notBefore="), ("NotAfter", "notAfter=")] {
        let line = dates.lines().find_map(|line| line.strip_prefix(label)).unwrap();
        assert_eq!(shown[name], line);
    }
    let signature = shown["Signature"].as_str().unwrap().replace(':', "");
    let der = hex::encode_upper(workshop.openssl(&["x509", "-in", "signer.pem", "-outform", "DER"]));
    assert!(der.ends_with(&signature) && signature.len() > 100, "{signature}");
}

#[test]
fn an_image_that_is_there_is_signed_in_its_place_and_again() {
    let workshop = Workshop::new();
    if !workshop.signer("signer", CURVES[0].0) || !workshop.signer("other", CURVES[2].0) {
        return;
    }
    let built = json(&workshop.build("out.eif", &[]).output().unwrap());
    let before = fs::read(workshop.path("out.eif")).unwrap();
    for name in ["signer", "other", "signer"] {
        let flags = by(name);
        let arguments = [&["sign", "out.eif"][..], &as_strs(&flags)].concat();
        let signed = json(&workshop.enclavectl(&arguments).output().unwrap());
        assert_eq!(signed["Measurements"]["PCR0"], built["Measurements"]["PCR0"]);
        let inspected = workshop.inspect("out.eif");
        assert_eq!(inspected["Measurements"], signed["Measurements"]);
        assert_eq!(inspected["SigningCertificate"]["IssuerName"]["commonName"], name);
        assert_eq!(inspected["SignatureCheck"], true);
        // Everything between the header and the signature is as it was.
        assert_eq!(fs::read(workshop.path("out.eif")).unwrap()[548..before.len()], before[548..]);
    }
    let flags = by("signer");
    let arguments = [&["sign", "out.eif", "-o", "copy.eif"][..], &as_strs(&flags)].concat();
    succeeded(&workshop.enclavectl(&arguments).output().unwrap());
    assert_eq!(workshop.inspect("copy.eif")["SignatureCheck"], true);
}

#[test]
fn keys_as_openssl_writes_them_are_read_and_others_are_named() {
    let workshop = Workshop::new();
    if !workshop.signer("signer", CURVES[1].0) || !workshop.signer("stranger", CURVES[1].0) {
        return;
    }
    // `openssl ecparam -genkey` puts the parameters before the key.
    workshop.openssl(&["ec", "-in", "signer.key", "-out", "sec1.key"]);
    let parameters = b"-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n";
    let sec1 = [&parameters[..], &fs::read(workshop.path("sec1.key")).unwrap()].concat();
    fs::write(workshop.path("sec1.key"), sec1).unwrap();
    let with = |key: &str| {
        let flags = ["--signing-certificate", "signer.pem", "--private-key", key];
        workshop.build("out.eif", &flags).output().unwrap()
    };
    succeeded(&with("sec1.key"));
    fs::remove_file(workshop.path("out.eif")).unwrap();

    workshop.openssl(&["genpkey", "-algorithm", "ED25519", "-out", "edwards.key"]);
    workshop.openssl(&["pkcs8", "-topk8", "-in", "signer.key", "-passout", "pass:x", "-out", "closed.key"]);
    workshop.openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "short.key"]);
    for (key, reason) in [
        ("stranger.key", "the private key is not the certificate's"),
        ("edwards.key", "not on P-256, P-384 or P-521"),
        ("closed.key", "the private key is encrypted: decrypt it first"),
        ("short.key", "on P-256, the certificate's key on P-384"),
        ("signer.pem", "not PEM of PKCS#8 or SEC1"),
    ] {
        failed(&with(key), 65, reason);
    }
    failed(&with("missing.key"), 66, "missing.key");
    assert!(!workshop.path("out.eif").exists(), "an image was written without its signature");

    let both =
        [fs::read(workshop.path("signer.pem")).unwrap(), fs::read(workshop.path("signer.key")).unwrap()];
    fs::write(workshop.path("signer.pem"), both.concat()).unwrap();
    failed(&with("signer.key"), 65, "holds a private key as well");
    let half = workshop.build("out.eif", &["--signing-certificate", "signer.pem"]).output().unwrap();
    failed(&half, 64, "--private-key");
    assert!(!workshop.path("out.eif").exists());
}

#[test]
fn an_expired_certificate_signs_nothing_and_the_image_stays_as_it_was() {
    let workshop = Workshop::new();
    if !workshop.signer("signer", CURVES[1].0) {
        return;
    }
    workshop.openssl(&["req", "-new", "-key", "signer.key", "-subj", "/CN=late", "-out", "late.csr"]);
    workshop.openssl(&[
        "x509",
        "-req",
        "-in",
        "late.csr",
        "-signkey",
        "signer.key",
        "-days",
        "-1",
        "-out",
        "late.pem",
    ]);
    succeeded(&workshop.build("out.eif", &[]).output().unwrap());
    let before = (fs::read(workshop.path("out.eif")).unwrap(), workshop.names());
    let flags = ["--signing-certificate", "late.pem", "--private-key", "signer.key"];
    let arguments = [&["sign", "out.eif"][..], &flags].concat();
    failed(&workshop.enclavectl(&arguments).output().unwrap(), 65, "expired");
    assert_eq!((fs::read(workshop.path("out.eif")).unwrap(), workshop.names()), before);
    failed(&workshop.build("new.eif", &flags).output().unwrap(), 65, "expired");
    assert!(!workshop.path("new.eif").exists());
}

#[test]
fn pcr_of_a_file_is_that_of_its_bytes() {
    let workshop = Workshop::new();
    let shown = json(&workshop.enclavectl(&["pcr", "--input", "kernel"]).output().unwrap());
    assert_eq!(shown["PCR"], Pcr::of(&fs::read(workshop.path("kernel")).unwrap()).to_string());
    failed(&workshop.enclavectl(&["pcr"]).output().unwrap(), 64, "--input");
    failed(&workshop.enclavectl(&["pcr", "--input", "missing"]).output().unwrap(), 66, "missing");
    failed(
        &workshop.enclavectl(&["pcr", "--signing-certificate", "kernel"]).output().unwrap(),
        65,
        "not PEM",
    );
}
