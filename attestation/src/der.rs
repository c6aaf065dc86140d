//! A strict, zero-copy walker over DER (X.690): single-byte tags and minimal
//! definite lengths, which is all that X.509 certificates need.

/// The bytes are not DER, or not the element that belongs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotDer;

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const PRINTABLE_STRING: u8 = 0x13;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

const HIGH_TAG: u8 = 0x1f;

/// Walks the elements of one constructed value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walker<'a> {
    rest: &'a [u8],
}

/// One element.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) body: &'a [u8],
    /// Tag, length and body.
    pub(crate) whole: &'a [u8],
}

impl<'a> Walker<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next element, which must have `tag`.
    pub(crate) fn expect(&mut self, tag: u8) -> Result<Element<'a>, NotDer> {
        let element = self.next()?;
        if element.tag == tag { Ok(element) } else { Err(NotDer) }
    }

    /// The next element if it has `tag`.
    pub(crate) fn optional(&mut self, tag: u8) -> Result<Option<Element<'a>>, NotDer> {
        if self.rest.first() == Some(&tag) { self.next().map(Some) } else { Ok(None) }
    }

    /// Enters the next element, which must have `tag`.
    pub(crate) fn enter(&mut self, tag: u8) -> Result<Walker<'a>, NotDer> {
        self.expect(tag).map(|element| Walker::new(element.body))
    }

    pub(crate) fn end(&self) -> Result<(), NotDer> {
        if self.rest.is_empty() { Ok(()) } else { Err(NotDer) }
    }

    pub(crate) fn next(&mut self) -> Result<Element<'a>, NotDer> {
        let (tag, length, header) = match *self.rest {
            [tag, length @ 0..=0x7f, ..] => (tag, usize::from(length), 2),
            [tag, 0x81, length @ 0x80..=0xff, ..] => (tag, usize::from(length), 3),
            [tag, 0x82, high @ 1..=0xff, low, ..] => (tag, usize::from(high) << 8 | usize::from(low), 4),
            _ => return Err(NotDer),
        };
        if tag & HIGH_TAG == HIGH_TAG {
            return Err(NotDer);
        }
        let whole = self.rest.get(..header + length).ok_or(NotDer)?;
        self.rest = self.rest.get(header + length..).unwrap_or_default();
        Ok(Element { tag, body: whole.get(header..).unwrap_or_default(), whole })
    }
}
