//! Promise: a client that demands an accepted build talks TLS to an enclave
//! of that build and to nobody else, whatever certificate is shown to it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a broken fixture ends the test

mod support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use ::rustls::pki_types::{ServerName, UnixTime};
use ::rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use ::rustls::sign::CertifiedKey;
use ::rustls::time_provider::TimeProvider;
use ::rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, HandshakeKind, ServerConfig,
    ServerConnection,
};
use attestation::binding::Purpose;
use attestation::rustls::certificate::Wrapped;
use attestation::rustls::client::cause;
use attestation::rustls::server::RENEWAL;
use attestation::rustls::{AttestedServerVerifier, EnclaveIdentity, EvidenceError, ServerError, session};
use attestation::{Clock, Pcr, Policy, TrustAnchors};
use support::encode::{NULL, bits, bstr, der, oid, sequence, time, uint};
use support::signer::{Certificate, Fixture, LEAF, ROOT, SIGNED_AT, at, extension, name};

/// PCR0 of the honest fixture.
const PCR0: Pcr = [0xa0; 48];
const CMW: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 1, 35];

/// A Nitro machine: signs documents under one root.
struct Machine {
    fixture: Fixture,
    root: Vec<u8>,
}

impl Machine {
    fn new() -> Self {
        let mut fixture = Fixture::honest();
        let issuers: Vec<_> = fixture.certificates[..LEAF].iter().map(Certificate::der).collect();
        let root = issuers[ROOT].clone();
        fixture.bundle = Some(issuers);
        fixture.set("nonce", vec![NULL]);
        Self { fixture, root }
    }

    fn sign(&mut self, user_data: &[u8], nonce: Option<&[u8]>) -> Vec<u8> {
        self.fixture.set("user_data", bstr(user_data));
        self.fixture.set("nonce", nonce.map_or(vec![NULL], bstr));
        self.fixture.document()
    }

    /// An enclave that serves TLS.
    fn enclave(&mut self) -> Arc<EnclaveIdentity> {
        let identity = EnclaveIdentity::generate().unwrap();
        let document = self.certificate_document(&identity);
        identity.install(&document).unwrap();
        Arc::new(identity)
    }

    fn certificate_document(&mut self, identity: &EnclaveIdentity) -> Vec<u8> {
        self.sign(&identity.binding(Purpose::TlsCertificate).to_bytes(), None)
    }

    fn client(&self, policy: Policy) -> AttestedServerVerifier {
        AttestedServerVerifier::new(TrustAnchors::from_der([&self.root]).unwrap(), policy)
    }
}

fn accepted() -> Policy {
    Policy::pcrs([(0, PCR0)]).unwrap()
}

/// Stands still, some seconds after signing.
#[derive(Debug)]
struct Still(i64);

impl TimeProvider for Still {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs((SIGNED_AT + self.0).unsigned_abs())))
    }
}

/// Both ends of a connection, the bytes carried by hand.
struct Pair {
    client: ClientConnection,
    server: ServerConnection,
}

impl Pair {
    fn new(client: impl Into<Arc<ClientConfig>>, server: impl Into<Arc<ServerConfig>>) -> Self {
        let name = ServerName::try_from("any.name.will.do").unwrap();
        let client = ClientConnection::new(client.into(), name).unwrap();
        Self { client, server: ServerConnection::new(server.into()).unwrap() }
    }

    /// Carries bytes until both are content or one objects.
    fn carry(&mut self) -> Result<(), ::rustls::Error> {
        while self.client.wants_write() || self.server.wants_write() {
            let mut bytes = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut bytes).unwrap();
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                self.server.read_tls(&mut rest).unwrap();
                self.server.process_new_packets()?;
            }
            let mut bytes = Vec::new();
            while self.server.wants_write() {
                self.server.write_tls(&mut bytes).unwrap();
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                self.client.read_tls(&mut rest).unwrap();
                self.client.process_new_packets()?;
            }
        }
        Ok(())
    }

    fn say(&mut self, text: &[u8]) -> Vec<u8> {
        self.client.writer().write_all(text).unwrap();
        self.carry().unwrap();
        let mut heard = vec![0; text.len()];
        self.server.reader().read_exact(&mut heard).unwrap();
        heard
    }

    fn certificate(&self) -> Vec<u8> {
        self.client.peer_certificates().unwrap()[0].to_vec()
    }
}

/// `accepted`, or the code with which the client refuses.
fn verdict(client: AttestedServerVerifier, age: i64, server: impl Into<Arc<ServerConfig>>) -> &'static str {
    let client = client.client_config_at(Arc::new(Still(age))).unwrap();
    match Pair::new(client, server).carry() {
        Ok(()) => "accepted",
        Err(::rustls::Error::InvalidCertificate(CertificateError::BadSignature)) => "bad signature",
        Err(::rustls::Error::General(reason)) if reason.contains("no server certificate") => {
            "nothing to show"
        }
        Err(error) => cause(&error).map_or_else(|| panic!("{error}"), EvidenceError::code),
    }
}

/// Shows `certificate` and signs with `key`, whether they belong together or not.
#[derive(Debug)]
struct Impostor(Arc<CertifiedKey>);

impl ResolvesServerCert for Impostor {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A server that shows `certificate` and holds the key of `identity`.
fn showing(identity: &EnclaveIdentity, certificate: Vec<u8>) -> ServerConfig {
    let mut config = Arc::new(EnclaveIdentity::generate().unwrap()).server_config().unwrap();
    // A key is shown only with a certificate, so it gets one.
    let document = Machine::new().certificate_document(identity);
    identity.install(&document).unwrap();
    let key = certified(identity).key.clone();
    config.cert_resolver = Arc::new(Impostor(Arc::new(CertifiedKey::new(vec![certificate.into()], key))));
    config
}

/// What `identity` serves to anyone who asks.
fn certified(identity: &EnclaveIdentity) -> Arc<CertifiedKey> {
    let config = Machine::new().client(accepted()).client_config().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from("a").unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut bytes.as_slice()).unwrap();
    identity.resolve(acceptor.accept().unwrap().unwrap().client_hello()).expect("something is installed")
}

#[test]
fn a_client_talks_to_an_enclave_of_an_accepted_build() {
    let mut machine = Machine::new();
    let enclave = machine.enclave();
    let verifier = machine.client(accepted());
    let config = verifier.clone().client_config_at(Arc::new(Still(1))).unwrap();
    let mut pair = Pair::new(config, enclave.server_config().unwrap());
    pair.carry().unwrap();
    assert_eq!(pair.say(b"question"), b"question");
    let certificate = pair.certificate();
    let verified = verifier.verify(&certificate, Clock::At(at(SIGNED_AT + 1))).unwrap();
    assert_eq!((verified.pcr(0), verified.build()), (Some(&PCR0), Some(0)));
}

#[test]
fn every_connection_is_a_full_handshake() {
    let mut machine = Machine::new();
    let server = Arc::new(machine.enclave().server_config().unwrap());
    let client = Arc::new(machine.client(accepted()).client_config_at(Arc::new(Still(1))).unwrap());
    for _ in 0..2 {
        let mut pair = Pair::new(client.clone(), server.clone());
        pair.carry().unwrap();
        pair.say(b"tickets would arrive by now");
        assert_eq!(pair.client.handshake_kind(), Some(HandshakeKind::Full));
        let version = Connection::from(pair.client).protocol_version();
        assert_eq!(version, Some(::rustls::ProtocolVersion::TLSv1_3));
    }
}

#[test]
fn the_policy_decides_about_the_server() {
    let mut machine = Machine::new();
    let server = Arc::new(machine.enclave().server_config().unwrap());
    let other = Policy::pcrs([(0, [1; 48])]).unwrap();
    let either = Policy::pcrs([(0, [1; 48])]).unwrap().or_pcrs([(0, PCR0)]).unwrap();
    let patient = accepted().max_age(Duration::from_secs(1000));
    for (policy, age, expected) in [
        (accepted(), 1, "accepted"),
        (accepted(), 300, "accepted"),
        (accepted(), 301, "time.stale"),
        (patient.clone(), 1000, "accepted"),
        (patient.max_age(Duration::MAX), 9000, "chain.expired"),
        (accepted(), -301, "time.future"),
        (other, 1, "policy.pcr-mismatch"),
        (either, 1, "accepted"),
        (accepted().nonce([7; 32]), 1, "accepted"),
        (accepted().user_data([7; 32]), 1, "policy.user-data"),
    ] {
        assert_eq!(verdict(machine.client(policy), age, server.clone()), expected, "at {age} s");
    }
    let stranger = AttestedServerVerifier::new(TrustAnchors::aws_g1(), accepted());
    assert_eq!(verdict(stranger, 1, server), "chain.untrusted-root");
}

#[test]
fn a_stolen_document_or_certificate_is_of_no_use() {
    let mut machine = Machine::new();
    let enclave = machine.enclave();
    let certificate = certified(&enclave).cert[0].to_vec();
    let document = Wrapped::parse(&certificate).unwrap().document.to_vec();

    // The whole certificate, without its key.
    let keyless = showing(&EnclaveIdentity::generate().unwrap(), certificate);
    assert_eq!(verdict(machine.client(accepted()), 1, keyless), "bad signature");
    // The document in a certificate for another key, which its holder can use.
    let thief = machine.enclave();
    let key_info = Wrapped::parse(&certified(&thief).cert[0]).unwrap().key_info.to_vec();
    let forged = wrapping(&key_info, &[cmw(&record(&document))]);
    assert_eq!(verdict(machine.client(accepted()), 1, showing(&thief, forged)), "tls.binding");
    // A document of an accepted enclave that says nothing, or something else.
    for user_data in [&b""[..], b"hello", &enclave.binding(Purpose::TlsSession).to_bytes()] {
        let document = machine.sign(user_data, None);
        let key_info = Wrapped::parse(&certified(&enclave).cert[0]).unwrap().key_info.to_vec();
        let certificate = wrapping(&key_info, &[cmw(&record(&document))]);
        let server = showing(&enclave, certificate);
        assert_eq!(verdict(machine.client(accepted()), 1, server), "tls.binding");
    }
}

#[test]
fn only_one_form_of_certificate_is_read() {
    let mut machine = Machine::new();
    let enclave = machine.enclave();
    let certificate = certified(&enclave).cert[0].to_vec();
    let Wrapped { key_info, document } = Wrapped::parse(&certificate).unwrap();
    let good = cmw(&record(document));
    let bytes = |head: &[u8], tail: &[u8]| [head, &bstr(document), tail].concat();
    let p384 = support::signer::ec_key(support::signer::P384, &[4; 97]);
    let cases: [(&str, Vec<u8>, &str); 16] = [
        ("as the server writes it", wrapping(key_info, std::slice::from_ref(&good)), "accepted"),
        ("critical", wrapping(key_info, &[extension(CMW, true, &der(4, &record(document)))]), "accepted"),
        ("no indicator", wrapping(key_info, &[cmw(&bytes(&[0x82, 18], &[]))]), "accepted"),
        ("twice", wrapping(key_info, &[good.clone(), good.clone()]), "tls.evidence-form"),
        (
            "other extensions only",
            wrapping(key_info, &[extension(&[0x55, 29, 14], false, &[4, 0])]),
            "tls.no-evidence",
        ),
        ("no extension", wrapping(key_info, &[]), "tls.no-evidence"),
        (
            "JSON",
            wrapping(key_info, &[extension(CMW, false, &der(0x0c, &record(document)))]),
            "tls.evidence-form",
        ),
        ("bytes after", wrapping(key_info, &[cmw(&bytes(&[0x83, 18], &[4, 0]))]), "tls.evidence-form"),
        ("another type", wrapping(key_info, &[cmw(&bytes(&[0x83, 17], &[4]))]), "tls.evidence-form"),
        (
            "a result, not evidence",
            wrapping(key_info, &[cmw(&bytes(&[0x83, 18], &[8]))]),
            "tls.evidence-form",
        ),
        ("long head", wrapping(key_info, &[cmw(&bytes(&[0x83, 0x18, 18], &[4]))]), "tls.evidence-form"),
        ("one member", wrapping(key_info, &[cmw(&[0x81, 18])]), "tls.evidence-form"),
        ("empty", wrapping(key_info, &[cmw(&[])]), "tls.evidence-form"),
        ("another curve", wrapping(&p384, std::slice::from_ref(&good)), "tls.key"),
        (
            "bytes follow",
            [wrapping(key_info, std::slice::from_ref(&good)), vec![0]].concat(),
            "tls.certificate",
        ),
        ("nothing", Vec::new(), "tls.certificate"),
    ];
    for (case, certificate, expected) in cases {
        let verdict = machine.client(accepted()).verify(&certificate, Clock::At(at(SIGNED_AT + 1))).map(drop);
        assert_eq!(verdict.map_or_else(|error| error.code(), |()| "accepted"), expected, "{case}");
    }
    for length in 0..certificate.len() {
        assert!(Wrapped::parse(&certificate[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn an_enclave_without_a_document_serves_nobody() {
    let identity = Arc::new(EnclaveIdentity::generate().unwrap());
    let machine = Machine::new();
    assert_eq!(verdict(machine.client(accepted()), 1, identity.server_config().unwrap()), "nothing to show");
}

#[test]
fn only_a_document_for_its_own_key_is_installed_and_the_old_one_stays() {
    let mut machine = Machine::new();
    let enclave = machine.enclave();
    let before = certified(&enclave).cert.clone();
    let other = machine.enclave();
    let foreign = machine.certificate_document(&other);
    assert!(matches!(enclave.install(&foreign), Err(ServerError::Binding)));
    let silent = machine.sign(b"", None);
    assert!(matches!(enclave.install(&silent), Err(ServerError::Binding)));
    assert!(matches!(enclave.install(b"nothing"), Err(ServerError::Document(_))));
    assert_eq!(certified(&enclave).cert, before);
    let next = machine.certificate_document(&enclave);
    enclave.install(&next).unwrap();
    assert_ne!(certified(&enclave).cert, before);
}

#[test]
fn renewal_is_due_by_the_certificate_of_the_chain_that_ends_first() {
    for issuer in ROOT..LEAF {
        let mut machine = Machine::new();
        machine.fixture.certificates[issuer].not_after = SIGNED_AT + 100;
        let issuers = machine.fixture.certificates[..LEAF].iter().map(Certificate::der).collect();
        machine.fixture.bundle = Some(issuers);
        let identity = EnclaveIdentity::generate().unwrap();
        let document = machine.certificate_document(&identity);
        assert_eq!(identity.install(&document).unwrap(), Duration::from_secs(50), "cabundle[{issuer}]");
    }
}

#[test]
fn renewal_is_due_after_two_minutes_or_half_of_what_is_left() {
    let mut machine = Machine::new();
    let identity = EnclaveIdentity::generate().unwrap();
    for (left, expected) in
        [(7200, RENEWAL), (240, RENEWAL), (100, Duration::from_secs(50)), (0, Duration::from_secs(1))]
    {
        machine.fixture.certificates[LEAF].not_after = SIGNED_AT + left;
        let document = machine.certificate_document(&identity);
        assert_eq!(identity.install(&document).unwrap(), expected, "{left} s are left");
    }
    machine.fixture.set("timestamp", uint(((SIGNED_AT + 7200) as u64) * 1000));
    let late = machine.certificate_document(&identity);
    assert_eq!(identity.install(&late).unwrap(), Duration::from_secs(1), "past its chain");
}

#[test]
fn a_session_document_is_of_this_session_only() {
    let mut machine = Machine::new();
    let enclave = machine.enclave();
    let verifier = machine.client(accepted());
    let server = Arc::new(enclave.server_config().unwrap());
    let client = Arc::new(verifier.clone().client_config_at(Arc::new(Still(1))).unwrap());
    let clock = Clock::At(at(SIGNED_AT + 1));
    let open = || {
        let mut pair = Pair::new(client.clone(), server.clone());
        pair.carry().unwrap();
        pair
    };
    let (here, elsewhere) = (open(), open());
    let challenge = session::challenge().unwrap();
    let nonce = session::nonce(&here.client, &challenge).unwrap();
    assert_eq!(session::nonce(&here.server, &challenge).unwrap(), nonce, "both sides agree");

    let bound = enclave.binding(Purpose::TlsSession).to_bytes();
    let document = machine.sign(&bound, Some(&session::nonce(&here.server, &challenge).unwrap()));
    let judge = |document: &[u8]| {
        let verdict = verifier.verify_session(&here.certificate(), document, nonce, clock).map(drop);
        verdict.map_or_else(|error| error.code(), |()| "accepted")
    };
    assert_eq!(judge(&document), "accepted");
    let relayed = session::nonce(&elsewhere.server, &challenge).unwrap();
    assert_eq!(judge(&machine.sign(&bound, Some(&relayed))), "policy.nonce-mismatch");
    assert_eq!(judge(&machine.sign(&bound, None)), "policy.nonce-missing");
    let purpose = enclave.binding(Purpose::TlsCertificate).to_bytes();
    assert_eq!(judge(&machine.sign(&purpose, Some(&nonce))), "tls.binding");
    let thief = EnclaveIdentity::generate().unwrap().binding(Purpose::TlsSession).to_bytes();
    assert_eq!(judge(&machine.sign(&thief, Some(&nonce))), "tls.binding");

    let answer = session::answer(&document).unwrap();
    assert_eq!(session::answer_length([answer[0], answer[1]]), Some(document.len()));
    assert_eq!(session::answer(&[0; 16 * 1024 + 1]), None);
    assert_eq!([[0, 0], [0x40, 1]].map(session::answer_length), [None, None]);
}

fn record(document: &[u8]) -> Vec<u8> {
    [&[0x83, 18], bstr(document).as_slice(), &[4]].concat()
}

fn cmw(record: &[u8]) -> Vec<u8> {
    extension(CMW, false, &der(4, record))
}

/// A certificate of this test's own making; its signature is nonsense, which
/// nobody may rely upon anyway.
fn wrapping(key_info: &[u8], extensions: &[Vec<u8>]) -> Vec<u8> {
    let algorithm = sequence(&[&oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2])]);
    let listed = match extensions {
        [] => Vec::new(),
        list => der(0xa3, &der(0x30, &list.concat())),
    };
    let validity = sequence(&[&time(SIGNED_AT), &time(SIGNED_AT + 60)]);
    let body = sequence(&[
        &[0xa0, 3, 2, 1, 2],
        &[2, 1, 9],
        &algorithm,
        &name("thief"),
        &validity,
        &name("thief"),
        key_info,
        &listed,
    ]);
    sequence(&[&body, &algorithm, &bits(&[1, 2, 3])])
}
