//! What the workload may ask the security module: JSON over HTTP/1.1 on a Unix
//! socket that only its own user may use. Described in docs/attestation.md.
//!
//! ```text
//! GET  /v1/module                     the module about itself
//! POST /v1/attestation                a document with fields of the workload's choice
//! GET  /v1/pcrs/N                     a register and whether it is locked
//! POST /v1/pcrs/N/extend, …/lock      16 to 31
//! GET  /v1/random?bytes=N             from the module's generator
//! ```
//! [`request`] reads what is asked, [`answers`] asks the module.

mod answers;
mod request;

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::log::log;
use crate::nsm::Notary;
use answers::Answer;

/// Connections at once; the kernel's backlog holds the next ones.
const CONNECTIONS: usize = 64;
/// A request's head must arrive within this time, its body too, and no connection idles longer.
const WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a request: three fields of 1024 bytes in hexadecimal, and room.
const LONGEST_BODY: usize = 16 * 1024;
const BACK_OFF: Duration = Duration::from_millis(100);

/// The socket. The launcher gives it to the workload's user.
#[derive(Debug)]
pub(crate) struct Local {
    listener: UnixListener,
    path: PathBuf,
}

impl Local {
    /// Binds the socket at `path`; only its owner may connect.
    pub(crate) fn bind(path: &Path) -> io::Result<Local> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
        Ok(Local { listener, path: path.to_owned() })
    }

    /// Answers the workload until `stop`.
    pub(crate) async fn serve(self, notary: Notary, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        while let Some((stream, place)) = stop.run_until_cancelled(self.accept(&places)).await {
            let (notary, stop) = (notary.clone(), stop.clone());
            connections.spawn(async move {
                stop.run_until_cancelled(converse(stream, &notary)).await;
                drop(place);
            });
        }
        connections.close();
        connections.wait().await;
    }

    /// The next connection of the workload's own user. No error ends the listener.
    async fn accept(&self, places: &Arc<Semaphore>) -> (UnixStream, tokio::sync::OwnedSemaphorePermit) {
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(places).acquire_owned().await else { continue };
            match self.listener.accept().await {
                Ok((stream, _)) if self.is_the_workloads(&stream) => return (stream, place),
                Ok(_) => log("a process of another user asked for the workload's socket and was refused"),
                Err(error) => {
                    log(&format!("the workload's socket cannot accept, will go on trying: {error}"));
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }

    /// The file's mode says the same, but a capability may step over a mode.
    fn is_the_workloads(&self, stream: &UnixStream) -> bool {
        match (stream.peer_cred(), std::fs::metadata(&self.path)) {
            (Ok(peer), Ok(socket)) => peer.uid() == socket.uid(),
            _ => false,
        }
    }
}

async fn converse(stream: UnixStream, notary: &Notary) {
    let service = service_fn(|request| async { Ok::<_, Infallible>(respond(request, notary).await) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(WITHIN)
        .max_buf_size(LONGEST_BODY)
        .serve_connection(TokioIo::new(stream), service);
    // How a connection ends is the workload's affair.
    let _ = connection.await;
}

async fn respond(request: Request<Incoming>, notary: &Notary) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let answer = match read(body).await {
        Ok(body) => match request::parse(&head, &body) {
            Ok(wanted) => answers::answer(wanted, notary).await,
            Err(refusal) => refusal,
        },
        Err(refusal) => refusal,
    };
    let Answer { status, kind, body } = answer;
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

async fn read(body: Incoming) -> Result<Bytes, Answer> {
    match timeout(WITHIN, Limited::new(body, LONGEST_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let reason = format!("a request has at most {LONGEST_BODY} bytes");
            Err(Answer::refusal(StatusCode::PAYLOAD_TOO_LARGE, &reason))
        }
        Ok(Err(error)) => Err(Answer::refusal(StatusCode::BAD_REQUEST, &error.to_string())),
        Err(_) => Err(Answer::refusal(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nsm::fake::Fake;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Status and body of one request to a new socket of a module of its own.
    struct Agent {
        path: PathBuf,
        stop: CancellationToken,
        _directory: tempfile::TempDir,
    }

    impl Agent {
        fn start() -> Agent {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("run/agent.sock");
            let local = Local::bind(&path).unwrap();
            let stop = CancellationToken::new();
            tokio::spawn(local.serve(Notary::start(Fake::open()).unwrap(), stop.clone()));
            Agent { path, stop, _directory: directory }
        }

        async fn ask(&self, method: &str, target: &str, extra: &str, body: &str) -> (u16, Vec<u8>) {
            let mut stream = UnixStream::connect(&self.path).await.unwrap();
            let head = format!(
                "{method} {target} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Length: {}\r\n{extra}\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(body.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
            let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
            (status, answer[end + 4..].to_vec())
        }

        async fn json(&self, method: &str, target: &str, body: &Value) -> (u16, Value) {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let (status, answer) = self.ask(method, target, "", &body).await;
            (status, serde_json::from_slice(&answer).unwrap())
        }
    }

    #[tokio::test]
    async fn the_workload_chooses_every_field_of_its_document() {
        let agent = Agent::start();
        let fields = json!({ "user_data": "6161", "nonce_base64": "Yg==", "public_key": "63" });
        let (status, answer) = agent.json("POST", "/v1/attestation", &fields).await;
        assert_eq!((status, answer["document"].as_str()), (200, Some("YWF8Ynxj")), "aa|b|c");
        let accept = "Accept: application/cbor\r\n";
        let (status, raw) = agent.ask("POST", "/v1/attestation", accept, "{}").await;
        assert_eq!((status, &raw[..]), (200, &b"null|null|null"[..]));
    }

    #[tokio::test]
    async fn what_belongs_to_the_agent_is_not_signed_for_the_workload() {
        let agent = Agent::start();
        let reserved = hex::encode([&attestation::binding::RESERVED[..], &[1, 1]].concat());
        let (status, answer) = agent.json("POST", "/v1/attestation", &json!({ "user_data": reserved })).await;
        assert_eq!((status, answer["code"].as_str()), (403, Some("reserved-user-data")), "{answer}");
        let nearly = hex::encode(&attestation::binding::RESERVED[..15]);
        assert_eq!(agent.json("POST", "/v1/attestation", &json!({ "user_data": nearly })).await.0, 200);
    }

    #[tokio::test]
    async fn registers_16_to_31_are_extended_and_locked_once() {
        let agent = Agent::start();
        let data = json!({ "data": "00" });
        for index in [0, 15, 32, 99999] {
            let (status, answer) = agent.json("POST", &format!("/v1/pcrs/{index}/extend"), &data).await;
            assert_eq!((status, answer["code"].as_str()), (400, Some("pcr-index")), "{index}: {answer}");
        }
        for index in [16, 31] {
            let path = format!("/v1/pcrs/{index}");
            let (status, answer) = agent.json("POST", &format!("{path}/extend"), &data).await;
            assert_eq!(
                (status, &answer["value"], &answer["locked"]),
                (200, &"07".repeat(48).into(), &false.into())
            );
            assert_eq!(agent.json("POST", &format!("{path}/lock"), &Value::Null).await.0, 200);
            assert_eq!(agent.json("GET", &path, &Value::Null).await.1["locked"], true);
            let (status, answer) = agent.json("POST", &format!("{path}/extend"), &data).await;
            assert_eq!((status, answer["code"].as_str()), (409, Some("pcr-locked")));
            let (status, answer) = agent.json("POST", &format!("{path}/lock"), &Value::Null).await;
            assert_eq!((status, answer["code"].as_str()), (409, Some("pcr-locked")));
        }
        assert_eq!(agent.json("GET", "/v1/pcrs/0", &Value::Null).await.1["locked"], true, "any may be read");
        let module = agent.json("GET", "/v1/module", &Value::Null).await.1;
        assert_eq!((&module["digest"], &module["version"]), (&"SHA384".into(), &"1.2.3".into()));
    }

    #[tokio::test]
    async fn random_bytes_come_in_any_number_up_to_the_limit() {
        let agent = Agent::start();
        for count in [1, 32, 256, 257, 4096] {
            let (status, answer) =
                agent.json("GET", &format!("/v1/random?bytes={count}"), &Value::Null).await;
            assert_eq!((status, answer["random"].as_str().map(str::len)), (200, Some(2 * count)));
        }
        for wrong in ["bytes=0", "bytes=4097", "bytes=x", "", "bytes=1&bytes=1", "n=1"] {
            let (status, answer) = agent.json("GET", &format!("/v1/random?{wrong}"), &Value::Null).await;
            assert_eq!((status, answer["code"].as_str()), (400, Some("bad-request")), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_meant_is_refused_by_name() {
        let agent = Agent::start();
        for (body, message) in [
            (json!({ "user_data": "0g" }), "user_data"),
            (json!({ "user_data_base64": "Y" }), "user_data_base64"),
            (json!({ "nonce": "00", "nonce_base64": "AA==" }), "nonce"),
            (json!({ "userdata": "00" }), "userdata"),
            (json!({ "public_key": "" }), "public_key"),
            (json!({ "public_key": "00".repeat(1025) }), "public_key"),
            (json!([]), "object"),
        ] {
            let (status, answer) = agent.json("POST", "/v1/attestation", &body).await;
            let error = answer["error"].as_str().unwrap();
            assert!(status == 400 && error.contains(message), "{body}: {status} {error}");
        }
        assert_eq!(agent.ask("POST", "/v1/attestation", "", &" ".repeat(LONGEST_BODY + 1)).await.0, 413);
        assert_eq!(agent.ask("PUT", "/v1/attestation", "", "").await.0, 405);
        assert_eq!(agent.ask("GET", "/v1/other", "", "").await.0, 404);
        agent.stop.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_arrive_is_let_go_and_keeps_nobody_waiting() {
        let agent = Agent::start();
        let body_stops = "POST /v1/attestation HTTP/1.1\r\nHost: agent\r\nContent-Length: 2\r\n\r\n{";
        let then_idles = "GET /v1/other HTTP/1.1\r\nHost: agent\r\n\r\n";
        for (said, answered) in [
            ("", ""),
            ("GET /v1/module HT", ""),
            (body_stops, "HTTP/1.1 408 "),
            (then_idles, "HTTP/1.1 404 "),
        ] {
            let begun = tokio::time::Instant::now();
            let mut slow = UnixStream::connect(&agent.path).await.unwrap();
            slow.write_all(said.as_bytes()).await.unwrap();
            // Nothing that the module, on a thread of its own, is asked about.
            assert_eq!(agent.ask("GET", "/v1/other", "", "").await.0, 404);
            assert!(begun.elapsed() < Duration::from_secs(1), "{said:?}");
            let mut answer = Vec::new();
            timeout(Duration::from_secs(60), slow.read_to_end(&mut answer)).await.unwrap().unwrap();
            let answer = String::from_utf8(answer).unwrap();
            assert!(
                answer.starts_with(answered) && answer.is_empty() == answered.is_empty(),
                "{said:?}: {answer}"
            );
            assert!(begun.elapsed() < Duration::from_secs(11), "{said:?}: {:?}", begun.elapsed());
        }
    }

    #[tokio::test]
    async fn a_socket_of_another_user_answers_nobody() {
        let agent = Agent::start();
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: giving the socket away needs root");
            return;
        }
        nix::unistd::chown(&agent.path, Some(4711.into()), None).unwrap();
        // uid 0 gets past the file's mode, and no further.
        let mut stream = UnixStream::connect(&agent.path).await.unwrap();
        let _ = stream.write_all(b"GET /v1/module HTTP/1.1\r\nHost: agent\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
}
