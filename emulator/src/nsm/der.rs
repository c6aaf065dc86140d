//! A small DER writer and reader (ITU-T X.690): what certificates need, no more.
//!
//! The writer never judges: each function frames the bytes that it is given, so
//! that hostile certificates can be composed from the same parts as good ones.
//! The reader takes definite lengths in shortest form only.

/// Object identifiers used by certificates, as the content octets of an OID.
pub mod oid {
    /// id-ecPublicKey 1.2.840.10045.2.1 (RFC 5480 section 2.1.1).
    pub const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    /// secp384r1 1.3.132.0.34 (RFC 5480 section 2.1.1.1).
    pub const SECP384R1: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
    /// ecdsa-with-SHA384 1.2.840.10045.4.3.3 (RFC 5758 section 3.2).
    pub const ECDSA_WITH_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
    /// id-at-commonName 2.5.4.3 (RFC 5280 appendix A.1).
    pub const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    /// id-at-countryName 2.5.4.6.
    pub const COUNTRY: &[u8] = &[0x55, 0x04, 0x06];
    /// id-at-localityName 2.5.4.7.
    pub const LOCALITY: &[u8] = &[0x55, 0x04, 0x07];
    /// id-at-stateOrProvinceName 2.5.4.8.
    pub const STATE: &[u8] = &[0x55, 0x04, 0x08];
    /// id-at-organizationName 2.5.4.10.
    pub const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
    /// id-at-organizationalUnitName 2.5.4.11.
    pub const ORGANIZATIONAL_UNIT: &[u8] = &[0x55, 0x04, 0x0b];
    /// id-ce-subjectKeyIdentifier 2.5.29.14 (RFC 5280 section 4.2.1.2).
    pub const SUBJECT_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x0e];
    /// id-ce-keyUsage 2.5.29.15 (RFC 5280 section 4.2.1.3).
    pub const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
    /// id-ce-basicConstraints 2.5.29.19 (RFC 5280 section 4.2.1.9).
    pub const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
    /// id-ce-cRLDistributionPoints 2.5.29.31 (RFC 5280 section 4.2.1.13).
    pub const CRL_DISTRIBUTION_POINTS: &[u8] = &[0x55, 0x1d, 0x1f];
    /// id-ce-authorityKeyIdentifier 2.5.29.35 (RFC 5280 section 4.2.1.1).
    pub const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x23];
}

/// Identifier octets of the types used here (X.690 section 8.1.2).
pub mod tag {
    /// BOOLEAN
    pub const BOOLEAN: u8 = 0x01;
    /// INTEGER
    pub const INTEGER: u8 = 0x02;
    /// BIT STRING
    pub const BIT_STRING: u8 = 0x03;
    /// OCTET STRING
    pub const OCTET_STRING: u8 = 0x04;
    /// OBJECT IDENTIFIER
    pub const OID: u8 = 0x06;
    /// UTF8String
    pub const UTF8_STRING: u8 = 0x0c;
    /// PrintableString
    pub const PRINTABLE_STRING: u8 = 0x13;
    /// UTCTime
    pub const UTC_TIME: u8 = 0x17;
    /// GeneralizedTime
    pub const GENERALIZED_TIME: u8 = 0x18;
    /// SEQUENCE, constructed
    pub const SEQUENCE: u8 = 0x30;
    /// SET, constructed
    pub const SET: u8 = 0x31;
}

/// One element: identifier, shortest definite length, content.
pub fn element(identifier: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(identifier);
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let octets = length.to_be_bytes();
        let octets = strip_zeros(&octets);
        out.push(0x80 | octets.len() as u8);
        out.extend_from_slice(octets);
    }
    out.extend_from_slice(content);
    out
}

/// A SEQUENCE of elements that are already encoded.
pub fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(tag::SEQUENCE, &parts.concat())
}

/// A SET of one element: the only kind a distinguished name needs.
pub fn set(part: &[u8]) -> Vec<u8> {
    element(tag::SET, part)
}

/// An INTEGER that is not negative, from big-endian octets of any length.
pub fn unsigned(magnitude: &[u8]) -> Vec<u8> {
    let digits = strip_zeros(magnitude);
    let mut content = Vec::with_capacity(digits.len() + 1);
    if digits.first().is_none_or(|first| first & 0x80 != 0) {
        content.push(0);
    }
    content.extend_from_slice(digits);
    element(tag::INTEGER, &content)
}

/// An OBJECT IDENTIFIER from its content octets.
pub fn object_identifier(content: &[u8]) -> Vec<u8> {
    element(tag::OID, content)
}

/// A BIT STRING with `unused` bits at its end (0 to 7 when well-formed).
pub fn bit_string(unused: u8, bits: &[u8]) -> Vec<u8> {
    element(tag::BIT_STRING, &[&[unused], bits].concat())
}

/// An OCTET STRING.
pub fn octet_string(content: &[u8]) -> Vec<u8> {
    element(tag::OCTET_STRING, content)
}

/// A BOOLEAN; DER's true is all ones (X.690 section 11.1).
pub fn boolean(value: bool) -> Vec<u8> {
    element(tag::BOOLEAN, &[if value { 0xff } else { 0 }])
}

/// A constructed element with the context-specific number `number` (0 to 30).
pub fn explicit(number: u8, content: &[u8]) -> Vec<u8> {
    element(0xa0 | number, content)
}

/// A primitive element with the context-specific number `number` (0 to 30).
pub fn implicit(number: u8, content: &[u8]) -> Vec<u8> {
    element(0x80 | number, content)
}

/// Takes elements off the front of DER bytes.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// One element as read: both views borrow from the input.
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    /// The identifier octet.
    pub identifier: u8,
    /// The content octets.
    pub content: &'a [u8],
    /// Identifier, length and content as they stand in the input.
    pub whole: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next element; `None` at the end, and for anything that is not DER with
    /// a one-octet identifier and a length below 64 KiB.
    pub fn next_element(&mut self) -> Option<Element<'a>> {
        let (&identifier, after) = self.rest.split_first()?;
        let (&first, after) = after.split_first()?;
        let (length, head) = match first {
            0..=0x7f => (usize::from(first), 2),
            0x81 => (usize::from(*after.first()?), 3),
            0x82 => (usize::from(u16::from_be_bytes([*after.first()?, *after.get(1)?])), 4),
            _ => return None,
        };
        let shortest = match head {
            2 => true,
            3 => length >= 0x80,
            _ => length >= 0x100,
        };
        let end = head + length;
        if !shortest || identifier & 0x1f == 0x1f || end > self.rest.len() {
            return None;
        }
        let (whole, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(Element { identifier, content: whole.get(head..)?, whole })
    }

    /// The next element if it carries `identifier`.
    pub fn expect(&mut self, identifier: u8) -> Option<Element<'a>> {
        self.next_element().filter(|found| found.identifier == identifier)
    }
}

fn strip_zeros(octets: &[u8]) -> &[u8] {
    let first = octets.iter().position(|&octet| octet != 0).unwrap_or(octets.len());
    octets.get(first..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_in_shortest_form() {
        for (length, head) in [
            (0, vec![0x04, 0x00]),
            (127, vec![0x04, 0x7f]),
            (128, vec![0x04, 0x81, 0x80]),
            (255, vec![0x04, 0x81, 0xff]),
            (256, vec![0x04, 0x82, 0x01, 0x00]),
            (65_536, vec![0x04, 0x83, 0x01, 0x00, 0x00]),
        ] {
            let encoded = octet_string(&vec![7; length]);
            assert_eq!(encoded[..head.len()], head, "length {length}");
            assert_eq!(encoded.len(), head.len() + length);
        }
    }

    #[test]
    fn an_unsigned_integer_never_reads_as_negative() {
        assert_eq!(unsigned(&[]), [0x02, 0x01, 0x00]);
        assert_eq!(unsigned(&[0, 0, 5]), [0x02, 0x01, 0x05]);
        assert_eq!(unsigned(&[0x80]), [0x02, 0x02, 0x00, 0x80]);
    }

    #[test]
    fn the_reader_returns_what_the_writer_wrote() {
        let long = vec![1; 300];
        let bytes = [octet_string(b"a"), octet_string(&long), boolean(true)].concat();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.expect(tag::OCTET_STRING).unwrap().content, b"a");
        assert_eq!(reader.next_element().unwrap().content, long);
        assert_eq!(reader.expect(tag::BOOLEAN).unwrap().whole, [1, 1, 0xff]);
        assert!(reader.is_empty() && reader.next_element().is_none());
    }

    #[test]
    fn the_reader_refuses_long_lengths_and_short_input() {
        for hostile in [
            &[0x04][..],
            &[0x04, 0x02, 0x00],
            &[0x04, 0x81, 0x01, 0x00],
            &[0x04, 0x82, 0x00, 0x01, 0x00],
            &[0x04, 0x80, 0x00, 0x00],
            &[0x04, 0x85, 1, 1, 1, 1, 1],
            &[0x1f, 0x01, 0x00],
        ] {
            assert!(Reader::new(hostile).next_element().is_none(), "{hostile:02x?}");
        }
    }
}
