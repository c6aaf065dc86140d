//! Reads what `verify` works on: the document and, for its policy, an image.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use attestation::{MAX_DOCUMENT, Pcr};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::failure::Failure;

/// Hexadecimal text doubles a document; line breaks add a little.
const MAX_INPUT: u64 = 4 * MAX_DOCUMENT as u64;

/// First byte of a bare COSE_Sign1, and of one under tag 18.
const RAW: [u8; 2] = [0x84, 0xd2];

/// Reads a document and undoes base64 or hexadecimal text. What is neither
/// is returned as it is, for the verifier to refuse.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let source: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?),
    };
    source
        .take(MAX_INPUT + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(decoded(&bytes).unwrap_or(bytes))
}

/// The registers that the image at `path` measures to.
pub(crate) fn measure(path: &Path) -> Result<Vec<(u8, Pcr)>, Failure> {
    let (_, measured) = eif::Image::open_measured(path)?;
    let always = [(0, measured.pcr0), (1, measured.pcr1), (2, measured.pcr2)];
    let signed = measured.pcr8.map(|pcr| (8, pcr));
    Ok(always.into_iter().chain(signed).map(|(index, pcr)| (index, *pcr.as_bytes())).collect())
}

fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
    if RAW.contains(bytes.first()?) {
        return None;
    }
    let text: String = std::str::from_utf8(bytes).ok()?.split_ascii_whitespace().collect();
    let unpadded = text.trim_end_matches('=');
    let hexadecimal = hex::decode(&text).ok();
    hexadecimal
        .or_else(|| STANDARD_NO_PAD.decode(unpadded).ok())
        .or_else(|| URL_SAFE_NO_PAD.decode(unpadded).ok())
        .filter(|document| !document.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_document_decodes_to_the_same_bytes() {
        let document = [0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xff, 0xfe];
        let spellings =
            ["8444a1013822fffe", "8444A101 3822\nFFFE\n", "hEShATgi//4=", "hEShATgi\r\n//4", "hEShATgi__4"];
        for text in spellings {
            assert_eq!(decoded(text.as_bytes()).as_deref(), Some(&document[..]), "{text}");
        }
    }

    #[test]
    fn raw_bytes_and_nonsense_are_left_alone() {
        for bytes in [&[0x84, 0x44][..], &[0xd2, 0x84], b"no document!", b"", b"\xff\xfe"] {
            assert_eq!(decoded(bytes), None);
        }
    }
}
