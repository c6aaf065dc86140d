//! Promise: a key in KMS signs images as one in a file does, and what goes
//! wrong there fails the build and leaves no image.
#![cfg(feature = "kms")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod kms_stub;
mod workshop;

use std::{fs, process::Command};

use kms_stub::{ACCESS, ARN, Answers, SECRET, Stub, TOKEN};
use workshop::{CURVES, Workshop, failed, json, succeeded};

const FLAGS: [&str; 4] = ["--signing-certificate", "signer.pem", "--private-key", ARN];

/// A build that asks `stub`, with credentials from the environment.
fn build(workshop: &Workshop, stub: &Stub) -> Command {
    let mut command = without_credentials(workshop, stub);
    command.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", SECRET);
    command
}

fn without_credentials(workshop: &Workshop, stub: &Stub) -> Command {
    let mut command = workshop.build("out.eif", &FLAGS);
    command.env("AWS_ENDPOINT_URL_KMS", stub.url());
    command
}

/// A workshop with a signer, and a stub that holds its key; nothing where
/// there is no OpenSSL.
fn start(curve: &str, answers: Answers) -> Option<(Workshop, Stub)> {
    let workshop = Workshop::new();
    if !workshop.signer("signer", curve) {
        return None;
    }
    let stub = Stub::start(workshop.path("signer.key"), answers);
    Some((workshop, stub))
}

#[test]
fn a_key_in_kms_signs_on_each_curve() {
    for (curve, _) in CURVES {
        let Some((workshop, stub)) = start(curve, Answers::Signed) else { return };
        let built = json(&build(&workshop, &stub).output().unwrap());
        let inspected = workshop.inspect("out.eif");
        assert_eq!(inspected["SignatureCheck"], true, "{curve}");
        assert_eq!(inspected["Measurements"], built["Measurements"]);
        assert_eq!(stub.seen().len(), 1);
    }
}

#[test]
fn an_image_that_is_there_is_signed_too() {
    let Some((workshop, stub)) = start(CURVES[1].0, Answers::Signed) else { return };
    succeeded(&workshop.build("out.eif", &[]).output().unwrap());
    let arguments = [&["sign", "out.eif"][..], &FLAGS].concat();
    let mut command = workshop.enclavectl(&arguments);
    command.env("AWS_ENDPOINT_URL", stub.url());
    command.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", SECRET);
    succeeded(&command.output().unwrap());
    assert_eq!(workshop.inspect("out.eif")["SignatureCheck"], true);
}

#[test]
fn a_busy_kms_is_asked_again_but_not_for_ever() {
    let Some((workshop, stub)) = start(CURVES[0].0, Answers::BusyThenSigned(2)) else { return };
    succeeded(&build(&workshop, &stub).output().unwrap());
    assert_eq!(stub.seen().len(), 3);
    let Some((workshop, stub)) = start(CURVES[0].0, Answers::BusyThenSigned(9)) else { return };
    failed(&build(&workshop, &stub).output().unwrap(), 74, "ThrottlingException: slow down");
    assert_eq!(stub.seen().len(), 3);
}

#[test]
fn every_failure_of_kms_fails_the_build_and_leaves_no_image() {
    let denied = Answers::Refused(400, "com.amazonaws.kms#AccessDeniedException", "not yours");
    let broken = Answers::Refused(500, "KMSInternalException", "later");
    let missing = Answers::Refused(400, "NotFoundException", "no such key");
    for (answers, code, asked, reason) in [
        (denied, 74, 1, "AccessDeniedException: not yours (allow kms:Sign on the key"),
        (missing, 74, 1, "NotFoundException: no such key (is the key in this region"),
        (broken, 74, 3, "500 Internal Server Error, KMSInternalException: later"),
        (Answers::Garbage, 74, 1, "something else than a signature"),
        (Answers::HangsUp, 74, 3, "the exchange broke"),
        (Answers::OfSomethingElse, 65, 1, "not made with the certificate's key"),
    ] {
        let Some((workshop, stub)) = start(CURVES[1].0, answers) else { return };
        let before = workshop.names();
        failed(&build(&workshop, &stub).output().unwrap(), code, reason);
        assert_eq!(workshop.names(), before, "{answers:?} left something");
        assert_eq!(stub.seen().len(), asked, "{answers:?}");
    }
}

#[test]
fn a_key_that_is_not_the_certificates_is_noticed() {
    let Some((workshop, _stub)) = start(CURVES[1].0, Answers::Signed) else { return };
    assert!(workshop.signer("stranger", CURVES[1].0));
    let stranger = Stub::start(workshop.path("stranger.key"), Answers::Signed);
    failed(&build(&workshop, &stranger).output().unwrap(), 65, "not made with the certificate's key");
    assert!(!workshop.path("out.eif").exists());
}

#[test]
fn another_secret_is_refused_by_the_stub_as_kms_would() {
    let Some((workshop, stub)) = start(CURVES[1].0, Answers::Signed) else { return };
    let output = build(&workshop, &stub).env("AWS_SECRET_ACCESS_KEY", "wrong").output().unwrap();
    failed(
        &output,
        74,
        "InvalidSignatureException: the signature does not match (is this machine's clock right?)",
    );
}

#[test]
fn credentials_come_from_where_awss_own_programs_take_them() {
    let Some((workshop, stub)) = start(CURVES[0].0, Answers::Signed) else { return };
    let url = stub.url();
    fs::create_dir(workshop.path(".aws")).unwrap();
    fs::write(workshop.path("web-token"), "eyJ.x-y_z+\n").unwrap();
    fs::write(workshop.path("container-token"), "container-token").unwrap();
    let path = |name: &str| workshop.path(name).display().to_string();
    let role = ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r".to_owned());
    let sources: [(&str, Vec<(&str, String)>); 4] = [
        (
            "session",
            vec![
                ("AWS_ACCESS_KEY_ID", ACCESS.to_owned()),
                ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
                ("AWS_SESSION_TOKEN", TOKEN.to_owned()),
            ],
        ),
        (
            "web identity",
            vec![
                ("AWS_WEB_IDENTITY_TOKEN_FILE", path("web-token")),
                role,
                ("AWS_ENDPOINT_URL_STS", url.clone()),
            ],
        ),
        (
            "container",
            vec![
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{url}/container")),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", path("container-token")),
            ],
        ),
        (
            "instance",
            vec![
                ("AWS_EC2_METADATA_DISABLED", "false".to_owned()),
                ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.clone()),
            ],
        ),
    ];
    for (name, variables) in sources {
        let mut command = without_credentials(&workshop, &stub);
        command.envs(variables);
        succeeded(&command.output().unwrap_or_else(|error| panic!("{name}: {error}")));
        let asked = stub.seen().pop().unwrap();
        assert_eq!(asked.headers.get("x-amz-security-token").map(String::as_str), Some(TOKEN), "{name}");
        fs::remove_file(workshop.path("out.eif")).unwrap();
    }

    let profile = format!("[images]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n");
    fs::write(workshop.path(".aws/credentials"), profile).unwrap();
    succeeded(&without_credentials(&workshop, &stub).env("AWS_PROFILE", "images").output().unwrap());
    let missing = without_credentials(&workshop, &stub).env("AWS_PROFILE", "other").output().unwrap();
    failed(&missing, 74, "there is no profile \"other\"");
}

#[test]
fn without_credentials_or_a_key_the_message_says_what_to_do() {
    let Some((workshop, stub)) = start(CURVES[1].0, Answers::Signed) else { return };
    failed(&without_credentials(&workshop, &stub).output().unwrap(), 74, "set AWS_ACCESS_KEY_ID");
    assert!(stub.seen().is_empty());
    let flags = ["--signing-certificate", "signer.pem", "--private-key", "arn:aws:s3:::bucket"];
    failed(&workshop.build("out.eif", &flags).output().unwrap(), 64, "no ARN of a KMS key");
    let mut nobody = build(&workshop, &stub);
    // A port that was just free, and is closed again.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    nobody.env("AWS_ENDPOINT_URL_KMS", format!("http://127.0.0.1:{port}"));
    failed(&nobody.output().unwrap(), 74, "cannot connect");
    assert!(!workshop.path("out.eif").exists());
}
