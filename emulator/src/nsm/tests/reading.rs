//! Reads answers, documents and certificates independently of the code that wrote them.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

use crate::nsm::der::{Reader, oid, tag};

/// A decoded CBOR item: what answers and documents consist of.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    Number(u64),
    Bytes(Vec<u8>),
    Text(String),
    List(Vec<Item>),
    /// Keys in the order read.
    Map(Vec<(Item, Item)>),
    Bool(bool),
    Null,
}

impl Item {
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut input = Decoder::new(bytes);
        let item = Self::next(&mut input);
        assert_eq!(input.position(), bytes.len(), "bytes after the item");
        item
    }

    fn next(input: &mut Decoder<'_>) -> Self {
        match input.datatype().unwrap() {
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => Self::Number(input.u64().unwrap()),
            Type::Bytes => Self::Bytes(input.bytes().unwrap().to_vec()),
            Type::String => Self::Text(input.str().unwrap().to_owned()),
            Type::Bool => Self::Bool(input.bool().unwrap()),
            Type::Array => {
                let count = input.array().unwrap().unwrap();
                Self::List((0..count).map(|_| Self::next(input)).collect())
            }
            Type::Map => {
                let count = input.map().unwrap().unwrap();
                Self::Map((0..count).map(|_| (Self::next(input), Self::next(input))).collect())
            }
            Type::MapIndef => {
                input.map().unwrap();
                let mut entries = Vec::new();
                while input.datatype().unwrap() != Type::Break {
                    entries.push((Self::next(input), Self::next(input)));
                }
                input.skip().unwrap();
                Self::Map(entries)
            }
            Type::Null => {
                input.null().unwrap();
                Self::Null
            }
            other => panic!("unexpected {other}"),
        }
    }

    pub(super) fn field(&self, key: &str) -> &Item {
        let Self::Map(entries) = self else { panic!("{self:?} is not a map") };
        let found = entries.iter().find(|(name, _)| *name == Self::Text(key.to_owned()));
        &found.unwrap_or_else(|| panic!("no {key} in {self:?}")).1
    }

    pub(super) fn bytes(&self) -> &[u8] {
        let Self::Bytes(bytes) = self else { panic!("{self:?} is not bytes") };
        bytes
    }

    pub(super) fn text(&self) -> &str {
        let Self::Text(text) = self else { panic!("{self:?} is not text") };
        text
    }

    pub(super) fn number(&self) -> u64 {
        let Self::Number(number) = self else { panic!("{self:?} is not a number") };
        *number
    }

    pub(super) fn list(&self) -> &[Item] {
        let Self::List(list) = self else { panic!("{self:?} is not a list") };
        list
    }
}

/// A document, its signature and its chain checked.
pub(super) struct Document {
    pub(super) payload_bytes: Vec<u8>,
    pub(super) payload: Item,
    /// Root first, leaf last.
    pub(super) chain: Vec<X509>,
}

impl Document {
    /// Takes a document out of an answer.
    pub(super) fn from_answer(answer: &[u8]) -> Self {
        Self::read(Item::read(answer).field("Attestation").field("document").bytes())
    }

    pub(super) fn read(document: &[u8]) -> Self {
        assert_eq!(document[0], 0x84, "untagged array of four");
        let Item::List(parts) = Item::read(document) else { panic!("not an array") };
        let [protected, Item::Map(unprotected), payload, signature] = parts.as_slice() else {
            panic!("not a COSE_Sign1")
        };
        assert_eq!(protected.bytes(), [0xa1, 0x01, 0x38, 0x22]);
        assert!(unprotected.is_empty());
        assert_eq!(signature.bytes().len(), 96);

        let payload_bytes = payload.bytes().to_vec();
        let payload = Item::read(&payload_bytes);
        let mut chain: Vec<X509> =
            payload.field("cabundle").list().iter().map(|item| X509::read(item.bytes())).collect();
        chain.push(X509::read(payload.field("certificate").bytes()));

        let mut signed = Encoder::new(Vec::new());
        signed.array(4).unwrap().str("Signature1").unwrap().bytes(protected.bytes()).unwrap();
        signed.bytes(b"").unwrap().bytes(&payload_bytes).unwrap();
        let leaf = &chain.last().unwrap().point;
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, leaf)
            .verify(&signed.into_writer(), signature.bytes())
            .expect("the document's signature");
        for pair in chain.windows(2) {
            pair[1].assert_issued_by(&pair[0]);
        }
        chain[0].assert_issued_by(&chain[0]);
        Self { payload_bytes, payload, chain }
    }

    pub(super) fn leaf(&self) -> &X509 {
        self.chain.last().unwrap()
    }

    pub(super) fn pcrs(&self) -> BTreeMap<u64, Vec<u8>> {
        let Item::Map(entries) = self.payload.field("pcrs") else { panic!("pcrs is not a map") };
        entries.iter().map(|(index, value)| (index.number(), value.bytes().to_vec())).collect()
    }
}

/// The parts of a certificate that tests look at.
pub(super) struct X509 {
    pub(super) der: Vec<u8>,
    pub(super) serial: Vec<u8>,
    pub(super) common_name: String,
    /// Four-digit years, so that they compare as text.
    pub(super) not_before: String,
    pub(super) not_after: String,
    /// OID, critical, value as hexadecimal, in order.
    pub(super) extensions: Vec<(Vec<u8>, bool, String)>,
    issuer: Vec<u8>,
    subject: Vec<u8>,
    point: Vec<u8>,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl X509 {
    pub(super) fn read(der: &[u8]) -> Self {
        let mut file = Reader::new(der);
        let mut outer = Reader::new(file.expect(tag::SEQUENCE).unwrap().content);
        assert!(file.is_empty());
        let signed = outer.expect(tag::SEQUENCE).unwrap();
        let algorithm = outer.expect(tag::SEQUENCE).unwrap().whole;
        let signature = outer.expect(tag::BIT_STRING).unwrap().content[1..].to_vec();

        let mut inner = Reader::new(signed.content);
        assert_eq!(inner.expect(0xa0).unwrap().content, [0x02, 0x01, 0x02], "version 3");
        let serial = inner.expect(tag::INTEGER).unwrap().content.to_vec();
        assert_eq!(inner.next_element().unwrap().whole, algorithm, "same algorithm inside and out");
        let issuer = inner.expect(tag::SEQUENCE).unwrap().whole.to_vec();
        let mut validity = Reader::new(inner.expect(tag::SEQUENCE).unwrap().content);
        let subject = inner.expect(tag::SEQUENCE).unwrap();
        let mut key = Reader::new(inner.expect(tag::SEQUENCE).unwrap().content);
        key.expect(tag::SEQUENCE).unwrap();
        let point = key.expect(tag::BIT_STRING).unwrap().content[1..].to_vec();
        let extensions = inner.expect(0xa3).unwrap().content;
        assert!(inner.is_empty());
        Self {
            der: der.to_vec(),
            serial,
            common_name: common_name(subject.content),
            not_before: moment(&mut validity),
            not_after: moment(&mut validity),
            extensions: read_extensions(extensions),
            issuer,
            subject: subject.whole.to_vec(),
            point,
            signed: signed.whole.to_vec(),
            signature,
        }
    }

    pub(super) fn assert_issued_by(&self, issuer: &Self) {
        assert_eq!(self.issuer, issuer.subject, "issuer of {}", self.common_name);
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, &issuer.point)
            .verify(&self.signed, &self.signature)
            .unwrap_or_else(|_| panic!("signature of {}", self.common_name));
    }
}

fn common_name(name: &[u8]) -> String {
    let mut sets = Reader::new(name);
    while let Some(set) = sets.next_element() {
        let pair = Reader::new(set.content).next_element().unwrap();
        let mut pair = Reader::new(pair.content);
        if pair.next_element().unwrap().content == oid::COMMON_NAME {
            return String::from_utf8(pair.next_element().unwrap().content.to_vec()).unwrap();
        }
    }
    panic!("no common name");
}

fn moment(validity: &mut Reader<'_>) -> String {
    let time = validity.next_element().unwrap();
    let text = String::from_utf8(time.content.to_vec()).unwrap();
    if time.identifier == tag::UTC_TIME { format!("20{text}") } else { text }
}

fn read_extensions(explicit: &[u8]) -> Vec<(Vec<u8>, bool, String)> {
    let mut list = Reader::new(Reader::new(explicit).expect(tag::SEQUENCE).unwrap().content);
    let mut found = Vec::new();
    while let Some(extension) = list.next_element() {
        let mut parts = Reader::new(extension.content);
        let oid = parts.expect(tag::OID).unwrap().content.to_vec();
        let mut value = parts.next_element().unwrap();
        let critical = value.identifier == tag::BOOLEAN;
        if critical {
            value = parts.next_element().unwrap();
        }
        found.push((oid, critical, hex::encode(value.content)));
    }
    found
}
