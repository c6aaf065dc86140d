//! Files by name: in a directory, or in a tar archive that is listed once and
//! then read by offset.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    Limits, SourceError,
    compression::{Compression, Decoder, Part},
    digest::{Digest, Observed},
    layer::Blob,
    tar::{Input, Kind, Reader},
    tree::components,
};

/// Of manifests, indexes and configurations (registries accept 4 MiB).
const MAX_JSON: u64 = 4 << 20;
/// Members of an archive of images.
const MAX_MEMBERS: usize = 1 << 16;
/// Links from one name to another in old docker archives.
const MAX_LINKS: usize = 4;

/// Where an image's files lie.
pub(crate) struct Files {
    path: PathBuf,
    place: Place,
}

enum Place {
    Directory,
    Archive { file: File, members: HashMap<Vec<u8>, Entry> },
}

enum Entry {
    File(Range<u64>),
    /// Path that it leads to.
    Link(Vec<u8>),
}

impl Files {
    pub(crate) fn in_directory(path: &Path) -> Files {
        Files { path: path.to_owned(), place: Place::Directory }
    }

    /// Lists an archive. A compressed one is first decompressed into `spool`,
    /// which then belongs to it.
    pub(crate) fn in_archive(
        path: &Path,
        limits: &Limits,
        spool: &mut dyn FnMut() -> io::Result<File>,
    ) -> Result<Files, SourceError> {
        let file = File::open(path);
        let file = file.map_err(|source| SourceError::Read { path: path.to_owned(), source })?;
        Files::of_archive(file, path, limits, spool)
    }

    /// As [`Files::in_archive`], for one that is open already.
    pub(crate) fn of_archive(
        mut file: File,
        path: &Path,
        limits: &Limits,
        spool: &mut dyn FnMut() -> io::Result<File>,
    ) -> Result<Files, SourceError> {
        let read_error = |source| SourceError::Read { path: path.to_owned(), source };
        let what = path.display().to_string();
        let len = file.metadata().map_err(read_error)?.len();
        let mut head = [0; 8];
        let head_len = file.read_at(&mut head, 0).map_err(read_error)?;
        match Compression::of(&head[..head_len]) {
            Compression::Plain => {}
            Compression::Other(kind) => return Err(SourceError::Compression { what, kind }),
            compression => {
                let mut plain = spool().map_err(SourceError::Spool)?;
                let decoder = Decoder::new(compression, limits.window, Part::new(file, 0..len));
                let mut decoder = Observed::new(decoder, None, limits.total);
                let copied = io::copy(&mut decoder, &mut plain);
                if decoder.over_limit() {
                    return Err(SourceError::Limit { what: "bytes in the archive", limit: limits.total });
                }
                copied.map_err(|source| SourceError::Decompress { what: what.clone(), source })?;
                file = plain;
            }
        }
        let members = list(&file).map_err(|source| SourceError::Tar { what, source })?;
        Ok(Files { path: path.to_owned(), place: Place::Archive { file, members } })
    }

    /// Where the image lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of `name`, if it is there. `name` must be safe in a path:
    /// fixed, or made from a digest, when this may be a directory.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Blob>, SourceError> {
        let what = format!("{} in {}", name, self.path.display());
        match &self.place {
            Place::Directory => {
                let path = self.path.join(name);
                let read_error = |source| SourceError::Read { path: path.clone(), source };
                let file = match File::open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    opened => opened.map_err(read_error)?,
                };
                let metadata = file.metadata().map_err(read_error)?;
                if !metadata.is_file() {
                    return Err(SourceError::Unusable { what, why: "it is not a regular file".to_owned() });
                }
                Ok(Some(Blob { what, file, range: 0..metadata.len() }))
            }
            Place::Archive { file, members } => {
                let Some(range) = resolve(members, name) else { return Ok(None) };
                let clone =
                    file.try_clone().map_err(|source| SourceError::Read { path: self.path.clone(), source });
                Ok(Some(Blob { what, file: clone?, range }))
            }
        }
    }

    /// As [`Files::find`]; its absence is an error.
    pub(crate) fn open(&self, name: &str) -> Result<Blob, SourceError> {
        self.find(name)?.ok_or_else(|| SourceError::Unusable {
            what: self.path.display().to_string(),
            why: format!("{name} is missing"),
        })
    }
}

impl Blob {
    /// All bytes, which must be few.
    pub(crate) fn json_bytes(&self) -> Result<Vec<u8>, SourceError> {
        let size = self.range.end - self.range.start;
        if size > MAX_JSON {
            return Err(SourceError::Large { what: self.what.clone(), size, limit: MAX_JSON });
        }
        let mut bytes = vec![0; size as usize];
        let read = self.file.read_exact_at(&mut bytes, self.range.start);
        read.map_err(|source| SourceError::Decompress { what: self.what.clone(), source })?;
        Ok(bytes)
    }

    /// All bytes as JSON; with the digest they must have, if one is known.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        expected: Option<&Digest>,
    ) -> Result<(T, Vec<u8>), SourceError> {
        let bytes = self.json_bytes()?;
        let parsed = parse_json(&self.what, &bytes, expected)?;
        Ok((parsed, bytes))
    }
}

/// `bytes` as JSON; with the digest they must have, if one is known. `what` is
/// for messages.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(
    what: &str,
    bytes: &[u8],
    expected: Option<&Digest>,
) -> Result<T, SourceError> {
    if let Some(expected) = expected {
        let mut observed = Observed::new(bytes, Some(expected), u64::MAX);
        // Reading from memory into nothing cannot fail.
        let _ = io::copy(&mut observed, &mut io::sink());
        if let Some(actual) = observed.finish().filter(|actual| actual != expected) {
            let what = format!("the digest of {what}");
            return Err(SourceError::Digest { what, expected: expected.clone(), actual });
        }
    }
    serde_json::from_slice(bytes).map_err(|source| SourceError::Json { what: what.to_owned(), source })
}

/// Whether an image called `name` is meant by `wanted`: all of it, its end
/// (`docker.io/library/app:1` is also `app:1`), or its tag alone.
pub(crate) fn is_called(name: &str, wanted: &str) -> bool {
    let rest = name.strip_suffix(wanted);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with(['/', ':']))
}

fn list(file: &File) -> Result<HashMap<Vec<u8>, Entry>, super::TarError> {
    let read_error = |source| super::TarError::Read { offset: 0, source };
    let len = file.metadata().map_err(read_error)?.len();
    let mut clone = file.try_clone().map_err(read_error)?;
    clone.rewind().map_err(read_error)?;
    let mut reader =
        Reader::new(Seeking { input: BufReader::with_capacity(16 << 10, clone), position: 0, len });
    let mut members = HashMap::new();
    while let Some(member) = reader.next_member()? {
        let Ok(parts) = components(&member.path) else { continue };
        let path = parts.collect::<Vec<_>>().join(&b'/');
        let start = reader.position();
        let entry = match member.kind {
            Kind::File if member.segments.is_none() => Entry::File(start..start + member.size),
            Kind::Symlink => {
                let parent = path.iter().rposition(|&byte| byte == b'/').map_or(&b""[..], |at| &path[..at]);
                match lexical(parent, &member.link) {
                    Some(target) => Entry::Link(target),
                    None => continue,
                }
            }
            Kind::HardLink => match lexical(b"", &member.link) {
                Some(target) => Entry::Link(target),
                None => continue,
            },
            _ => continue,
        };
        if members.len() == MAX_MEMBERS {
            return Err(super::TarError::Dangling { offset: member.offset });
        }
        members.insert(path, entry);
    }
    Ok(members)
}

/// Where `target` leads from `parent`, inside the archive.
fn lexical(parent: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = parent.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).collect();
    for part in target.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

fn resolve(members: &HashMap<Vec<u8>, Entry>, name: &str) -> Option<Range<u64>> {
    let mut name = name.as_bytes().to_vec();
    for _ in 0..MAX_LINKS {
        match members.get(&name)? {
            Entry::File(range) => return Some(range.clone()),
            Entry::Link(target) => name.clone_from(target),
        }
    }
    None
}

/// A file that is skipped through, not read through.
struct Seeking {
    input: BufReader<File>,
    position: u64,
    len: u64,
}

impl Read for Seeking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Input for Seeking {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        if count > self.len.saturating_sub(self.position) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count;
        self.input.seek(SeekFrom::Start(self.position)).map(drop)
    }
}
