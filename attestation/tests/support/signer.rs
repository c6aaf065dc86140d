//! A signer of documents, honest by default, every part of which a test may
//! spoil before it is signed. Its root is trusted by nobody else.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attestation::{Clock, Error, Pcr, Policy, TrustAnchors, Verifier};
use aws_lc_rs::digest::{Context, SHA384};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
};

use super::encode::{NULL, array, bits, bstr, der, entries, head, map, oid, sequence, time, tstr, uint};

/// 2026-01-15T12:00:00Z, when every test document is signed.
pub const SIGNED_AT: i64 = 1_768_478_400;
pub const INSTANCE: &str = "i-0123456789abcdef0";
pub const MODULE: &str = "i-0123456789abcdef0-enc0123456789abcdef";
pub const REGION: &str = "eu-west-1";
pub const ROOT: usize = 0;
pub const REGIONAL: usize = 1;
pub const ZONAL: usize = 2;
pub const HOST: usize = 3;
pub const LEAF: usize = 4;

pub const BASIC_CONSTRAINTS: &[u8] = &[0x55, 29, 19];
pub const KEY_USAGE: &[u8] = &[0x55, 29, 15];
pub const CERT_SIGN: &[u8] = &[0x03, 0x02, 0x02, 0x04];
pub const DIGITAL_SIGNATURE: &[u8] = &[0x03, 0x02, 0x06, 0xc0];

/// A P-384 key that signs certificates (DER) and documents (fixed length).
pub struct Key {
    asn1: EcdsaKeyPair,
    fixed: EcdsaKeyPair,
}

impl Key {
    fn generate() -> Self {
        let seed =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &SystemRandom::new()).unwrap();
        let load = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, seed.as_ref()).unwrap();
        Self { asn1: load(&ECDSA_P384_SHA384_ASN1_SIGNING), fixed: load(&ECDSA_P384_SHA384_FIXED_SIGNING) }
    }

    /// One of six keys that all tests of a program share.
    pub fn shared(index: usize) -> &'static Self {
        static KEYS: OnceLock<Vec<Key>> = OnceLock::new();
        &KEYS.get_or_init(|| (0..6).map(|_| Key::generate()).collect())[index]
    }

    /// Signs as certificates are signed.
    pub fn sign(&self, body: &[u8]) -> Vec<u8> {
        self.asn1.sign(&SystemRandom::new(), body).unwrap().as_ref().to_vec()
    }

    pub fn point(&self) -> Vec<u8> {
        self.asn1.public_key().as_ref().to_vec()
    }
}

/// Everything in a certificate, encoded, before it is signed.
#[derive(Clone)]
pub struct Certificate {
    pub version: Vec<u8>,
    pub serial: Vec<u8>,
    pub inner_algorithm: Vec<u8>,
    pub outer_algorithm: Vec<u8>,
    pub issuer: Vec<u8>,
    pub not_before: i64,
    pub not_after: i64,
    /// Takes the place of the encoded validity.
    pub validity: Option<Vec<u8>>,
    pub subject: Vec<u8>,
    pub key_info: Vec<u8>,
    pub extensions: Vec<Vec<u8>>,
    /// Index of the shared key that signs.
    pub signer: usize,
    /// Follows the certificate.
    pub trailing: Vec<u8>,
}

impl Certificate {
    pub fn der(&self) -> Vec<u8> {
        let validity = self
            .validity
            .clone()
            .unwrap_or_else(|| sequence(&[&time(self.not_before), &time(self.not_after)]));
        let extensions = der(0xa3, &der(0x30, &self.extensions.concat()));
        let body = sequence(&[
            &self.version,
            &self.serial,
            &self.inner_algorithm,
            &self.issuer,
            &validity,
            &self.subject,
            &self.key_info,
            &extensions,
        ]);
        let signature = Key::shared(self.signer).sign(&body);
        let mut der = sequence(&[&body, &self.outer_algorithm, &bits(&signature)]);
        der.extend_from_slice(&self.trailing);
        der
    }

    /// Replaces the extension `id`, or removes it.
    pub fn set_extension(&mut self, id: &[u8], replacement: Option<Vec<u8>>) {
        let head = oid(id);
        self.extensions.retain(|extension| !extension[2..].starts_with(&head));
        self.extensions.extend(replacement);
    }
}

/// `SEQUENCE { OID, TRUE if critical, OCTET STRING value }`.
pub fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    sequence(&[&oid(id), critical, &der(0x04, value)])
}

pub fn ca(path_length: Option<u8>) -> Vec<u8> {
    let length = path_length.map(|length| der(0x02, &[length])).unwrap_or_default();
    extension(BASIC_CONSTRAINTS, true, &sequence(&[&[1, 1, 0xff], &length]))
}

/// `O=Amazon, CN=<common name>`.
pub fn name(common_name: &str) -> Vec<u8> {
    let attribute =
        |id: u8, text: &str| der(0x31, &sequence(&[&oid(&[0x55, 4, id]), &der(0x0c, text.as_bytes())]));
    sequence(&[&attribute(10, "Tests"), &attribute(3, common_name)])
}

pub fn ecdsa_with_sha384() -> Vec<u8> {
    sequence(&[&oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3])])
}

/// SubjectPublicKeyInfo of an EC key on the named curve.
pub fn ec_key(curve: &[u8], point: &[u8]) -> Vec<u8> {
    sequence(&[&sequence(&[&oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1]), &oid(curve)]), &bits(point)])
}

pub const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// Value of one payload field.
#[derive(Clone)]
pub enum Value {
    Encoded(Vec<u8>),
    /// The leaf, as built.
    Certificate,
    /// The issuers, as built.
    Cabundle,
}

/// A document in parts.
pub struct Fixture {
    pub certificates: Vec<Certificate>,
    /// Takes the place of the built issuers.
    pub bundle: Option<Vec<Vec<u8>>>,
    pub fields: Vec<(Vec<u8>, Value)>,
    /// Head and end of the payload map; a definite head is derived when `None`.
    pub map_ends: Option<(Vec<u8>, Vec<u8>)>,
    pub before: Vec<u8>,
    pub array_head: Vec<u8>,
    pub protected: Vec<u8>,
    pub unprotected: Vec<u8>,
    /// Takes the place of the encoded payload; the signature covers it.
    pub payload: Option<Vec<u8>>,
    /// Encodes the raw signature.
    pub signature: fn(&[u8]) -> Vec<u8>,
    pub trailing: Vec<u8>,
    /// Seconds between signing and verifying.
    pub age: i64,
    pub policy: Policy,
    /// Trusted root instead of the one that was built.
    pub trusted: Option<Vec<u8>>,
}

impl Fixture {
    /// A document like those of hardware: a payload map of indefinite length, four issuers.
    pub fn honest() -> Self {
        Self {
            certificates: honest_certificates(),
            bundle: None,
            fields: honest_fields(),
            map_ends: Some((vec![0xbf], vec![0xff])),
            before: Vec::new(),
            array_head: vec![0x84],
            protected: bstr(&[0xa1, 0x01, 0x38, 0x22]),
            unprotected: vec![0xa0],
            payload: None,
            signature: bstr,
            trailing: Vec::new(),
            age: 1,
            policy: Policy::any_measurement_insecure().without_nonce_insecure(),
            trusted: None,
        }
    }

    pub fn document(&self) -> Vec<u8> {
        let payload = self.payload.clone().unwrap_or_else(|| self.payload());
        let payload = bstr(&payload);
        let signed = [b"\x84\x6aSignature1", self.protected.as_slice(), b"\x40", &payload].concat();
        let signature = Key::shared(LEAF).fixed.sign(&SystemRandom::new(), &signed).unwrap();
        [
            &self.before,
            &self.array_head,
            &self.protected,
            &self.unprotected,
            &payload,
            &(self.signature)(signature.as_ref()),
            &self.trailing,
        ]
        .into_iter()
        .flatten()
        .copied()
        .collect()
    }

    /// `accepted`, or the code of the refusal.
    pub fn verdict(&self) -> &'static str {
        self.judge(&self.document()).map_or_else(|refusal| refusal.code(), |()| "accepted")
    }

    /// Judges `document` as this fixture's would be.
    pub fn judge(&self, document: &[u8]) -> Result<(), Error> {
        let root = self.trusted.clone().unwrap_or_else(|| self.certificates[ROOT].der());
        // A root built again has another signature: trust the one in the document.
        let anchors = match (&self.trusted, attestation::Untrusted::parse(document)) {
            (None, Ok(untrusted)) => {
                TrustAnchors::from_der(untrusted.claimed_certificates().take(1)).unwrap()
            }
            _ => TrustAnchors::from_der([root]).unwrap(),
        };
        let now = Clock::At(at(SIGNED_AT + self.age));
        Verifier::new(anchors, self.policy.clone()).verify(document, now).map(drop)
    }

    pub fn payload(&self) -> Vec<u8> {
        let issuers = || self.certificates[..LEAF].iter().map(Certificate::der).collect();
        let encode = |value: &Value| match value {
            Value::Encoded(bytes) => bytes.clone(),
            Value::Certificate => bstr(&self.certificates[LEAF].der()),
            Value::Cabundle => {
                let bundle: Vec<Vec<u8>> = self.bundle.clone().unwrap_or_else(issuers);
                array(&bundle.iter().map(|der| bstr(der)).collect::<Vec<_>>())
            }
        };
        let pairs: Vec<_> = self.fields.iter().map(|(key, value)| (key.clone(), encode(value))).collect();
        match &self.map_ends {
            Some((head, end)) => [head.as_slice(), &entries(&pairs), end].concat(),
            None => map(&pairs),
        }
    }

    /// Sets a field to an encoded value; appends it when it is new.
    pub fn set(&mut self, key: &str, value: Vec<u8>) {
        let key = tstr(key);
        match self.fields.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = Value::Encoded(value),
            None => self.fields.push((key, Value::Encoded(value))),
        }
    }

    pub fn remove(&mut self, key: &str) {
        let key = tstr(key);
        self.fields.retain(|(known, _)| *known != key);
    }

    pub fn rename(&mut self, key: &str, to: &[u8]) {
        let key = tstr(key);
        let field = self.fields.iter_mut().find(|(known, _)| *known == key).unwrap();
        field.0 = to.to_vec();
    }

    pub fn set_pcrs(&mut self, pcrs: &[(u8, Pcr)]) {
        let pairs: Vec<_> = pcrs.iter().map(|(index, pcr)| (uint((*index).into()), bstr(pcr))).collect();
        self.set("pcrs", map(&pairs));
    }
}

pub fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs())
}

/// PCR0 to 2 measured, PCR4 the instance, the rest of 0 to 15 zero.
pub fn honest_pcrs() -> Vec<(u8, Pcr)> {
    let mut pcrs: Vec<(u8, Pcr)> = (0..16).map(|index| (index, [0; 48])).collect();
    for index in 0..3u8 {
        pcrs[usize::from(index)].1 = [0xa0 + index; 48];
    }
    pcrs[4].1 = instance_pcr(INSTANCE);
    pcrs
}

pub fn instance_pcr(instance: &str) -> Pcr {
    let mut hash = Context::new(&SHA384);
    hash.update(&[0; 48]);
    hash.update(instance.as_bytes());
    hash.finish().as_ref().try_into().unwrap()
}

fn honest_fields() -> Vec<(Vec<u8>, Value)> {
    let pcrs: Vec<_> = honest_pcrs().iter().map(|(index, pcr)| (uint((*index).into()), bstr(pcr))).collect();
    let encoded = |key: &str, value| (tstr(key), Value::Encoded(value));
    vec![
        encoded("module_id", tstr(MODULE)),
        encoded("digest", tstr("SHA384")),
        encoded("timestamp", head(0, SIGNED_AT.unsigned_abs() * 1000)),
        encoded("pcrs", map(&pcrs)),
        (tstr("certificate"), Value::Certificate),
        (tstr("cabundle"), Value::Cabundle),
        encoded("public_key", vec![NULL]),
        encoded("user_data", vec![NULL]),
        encoded("nonce", bstr(b"a nonce of twenty-one")),
    ]
}

/// Names, lifetimes and extensions as in genuine chains.
fn honest_certificates() -> Vec<Certificate> {
    const HOUR: i64 = 3600;
    let names = [
        "test.nitro-enclaves".to_owned(),
        format!("f5cd304bf64d9930.{REGION}.test.nitro-enclaves"),
        format!("882b39a55ceb01e9.zonal.{REGION}.test.nitro-enclaves"),
        format!("{INSTANCE}.{REGION}.test.nitro-enclaves"),
        format!("{MODULE}.{REGION}.test"),
    ];
    let lifetimes = [(-50_000, 200_000), (-200, 281), (-100, 45), (-10, 14), (-1, 2)];
    let places =
        [ca(None), ca(Some(2)), ca(Some(1)), ca(Some(0)), extension(BASIC_CONSTRAINTS, true, &[0x30, 0])];
    let certificate = |index: usize| Certificate {
        version: vec![0xa0, 3, 2, 1, 2],
        serial: der(0x02, &[1, index as u8]),
        inner_algorithm: ecdsa_with_sha384(),
        outer_algorithm: ecdsa_with_sha384(),
        issuer: name(&names[index.saturating_sub(1)]),
        not_before: SIGNED_AT + lifetimes[index].0 * HOUR,
        not_after: SIGNED_AT + lifetimes[index].1 * HOUR,
        validity: None,
        subject: name(&names[index]),
        key_info: ec_key(P384, &Key::shared(index).point()),
        extensions: vec![
            places[index].clone(),
            match index {
                LEAF => extension(KEY_USAGE, false, DIGITAL_SIGNATURE),
                _ => extension(KEY_USAGE, true, CERT_SIGN),
            },
        ],
        signer: index.saturating_sub(1),
        trailing: Vec::new(),
    };
    (ROOT..=LEAF).map(certificate).collect()
}
