//! What a certificate in a document must look like.
//!
//! `webpki` verifies signatures, validity, CA flags and path lengths. This
//! module reads the same bytes for the rules that it leaves out: DER to the
//! last byte, one algorithm and one curve, sane serials, no duplicate or
//! unknown critical extension, critical basicConstraints, and keyUsage
//! (RFC 5280 sections 4.1 and 4.2; attestation_process.md section 3.2.3).

use crate::der::{
    BIT_STRING, BOOLEAN, GENERALIZED_TIME, INTEGER, NotDer, OCTET_STRING, OID, PRINTABLE_STRING, SEQUENCE,
    SET, UTC_TIME, UTF8_STRING, Walker,
};

/// What is wrong with one certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not DER, or not the structure of a certificate.
    #[error("{0} is not valid DER")]
    Der(&'static str),
    /// Bytes follow the certificate.
    #[error("bytes follow the certificate")]
    Trailing,
    /// Not an X.509 version 3 certificate.
    #[error("not a version 3 certificate")]
    Version,
    /// The serial number is zero, negative, padded, or longer than 20 bytes.
    #[error("serial number is not a positive integer of up to 20 bytes")]
    Serial,
    /// An algorithm other than ecdsa-with-SHA384, inside or outside.
    #[error("signature algorithm is not ecdsa-with-SHA384 in both places")]
    Algorithm,
    /// A date that is not a valid UTCTime or GeneralizedTime, or the wrong way around.
    #[error("validity is not two ordered dates")]
    Validity,
    /// The key is not an uncompressed point on the named curve P-384.
    #[error("public key is not an uncompressed point of the named curve P-384")]
    Key,
    /// Not exactly one common name.
    #[error("subject does not have exactly one common name")]
    CommonName,
    /// An extension that occurs twice.
    #[error("an extension occurs twice")]
    DuplicateExtension,
    /// A critical extension other than basicConstraints and keyUsage.
    #[error("a critical extension is unknown")]
    UnknownCritical,
    /// Name constraints, which no Nitro certificate has.
    #[error("name constraints are not supported")]
    NameConstraints,
    /// basicConstraints is missing on an issuer, or not critical.
    #[error("basicConstraints is missing or not critical")]
    BasicConstraints,
    /// An issuer that is no CA, or a leaf that is one.
    #[error("the CA flag does not fit the place in the chain")]
    Ca,
    /// A leaf with a path length constraint.
    #[error("the leaf carries a path length")]
    LeafPathLength,
    /// keyUsage is missing or does not fit the place in the chain.
    #[error("keyUsage does not fit the place in the chain")]
    KeyUsage,
}

impl CertificateError {
    /// Stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Der(_) => "x509.der",
            Self::Trailing => "x509.trailing",
            Self::Version => "x509.version",
            Self::Serial => "x509.serial",
            Self::Algorithm => "x509.algorithm",
            Self::Validity => "x509.validity",
            Self::Key => "x509.key",
            Self::CommonName => "x509.common-name",
            Self::DuplicateExtension => "x509.duplicate-extension",
            Self::UnknownCritical => "x509.unknown-critical",
            Self::NameConstraints => "x509.name-constraints",
            Self::BasicConstraints => "x509.basic-constraints",
            Self::Ca => "x509.ca",
            Self::LeafPathLength => "x509.leaf-path-length",
            Self::KeyUsage => "x509.key-usage",
        }
    }
}

/// A certificate whose own form is right. Its signature is not checked here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Certificate<'a> {
    /// DER of the issuer's name.
    pub(crate) issuer: &'a [u8],
    /// DER of the subject's name.
    pub(crate) subject: &'a [u8],
    pub(crate) common_name: &'a str,
    /// Seconds since the epoch, both inclusive.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// Uncompressed P-384 point, 97 bytes.
    pub(crate) public_key: &'a [u8],
    constraints: Option<BasicConstraints>,
    usage: Option<u8>,
}

#[derive(Debug, Clone, Copy)]
struct BasicConstraints {
    critical: bool,
    ca: bool,
    path_length: Option<u8>,
}

/// AlgorithmIdentifier of ecdsa-with-SHA384 (1.2.840.10045.4.3.3, no parameters).
const ECDSA_WITH_SHA384: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03";
/// AlgorithmIdentifier of an EC key on secp384r1 by name (RFC 5480 section 2.1.1).
const EC_KEY_P384: &[u8] = b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";
const UNCOMPRESSED_P384: usize = 1 + 2 * 48;
const MAX_SERIAL: usize = 20;
const MAX_EXTENSIONS: usize = 16;

const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const KEY_USAGE: &[u8] = &[0x55, 29, 15];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 29, 19];
const NAME_CONSTRAINTS: &[u8] = &[0x55, 29, 30];
const TRUE: &[u8] = &[0xff];

const DIGITAL_SIGNATURE: u8 = 0x80;
const KEY_CERT_SIGN: u8 = 0x04;

impl<'a> Certificate<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, CertificateError> {
        let mut file = Walker::new(der);
        let mut outer = file.enter(SEQUENCE).map_err(der_error("certificate"))?;
        file.end().map_err(|_| CertificateError::Trailing)?;
        let mut tbs = outer.enter(SEQUENCE).map_err(der_error("certificate body"))?;
        let algorithm = outer.expect(SEQUENCE).map_err(der_error("signature algorithm"))?;
        unpadded(outer.expect(BIT_STRING).map_err(der_error("signature"))?.body)
            .ok_or(CertificateError::Der("signature"))?;
        outer.end().map_err(der_error("certificate"))?;
        if algorithm.whole != ECDSA_WITH_SHA384 {
            return Err(CertificateError::Algorithm);
        }
        Self::body(&mut tbs)
    }

    fn body(tbs: &mut Walker<'a>) -> Result<Self, CertificateError> {
        version(tbs)?;
        serial(tbs.expect(INTEGER).map_err(der_error("serial number"))?.body)?;
        let algorithm = tbs.expect(SEQUENCE).map_err(der_error("signature algorithm"))?;
        if algorithm.whole != ECDSA_WITH_SHA384 {
            return Err(CertificateError::Algorithm);
        }
        let issuer = tbs.expect(SEQUENCE).map_err(der_error("issuer"))?.whole;
        let (not_before, not_after) = validity(tbs)?;
        let subject = tbs.expect(SEQUENCE).map_err(der_error("subject"))?;
        let common_name = common_name(Walker::new(subject.body))?;
        let public_key = public_key(tbs)?;
        let mut certificate = Self {
            issuer,
            subject: subject.whole,
            common_name,
            not_before,
            not_after,
            public_key,
            constraints: None,
            usage: None,
        };
        let mut extensions = tbs.enter(EXTENSIONS).map_err(der_error("extensions"))?;
        tbs.end().map_err(der_error("certificate body"))?;
        let list = extensions.enter(SEQUENCE).map_err(der_error("extensions"))?;
        extensions.end().map_err(der_error("extensions"))?;
        certificate.extensions(list)?;
        Ok(certificate)
    }

    /// The rules for a certificate that issues others.
    pub(crate) fn check_issuer(&self) -> Result<(), CertificateError> {
        let constraints = self.constraints.ok_or(CertificateError::BasicConstraints)?;
        if !constraints.critical {
            return Err(CertificateError::BasicConstraints);
        }
        if !constraints.ca {
            return Err(CertificateError::Ca);
        }
        match self.usage {
            Some(usage) if usage & KEY_CERT_SIGN != 0 => Ok(()),
            _ => Err(CertificateError::KeyUsage),
        }
    }

    /// How many issuers may follow this one, where it says so.
    pub(crate) fn path_length(&self) -> Option<u8> {
        self.constraints?.path_length
    }

    /// The rules for the certificate that signs the document.
    pub(crate) fn check_leaf(&self) -> Result<(), CertificateError> {
        if let Some(constraints) = self.constraints {
            if constraints.ca {
                return Err(CertificateError::Ca);
            }
            if constraints.path_length.is_some() {
                return Err(CertificateError::LeafPathLength);
            }
            if !constraints.critical {
                return Err(CertificateError::BasicConstraints);
            }
        }
        match self.usage {
            Some(usage) if usage & (DIGITAL_SIGNATURE | KEY_CERT_SIGN) == DIGITAL_SIGNATURE => Ok(()),
            _ => Err(CertificateError::KeyUsage),
        }
    }

    fn extensions(&mut self, mut list: Walker<'a>) -> Result<(), CertificateError> {
        let mut seen: [&[u8]; MAX_EXTENSIONS] = [&[]; MAX_EXTENSIONS];
        let mut count = 0;
        while !list.is_empty() {
            let extension = Extension::read(&mut list).map_err(der_error("extension"))?;
            if seen.iter().take(count).any(|oid| *oid == extension.oid) {
                return Err(CertificateError::DuplicateExtension);
            }
            *seen.get_mut(count).ok_or(CertificateError::Der("extensions"))? = extension.oid;
            count += 1;
            self.take(extension)?;
        }
        Ok(())
    }

    fn take(&mut self, extension: Extension<'a>) -> Result<(), CertificateError> {
        match extension.oid {
            BASIC_CONSTRAINTS => {
                let constraints = basic_constraints(extension).map_err(der_error("basicConstraints"))?;
                self.constraints = Some(constraints);
            }
            KEY_USAGE => self.usage = Some(key_usage(extension.value).map_err(der_error("keyUsage"))?),
            // They would bind certificates further down, which a chain that is
            // remembered in parts could not honour.
            NAME_CONSTRAINTS => return Err(CertificateError::NameConstraints),
            _ if extension.critical => return Err(CertificateError::UnknownCritical),
            _ => {}
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Extension<'a> {
    pub(crate) oid: &'a [u8],
    critical: bool,
    pub(crate) value: &'a [u8],
}

impl<'a> Extension<'a> {
    pub(crate) fn read(list: &mut Walker<'a>) -> Result<Self, NotDer> {
        let mut extension = list.enter(SEQUENCE)?;
        let oid = extension.expect(OID)?.body;
        let critical = boolean_or_false(&mut extension)?;
        let value = extension.expect(OCTET_STRING)?.body;
        extension.end()?;
        Ok(Self { oid, critical, value })
    }
}

fn der_error(what: &'static str) -> impl Fn(NotDer) -> CertificateError {
    move |NotDer| CertificateError::Der(what)
}

/// BOOLEAN DEFAULT FALSE: DER writes it only when true.
fn boolean_or_false(walker: &mut Walker<'_>) -> Result<bool, NotDer> {
    match walker.optional(BOOLEAN)? {
        None => Ok(false),
        Some(element) if element.body == TRUE => Ok(true),
        Some(_) => Err(NotDer),
    }
}

pub(crate) fn version(tbs: &mut Walker<'_>) -> Result<(), CertificateError> {
    const V3: &[u8] = &[0xa0, 3, INTEGER, 1, 2];
    match tbs.optional(VERSION) {
        Ok(Some(version)) if version.whole == V3 => Ok(()),
        _ => Err(CertificateError::Version),
    }
}

fn serial(body: &[u8]) -> Result<(), CertificateError> {
    // A leading zero byte is there only to keep the number positive.
    let digits = match body {
        [0, digits @ ..] if matches!(digits, [0x80..=0xff, ..]) => digits,
        [1..=0x7f, ..] => body,
        _ => return Err(CertificateError::Serial),
    };
    if digits.len() <= MAX_SERIAL { Ok(()) } else { Err(CertificateError::Serial) }
}

fn validity(tbs: &mut Walker<'_>) -> Result<(i64, i64), CertificateError> {
    let mut dates = tbs.enter(SEQUENCE).map_err(der_error("validity"))?;
    let not_before = date(&mut dates).ok_or(CertificateError::Validity)?;
    let not_after = date(&mut dates).ok_or(CertificateError::Validity)?;
    dates.end().map_err(der_error("validity"))?;
    if not_before > not_after {
        return Err(CertificateError::Validity);
    }
    Ok((not_before, not_after))
}

/// `YYMMDDHHMMSSZ` up to 2049, `YYYYMMDDHHMMSSZ` after (RFC 5280 section 4.1.2.5).
fn date(dates: &mut Walker<'_>) -> Option<i64> {
    let element = dates.next().ok()?;
    let (year, rest) = match (element.tag, element.body.len()) {
        (UTC_TIME, 13) => {
            let (year, rest) = element.body.split_at_checked(2)?;
            let year = decimal(year)?;
            (if year >= 50 { 1900 + year } else { 2000 + year }, rest)
        }
        (GENERALIZED_TIME, 15) => {
            let (year, rest) = element.body.split_at_checked(4)?;
            (decimal(year).filter(|year| *year >= 2050)?, rest)
        }
        _ => return None,
    };
    let (digits, b"Z") = rest.split_at_checked(10)? else { return None };
    let mut pairs = digits.chunks(2).map(decimal);
    let mut pair = |max: i64| pairs.next().flatten().filter(|value| *value <= max);
    let (month, day, hour, minute, second) = (pair(12)?, pair(31)?, pair(23)?, pair(59)?, pair(59)?);
    if month < 1 || day < 1 || day > days_in(year, month) {
        return None;
    }
    Some(((days_before(year, month) + day - 1) * 24 + hour) * 3600 + minute * 60 + second)
}

fn decimal(digits: &[u8]) -> Option<i64> {
    digits
        .iter()
        .try_fold(0, |value, digit| digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0')))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of `month`.
fn days_before(year: i64, month: i64) -> i64 {
    let past = year - 1;
    let years =
        (year - 1970) * 365 + (past / 4 - past / 100 + past / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400);
    years + (1..month).map(|month| days_in(year, month)).sum::<i64>()
}

fn common_name<'a>(mut name: Walker<'a>) -> Result<&'a str, CertificateError> {
    let mut found = None;
    while !name.is_empty() {
        let mut set = name.enter(SET).map_err(der_error("subject"))?;
        while !set.is_empty() {
            let mut attribute = set.enter(SEQUENCE).map_err(der_error("subject"))?;
            let oid = attribute.expect(OID).map_err(der_error("subject"))?.body;
            let value = attribute.next().map_err(der_error("subject"))?;
            attribute.end().map_err(der_error("subject"))?;
            if oid != COMMON_NAME {
                continue;
            }
            if found.is_some() || !matches!(value.tag, UTF8_STRING | PRINTABLE_STRING) {
                return Err(CertificateError::CommonName);
            }
            found = core::str::from_utf8(value.body).ok();
        }
    }
    found.ok_or(CertificateError::CommonName)
}

fn public_key<'a>(tbs: &mut Walker<'a>) -> Result<&'a [u8], CertificateError> {
    let mut info = tbs.enter(SEQUENCE).map_err(der_error("public key"))?;
    let algorithm = info.expect(SEQUENCE).map_err(der_error("public key"))?;
    let bits = info.expect(BIT_STRING).map_err(der_error("public key"))?;
    info.end().map_err(der_error("public key"))?;
    match unpadded(bits.body) {
        Some(point @ [4, ..]) if algorithm.whole == EC_KEY_P384 && point.len() == UNCOMPRESSED_P384 => {
            Ok(point)
        }
        _ => Err(CertificateError::Key),
    }
}

/// The content of a BIT STRING of whole bytes.
fn unpadded(body: &[u8]) -> Option<&[u8]> {
    match body {
        [0, bytes @ ..] => Some(bytes),
        _ => None,
    }
}

fn basic_constraints(extension: Extension<'_>) -> Result<BasicConstraints, NotDer> {
    let mut file = Walker::new(extension.value);
    let mut constraints = file.enter(SEQUENCE)?;
    file.end()?;
    let ca = boolean_or_false(&mut constraints)?;
    let path_length = match constraints.optional(INTEGER)?.map(|length| length.body) {
        None => None,
        Some([length @ 0..=0x7f]) => Some(*length),
        Some(_) => return Err(NotDer),
    };
    constraints.end()?;
    Ok(BasicConstraints { critical: extension.critical, ca, path_length })
}

/// The first eight bits of keyUsage, as DER has them: digitalSignature is 0x80.
fn key_usage(value: &[u8]) -> Result<u8, NotDer> {
    let mut file = Walker::new(value);
    let bits = file.expect(BIT_STRING)?.body;
    file.end()?;
    let [unused @ 0..=7, bits @ ..] = bits else { return Err(NotDer) };
    let last = *bits.last().ok_or(NotDer)?;
    // DER drops trailing zero bits, so the last bit in use is set.
    if bits.len() > 2 || last.trailing_zeros() != u32::from(*unused) {
        return Err(NotDer);
    }
    bits.first().copied().ok_or(NotDer)
}
