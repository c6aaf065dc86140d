//! Chains and documents with one thing wrong: that they can be built, and that the
//! project's verifier sees them. The whole list of mutations belongs to `attestation`.

use std::time::UNIX_EPOCH;

use attestation::{Clock, Policy, TrustAnchors, Verifier};

use super::{GENUINE_TIME, MODULE, measured};
use crate::nsm::certificate::{Extension, KeyUsage};
use crate::nsm::chain::Chain;
use crate::nsm::document::{self, PROTECTED, Payload};
use crate::nsm::pcr::PcrBank;
use crate::nsm::{DEFAULT_REGION, ModuleId, der};

fn chain() -> Chain {
    let module: ModuleId = MODULE.parse().unwrap();
    Chain::new(&module, DEFAULT_REGION, UNIX_EPOCH + GENUINE_TIME).unwrap()
}

fn payload(certificates: &[Vec<u8>]) -> Vec<u8> {
    let module: ModuleId = MODULE.parse().unwrap();
    let bank = PcrBank::at_boot(&measured(), module.instance(), false);
    let (certificate, cabundle) = certificates.split_last().unwrap();
    Payload {
        module_id: MODULE,
        timestamp_ms: GENUINE_TIME.as_millis() as u64,
        pcrs: bank.locked().map(|(index, value)| (index, *value)).collect(),
        certificate,
        cabundle: cabundle.iter().map(Vec::as_slice).collect(),
        public_key: None,
        user_data: None,
        nonce: Some(b"nonce"),
        definite: false,
    }
    .encode()
}

/// The verifier's code for `document` under the root of `certificates`.
fn judge(certificates: &[Vec<u8>], document: &[u8]) -> Option<&'static str> {
    let anchors = TrustAnchors::from_der([&certificates[0]]).unwrap();
    let policy = Policy::pcrs([(0, measured().pcr0)]).unwrap().nonce(*b"nonce");
    let verifier = Verifier::new(anchors, policy);
    verifier.verify(document, Clock::At(UNIX_EPOCH + GENUINE_TIME)).err().map(|error| error.code())
}

fn judge_chain(chain: &Chain) -> Option<&'static str> {
    let certificates = chain.sign().unwrap();
    let document = document::sign(&payload(&certificates), &chain.links.last().unwrap().key).unwrap();
    judge(&certificates, &document)
}

fn replace(extensions: &mut [Extension], with: Extension) {
    let place = extensions.iter().position(|extension| extension.oid == with.oid).unwrap();
    extensions[place] = with;
}

#[test]
fn an_unchanged_chain_is_accepted_and_each_wrong_link_is_not() {
    assert_eq!(judge_chain(&chain()), None);
    type Change = fn(&mut Chain);
    let changes: [(&str, Change); 7] = [
        ("an intermediate that is no authority", |chain| {
            replace(&mut chain.links[2].template.extensions, Extension::end_entity());
        }),
        ("an intermediate that may not sign certificates", |chain| {
            let usage = Extension::key_usage(KeyUsage::DIGITAL_SIGNATURE, true);
            replace(&mut chain.links[1].template.extensions, usage);
        }),
        ("a path that is too long", |chain| {
            replace(&mut chain.links[1].template.extensions, Extension::authority(Some(0)));
        }),
        ("a leaf with an unknown critical extension", |chain| {
            let unknown = Extension::new(&[0x2a, 0x03], true, der::sequence(&[]));
            chain.links[4].template.extensions.push(unknown);
        }),
        ("a leaf with a negative serial in version 1", |chain| {
            chain.links[4].template.version = Vec::new();
            chain.links[4].template.serial = vec![0x02, 0x01, 0xff];
        }),
        ("an instance of another name than its leaf's issuer", |chain| {
            chain.links[3].template.subject = chain.links[2].template.subject.clone();
        }),
        ("a leaf that another key signed", |chain| {
            chain.links[3].key = crate::nsm::SigningKey::generate().unwrap();
        }),
    ];
    for (what, change) in changes {
        let mut chain = chain();
        change(&mut chain);
        let code = judge_chain(&chain);
        assert!(code.is_some_and(|code| !code.starts_with("policy.")), "{what}: {code:?}");
    }
}

#[test]
fn a_payload_that_no_module_writes_can_be_signed() {
    let chain = chain();
    let certificates = chain.sign().unwrap();
    let key = &chain.links[4].key;
    let good = payload(&certificates);
    let mut twice = good[..good.len() - 1].to_vec();
    twice.extend_from_slice(b"\x65nonce\xf6\xff");
    let document = document::sign(&twice, key).unwrap();
    assert!(judge(&certificates, &document).is_some_and(|code| code.starts_with("cbor.")));

    let signature = key.sign_fixed(&document::signed_bytes(PROTECTED, &good)).unwrap();
    let whole = document::envelope(PROTECTED, &[0xa0], &good, &signature);
    assert_eq!(judge(&certificates, &whole), None);
    let unprotected = document::envelope(PROTECTED, &[0xa1, 0x01, 0x26], &good, &signature);
    assert!(judge(&certificates, &unprotected).is_some_and(|code| code.starts_with("cose.")));
}
