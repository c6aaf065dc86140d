//! Promise: only one shape of chain is accepted (mutation groups 40 to 49).
//! The root of every chain here is trusted, and every signature is right
//! unless the case is about it, so that only the rule in question refuses.
//! Long, because the groups are read side by side: cases are data, not code.

mod support;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256K1_SHA256_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair,
};
use support::check;
use support::encode::{bits, der, oid, sequence, tstr};
use support::signer::{
    BASIC_CONSTRAINTS, CERT_SIGN, Certificate, DIGITAL_SIGNATURE, Fixture, HOST, INSTANCE, KEY_USAGE, Key,
    LEAF, P384, REGION, REGIONAL, ROOT, SIGNED_AT, ZONAL, ca, ec_key, extension, honest_pcrs, instance_pcr,
    name,
};

/// The issuers as built, for a test to reorder.
fn bundle(f: &Fixture) -> Vec<Vec<u8>> {
    f.certificates[..LEAF].iter().map(Certificate::der).collect()
}

fn trust_own_root(f: &mut Fixture, bundle: &[Vec<u8>]) {
    f.trusted = Some(bundle[ROOT].clone());
}

#[test]
fn the_bundle_is_the_chain_in_order() {
    check(&[
        (
            "honest",
            |f| {
                let issuers = bundle(f);
                trust_own_root(f, &issuers);
                f.bundle = Some(issuers);
            },
            "accepted",
        ),
        (
            "reversed",
            |f| {
                let mut issuers = bundle(f);
                trust_own_root(f, &issuers);
                issuers.reverse();
                f.bundle = Some(issuers);
            },
            "chain.untrusted-root",
        ),
        (
            "intermediates reversed",
            |f| {
                let mut issuers = bundle(f);
                issuers[REGIONAL..].reverse();
                f.bundle = Some(issuers);
            },
            "chain.order",
        ),
        (
            "two swapped",
            |f| {
                let mut issuers = bundle(f);
                issuers.swap(ZONAL, HOST);
                f.bundle = Some(issuers);
            },
            "chain.order",
        ),
        (
            "root missing",
            |f| {
                let mut issuers = bundle(f);
                trust_own_root(f, &issuers);
                issuers.remove(ROOT);
                f.bundle = Some(issuers);
            },
            "chain.untrusted-root",
        ),
        (
            "root twice",
            |f| {
                let mut issuers = bundle(f);
                issuers.insert(1, issuers[ROOT].clone());
                f.bundle = Some(issuers);
            },
            "chain.repeated-subject",
        ),
        (
            "one missing",
            |f| {
                let mut issuers = bundle(f);
                issuers.remove(ZONAL);
                f.bundle = Some(issuers);
            },
            "chain.order",
        ),
        (
            "one twice",
            |f| {
                let mut issuers = bundle(f);
                issuers.push(issuers[HOST].clone());
                f.bundle = Some(issuers);
            },
            "chain.order",
        ),
        (
            "an extra one",
            |f| {
                let mut issuers = bundle(f);
                let mut extra = f.certificates[HOST].clone();
                extra.subject = name("extra");
                issuers.push(extra.der());
                f.bundle = Some(issuers);
            },
            "chain.order",
        ),
        (
            "foreign root in front",
            |f| {
                let mut issuers = bundle(f);
                trust_own_root(f, &issuers);
                let mut foreign = f.certificates[ROOT].clone();
                (foreign.subject, foreign.issuer) = (name("other"), name("other"));
                issuers.insert(0, foreign.der());
                f.bundle = Some(issuers);
            },
            "chain.untrusted-root",
        ),
        ("empty", |f| f.bundle = Some(vec![]), "document.no-cabundle"),
        ("33 of them", |f| f.bundle = Some(vec![vec![0x30; 10]; 33]), "cbor.count"),
        ("9 of them", |f| f.bundle = Some(vec![vec![0x30; 10]; 9]), "cbor.count"),
        ("an empty one", |f| f.bundle = Some(vec![vec![]]), "document.field-length"),
        ("1025 bytes", |f| f.bundle = Some(vec![vec![0x30; 1025]]), "document.field-length"),
    ]);
}

#[test]
fn a_root_that_only_looks_like_the_trusted_one_is_refused() {
    check(&[
        (
            "same names, other key",
            |f| {
                f.trusted = Some(f.certificates[ROOT].der());
                f.certificates[ROOT].key_info = ec_key(P384, &Key::shared(5).point());
                f.certificates[ROOT].signer = 5;
                f.certificates[REGIONAL].signer = 5;
            },
            "chain.untrusted-root",
        ),
        (
            "trusted root, intermediate of another key",
            |f| f.certificates[REGIONAL].signer = 5,
            "chain.signature",
        ),
        ("zonal signed by another key", |f| f.certificates[ZONAL].signer = 5, "chain.signature"),
        ("instance signed by another key", |f| f.certificates[HOST].signer = 5, "chain.signature"),
        ("leaf signed by another key", |f| f.certificates[LEAF].signer = 5, "chain.signature"),
        (
            "leaf with another key",
            |f| f.certificates[LEAF].key_info = ec_key(P384, &Key::shared(5).point()),
            "cose.signature",
        ),
        (
            "right signature, wrong issuer name",
            |f| f.certificates[ZONAL].issuer = name("other"),
            "chain.order",
        ),
        (
            "the trusted root's name and key, cross-signed by another",
            |f| {
                f.trusted = Some(f.certificates[ROOT].der());
                f.certificates[ROOT].issuer = name("other");
                f.certificates[ROOT].signer = 5;
            },
            "chain.untrusted-root",
        ),
        (
            "intermediate cross-signed by a root that is not in the bundle",
            |f| {
                f.certificates[REGIONAL].issuer = name("other");
                f.certificates[REGIONAL].signer = 5;
            },
            "chain.order",
        ),
        ("root issued by another", |f| f.certificates[ROOT].issuer = name("other"), "chain.order"),
        (
            "development chain against AWS's root",
            |f| f.trusted = Some(b"not this one".to_vec()),
            "chain.untrusted-root",
        ),
    ]);
}

#[test]
fn the_leaf_signs_documents_and_nothing_else() {
    fn leaf(f: &mut Fixture, id: &[u8], replacement: Option<Vec<u8>>) {
        f.certificates[LEAF].set_extension(id, replacement);
    }
    const NOT_CA: &[u8] = &[0x30, 0];
    check(&[
        ("CA", |f| leaf(f, BASIC_CONSTRAINTS, Some(ca(None))), "x509.ca"),
        ("no basicConstraints", |f| leaf(f, BASIC_CONSTRAINTS, None), "accepted"),
        (
            "not critical",
            |f| leaf(f, BASIC_CONSTRAINTS, Some(extension(BASIC_CONSTRAINTS, false, NOT_CA))),
            "x509.basic-constraints",
        ),
        (
            "with a path length",
            |f| {
                leaf(f, BASIC_CONSTRAINTS, Some(extension(BASIC_CONSTRAINTS, true, &sequence(&[&[2, 1, 0]]))))
            },
            "x509.leaf-path-length",
        ),
        (
            "keyCertSign",
            |f| leaf(f, KEY_USAGE, Some(extension(KEY_USAGE, true, CERT_SIGN))),
            "x509.key-usage",
        ),
        (
            "keyCertSign besides",
            |f| leaf(f, KEY_USAGE, Some(extension(KEY_USAGE, true, &[3, 2, 2, 0x84]))),
            "x509.key-usage",
        ),
        (
            "no digitalSignature",
            |f| leaf(f, KEY_USAGE, Some(extension(KEY_USAGE, true, &[3, 2, 6, 0x40]))),
            "x509.key-usage",
        ),
        ("no keyUsage", |f| leaf(f, KEY_USAGE, None), "x509.key-usage"),
        (
            "critical keyUsage",
            |f| leaf(f, KEY_USAGE, Some(extension(KEY_USAGE, true, DIGITAL_SIGNATURE))),
            "accepted",
        ),
        (
            "leaf issued by a leaf",
            |f| {
                f.certificates[HOST]
                    .set_extension(BASIC_CONSTRAINTS, Some(extension(BASIC_CONSTRAINTS, true, NOT_CA)));
                f.certificates[HOST]
                    .set_extension(KEY_USAGE, Some(extension(KEY_USAGE, true, DIGITAL_SIGNATURE)));
            },
            "x509.ca",
        ),
    ]);
}

#[test]
fn every_issuer_is_a_ca_within_its_path_length() {
    check(&[
        (
            "no path lengths",
            |f| (1..LEAF).for_each(|i| f.certificates[i].set_extension(BASIC_CONSTRAINTS, Some(ca(None)))),
            "accepted",
        ),
        (
            "regional of 1",
            |f| f.certificates[REGIONAL].set_extension(BASIC_CONSTRAINTS, Some(ca(Some(1)))),
            "chain.path-length",
        ),
        (
            "regional of 0",
            |f| f.certificates[REGIONAL].set_extension(BASIC_CONSTRAINTS, Some(ca(Some(0)))),
            "chain.path-length",
        ),
        (
            "zonal of 0",
            |f| f.certificates[ZONAL].set_extension(BASIC_CONSTRAINTS, Some(ca(Some(0)))),
            "chain.path-length",
        ),
        (
            "root of 2",
            |f| f.certificates[ROOT].set_extension(BASIC_CONSTRAINTS, Some(ca(Some(2)))),
            "chain.path-length",
        ),
        (
            "root of 3",
            |f| f.certificates[ROOT].set_extension(BASIC_CONSTRAINTS, Some(ca(Some(3)))),
            "accepted",
        ),
    ]);
    for index in ROOT..LEAF {
        let verdict = |id: &[u8], replacement: Option<Vec<u8>>| {
            let mut fixture = Fixture::honest();
            fixture.certificates[index].set_extension(id, replacement);
            fixture.verdict()
        };
        let constraints = |critical, value: &[u8]| Some(extension(BASIC_CONSTRAINTS, critical, value));
        let usage = |value: &[u8]| Some(extension(KEY_USAGE, true, value));
        assert_eq!(verdict(BASIC_CONSTRAINTS, None), "x509.basic-constraints", "{index}");
        assert_eq!(verdict(BASIC_CONSTRAINTS, constraints(true, &[0x30, 0])), "x509.ca", "{index}");
        assert_eq!(
            verdict(BASIC_CONSTRAINTS, constraints(false, &[0x30, 3, 1, 1, 0xff])),
            "x509.basic-constraints"
        );
        assert_eq!(
            verdict(BASIC_CONSTRAINTS, constraints(true, &[0x30, 3, 1, 1, 0x01])),
            "x509.der",
            "BER true"
        );
        assert_eq!(
            verdict(BASIC_CONSTRAINTS, constraints(true, &[0x30, 3, 1, 1, 0])),
            "x509.der",
            "explicit default"
        );
        assert_eq!(verdict(KEY_USAGE, None), "x509.key-usage", "{index}");
        assert_eq!(verdict(KEY_USAGE, usage(DIGITAL_SIGNATURE)), "x509.key-usage", "{index}");
        assert_eq!(verdict(KEY_USAGE, usage(&[3, 2, 0, 0x04])), "x509.der", "trailing zero bits");
        assert_eq!(verdict(KEY_USAGE, usage(&[3, 2, 1, 0x86])), "accepted", "with cRLSign");
    }
}

#[test]
fn every_certificate_is_judged_by_its_own_dates_inclusive() {
    let now = SIGNED_AT + Fixture::honest().age;
    for index in ROOT..=LEAF {
        let verdict = |from: i64, to: i64| {
            let mut fixture = Fixture::honest();
            (fixture.certificates[index].not_before, fixture.certificates[index].not_after) = (from, to);
            fixture.verdict()
        };
        assert_eq!(verdict(SIGNED_AT, now), "accepted", "{index} ends now");
        assert_eq!(verdict(SIGNED_AT - 9, now - 1), "chain.expired", "{index} ended a second ago");
        assert_eq!(verdict(now + 1, now + 9), "chain.not-yet-valid", "{index} begins in a second");
        assert_eq!(verdict(now, now - 1), "x509.validity", "{index} backwards");
    }
    check(&[
        (
            "leaf begins after signing",
            |f| f.certificates[LEAF].not_before = SIGNED_AT + 1,
            "time.outside-leaf",
        ),
        ("leaf begins when signing", |f| f.certificates[LEAF].not_before = SIGNED_AT, "accepted"),
    ]);
}

#[test]
fn dates_are_written_as_rfc_5280_says() {
    fn dates(f: &mut Fixture, from: Vec<u8>, to: Vec<u8>) {
        f.certificates[ZONAL].validity = Some(sequence(&[&from, &to]));
    }
    const FROM: &[u8] = b"260101000000Z";
    check(&[
        ("UTCTime", |f| dates(f, der(0x17, FROM), der(0x17, b"270101000000Z")), "accepted"),
        (
            "GeneralizedTime from 2050",
            |f| dates(f, der(0x17, FROM), der(0x18, b"20500101000000Z")),
            "accepted",
        ),
        (
            "GeneralizedTime before 2050",
            |f| dates(f, der(0x17, FROM), der(0x18, b"20270101000000Z")),
            "x509.validity",
        ),
        ("29 February 2027", |f| dates(f, der(0x17, FROM), der(0x17, b"270229000000Z")), "x509.validity"),
        ("29 February 2028", |f| dates(f, der(0x17, FROM), der(0x17, b"280229000000Z")), "accepted"),
        ("month 13", |f| dates(f, der(0x17, FROM), der(0x17, b"271301000000Z")), "x509.validity"),
        ("hour 24", |f| dates(f, der(0x17, FROM), der(0x17, b"270101240000Z")), "x509.validity"),
        ("no seconds", |f| dates(f, der(0x17, FROM), der(0x17, b"2701010000Z")), "x509.validity"),
        ("an offset", |f| dates(f, der(0x17, FROM), der(0x17, b"270101000000+0000")), "x509.validity"),
        ("letters", |f| dates(f, der(0x17, FROM), der(0x17, b"27O101000000Z")), "x509.validity"),
        (
            "three dates",
            |f| {
                dates(f, der(0x17, FROM), [der(0x17, b"270101000000Z"), der(0x17, b"270101000000Z")].concat())
            },
            "x509.der",
        ),
    ]);
}

#[test]
fn keys_are_uncompressed_points_on_p384_by_name() {
    fn key(f: &mut Fixture, info: Vec<u8>) {
        f.certificates[LEAF].key_info = info;
    }
    fn point_of(algorithm: &'static EcdsaSigningAlgorithm) -> Vec<u8> {
        let seed = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
        EcdsaKeyPair::from_pkcs8(algorithm, seed.as_ref()).unwrap().public_key().as_ref().to_vec()
    }
    const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    const P521: &[u8] = &[0x2b, 0x81, 4, 0, 0x23];
    const K256: &[u8] = &[0x2b, 0x81, 4, 0, 0x0a];
    const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
    const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    check(&[
        ("P-256", |f| key(f, ec_key(P256, &point_of(&ECDSA_P256_SHA256_ASN1_SIGNING))), "x509.key"),
        ("P-521", |f| key(f, ec_key(P521, &point_of(&ECDSA_P521_SHA512_ASN1_SIGNING))), "x509.key"),
        ("secp256k1", |f| key(f, ec_key(K256, &point_of(&ECDSA_P256K1_SHA256_ASN1_SIGNING))), "x509.key"),
        (
            "Ed25519",
            |f| {
                let seed = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
                let pair = Ed25519KeyPair::from_pkcs8(seed.as_ref()).unwrap();
                key(f, sequence(&[&sequence(&[&oid(ED25519)]), &bits(pair.public_key().as_ref())]));
            },
            "x509.key",
        ),
        (
            "RSA",
            |f| {
                let numbers =
                    sequence(&[&der(2, &[&[0], [0xc5; 256].as_slice()].concat()), &der(2, &[1, 0, 1])]);
                key(f, sequence(&[&sequence(&[&oid(RSA), &[5, 0]]), &bits(&numbers)]));
            },
            "x509.key",
        ),
        (
            "explicit parameters",
            |f| {
                let parameters =
                    sequence(&[&[2, 1, 1], &sequence(&[&oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 1, 1])])]);
                key(f, sequence(&[&sequence(&[&oid(EC), &parameters]), &bits(&Key::shared(LEAF).point())]));
            },
            "x509.key",
        ),
        (
            "no parameters",
            |f| key(f, sequence(&[&sequence(&[&oid(EC)]), &bits(&Key::shared(LEAF).point())])),
            "x509.key",
        ),
        (
            "compressed",
            |f| key(f, ec_key(P384, &[&[2], &Key::shared(LEAF).point()[1..49]].concat())),
            "x509.key",
        ),
        (
            "hybrid form",
            |f| key(f, ec_key(P384, &[&[6], &Key::shared(LEAF).point()[1..]].concat())),
            "x509.key",
        ),
        ("infinity", |f| key(f, ec_key(P384, &[0])), "x509.key"),
        (
            "point not on the curve",
            |f| key(f, ec_key(P384, &[&[4], [1; 96].as_slice()].concat())),
            "cose.signature",
        ),
        (
            "unused bits",
            |f| {
                let mut info = ec_key(P384, &Key::shared(LEAF).point());
                let unused = info.len() - 98;
                info[unused] = 1;
                key(f, info);
            },
            "x509.key",
        ),
        (
            "issuer off the curve",
            |f| f.certificates[HOST].key_info = ec_key(P384, &[&[4], [1; 96].as_slice()].concat()),
            "chain.signature",
        ),
        (
            "P-256 root",
            |f| f.certificates[ROOT].key_info = ec_key(P256, &point_of(&ECDSA_P256_SHA256_ASN1_SIGNING)),
            "x509.key",
        ),
    ]);
}

#[test]
fn certificates_are_signed_with_ecdsa_and_sha384_inside_and_out() {
    fn ecdsa(hash: u8) -> Vec<u8> {
        sequence(&[&oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, hash])])
    }
    check(&[
        (
            "SHA-256",
            |f| {
                (f.certificates[ZONAL].inner_algorithm, f.certificates[ZONAL].outer_algorithm) =
                    (ecdsa(2), ecdsa(2))
            },
            "x509.algorithm",
        ),
        (
            "SHA-512",
            |f| {
                (f.certificates[ZONAL].inner_algorithm, f.certificates[ZONAL].outer_algorithm) =
                    (ecdsa(4), ecdsa(4))
            },
            "x509.algorithm",
        ),
        ("inside only", |f| f.certificates[LEAF].inner_algorithm = ecdsa(2), "x509.algorithm"),
        ("outside only", |f| f.certificates[LEAF].outer_algorithm = ecdsa(2), "x509.algorithm"),
        (
            "NULL parameters",
            |f| {
                f.certificates[LEAF].outer_algorithm =
                    sequence(&[&oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3]), &[5, 0]])
            },
            "x509.algorithm",
        ),
    ]);
}

#[test]
fn certificates_are_der_to_the_last_byte() {
    const PRIVATE: &[u8] = &[0x2a, 3, 4];
    fn extend(f: &mut Fixture, extra: &[Vec<u8>]) {
        f.certificates[HOST].extensions.extend_from_slice(extra);
    }
    check(&[
        ("trailing byte", |f| f.certificates[LEAF].trailing = vec![0], "x509.trailing"),
        ("trailing byte after an issuer", |f| f.certificates[ZONAL].trailing = vec![0], "x509.trailing"),
        ("negative serial", |f| f.certificates[LEAF].serial = der(2, &[0x80, 1]), "x509.serial"),
        ("serial 0", |f| f.certificates[LEAF].serial = der(2, &[0]), "x509.serial"),
        ("padded serial", |f| f.certificates[LEAF].serial = der(2, &[0, 1]), "x509.serial"),
        ("empty serial", |f| f.certificates[LEAF].serial = der(2, &[]), "x509.serial"),
        ("serial of 20 bytes", |f| f.certificates[LEAF].serial = der(2, &[0x11; 20]), "accepted"),
        (
            "high serial of 20 bytes",
            |f| f.certificates[LEAF].serial = der(2, &[&[0], [0xf1; 20].as_slice()].concat()),
            "accepted",
        ),
        ("serial of 21 bytes", |f| f.certificates[LEAF].serial = der(2, &[0x11; 21]), "x509.serial"),
        ("version 1", |f| f.certificates[LEAF].version = vec![], "x509.version"),
        ("version 2", |f| f.certificates[LEAF].version = vec![0xa0, 3, 2, 1, 1], "x509.version"),
        ("version 4", |f| f.certificates[LEAF].version = vec![0xa0, 3, 2, 1, 3], "x509.version"),
        ("long length", |f| f.certificates[LEAF].serial = vec![2, 0x81, 1, 1], "x509.der"),
        ("indefinite length", |f| f.certificates[LEAF].subject = vec![0x30, 0x80, 0, 0], "x509.der"),
        ("unknown extension", |f| extend(f, &[extension(PRIVATE, false, &[5, 0])]), "accepted"),
        (
            "name constraints",
            |f| extend(f, &[extension(&[0x55, 29, 30], false, &[0x30, 0])]),
            "x509.name-constraints",
        ),
        (
            "unknown critical extension",
            |f| extend(f, &[extension(PRIVATE, true, &[5, 0])]),
            "x509.unknown-critical",
        ),
        (
            "unknown extension twice",
            |f| extend(f, &vec![extension(PRIVATE, false, &[5, 0]); 2]),
            "x509.duplicate-extension",
        ),
        (
            "keyUsage twice",
            |f| extend(f, &[extension(KEY_USAGE, true, CERT_SIGN)]),
            "x509.duplicate-extension",
        ),
        (
            "17 extensions",
            |f| extend(f, &(0..15).map(|i| extension(&[0x2a, i], false, &[5, 0])).collect::<Vec<_>>()),
            "x509.der",
        ),
        (
            "certificate is not DER",
            |f| f.set("certificate", support::encode::bstr(b"certificate")),
            "x509.der",
        ),
        (
            "certificate in PEM",
            |f| f.set("certificate", support::encode::bstr(b"-----BEGIN CERTIFICATE-----")),
            "x509.der",
        ),
    ]);
}

#[test]
fn the_document_and_its_chain_name_one_enclave() {
    const OTHER: &str = "i-0fedcba9876543210-enc0123456789abcdef";
    check(&[
        ("other module_id", |f| f.set("module_id", tstr(OTHER)), "identity.common-name"),
        (
            "NitroTPM module_id",
            |f| f.set("module_id", tstr("i-0123456789abcdef0-tpm0000000000000000")),
            "identity.module-id",
        ),
        (
            "upper case",
            |f| f.set("module_id", tstr("i-0123456789ABCDEF0-enc0123456789abcdef")),
            "identity.module-id",
        ),
        (
            "a prefix of the leaf's",
            |f| f.set("module_id", tstr("i-0123456789abcdef0-enc0123456789abcde")),
            "identity.module-id",
        ),
        (
            "leaf of another enclave",
            |f| f.certificates[LEAF].subject = name(&format!("{OTHER}.{REGION}.test")),
            "identity.common-name",
        ),
        (
            "leaf without a region",
            |f| f.certificates[LEAF].subject = name(support::signer::MODULE),
            "identity.common-name",
        ),
        ("leaf without a common name", |f| f.certificates[LEAF].subject = sequence(&[]), "x509.common-name"),
        (
            "two common names",
            |f| {
                let double = [name("a"), name("b")].map(|name| name[2..].to_vec()).concat();
                f.certificates[LEAF].subject = der(0x30, &double);
            },
            "x509.common-name",
        ),
        (
            "leaf of another region",
            |f| f.certificates[LEAF].subject = name(&format!("{}.eu-north-1.test", support::signer::MODULE)),
            "identity.region",
        ),
        (
            "instance of another region",
            |f| {
                let other = name(&format!("{INSTANCE}.eu-north-1.test.nitro-enclaves"));
                f.certificates[HOST].subject = other.clone();
                f.certificates[LEAF].issuer = other;
            },
            "identity.region",
        ),
        (
            "PCR4 of another instance",
            |f| {
                let mut pcrs = honest_pcrs();
                pcrs[4].1 = instance_pcr("i-0fedcba9876543210");
                f.set_pcrs(&pcrs);
            },
            "identity.pcr4",
        ),
        (
            "PCR4 missing",
            |f| {
                let mut pcrs = honest_pcrs();
                pcrs.remove(4);
                f.set_pcrs(&pcrs);
            },
            "identity.pcr4",
        ),
        (
            "PCR4 zero",
            |f| {
                let mut pcrs = honest_pcrs();
                pcrs[4].1 = [0; 48];
                f.set_pcrs(&pcrs);
            },
            "identity.pcr4",
        ),
    ]);
}
