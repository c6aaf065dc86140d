//! Promise: images of this project and those of AWS's crate are the same, in
//! both directions: the same bytes when they are unsigned, the same registers
//! always, and each accepts the other's signatures.

use std::{collections::BTreeMap, fs, path::Path, time::SystemTime};

use aws_nitro_enclaves_image_format::{
    defs::PcrSignature,
    utils::{EifSigner, PcrSignatureChecker},
};
use eif::{Architecture, Image, Measurements, Metadata};
use eif_conformance::{
    CURVES, Inputs, Registers, Signer, metadata, named, oracle_reads, without_algorithm,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Reads with both, and compares what they see. Gives the registers.
#[track_caller]
fn both_read(path: &Path) -> Measurements {
    let (mut theirs, registers) = oracle_reads(path).expect("the oracle reads it");
    let (image, ours) = Image::open_measured(path).expect("this project reads it");
    assert_eq!(without_algorithm(registers.clone()), named(&ours));
    assert!(theirs.check_crc(), "the oracle finds another checksum");
    let layout = image.layout();
    assert_eq!(theirs.header.num_sections as usize, layout.sections().len());
    for (index, section) in layout.sections().iter().enumerate() {
        assert_eq!(theirs.header.section_sizes[index], section.len());
        assert_eq!(theirs.header.section_offsets[index], section.payload.start - 12);
    }
    let identity = theirs.get_metadata().map(|metadata| serde_json::to_value(metadata).expect("JSON"));
    let metadata = image.metadata().expect("metadata");
    assert_eq!(identity, metadata.map(|metadata| serde_json::to_value(metadata).expect("JSON")));

    let signature = image.signature().expect("a signature that can be read");
    assert_eq!(signature.is_some(), theirs.signature_section.is_some());
    if let Some(signature) = signature {
        signature.check(&ours.pcr0, SystemTime::now()).expect("this project accepts the signature");
        let info = theirs.get_certificate_info(registers).expect("the oracle reads the certificate");
        assert_eq!(theirs.sign_check, Some(true), "the oracle finds another register signed");
        let mut checker = PcrSignatureChecker::from_eif(&path.display().to_string()).expect("a checker");
        checker.verify().expect("the oracle accepts the signature");

        let summary = signature.summary().expect("a summary");
        assert_eq!(info.issuer_name, BTreeMap::from_iter(summary.issuer));
        assert_eq!(info.algorithm, summary.algorithm);
        let hex: Vec<_> = summary.signature.iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(info.signature, hex.join(":"));
        let section = theirs.signature_section.as_deref().expect("a section");
        cbor_agrees(section, signature.cose());
    }
    ours
}

/// serde_cbor reads the same values, and writes them as the same bytes.
fn cbor_agrees(section: &[u8], cose: &[u8]) {
    let read: Vec<PcrSignature> = serde_cbor::from_slice(section).expect("serde_cbor reads it");
    let [one] = read.as_slice() else { panic!("{} signatures", read.len()) };
    assert_eq!(one.signature, cose);
    assert_eq!(serde_cbor::to_vec(&read).expect("serde_cbor writes it"), section);
    let envelope: serde_cbor::Value = serde_cbor::from_slice(cose).expect("serde_cbor reads the envelope");
    let serde_cbor::Value::Array(parts) = envelope else { panic!("the envelope is no array") };
    let serde_cbor::Value::Bytes(payload) = &parts[2] else { panic!("the payload is no byte string") };
    let register: serde_cbor::Value = serde_cbor::from_slice(payload).expect("serde_cbor reads the payload");
    assert_eq!(serde_cbor::to_vec(&register).expect("serde_cbor writes it"), *payload);
}

/// Unsigned and signed by either, from the same files.
fn compare(inputs: &Inputs, signer: &Signer) {
    let (ours, measured) = inputs.ours("ours.eif", None);
    let (theirs, registers) = inputs.theirs("theirs.eif", None);
    assert!(fs::read(&ours).expect("ours") == fs::read(&theirs).expect("theirs"), "the images differ");
    assert_eq!(named(&measured), without_algorithm(registers));
    assert_eq!(both_read(&ours), measured);

    let (path, signed) = signer.with(|signer| inputs.ours("ours-signed.eif", Some(signer)));
    assert_eq!(both_read(&path), signed);
    let (path, registers) = inputs.theirs("theirs-signed.eif", Some(signer));
    assert_eq!(both_read(&path), signed);
    assert_eq!(named(&signed), without_algorithm(registers));
    assert_eq!(signed.pcr8.is_some(), measured.pcr8.is_none());

    // The other way to a signed image: signing one that is there.
    let again = inputs.path("again.eif");
    fs::copy(&ours, &again).expect("a copy");
    let oracle = EifSigner::new(Some(signer.for_oracle())).expect("a signer");
    oracle.sign_image(&again.display().to_string()).expect("the oracle signs it");
    assert_eq!(both_read(&again), signed);
    let resigned = inputs.path("resigned.eif");
    let output = fs::File::options().read(true).write(true).create_new(true).open(&resigned);
    let image = Image::open(&again).expect("an image");
    let written =
        signer.with(|signer| eif::write_signed(&image, output.expect("an output"), signer)).expect("signed");
    assert_eq!(both_read(&resigned), written);
    assert_eq!(written, signed);
}

#[test]
fn every_curve_signs_for_both() {
    for curve in CURVES {
        compare(&Inputs::small(), &Signer::new(curve));
    }
}

#[test]
fn keys_of_both_forms_and_certificates_with_a_chain_are_taken_by_both() {
    let (signer, issuer) = (Signer::new(CURVES[1]), Signer::new(CURVES[0]));
    fs::write(signer.key_path(), signer.key_pkcs8()).expect("the key");
    let chain = [b"text before it\n".to_vec(), signer.certificate_pem(), issuer.certificate_pem()].concat();
    fs::write(signer.certificate_path(), &chain).expect("the certificates");
    let inputs = Inputs::small();
    let (path, _) = inputs.theirs("theirs.eif", Some(&signer));
    let theirs = both_read(&path);
    let certificate = eif::signature::SigningCertificate::from_pem(chain).expect("certificates");
    let key = eif::signature::PrivateKey::from_pem(&signer.key_pkcs8(), &certificate).expect("a key");
    let sign =
        eif::signature::ImageSigner { certificate: &certificate, key: &key, now: SystemTime::now() };
    let (path, _) = inputs.ours("ours.eif", Some(&sign));
    assert_eq!(both_read(&path), theirs);
}

#[test]
fn an_image_with_as_many_sections_as_fit_is_the_same() {
    let ramdisks: Vec<_> = (0..28u8).map(|index| vec![index; usize::from(index) * 100]).collect();
    let inputs = Inputs::new(b"kernel", "", &ramdisks, metadata("many"));
    compare(&inputs, &Signer::new(CURVES[1]));
}

#[test]
fn what_people_put_into_metadata_is_kept_alike() {
    let custom = json!({"zebra": 1, "apple": [null, true, 1.5, "ü\u{1F600}\n"], "nested": {"b": {}, "a": []}});
    let docker = json!([{"Id": "sha256:00", "Config": {"Env": ["A=b"], "Labels": {"z": "1", "a": "2"}}}]);
    let metadata = Metadata { custom, docker_info: docker, ..metadata("quotes \" and \\ and \u{7}") };
    compare(&Inputs::new(b"kernel", "a b", &[vec![1]], metadata), &Signer::new(CURVES[0]));
}

#[test]
fn images_for_arm_have_the_same_flag() {
    let mut inputs = Inputs::small();
    inputs.architecture = Architecture::Aarch64;
    compare(&inputs, &Signer::new(CURVES[2]));
}

fn payload(max: usize) -> impl Strategy<Value = Vec<u8>> {
    (0..=max, any::<u8>()).prop_map(|(len, seed)| {
        (0..len).map(|index| (index * 7 + index / 251 + usize::from(seed)) as u8).collect()
    })
}

fn text() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), ".{0,40}".prop_map(Value::String), any::<i64>().prop_map(Value::from)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Sizes around those of buffers and pages, any number of ramdisks.
    #[test]
    fn generated_images_are_the_same(
        kernel in payload(70_000).prop_filter("a kernel is never empty", |kernel| !kernel.is_empty()),
        cmdline in "[ -~]{0,200}",
        ramdisks in prop::collection::vec(prop_oneof![payload(64), payload(300_000)], 1..6),
        name in ".{0,30}",
        custom in prop::collection::btree_map("[a-zA-Z]{1,8}", text(), 0..4),
        curve in 0..3usize,
    ) {
        let custom = if custom.is_empty() { Value::Null } else { json!(custom) };
        let metadata = Metadata { custom, ..metadata(&name) };
        compare(&Inputs::new(&kernel, &cmdline, &ramdisks, metadata), &Signer::new(CURVES[curve]));
    }
}

#[test]
fn the_names_of_registers_are_the_oracles() {
    let inputs = Inputs::small();
    let (_, registers) = inputs.theirs("theirs.eif", Some(&Signer::new(CURVES[1])));
    let names: Vec<_> = Registers::into_keys(registers).collect();
    assert_eq!(names, ["HashAlgorithm", "PCR0", "PCR1", "PCR2", "PCR8"]);
}
