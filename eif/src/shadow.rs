//! Finds entries of later ramdisks that would replace entries of the first.
//!
//! Linux unpacks all ramdisks into one file system, the later over the
//! earlier. An image that overwrites the agent still has the PCR1 of the
//! agent it seems to run: whoever pins PCR1 should hear of it.

use std::{
    collections::{HashMap, HashSet},
    io::{self, BufReader},
};

use crate::{
    cpio::{ListError, Listed, Reader, S_IFDIR, S_IFLNK, S_IFMT},
    image::Image,
};

/// More entries than this are not looked at: memory stays bounded.
const MAX_ENTRIES: usize = 1 << 20;

/// The agent loads everything in there.
const MODULES: &[u8] = b"modules/";

/// What [`find`] noticed about a ramdisk after the first.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum Shadow {
    #[error("ramdisk {ramdisk} replaces {path:?} of ramdisk 0, which PCR1 does not show")]
    Replaces { ramdisk: usize, path: String },
    #[error(
        "ramdisk {ramdisk} adds {path:?} to the kernel modules that the agent loads, which PCR1 does not show"
    )]
    AddsModule { ramdisk: usize, path: String },
    #[error(
        "ramdisk {ramdisk} reaches through \"..\" or a symbolic link at {path:?}, so what it replaces is unclear"
    )]
    Indirect { ramdisk: usize, path: String },
    #[error("ramdisk {ramdisk} is not looked into for entries that replace ramdisk 0")]
    NotListed { ramdisk: usize, source: ListError },
    #[error("ramdisk {ramdisk} has more than {MAX_ENTRIES} entries, only these were looked at")]
    TooMany { ramdisk: usize },
}

/// Looks through the names in all ramdisks. At most one finding of each kind
/// and path; the order is that of the image.
pub fn find(image: &Image<'_>) -> Vec<Shadow> {
    let mut findings = Vec::new();
    let mut first: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut links: HashSet<Vec<u8>> = HashSet::new();
    for (ramdisk, section) in image.layout().ramdisks().enumerate() {
        let input = BufReader::with_capacity(64 << 10, image.reader(section));
        let listed = list(input, |entry| {
            let Some(path) = plain(&entry.name) else {
                findings.extend((ramdisk > 0).then(|| Shadow::Indirect { ramdisk, path: text(&entry.name) }));
                return;
            };
            if ramdisk == 0 {
                remember(&mut first, &path, entry.mode);
            } else if ancestors(&path).any(|parent| links.contains(parent)) {
                findings.push(Shadow::Indirect { ramdisk, path: text(&path) });
            } else if first.get(&path).is_some_and(|&mode| !(is(mode, S_IFDIR) && is(entry.mode, S_IFDIR))) {
                findings.push(Shadow::Replaces { ramdisk, path: text(&path) });
            } else if path.starts_with(MODULES) {
                findings.push(Shadow::AddsModule { ramdisk, path: text(&path) });
            }
            if is(entry.mode, S_IFLNK) {
                links.insert(path);
            }
        });
        match listed {
            Ok(true) => {}
            Ok(false) => findings.push(Shadow::TooMany { ramdisk }),
            Err(source) => findings.push(Shadow::NotListed { ramdisk, source }),
        }
    }
    findings
}

/// Whether all entries were listed.
fn list(input: impl io::BufRead + io::Seek, mut each: impl FnMut(Listed)) -> Result<bool, ListError> {
    let mut reader = Reader::new(input).map_err(|source| ListError::Read { offset: 0, source })?;
    for _ in 0..MAX_ENTRIES {
        match reader.next_entry()? {
            Some(entry) => each(entry),
            None => return Ok(true),
        }
    }
    Ok(reader.next_entry()?.is_none())
}

/// A path and the directories it needs.
fn remember(first: &mut HashMap<Vec<u8>, u32>, path: &[u8], mode: u32) {
    for parent in ancestors(path) {
        first.entry(parent.to_vec()).or_insert(S_IFDIR);
    }
    first.insert(path.to_vec(), mode);
}

/// Without leading, doubled and trailing slashes and `.`; nothing when it has
/// a `..`.
fn plain(name: &[u8]) -> Option<Vec<u8>> {
    let mut parts = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| &path[..end])
}

fn is(mode: u32, kind: u32) -> bool {
    mode & S_IFMT == kind
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
