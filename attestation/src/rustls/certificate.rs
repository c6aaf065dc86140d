//! The certificate that carries a document: how it is written and read.
//!
//! The document is in the extension `id-pe-cmw` (RFC 9999 section 4.4), as a
//! CBOR record of COSE_Sign1 evidence. Nobody issued the certificate, so its
//! names, dates and own signature prove nothing and are not looked at: what
//! counts is its key and that the document names this key.

use crate::cbor::{CborError, Length, Reader};
use crate::cose::MAX_DOCUMENT;
use crate::der::{BIT_STRING, INTEGER, NotDer, OCTET_STRING, SEQUENCE, Walker};
use crate::error::{Class, Error};
use crate::x509::{self, Extension};

/// Why a server's certificate is not that of an accepted enclave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Not a certificate.
    #[error("the server's {0} is not valid DER")]
    Certificate(&'static str),
    /// The key is not on P-256.
    #[error("the server's key is not an uncompressed point of the named curve P-256")]
    Key,
    /// The certificate carries no document: an ordinary server, perhaps.
    #[error("the server's certificate carries no attestation document")]
    Missing,
    /// The extension is there, but holds something else, or twice.
    #[error("the certificate's id-pe-cmw extension does not hold one COSE_Sign1 evidence record")]
    Wrapper,
    /// The document is refused.
    #[error(transparent)]
    Document(#[from] Error),
    /// A good document, but for another key: a stolen one.
    #[error("the document does not speak for the server's key")]
    Binding,
}

impl EvidenceError {
    /// Stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "tls.certificate",
            Self::Key => "tls.key",
            Self::Missing => "tls.no-evidence",
            Self::Wrapper => "tls.evidence-form",
            Self::Document(error) => error.code(),
            Self::Binding => "tls.binding",
        }
    }

    /// Whose fault it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Certificate(_) | Self::Key | Self::Wrapper => Class::Malformed,
            Self::Missing | Self::Binding => Class::Untrusted,
            Self::Document(error) => error.class(),
        }
    }
}

/// The parts of a server's certificate that count. Nothing is verified yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrapped<'a> {
    /// SubjectPublicKeyInfo (DER) of a P-256 key.
    pub key_info: &'a [u8],
    /// The document as the NSM made it.
    pub document: &'a [u8],
}

/// 1.3.6.1.5.5.7.1.35
const ID_PE_CMW: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 1, 35];
/// CoAP content format of `application/cose; cose-type="cose-sign1"` (RFC 9052 section 10.3).
const COSE_SIGN1: u64 = 18;
/// Bit 2 of `cm-type` (RFC 9999 section 3.1.1).
const EVIDENCE: u64 = 1 << 2;

const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// `[0] { INTEGER 2 }`: version 3.
const V3: &[u8] = &[VERSION, 3, INTEGER, 1, 2];
/// AlgorithmIdentifier of ecdsa-with-SHA256 (1.2.840.10045.4.3.2).
const ECDSA_WITH_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
/// SubjectPublicKeyInfo of a P-256 key up to its point (RFC 5480 section 2).
const P256_KEY: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
const UNCOMPRESSED: u8 = 4;
const P256_POINT: usize = 1 + 2 * 32;
/// `CN=enclave`.
const NAME: &[u8] = b"\x30\x12\x31\x10\x30\x0e\x06\x03\x55\x04\x03\x0c\x07enclave";

impl<'a> Wrapped<'a> {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`EvidenceError`], but not of the document: that is not looked into.
    pub fn parse(certificate: &'a [u8]) -> Result<Self, EvidenceError> {
        let mut file = Walker::new(certificate);
        let mut outer = file.enter(SEQUENCE).map_err(not("certificate"))?;
        let mut body = outer.enter(SEQUENCE).map_err(not("certificate body"))?;
        outer.expect(SEQUENCE).map_err(not("signature algorithm"))?;
        outer.expect(BIT_STRING).map_err(not("signature"))?;
        outer.end().and_then(|()| file.end()).map_err(not("certificate"))?;

        x509::version(&mut body).map_err(|_| EvidenceError::Certificate("version"))?;
        body.expect(INTEGER).map_err(not("serial number"))?;
        for part in ["signature algorithm", "issuer", "validity", "subject"] {
            body.expect(SEQUENCE).map_err(not(part))?;
        }
        let key_info = body.expect(SEQUENCE).map_err(not("key"))?.whole;
        match key_info.strip_prefix(P256_KEY) {
            Some(point @ [UNCOMPRESSED, ..]) if point.len() == P256_POINT => {}
            _ => return Err(EvidenceError::Key),
        }
        // An ordinary certificate without extensions carries no document either.
        if body.is_empty() {
            return Err(EvidenceError::Missing);
        }
        let mut extensions = body.enter(EXTENSIONS).map_err(not("extensions"))?;
        body.end().map_err(not("certificate body"))?;
        let list = extensions.enter(SEQUENCE).map_err(not("extensions"))?;
        extensions.end().map_err(not("extensions"))?;
        Ok(Self { key_info, document: document(list)? })
    }
}

/// The document in the one extension that carries it.
fn document<'a>(mut list: Walker<'a>) -> Result<&'a [u8], EvidenceError> {
    let mut found = None;
    while !list.is_empty() {
        let extension = Extension::read(&mut list).map_err(not("extension"))?;
        if extension.oid == ID_PE_CMW && found.replace(unwrap(extension.value)?).is_some() {
            return Err(EvidenceError::Wrapper);
        }
    }
    found.ok_or(EvidenceError::Missing)
}

/// `CMW ::= CHOICE { json UTF8String, cbor OCTET STRING }`, the latter, with a
/// record in it whose indicator may be left out.
fn unwrap(value: &[u8]) -> Result<&[u8], EvidenceError> {
    let mut choice = Walker::new(value);
    let record = choice.expect(OCTET_STRING).and_then(|record| choice.end().map(|()| record.body));
    let record = record.map_err(|NotDer| EvidenceError::Wrapper)?;
    let read = || -> Result<Option<&[u8]>, CborError> {
        let mut reader = Reader::new(record, 0);
        let mut members = reader.array(3, Length::Definite)?;
        let mut more = || reader.more(&mut members);
        if !more()? || reader.uint()? != COSE_SIGN1 {
            return Ok(None);
        }
        if !reader.more(&mut members)? {
            return Ok(None);
        }
        let document = reader.bytes()?;
        if reader.more(&mut members)? && reader.uint()? != EVIDENCE {
            return Ok(None);
        }
        reader.end()?;
        Ok(Some(document))
    };
    read().ok().flatten().ok_or(EvidenceError::Wrapper)
}

/// The unsigned body of a certificate for the uncompressed P-256 point `key`,
/// valid when `leaf`, the document's own certificate, is.
///
/// # Errors
/// When `leaf` is not DER, or `document` or `key` has an impossible length.
pub(super) fn body(key: &[u8], document: &[u8], leaf: &[u8]) -> Result<Vec<u8>, NotDer> {
    if key.len() != P256_POINT || document.len() > MAX_DOCUMENT {
        return Err(NotDer);
    }
    let length = (document.len() as u16).to_be_bytes();
    // 0x59: a byte string whose length takes two bytes, as documents have it.
    let head = match document.len() {
        0x100.. => [0x59, length[0], length[1]],
        _ => return Err(NotDer),
    };
    let record = [&[0x83, COSE_SIGN1 as u8][..], &head, document, &[EVIDENCE as u8]].concat();
    let extension = element(
        SEQUENCE,
        &[
            &element(crate::der::OID, &[ID_PE_CMW]),
            &element(OCTET_STRING, &[&element(OCTET_STRING, &[&record])]),
        ],
    );
    let extensions = element(EXTENSIONS, &[&element(SEQUENCE, &[&extension])]);
    // The key is unique, so its certificates may share a serial number.
    let serial = [INTEGER, 1, 1];
    Ok(element(
        SEQUENCE,
        &[V3, &serial, ECDSA_WITH_SHA256, NAME, validity(leaf)?, NAME, &key_info(key), &extensions],
    ))
}

/// The certificate from its body and the body's signature.
pub(super) fn signed(body: &[u8], signature: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[body, ECDSA_WITH_SHA256, &element(BIT_STRING, &[&[0], signature])])
}

/// SubjectPublicKeyInfo of an uncompressed P-256 point.
pub(super) fn key_info(point: &[u8]) -> Vec<u8> {
    [P256_KEY, point].concat()
}

/// The encoded validity of a certificate.
fn validity(certificate: &[u8]) -> Result<&[u8], NotDer> {
    let mut body = Walker::new(certificate).enter(SEQUENCE)?.enter(SEQUENCE)?;
    body.optional(VERSION)?;
    body.expect(INTEGER)?;
    body.expect(SEQUENCE)?;
    body.expect(SEQUENCE)?;
    Ok(body.expect(SEQUENCE)?.whole)
}

/// A DER element of up to 65535 bytes; a document and its wrapping stay far below.
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut element = Vec::with_capacity(length + 4);
    element.push(tag);
    match length {
        0..=0x7f => element.push(length as u8),
        0x80..=0xff => element.extend([0x81, length as u8]),
        _ => element.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    parts.iter().for_each(|part| element.extend_from_slice(part));
    element
}

fn not(what: &'static str) -> impl Fn(NotDer) -> EvidenceError {
    move |NotDer| EvidenceError::Certificate(what)
}
