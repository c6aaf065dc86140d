//! The files by which the kernel is asked for pages and CPUs.
//!
//! Everything goes through [`Files`], so that tests can put a kernel that
//! grants little in its place.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use kubernetes::{allocator::cpu_list, pages::PageSize};

/// The pool of the enclave driver (drivers/virt/nitro_enclaves, parameter ne_cpus).
pub(super) const CPU_POOL: &str = "sys/module/nitro_enclaves/parameters/ne_cpus";
const CPUS: &str = "sys/devices/system/cpu";
const NODES: &str = "sys/devices/system/node";

/// Small files under a root directory. Paths are relative to it.
pub(super) trait Files {
    fn read(&self, path: &str) -> io::Result<String>;
    /// Writes with one call, as sysfs wants it; the file must be there.
    fn write(&self, path: &str, text: &str) -> io::Result<()>;
    /// Names of a directory's entries, sorted.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
}

/// The real ones.
pub(super) struct Directory {
    pub(super) root: PathBuf,
}

impl Files for Directory {
    fn read(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.root.join(path))
    }

    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        use io::Write;
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(self.root.join(path))?;
        file.write_all(text.as_bytes())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(path))? {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }
}

/// A file that could not be read or written, or holds something else.
#[derive(Debug, thiserror::Error)]
pub(super) enum SysfsError {
    #[error("cannot {verb} {}", .path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("{} holds {text:?}", .path.display())]
    Content { path: PathBuf, text: String },
}

/// What the kernel knows of the machine while all its CPUs are online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// Online CPUs by NUMA node.
    pub(super) nodes: BTreeMap<u32, Vec<u32>>,
    /// The threads of each CPU's core, itself included.
    pub(super) siblings: BTreeMap<u32, Vec<u32>>,
}

/// The huge page pools of one NUMA node: pages by size.
pub(super) type Pools = BTreeMap<PageSize, u64>;

/// Reads and writes by meaning.
pub(super) struct Sysfs<'a> {
    pub(super) files: &'a dyn Files,
}

impl Sysfs<'_> {
    /// Whether the enclave driver is loaded.
    pub(super) fn has_driver(&self) -> bool {
        self.files.read(CPU_POOL).is_ok()
    }

    /// The CPU pool. Empty when there is none.
    pub(super) fn cpu_pool(&self) -> Result<Vec<u32>, SysfsError> {
        let text = self.text(CPU_POOL)?;
        if text.is_empty() { Ok(Vec::new()) } else { self.cpus_of(CPU_POOL, &text) }
    }

    /// Sets the pool; an empty list brings its CPUs back online.
    pub(super) fn set_cpu_pool(&self, list: &str) -> Result<(), SysfsError> {
        self.put(CPU_POOL, &format!("{list}\n"))
    }

    pub(super) fn machine(&self) -> Result<Machine, SysfsError> {
        let mut machine = Machine { nodes: BTreeMap::new(), siblings: BTreeMap::new() };
        for node in self.numbered(NODES, "node")? {
            let path = format!("{NODES}/node{node}/cpulist");
            let text = self.text(&path)?;
            // A node may have memory and no CPUs.
            let cpus = if text.is_empty() { Vec::new() } else { self.cpus_of(&path, &text)? };
            for cpu in &cpus {
                let path = format!("{CPUS}/cpu{cpu}/topology/thread_siblings_list");
                let text = self.text(&path)?;
                machine.siblings.insert(*cpu, self.cpus_of(&path, &text)?);
            }
            machine.nodes.insert(node, cpus);
        }
        Ok(machine)
    }

    /// A CPU's NUMA node, also while it is offline.
    pub(super) fn node_of(&self, cpu: u32) -> Result<Option<u32>, SysfsError> {
        Ok(self.numbered(&format!("{CPUS}/cpu{cpu}"), "node")?.first().copied())
    }

    /// Page sizes and how many pages of each a node has.
    pub(super) fn pools(&self, node: u32) -> Result<Pools, SysfsError> {
        let directory = format!("{NODES}/node{node}/hugepages");
        let names = self.files.list(&directory).map_err(|source| SysfsError::Io {
            verb: "list",
            path: directory.clone().into(),
            source,
        })?;
        let sizes = names.iter().filter_map(|name| PageSize::from_sysfs(name));
        sizes.map(|size| Ok((size, self.pages(node, size, "nr_hugepages")?))).collect()
    }

    /// Pages of a node that nobody uses.
    pub(super) fn free(&self, node: u32, size: PageSize) -> Result<u64, SysfsError> {
        self.pages(node, size, "free_hugepages")
    }

    /// Asks for so many pages; says how many there are then.
    pub(super) fn set_pages(&self, node: u32, size: PageSize, count: u64) -> Result<u64, SysfsError> {
        self.put(&pool_file(node, size, "nr_hugepages"), &format!("{count}\n"))?;
        self.pages(node, size, "nr_hugepages")
    }

    fn pages(&self, node: u32, size: PageSize, file: &str) -> Result<u64, SysfsError> {
        let path = pool_file(node, size, file);
        let text = self.text(&path)?;
        text.parse().map_err(|_| SysfsError::Content { path: path.into(), text })
    }

    /// The numbers of entries such as `node0`.
    fn numbered(&self, directory: &str, prefix: &str) -> Result<Vec<u32>, SysfsError> {
        let names = self.files.list(directory).map_err(|source| SysfsError::Io {
            verb: "list",
            path: directory.into(),
            source,
        })?;
        let mut numbers: Vec<u32> =
            names.iter().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn cpus_of(&self, path: &str, text: &str) -> Result<Vec<u32>, SysfsError> {
        cpu_list(text).ok_or_else(|| SysfsError::Content { path: path.into(), text: text.to_owned() })
    }

    fn text(&self, path: &str) -> Result<String, SysfsError> {
        let read = self.files.read(path);
        let text = read.map_err(|source| SysfsError::Io { verb: "read", path: path.into(), source })?;
        Ok(text.trim().to_owned())
    }

    fn put(&self, path: &str, text: &str) -> Result<(), SysfsError> {
        let wrote = self.files.write(path, text);
        wrote.map_err(|source| SysfsError::Io { verb: "write", path: Path::new(path).into(), source })
    }
}

fn pool_file(node: u32, size: PageSize, file: &str) -> String {
    format!("{NODES}/node{node}/hugepages/{}/{file}", size.sysfs_name())
}
