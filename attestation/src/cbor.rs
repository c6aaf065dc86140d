//! A strict, zero-copy CBOR reader (RFC 8949) for attestation documents.
//!
//! It accepts one spelling of each value: shortest heads, definite strings,
//! no tags, floats, undefined or simple values. Arrays and maps may be
//! indefinite where the caller says so, because Nitro hardware has written
//! its payload that way since mid-2025. Nothing is allocated: a count is
//! checked against the bytes that are left before anyone relies on it.

/// How deeply arrays and maps may nest. Genuine documents reach 2.
pub const MAX_DEPTH: u8 = 4;

/// Where in the document the CBOR is wrong, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("CBOR at byte {offset}: {fault}")]
pub struct CborError {
    /// Offset in bytes from the start of the document.
    pub offset: usize,
    /// What is wrong there.
    pub fault: CborFault,
}

/// The ways in which CBOR can be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CborFault {
    /// A head or string reaches past the end of its container.
    #[error("the input ends inside an item")]
    Truncated,
    /// Bytes follow the last item.
    #[error("bytes follow the end of the item")]
    Trailing,
    /// A length or integer is not written in its shortest form.
    #[error("a head is not in its shortest form")]
    NotShortest,
    /// Additional information 28, 29 or 30, or a stray break.
    #[error("a reserved head or a misplaced break")]
    Reserved,
    /// An indefinite-length item where only a definite one is allowed.
    #[error("an indefinite length is not allowed here")]
    Indefinite,
    /// Another major type than the format demands.
    #[error("expected {expected}, found {actual}")]
    Type {
        /// The type that belongs here.
        expected: &'static str,
        /// The type that is here.
        actual: &'static str,
    },
    /// Tags, floats, undefined and simple values have no place in a document.
    #[error("a {0} is not allowed")]
    Forbidden(&'static str),
    /// A text string that is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// A container nests deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH}")]
    Depth,
    /// A container holds more items than the format allows.
    #[error("more than {0} entries")]
    Count(usize),
    /// A map key that occurs twice.
    #[error("a map key occurs twice")]
    DuplicateKey,
}

impl CborFault {
    /// Stable code of this fault.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Truncated => "cbor.truncated",
            Self::Trailing => "cbor.trailing",
            Self::NotShortest => "cbor.not-shortest",
            Self::Reserved => "cbor.reserved",
            Self::Indefinite => "cbor.indefinite",
            Self::Type { .. } => "cbor.type",
            Self::Forbidden(_) => "cbor.forbidden",
            Self::Utf8 => "cbor.utf8",
            Self::Depth => "cbor.depth",
            Self::Count(_) => "cbor.count",
            Self::DuplicateKey => "cbor.duplicate-key",
        }
    }
}

/// Reads items from front to back. Offsets in errors count from the start of
/// the whole document, of which `bytes` may be a part.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    base: usize,
}

/// An open array or map: hands out its entries one by one.
#[derive(Debug)]
pub(crate) struct Entries {
    /// Entries still to come; `None` until the break of an indefinite one.
    left: Option<usize>,
    seen: usize,
    limit: usize,
}

/// Whether a container may be of indefinite length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    Definite,
    Either,
}

const UINT: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
const SIMPLE: u8 = 7;

const FALSE: u64 = 20;
const NULL: u64 = 22;
const UNDEFINED: u64 = 23;
const BREAK: u8 = 0xff;
const NULL_BYTE: u8 = 0xf6;

#[derive(Debug, Clone, Copy)]
struct Head {
    major: u8,
    /// `None`: indefinite length.
    argument: Option<u64>,
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which start `base` bytes into the document.
    pub(crate) fn new(bytes: &'a [u8], base: usize) -> Self {
        Self { bytes, at: 0, base }
    }

    /// Offset of the next item in the document.
    pub(crate) fn offset(&self) -> usize {
        self.base + self.at
    }

    /// Everything from offset `from` (as told by [`Self::offset`]) up to here.
    pub(crate) fn since(&self, from: usize) -> &'a [u8] {
        let start = from.saturating_sub(self.base);
        self.bytes.get(start..self.at).unwrap_or_default()
    }

    /// The next byte, without taking it.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], CborError> {
        let head = self.head_of(BYTES)?;
        self.string(head)
    }

    /// A byte string, or null.
    pub(crate) fn bytes_or_null(&mut self) -> Result<Option<&'a [u8]>, CborError> {
        if self.peek() == Some(NULL_BYTE) {
            self.at += 1;
            return Ok(None);
        }
        self.bytes().map(Some)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, CborError> {
        let head = self.head_of(TEXT)?;
        let bytes = self.string(head)?;
        core::str::from_utf8(bytes).map_err(|_| self.fault_at(head.at, CborFault::Utf8))
    }

    pub(crate) fn uint(&mut self) -> Result<u64, CborError> {
        let head = self.head_of(UINT)?;
        head.argument.ok_or_else(|| self.fault_at(head.at, CborFault::Reserved))
    }

    /// Opens an array of at most `limit` elements.
    pub(crate) fn array(&mut self, limit: usize, length: Length) -> Result<Entries, CborError> {
        let head = self.head_of(ARRAY)?;
        self.open(head, 1, limit, length)
    }

    /// Opens a map of at most `limit` pairs.
    pub(crate) fn map(&mut self, limit: usize, length: Length) -> Result<Entries, CborError> {
        let head = self.head_of(MAP)?;
        self.open(head, 2, limit, length)
    }

    /// Whether `entries` has another entry; takes the break that ends it.
    pub(crate) fn more(&mut self, entries: &mut Entries) -> Result<bool, CborError> {
        let another = match entries.left {
            Some(left) => {
                entries.left = Some(left.saturating_sub(1));
                left > 0
            }
            None if self.peek() == Some(BREAK) => {
                self.at += 1;
                false
            }
            None => true,
        };
        if another {
            if entries.seen == entries.limit {
                return Err(self.fault_at(self.at, CborFault::Count(entries.limit)));
            }
            entries.seen += 1;
        }
        Ok(another)
    }

    /// Passes over one well-formed item, held to the same rules as the rest.
    /// `depth` is how deep its container is.
    pub(crate) fn skip(&mut self, depth: u8) -> Result<(), CborError> {
        let head = self.head()?;
        match head.major {
            UINT | NEGATIVE => {
                head.argument.ok_or_else(|| self.fault_at(head.at, CborFault::Reserved))?;
            }
            BYTES => {
                self.string(head)?;
            }
            TEXT => {
                let bytes = self.string(head)?;
                core::str::from_utf8(bytes).map_err(|_| self.fault_at(head.at, CborFault::Utf8))?;
            }
            ARRAY | MAP => self.skip_container(head, depth + 1)?,
            TAG => return Err(self.fault_at(head.at, CborFault::Forbidden("tag"))),
            _ => match head.argument {
                Some(FALSE..=NULL) => {}
                Some(UNDEFINED) => return Err(self.fault_at(head.at, CborFault::Forbidden("undefined"))),
                Some(_) => return Err(self.fault_at(head.at, CborFault::Forbidden("simple value"))),
                None => return Err(self.fault_at(head.at, CborFault::Reserved)),
            },
        }
        Ok(())
    }

    /// The input must end here.
    pub(crate) fn end(&self) -> Result<(), CborError> {
        if self.at == self.bytes.len() {
            return Ok(());
        }
        Err(self.fault_at(self.at, CborFault::Trailing))
    }

    /// An error about the item that starts at document offset `offset`.
    pub(crate) fn error(offset: usize, fault: CborFault) -> CborError {
        CborError { offset, fault }
    }

    fn skip_container(&mut self, head: Head, depth: u8) -> Result<(), CborError> {
        if depth > MAX_DEPTH {
            return Err(self.fault_at(head.at, CborFault::Depth));
        }
        let items = if head.major == MAP { 2 } else { 1 };
        let mut entries = self.open(head, items, usize::MAX, Length::Definite)?;
        while self.more(&mut entries)? {
            for _ in 0..items {
                self.skip(depth)?;
            }
        }
        Ok(())
    }

    fn open(&mut self, head: Head, items: usize, limit: usize, length: Length) -> Result<Entries, CborError> {
        let left = match head.argument {
            None if length == Length::Either => None,
            None => return Err(self.fault_at(head.at, CborFault::Indefinite)),
            Some(count) => {
                // Each item takes at least a byte, so a larger count is a lie.
                let room = (self.bytes.len() - self.at) / items;
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                if count > limit {
                    return Err(self.fault_at(head.at, CborFault::Count(limit)));
                }
                if count > room {
                    return Err(self.fault_at(head.at, CborFault::Truncated));
                }
                Some(count)
            }
        };
        Ok(Entries { left, seen: 0, limit })
    }

    fn string(&mut self, head: Head) -> Result<&'a [u8], CborError> {
        let Some(len) = head.argument else {
            return Err(self.fault_at(head.at, CborFault::Indefinite));
        };
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let Some(string) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(self.fault_at(head.at, CborFault::Truncated));
        };
        self.at += string.len();
        Ok(string)
    }

    fn head_of(&mut self, major: u8) -> Result<Head, CborError> {
        let head = self.head()?;
        if head.major == major {
            return Ok(head);
        }
        let fault = match head.major {
            TAG => CborFault::Forbidden("tag"),
            SIMPLE if head.argument.is_none() => CborFault::Reserved,
            _ => CborFault::Type { expected: name(major), actual: name(head.major) },
        };
        Err(self.fault_at(head.at, fault))
    }

    fn head(&mut self) -> Result<Head, CborError> {
        let at = self.at;
        let first = self.peek().ok_or_else(|| self.fault_at(at, CborFault::Truncated))?;
        self.at += 1;
        let major = first >> 5;
        let info = first & 0x1f;
        let argument = match info {
            0..=23 => Some(u64::from(info)),
            24..=27 => Some(self.argument(at, major, 1 << (info - 24))?),
            31 if !matches!(major, UINT | NEGATIVE | TAG) => None,
            _ => return Err(self.fault_at(at, CborFault::Reserved)),
        };
        Ok(Head { major, argument, at })
    }

    fn argument(&mut self, at: usize, major: u8, width: usize) -> Result<u64, CborError> {
        let Some(bytes) = self.bytes.get(self.at..self.at + width) else {
            return Err(self.fault_at(at, CborFault::Truncated));
        };
        self.at += width;
        let value = bytes.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let smallest = match width {
            1 => 24,
            2 => 1 << 8,
            4 => 1 << 16,
            _ => 1 << 32,
        };
        if major == SIMPLE {
            return Err(self.fault_at(at, CborFault::Forbidden("float or simple value")));
        }
        if value < smallest {
            return Err(self.fault_at(at, CborFault::NotShortest));
        }
        Ok(value)
    }

    fn fault_at(&self, at: usize, fault: CborFault) -> CborError {
        Self::error(self.base + at, fault)
    }
}

fn name(major: u8) -> &'static str {
    match major {
        UINT => "unsigned integer",
        NEGATIVE => "negative integer",
        BYTES => "byte string",
        TEXT => "text string",
        ARRAY => "array",
        MAP => "map",
        TAG => "tag",
        _ => "simple value",
    }
}
