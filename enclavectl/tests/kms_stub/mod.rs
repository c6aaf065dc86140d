//! A stand-in for KMS on loopback that holds a real key, and for the services
//! that give out credentials. It checks what KMS would check: the operation,
//! its fields, and the request's signature, computed here once more.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "shared by tests")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use aws_lc_rs::{digest, hmac};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

pub const ARN: &str = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
pub const ACCESS: &str = "AKIDEXAMPLE";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
pub const TOKEN: &str = "a-session-token//==";

/// How it answers `Sign`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    Signed,
    /// The first so many times it is too busy.
    BusyThenSigned(u32),
    Refused(u16, &'static str, &'static str),
    /// Something, but no signature.
    Garbage,
    /// A well-formed signature of something else.
    OfSomethingElse,
    /// The connection ends.
    HangsUp,
}

pub struct Stub {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    thread: Option<JoinHandle<()>>,
}

/// A request, as far as tests ask for it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub line: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Stub {
    /// `key` is the PEM file of the key that it holds.
    pub fn start(key: PathBuf, answers: Answers) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read(&stream) else { continue };
                if request.line.starts_with("GET /stop ") {
                    return;
                }
                log.lock().unwrap().push(request.clone());
                let count =
                    log.lock().unwrap().iter().filter(|seen| seen.line.starts_with("POST / ")).count();
                if let Some((status, body)) = answer(&request, &key, answers, count) {
                    let head = format!(
                        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    // A client that has gone away is the test's business.
                    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
                }
            }
        });
        Stub { address, seen, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        let stopping =
            TcpStream::connect(self.address).and_then(|mut it| it.write_all(b"GET /stop HTTP/1.1\r\n\r\n"));
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            stopping.unwrap();
            ended.unwrap().unwrap();
        }
    }
}

fn read(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let len = headers.get("content-length").map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { line: line.trim_end().to_owned(), headers, body })
}

fn answer(request: &Seen, key: &Path, answers: Answers, count: usize) -> Option<(u16, Vec<u8>)> {
    let mut path = request.line.split(' ').nth(1).unwrap();
    if path == "/" && request.headers.get("content-type").is_some_and(|kind| kind.contains("urlencoded")) {
        path = "/sts";
    }
    let header = |name: &str| request.headers.get(name).map(String::as_str);
    let credentials = json!({
        "AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "Token": TOKEN, "Expiration": "2099-01-01T00:00:00Z",
    });
    let credentials = credentials.to_string().into_bytes();
    Some(match path {
        "/" => return sign(request, key, answers, count),
        "/sts" => {
            let form = String::from_utf8(request.body.clone()).unwrap();
            assert_eq!(
                form,
                "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fr\
                 &RoleSessionName=enclavectl&WebIdentityToken=eyJ.x-y_z%2B"
            );
            let xml = format!(
                "<R><Credentials><AccessKeyId>{ACCESS}</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>\
                 <SessionToken>{TOKEN}</SessionToken></Credentials></R>"
            );
            (200, xml.into_bytes())
        }
        "/container" if header("authorization") == Some("container-token") => (200, credentials),
        "/latest/api/token" if header("x-aws-ec2-metadata-token-ttl-seconds").is_some() => {
            assert!(request.line.starts_with("PUT "), "{}", request.line);
            (200, b"instance-token".to_vec())
        }
        "/latest/meta-data/iam/security-credentials/"
            if header("x-aws-ec2-metadata-token") == Some("instance-token") =>
        {
            (200, b"builder".to_vec())
        }
        "/latest/meta-data/iam/security-credentials/builder"
            if header("x-aws-ec2-metadata-token") == Some("instance-token") =>
        {
            (200, credentials)
        }
        _ => (401, Vec::new()),
    })
}

fn sign(request: &Seen, key: &Path, answers: Answers, count: usize) -> Option<(u16, Vec<u8>)> {
    let refusal = |status, kind: &str, message: &str| {
        Some((status, json!({"__type": kind, "message": message}).to_string().into_bytes()))
    };
    if let Err(reason) = authorized(request) {
        return refusal(400, "InvalidSignatureException", &reason);
    }
    let asked: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!((&asked["KeyId"], &asked["MessageType"]), (&ARN.into(), &"DIGEST".into()));
    let mut digest = BASE64_STANDARD.decode(asked["Message"].as_str().unwrap()).unwrap();
    let expected = match asked["SigningAlgorithm"].as_str().unwrap() {
        "ECDSA_SHA_256" => 32,
        "ECDSA_SHA_384" => 48,
        "ECDSA_SHA_512" => 64,
        other => panic!("signing algorithm {other}"),
    };
    assert_eq!(digest.len(), expected);
    match answers {
        Answers::BusyThenSigned(times) if count <= times as usize => {
            return refusal(400, "ThrottlingException", "slow down");
        }
        Answers::Refused(status, kind, message) => return refusal(status, kind, message),
        Answers::Garbage => return Some((200, br#"{"Signature": "AAAA"}"#.to_vec())),
        Answers::HangsUp => return None,
        Answers::OfSomethingElse => digest[0] ^= 1,
        Answers::Signed | Answers::BusyThenSigned(_) => {}
    }
    let input = key.with_extension("digest");
    fs::write(&input, digest).unwrap();
    let output = Command::new("openssl")
        .args(["pkeyutl", "-sign", "-inkey"])
        .arg(key)
        .arg("-in")
        .arg(&input)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::remove_file(input).unwrap();
    let answer = json!({
        "KeyId": ARN,
        "Signature": BASE64_STANDARD.encode(output.stdout),
        "SigningAlgorithm": asked["SigningAlgorithm"],
    });
    Some((200, answer.to_string().into_bytes()))
}

/// What the signature of a request must be, from the request as it arrived.
fn authorized(request: &Seen) -> Result<(), String> {
    let header = |name: &str| request.headers.get(name).cloned().ok_or(format!("no {name}"));
    let authorization = header("authorization")?;
    let field = |name: &str| {
        let (_, rest) = authorization.split_once(&format!("{name}=")).ok_or(format!("no {name}"))?;
        Ok::<_, String>(rest.split(',').next().unwrap_or_default().to_owned())
    };
    let (credential, names, signature) = (field("Credential")?, field("SignedHeaders")?, field("Signature")?);
    let (access, scope) = credential.split_once('/').ok_or("no scope")?;
    let now = header("x-amz-date")?;
    if access != ACCESS || scope != format!("{}/eu-central-1/kms/aws4_request", &now[..8]) {
        return Err(format!("credential {credential}"));
    }
    if header("x-amz-target")? != "TrentService.Sign" {
        return Err("another operation".to_owned());
    }
    // Everything that matters must be among what is signed.
    for name in ["host", "x-amz-date", "x-amz-target"] {
        if !names.split(';').any(|signed| signed == name) {
            return Err(format!("{name} is not signed"));
        }
    }
    if request.headers.get("x-amz-security-token").is_some_and(|token| token != TOKEN) {
        return Err("another session".to_owned());
    }
    let mut canonical = "POST\n/\n\n".to_owned();
    for name in names.split(';') {
        canonical += &format!("{name}:{}\n", header(name)?);
    }
    let sha256 = |bytes: &[u8]| hex::encode(digest::digest(&digest::SHA256, bytes));
    canonical += &format!("\n{names}\n{}", sha256(&request.body));
    let text = format!("AWS4-HMAC-SHA256\n{now}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let mac = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let mut key = mac(format!("AWS4{SECRET}").as_bytes(), &now[..8]);
    for part in ["eu-central-1", "kms", "aws4_request", &text] {
        key = mac(key.as_ref(), part);
    }
    if hex::encode(key) == signature { Ok(()) } else { Err("the signature does not match".to_owned()) }
}
