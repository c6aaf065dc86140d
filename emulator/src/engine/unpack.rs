//! Unpacks a ramdisk into the current root directory, as init/initramfs.c does:
//! later entries replace earlier ones, device nodes are left out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::mkfifo;

use super::Ramdisk;
use super::cpio::{Entry, MAX_NAME, Reader};

/// Bytes moved at a time.
const COPY_CHUNK: usize = 256 << 10;

/// Unpacks the bytes of `image` that are `ramdisk`. Only newc archives are
/// known; the process engine decompresses nothing.
pub(super) fn unpack(image: &File, ramdisk: Ramdisk) -> anyhow::Result<()> {
    let window = Window { image, position: ramdisk.start, end: ramdisk.end };
    let mut reader = Reader::new(BufReader::with_capacity(COPY_CHUNK / 4, window));
    let mut links = HashMap::new();
    while let Some(entry) = reader.next_entry()? {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let Some(path) = inside(&entry.name) else {
            io::copy(&mut reader.data(), &mut io::sink())?;
            continue;
        };
        place(&entry, &path, &mut reader, &mut links).with_context(|| format!("entry {name:?}"))?;
    }
    Ok(())
}

fn place(
    entry: &Entry,
    path: &Path,
    reader: &mut Reader<impl Read>,
    links: &mut HashMap<(u32, u32, u32), PathBuf>,
) -> anyhow::Result<()> {
    let mode = Permissions::from_mode(entry.mode & 0o7777);
    match SFlag::from_bits_truncate(entry.mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => {
            if mounted(path) {
                return Ok(());
            }
            clear(path, true)?;
            if !path.is_dir() {
                fs::create_dir(path)?;
            }
            own(entry, path)?;
            fs::set_permissions(path, mode)?;
        }
        SFlag::S_IFREG => {
            if entry.links > 1
                && let Some(first) = links.get(&entry.identity)
            {
                clear(path, false)?;
                fs::hard_link(first, path)?;
                // Usually the last link carries the data.
                if entry.size > 0 {
                    copy_data(reader, &mut OpenOptions::new().write(true).open(path)?)?;
                }
                return Ok(());
            }
            clear(path, false)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            copy_data(reader, &mut file)?;
            own(entry, path)?;
            file.set_permissions(mode)?;
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(entry.mtime.into()))?;
            if entry.links > 1 {
                links.insert(entry.identity, path.to_owned());
            }
        }
        SFlag::S_IFLNK => {
            let mut target = Vec::new();
            reader.data().take(MAX_NAME).read_to_end(&mut target)?;
            if target.len() as u64 != entry.size {
                bail!("a link target of {} bytes", entry.size);
            }
            clear(path, false)?;
            symlink(OsStr::from_bytes(&target), path)?;
            own(entry, path)?;
        }
        SFlag::S_IFIFO => {
            clear(path, false)?;
            mkfifo(path, Mode::from_bits_truncate(entry.mode & 0o7777))?;
            own(entry, path)?;
        }
        // Device nodes: /dev has the ones that an enclave may use. Sockets mean nothing.
        _ => {
            io::copy(&mut reader.data(), &mut io::sink())?;
        }
    }
    Ok(())
}

/// Large pieces go straight from the image into the file's page cache.
fn copy_data(reader: &mut Reader<impl Read>, file: &mut File) -> io::Result<()> {
    let mut data = BufReader::with_capacity(COPY_CHUNK, reader.data());
    loop {
        let piece = data.fill_buf()?;
        if piece.is_empty() {
            return Ok(());
        }
        file.write_all(piece)?;
        let length = piece.len();
        data.consume(length);
    }
}

/// The entry's place below the root; `None` for the root itself.
fn inside(name: &[u8]) -> Option<PathBuf> {
    let mut path = PathBuf::from("/");
    for component in Path::new(&std::ffi::OsString::from_vec(name.to_vec())).components() {
        match component {
            Component::Normal(part) => path.push(part),
            // As the kernel resolves it at its root.
            Component::ParentDir => drop(path.pop()),
            _ => {}
        }
    }
    (path.as_os_str() != "/").then_some(path)
}

/// Removes what is in the way, except a directory where one is wanted.
fn clear(path: &Path, directory: bool) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() && directory => Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// Whether something was mounted here before unpacking: /dev, /proc, /sys.
fn mounted(path: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.dev());
    match (device(path), device(Path::new("/"))) {
        (Ok(there), Ok(root)) => there != root,
        _ => false,
    }
}

fn own(entry: &Entry, path: &Path) -> anyhow::Result<()> {
    lchown(path, Some(entry.uid), Some(entry.gid))
        .with_context(|| format!("cannot give it to user {} group {}", entry.uid, entry.gid))
}

/// Part of a file as a stream.
struct Window<'a> {
    image: &'a File,
    position: u64,
    end: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = (self.end - self.position).min(into.len() as u64) as usize;
        let count = self.image.read_at(&mut into[..most], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_root() {
        let at = |name: &str| inside(name.as_bytes());
        assert_eq!(at("a/b"), Some("/a/b".into()));
        assert_eq!(at("./a"), Some("/a".into()));
        assert_eq!(at("/../../a"), Some("/a".into()));
        assert_eq!(at("."), None);
        assert_eq!(at("a/.."), None);
    }
}
