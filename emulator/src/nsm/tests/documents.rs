//! Documents: shape, signature, chain, and what a verifier makes of them.

use std::time::{Duration, UNIX_EPOCH};

use attestation::{Policy, TrustAnchors, Verifier};
use aws_lc_rs::digest::{SHA384, digest};

use super::commands::attest;
use super::reading::{Document, Item, X509};
use super::{Bench, GENUINE_TIME, HandClock, MODULE, measured};
use crate::nsm::der::oid;
use crate::nsm::{Clock, Faults, Module};

const HOUR: Duration = Duration::from_secs(3600);

fn document(module: &mut Module) -> Document {
    Document::from_answer(&module.answer(&attest(None, Some(b"nonce"), None)))
}

#[test]
fn a_document_has_the_shape_of_hardware() {
    let bench = Bench::new();
    let document = document(&mut bench.module());
    assert_eq!(document.payload_bytes[0], 0xbf, "an indefinite-length map");
    assert_eq!(document.payload_bytes.last(), Some(&0xff));
    let Item::Map(entries) = &document.payload else { panic!() };
    let keys: Vec<_> = entries.iter().map(|(key, _)| key.text()).collect();
    assert_eq!(
        keys,
        [
            "module_id",
            "digest",
            "timestamp",
            "pcrs",
            "certificate",
            "cabundle",
            "public_key",
            "user_data",
            "nonce"
        ]
    );
    assert_eq!(document.payload.field("module_id").text(), MODULE);
    assert_eq!(document.payload.field("digest").text(), "SHA384");
    assert_eq!(u128::from(document.payload.field("timestamp").number()), GENUINE_TIME.as_millis());
    assert_eq!(document.payload.field("public_key"), &Item::Null);
    assert_eq!(document.payload.field("user_data"), &Item::Null);
    assert_eq!(document.payload.field("nonce").bytes(), b"nonce");
    for certificate in &document.chain {
        assert!(certificate.der.len() <= 1024, "{}: {}", certificate.common_name, certificate.der.len());
    }
}

#[test]
fn only_locked_registers_are_reported() {
    let bench = Bench::new();
    let mut module = bench.module();
    let pcrs = document(&mut module).pcrs();
    assert_eq!(pcrs.keys().copied().collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    assert_eq!(pcrs[&0], measured().pcr0);
    assert_eq!(pcrs[&1], measured().pcr1);
    assert_eq!(pcrs[&2], measured().pcr2);
    assert_eq!(pcrs[&8], measured().pcr8.unwrap());
    let instance = digest(&SHA384, &[&[0; 48], &b"i-06f4d13c6679a7232"[..]].concat());
    assert_eq!(pcrs[&4], instance.as_ref());
    for index in [3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15] {
        assert_eq!(pcrs[&index], [0; 48], "PCR{index}");
    }

    // {"LockPCR": {"index": 17}}
    module.answer(&hex::decode("a1674c6f636b504352a165696e64657811").unwrap());
    let keys: Vec<_> = document(&mut module).pcrs().keys().copied().collect();
    assert_eq!(keys, [(0..16).collect::<Vec<_>>(), vec![17]].concat());
}

#[test]
fn debug_mode_clears_the_image_but_not_the_instance() {
    let bench = Bench::new();
    let clock = Clock::from_fn(|| UNIX_EPOCH + GENUINE_TIME);
    let mut measured = measured();
    measured.role_arn = Some("arn:aws:iam::123456789012:role/test".into());
    let identity = MODULE.parse().unwrap();
    let mut module = Module::new(bench.authority.clone(), identity, &measured, true, clock);
    let pcrs = document(&mut module).pcrs();
    let set: Vec<_> = pcrs.iter().filter(|(_, value)| **value != [0; 48]).map(|(index, _)| *index).collect();
    assert_eq!(set, [3, 4]);
    let role = digest(&SHA384, &[&[0; 48], measured.role_arn.unwrap().as_bytes()].concat());
    assert_eq!(pcrs[&3], role.as_ref());
}

#[test]
fn the_chain_has_the_profile_of_hardware() {
    let bench = Bench::new();
    let chain = document(&mut bench.module()).chain;
    let span = |index: usize| (chain[index].not_before.as_str(), chain[index].not_after.as_str());
    assert_eq!(span(0), ("20260629233340Z", "20560622003340Z"), "root: 30 years and an hour");
    assert_eq!(span(1), ("20260629233340Z", "20260720003340Z"), "regional: 20 days and an hour");
    assert_eq!(span(2), ("20260629233340Z", "20260705153340Z"), "zonal: 136 hours");
    assert_eq!(span(3), ("20260630003340Z", "20260701003340Z"), "instance: a day");
    assert_eq!(span(4), ("20260630003337Z", "20260630033340Z"), "leaf: 3 hours and 3 seconds");

    let names: Vec<_> = chain.iter().map(|certificate| certificate.common_name.as_str()).collect();
    assert_eq!(names[0], "dev.nitro-enclaves");
    assert!(names[1].ends_with(".dev-local-1.dev.nitro-enclaves"), "{}", names[1]);
    assert!(names[2].ends_with(".zonal.dev-local-1.dev.nitro-enclaves"), "{}", names[2]);
    assert_eq!(names[3], "i-06f4d13c6679a7232.dev-local-1.dev.nitro-enclaves");
    assert_eq!(names[4], format!("{MODULE}.dev-local-1.aws"));
    for certificate in &chain {
        let development = b"enclave-shim DEVELOPMENT";
        let named = certificate.der.windows(development.len()).any(|window| window == development);
        assert!(named, "{} does not say that it is for development", certificate.common_name);
    }

    let extension = |index: usize, wanted: &[u8]| {
        let found = chain[index].extensions.iter().find(|(oid, ..)| oid == wanted);
        found.map(|(_, critical, value)| (*critical, value.clone()))
    };
    let constraints: Vec<_> = (0..5).map(|index| extension(index, oid::BASIC_CONSTRAINTS).unwrap()).collect();
    let expected = ["30030101ff", "30060101ff020102", "30060101ff020101", "30060101ff020100", "3000"];
    assert_eq!(constraints, expected.map(|value| (true, value.to_owned())));
    let usages: Vec<_> = (0..5).map(|index| extension(index, oid::KEY_USAGE).unwrap()).collect();
    let critical = |value: &str| (true, value.to_owned());
    assert_eq!(usages[..4], ["03020186", "03020186", "03020186", "03020204"].map(critical));
    assert_eq!(usages[4], (false, "030206c0".to_owned()));
    let with_crl: Vec<_> =
        (0..5).filter(|&index| extension(index, oid::CRL_DISTRIBUTION_POINTS).is_some()).collect();
    assert_eq!(with_crl, [1, 2]);
    assert_eq!(chain[4].extensions.len(), 2);
    // Slot, zeros, second of birth: as the genuine leaf of this module has it, 3 s apart.
    assert_eq!(hex::encode(&chain[4].serial), "019f15f1504dc31d000000006a430ee1");
}

/// Extensions of a certificate, without the values that name a key or an address.
fn extensions(certificate: &X509) -> Vec<(Vec<u8>, bool, Option<String>)> {
    let fixed = |identifier: &[u8]| [oid::BASIC_CONSTRAINTS, oid::KEY_USAGE].contains(&identifier);
    let list = certificate.extensions.iter();
    list.map(|(identifier, critical, value)| {
        (identifier.clone(), *critical, fixed(identifier).then(|| value.clone()))
    })
    .collect()
}

#[test]
fn a_genuine_document_differs_only_in_names_keys_and_values() {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/testdata");
    let directory = std::env::var("ENCLAVE_SHIM_TESTDATA").unwrap_or_else(|_| default.to_owned());
    let path = format!("{directory}/attestation/turnkey-2026-06-indef-pcr32.cbor");
    let Ok(vector) = std::fs::read(&path) else {
        eprintln!("SKIPPED: {path} is absent, so no genuine document was compared");
        return;
    };
    let genuine = Document::read(&vector);
    let bench = Bench::new();
    let ours = document(&mut bench.module());
    let keys = |document: &Document| {
        let Item::Map(entries) = &document.payload else { panic!() };
        entries.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&ours), keys(&genuine));
    assert_eq!(ours.payload_bytes[..60], genuine.payload_bytes[..60], "module_id, then digest");
    assert_eq!(ours.chain.len(), genuine.chain.len());
    for (ours, genuine) in ours.chain.iter().zip(&genuine.chain) {
        assert_eq!(extensions(ours), extensions(genuine), "{}", genuine.common_name);
        let (mine, theirs) = (ours.der.len(), genuine.der.len());
        assert!(mine.abs_diff(theirs) <= 160, "{}: {mine} bytes, {theirs} genuine", ours.common_name);
    }
    let split = |certificate: &X509| (certificate.serial[..12].to_vec(), certificate.serial.len());
    assert_eq!(split(ours.leaf()), split(genuine.leaf()), "slot and zeros of the leaf's serial");
}

#[test]
fn a_leaf_is_reused_until_it_nears_its_end() {
    let bench = Bench::new();
    let hand = HandClock::new();
    let mut module = bench.module_at(hand.clock(), false);
    let first = document(&mut module).leaf().der.clone();
    hand.advance(2 * HOUR + Duration::from_secs(54 * 60));
    assert_eq!(document(&mut module).leaf().der, first);
    hand.advance(Duration::from_secs(2 * 60));
    let second = document(&mut module).leaf().der.clone();
    assert_ne!(second, first);
    assert_eq!(document(&mut module).leaf().der, second);
}

#[test]
fn every_document_of_two_months_is_valid_to_the_end_of_its_leaf() {
    let bench = Bench::new();
    let hand = HandClock::new();
    let mut module = bench.module_at(hand.clock(), false);
    let mut regionals = std::collections::BTreeSet::new();
    for _ in 0..(60 * 24 * 2 / 11) {
        let document = document(&mut module);
        let now = compact(hand.now());
        let end = document.leaf().not_after.clone();
        for certificate in &document.chain {
            assert!(certificate.not_before <= now, "{} at {now}", certificate.common_name);
            assert!(end <= certificate.not_after, "{} at {now}", certificate.common_name);
        }
        regionals.insert(document.chain[1].common_name.clone());
        // Not a divisor of a day: issuers are met with less left than a leaf needs.
        hand.advance(11 * HOUR / 2);
    }
    assert!((4..=6).contains(&regionals.len()), "{} regional authorities in 60 days", regionals.len());
}

fn compact(moment: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(moment).unwrap().strftime("%Y%m%d%H%M%SZ").to_string()
}

#[test]
fn a_definite_map_fault_changes_only_the_form() {
    let bench = Bench::new();
    let mut module = bench.module();
    let usual = document(&mut module);
    module.set_faults(Faults { definite_map: true, ..Faults::default() });
    let definite = document(&mut module);
    assert_eq!(definite.payload_bytes[0], 0xa9);
    assert_eq!(definite.payload, usual.payload);
}

#[test]
fn a_stale_leaf_fault_signs_under_an_expired_leaf_until_it_is_lifted() {
    let bench = Bench::new();
    let mut module = bench.module();
    let healthy = document(&mut module).leaf().der.clone();
    module.set_faults(Faults { stale_leaf: true, ..Faults::default() });
    let stale = document(&mut module);
    assert_ne!(stale.leaf().der, healthy);
    assert_eq!(stale.leaf().not_after, "20260629233340Z", "an hour ago");
    assert_eq!(document(&mut module).leaf().der, stale.leaf().der);
    module.set_faults(Faults::default());
    assert_eq!(document(&mut module).leaf().not_after, "20260630033340Z");
}

/// What the project's own verifier says of `answer` under `anchors`: a code, or nothing.
fn verdict(answer: &[u8], anchors: TrustAnchors, policy: Policy) -> Option<&'static str> {
    let answer = Item::read(answer);
    let document = answer.field("Attestation").field("document").bytes();
    let now = attestation::Clock::At(UNIX_EPOCH + GENUINE_TIME);
    Verifier::new(anchors, policy.nonce(*b"nonce")).verify(document, now).err().map(|error| error.code())
}

#[test]
fn the_verifier_accepts_documents_under_the_development_root_and_not_under_aws() {
    let bench = Bench::new();
    let development = || TrustAnchors::from_der([bench.authority.root_certificate()]).unwrap();
    let policy = || Policy::pcrs([(0, measured().pcr0), (1, measured().pcr1), (2, measured().pcr2)]).unwrap();
    let mut module = bench.module();
    let answer = module.answer(&attest(None, Some(b"nonce"), None));
    assert_eq!(verdict(&answer, development(), policy()), None);
    assert_eq!(verdict(&answer, TrustAnchors::aws_g1(), policy()), Some("chain.untrusted-root"));

    module.set_faults(Faults { definite_map: true, ..Faults::default() });
    assert_eq!(verdict(&module.answer(&attest(None, Some(b"nonce"), None)), development(), policy()), None);
    module.set_faults(Faults { stale_leaf: true, ..Faults::default() });
    let stale = module.answer(&attest(None, Some(b"nonce"), None));
    assert_eq!(verdict(&stale, development(), policy()), Some("chain.expired"));

    let mut debug = bench.module_at(Clock::from_fn(|| UNIX_EPOCH + GENUINE_TIME), true);
    let answer = debug.answer(&attest(None, Some(b"nonce"), None));
    assert_eq!(verdict(&answer, development(), policy()), Some("policy.debug"));
}
