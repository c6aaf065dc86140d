//! Promise: a COSE_Sign1 envelope has one accepted spelling (mutation groups 1
//! to 16). Every document here is signed after it was spoiled.

mod support;

use support::check;
use support::encode::{array, bstr, head, map, tstr, uint, wide_head};
use support::signer::Fixture;

#[test]
fn an_honest_document_is_accepted_with_and_without_tag_18() {
    check(&[
        ("untagged", |_| (), "accepted"),
        ("tag 18", |f| f.before = vec![0xd2], "accepted"),
        ("tag 18 twice", |f| f.before = vec![0xd2, 0xd2], "cose.tag"),
        ("tag 17", |f| f.before = vec![0xd1], "cose.tag"),
        ("tag 18 in two bytes", |f| f.before = vec![0xd8, 18], "cose.tag"),
        ("tag 98", |f| f.before = vec![0xd8, 98], "cose.tag"),
        ("tag 55799", |f| f.before = wide_head(6, 55799, 2), "cose.tag"),
    ]);
}

#[test]
fn the_outer_array_has_four_elements_and_nothing_follows_it() {
    check(&[
        ("trailing byte", |f| f.trailing = vec![0], "cbor.trailing"),
        ("second document", |f| f.trailing = Fixture::honest().document(), "cbor.trailing"),
        ("head says three", |f| f.array_head = vec![0x83], "cose.shape"),
        ("head says five", |f| f.array_head = vec![0x85], "cose.shape"),
        ("five elements", |f| (f.array_head, f.trailing) = (vec![0x85], vec![0x40]), "cose.shape"),
        ("indefinite", |f| (f.array_head, f.trailing) = (vec![0x9f], vec![0xff]), "cbor.indefinite"),
        ("head in two bytes", |f| f.array_head = vec![0x98, 4], "cbor.not-shortest"),
        ("a map", |f| f.array_head = vec![0xa4], "cose.shape"),
        ("a string around it", |f| f.array_head = vec![0x44], "cose.shape"),
    ]);
}

#[test]
fn the_protected_header_is_exactly_es384() {
    check(&[
        ("empty string", |f| f.protected = bstr(&[]), "cose.protected"),
        ("empty map", |f| f.protected = bstr(&[0xa0]), "cose.protected"),
        ("ES256", |f| f.protected = bstr(&[0xa1, 1, 0x26]), "cose.protected"),
        ("ES512", |f| f.protected = bstr(&[0xa1, 1, 0x38, 0x23]), "cose.protected"),
        ("algorithm as text", |f| f.protected = bstr(&map(&[(uint(1), tstr("ES384"))])), "cose.protected"),
        ("algorithm twice", |f| f.protected = bstr(&[0xa2, 1, 0x38, 0x22, 1, 0x26]), "cose.protected"),
        (
            "algorithm twice, other order",
            |f| f.protected = bstr(&[0xa2, 1, 0x26, 1, 0x38, 0x22]),
            "cose.protected",
        ),
        ("crit", |f| f.protected = bstr(&[0xa2, 1, 0x38, 0x22, 2, 0x81, 1]), "cose.protected"),
        ("key id", |f| f.protected = bstr(&[0xa2, 1, 0x38, 0x22, 4, 0x41, 0]), "cose.protected"),
        ("long algorithm", |f| f.protected = bstr(&[0xa1, 1, 0x39, 0, 0x22]), "cose.protected"),
        ("indefinite map", |f| f.protected = bstr(&[0xbf, 1, 0x38, 0x22, 0xff]), "cose.protected"),
        ("a map, not a string", |f| f.protected = vec![0xa1, 1, 0x38, 0x22], "cose.protected"),
        ("long head", |f| f.protected = vec![0x58, 4, 0xa1, 1, 0x38, 0x22], "cbor.not-shortest"),
        ("in chunks", |f| f.protected = vec![0x5f, 0x44, 0xa1, 1, 0x38, 0x22, 0xff], "cbor.indefinite"),
    ]);
}

#[test]
fn the_unprotected_header_is_empty() {
    check(&[
        ("algorithm", |f| f.unprotected = vec![0xa1, 1, 0x26], "cose.unprotected"),
        ("key id", |f| f.unprotected = vec![0xa1, 4, 0x41, 0], "cose.unprotected"),
        ("512 entries", |f| f.unprotected = map(&vec![(uint(1), uint(1)); 512]), "cose.unprotected"),
        ("deep nesting", |f| f.unprotected = [vec![0x81; 4000], vec![0xa0]].concat(), "cose.unprotected"),
        ("long head", |f| f.unprotected = vec![0xb8, 0], "cose.unprotected"),
        ("indefinite", |f| f.unprotected = vec![0xbf, 0xff], "cose.unprotected"),
        ("null", |f| f.unprotected = vec![0xf6], "cose.unprotected"),
    ]);
}

#[test]
fn the_payload_is_there_and_not_too_large() {
    check(&[
        ("empty", |f| f.payload = Some(vec![]), "cose.payload"),
        ("an array", |f| f.payload = Some(array(&[uint(1)])), "cbor.type"),
        ("text", |f| f.payload = Some(tstr("payload")), "cbor.type"),
        ("too large", |f| f.payload = Some(vec![0; 16385]), "cose.size"),
    ]);
    for (payload, code) in
        [(vec![0xf6], "cose.payload"), (tstr("payload"), "cbor.type"), (vec![0xf7], "cbor.type")]
    {
        let head = [0x84, 0x44, 0xa1, 1, 0x38, 0x22, 0xa0];
        let document = [head.as_slice(), &payload, &bstr(&[1; 96])].concat();
        assert_eq!(attestation::Untrusted::parse(&document).unwrap_err().code(), code);
    }
}

#[test]
fn the_signature_is_96_bytes_of_valid_scalars() {
    const ORDER: [u8; 48] = {
        let mut order = [0xff; 48];
        let tail = [
            0xc7, 0x63, 0x4d, 0x81, 0xf4, 0x37, 0x2d, 0xdf, 0x58, 0x1a, 0x0d, 0xb2, 0x48, 0xb0, 0xa7, 0x7a,
            0xec, 0xec, 0x19, 0x6a, 0xcc, 0xc5, 0x29, 0x73,
        ];
        let mut index = 0;
        while index < tail.len() {
            order[24 + index] = tail[index];
            index += 1;
        }
        order
    };
    check(&[
        ("95 bytes", |f| f.signature = |s| bstr(&s[..95]), "cose.signature-length"),
        ("97 bytes", |f| f.signature = |s| bstr(&[s, &[0]].concat()), "cose.signature-length"),
        ("64 zero bytes, as QEMU makes", |f| f.signature = |_| bstr(&[0; 64]), "cose.signature-length"),
        ("no bytes", |f| f.signature = |_| bstr(&[]), "cose.signature-length"),
        (
            "DER",
            |f| {
                f.signature =
                    |s| bstr(&[&[0x30, 0x66, 2, 0x31, 0], &s[..48], &[2, 0x31, 0], &s[48..]].concat())
            },
            "cose.signature-length",
        ),
        ("long head", |f| f.signature = |s| [&wide_head(2, 96, 2), s].concat(), "cbor.not-shortest"),
        ("null", |f| f.signature = |_| vec![0xf6], "cbor.type"),
        ("r = 0", |f| f.signature = |s| bstr(&[&[0; 48], &s[48..]].concat()), "cose.signature"),
        ("s = 0", |f| f.signature = |s| bstr(&[&s[..48], &[0; 48]].concat()), "cose.signature"),
        ("both 0", |f| f.signature = |_| bstr(&[0; 96]), "cose.signature"),
        ("r = n", |f| f.signature = |s| bstr(&[&ORDER, &s[48..]].concat()), "cose.signature"),
        ("s = n", |f| f.signature = |s| bstr(&[&s[..48], &ORDER].concat()), "cose.signature"),
        ("all ones", |f| f.signature = |_| bstr(&[0xff; 96]), "cose.signature"),
        ("swapped", |f| f.signature = |s| bstr(&[&s[48..], &s[..48]].concat()), "cose.signature"),
    ]);
}

#[test]
fn a_signature_over_another_protected_header_does_not_count() {
    let fixture = Fixture::honest();
    let mut document = fixture.document();
    assert!(fixture.judge(&document).is_ok());
    let last = document.len() - 1;
    document[last] ^= 1;
    assert_eq!(fixture.judge(&document).unwrap_err().code(), "cose.signature");
}

#[test]
fn a_head_that_promises_more_than_the_input_holds_is_refused_without_allocating() {
    for head in [head(2, u64::MAX), head(2, 1 << 32), head(4, u64::MAX), head(5, 1 << 63)] {
        let document = [[0x84, 0x44, 0xa1, 1, 0x38, 0x22, 0xa0].as_slice(), &head].concat();
        let refusal = attestation::Untrusted::parse(&document).unwrap_err();
        assert!(["cbor.truncated", "cbor.type"].contains(&refusal.code()), "{refusal}");
    }
}
