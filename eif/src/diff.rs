//! What differs between two images: bytes of a section, or the files of a
//! ramdisk.
//!
//! ```text
//! section ─ same bytes? ─yes─▶ nothing
//!              └─no─ ramdisk? ─▶ listings of both, sorted ─▶ merge ─▶ changes
//! ```
//! A listing takes about 60 bytes an entry besides its name.

use std::{
    cmp::Ordering,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
};

use crate::{
    cpio::{ListError, Listed, Reader},
    image::Image,
    layout::Section,
};

/// More entries than this are not compared: memory stays bounded.
const MAX_ENTRIES: usize = 1 << 20;
const BUFFER: usize = 64 << 10;

/// Why two images cannot be compared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum DiffError {
    #[error("cannot read a section of the {which} image")]
    Read { which: Which, source: io::Error },
    #[error("cannot list a ramdisk of the {which} image")]
    List { which: Which, source: ListError },
    #[error("a ramdisk of the {which} image has more than {MAX_ENTRIES} entries")]
    TooMany { which: Which },
}

/// One of the two images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Which {
    First,
    Second,
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Which::First => "first",
            Which::Second => "second",
        })
    }
}

/// A section of one image.
pub type Part<'a, 'b> = (&'b Image<'a>, &'b Section);

/// How a path of two ramdisks differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// As it is in the archive.
    pub path: Vec<u8>,
    /// What is different about it.
    pub change: Change,
}

/// What is different about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The second ramdisk has no such path.
    Removed,
    /// The first ramdisk has no such path.
    Added,
    /// Both have it.
    Modified(Vec<Aspect>),
}

/// One difference of a file that both ramdisks have; values of the first and
/// of the second.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of a cpio entry")]
pub enum Aspect {
    Mode(u32, u32),
    Owner((u32, u32), (u32, u32)),
    Links(u32, u32),
    Time(u32, u32),
    Device((u32, u32), (u32, u32)),
    Size(u32, u32),
    /// The first byte that is not the same; sizes are.
    Content {
        offset: u64,
    },
}

/// The first byte in which two sections differ: where the shorter ends, if
/// one only goes on. Nothing when they are the same.
pub fn first_difference(first: Part<'_, '_>, second: Part<'_, '_>) -> Result<Option<u64>, DiffError> {
    let (mut a, mut b) = (reader(first), reader(second));
    differ(&mut a, &mut b)
}

/// The files in which two ramdisks differ, by path. A path that an archive
/// has twice counts as Linux leaves it: the last one.
pub fn ramdisks(first: Part<'_, '_>, second: Part<'_, '_>) -> Result<Vec<FileChange>, DiffError> {
    let (old, new) = (Listing::of(first, Which::First)?, Listing::of(second, Which::Second)?);
    let (mut a, mut b) = (reader(first), reader(second));
    let mut changes = Vec::new();
    let (mut left, mut right) = (old.entries.iter().peekable(), new.entries.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return Ok(changes),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => old.name(one).cmp(new.name(other)),
        };
        let one = if order.is_le() { left.next() } else { None };
        let other = if order.is_ge() { right.next() } else { None };
        let (path, change) = match (one, other) {
            (Some(one), None) => (old.name(one), Change::Removed),
            (None, Some(other)) => (new.name(other), Change::Added),
            (Some(one), Some(other)) => {
                let aspects = compare(one, other, &mut a, &mut b)?;
                if aspects.is_empty() {
                    continue;
                }
                (old.name(one), Change::Modified(aspects))
            }
            (None, None) => continue,
        };
        changes.push(FileChange { path: path.to_vec(), change });
    }
}

fn compare<A: Read + Seek, B: Read + Seek>(
    one: &Entry,
    other: &Entry,
    a: &mut BufReader<A>,
    b: &mut BufReader<B>,
) -> Result<Vec<Aspect>, DiffError> {
    let mut aspects = Vec::new();
    if one.mode != other.mode {
        aspects.push(Aspect::Mode(one.mode, other.mode));
    }
    if one.owner != other.owner {
        aspects.push(Aspect::Owner(one.owner, other.owner));
    }
    if one.links != other.links {
        aspects.push(Aspect::Links(one.links, other.links));
    }
    if one.mtime != other.mtime {
        aspects.push(Aspect::Time(one.mtime, other.mtime));
    }
    if one.device != other.device {
        aspects.push(Aspect::Device(one.device, other.device));
    }
    if one.size != other.size {
        aspects.push(Aspect::Size(one.size, other.size));
    } else if one.size > 0 {
        seek(a, one.data_offset).map_err(|source| DiffError::Read { which: Which::First, source })?;
        seek(b, other.data_offset).map_err(|source| DiffError::Read { which: Which::Second, source })?;
        let size = u64::from(one.size);
        let differs = differ(&mut a.take(size), &mut b.take(size))?;
        aspects.extend(differs.map(|offset| Aspect::Content { offset }));
    }
    Ok(aspects)
}

/// Entries come in order: most seeks stay within the buffer.
fn seek<R: Read + Seek>(reader: &mut BufReader<R>, to: u64) -> io::Result<()> {
    let position = reader.stream_position()?;
    match i64::try_from(i128::from(to) - i128::from(position)) {
        Ok(delta) => reader.seek_relative(delta),
        Err(_) => reader.seek(SeekFrom::Start(to)).map(drop),
    }
}

fn differ(a: &mut impl BufRead, b: &mut impl BufRead) -> Result<Option<u64>, DiffError> {
    let mut offset = 0;
    loop {
        let one = a.fill_buf().map_err(|source| DiffError::Read { which: Which::First, source })?;
        let other = b.fill_buf().map_err(|source| DiffError::Read { which: Which::Second, source })?;
        let count = one.len().min(other.len());
        if count == 0 {
            let same = one.is_empty() && other.is_empty();
            return Ok((!same).then_some(offset));
        }
        if one[..count] != other[..count] {
            let same = one.iter().zip(other).take_while(|(one, other)| one == other).count();
            return Ok(Some(offset + same as u64));
        }
        a.consume(count);
        b.consume(count);
        offset += count as u64;
    }
}

fn reader<'b>((image, section): Part<'_, 'b>) -> BufReader<impl Read + Seek + 'b> {
    BufReader::with_capacity(BUFFER, image.reader(section))
}

/// The entries of an archive, by name; no name twice.
struct Listing {
    names: Vec<u8>,
    entries: Vec<Entry>,
}

struct Entry {
    name: (usize, u32),
    mode: u32,
    owner: (u32, u32),
    links: u32,
    mtime: u32,
    device: (u32, u32),
    size: u32,
    data_offset: u64,
}

impl Listing {
    /// Reads the archive twice, so that nothing has to grow.
    fn of(part: Part<'_, '_>, which: Which) -> Result<Listing, DiffError> {
        let (mut count, mut bytes) = (0, 0);
        each(part, which, |listed| {
            count += 1;
            bytes += listed.name.len();
        })?;
        let mut listing = Listing { names: Vec::with_capacity(bytes), entries: Vec::with_capacity(count) };
        each(part, which, |listed| listing.add(listed))?;
        let Listing { names, entries } = &mut listing;
        let name = |entry: &Entry| &names[entry.name.0..][..entry.name.1 as usize];
        // Of one name the last entry comes first, and stays.
        entries.sort_unstable_by(|one, other| {
            name(one).cmp(name(other)).then(other.data_offset.cmp(&one.data_offset))
        });
        entries.dedup_by(|one, other| name(one) == name(other));
        Ok(listing)
    }

    fn add(&mut self, listed: &Listed) {
        let name = (self.names.len(), listed.name.len() as u32);
        self.names.extend_from_slice(&listed.name);
        let &Listed { mode, uid, gid, links, mtime, device, size, data_offset, .. } = listed;
        self.entries.push(Entry { name, mode, owner: (uid, gid), links, mtime, device, size, data_offset });
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        &self.names[entry.name.0..][..entry.name.1 as usize]
    }
}

fn each(part: Part<'_, '_>, which: Which, mut each: impl FnMut(&Listed)) -> Result<(), DiffError> {
    let mut reader = Reader::new(reader(part)).map_err(|source| DiffError::Read { which, source })?;
    let mut count = 0;
    while let Some(listed) = reader.next_entry().map_err(|source| DiffError::List { which, source })? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(DiffError::TooMany { which });
        }
        each(&listed);
    }
    Ok(())
}
