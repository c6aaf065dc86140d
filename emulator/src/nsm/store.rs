//! The development root's two files: `dev-root.key` (mode 0600) and `dev-root.pem`.
//!
//! ```text
//! read key ──absent──▶ write to a new temporary file (0600) ──link──▶ dev-root.key
//!    ▲                                                   │ it exists: another was first
//!    └───────────────────────────────────────────────────┘
//! ```
//!
//! The certificate is made the same way, after the key and from it. Linking never
//! replaces a file, and nothing is readable under its name before it is whole: any
//! number of processes may start in one directory at once, or die in it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::certificate::{Validity, read_time};
use super::der::{Reader, tag};
use super::key::{KeyError, SigningKey};
use super::profile::{self, lifetime};

/// File name of the root's certificate.
pub const ROOT_FILE: &str = "dev-root.pem";
/// File name of the root's private key.
pub const KEY_FILE: &str = "dev-root.key";

/// Longest file that is read: both are far below it.
const FILE_MAX: u64 = 16 * 1024;

/// Why a directory cannot serve as the development authority's.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a file in it cannot be made.
    #[error("cannot create {}", .path.display())]
    Create {
        /// What was to be made.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is there but cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others can read the private key.
    #[error("{} has mode {mode:03o}, expected 600: treat the key as known, delete both dev-root files", .path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file does not hold what its name says.
    #[error("{} is not {expected}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The root is from the future or has expired.
    #[error("{} is not valid now: delete both dev-root files to make a new root", .path.display())]
    NotNow {
        /// The certificate file.
        path: PathBuf,
    },
    /// Certificate and key are not a pair, or the key is gone.
    #[error("{} does not belong to {KEY_FILE} beside it: delete both to make a new root", .path.display())]
    Mismatch {
        /// The certificate file.
        path: PathBuf,
    },
    /// The crypto library failed.
    #[error("cannot make the development root")]
    Key(#[from] KeyError),
}

/// The root as it stands in a directory.
pub(super) struct Root {
    pub(super) key: SigningKey,
    /// DER
    pub(super) certificate: Vec<u8>,
    pub(super) validity: Validity,
}

/// Reads the root in `directory`, making whatever is missing.
pub(super) fn open(directory: &Path, now: SystemTime) -> Result<Root, StoreError> {
    create_directory(directory)?;
    // Asked first: whoever writes the certificate has written the key before.
    let certificate_is_there = read(&directory.join(ROOT_FILE))?.is_some();
    let key = open_key(directory, certificate_is_there)?;
    let certificate = open_certificate(directory, &key, now)?;
    let path = directory.join(ROOT_FILE);
    match validity_of_root(&certificate, &key) {
        Some(validity) if validity.covers(now, Duration::ZERO) => Ok(Root { key, certificate, validity }),
        Some(_) => Err(StoreError::NotNow { path }),
        None => Err(StoreError::Mismatch { path }),
    }
}

fn open_key(directory: &Path, must_exist: bool) -> Result<SigningKey, StoreError> {
    let path = directory.join(KEY_FILE);
    loop {
        if let Some(text) = read_private(&path)? {
            let malformed =
                || StoreError::Malformed { path: path.clone(), expected: "a P-384 key in PKCS#8 PEM" };
            let pkcs8 = from_pem("PRIVATE KEY", &text).ok_or_else(malformed)?;
            return SigningKey::from_pkcs8(&pkcs8).map_err(|_| malformed());
        }
        if must_exist {
            return Err(StoreError::Mismatch { path: directory.join(ROOT_FILE) });
        }
        let text = to_pem("PRIVATE KEY", &SigningKey::generate()?.to_pkcs8()?);
        create_once(directory, KEY_FILE, 0o600, &text).map_err(|source| create_error(&path, source))?;
    }
}

fn open_certificate(directory: &Path, key: &SigningKey, now: SystemTime) -> Result<Vec<u8>, StoreError> {
    let path = directory.join(ROOT_FILE);
    loop {
        if let Some(text) = read(&path)? {
            let malformed = || StoreError::Malformed { path: path.clone(), expected: "a certificate in PEM" };
            return from_pem("CERTIFICATE", &text).ok_or_else(malformed);
        }
        let validity = profile::authority_validity(now, lifetime::ROOT);
        let certificate = profile::root(key, validity)?.sign(key)?;
        let text = to_pem("CERTIFICATE", &certificate);
        create_once(directory, ROOT_FILE, 0o644, &text).map_err(|source| create_error(&path, source))?;
    }
}

/// The validity of `certificate`, if it is one that carries the development root's
/// name and `key`'s public half, and that `key` signed.
fn validity_of_root(certificate: &[u8], key: &SigningKey) -> Option<Validity> {
    let mut file = Reader::new(certificate);
    let mut outer = Reader::new(file.expect(tag::SEQUENCE)?.content);
    let signed = outer.expect(tag::SEQUENCE)?;
    let _algorithm = outer.expect(tag::SEQUENCE)?;
    let signature = outer.expect(tag::BIT_STRING)?.content.split_first()?.1;
    let mut inner = Reader::new(signed.content);
    inner.expect(0xa0)?;
    inner.expect(tag::INTEGER)?;
    inner.expect(tag::SEQUENCE)?;
    let issuer = inner.expect(tag::SEQUENCE)?;
    let mut times = Reader::new(inner.expect(tag::SEQUENCE)?.content);
    let subject = inner.expect(tag::SEQUENCE)?;
    let public_key = inner.expect(tag::SEQUENCE)?;
    let not_before = read_time(times.next_element()?)?;
    let not_after = read_time(times.next_element()?)?;

    let name = profile::root_name();
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, key.public_point())
        .verify(signed.whole, signature)
        .ok()?;
    let ours = file.is_empty()
        && issuer.whole == name
        && subject.whole == name
        && public_key.whole == key.public_key_info();
    ours.then_some(Validity { not_before, not_after })
}

fn create_directory(directory: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(|source| create_error(directory, source))
}

/// Puts `contents` under `name` unless that name is taken: then nothing changes.
fn create_once(directory: &Path, name: &str, mode: u32, contents: &str) -> io::Result<()> {
    let mut random = [0; 8];
    rand::fill(&mut random).map_err(|_| io::Error::other("the random source failed"))?;
    let temporary = directory.join(format!(".{name}.{}", hex::encode(random)));
    let linked = write_new(&temporary, mode, contents)
        .and_then(|()| fs::hard_link(&temporary, directory.join(name)))
        .or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) });
    let removed = fs::remove_file(&temporary);
    linked.and(removed)?;
    File::open(directory)?.sync_all()
}

fn write_new(path: &Path, mode: u32, contents: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(contents.as_bytes())?;
    file.sync_all()
}

/// The file's text, or `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, StoreError> {
    read_checked(path, |_| Ok(()))
}

/// The same, refusing a file that anyone but its owner may use.
fn read_private(path: &Path) -> Result<Option<String>, StoreError> {
    read_checked(path, |mode| {
        if mode & 0o077 == 0 { Ok(()) } else { Err(StoreError::Exposed { path: path.to_owned(), mode }) }
    })
}

fn read_checked(
    path: &Path,
    accept: impl FnOnce(u32) -> Result<(), StoreError>,
) -> Result<Option<String>, StoreError> {
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    accept(mode)?;
    let mut text = String::new();
    file.take(FILE_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

fn create_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Create { path: path.to_owned(), source }
}

/// Textual encoding of RFC 7468: lines of 64 characters.
fn to_pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn from_pem(label: &str, text: &str) -> Option<Vec<u8>> {
    let (_, body) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = body.split_once(&format!("-----END {label}-----"))?;
    let encoded: String = body.split_whitespace().collect();
    STANDARD.decode(encoded).ok()
}
