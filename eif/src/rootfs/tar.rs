//! Reads tar archives as a stream: ustar, GNU and PAX (POSIX.1-2017 pax(1);
//! the GNU tar manual, appendix D "Tar Internals").
//!
//! ```text
//! [ x, g, L, K headers with data ]*  header  [ sparse map ]  data, padded to 512
//! ```
//! Strict where readers differ, because what one tool hides another shows: a
//! name given twice in different ways, data after a link, an unknown type. What
//! a stranger chooses is bounded before it is kept.

use std::io::{self, Read};

use super::{
    pax::{self, PaxError, Records},
    sparse::{self, Segment, SparseError},
};

pub(crate) const BLOCK: u64 = 512;
/// Of one extended header or long name; Go's archive/tar has the same bound.
const MAX_EXTENSION: u64 = 1 << 20;
/// Extensions before one entry: one of each kind that exists.
const MAX_EXTENSIONS: usize = 4;

/// Why bytes are no usable tar archive.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum TarError {
    #[error("cannot read at byte {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("it is cut: an entry starts at byte {offset} and does not end")]
    Cut { offset: u64 },
    #[error("the header at byte {offset} has a wrong checksum")]
    Checksum { offset: u64 },
    #[error("the header at byte {offset} has {field} that is no number or too large")]
    Number { offset: u64, field: &'static str },
    #[error("the header at byte {offset} has the type {kind:?}, which is not supported")]
    Kind { offset: u64, kind: char },
    #[error("the header at byte {offset} is of a link, directory or device but has {size} bytes of data")]
    UnexpectedData { offset: u64, size: u64 },
    #[error("the header at byte {offset} is of a file but its name ends in a slash")]
    Slash { offset: u64 },
    #[error("the header at byte {offset} gives {what} twice, in different ways")]
    Twice { offset: u64, what: &'static str },
    #[error("the extension at byte {offset} has {size} bytes, at most {MAX_EXTENSION} are accepted")]
    LongExtension { offset: u64, size: u64 },
    #[error("the extension at byte {offset} belongs to no entry, or is one of too many")]
    Dangling { offset: u64 },
    #[error("the extended header at byte {offset} is malformed")]
    Pax { offset: u64, source: PaxError },
    #[error("the sparse file at byte {offset} is malformed")]
    Sparse { offset: u64, source: SparseError },
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One entry, without its content.
#[derive(Debug)]
pub(crate) struct Member {
    /// Where its last header starts.
    pub(crate) offset: u64,
    /// As stored: may hold anything.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permissions only.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) device: (u32, u32),
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Bytes of content, holes filled.
    pub(crate) size: u64,
    /// Bytes of content that follow in the archive.
    pub(crate) stored: u64,
    /// Where the stored bytes belong, when there are holes.
    pub(crate) segments: Option<Vec<Segment>>,
    /// Names of extended attributes.
    pub(crate) xattrs: Vec<Vec<u8>>,
}

/// Input that may be able to skip without reading.
pub(crate) trait Input: Read + Sized {
    /// Skips exactly `count` bytes.
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.by_ref().take(count), &mut io::sink())?;
        if skipped < count { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// Reads entries; after each, [`Read`] yields its stored content.
pub(crate) struct Reader<I> {
    input: I,
    position: u64,
    /// Content of the current entry that was not read yet, and its padding.
    left: u64,
    padding: u64,
    ended: bool,
}

/// What the extensions before an entry say.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Records>,
    count: usize,
}

impl<I: Input> Reader<I> {
    pub(crate) fn new(input: I) -> Reader<I> {
        Reader { input, position: 0, left: 0, padding: 0, ended: false }
    }

    /// Bytes of the archive before what comes next.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Whether the archive's own end mark was seen.
    pub(crate) fn has_end_mark(&self) -> bool {
        self.ended
    }

    pub(crate) fn into_input(self) -> I {
        self.input
    }

    /// The next entry; nothing after the end mark, or where the input ends
    /// between entries.
    pub(crate) fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_content()?;
            let offset = self.position;
            let Some(header) = self.header()? else {
                let dangling = extensions.count > 0;
                return if dangling { Err(TarError::Dangling { offset }) } else { Ok(None) };
            };
            let flag = header.0[156];
            if !matches!(flag, b'x' | b'g' | b'L' | b'K') {
                return self.member(&header, extensions).map(Some);
            }
            extensions.count += 1;
            if extensions.count > MAX_EXTENSIONS {
                return Err(TarError::Dangling { offset });
            }
            self.extension(&header, &mut extensions)?;
        }
    }

    fn extension(&mut self, header: &Header, extensions: &mut Extensions) -> Result<(), TarError> {
        let offset = header.1;
        let size = header.number(124..136, "a size")?;
        if size > MAX_EXTENSION {
            return Err(TarError::LongExtension { offset, size });
        }
        self.left = size;
        self.padding = padding(size);
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes).map_err(|error| cut_or_read(offset, error))?;
        let twice = |what| TarError::Twice { offset, what };
        let slot = match header.0[156] {
            b'L' => (&mut extensions.long_name, "a long name"),
            b'K' => (&mut extensions.long_link, "a long link"),
            b'x' => {
                let records = pax::parse(&bytes).map_err(|source| TarError::Pax { offset, source })?;
                return match extensions.pax.replace(records) {
                    Some(_) => Err(twice("an extended header")),
                    None => Ok(()),
                };
            }
            _ => {
                return pax::check_global(&bytes).map_err(|source| TarError::Pax { offset, source });
            }
        };
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        bytes.truncate(end);
        match slot.0.replace(bytes) {
            Some(_) => Err(twice(slot.1)),
            None => Ok(()),
        }
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> Result<Member, TarError> {
        let offset = header.1;
        let Extensions { long_name, long_link, pax, .. } = extensions;
        let mut pax = pax.unwrap_or_default();
        let one = |what, long: Option<Vec<u8>>, pax: Option<Vec<u8>>, plain: Vec<u8>| match (long, pax) {
            (Some(_), Some(_)) => Err(TarError::Twice { offset, what }),
            (Some(text), None) | (None, Some(text)) => Ok(text),
            (None, None) => Ok(plain),
        };
        let path = one("a name", long_name, pax.path.take(), header.path())?;
        let link = one("a link", long_link, pax.link.take(), text(&header.0[157..257]))?;
        let stored = match pax.size {
            Some(size) => size,
            None => header.number(124..136, "a size")?,
        };
        let (kind, old_sparse) = header.kind(&path)?;
        if kind != Kind::File && stored > 0 {
            return Err(TarError::UnexpectedData { offset, size: stored });
        }
        let small = |value: Option<u64>, range, field| {
            let value = value.map_or_else(|| header.number(range, field), Ok)?;
            u32::try_from(value).map_err(|_| TarError::Number { offset, field })
        };
        let mut member = Member {
            offset,
            kind,
            mode: small(None, 100..108, "a mode")? & 0o7777,
            uid: small(pax.uid, 108..116, "an owner")?,
            gid: small(pax.gid, 116..124, "a group")?,
            device: match kind {
                Kind::Character | Kind::Block => {
                    (small(None, 329..337, "a major number")?, small(None, 337..345, "a minor number")?)
                }
                _ => (0, 0),
            },
            path,
            link,
            size: stored,
            stored,
            segments: None,
            xattrs: std::mem::take(&mut pax.xattrs),
        };
        self.left = stored;
        self.padding = padding(stored);
        if old_sparse {
            let chain = sparse::old_gnu(&header.0, || {
                let mut block = [0; BLOCK as usize];
                self.input.read_exact(&mut block)?;
                self.position += BLOCK;
                Ok(block)
            });
            let map = chain.map_err(|source| TarError::Sparse { offset, source })?;
            self.apply_sparse(&mut member, map)?;
        } else if let Some(sparse) = pax.sparse.take() {
            if kind != Kind::File {
                return Err(TarError::UnexpectedData { offset, size: stored });
            }
            if let Some(name) = sparse.name.clone() {
                member.path = name;
            }
            let map = sparse::pax(sparse, self).map_err(|source| TarError::Sparse { offset, source })?;
            member.stored = self.left;
            self.apply_sparse(&mut member, map)?;
        }
        Ok(member)
    }

    fn apply_sparse(&self, member: &mut Member, map: sparse::Map) -> Result<(), TarError> {
        let offset = member.offset;
        map.check(member.stored).map_err(|source| TarError::Sparse { offset, source })?;
        member.size = map.size;
        member.segments = Some(map.segments);
        Ok(())
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let (offset, count) = (self.position, self.left + self.padding);
        (self.left, self.padding) = (0, 0);
        self.input.skip(count).map_err(|error| cut_or_read(offset, error))?;
        self.position += count;
        Ok(())
    }

    /// The next header; nothing at the end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let offset = self.position;
        let mut block = [0; BLOCK as usize];
        let mut zeros = 0;
        loop {
            if !self.block(&mut block)? {
                return Ok(None);
            }
            if block.iter().any(|&byte| byte != 0) {
                break;
            }
            zeros += 1;
            if zeros == 2 {
                self.ended = true;
                return Ok(None);
            }
        }
        let header = Header(block, self.position - BLOCK);
        if zeros > 0 || !header.has_right_checksum() {
            return Err(TarError::Checksum { offset });
        }
        Ok(Some(header))
    }

    /// Fills `block`; false when the input has ended before it.
    fn block(&mut self, block: &mut [u8]) -> Result<bool, TarError> {
        let offset = self.position;
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Cut { offset }),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset, source }),
            }
        }
        self.position += BLOCK;
        Ok(true)
    }
}

/// Content of the current entry.
impl<I: Read> Read for Reader<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.input.read(&mut buffer[..wanted])?;
        self.left -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

/// A block and where it starts.
struct Header([u8; BLOCK as usize], u64);

impl Header {
    fn has_right_checksum(&self) -> bool {
        let sum: u64 = (0..self.0.len())
            .map(|index| if (148..156).contains(&index) { 32 } else { u64::from(self.0[index]) })
            .sum();
        self.number(148..156, "a checksum").is_ok_and(|stated| stated == sum)
    }

    /// Octal digits between spaces and NULs, or GNU's base 256.
    fn number(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<u64, TarError> {
        number(&self.0[range]).ok_or(TarError::Number { offset: self.1, field })
    }

    fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        // Only POSIX has the prefix; star ends it early (star(5)).
        let prefix = match &self.0[257..263] {
            b"ustar\0" if &self.0[508..512] == b"tar\0" => text(&self.0[345..476]),
            b"ustar\0" => text(&self.0[345..500]),
            _ => Vec::new(),
        };
        if prefix.is_empty() { name } else { [&prefix, &b"/"[..], &name].concat() }
    }

    /// The type, and whether it is a sparse file as old GNU tar writes it.
    fn kind(&self, path: &[u8]) -> Result<(Kind, bool), TarError> {
        let offset = self.1;
        let slash = path.last() == Some(&b'/');
        Ok(match self.0[156] {
            // Before there was a type for directories.
            0 if slash => (Kind::Directory, false),
            b'0' | b'7' | b'S' if slash => return Err(TarError::Slash { offset }),
            0 | b'0' | b'7' => (Kind::File, false),
            b'S' => (Kind::File, true),
            b'1' => (Kind::HardLink, false),
            b'2' => (Kind::Symlink, false),
            b'3' => (Kind::Character, false),
            b'4' => (Kind::Block, false),
            b'5' => (Kind::Directory, false),
            b'6' => (Kind::Fifo, false),
            other => return Err(TarError::Kind { offset, kind: char::from(other) }),
        })
    }
}

/// A field of a header as a number.
pub(crate) fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        // The sign bit is the second: negative numbers are of no use here.
        let first = field[0] & 0x7f;
        return std::iter::once(first)
            .chain(field[1..].iter().copied())
            .try_fold(0u64, |value, byte| (value >> 56 == 0).then(|| value << 8 | u64::from(byte)));
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|&byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    if digits[end..].iter().any(|&byte| !matches!(byte, 0 | b' ')) {
        return None;
    }
    digits[..end].iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn text(field: &[u8]) -> Vec<u8> {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    field[..end].to_vec()
}

pub(crate) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK
}

fn cut_or_read(offset: u64, error: io::Error) -> TarError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TarError::Cut { offset },
        _ => TarError::Read { offset, source: error },
    }
}
