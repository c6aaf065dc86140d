//! Builds X.509 certificates (RFC 5280), good ones and hostile ones.
//!
//! A [`Certificate`] holds the encoded parts of a TBSCertificate, all public:
//! start from a well-formed one, replace any part by any bytes, then sign it, or
//! sign other bytes, or [`assemble`] the three outer parts by hand.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::der::{self, oid, tag};
use super::key::{KeyError, SigningKey};

/// The parts of a TBSCertificate, each as the DER bytes that will be written.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// `[0] { INTEGER 2 }` for version 3; empty leaves it out, which means version 1.
    pub version: Vec<u8>,
    /// INTEGER
    pub serial: Vec<u8>,
    /// AlgorithmIdentifier inside the signed part.
    pub algorithm: Vec<u8>,
    /// Name
    pub issuer: Vec<u8>,
    /// Time: the first second of validity.
    pub not_before: Vec<u8>,
    /// Time: the last second of validity.
    pub not_after: Vec<u8>,
    /// Name
    pub subject: Vec<u8>,
    /// SubjectPublicKeyInfo
    pub public_key: Vec<u8>,
    /// Written in this order; when empty the field is left out.
    pub extensions: Vec<Extension>,
    /// AlgorithmIdentifier outside the signed part.
    pub outer_algorithm: Vec<u8>,
}

impl Certificate {
    /// A version 3 certificate without extensions, ecdsa-with-SHA384 in both places.
    pub fn new(issuer: Vec<u8>, subject: Vec<u8>, public_key: Vec<u8>, validity: Validity) -> Self {
        Self {
            version: der::explicit(0, &der::unsigned(&[2])),
            serial: der::unsigned(&[1]),
            algorithm: ecdsa_with_sha384(),
            issuer,
            not_before: time(validity.not_before),
            not_after: time(validity.not_after),
            subject,
            public_key,
            extensions: Vec::new(),
            outer_algorithm: ecdsa_with_sha384(),
        }
    }

    /// The TBSCertificate: the bytes that are signed.
    pub fn to_be_signed(&self) -> Vec<u8> {
        let validity = der::sequence(&[&self.not_before, &self.not_after]);
        let extensions = match self.extensions.as_slice() {
            [] => Vec::new(),
            some => {
                let encoded: Vec<u8> = some.iter().flat_map(Extension::encode).collect();
                der::explicit(3, &der::sequence(&[&encoded]))
            }
        };
        der::sequence(&[
            &self.version,
            &self.serial,
            &self.algorithm,
            &self.issuer,
            &validity,
            &self.subject,
            &self.public_key,
            &extensions,
        ])
    }

    /// The whole certificate, DER, signed by `issuer`.
    pub fn sign(&self, issuer: &SigningKey) -> Result<Vec<u8>, KeyError> {
        let signed = self.to_be_signed();
        let signature = issuer.sign_der(&signed)?;
        Ok(assemble(&signed, &self.outer_algorithm, &der::bit_string(0, &signature)))
    }
}

/// Puts the three outer parts of a certificate together (RFC 5280 section 4.1).
pub fn assemble(to_be_signed: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    der::sequence(&[to_be_signed, algorithm, signature])
}

/// One extension; `value` is the DER inside its OCTET STRING.
#[derive(Debug, Clone)]
pub struct Extension {
    /// Content octets of the object identifier.
    pub oid: Vec<u8>,
    /// False leaves the field out, as DER wants for a default.
    pub critical: bool,
    /// The extension's own encoding.
    pub value: Vec<u8>,
}

impl Extension {
    /// Any extension at all.
    pub fn new(oid: &[u8], critical: bool, value: Vec<u8>) -> Self {
        Self { oid: oid.to_vec(), critical, value }
    }

    /// basicConstraints of an authority, critical; `path_len` bounds the CAs below it.
    pub fn authority(path_len: Option<u8>) -> Self {
        let path_len = path_len.map(|limit| der::unsigned(&[limit])).unwrap_or_default();
        Self::new(oid::BASIC_CONSTRAINTS, true, der::sequence(&[&der::boolean(true), &path_len]))
    }

    /// basicConstraints of an end entity, critical: an empty sequence.
    pub fn end_entity() -> Self {
        Self::new(oid::BASIC_CONSTRAINTS, true, der::sequence(&[]))
    }

    /// keyUsage with the given bits, trailing zero bits removed (X.690 section 11.2.2).
    pub fn key_usage(usage: KeyUsage, critical: bool) -> Self {
        let value = der::bit_string(usage.0.trailing_zeros().min(7) as u8, &[usage.0]);
        Self::new(oid::KEY_USAGE, critical, value)
    }

    /// subjectKeyIdentifier
    pub fn subject_key(identifier: &[u8]) -> Self {
        Self::new(oid::SUBJECT_KEY_IDENTIFIER, false, der::octet_string(identifier))
    }

    /// authorityKeyIdentifier with the keyIdentifier alternative only.
    pub fn authority_key(identifier: &[u8]) -> Self {
        let value = der::sequence(&[&der::implicit(0, identifier)]);
        Self::new(oid::AUTHORITY_KEY_IDENTIFIER, false, value)
    }

    /// cRLDistributionPoints with one full name, a URI.
    pub fn crl_at(uri: &str) -> Self {
        let names = der::explicit(0, &der::explicit(0, &der::implicit(6, uri.as_bytes())));
        let value = der::sequence(&[&der::sequence(&[&names])]);
        Self::new(oid::CRL_DISTRIBUTION_POINTS, false, value)
    }

    fn encode(&self) -> Vec<u8> {
        let critical = if self.critical { der::boolean(true) } else { Vec::new() };
        der::sequence(&[&der::object_identifier(&self.oid), &critical, &der::octet_string(&self.value)])
    }
}

/// Bits of keyUsage, first octet, bit 0 of the standard being the highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUsage(pub u8);

impl KeyUsage {
    /// digitalSignature
    pub const DIGITAL_SIGNATURE: Self = Self(0x80);
    /// nonRepudiation
    pub const NON_REPUDIATION: Self = Self(0x40);
    /// keyCertSign
    pub const CERTIFICATE_SIGN: Self = Self(0x04);
    /// cRLSign
    pub const CRL_SIGN: Self = Self(0x02);

    /// Both sets of bits.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// First and last second of a certificate's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: SystemTime,
    /// Last second, inclusive (RFC 5280 section 4.1.2.5).
    pub not_after: SystemTime,
}

impl Validity {
    /// From `now - back` to `now + ahead`.
    pub fn around(now: SystemTime, back: Duration, ahead: Duration) -> Self {
        Self { not_before: now.checked_sub(back).unwrap_or(UNIX_EPOCH), not_after: now + ahead }
    }

    /// Whether the certificate is valid now and for `span` to come.
    pub fn covers(&self, now: SystemTime, span: Duration) -> bool {
        self.not_before <= now && now + span <= self.not_after
    }
}

/// A Time: UTCTime to the end of 2049, GeneralizedTime after it (RFC 5280 section
/// 4.1.2.5). Times before 1970 are written as 1970, times after 9999 as its end.
pub fn time(moment: SystemTime) -> Vec<u8> {
    let seconds = moment.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or(0);
    let utc = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .unwrap_or(jiff::Timestamp::MAX);
    let text = utc.strftime("%Y%m%d%H%M%SZ").to_string();
    match text.strip_prefix("19").or_else(|| text.strip_prefix("20")) {
        Some(short) if text.as_str() < "2050" => element_text(tag::UTC_TIME, short),
        _ => element_text(tag::GENERALIZED_TIME, &text),
    }
}

/// Reads a Time as [`time`] writes it: whole seconds, UTC. `None` for anything else.
pub fn read_time(element: der::Element<'_>) -> Option<SystemTime> {
    let text = std::str::from_utf8(element.content).ok()?;
    let four_digits = match element.identifier {
        // RFC 5280 section 4.1.2.5.1: two digits from 50 on are of the last century.
        tag::UTC_TIME if text < "50" => format!("20{text}"),
        tag::UTC_TIME => format!("19{text}"),
        tag::GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let civil = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", &four_digits).ok()?;
    let utc = jiff::tz::TimeZone::UTC.to_timestamp(civil).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(utc.as_second()).ok()?))
}

/// A Name of single-attribute sets, in the order given; countryName is written as
/// PrintableString (RFC 5280 appendix A.1), everything else as UTF8String.
pub fn name(attributes: &[(&[u8], &str)]) -> Vec<u8> {
    let sets: Vec<u8> = attributes
        .iter()
        .flat_map(|(attribute, value)| {
            let kind = if *attribute == oid::COUNTRY { tag::PRINTABLE_STRING } else { tag::UTF8_STRING };
            let pair = der::sequence(&[&der::object_identifier(attribute), &element_text(kind, value)]);
            der::set(&pair)
        })
        .collect();
    der::sequence(&[&sets])
}

/// The AlgorithmIdentifier of ecdsa-with-SHA384: no parameters (RFC 5758 section 3.2).
pub fn ecdsa_with_sha384() -> Vec<u8> {
    der::sequence(&[&der::object_identifier(oid::ECDSA_WITH_SHA384)])
}

fn element_text(kind: u8, text: &str) -> Vec<u8> {
    der::element(kind, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn times_switch_to_four_digit_years_in_2050() {
        assert_eq!(time(at(0)), element_text(tag::UTC_TIME, "700101000000Z"));
        assert_eq!(time(at(1_782_779_564)), element_text(tag::UTC_TIME, "260630003244Z"));
        assert_eq!(time(at(2_524_607_999)), element_text(tag::UTC_TIME, "491231235959Z"));
        assert_eq!(time(at(2_524_608_000)), element_text(tag::GENERALIZED_TIME, "20500101000000Z"));
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for seconds in [0, 631_152_000, 1_782_779_564, 2_524_607_999, 2_524_608_000, 4_102_444_800] {
            let written = time(at(seconds));
            let element = der::Reader::new(&written).next_element().unwrap();
            assert_eq!(read_time(element), Some(at(seconds)));
        }
        for wrong in ["2606300032Z", "260630003244", "260630003244+0000", "269930003244Z"] {
            let written = element_text(tag::UTC_TIME, wrong);
            assert_eq!(read_time(der::Reader::new(&written).next_element().unwrap()), None, "{wrong}");
        }
    }

    #[test]
    fn extensions_have_the_bytes_that_hardware_writes() {
        let hex = |extension: Extension| hex::encode(extension.value);
        let authority = KeyUsage::DIGITAL_SIGNATURE.and(KeyUsage::CERTIFICATE_SIGN).and(KeyUsage::CRL_SIGN);
        let leaf = KeyUsage::DIGITAL_SIGNATURE.and(KeyUsage::NON_REPUDIATION);
        assert_eq!(hex(Extension::authority(None)), "30030101ff");
        assert_eq!(hex(Extension::authority(Some(2))), "30060101ff020102");
        assert_eq!(hex(Extension::end_entity()), "3000");
        assert_eq!(hex(Extension::key_usage(authority, true)), "03020186");
        assert_eq!(hex(Extension::key_usage(KeyUsage::CERTIFICATE_SIGN, true)), "03020204");
        assert_eq!(hex(Extension::key_usage(leaf, false)), "030206c0");
    }

    #[test]
    fn every_part_can_be_replaced_by_any_bytes() {
        let key = SigningKey::generate().unwrap();
        let names = name(&[(oid::COMMON_NAME, "x")]);
        let validity = Validity::around(at(1_000_000), Duration::ZERO, Duration::from_secs(1));
        let mut hostile = Certificate::new(names.clone(), names, key.public_key_info(), validity);
        hostile.version = Vec::new();
        hostile.serial = vec![0x02, 0x01, 0xff];
        hostile.outer_algorithm = vec![0x05, 0x00];
        let whole = hostile.sign(&key).unwrap();
        let mut outer = der::Reader::new(der::Reader::new(&whole).expect(tag::SEQUENCE).unwrap().content);
        let mut inner = der::Reader::new(outer.expect(tag::SEQUENCE).unwrap().content);
        assert_eq!(inner.next_element().unwrap().whole, [0x02, 0x01, 0xff]);
        assert_eq!(outer.next_element().unwrap().whole, [0x05, 0x00]);
    }
}
