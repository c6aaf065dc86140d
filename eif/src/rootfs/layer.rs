//! Puts layers over each other, as the OCI image specification's layer.md has
//! it, in one pass over each.
//!
//! ```text
//! bytes ─▶ digest ─▶ decompress ─▶ diff id ─▶ tar ─▶ whiteouts ─▶ Tree
//!                                               └─ contents ─▶ spool, or left
//!                                                  where they are, if plain
//! ```

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt,
};

use super::{
    Limits, SourceError,
    compression::{Compression, Decoder, Part},
    digest::{Digest, Observed},
    spool::{CopyError, Spool},
    tar::{Input, Kind, Member, Reader},
    tree::{Data, Inode, Misplaced, NameId, Tree, components},
};
use crate::cpio::{S_IFDIR, S_IFLNK, S_IFREG};

const S_IFCHR: u32 = 0o020000;
const S_IFBLK: u32 = 0o060000;
const S_IFIFO: u32 = 0o010000;
/// Linux cannot follow a longer one (PATH_MAX with the NUL).
const MAX_TARGET: usize = 4095;

/// A file in a lower layer is hidden by an empty one of this name.
const WHITEOUT: &[u8] = b".wh.";
/// Everything in lower layers is hidden.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of this kind are AUFS's own records; tools skip them.
const AUFS: &[u8] = b".wh..wh.";

/// Why an entry is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum Refused {
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    #[error("it is a hard link to {target:?}, which is not there before it")]
    NoTarget { target: String },
    #[error("it is a hard link to {target:?}, a directory")]
    LinkToDirectory { target: String },
    #[error("it is a hard link to {target:?}, whose place it takes")]
    LinkToItself { target: String },
    #[error("it is a hard link, and its target is refused")]
    Target(#[source] Misplaced),
    #[error("it is a symbolic link whose target has {len} bytes, or a NUL byte")]
    SymlinkTarget { len: usize },
    #[error("it is the root itself, but not a directory")]
    Root,
    #[error("it hides {hidden:?}, which is no name")]
    Whiteout { hidden: String },
    #[error("it lies in a directory whose name marks a removed file")]
    InWhiteout,
    #[error(
        "it has {size} bytes, at most {limit} are accepted (a file in a ramdisk must be smaller than 4 GiB)"
    )]
    Large { size: u64, limit: u64 },
}

/// A layer's bytes, as they lie somewhere.
pub(crate) struct Blob {
    /// For messages.
    pub(crate) what: String,
    pub(crate) file: File,
    pub(crate) range: Range<u64>,
}

/// What is known about a layer's bytes beforehand.
pub(crate) enum Vouched {
    /// Nothing: then the archive must at least have its end mark.
    Nothing,
    /// The digest of the bytes as they lie, if known, and of the plain archive.
    Digests { blob: Option<Digest>, diff_id: Digest },
}

/// A tree that layers are put into.
pub(crate) struct Merge {
    tree: Tree,
    limits: Limits,
    spool: Spool,
    /// Of the layer being applied; what is there without one is of layer 0.
    layer: u16,
    entries: u64,
    /// Bytes that contents have with their holes filled.
    expanded: u64,
    /// Bytes of plain archives read so far.
    read: u64,
}

/// The spool is the first origin of a tree.
const SPOOL: u16 = 0;

/// Where regular content of the layer being applied goes.
#[derive(Clone, Copy)]
enum Contents {
    Spool,
    /// It stays: archive offset 0 is this offset of the origin.
    Stay {
        origin: u16,
        start: u64,
    },
}

impl Merge {
    pub(crate) fn new(limits: Limits, spool: File) -> Merge {
        Merge {
            tree: Tree::default(),
            limits,
            spool: Spool::new(spool),
            layer: 0,
            entries: 0,
            expanded: 0,
            read: 0,
        }
    }

    /// Puts a layer over what is there.
    pub(crate) fn apply(&mut self, blob: &Blob, vouched: &Vouched) -> Result<(), SourceError> {
        if usize::from(self.layer) >= self.limits.layers.min(usize::from(u16::MAX) - 1) {
            return Err(SourceError::Limit { what: "layers", limit: self.limits.layers as u64 });
        }
        self.layer += 1;
        let (expected, diff_id) = match vouched {
            Vouched::Nothing => (None, None),
            Vouched::Digests { blob, diff_id } => (blob.as_ref(), Some(diff_id)),
        };
        let mut head = [0; 8];
        let len = self.head(blob, &mut head)?;
        let compression = Compression::of(&head[..len]);
        if let Compression::Other(kind) = compression {
            return Err(SourceError::Compression { what: blob.what.clone(), kind });
        }
        let contents = match compression {
            Compression::Plain => Contents::Stay { origin: self.origin(blob)?, start: blob.range.start },
            _ => Contents::Spool,
        };
        // Hashed once when both digests are of the same bytes.
        let twice = compression == Compression::Plain && expected == diff_id;
        let packed = Part::new(self.reopen(blob)?, blob.range.clone());
        let packed = Observed::new(packed, expected.filter(|_| !twice), u64::MAX);
        let plain = Decoder::new(compression, self.limits.window, packed);
        let mut plain = Observed::new(plain, diff_id, self.limits.total.saturating_sub(self.read));

        let merged = self.merge(&blob.what, &mut plain, contents, diff_id.is_none());
        if plain.over_limit() {
            return Err(SourceError::Limit { what: "bytes in the layers", limit: self.limits.total });
        }
        let vouched = self.check_rest(blob, plain, expected.filter(|_| !twice), diff_id);
        match (merged, vouched) {
            // Bytes that are not the expected ones explain every other error.
            (_, Err(error @ SourceError::Digest { .. })) | (Err(error), _) | (Ok(()), Err(error)) => {
                Err(error)
            }
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    /// The tree, and what was left out of it.
    pub(crate) fn finish(mut self) -> Result<(Tree, Vec<String>), SourceError> {
        let spool = self.spool.finish().map_err(SourceError::Spool)?;
        self.tree.origins.insert(usize::from(SPOOL), spool);
        let notes = self.tree.notes();
        Ok((self.tree, notes))
    }

    /// Reads what follows the archive, so that the digests are of everything.
    fn check_rest<R: Read>(
        &mut self,
        blob: &Blob,
        mut plain: Observed<Decoder<Observed<R>>>,
        expected: Option<&Digest>,
        diff_id: Option<&Digest>,
    ) -> Result<(), SourceError> {
        let decompress = |source| SourceError::Decompress { what: blob.what.clone(), source };
        let drained = io::copy(&mut plain, &mut io::sink());
        let over_limit = plain.over_limit();
        self.read += plain.count;
        let (decoder, actual) = plain.into_parts();
        let mut packed = decoder.into_inner();
        if over_limit {
            return Err(SourceError::Limit { what: "bytes in the layers", limit: self.limits.total });
        }
        io::copy(&mut packed, &mut io::sink()).map_err(decompress)?;
        compare(&format!("the digest of {}", blob.what), expected, packed.finish())?;
        drained.map_err(decompress)?;
        compare(&format!("the digest of {}, decompressed,", blob.what), diff_id, actual)
    }

    fn merge(
        &mut self,
        what: &str,
        input: &mut (impl Read + Sized),
        contents: Contents,
        needs_end_mark: bool,
    ) -> Result<(), SourceError> {
        let tar_error = |source| SourceError::Tar { what: what.to_owned(), source };
        let mut reader = Reader::new(Stream(io::BufReader::with_capacity(64 << 10, input)));
        while let Some(member) = reader.next_member().map_err(tar_error)? {
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(SourceError::Limit { what: "entries in the layers", limit: self.limits.entries });
            }
            self.member(&member, &mut reader, contents).map_err(|error| error.of(what, &member))?;
        }
        if needs_end_mark && !reader.has_end_mark() {
            return Err(tar_error(super::TarError::Cut { offset: reader.position() }));
        }
        // What is buffered past the end is drained, and so hashed, already.
        drop(reader.into_input());
        Ok(())
    }

    fn member<I: Input>(
        &mut self,
        member: &Member,
        reader: &mut Reader<I>,
        contents: Contents,
    ) -> Result<(), Failed> {
        let mut parts: Vec<&[u8]> = components(&member.path)?.collect();
        let Some(text) = parts.pop() else {
            if member.kind != Kind::Directory {
                return Err(Refused::Root.into());
            }
            self.tree.describe_root(member.mode, member.uid, member.gid);
            return Ok(());
        };
        if parts.first().unwrap_or(&text).starts_with(AUFS) && text != OPAQUE {
            return Ok(());
        }
        if parts.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(Refused::InWhiteout.into());
        }
        let parent = parts.join(&b'/');
        if text.starts_with(WHITEOUT) {
            return Ok(self.whiteout(&parent, text)?);
        }
        let size = member.size;
        let left = self.limits.total.saturating_sub(self.expanded);
        if size > self.limits.file || size > left || u32::try_from(size).is_err() {
            return Err(Refused::Large { size, limit: left.min(self.limits.file) }.into());
        }
        self.expanded += size;
        let directory = self.tree.make_directories(&parent, self.layer)?;
        if member.kind == Kind::HardLink {
            return Ok(self.hard_link(member, directory, text)?);
        }
        self.tree.left_out.note(&member.path, member.xattrs.iter().map(Vec::as_slice));
        let inode = self.inode(member, reader, contents)?;
        self.tree.put(directory, text, inode, self.layer)?;
        Ok(())
    }

    fn inode<I: Input>(
        &mut self,
        member: &Member,
        reader: &mut Reader<I>,
        contents: Contents,
    ) -> Result<Inode, Failed> {
        let (kind, data) = match member.kind {
            Kind::File | Kind::HardLink => (S_IFREG, self.content(member, reader, contents)?),
            Kind::Symlink => (S_IFLNK, self.target(&member.link)?),
            Kind::Directory => (S_IFDIR, Data::None),
            Kind::Fifo => (S_IFIFO, Data::None),
            Kind::Character | Kind::Block => {
                let (major, minor) = member.device;
                let kind = if member.kind == Kind::Block { S_IFBLK } else { S_IFCHR };
                (kind, Data::Device { major, minor })
            }
        };
        // Linux gives every symbolic link all permissions; archives vary.
        let mode = if kind == S_IFLNK { 0o777 } else { member.mode };
        Ok(Inode { mode: kind | mode, uid: member.uid, gid: member.gid, data })
    }

    fn content<I: Input>(
        &mut self,
        member: &Member,
        reader: &mut Reader<I>,
        contents: Contents,
    ) -> Result<Data, Failed> {
        // Checked against the limits before.
        let size = member.size as u32;
        let (origin, offset) = match (contents, &member.segments) {
            (_, Some(segments)) => (SPOOL, self.spool.append_sparse(reader, member.size, segments)?),
            (Contents::Spool, None) => (SPOOL, self.spool.append(reader, member.size)?),
            (Contents::Stay { origin, start }, None) => (origin, start + reader.position()),
        };
        Ok(Data::Stored { origin, size, offset })
    }

    fn target(&mut self, link: &[u8]) -> Result<Data, Failed> {
        if link.is_empty() || link.len() > MAX_TARGET || link.contains(&0) {
            return Err(Refused::SymlinkTarget { len: link.len() }.into());
        }
        let offset = self.spool.append(&mut &*link, link.len() as u64)?;
        Ok(Data::Stored { origin: SPOOL, size: link.len() as u32, offset })
    }

    fn hard_link(&mut self, member: &Member, directory: NameId, text: &[u8]) -> Result<(), Refused> {
        let target = || String::from_utf8_lossy(&member.link).into_owned();
        let found = self.tree.find(&member.link).map_err(Refused::Target)?;
        let found = found.ok_or_else(|| Refused::NoTarget { target: target() })?;
        if self.tree.inode(found).mode & crate::cpio::S_IFMT == S_IFDIR {
            return Err(Refused::LinkToDirectory { target: target() });
        }
        if self.tree.find(&member.path)? == Some(found) {
            return Err(Refused::LinkToItself { target: target() });
        }
        self.tree.link(directory, text, found, self.layer)?;
        // It lay in a directory whose place the link has taken.
        if self.tree.is_live(found) { Ok(()) } else { Err(Refused::LinkToItself { target: target() }) }
    }

    fn whiteout(&mut self, parent: &[u8], text: &[u8]) -> Result<(), Refused> {
        let hidden = &text[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Refused::Whiteout { hidden: String::from_utf8_lossy(hidden).into_owned() });
        }
        let Some(directory) = self.tree.find_directory(parent)? else { return Ok(()) };
        if text == OPAQUE {
            self.tree.make_opaque(directory, self.layer);
        } else {
            self.tree.whiteout(directory, hidden, self.layer);
        }
        Ok(())
    }

    fn head(&self, blob: &Blob, head: &mut [u8; 8]) -> Result<usize, SourceError> {
        let len = head.len().min(usize::try_from(blob.range.end - blob.range.start).unwrap_or(usize::MAX));
        let read = blob.file.read_exact_at(&mut head[..len], blob.range.start);
        read.map_err(|source| SourceError::Decompress { what: blob.what.clone(), source })?;
        Ok(len)
    }

    fn origin(&mut self, blob: &Blob) -> Result<u16, SourceError> {
        self.tree.origins.push(self.reopen(blob)?);
        // Not more than there are layers; the spool comes first.
        Ok(self.tree.origins.len() as u16)
    }

    fn reopen(&self, blob: &Blob) -> Result<File, SourceError> {
        blob.file.try_clone().map_err(|source| SourceError::Decompress { what: blob.what.clone(), source })
    }
}

/// Compares digests, where there is one to compare with.
fn compare(what: &str, expected: Option<&Digest>, actual: Option<Digest>) -> Result<(), SourceError> {
    match (expected, actual) {
        (Some(expected), Some(actual)) if *expected != actual => {
            Err(SourceError::Digest { what: what.to_owned(), expected: expected.clone(), actual })
        }
        _ => Ok(()),
    }
}

/// A stream that skips by reading.
struct Stream<R>(R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Input for Stream<R> {}

/// Why an entry could not be merged.
enum Failed {
    Refused(Refused),
    Copy(CopyError),
}

impl Failed {
    fn of(self, what: &str, member: &Member) -> SourceError {
        let what = what.to_owned();
        match self {
            Failed::Refused(source) => {
                let path = String::from_utf8_lossy(&member.path).into_owned();
                SourceError::Refused { what, path, source }
            }
            Failed::Copy(CopyError::Spool(source)) => SourceError::Spool(source),
            Failed::Copy(CopyError::Input(source)) => {
                let offset = member.offset;
                SourceError::Tar { what, source: super::TarError::Read { offset, source } }
            }
        }
    }
}

impl From<Refused> for Failed {
    fn from(error: Refused) -> Failed {
        Failed::Refused(error)
    }
}

impl From<Misplaced> for Failed {
    fn from(error: Misplaced) -> Failed {
        Failed::Refused(error.into())
    }
}

impl From<CopyError> for Failed {
    fn from(error: CopyError) -> Failed {
        Failed::Copy(error)
    }
}
