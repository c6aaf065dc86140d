//! Images that AWS's crate takes although something is wrong with them, or
//! that end it: each is refused here, and the message says why.
//!
//! The oracle runs in a process of its own, because some of these abort it.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use aws_nitro_enclaves_image_format::utils::{EifSigner, PcrSignatureChecker};
use eif::{
    Image,
    signature::{PrivateKey, SigningCertificate},
};
use eif_conformance::{CURVES, Inputs, Signer, oracle_reads};

/// Where header fields lie.
const VERSION: usize = 4;
const FLAGS: usize = 6;
const RESERVED: usize = 24;
const COUNT: usize = 26;
const OFFSETS: usize = 28;
const SIZES: usize = 284;
const UNUSED: usize = 540;
const CRC: usize = 544;
const FIRST_SECTION: usize = 548;

/// What becomes of the oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Oracle {
    /// Reads the image and finds its checksum right.
    Accepts,
    /// Unwinds.
    Panics,
    /// Takes the process with it.
    Aborts,
}

/// A way to spoil an image, the oracle's end, and words of this project's message.
type Case = (&'static str, Oracle, fn(&mut Vec<u8>), &'static str);

const CASES: &[Case] = &[
    ("another magic", Oracle::Accepts, |image| put(image, 0, b"XXXX"), "not an enclave image"),
    ("version 0", Oracle::Accepts, |image| put(image, VERSION, &[0, 0]), "version 0 is not supported"),
    ("version 1, without checksum", Oracle::Accepts, |image| put(image, VERSION, &[0, 1]), "version 1"),
    ("a version to come", Oracle::Accepts, |image| put(image, VERSION, &[0, 5]), "version 5"),
    ("an unknown flag", Oracle::Accepts, |image| put(image, FLAGS, &[0x80, 0]), "unknown flags 0x8000"),
    ("a reserved field", Oracle::Accepts, |image| put(image, RESERVED, &[0, 1]), "a reserved field"),
    ("the unused field", Oracle::Accepts, |image| put(image, UNUSED, &[1]), "a reserved field"),
    ("no sections", Oracle::Accepts, |image| put(image, COUNT, &[0, 0]), "0 sections"),
    ("fewer sections than there are", Oracle::Accepts, |image| put(image, COUNT, &[0, 4]), "unused slot"),
    ("more sections than there are", Oracle::Accepts, |image| put(image, COUNT, &[0, 6]), "puts section 5 at 0"),
    ("more sections than fit", Oracle::Accepts, |image| put(image, COUNT, &[0, 33]), "33 sections"),
    // What boots is not what was measured.
    ("a kernel elsewhere", Oracle::Accepts, |image| put(image, OFFSETS + 6, &[3, 0]), "puts section 0 at"),
    ("a shorter kernel", Oracle::Accepts, |image| put(image, SIZES + 6, &[0, 9]), "section 0 has 5000 bytes"),
    ("a shorter ramdisk", Oracle::Accepts, |image| put(image, SIZES + 8 * 4 + 7, &[9]), "section 4 has"),
    ("a slot after the last", Oracle::Accepts, |image| put(image, SIZES + 8 * 31, &[1]), "unused slot"),
    ("section flags", Oracle::Accepts, |image| put(image, FIRST_SECTION + 3, &[1]), "unknown flags 0x0001"),
    ("no ramdisk", Oracle::Accepts, |image| keep(image, &[0, 1, 2]), "there is no ramdisk"),
    ("no kernel", Oracle::Accepts, |image| keep(image, &[1, 2, 3, 4]), "section 0, a cmdline, is out of order"),
    ("an empty kernel", Oracle::Accepts, |image| replace(image, 0, b""), "the kernel is empty"),
    ("two kernels", Oracle::Accepts, |image| keep(image, &[0, 0, 1, 3]), "section 1, a kernel, is out of order"),
    ("two command lines", Oracle::Accepts, |image| keep(image, &[0, 1, 1, 3]), "a cmdline, is out of order"),
    ("the ramdisk first", Oracle::Accepts, |image| keep(image, &[3, 0, 1]), "a ramdisk, is out of order"),
    ("two metadata", Oracle::Accepts, |image| keep(image, &[0, 1, 2, 2, 3]), "a metadata, is out of order"),
    ("metadata at the end", Oracle::Accepts, |image| keep(image, &[0, 1, 3, 2]), "a metadata, is out of order"),
    (
        "a command line that Linux cuts",
        Oracle::Accepts,
        |image| replace(image, 1, &[b'a'; 5000]),
        "a cmdline, has 5000 bytes, at most 4096",
    ),
    ("no signature in the section", Oracle::Panics, |image| sign(image, &[0x80]), "0 signatures"),
    ("a section of a PiB", Oracle::Aborts, |image| huge(image), "too early"),
];

/// As [`CASES`], for an image that is signed well; the change is to its
/// section's payload.
const SIGNED: &[(&str, Oracle, fn(&[u8]) -> Vec<u8>, &str)] = &[
    ("two signatures", Oracle::Accepts, |cbor| [&[0x82], &cbor[1..], &cbor[1..]].concat(), "2 signatures"),
    ("endless lengths", Oracle::Accepts, |cbor| [&[0x9F], &cbor[1..], &[0xFF]].concat(), "indefinite"),
    (
        "an entry that nobody knows",
        Oracle::Accepts,
        |cbor| [&[0x81, 0xA3, 0x61, b'x', 0xF6], &cbor[2..]].concat(),
        "unexpected or repeated entry \"x\"",
    ),
];

#[test]
fn what_the_oracle_takes_or_dies_of_is_refused_with_a_reason() {
    let inputs = Inputs::small();
    let (path, _) = inputs.theirs("good.eif", None);
    let good = fs::read(&path).expect("an image");
    assert_eq!(oracle(&path), Some(Oracle::Accepts), "the oracle takes its own");
    Image::parse(&good).expect("this project takes it");
    for (name, expected, spoil, reason) in CASES {
        let mut image = good.clone();
        spoil(&mut image);
        seal(&mut image);
        refused(&inputs.path("spoilt.eif"), name, *expected, &image, reason);
    }
    let (path, _) = inputs.theirs("signed.eif", Some(&Signer::new(CURVES[1])));
    let signed = fs::read(&path).expect("an image");
    let payload = parts(&signed).pop().expect("a signature").1;
    for (name, expected, spoil, reason) in SIGNED {
        let mut image = good.clone();
        sign(&mut image, &spoil(&payload));
        seal(&mut image);
        refused(&inputs.path("spoilt.eif"), name, *expected, &image, reason);
    }
}

#[track_caller]
fn refused(path: &Path, name: &str, expected: Oracle, image: &[u8], reason: &str) {
    fs::write(path, image).expect("an image");
    assert_eq!(oracle(path), Some(expected), "{name}");
    let read = Image::open_measured(path).map(|(image, _)| image.signature().map(|_| ()));
    let message = match read {
        Err(error) | Ok(Err(error)) => chain(&error),
        Ok(Ok(())) => panic!("{name} is accepted"),
    };
    assert!(message.contains(reason), "{name}: {message}");
}

#[test]
fn a_signature_of_another_image_or_time_is_no_signature() {
    let (inputs, other) = (Inputs::small(), Inputs::new(b"other", "", &[vec![1]], eif_conformance::metadata("x")));
    let signer = Signer::new(CURVES[0]);
    let (path, _) = other.theirs("other.eif", Some(&signer));
    let foreign = parts(&fs::read(path).expect("an image")).pop().expect("a signature").1;
    let expired = Signer::named(CURVES[0], "expired", -30, -1);
    let (path, _) = inputs.theirs("expired.eif", Some(&expired));
    let late = parts(&fs::read(path).expect("an image")).pop().expect("a signature").1;
    let (path, _) = inputs.theirs("good.eif", None);
    let good = fs::read(path).expect("an image");

    for (section, checker_takes, reason) in
        [(foreign, true, "the image measures"), (late, false, "the signing certificate has expired")]
    {
        let mut image = good.clone();
        sign(&mut image, &section);
        seal(&mut image);
        let path = inputs.path("moved.eif");
        fs::write(&path, &image).expect("an image");
        oracle_reads(&path).expect("the oracle reads it");
        let checked = PcrSignatureChecker::from_eif(&path.display().to_string()).and_then(|mut it| it.verify());
        assert_eq!(checked.is_ok(), checker_takes, "{checked:?}");
        let (image, measured) = Image::open_measured(&path).expect("its form is good");
        let signature = image.signature().expect("readable").expect("a signature");
        let error = signature.check(&measured.pcr0, SystemTime::now()).expect_err("it is not good");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn signing_again_with_longer_certificates_breaks_the_oracles_table_not_ours() {
    let (inputs, short, long) =
        (Inputs::small(), Signer::new(CURVES[0]), Signer::named(CURVES[2], &"long ".repeat(12), 0, 30));
    let (path, _) = inputs.theirs("signed.eif", Some(&short));
    let again = inputs.path("again.eif");
    fs::copy(&path, &again).expect("a copy");
    let oracle = EifSigner::new(Some(long.for_oracle())).expect("a signer");
    oracle.sign_image(&again.display().to_string()).expect("the oracle signs it");
    let (theirs, _) = oracle_reads(&again).expect("the oracle reads it");
    assert!(theirs.check_crc());
    let error = chain(&Image::open(&again).err().expect("the table is wrong"));
    assert!(error.contains("by the table"), "{error}");

    let image = Image::open(&path).expect("an image");
    let ours = inputs.path("ours.eif");
    let output = fs::File::options().read(true).write(true).create_new(true).open(&ours).expect("an output");
    long.with(|signer| eif::write_signed(&image, output, signer)).expect("signed");
    let (mut reader, registers) = oracle_reads(&ours).expect("the oracle reads it");
    assert!(reader.check_crc());
    reader.get_certificate_info(registers).expect("a certificate");
    assert_eq!(reader.sign_check, Some(true));
    Image::open(&ours).expect("this project reads it");
}

/// The oracle signs with any key, and puts a private key into the image when
/// it stands beside the certificate.
#[test]
fn keys_that_do_not_fit_or_would_leak_are_refused() {
    let (signer, stranger, inputs) = (Signer::new(CURVES[0]), Signer::new(CURVES[0]), Inputs::small());
    let certificate = SigningCertificate::from_pem(signer.certificate_pem()).expect("a certificate");
    let error = PrivateKey::from_pem(&stranger.key_pem(), &certificate).err().expect("another key");
    assert!(error.to_string().contains("not the certificate's"), "{error}");
    let other = Signer::new(CURVES[1]);
    let error = PrivateKey::from_pem(&other.key_pkcs8(), &certificate).err().expect("another curve");
    assert!(error.to_string().contains("on P-384, the certificate's key on P-256"), "{error}");

    let both = [signer.certificate_pem(), signer.key_pem()].concat();
    fs::write(signer.certificate_path(), &both).expect("the file");
    let (path, _) = inputs.theirs("leaking.eif", Some(&signer));
    let leaked = fs::read(path).expect("an image");
    let section = parts(&leaked).pop().expect("a signature").1;
    let read: Vec<aws_nitro_enclaves_image_format::defs::PcrSignature> =
        serde_cbor::from_slice(&section).expect("the section");
    assert_eq!(read[0].signing_certificate, both, "the oracle's image holds the private key");
    let error = SigningCertificate::from_pem(both).err().expect("a leak");
    assert!(error.to_string().contains("holds a private key"), "{error}");
}

#[test]
fn an_expired_certificate_signs_nothing() {
    let expired = Signer::named(CURVES[1], "expired", -30, -1);
    let (certificate, key) = expired.for_us();
    let signer = eif::signature::ImageSigner { certificate: &certificate, key: &key, now: SystemTime::now() };
    let error = signer.section(&eif::Pcr::ZERO).expect_err("it is too late");
    assert!(chain(&error).contains("expired"), "{error}");
    let early = eif::signature::ImageSigner { now: signer.now - Duration::from_secs(10 * 86_400), ..signer };
    early.section(&eif::Pcr::ZERO).expect("in time");
}

/// Not a test: what [`oracle`] starts.
#[test]
fn oracle_in_a_process() {
    let Ok(path) = env::var("ORACLE_READS") else { return };
    let (reader, _) = oracle_reads(Path::new(&path)).expect("the oracle refuses it");
    println!("checksum {}", reader.check_crc());
    std::process::exit(if reader.check_crc() { 0 } else { 3 });
}

/// What becomes of the oracle at this image; nothing when it refuses it.
fn oracle(path: &Path) -> Option<Oracle> {
    let output = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "oracle_in_a_process", "--nocapture"])
        .env("ORACLE_READS", path)
        .stdin(Stdio::null())
        .output()
        .expect("this program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(Oracle::Accepts),
        None => Some(Oracle::Aborts),
        Some(_) if errors.contains("the oracle refuses it") || errors.is_empty() => None,
        Some(3) => None,
        Some(_) => Some(Oracle::Panics),
    }
}

/// Type and payload of each section, as their own headers have it.
fn parts(image: &[u8]) -> Vec<([u8; 2], Vec<u8>)> {
    let mut parts = Vec::new();
    let mut rest = &image[FIRST_SECTION..];
    while let Some((header, after)) = rest.split_first_chunk::<12>() {
        let len = u64::from_be_bytes(header[4..].try_into().expect("8 bytes")) as usize;
        parts.push(([header[0], header[1]], after[..len].to_vec()));
        rest = &after[len..];
    }
    parts
}

/// The header's fields and these sections, the table being right.
fn assemble(image: &mut Vec<u8>, parts: &[([u8; 2], Vec<u8>)]) {
    image.truncate(FIRST_SECTION);
    image[OFFSETS..UNUSED].fill(0);
    put(image, COUNT, &(parts.len() as u16).to_be_bytes());
    for (index, (kind, payload)) in parts.iter().enumerate() {
        let (offset, len) = (image.len() as u64, payload.len() as u64);
        put(image, OFFSETS + 8 * index, &offset.to_be_bytes());
        put(image, SIZES + 8 * index, &len.to_be_bytes());
        image.extend([kind[0], kind[1], 0, 0]);
        image.extend(len.to_be_bytes());
        image.extend(payload);
    }
}

fn keep(image: &mut Vec<u8>, indices: &[usize]) {
    let all = parts(image);
    let kept: Vec<_> = indices.iter().map(|index| all[*index].clone()).collect();
    assemble(image, &kept);
}

fn replace(image: &mut Vec<u8>, index: usize, payload: &[u8]) {
    let mut all = parts(image);
    all[index].1 = payload.to_vec();
    assemble(image, &all);
}

fn sign(image: &mut Vec<u8>, payload: &[u8]) {
    let mut all = parts(image);
    all.push(([0, 4], payload.to_vec()));
    assemble(image, &all);
}

/// The last section says that it has 2^50 bytes, in both places.
fn huge(image: &mut Vec<u8>) {
    let last = parts(image).len() - 1;
    let entry = OFFSETS + 8 * last;
    let offset = u64::from_be_bytes(image[entry..entry + 8].try_into().expect("8 bytes")) as usize;
    let size = (1u64 << 50).to_be_bytes();
    put(image, offset + 4, &size);
    put(image, SIZES + 8 * last, &size);
}

fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn seal(image: &mut [u8]) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&image[..CRC]);
    crc.update(&image[FIRST_SECTION..]);
    put(image, CRC, &crc.finalize().to_be_bytes());
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
