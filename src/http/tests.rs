use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use wire::{AttestationAnswer, AttestationOutcome, AttestationRequest};

use super::*;
use crate::attestation::{self, Agents as _};
use crate::enclave::session::{Conversation, SessionError};

/// An agent whose module takes no time: what is left is the way to it.
struct Instantly;

impl attestation::Agents for Instantly {
    type Stream = DuplexStream;

    async fn dial(&self) -> Result<Conversation<DuplexStream>, SessionError> {
        let (near, far) = tokio::io::duplex(16 * 1024);
        tokio::spawn(async move {
            let mut shim = Conversation::over(far);
            while let Ok(AttestationRequest { nonce }) = shim.receive().await {
                // As long as a real document.
                let mut document = vec![0; 4600];
                document[..nonce.len()].copy_from_slice(&nonce);
                let outcome = AttestationOutcome::Document(document.into());
                let answer = AttestationAnswer { outcome, nsm_us: 1 };
                if shim.send(&answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Conversation::over(near))
    }
}

/// An agent that hears every request and answers none.
struct Never;

impl attestation::Agents for Never {
    type Stream = DuplexStream;

    async fn dial(&self) -> Result<Conversation<DuplexStream>, SessionError> {
        let (near, far) = tokio::io::duplex(16 * 1024);
        tokio::spawn(async move {
            let mut shim = Conversation::over(far);
            while let Ok(AttestationRequest { .. }) = shim.receive().await {}
        });
        Ok(Conversation::over(near))
    }
}

/// An agent that signs nothing, for this reason.
struct Refuses {
    busy: bool,
}

impl attestation::Agents for Refuses {
    type Stream = DuplexStream;

    async fn dial(&self) -> Result<Conversation<DuplexStream>, SessionError> {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let outcome = AttestationOutcome::Refused { cause: "a reason".into(), busy: self.busy };
        tokio::spawn(async move {
            let mut shim = Conversation::over(far);
            while let Ok(AttestationRequest { .. }) = shim.receive().await {
                let answer = AttestationAnswer { outcome: outcome.clone(), nsm_us: 0 };
                if shim.send(&answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Conversation::over(near))
    }
}

async fn serving() -> (SocketAddr, CancellationToken) {
    serving_from(Instantly).await
}

async fn serving_from<A>(agents: A) -> (SocketAddr, CancellationToken)
where
    A: attestation::Agents<Stream = DuplexStream> + Send + 'static,
{
    let mut registry = Registry::default();
    let (attestation, requests) = attestation::queue(attestation::Metrics::register(&mut registry));
    let status = Status { phase: "serving", ready: true, attests: true, leaving: false };
    let pages = Pages {
        status: watch::Sender::new(status).subscribe(),
        pulse: watch::Sender::new(true).subscribe(),
        registry: Arc::new(registry),
        attestation,
        timeline: Arc::new(Timeline::start()),
        debug: false,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    tokio::spawn(requests.serve(agents, stop.clone()));
    tokio::spawn(serve(listener, None, pages, stop.clone()));
    (address, stop)
}

/// Microseconds of the middle of `calls` requests on one kept connection.
async fn median(address: SocketAddr, path: &'static str, calls: u32) -> f64 {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.set_nodelay(true).unwrap();
    let mut took = Vec::new();
    let mut answer = vec![0; 64 * 1024];
    for number in 0..calls {
        let target = path.replace("NONCE", &format!("{number:08x}"));
        let request = format!("GET {target} HTTP/1.1\r\nHost: relay\r\nAccept: application/cbor\r\n\r\n");
        let begun = Instant::now();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut held = 0;
        loop {
            held += client.read(&mut answer[held..]).await.unwrap();
            let text = String::from_utf8_lossy(&answer[..held.min(1024)]).to_ascii_lowercase();
            let Some(head) = text.find("\r\n\r\n") else { continue };
            assert!(text.starts_with("http/1.1 200"), "{text}");
            let length = text.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
            if held >= head + 4 + length.parse::<usize>().unwrap() {
                break;
            }
        }
        took.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    took.sort_by(f64::total_cmp);
    took[took.len() / 2]
}

/// Microseconds of the middle of `calls` answers that the agent gives to whoever
/// talks to it directly.
async fn agents_own(calls: u32) -> f64 {
    let mut agent = Instantly.dial().await.unwrap();
    let mut took = Vec::new();
    for number in 0..calls {
        let begun = Instant::now();
        agent.send(&AttestationRequest { nonce: number.to_be_bytes().to_vec().into() }).await.unwrap();
        let AttestationAnswer { outcome, .. } = agent.receive().await.unwrap();
        assert!(matches!(outcome, AttestationOutcome::Document(_)));
        took.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    took.sort_by(f64::total_cmp);
    took[took.len() / 2]
}

/// What the relay adds to the agent's own answer: HTTP over loopback, queue,
/// worker. The promise is for an optimised build and 100 us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_adds_few_microseconds_at_the_median() {
    let most = if cfg!(debug_assertions) { 250.0 } else { 100.0 };
    let (address, stop) = serving().await;
    let mut added = Vec::new();
    for _ in 0..8 {
        let own = tokio::spawn(agents_own(200)).await.unwrap();
        let relayed = tokio::spawn(median(address, "/v1/attestation?nonce=NONCE", 200)).await.unwrap();
        added.push((relayed - own, relayed));
    }
    stop.cancel();
    added.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (least, whole) = added[0];
    println!("added {least:.0} us, request to answer {whole:.0} us, of 8 rounds: {added:.0?}");
    // In the best round, which other tests on these cores disturbed least.
    assert!(least <= most, "{added:.0?}");
}

/// What a client that says `beginning` and then nothing gets, and when.
async fn slowly(address: SocketAddr, beginning: &str) -> (String, Duration) {
    let begun = tokio::time::Instant::now();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(beginning.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end too.
    let _ = client.read_to_end(&mut answer).await;
    (String::from_utf8_lossy(&answer).into_owned(), begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_let_go_in_time_and_others_are_served_meanwhile() {
    let (address, stop) = serving().await;
    for (beginning, answer) in [
        ("", ""),
        ("GET /read", ""),
        ("GET /readyz HTTP/1.1\r\nHost: x\r\n", ""),
        ("POST /v1/attestation HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{", "HTTP/1.1 408 "),
    ] {
        let slow = tokio::spawn(slowly(address, beginning));
        let quick = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let (answered, took) = slowly(address, quick).await;
        assert!(answered.starts_with("HTTP/1.1 200 ") && took < HEAD_WITHIN, "{answered} after {took:?}");
        let (told, took) = slow.await.unwrap();
        assert!(told.starts_with(answer), "{beginning:?}: {told}");
        assert!(took >= HEAD_WITHIN && took < 3 * HEAD_WITHIN, "{beginning:?}: {took:?}");
    }
    stop.cancel();
}

/// The answer to one request, its head in lower case.
async fn answered(address: SocketAddr, head: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut client = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let head = format!("{head}Host: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let body = answer.split_off(end + 4);
    (String::from_utf8(answer).unwrap().to_ascii_lowercase(), body)
}

const POST: &str = "POST /v1/attestation HTTP/1.1\r\n";

#[tokio::test]
async fn a_posted_nonce_is_answered_in_json_or_as_the_document_itself() {
    let (address, stop) = serving().await;
    for body in [&br#"{"nonce": "c0ffee"}"#[..], br#"{"nonce_base64": "wP/u"}"#] {
        for accept in ["", "Accept: application/json\r\n", "Accept: text/html, */*;q=0.8\r\n"] {
            let (head, answer) = answered(address, &format!("{POST}{accept}"), body).await;
            assert!(head.starts_with("http/1.1 200 "), "{head}");
            assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
            assert!(head.contains("\r\ncache-control: no-store\r\n"), "{head}");
            let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
            let document = STANDARD.decode(answer["document"].as_str().unwrap()).unwrap();
            assert_eq!((document.len(), &document[..4]), (4600, &b"\xc0\xff\xee\0"[..]));
        }
        for accept in ["application/cbor", "application/json;q=0.5, application/cose; q=1"] {
            let (head, document) = answered(address, &format!("{POST}Accept: {accept}\r\n"), body).await;
            assert!(head.starts_with("http/1.1 200 "), "{head}");
            assert!(head.contains("\r\ncontent-type: application/cbor\r\n"), "{head}");
            assert_eq!((document.len(), &document[..4]), (4600, &b"\xc0\xff\xee\0"[..]));
        }
    }
    stop.cancel();
}

#[tokio::test]
async fn a_posted_request_has_at_most_4_kib() {
    let (address, stop) = serving().await;
    let request = |length: usize| format!("{:<length$}", r#"{"nonce": "c0ffee"}"#).into_bytes();
    let (head, _) = answered(address, POST, &request(4096)).await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let (head, reason) = answered(address, POST, &request(4097)).await;
    assert!(head.starts_with("http/1.1 413 "), "{head}");
    let reason: serde_json::Value = serde_json::from_slice(&reason).unwrap();
    assert_eq!(reason["error"], "a request has at most 4096 bytes");
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_costs_a_client_five_seconds_and_not_the_listener() {
    let (address, stop) = serving_from(Never).await;
    let begun = tokio::time::Instant::now();
    let (head, reason) = answered(address, POST, br#"{"nonce": "c0ffee"}"#).await;
    let took = begun.elapsed();
    assert!(head.starts_with("http/1.1 504 "), "{head}");
    let reason: serde_json::Value = serde_json::from_slice(&reason).unwrap();
    assert_eq!(reason["error"], "the document did not come in time");
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(6), "{took:?}");
    let (head, _) = answered(address, "GET /healthz HTTP/1.1\r\n", b"").await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    stop.cancel();
}

#[tokio::test]
async fn an_agent_that_is_busy_is_worth_another_try_and_one_that_refuses_is_not() {
    for (busy, status, retry) in [(true, "503", true), (false, "502", false)] {
        let (address, stop) = serving_from(Refuses { busy }).await;
        let (head, reason) = answered(address, POST, br#"{"nonce": "c0ffee"}"#).await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        assert_eq!(head.contains("\r\nretry-after: 1\r\n"), retry, "{head}");
        assert!(String::from_utf8_lossy(&reason).contains("a reason"));
        stop.cancel();
    }
}
