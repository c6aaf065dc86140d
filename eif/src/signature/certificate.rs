//! As much of X.509 (RFC 5280 section 4.1) as a signing certificate needs: its
//! time of validity and its elliptic-curve key, and what people read of it.
//! Nothing in it is trusted: it comes with the image, and counts only through
//! PCR8.

use std::ops::RangeInclusive;

use super::curve::Curve;
use super::der::{BIT_STRING, GENERALIZED_TIME, INTEGER, OBJECT_ID, SEQUENCE, SET, UTC_TIME, element};

/// Why a signing certificate cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum CertificateError {
    #[error("its DER is broken")]
    Der,
    #[error("its validity is no time")]
    Time,
    #[error("its key is not an uncompressed point on P-256, P-384 or P-521")]
    Key,
}

/// What is read of a certificate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signer<'a> {
    /// First and last second, since 1970.
    pub(super) validity: RangeInclusive<i64>,
    pub(super) curve: Curve,
    /// The uncompressed point.
    pub(super) key: &'a [u8],
    issuer: &'a [u8],
    /// Content of the algorithm identifier of the issuer's signature.
    algorithm: &'a [u8],
    signature: &'a [u8],
}

const VERSION: u8 = 0xA0;

/// id-ecPublicKey, and the named curves (RFC 5480 section 2.1).
const EC_PUBLIC_KEY: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01];
const CURVES: [(&[u8], Curve); 3] = [
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07], Curve::P256),
    (&[0x2B, 0x81, 0x04, 0x00, 0x22], Curve::P384),
    (&[0x2B, 0x81, 0x04, 0x00, 0x23], Curve::P521),
];

/// Reads a certificate in DER.
pub(super) fn read(der: &[u8]) -> Result<Signer<'_>, CertificateError> {
    let (certificate, rest) = expect(der, SEQUENCE)?;
    if !rest.is_empty() {
        return Err(CertificateError::Der);
    }
    let (mut fields, outer) = expect(certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        (_, fields) = expect(fields, VERSION)?;
    }
    let (_serial, fields) = expect(fields, INTEGER)?;
    let (_algorithm, fields) = expect(fields, SEQUENCE)?;
    let (issuer, fields) = expect(fields, SEQUENCE)?;
    let (validity, fields) = expect(fields, SEQUENCE)?;
    let (_subject, fields) = expect(fields, SEQUENCE)?;
    let (key_info, _) = expect(fields, SEQUENCE)?;
    let (from, rest) = time(validity)?;
    let (until, _) = time(rest)?;
    let (curve, key) = key(key_info)?;
    let (algorithm, rest) = expect(outer, SEQUENCE)?;
    let (signature, rest) = expect(rest, BIT_STRING)?;
    match signature {
        [0, signature @ ..] if rest.is_empty() => {
            Ok(Signer { validity: from..=until, curve, key, issuer, algorithm, signature })
        }
        _ => Err(CertificateError::Der),
    }
}

fn key(info: &[u8]) -> Result<(Curve, &[u8]), CertificateError> {
    let (algorithm, rest) = expect(info, SEQUENCE)?;
    let (kind, parameters) = expect(algorithm, OBJECT_ID)?;
    let named =
        if kind == EC_PUBLIC_KEY { expect(parameters, OBJECT_ID) } else { Err(CertificateError::Key) };
    let (name, _) = named.map_err(|_| CertificateError::Key)?;
    let (bits, _) = expect(rest, BIT_STRING)?;
    let known = CURVES.into_iter().find(|(id, _)| *id == name);
    match (known, bits) {
        // No unused bits; then the point, uncompressed.
        (Some((_, curve)), [0, point @ ..]) if point.len() == 1 + 2 * curve.scalar_len() && point[0] == 4 => {
            Ok((curve, point))
        }
        _ => Err(CertificateError::Key),
    }
}

/// What people read of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSummary {
    /// Attributes of the issuer's name in order, as OpenSSL calls them.
    pub issuer: Vec<(String, String)>,
    /// Algorithm of the issuer's signature, as OpenSSL calls it; an OID in
    /// dots where it is none that is known here.
    pub algorithm: String,
    /// First second of validity, since 1970.
    pub not_before: i64,
    /// Last second of validity, since 1970.
    pub not_after: i64,
    /// The issuer's signature.
    pub signature: Vec<u8>,
}

/// Names of attributes (RFC 5280 appendix A.1) below 2.5.4 (55 04).
const ATTRIBUTES: [(u8, &str); 10] = [
    (3, "commonName"),
    (4, "surname"),
    (5, "serialNumber"),
    (6, "countryName"),
    (7, "localityName"),
    (8, "stateOrProvinceName"),
    (9, "streetAddress"),
    (10, "organizationName"),
    (11, "organizationalUnitName"),
    (12, "title"),
];
const EMAIL: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x09, 0x01];
const ALGORITHMS: [(&[u8], &str); 8] = [
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x02], "ecdsa-with-SHA256"),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x03], "ecdsa-with-SHA384"),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x04], "ecdsa-with-SHA512"),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0B], "sha256WithRSAEncryption"),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0C], "sha384WithRSAEncryption"),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0D], "sha512WithRSAEncryption"),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0A], "rsassaPss"),
    (&[0x2B, 0x65, 0x70], "ED25519"),
];

impl Signer<'_> {
    pub(super) fn summary(&self) -> Result<CertificateSummary, CertificateError> {
        let (algorithm, _) = expect(self.algorithm, OBJECT_ID)?;
        let known = ALGORITHMS.into_iter().find(|(id, _)| *id == algorithm);
        Ok(CertificateSummary {
            issuer: names(self.issuer)?,
            algorithm: known.map_or_else(|| dotted(algorithm), |(_, name)| name.to_owned()),
            not_before: *self.validity.start(),
            not_after: *self.validity.end(),
            signature: self.signature.to_vec(),
        })
    }
}

/// A Name: sets of attributes, each of a type and a string.
fn names(mut name: &[u8]) -> Result<Vec<(String, String)>, CertificateError> {
    let mut found = Vec::new();
    while !name.is_empty() {
        let (mut set, rest) = expect(name, SET)?;
        name = rest;
        while !set.is_empty() {
            let (attribute, rest) = expect(set, SEQUENCE)?;
            set = rest;
            let (kind, value) = expect(attribute, OBJECT_ID)?;
            let (_, value, _) = element(value).ok_or(CertificateError::Der)?;
            let known = match kind {
                [0x55, 0x04, last] => ATTRIBUTES.into_iter().find(|(id, _)| id == last).map(|(_, name)| name),
                EMAIL => Some("emailAddress"),
                _ => None,
            };
            let kind = known.map_or_else(|| dotted(kind), str::to_owned);
            found.push((kind, String::from_utf8_lossy(value).into_owned()));
        }
    }
    Ok(found)
}

/// An OID as people write it (X.690 section 8.19).
fn dotted(id: &[u8]) -> String {
    let mut arcs: Vec<u64> = Vec::new();
    let mut arc = 0u64;
    for byte in id {
        arc = arc << 7 | u64::from(byte & 0x7F);
        if byte & 0x80 == 0 {
            if arcs.is_empty() {
                let first = (arc / 40).min(2);
                arcs.push(first);
                arc -= 40 * first;
            }
            arcs.push(arc);
            arc = 0;
        }
    }
    let arcs: Vec<_> = arcs.iter().map(u64::to_string).collect();
    arcs.join(".")
}

/// The content of the element that `bytes` must start with, and what follows it.
fn expect(bytes: &[u8], tag: u8) -> Result<(&[u8], &[u8]), CertificateError> {
    super::der::expect(bytes, tag).ok_or(CertificateError::Der)
}

/// `YYMMDDHHMMSSZ` (1950 to 2049) or `YYYYMMDDHHMMSSZ` (RFC 5280 section 4.1.2.5).
fn time(bytes: &[u8]) -> Result<(i64, &[u8]), CertificateError> {
    let (tag, text, rest) = element(bytes).ok_or(CertificateError::Der)?;
    let (year_digits, century) = match (tag, text.len()) {
        (UTC_TIME, 13) => (2, true),
        (GENERALIZED_TIME, 15) => (4, false),
        _ => return Err(CertificateError::Time),
    };
    let (year, fields) = text.split_at(year_digits);
    let number = |digits: &[u8]| {
        digits
            .iter()
            .try_fold(0i64, |sum, digit| Some(sum * 10 + i64::from(char::from(*digit).to_digit(10)?)))
    };
    let pair = |index: usize| number(&fields[2 * index..2 * index + 2]);
    let parsed = || {
        let year = number(year)?;
        let year = if century { year + if year < 50 { 2000 } else { 1900 } } else { year };
        let (month, day, hour, minute, second) = (pair(0)?, pair(1)?, pair(2)?, pair(3)?, pair(4)?);
        let sound = fields[10] == b'Z'
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        sound.then(|| days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
    };
    Ok((parsed().ok_or(CertificateError::Time)?, rest))
}

/// Days since 1970-01-01 in the Gregorian calendar. Years are counted from
/// March, so that the leap day is a year's last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month < 3 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        for (date, expected) in
            [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2000, 3, 1), 11_017), ((2026, 11, 24), 20_781)]
        {
            assert_eq!(days(date.0, date.1, date.2), expected, "{date:?}");
        }
    }

    #[test]
    fn times_have_exactly_one_form() {
        let utc = |text: &[u8]| time(&[&[UTC_TIME, text.len() as u8], text].concat()).map(|(time, _)| time);
        assert_eq!(utc(b"700101000001Z"), Ok(1));
        assert_eq!(utc(b"500101000000Z"), Ok(-20 * 365 * 86_400 - 5 * 86_400));
        for wrong in [&b"7001010000Z"[..], b"701301000000Z", b"70010100000+Z", b"700101000000z", b""] {
            assert_eq!(utc(wrong), Err(CertificateError::Time), "{wrong:?}");
        }
    }
}
