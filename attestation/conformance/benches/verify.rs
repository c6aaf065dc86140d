//! Verifications a second on one core, beside the same work done by the
//! libraries that others build upon: coset for the envelope, nsm-api (which
//! is serde_cbor) for the payload, webpki and ring for the signatures.
//!
//! `cargo bench --manifest-path attestation/conformance/Cargo.toml [-- SECONDS]`
//!
//! Counted is the thread's processor time. All rows are measured in turns,
//! round after round, and the best round counts: whatever else runs on the
//! machine hits all alike. The peers check less (no keyUsage, order, identity, policy or CBOR form).

#[path = "../../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use attestation::{Clock, Policy, TrustAnchors, Untrusted, Verifier};
use aws_nitro_enclaves_nsm_api::api::AttestationDoc;
use coset::{CborSerializable, CoseSign1};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use support::signer::{Certificate, Fixture, LEAF};
use support::vector;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// The smallest, a usual and the largest genuine document.
const DOCUMENTS: [&str; 3] =
    ["anjuna-2021-03-minimal", "turnkey-2026-06-indef-pcr32", "blocky-2024-09-max1024"];
const ROUNDS: u32 = 8;
const LEAVES: usize = 256;
/// Rows that others are compared with.
const FULL: usize = 0;
const PARSE: usize = 4;
const CHAINS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// Label, the row that it is compared with, and what is measured.
type Work<'a> = (&'a str, usize, Box<dyn Fn() -> anyhow::Result<()> + 'a>);

fn main() -> anyhow::Result<()> {
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(4.0);
    for name in DOCUMENTS {
        let Some(document) = vector(name) else { return Ok(()) };
        println!("{name}, {} bytes", document.len());
        let work = work(&document);
        let best = measure(&work, Duration::from_secs_f64(seconds))?;
        for ((label, beside, _), time) in work.iter().zip(&best) {
            let (rate, micros) = (1.0 / time, time * 1e6);
            let factor = best.get(*beside).context("no such row")? / time;
            println!("  {label:<50} {rate:>9.0}/s {micros:>9.1} us   x {factor:.2}");
        }
    }
    let micros = new_leaf()? * 1e6;
    println!("a test signer's, {} documents of leaves not seen before", LEAVES * ROUNDS as usize);
    println!(
        "  {:<50} {:>9.0}/s {micros:>9.1} us",
        "attestation: issuers remembered, two signatures",
        1e6 / micros
    );
    Ok(())
}

/// Seconds for a document of known issuers whose leaf is new, in the best round.
fn new_leaf() -> anyhow::Result<f64> {
    let mut fixture = Fixture::honest();
    let issuers: Vec<_> = fixture.certificates[..LEAF].iter().map(Certificate::der).collect();
    let anchors = TrustAnchors::from_der(issuers.get(..1).unwrap_or_default())?;
    fixture.bundle = Some(issuers);
    // Each document is built with a leaf of its own.
    let documents: Vec<_> = (0..=LEAVES).map(|_| fixture.document()).collect();
    let [first, others @ ..] = documents.as_slice() else { return Err(anyhow!("no documents")) };
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let capacity = NonZeroUsize::MIN.saturating_add(2 * LEAVES);
        let verifier = Verifier::new(anchors.clone(), lenient()).with_chain_cache(capacity);
        verifier.verify(first, Clock::DocumentTime)?;
        let begun = cpu_time();
        for document in others {
            verifier.verify(black_box(document), Clock::DocumentTime)?;
        }
        best = best.min((cpu_time() - begun) / others.len() as f64);
    }
    Ok(best)
}

fn work(document: &[u8]) -> Vec<Work<'_>> {
    let plain = Verifier::new(TrustAnchors::aws_g1(), lenient());
    let remembering = plain.clone().with_chain_cache(CHAINS);
    let verify = |verifier: Verifier| {
        move || Ok(verifier.verify(black_box(document), Clock::DocumentTime).map(drop)?)
    };
    vec![
        ("attestation: all five signatures", FULL, Box::new(verify(plain))),
        ("attestation: chain remembered", FULL, Box::new(verify(remembering))),
        ("coset, nsm-api, webpki: five signatures by ring", FULL, Box::new(|| peers(document, Crypto::Ring))),
        ("coset, nsm-api, webpki: the same by aws-lc-rs", FULL, Box::new(|| peers(document, Crypto::AwsLc))),
        ("attestation: parse only", PARSE, Box::new(|| Ok(Untrusted::parse(black_box(document)).map(drop)?))),
        ("coset, nsm-api: parse only", PARSE, Box::new(|| parse(document).map(drop))),
    ]
}

fn lenient() -> Policy {
    Policy::any_measurement_insecure().without_nonce_insecure().allow_debug_insecure()
}

/// Seconds of the best round of each.
fn measure(work: &[Work<'_>], whole: Duration) -> anyhow::Result<Vec<f64>> {
    let slice = whole / (ROUNDS * u32::try_from(work.len())?);
    let mut best = vec![f64::INFINITY; work.len()];
    for _ in 0..ROUNDS {
        for ((_, _, work), best) in work.iter().zip(&mut best) {
            let (start, begun, mut calls) = (Instant::now(), cpu_time(), 0u32);
            while calls == 0 || start.elapsed() < slice {
                work()?;
                calls += 1;
            }
            *best = best.min((cpu_time() - begun) / f64::from(calls));
        }
    }
    Ok(best)
}

/// Seconds that this thread has run.
fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[derive(Clone, Copy)]
enum Crypto {
    Ring,
    AwsLc,
}

fn parse(document: &[u8]) -> anyhow::Result<(CoseSign1, AttestationDoc)> {
    let envelope = CoseSign1::from_slice(black_box(document)).map_err(|error| anyhow!("{error}"))?;
    let payload = envelope.payload.as_deref().context("no payload")?;
    let fields = AttestationDoc::from_binary(payload).map_err(|error| anyhow!("{error:?}"))?;
    Ok((envelope, fields))
}

/// Root by its fingerprint, chain by webpki, signature of the document.
fn peers(document: &[u8], crypto: Crypto) -> anyhow::Result<()> {
    let (envelope, fields) = parse(document)?;
    let root = fields.cabundle.first().context("no root")?;
    let (fingerprint, algorithm): (Vec<u8>, &dyn SignatureVerificationAlgorithm) = match crypto {
        Crypto::Ring => (
            ring::digest::digest(&ring::digest::SHA256, root).as_ref().to_vec(),
            webpki::ring::ECDSA_P384_SHA384,
        ),
        Crypto::AwsLc => (
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, root).as_ref().to_vec(),
            webpki::aws_lc_rs::ECDSA_P384_SHA384,
        ),
    };
    ensure!(fingerprint == attestation::anchors::AWS_G1, "another root");
    let root = CertificateDer::from_slice(root);
    let anchors = [anchor_from_trusted_cert(&root)?];
    let issuers: Vec<_> = fields.cabundle.iter().skip(1).map(|der| CertificateDer::from_slice(der)).collect();
    let certificate = CertificateDer::from_slice(&fields.certificate);
    let leaf = EndEntityCert::try_from(&certificate)?;
    let time = UnixTime::since_unix_epoch(Duration::from_millis(fields.timestamp));
    leaf.verify_for_usage(&[algorithm], &anchors, &issuers, time, KeyUsage::client_auth(), None, None)?;
    // The point is at the end of the key's DER.
    let key = leaf.subject_public_key_info();
    let point = key.get(key.len() - 97..).context("no P-384 key")?;
    envelope.verify_signature(b"", |signature, signed| match crypto {
        Crypto::Ring => {
            ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P384_SHA384_FIXED, point)
                .verify(signed, signature)
                .map_err(|_| anyhow!("signature"))
        }
        Crypto::AwsLc => aws_lc_rs::signature::UnparsedPublicKey::new(
            &aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED,
            point,
        )
        .verify(signed, signature)
        .map_err(|_| anyhow!("signature")),
    })
}
