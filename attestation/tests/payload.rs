//! Promise: a payload has one accepted spelling and every field its bounds
//! (mutation groups 17 to 39). Every document here is signed by a trusted
//! chain after it was spoiled, so that only the rule in question refuses it.

mod support;

use support::encode::{NULL, array, bstr, der, head, map, tstr, uint, wide_head};
use support::signer::{Fixture, SIGNED_AT, Value, honest_pcrs};
use support::{Case, check};

const TAGGED: u8 = 0xc0;
const UNDEFINED: u8 = 0xf7;

/// The honest pcrs as encoded pairs, to be spoiled.
fn pcr_pairs() -> Vec<(Vec<u8>, Vec<u8>)> {
    honest_pcrs().iter().map(|(index, pcr)| (uint((*index).into()), bstr(pcr))).collect()
}

fn with_pcr(index: Vec<u8>, value: Vec<u8>) -> Vec<u8> {
    let mut pairs = pcr_pairs();
    pairs.push((index, value));
    map(&pairs)
}

#[test]
fn the_map_may_be_definite_or_not_but_must_end_where_it_says() {
    check(&[
        ("indefinite", |_| (), "accepted"),
        ("definite", |f| f.map_ends = None, "accepted"),
        ("no break", |f| f.map_ends = Some((vec![0xbf], vec![])), "cbor.truncated"),
        ("break in a definite map", |f| f.map_ends = Some((vec![0xa9], vec![0xff])), "cbor.trailing"),
        ("break too early", |f| f.map_ends = Some((vec![0xaa], vec![0xff])), "cbor.reserved"),
        ("bytes after the break", |f| f.map_ends = Some((vec![0xbf], vec![0xff, 0])), "cbor.trailing"),
        (
            "break after a key",
            |f| f.map_ends = Some((vec![0xbf], [tstr("extra"), vec![0xff]].concat())),
            "cbor.reserved",
        ),
        ("long head", |f| f.map_ends = Some((vec![0xb8, 9], vec![])), "cbor.not-shortest"),
        ("an array", |f| f.map_ends = Some((head(4, 18), vec![])), "cbor.type"),
        ("2^63 pairs", |f| f.map_ends = Some((head(5, 1 << 63), vec![])), "cbor.count"),
    ]);
}

#[test]
fn inner_collections_may_be_indefinite_too() {
    check(&[
        (
            "pcrs",
            |f| {
                let pairs = pcr_pairs().into_iter().flat_map(|(k, v)| [k, v].concat());
                f.set("pcrs", [0xbf].into_iter().chain(pairs).chain([0xff]).collect());
            },
            "accepted",
        ),
        (
            "pcrs with an odd number of items",
            |f| {
                let pairs = pcr_pairs().into_iter().flat_map(|(k, v)| [k, v].concat());
                f.set("pcrs", [0xbf].into_iter().chain(pairs).chain([0x10, 0xff]).collect());
            },
            "cbor.reserved",
        ),
        (
            "cabundle",
            |f| {
                let issuers = f.certificates[..4].iter().flat_map(|c| bstr(&c.der()));
                let array = [0x9f].into_iter().chain(issuers).chain([0xff]).collect();
                f.set("cabundle", array);
            },
            "accepted",
        ),
    ]);
}

#[test]
fn no_key_occurs_twice() {
    fn repeat(f: &mut Fixture, key: &str) {
        let field = f.fields.iter().find(|(known, _)| *known == tstr(key)).unwrap().clone();
        f.fields.push(field);
    }
    check(&[
        ("module_id", |f| repeat(f, "module_id"), "cbor.duplicate-key"),
        ("pcrs", |f| repeat(f, "pcrs"), "cbor.duplicate-key"),
        ("certificate", |f| repeat(f, "certificate"), "cbor.duplicate-key"),
        ("nonce", |f| repeat(f, "nonce"), "cbor.duplicate-key"),
        ("user_data", |f| repeat(f, "user_data"), "cbor.duplicate-key"),
        (
            "an unknown one",
            |f| f.fields.extend(vec![(tstr("new"), Value::Encoded(uint(1))); 2]),
            "cbor.duplicate-key",
        ),
        ("PCR0", |f| f.set("pcrs", with_pcr(uint(0), bstr(&[9; 48]))), "cbor.duplicate-key"),
    ]);
}

#[test]
fn pcrs_are_48_bytes_at_indices_0_to_31() {
    fn pcr(f: &mut Fixture, index: Vec<u8>, value: &[u8]) {
        f.set("pcrs", with_pcr(index, bstr(value)));
    }
    check(&[
        ("PCR31", |f| pcr(f, uint(31), &[1; 48]), "accepted"),
        ("PCR32", |f| pcr(f, uint(32), &[1; 48]), "document.pcr-index"),
        ("PCR 2^40", |f| pcr(f, uint(1 << 40), &[1; 48]), "document.pcr-index"),
        ("negative", |f| pcr(f, vec![0x20], &[1; 48]), "cbor.type"),
        ("text", |f| pcr(f, tstr("16"), &[1; 48]), "cbor.type"),
        ("bytes", |f| pcr(f, bstr(&[16]), &[1; 48]), "cbor.type"),
        ("long index", |f| pcr(f, vec![0x18, 0x10], &[1; 48]), "cbor.not-shortest"),
        ("empty", |f| pcr(f, uint(16), &[]), "document.pcr-length"),
        ("31 bytes", |f| pcr(f, uint(16), &[1; 31]), "document.pcr-length"),
        ("32 bytes", |f| pcr(f, uint(16), &[1; 32]), "document.pcr-length"),
        ("47 bytes", |f| pcr(f, uint(16), &[1; 47]), "document.pcr-length"),
        ("49 bytes", |f| pcr(f, uint(16), &[1; 49]), "document.pcr-length"),
        ("64 bytes", |f| pcr(f, uint(16), &[1; 64]), "document.pcr-length"),
        ("96 bytes", |f| pcr(f, uint(16), &[1; 96]), "document.pcr-length"),
        ("null value", |f| f.set("pcrs", with_pcr(uint(16), vec![NULL])), "cbor.type"),
        ("none", |f| f.set("pcrs", map(&[])), "document.no-pcrs"),
        (
            "33 of them",
            |f| f.set("pcrs", map(&(0..33).map(|i| (uint(i), bstr(&[1; 48]))).collect::<Vec<_>>())),
            "cbor.count",
        ),
        ("an array", |f| f.set("pcrs", array(&[bstr(&[1; 48])])), "cbor.type"),
    ]);
}

#[test]
fn strings_come_in_one_piece_and_numbers_in_their_shortest_form() {
    check(&[
        ("chunked user_data", |f| f.set("user_data", vec![0x5f, 0x41, 1, 0x41, 2, 0xff]), "cbor.indefinite"),
        (
            "chunked module_id",
            |f| f.set("module_id", [vec![0x7f], tstr("i-0"), vec![0xff]].concat()),
            "cbor.indefinite",
        ),
        (
            "chunked key",
            |f| f.rename("nonce", &[0x7f, 0x65, b'n', b'o', b'n', b'c', b'e', 0xff]),
            "cbor.indefinite",
        ),
        (
            "long string head",
            |f| f.set("user_data", [wide_head(2, 3, 1), vec![1, 2, 3]].concat()),
            "cbor.not-shortest",
        ),
        (
            "long key head",
            |f| f.rename("nonce", &[&wide_head(3, 5, 1), b"nonce".as_slice()].concat()),
            "cbor.not-shortest",
        ),
        ("reserved head", |f| f.set("user_data", vec![0x5c]), "cbor.reserved"),
    ]);
}

#[test]
fn other_types_have_no_place_in_a_document() {
    check(&[
        ("tagged nonce", |f| f.set("nonce", [vec![TAGGED], bstr(&[1])].concat()), "cbor.forbidden"),
        ("undefined nonce", |f| f.set("nonce", vec![UNDEFINED]), "cbor.type"),
        ("half float", |f| f.set("timestamp", vec![0xf9, 0x3c, 0]), "cbor.forbidden"),
        ("double float", |f| f.set("timestamp", [&[0xfb], [0x42; 8].as_slice()].concat()), "cbor.forbidden"),
        ("true", |f| f.set("nonce", vec![0xf5]), "cbor.type"),
        ("simple value in two bytes", |f| f.set("nonce", vec![0xf8, 22]), "cbor.forbidden"),
        ("integer key", |f| f.rename("module_id", &uint(0)), "cbor.type"),
        ("bytes as key", |f| f.rename("module_id", &bstr(b"module_id")), "cbor.type"),
        ("text certificate", |f| f.set("certificate", tstr("cert")), "cbor.type"),
        ("certificate as integers", |f| f.set("certificate", array(&[uint(0x30)])), "cbor.type"),
        (
            "module_id as bytes",
            |f| f.set("module_id", bstr(b"i-0123456789abcdef0-enc0123456789abcdef")),
            "cbor.type",
        ),
    ]);
}

#[test]
fn hostile_sizes_are_refused_by_looking_at_the_head() {
    let cases: &[Case] = &[
        ("2^32 certificates", |f| f.set("cabundle", head(4, 1 << 32)), "cbor.count"),
        ("2^63 PCRs", |f| f.set("pcrs", head(5, 1 << 63)), "cbor.count"),
        ("2^64-1 bytes", |f| f.set("nonce", head(2, u64::MAX)), "cbor.truncated"),
        ("2^62 unknown items", |f| f.set("new", head(4, 1 << 62)), "cbor.truncated"),
        ("8000 levels", |f| f.set("new", [vec![0x81; 8000], uint(0)].concat()), "cbor.depth"),
        ("8000 levels of maps", |f| f.set("new", [[0xa1, 0].repeat(4000), uint(0)].concat()), "cbor.depth"),
        (
            "40 unknown keys",
            |f| f.fields.extend((0..40).map(|i| (tstr(&format!("k{i}")), Value::Encoded(uint(1))))),
            "cbor.count",
        ),
    ];
    check(cases);
}

#[test]
fn mandatory_fields_are_there_and_not_null() {
    check(&[
        ("no module_id", |f| f.remove("module_id"), "document.missing-field"),
        ("no digest", |f| f.remove("digest"), "document.missing-field"),
        ("no timestamp", |f| f.remove("timestamp"), "document.missing-field"),
        ("no pcrs", |f| f.remove("pcrs"), "document.missing-field"),
        ("no certificate", |f| f.remove("certificate"), "document.missing-field"),
        ("no cabundle", |f| f.remove("cabundle"), "document.missing-field"),
        ("null module_id", |f| f.set("module_id", vec![NULL]), "cbor.type"),
        ("null digest", |f| f.set("digest", vec![NULL]), "cbor.type"),
        ("null timestamp", |f| f.set("timestamp", vec![NULL]), "cbor.type"),
        ("null pcrs", |f| f.set("pcrs", vec![NULL]), "cbor.type"),
        ("null certificate", |f| f.set("certificate", vec![NULL]), "cbor.type"),
        ("null cabundle", |f| f.set("cabundle", vec![NULL]), "cbor.type"),
        ("null optionals", |f| f.set("nonce", vec![NULL]), "accepted"),
        (
            "absent optionals",
            |f| ["nonce", "user_data", "public_key"].into_iter().for_each(|key| f.remove(key)),
            "accepted",
        ),
    ]);
}

#[test]
fn fields_keep_their_bounds() {
    check(&[
        ("empty module_id", |f| f.set("module_id", tstr("")), "document.field-length"),
        ("65 bytes of module_id", |f| f.set("module_id", tstr(&"i".repeat(65))), "document.field-length"),
        ("module_id not UTF-8", |f| f.set("module_id", vec![0x62, 0xc3, 0x28]), "cbor.utf8"),
        ("SHA256", |f| f.set("digest", tstr("SHA256")), "document.digest"),
        ("lower case digest", |f| f.set("digest", tstr("sha384")), "document.digest"),
        ("digest with NUL", |f| f.set("digest", tstr("SHA384\0")), "document.digest"),
        ("timestamp 0", |f| f.set("timestamp", uint(0)), "document.timestamp"),
        ("timestamp 2^53", |f| f.set("timestamp", uint(1 << 53)), "document.timestamp"),
        ("timestamp 2^63", |f| f.set("timestamp", uint(1 << 63)), "document.timestamp"),
        ("negative timestamp", |f| f.set("timestamp", vec![0x20]), "cbor.type"),
        ("text timestamp", |f| f.set("timestamp", tstr("1")), "cbor.type"),
        ("empty public_key", |f| f.set("public_key", bstr(&[])), "document.field-length"),
        ("public_key of 1024", |f| f.set("public_key", bstr(&[1; 1024])), "accepted"),
        ("public_key of 1025", |f| f.set("public_key", bstr(&[1; 1025])), "document.field-length"),
        ("empty user_data", |f| f.set("user_data", bstr(&[])), "accepted"),
        ("user_data of 513", |f| f.set("user_data", bstr(&[1; 513])), "accepted"),
        ("user_data of 1024", |f| f.set("user_data", bstr(&[1; 1024])), "accepted"),
        ("user_data of 1025", |f| f.set("user_data", bstr(&[1; 1025])), "document.field-length"),
        ("empty nonce", |f| f.set("nonce", bstr(&[])), "accepted"),
        ("nonce of 1024", |f| f.set("nonce", bstr(&[1; 1024])), "accepted"),
        ("nonce of 1025", |f| f.set("nonce", bstr(&[1; 1025])), "document.field-length"),
        ("timestamp in seconds", |f| f.set("timestamp", uint(SIGNED_AT.unsigned_abs())), "time.outside-leaf"),
    ]);
}

#[test]
fn a_nitrotpm_document_is_no_enclave_document() {
    check(&[
        ("instead of pcrs", |f| f.rename("pcrs", &tstr("nitrotpm_pcrs")), "document.nitrotpm"),
        ("beside pcrs", |f| f.set("nitrotpm_pcrs", map(&pcr_pairs())), "document.nitrotpm"),
    ]);
}

#[test]
fn keys_are_compared_exactly() {
    check(&[
        ("PCRS", |f| f.rename("pcrs", &tstr("PCRS")), "document.missing-field"),
        ("Module_Id", |f| f.rename("module_id", &tstr("Module_Id")), "document.missing-field"),
        ("nonce with NUL", |f| f.rename("nonce", &tstr("nonce\0")), "accepted"),
        ("PCRS beside pcrs", |f| f.set("PCRS", map(&pcr_pairs())), "accepted"),
    ]);
}

#[test]
fn unknown_fields_pass_unless_the_policy_refuses_them() {
    fn strict(f: &mut Fixture) {
        f.policy = f.policy.clone().refuse_unknown_fields();
    }
    check(&[
        ("known fields only, strict", strict, "accepted"),
        ("a number", |f| f.set("new", uint(7)), "accepted"),
        ("nested", |f| f.set("new", array(&[map(&[(tstr("a"), array(&[vec![NULL]]))])])), "accepted"),
        ("too deep", |f| f.set("new", array(&[array(&[array(&[array(&[])])])])), "cbor.depth"),
        ("tagged", |f| f.set("new", vec![TAGGED, 1]), "cbor.forbidden"),
        ("undefined", |f| f.set("new", vec![UNDEFINED]), "cbor.forbidden"),
        ("a float that looks like null", |f| f.set("new", vec![0xf9, 0, 22]), "cbor.forbidden"),
        ("a DER blob", |f| f.set("new", bstr(&der(0x30, &[]))), "accepted"),
        (
            "a number, strict",
            |f| {
                strict(f);
                f.set("new", uint(7));
            },
            "policy.unknown-field",
        ),
    ]);
}
