use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Mutex;

use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::{AttestationAnswer, AttestationOutcome, AttestationRequest};

use super::queue::{ALL, EACH};
use super::worker::Agents;
use super::*;
use crate::enclave::session::{Conversation, SessionError};

fn attestation() -> (Attestation, Requests) {
    queue(Metrics::register(&mut Registry::default()))
}

fn nonce(number: u32) -> Nonce {
    Nonce::try_from(number.to_be_bytes().to_vec()).unwrap()
}

fn client(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

#[test]
fn a_nonce_has_one_to_1024_bytes() {
    for (length, good) in [(0, false), (1, true), (1024, true), (1025, false)] {
        assert_eq!(Nonce::try_from(vec![7; length]).is_ok(), good, "{length}");
    }
}

#[test]
fn the_addresses_of_one_host_share_a_queue() {
    let client = |text: &str| Client::from(text.parse::<IpAddr>().unwrap());
    assert_eq!(client("10.0.0.1"), client("::ffff:10.0.0.1"));
    assert_ne!(client("10.0.0.1"), client("10.0.0.2"));
    assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:0:0:1"));
    assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
}

/// An NSM that takes `takes` for each document, whoever asks, and counts them.
struct Slow {
    takes: Duration,
    module: Arc<tokio::sync::Mutex<HashMap<Vec<u8>, u32>>>,
}

impl Slow {
    fn new(takes: Duration) -> Slow {
        Slow { takes, module: Arc::default() }
    }
}

impl Agents for Slow {
    type Stream = tokio::io::DuplexStream;

    async fn dial(&self) -> Result<Conversation<Self::Stream>, SessionError> {
        let (near, far) = tokio::io::duplex(4096);
        let (takes, module) = (self.takes, Arc::clone(&self.module));
        tokio::spawn(async move {
            let mut shim = Conversation::over(far);
            while let Ok(AttestationRequest { nonce }) = shim.receive().await {
                let mut signed = module.lock().await;
                tokio::time::sleep(takes).await;
                *signed.entry(nonce.to_vec()).or_default() += 1;
                drop(signed);
                let outcome = AttestationOutcome::Document(nonce);
                let nsm_us = u64::try_from(takes.as_micros()).unwrap();
                if shim.send(&AttestationAnswer { outcome, nsm_us }).await.is_err() {
                    return;
                }
            }
        });
        Ok(Conversation::over(near))
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_by_one_client_costs_another_no_more_than_three_documents_of_waiting() {
    for takes in [1, 10, 50].map(Duration::from_millis) {
        let (attestation, requests) = attestation();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(requests.serve(Slow::new(takes), stop.clone()));
        let mut flood = JoinSet::new();
        for number in 0..64 {
            let (attestation, stop) = (attestation.clone(), stop.clone());
            flood.spawn(async move {
                let (mut served, mut next) = (0, number << 16);
                let ask = async {
                    loop {
                        next += 1;
                        match attestation.document(client(1), nonce(next)).await {
                            Ok(_) => served += 1,
                            // Not even this client is starved, but it is told to wait.
                            Err(NoDocument::Full { .. }) => tokio::time::sleep(takes).await,
                            Err(NoDocument::NotRunning) => return,
                            Err(other) => panic!("{other}"),
                        }
                    }
                };
                stop.run_until_cancelled(ask).await;
                served
            });
        }
        let begun = tokio::time::Instant::now();
        let mut worst = Duration::ZERO;
        for number in 0..30 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let asked = tokio::time::Instant::now();
            let quiet = attestation.document(client(2), nonce(0xffff_0000 + number)).await;
            assert!(quiet.is_ok(), "{quiet:?}");
            worst = worst.max(asked.elapsed());
        }
        stop.cancel();
        let whole = begun.elapsed();
        serving.await.unwrap();
        let served: u32 = flood.join_all().await.into_iter().sum();
        assert!(worst <= 4 * takes, "{worst:?} with documents of {takes:?}");
        let possible = whole.as_secs_f64() / takes.as_secs_f64();
        let share = f64::from(served + 30) / possible;
        assert!(share > 0.98, "the NSM idled: {share} at {takes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_for_one_nonce_share_its_document() {
    let (attestation, requests) = attestation();
    let stop = CancellationToken::new();
    let agents = Slow::new(Duration::from_millis(10));
    let signed = Arc::clone(&agents.module);
    let serving = tokio::spawn(requests.serve(agents, stop.clone()));
    let mut clients = JoinSet::new();
    for number in 0..100 {
        let attestation = attestation.clone();
        clients.spawn(async move { attestation.document(client(number), nonce(7)).await });
    }
    for outcome in clients.join_all().await {
        assert_eq!(outcome.unwrap(), &7u32.to_be_bytes()[..]);
    }
    // What is asked later is signed anew.
    attestation.document(client(1), nonce(7)).await.unwrap();
    assert_eq!(signed.lock().await.values().copied().collect::<Vec<_>>(), [2]);
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once_says_when_to_come_back_and_keeps_its_bounds() {
    let (attestation, requests) = attestation();
    let mut waiting = JoinSet::new();
    let mut ask = |who: u32, number: u32| {
        let attestation = attestation.clone();
        waiting.spawn(async move { attestation.document(client(who), nonce(number)).await });
    };
    (0..EACH as u32).for_each(|number| ask(0, number));
    while attestation.queue.len() < EACH {
        tokio::task::yield_now().await;
    }
    let refused = attestation.document(client(0), nonce(1 << 20)).await;
    let Err(NoDocument::Full { retry_after }) = refused else { panic!("{refused:?}") };
    assert_eq!(retry_after, Duration::from_secs(1));
    // Somebody else has room until all have used it up.
    (EACH as u32..ALL as u32).for_each(|number| ask(number / 8, number));
    while attestation.queue.len() < ALL {
        tokio::task::yield_now().await;
    }
    let refused = attestation.document(client(1 << 20), nonce(1 << 21)).await;
    assert!(matches!(refused, Err(NoDocument::Full { .. })), "{refused:?}");
    // The end is told to everybody who waits, and to who comes later.
    drop(requests);
    assert_eq!(attestation.document(client(1), nonce(1 << 22)).await, Err(NoDocument::NotRunning));
    for outcome in waiting.join_all().await {
        assert_eq!(outcome, Err(NoDocument::NotRunning));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_nobody_waits_for_is_not_signed_and_a_late_one_ends() {
    let (attestation, requests) = attestation();
    let gone =
        tokio::time::timeout(Duration::from_millis(5), attestation.document(client(1), nonce(1))).await;
    assert!(gone.is_err());
    assert_eq!(attestation.document(client(1), nonce(2)).await, Err(NoDocument::Late), "nobody serves");
    let stop = CancellationToken::new();
    let agents = Slow::new(Duration::from_millis(10));
    let signed = Arc::clone(&agents.module);
    let serving = tokio::spawn(requests.serve(agents, stop.clone()));
    attestation.document(client(1), nonce(3)).await.unwrap();
    assert_eq!(signed.lock().await.len(), 1);
    stop.cancel();
    serving.await.unwrap();
}

/// Agents that answer as many requests as each of these says, then hang up.
struct Mortal {
    lives: Mutex<Vec<usize>>,
}

impl Agents for Mortal {
    type Stream = tokio::io::DuplexStream;

    async fn dial(&self) -> Result<Conversation<Self::Stream>, SessionError> {
        let answers = self.lives.lock().unwrap().pop().ok_or(SessionError::Closed)?;
        let (near, far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let mut shim = Conversation::over(far);
            for _ in 0..answers {
                let AttestationRequest { nonce } = shim.receive().await.unwrap();
                let outcome = AttestationOutcome::Document(nonce);
                shim.send(&AttestationAnswer { outcome, nsm_us: 1 }).await.unwrap();
            }
        });
        Ok(Conversation::over(near))
    }
}

#[tokio::test]
async fn a_connection_that_was_lost_while_idle_costs_no_client_its_document() {
    let (attestation, requests) = attestation();
    let stop = CancellationToken::new();
    // Taken from the end. Each of the two workers may dial first and lose one.
    let agents = Mortal { lives: Mutex::new(vec![0, 0, 1, 1, 1, 1]) };
    let serving = tokio::spawn(requests.serve(agents, stop.clone()));
    for number in 1..=4 {
        let outcome = attestation.document(client(1), nonce(number)).await;
        assert_eq!(outcome.unwrap(), &number.to_be_bytes()[..], "document {number}");
    }
    // A second loss in a row is no accident of a kept connection any more.
    assert!(matches!(attestation.document(client(1), nonce(5)).await, Err(NoDocument::Unreachable(_))));
    stop.cancel();
    serving.await.unwrap();
}
