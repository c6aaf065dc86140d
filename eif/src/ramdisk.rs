//! The two ramdisks of an image, generated straight into it.
//!
//! ```text
//! ramdisk 0   init (the agent)  dev/ proc/ run/ sys/ tmp/  modules/  PCR1
//! ramdisk 1   workload/settings.json   workload/rootfs/...           PCR2
//! ```
//!
//! Linux unpacks both into one file system. Everything of ramdisk 1 is under
//! `workload/`, so it can never replace the agent that PCR1 vouches for.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{
    boot_files::Module,
    cpio::{CpioError, Entry, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, Writer},
    rootfs::tree::{Data, Inode, Links, Place, Tree, Visited},
};

/// Where the workload's root filesystem lies, without the leading slash.
const ROOTFS: &str = "workload/rootfs";
/// Where the agent's settings lie, without the leading slash.
const SETTINGS: &str = "workload/settings.json";
/// Where the agent's modules lie, without the leading slash.
const MODULES: &str = "modules";
/// As many as two digits number, so that names sort as they are loaded.
const MAX_MODULES: usize = 100;

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
    #[error("the kernel is given {count} modules, at most {MAX_MODULES} are loaded")]
    ManyModules { count: usize },
    #[error("cannot write the ramdisk")]
    Output(#[source] CpioError),
}

/// Writes ramdisk 0: `agent`, from its position to its end, as `/init`, the
/// directories that it mounts on, and the kernel's `modules`, numbered in the
/// order in which the agent loads them: `/modules/00-nsm.ko`.
pub fn write_agent<W: Write>(
    agent: &mut File,
    path: &Path,
    modules: &[Module],
    output: W,
) -> Result<W, RamdiskError> {
    if modules.len() > MAX_MODULES {
        return Err(RamdiskError::ManyModules { count: modules.len() });
    }
    let mut writer = BootWriter { writer: Writer::new(output), inode: 1 };
    writer.directory("dev", 0o755)?;
    writer.file("init", 0o755, agent, path)?;
    if !modules.is_empty() {
        writer.directory(MODULES, 0o755)?;
    }
    for (index, Module { file, path, name }) in modules.iter().enumerate() {
        writer.file(&format!("{MODULES}/{index:02}-{name}"), 0o644, file, path)?;
    }
    writer.directory("proc", 0o755)?;
    writer.directory("run", 0o755)?;
    writer.directory("sys", 0o755)?;
    writer.directory("tmp", 0o1777)?;
    writer.writer.finish().map_err(RamdiskError::Output)
}

/// Writes entries of ramdisk 0, in order.
struct BootWriter<W> {
    writer: Writer<W>,
    inode: u32,
}

impl<W: Write> BootWriter<W> {
    fn directory(&mut self, name: &str, mode: u32) -> Result<(), RamdiskError> {
        let entry = owned_by_root(name, S_IFDIR | mode, self.inode);
        self.inode += 1;
        self.writer.append(&entry, &mut io::empty()).map_err(RamdiskError::Output)
    }

    /// All of `file`, which is at its start, as `path` is called in errors.
    fn file(&mut self, name: &str, mode: u32, mut file: &File, path: &Path) -> Result<(), RamdiskError> {
        let size = file.metadata().map_err(|source| RamdiskError::Read { path: path.to_owned(), source })?;
        let size = file_size(path, size.len())?;
        let entry = Entry { size, ..owned_by_root(name, S_IFREG | mode, self.inode) };
        self.inode += 1;
        self.writer.append(&entry, &mut file).map_err(|error| blame(error, path))
    }
}

/// What ramdisk 1 will hold besides the settings.
pub struct Workload {
    tree: Tree,
    bytes: u64,
}

impl Workload {
    /// The workload whose root filesystem is `tree`.
    pub fn of(tree: Tree) -> Workload {
        let bytes = tree.bytes();
        Workload { tree, bytes }
    }

    /// Bytes of file content that [`Workload::write`] will read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entries in the root filesystem, itself not counted.
    pub fn entries(&self) -> usize {
        self.tree.entries()
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
        let directory = owned_by_root("workload", S_IFDIR | 0o755, 1);
        writer.append(&directory, &mut io::empty()).map_err(RamdiskError::Output)?;
        let &Inode { mode, uid, gid, .. } = self.tree.root();
        let root = Entry { uid, gid, ..owned_by_root(ROOTFS, mode, 2) };
        writer.append(&root, &mut io::empty()).map_err(RamdiskError::Output)?;
        let mut links = Links::of(&self.tree);
        let mut next_inode = FIRST_INODE;
        self.tree.visit(&mut |name: Visited<'_>| {
            let place = links.place(&name, next_inode);
            next_inode += 1;
            progress(self.append(&mut writer, &name, &place)?);
            Ok(())
        })?;
        let entry = owned_by_root(SETTINGS, S_IFREG | 0o600, next_inode);
        let size = file_size(Path::new(SETTINGS), settings.len() as u64)?;
        writer.append(&Entry { size, ..entry }, &mut &*settings).map_err(RamdiskError::Output)?;
        writer.finish().map_err(RamdiskError::Output)
    }

    /// Gives the bytes of content that were written.
    fn append<W: Write>(
        &self,
        writer: &mut Writer<W>,
        name: &Visited<'_>,
        place: &Place,
    ) -> Result<u64, RamdiskError> {
        let &Inode { mode, uid, gid, data } = name.inode;
        let full_name = [ROOTFS.as_bytes(), b"/", name.path].concat();
        let entry = Entry {
            name: &full_name,
            mode,
            uid,
            gid,
            inode: place.inode,
            links: place.links,
            device: if let Data::Device { major, minor } = data { (major, minor) } else { (0, 0) },
            size: if place.carries_data { data.size() } else { 0 },
        };
        let path = || self.tree.directory.join(OsStr::from_bytes(name.path));
        let appended = match data {
            Data::Named { size } if entry.size > 0 && mode & S_IFMT == S_IFLNK => {
                let path = path();
                let read = fs::read_link(&path);
                let target = read.map_err(|source| RamdiskError::Read { path: path.clone(), source })?;
                if target.as_os_str().len() != size as usize {
                    return Err(RamdiskError::Changed { path });
                }
                writer.append(&entry, &mut target.as_os_str().as_bytes())
            }
            Data::Named { size } if place.carries_data => {
                writer.append(&entry, &mut open_unchanged(&path(), size)?)
            }
            Data::Stored { origin, offset, .. } if entry.size > 0 => {
                let mut file = &self.tree.origins[usize::from(origin)];
                let sought = file.seek(SeekFrom::Start(offset));
                sought.map_err(|source| RamdiskError::Read { path: path(), source })?;
                writer.append(&entry, &mut file)
            }
            _ => writer.append(&entry, &mut io::empty()),
        };
        appended.map_err(|error| blame(error, &path()))?;
        Ok(u64::from(entry.size))
    }
}

/// After the two directories that are always there.
const FIRST_INODE: u32 = 3;

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
