//! Attestation documents: the payload map and the COSE_Sign1 around it
//! (RFC 9052 section 4.2; AWS's attestation_process.md section 3).
//!
//! Payload, head and signature are separate steps, so that a test can sign a
//! payload that no module would write, or change a document after it was signed.

use std::convert::Infallible;

use minicbor::Encoder;

use super::key::{KeyError, SigningKey};
use super::pcr::Digest;

/// The protected header of every document: `{1: -35}`, algorithm ES384.
pub const PROTECTED: &[u8] = &[0xa1, 0x01, 0x38, 0x22];

/// What a document says.
#[derive(Debug, Clone)]
pub struct Payload<'a> {
    /// `<instance>-enc<slot>`
    pub module_id: &'a str,
    /// Milliseconds since 1970.
    pub timestamp_ms: u64,
    /// Registers to report, ascending; hardware reports the locked ones.
    pub pcrs: Vec<(u8, Digest)>,
    /// The leaf, DER.
    pub certificate: &'a [u8],
    /// Root first, then each issuer down to the leaf's, DER.
    pub cabundle: Vec<&'a [u8]>,
    /// From the request; absent values are written as null.
    pub public_key: Option<&'a [u8]>,
    /// From the request.
    pub user_data: Option<&'a [u8]>,
    /// From the request.
    pub nonce: Option<&'a [u8]>,
    /// A definite-length map, as hardware wrote until the middle of 2025. Since
    /// then the payload is an indefinite-length map; what is inside it stays definite.
    pub definite: bool,
}

impl Payload<'_> {
    /// The payload map, keys in the order of hardware.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new(Vec::new());
        match self.write(&mut out) {
            Ok(()) => out.into_writer(),
            // Not reached: writing to a Vec cannot fail.
            Err(_) => Vec::new(),
        }
    }

    fn write(&self, out: &mut Encoder<Vec<u8>>) -> Result<(), minicbor::encode::Error<Infallible>> {
        if self.definite {
            out.map(9)?
        } else {
            out.begin_map()?
        };
        out.str("module_id")?.str(self.module_id)?;
        out.str("digest")?.str("SHA384")?;
        out.str("timestamp")?.u64(self.timestamp_ms)?;
        out.str("pcrs")?.map(self.pcrs.len() as u64)?;
        for (index, value) in &self.pcrs {
            out.u8(*index)?.bytes(value)?;
        }
        out.str("certificate")?.bytes(self.certificate)?;
        out.str("cabundle")?.array(self.cabundle.len() as u64)?;
        for certificate in &self.cabundle {
            out.bytes(certificate)?;
        }
        for (key, value) in
            [("public_key", self.public_key), ("user_data", self.user_data), ("nonce", self.nonce)]
        {
            match value {
                Some(value) => out.str(key)?.bytes(value)?,
                None => out.str(key)?.null()?,
            };
        }
        if !self.definite {
            out.end()?;
        }
        Ok(())
    }
}

/// Signs `payload` as it stands: an untagged COSE_Sign1, algorithm ES384.
pub fn sign(payload: &[u8], key: &SigningKey) -> Result<Vec<u8>, KeyError> {
    let signature = key.sign_fixed(&signed_bytes(PROTECTED, payload))?;
    Ok(envelope(PROTECTED, &[0xa0], payload, &signature))
}

/// The Sig_structure of RFC 9052 section 4.4: what the signature covers.
pub fn signed_bytes(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x84, 0x6a];
    out.extend_from_slice(b"Signature1");
    push_bytes(&mut out, protected);
    push_bytes(&mut out, &[]);
    push_bytes(&mut out, payload);
    out
}

/// An array of the four parts; `unprotected` is written as it stands, the others as
/// byte strings.
pub fn envelope(protected: &[u8], unprotected: &[u8], payload: &[u8], signature: &[u8]) -> Vec<u8> {
    let mut out = vec![0x84];
    push_bytes(&mut out, protected);
    out.extend_from_slice(unprotected);
    push_bytes(&mut out, payload);
    push_bytes(&mut out, signature);
    out
}

/// A byte string with the shortest head; lengths from 64 KiB on take four octets.
fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    match bytes.len() {
        length @ 0..=23 => out.push(0x40 | length as u8),
        length @ 24..=0xff => out.extend_from_slice(&[0x58, length as u8]),
        length @ 0x100..=0xffff => {
            out.push(0x59);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x5a);
            out.extend_from_slice(&(length as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(definite: bool) -> Vec<u8> {
        Payload {
            module_id: "i-06f4d13c6679a7232-enc019f15f1504dc31d",
            timestamp_ms: 0x019f_15f2_2d56,
            pcrs: vec![(0, [1; 48]), (16, [2; 48])],
            certificate: b"leaf",
            cabundle: vec![b"root", b"issuer"],
            public_key: None,
            user_data: Some(b""),
            nonce: Some(&[7; 1024]),
            definite,
        }
        .encode()
    }

    #[test]
    fn the_payload_begins_and_ends_as_hardware_writes_it() {
        let written = payload(false);
        // Compare reference vector turnkey-2026-06: bf, module_id as text of 39 bytes.
        assert_eq!(written[..12], *b"\xbf\x69module_id\x78");
        assert_eq!(written.last(), Some(&0xff));
        let stamp = written.windows(10).position(|window| window == b"\x69timestamp").unwrap();
        assert_eq!(hex::encode(&written[stamp + 10..stamp + 19]), "1b0000019f15f22d56");

        let definite = payload(true);
        assert_eq!(definite[0], 0xa9);
        assert_eq!(definite[1..], written[1..written.len() - 1]);
    }

    #[test]
    fn byte_strings_have_the_shortest_head() {
        for (length, head) in [(0, "40"), (23, "57"), (24, "5818"), (256, "590100"), (65_536, "5a00010000")] {
            let mut out = Vec::new();
            push_bytes(&mut out, &vec![0; length]);
            assert_eq!(hex::encode(&out[..out.len() - length]), head);
        }
    }
}
