//! A directory of this machine as a root filesystem.

use std::{
    collections::HashMap,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use super::{
    Refused, SourceError,
    tree::{Data, Inode, NameId, Tree},
};

/// linux/limits.h
const XATTR_LIST_MAX: usize = 65536;

/// Lists `root`. Contents stay where they are.
pub(crate) fn scan(root: &Path) -> Result<Tree, SourceError> {
    let mut scan = Scan { root, tree: Tree::default(), seen: HashMap::new(), names: vec![0; XATTR_LIST_MAX] };
    scan.tree.directory = root.to_owned();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        scan.directory(&directory, &mut pending)?;
    }
    Ok(scan.tree)
}

struct Scan<'a> {
    root: &'a Path,
    tree: Tree,
    /// Files with several names, by device and inode number.
    seen: HashMap<(u64, u64), NameId>,
    /// Room for the names of a file's attributes.
    names: Vec<u8>,
}

impl Scan<'_> {
    fn directory(&mut self, directory: &Path, pending: &mut Vec<PathBuf>) -> Result<(), SourceError> {
        let path = self.root.join(directory);
        let read_error = |source| SourceError::Read { path: path.clone(), source };
        let refused = |path: &Path, source: Refused| SourceError::Refused {
            what: self.root.display().to_string(),
            path: path.display().to_string(),
            source,
        };
        for found in fs::read_dir(&path).map_err(read_error)? {
            let found = found.map_err(read_error)?;
            let (name, path) = (directory.join(found.file_name()), found.path());
            let metadata = found.metadata().map_err(|source| SourceError::Read { path, source })?;
            let inode = inode(&metadata).map_err(|error| refused(&name, error))?;
            self.attributes(&name)?;
            let text = found.file_name();
            let placed = (|| {
                let parent = self.tree.make_directories(directory.as_os_str().as_bytes(), 1)?;
                let shared =
                    (metadata.is_file() && metadata.nlink() > 1).then(|| (metadata.dev(), metadata.ino()));
                if let Some(&first) = shared.and_then(|shared| self.seen.get(&shared)) {
                    return self.tree.link(parent, text.as_bytes(), first, 1);
                }
                self.tree.put(parent, text.as_bytes(), inode, 1)?;
                if let Some(shared) = shared
                    && let Some(name) = self.tree.find(name.as_os_str().as_bytes())?
                {
                    self.seen.insert(shared, name);
                }
                Ok(())
            })();
            placed.map_err(|error| SourceError::Refused {
                what: self.root.display().to_string(),
                path: name.display().to_string(),
                source: Refused::Misplaced(error),
            })?;
            if metadata.is_dir() {
                pending.push(name);
            }
        }
        Ok(())
    }
}

impl Scan<'_> {
    /// Not of what a symbolic link leads to.
    fn attributes(&mut self, name: &Path) -> Result<(), SourceError> {
        let path = self.root.join(name);
        let len = match rustix::fs::llistxattr(&path, &mut self.names[..]) {
            // The file system has none.
            Err(rustix::io::Errno::OPNOTSUPP) => 0,
            listed => listed.map_err(|error| SourceError::Read { path, source: error.into() })?,
        };
        let names = self.names[..len].split(|&byte| byte == 0);
        self.tree.left_out.note(name.as_os_str().as_bytes(), names);
        Ok(())
    }
}

fn inode(metadata: &fs::Metadata) -> Result<Inode, Refused> {
    let kind = metadata.file_type();
    let data = if kind.is_file() || kind.is_symlink() {
        let limit = u64::from(u32::MAX);
        let size = metadata.len();
        Data::Named { size: u32::try_from(size).map_err(|_| Refused::Large { size, limit })? }
    } else if kind.is_char_device() || kind.is_block_device() {
        let (major, minor) = device_numbers(metadata.rdev());
        Data::Device { major, minor }
    } else {
        Data::None
    };
    Ok(Inode { mode: metadata.mode(), uid: metadata.uid(), gid: metadata.gid(), data })
}

/// Split as Linux packs a `dev_t` for user space (include/linux/kdev_t.h,
/// glibc's `gnu_dev_major` and `gnu_dev_minor`).
fn device_numbers(device: u64) -> (u32, u32) {
    let major = (device >> 8 & 0xfff) | (device >> 32 & 0xffff_f000);
    let minor = (device & 0xff) | (device >> 12 & 0xffff_ff00);
    (major as u32, minor as u32)
}
