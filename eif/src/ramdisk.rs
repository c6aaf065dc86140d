//! The two ramdisks of an image, generated straight into it.
//!
//! ```text
//! ramdisk 0   init (the agent)  dev/ proc/ run/ sys/ tmp/            PCR1
//! ramdisk 1   workload/settings.json   workload/rootfs/...           PCR2
//! ```
//!
//! Linux unpacks both into one file system. Everything of ramdisk 1 is under
//! `workload/`, so it can never replace the agent that PCR1 vouches for.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use crate::cpio::{CpioError, Entry, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, Writer};

/// Where the workload's root filesystem lies, without the leading slash.
const ROOTFS: &str = "workload/rootfs";
/// Where the agent's settings lie, without the leading slash.
const SETTINGS: &str = "workload/settings.json";

/// Why a ramdisk could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum RamdiskError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has {size} bytes; a file in a ramdisk must be smaller than 4 GiB", .path.display())]
    TooLarge { path: PathBuf, size: u64 },
    #[error("{} changed while it was read", .path.display())]
    Changed { path: PathBuf },
    #[error("the path of {} is too long: Linux unpacks paths of up to 4095 bytes", .path.display())]
    LongPath { path: PathBuf },
    #[error("cannot write the ramdisk")]
    Output(#[source] CpioError),
}

/// Writes ramdisk 0: `agent`, from its position to its end, as `/init`, and
/// the directories that it mounts on.
pub fn write_agent<W: Write>(agent: &mut File, path: &Path, output: W) -> Result<W, RamdiskError> {
    let size = agent.metadata().map_err(|source| RamdiskError::Read { path: path.to_owned(), source })?.len();
    let size = file_size(path, size)?;
    let mut writer = Writer::new(output);
    for (inode, (name, mode)) in (1..).zip([
        ("dev", S_IFDIR | 0o755),
        ("init", S_IFREG | 0o755),
        ("proc", S_IFDIR | 0o755),
        ("run", S_IFDIR | 0o755),
        ("sys", S_IFDIR | 0o755),
        ("tmp", S_IFDIR | 0o1777),
    ]) {
        let entry = owned_by_root(name, mode, inode);
        if name == "init" {
            writer.append(&Entry { size, ..entry }, agent).map_err(|error| blame(error, path))?;
        } else {
            writer.append(&entry, &mut io::empty()).map_err(RamdiskError::Output)?;
        }
    }
    writer.finish().map_err(RamdiskError::Output)
}

/// What ramdisk 1 will hold: the names, modes, owners and sizes of a root
/// filesystem, but not its content. About 150 bytes of memory a file.
pub struct Workload {
    rootfs: PathBuf,
    /// Sorted by name.
    nodes: Vec<Node>,
    bytes: u64,
}

/// One file, directory, link or device below the root filesystem.
struct Node {
    /// Path relative to the root filesystem.
    name: PathBuf,
    mode: u32,
    uid: u32,
    gid: u32,
    device: (u32, u32),
    size: u32,
    /// Device and inode number where it lies, when it has several names.
    shared: Option<(u64, u64)>,
    inode: u32,
    /// Names that this file has inside the root filesystem.
    links: u32,
    /// Whether the data follows this name: the last one of a file.
    carries_data: bool,
}

impl Workload {
    /// Lists `rootfs`. Symbolic links are kept, not followed; mount points
    /// below are entered. Hard links to files outside count as files.
    pub fn scan(rootfs: &Path) -> Result<Workload, RamdiskError> {
        let mut nodes = Vec::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(directory) = pending.pop() {
            let path = rootfs.join(&directory);
            let read_error = |source| RamdiskError::Read { path: path.clone(), source };
            for found in fs::read_dir(&path).map_err(read_error)? {
                let found = found.map_err(read_error)?;
                let (name, path) = (directory.join(found.file_name()), found.path());
                let metadata = found.metadata().map_err(|source| RamdiskError::Read { path, source })?;
                if metadata.is_dir() {
                    pending.push(name.clone());
                }
                nodes.push(Node::of(name, &found.path(), &metadata)?);
            }
        }
        nodes.sort_unstable_by(|a, b| a.name.as_os_str().cmp(b.name.as_os_str()));
        number(&mut nodes);
        let bytes = nodes.iter().filter(|node| node.carries_data).map(|node| u64::from(node.size)).sum();
        Ok(Workload { rootfs: rootfs.to_owned(), nodes, bytes })
    }

    /// Bytes of file content that [`Workload::write`] will read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entries in the root filesystem, itself not counted.
    pub fn entries(&self) -> usize {
        self.nodes.len()
    }

    /// Writes ramdisk 1 with `settings` as the agent's settings. `progress` is
    /// told of bytes of content as they are read.
    pub fn write<W: Write>(
        &self,
        settings: &[u8],
        output: W,
        progress: &dyn Fn(u64),
    ) -> Result<W, RamdiskError> {
        let mut writer = Writer::new(output);
        for (name, inode) in [("workload", 1), (ROOTFS, 2)] {
            let entry = owned_by_root(name, S_IFDIR | 0o755, inode);
            writer.append(&entry, &mut io::empty()).map_err(RamdiskError::Output)?;
        }
        for node in &self.nodes {
            self.append(&mut writer, node)?;
            progress(if node.carries_data { u64::from(node.size) } else { 0 });
        }
        let inode = FIRST_INODE + self.nodes.len() as u32;
        let entry = owned_by_root(SETTINGS, S_IFREG | 0o600, inode);
        let size = file_size(Path::new(SETTINGS), settings.len() as u64)?;
        writer.append(&Entry { size, ..entry }, &mut &*settings).map_err(RamdiskError::Output)?;
        writer.finish().map_err(RamdiskError::Output)
    }

    fn append<W: Write>(&self, writer: &mut Writer<W>, node: &Node) -> Result<(), RamdiskError> {
        let path = self.rootfs.join(&node.name);
        let name = Path::new(ROOTFS).join(&node.name);
        let entry = Entry {
            name: name.as_os_str().as_bytes(),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            inode: node.inode,
            links: node.links,
            device: node.device,
            size: if node.carries_data { node.size } else { 0 },
        };
        let read_error = |source| RamdiskError::Read { path: path.clone(), source };
        let appended = match node.mode & S_IFMT {
            S_IFREG if node.carries_data => {
                let mut file = open_unchanged(&path, node.size)?;
                writer.append(&entry, &mut file)
            }
            S_IFLNK => {
                let target = fs::read_link(&path).map_err(read_error)?;
                if target.as_os_str().len() != node.size as usize {
                    return Err(RamdiskError::Changed { path });
                }
                writer.append(&entry, &mut target.as_os_str().as_bytes())
            }
            _ => writer.append(&entry, &mut io::empty()),
        };
        appended.map_err(|error| blame(error, &path))
    }
}

impl Node {
    fn of(name: PathBuf, path: &Path, metadata: &fs::Metadata) -> Result<Node, RamdiskError> {
        let kind = metadata.file_type();
        let has_data = kind.is_file() || kind.is_symlink();
        let is_device = kind.is_char_device() || kind.is_block_device();
        Ok(Node {
            name,
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            device: if is_device { device_numbers(metadata.rdev()) } else { (0, 0) },
            size: if has_data { file_size(path, metadata.len())? } else { 0 },
            shared: (kind.is_file() && metadata.nlink() > 1).then(|| (metadata.dev(), metadata.ino())),
            inode: 0,
            links: 1,
            carries_data: has_data,
        })
    }
}

/// After the two directories that are always there.
const FIRST_INODE: u32 = 3;

/// Gives numbers in order of names; the names of one file share one, and only
/// the last carries the data, as archives of this format have it.
fn number(nodes: &mut [Node]) {
    let mut names: HashMap<(u64, u64), u32> = HashMap::new();
    for shared in nodes.iter().filter_map(|node| node.shared) {
        *names.entry(shared).or_default() += 1;
    }
    let mut seen: HashMap<(u64, u64), (u32, u32)> = HashMap::new();
    for (inode, node) in (FIRST_INODE..).zip(nodes) {
        node.inode = inode;
        let Some(shared) = node.shared else { continue };
        node.links = names.get(&shared).copied().unwrap_or(1);
        let (first, count) = seen.entry(shared).or_insert((inode, 0));
        *count += 1;
        node.inode = *first;
        node.carries_data = *count == node.links;
    }
}

/// Split as Linux packs a `dev_t` for user space (include/linux/kdev_t.h,
/// glibc's `gnu_dev_major` and `gnu_dev_minor`).
fn device_numbers(device: u64) -> (u32, u32) {
    let major = (device >> 8 & 0xfff) | (device >> 32 & 0xffff_f000);
    let minor = (device & 0xff) | (device >> 12 & 0xffff_ff00);
    (major as u32, minor as u32)
}

/// Opens a file that was listed with `size` bytes; a link or a pipe that has
/// taken its place is not followed or waited for.
fn open_unchanged(path: &Path, size: u32) -> Result<File, RamdiskError> {
    let read_error = |source| RamdiskError::Read { path: path.to_owned(), source };
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(read_error)?;
    let metadata = file.metadata().map_err(read_error)?;
    if !metadata.is_file() || metadata.len() != u64::from(size) {
        return Err(RamdiskError::Changed { path: path.to_owned() });
    }
    Ok(file)
}

fn file_size(path: &Path, size: u64) -> Result<u32, RamdiskError> {
    u32::try_from(size).map_err(|_| RamdiskError::TooLarge { path: path.to_owned(), size })
}

fn owned_by_root(name: &str, mode: u32, inode: u32) -> Entry<'_> {
    Entry {
        name: OsStr::new(name).as_bytes(),
        mode,
        uid: 0,
        gid: 0,
        inode,
        links: 1,
        device: (0, 0),
        size: 0,
    }
}

fn blame(error: CpioError, path: &Path) -> RamdiskError {
    let path = path.to_owned();
    match error {
        CpioError::ShortData { .. } => RamdiskError::Changed { path },
        CpioError::LongName { .. } => RamdiskError::LongPath { path },
        CpioError::Data(source) => RamdiskError::Read { path, source },
        other => RamdiskError::Output(other),
    }
}
