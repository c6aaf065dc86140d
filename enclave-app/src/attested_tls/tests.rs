#[path = "../../../attestation/tests/support/mod.rs"]
mod support;

use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use attestation::rustls::AttestedServerVerifier;
use attestation::{Clock, Policy, TrustAnchors};
use nitro_device::nsm::{Description, NsmError, NsmErrorCode, PcrState};
use rustls::pki_types::ServerName;
use support::encode::{NULL, bstr, uint};
use support::signer::{Certificate, Fixture, LEAF, ROOT, SIGNED_AT};
use tokio::io::{DuplexStream, duplex};
use tokio_rustls::TlsConnector;

use super::*;

/// A module that signs as a Nitro machine does, until it fails.
struct Signer {
    fixture: Fixture,
    fails: Arc<Mutex<bool>>,
}

/// Documents of now, whose leaf has `left` seconds to live.
fn machine(left: i64) -> (Signer, Arc<Mutex<bool>>, TrustAnchors) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let mut fixture = Fixture::honest();
    for certificate in &mut fixture.certificates {
        certificate.not_before += now - SIGNED_AT;
        certificate.not_after += now - SIGNED_AT;
    }
    fixture.certificates[LEAF].not_after = now + left;
    let issuers: Vec<_> = fixture.certificates[..LEAF].iter().map(Certificate::der).collect();
    let anchors = TrustAnchors::from_der([&issuers[ROOT]]).unwrap();
    fixture.bundle = Some(issuers);
    let fails = Arc::new(Mutex::new(false));
    (Signer { fixture, fails: Arc::clone(&fails) }, fails, anchors)
}

impl Module for Signer {
    fn attest(&mut self, fields: &Attestation<'_>) -> Result<Vec<u8>, NsmError> {
        if *self.fails.lock().unwrap() {
            return Err(NsmError::Refused { request: "Attestation", code: NsmErrorCode::InternalError });
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        self.fixture.set("timestamp", uint(now.as_millis() as u64));
        let value = |field: Option<&[u8]>| field.map_or(vec![NULL], bstr);
        self.fixture.set("user_data", value(fields.user_data));
        self.fixture.set("nonce", value(fields.nonce));
        Ok(self.fixture.document())
    }

    fn describe(&mut self) -> Result<Description, NsmError> {
        unreachable!("nobody asks here")
    }

    fn describe_pcr(&mut self, _: u16) -> Result<PcrState, NsmError> {
        unreachable!("nobody asks here")
    }

    fn extend_pcr(&mut self, _: u16, _: &[u8]) -> Result<Vec<u8>, NsmError> {
        unreachable!("nobody asks here")
    }

    fn lock_pcr(&mut self, _: u16) -> Result<(), NsmError> {
        unreachable!("nobody asks here")
    }

    fn random(&mut self) -> Result<Vec<u8>, NsmError> {
        unreachable!("nobody asks here")
    }
}

fn tls(module: Signer, session: bool) -> Arc<AttestedTls> {
    let settings = settings::AttestedTls { ports: vec![8443], session };
    Arc::new(AttestedTls::new(&settings, Notary::start(module).unwrap()).unwrap().unwrap())
}

type Client = tokio_rustls::client::TlsStream<DuplexStream>;

/// A client that offers `protocols`, shaken hands with.
async fn connect(tls: &Arc<AttestedTls>, anchors: &TrustAnchors, protocols: &[&[u8]]) -> io::Result<Client> {
    let (near, far) = duplex(64 * 1024);
    let tls = Arc::clone(tls);
    tokio::spawn(async move {
        let Ok(mut client) = tls.accept(near).await else { return };
        let mut heard = Vec::new();
        let _ = client.read_to_end(&mut heard).await;
        let _ = client.write_all(&heard).await;
        let _ = client.shutdown().await;
    });
    let verifier = AttestedServerVerifier::new(anchors.clone(), Policy::any_measurement_insecure());
    let mut config = verifier.client_config().unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("enclave").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, far).await
}

fn certificate(client: &Client) -> Vec<u8> {
    client.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_failing_module_costs_no_client_the_certificate_that_there_is() {
    let (module, fails, anchors) = machine(3600);
    let tls = tls(module, false);
    assert!(connect(&tls, &anchors, &[]).await.is_err(), "nothing is served before the first document");
    assert_eq!(tls.certify().await, Ok(Duration::from_secs(120)));
    let first = certificate(&connect(&tls, &anchors, &[]).await.unwrap());
    assert!(tls.certify().await.is_ok());
    let second = certificate(&connect(&tls, &anchors, &[]).await.unwrap());
    assert_ne!(first, second, "a certificate is made anew");
    *fails.lock().unwrap() = true;
    let cause = tls.certify().await.unwrap_err();
    assert!(cause.contains("InternalError"), "{cause}");
    assert_eq!(certificate(&connect(&tls, &anchors, &[]).await.unwrap()), second);
}

#[tokio::test]
async fn certificates_are_made_again_before_their_chain_ends() {
    // A leaf for three seconds: due after one and a half, then sooner.
    let (module, _, anchors) = machine(3);
    let tls = tls(module, false);
    let renewing = tokio::spawn({
        let tls = Arc::clone(&tls);
        async move { tls.renew().await }
    });
    tls.serves().await;
    let (begun, first) = (Instant::now(), certificate(&connect(&tls, &anchors, &[]).await.unwrap()));
    while certificate(&connect(&tls, &anchors, &[]).await.unwrap()) == first {
        assert!(begun.elapsed() < Duration::from_secs(3), "the old one was served to its end");
        sleep(Duration::from_millis(20)).await;
    }
    renewing.abort();
}

#[tokio::test]
async fn plain_bytes_come_out_and_a_session_is_bound_where_both_sides_want_it() {
    let (module, _, anchors) = machine(3600);
    let tls = tls(module, true);
    tls.certify().await.unwrap();
    for protocols in [&[][..], &[b"http/1.1".as_slice()], &[session::ALPN]] {
        let mut client = connect(&tls, &anchors, protocols).await.unwrap();
        if protocols == [session::ALPN] {
            let challenge = session::challenge().unwrap();
            let nonce = session::nonce(client.get_ref().1, &challenge).unwrap();
            client.write_all(&challenge).await.unwrap();
            let mut head = [0; 2];
            client.read_exact(&mut head).await.unwrap();
            let mut document = vec![0; session::answer_length(head).unwrap()];
            client.read_exact(&mut document).await.unwrap();
            let verifier = AttestedServerVerifier::new(anchors.clone(), Policy::any_measurement_insecure());
            let own = certificate(&client);
            verifier.verify_session(&own, &document, nonce, Clock::System).unwrap();
        }
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"question", "{protocols:?}");
    }
}

#[tokio::test]
async fn a_client_that_stops_before_the_end_of_its_handshake_is_let_go_and_keeps_nobody_waiting() {
    let (module, _, anchors) = machine(3600);
    let tls = tls(module, true);
    tls.certify().await.unwrap();
    tokio::time::pause(); // the module, on a thread of its own, is not asked any more
    let verifier = AttestedServerVerifier::new(anchors.clone(), Policy::any_measurement_insecure());
    let config = Arc::new(verifier.client_config().unwrap());
    let mut hello = Vec::new();
    let mut client = rustls::ClientConnection::new(config, ServerName::try_from("enclave").unwrap()).unwrap();
    client.write_tls(&mut hello).unwrap();
    for said in [0, 6, hello.len() / 2, hello.len()] {
        let begun = tokio::time::Instant::now();
        let (near, mut far) = duplex(64 * 1024);
        far.write_all(&hello[..said]).await.unwrap();
        let slow = tokio::spawn({
            let tls = Arc::clone(&tls);
            async move { tls.accept(near).await.map(drop) }
        });
        connect(&tls, &anchors, &[]).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1) && !slow.is_finished(), "after {said} bytes");
        let outcome = timeout(Duration::from_secs(60), slow).await.unwrap().unwrap();
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut, "after {said} bytes");
        assert!(begun.elapsed() < Duration::from_secs(11), "after {said} bytes");
        far.read_to_end(&mut Vec::new()).await.unwrap();
    }
    // Nor is one waited for that never challenges the session that it asked for.
    let begun = tokio::time::Instant::now();
    let mut client = connect(&tls, &anchors, &[session::ALPN]).await.unwrap();
    let cut = timeout(Duration::from_secs(60), client.read(&mut [0])).await.unwrap();
    assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(begun.elapsed() < Duration::from_secs(11));
}

/// A writer that keeps the length of each write and takes all of it.
#[derive(Default)]
struct Lengths(Vec<usize>);

impl AsyncWrite for Lengths {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.push(bytes.len());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn no_write_under_tls_is_longer_than_the_cap() {
    let mut capped = Capped(Lengths::default());
    capped.write_all(&vec![7; 3 * VSOCK_WRITE_MAX + 5]).await.unwrap();
    assert_eq!(capped.0.0, [VSOCK_WRITE_MAX, VSOCK_WRITE_MAX, VSOCK_WRITE_MAX, 5]);
    assert!(!capped.is_write_vectored());
}
