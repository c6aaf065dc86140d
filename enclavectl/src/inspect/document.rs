//! What an attestation document claims. Nothing is verified here, and no line says so.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use attestation::Untrusted;
use eif::rootfs::Digest;
use serde::Serialize;

use crate::failure::{Blame, Failure, OrBlame};
use crate::report::{print_json, print_text};
use crate::verify::input;
use crate::verify::report::{Registers, rfc3339};

/// Byte strings are hexadecimal, certificates the SHA-256 of their DER from the root on.
#[derive(Serialize)]
struct Claims {
    /// Always false: `enclavectl verify` judges.
    verified: bool,
    claimed: Claimed,
}

#[derive(Serialize)]
struct Claimed {
    module_id: String,
    timestamp: String,
    pcrs: Registers,
    nonce: Option<String>,
    user_data: Option<String>,
    public_key: Option<String>,
    certificates: Vec<String>,
}

/// Prints the claims of the document at `path`; 65 if it is none.
pub(super) fn run(path: &Path, json: bool) -> Result<(), Failure> {
    let document = input::read(path).or_blame(Blame::NoInput)?;
    let untrusted = Untrusted::parse(&document)
        .with_context(|| {
            format!("{} is neither an enclave image nor an attestation document", path.display())
        })
        .or_blame(Blame::Data)?;
    let claims = Claims { verified: false, claimed: Claimed::from(&untrusted) };
    if json { print_json(&claims) } else { print_text(&claims.claimed.text()) }
}

impl From<&Untrusted<'_>> for Claimed {
    fn from(document: &Untrusted<'_>) -> Claimed {
        Claimed {
            module_id: document.claimed_module_id().to_owned(),
            timestamp: rfc3339(UNIX_EPOCH + Duration::from_millis(document.claimed_timestamp_ms())),
            pcrs: document.claimed_pcrs().collect(),
            nonce: document.claimed_nonce().map(hex::encode),
            user_data: document.claimed_user_data().map(hex::encode),
            public_key: document.claimed_public_key().map(hex::encode),
            certificates: document.claimed_certificates().map(|der| Digest::sha256(der).hex()).collect(),
        }
    }
}

impl Claimed {
    /// The parser has seen to it that no text of the document holds control characters.
    fn text(&self) -> String {
        let mut text = String::from(
            "UNCHECKED: whoever made this document chose every line below; `enclavectl verify` judges it\n",
        );
        let mut line = |name: &str, value: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<9} {value}");
        };
        line("module", &self.module_id.escape_debug().to_string());
        line("signed", &self.timestamp);
        for (name, value) in
            [("nonce", &self.nonce), ("user data", &self.user_data), ("key", &self.public_key)]
        {
            line(name, value.as_deref().unwrap_or("none"));
        }
        for (register, value) in self.pcrs.nonzero() {
            line(&register, value);
        }
        for certificate in &self.certificates {
            line("sha256", certificate);
        }
        text
    }
}
