//! As much of X.509 (RFC 5280 section 4.1) as a signing certificate needs: its
//! time of validity and its elliptic-curve key. Nothing in it is trusted: it
//! comes with the image, and counts only through PCR8.

use std::ops::RangeInclusive;

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

/// The curve of a key, which decides the algorithm of its signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

/// What is read of a certificate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signer<'a> {
    /// First and last second, since 1970.
    pub(super) validity: RangeInclusive<i64>,
    pub(super) curve: Curve,
    /// The uncompressed point.
    pub(super) key: &'a [u8],
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xA0;

/// id-ecPublicKey, and the named curves (RFC 5480 section 2.1).
const EC_PUBLIC_KEY: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01];
const CURVES: [(&[u8], Curve, usize); 3] = [
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07], Curve::P256, 65),
    (&[0x2B, 0x81, 0x04, 0x00, 0x22], Curve::P384, 97),
    (&[0x2B, 0x81, 0x04, 0x00, 0x23], Curve::P521, 133),
];

/// Reads a certificate in DER.
pub(super) fn read(der: &[u8]) -> Result<Signer<'_>, CertificateError> {
    let (certificate, rest) = expect(der, SEQUENCE)?;
    if !rest.is_empty() {
        return Err(CertificateError::Der);
    }
    let (mut fields, _) = expect(certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        (_, fields) = expect(fields, VERSION)?;
    }
    let (_serial, fields) = expect(fields, INTEGER)?;
    let (_algorithm, fields) = expect(fields, SEQUENCE)?;
    let (_issuer, fields) = expect(fields, SEQUENCE)?;
    let (validity, fields) = expect(fields, SEQUENCE)?;
    let (_subject, fields) = expect(fields, SEQUENCE)?;
    let (key_info, _) = expect(fields, SEQUENCE)?;
    let (from, rest) = time(validity)?;
    let (until, _) = time(rest)?;
    let (curve, key) = key(key_info)?;
    Ok(Signer { validity: from..=until, curve, key })
}

fn key(info: &[u8]) -> Result<(Curve, &[u8]), CertificateError> {
    let (algorithm, rest) = expect(info, SEQUENCE)?;
    let (kind, parameters) = expect(algorithm, OBJECT_ID)?;
    let named =
        if kind == EC_PUBLIC_KEY { expect(parameters, OBJECT_ID) } else { Err(CertificateError::Key) };
    let (name, _) = named.map_err(|_| CertificateError::Key)?;
    let (bits, _) = expect(rest, BIT_STRING)?;
    let known = CURVES.into_iter().find(|(id, ..)| *id == name);
    match (known, bits) {
        // No unused bits; then the point, uncompressed.
        (Some((_, curve, len)), [0, point @ ..]) if point.len() == len && point[0] == 4 => Ok((curve, point)),
        _ => Err(CertificateError::Key),
    }
}

/// The content of the element that `bytes` must start with, and what follows it.
fn expect(bytes: &[u8], tag: u8) -> Result<(&[u8], &[u8]), CertificateError> {
    match element(bytes) {
        Some((found, content, rest)) if found == tag => Ok((content, rest)),
        _ => Err(CertificateError::Der),
    }
}

/// Tag, content and rest. Lengths in their shortest form, below 64 KiB: a
/// section with a signature is no longer.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk::<2>()?;
    let (len, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first().filter(|len| **len >= 0x80)?), &rest[1..]),
        0x82 => {
            let (len, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
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
