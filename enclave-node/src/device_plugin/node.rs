//! Reads what the node has for enclaves: the device, the CPU pool, huge pages.
//!
//! Only what was *set aside* is read, never what is free now: kubelet keeps the
//! books of what is in use, and a count that fell with every enclave would be
//! subtracted twice.
//!
//! Sources: drivers/virt/nitro_enclaves/ne_misc_dev.c (`ne_cpus`),
//! Documentation/ABI/stable/sysfs-devices-node (huge pages),
//! Documentation/admin-guide/cputopology.rst.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kubernetes::allocator::cpu_list;
use kubernetes::pages::PageSize;

/// Below the sysfs root.
const POOL: &str = "module/nitro_enclaves/parameters/ne_cpus";
const CPUS: &str = "devices/system/cpu";
const NODES: &str = "devices/system/node";
const PAGES_OF_ALL_NODES: &str = "kernel/mm/hugepages";
/// An enclave's memory comes in regions of whole 2 MiB, so smaller pages do not count.
const SMALLEST_PAGE: u64 = 2 << 20;
/// NE_MIN_MEM_REGION_SIZE and the driver's minimum for a whole enclave, in bytes.
pub(crate) const SMALLEST_ENCLAVE: u64 = 64 << 20;

/// Where the node's files are mounted.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    /// Sysfs, `/sys` on a node.
    pub(crate) sysfs: PathBuf,
    /// Devices, `/dev` on a node.
    pub(crate) dev: PathBuf,
}

/// What is set aside for enclaves now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Node {
    /// Whether the driver's device exists.
    pub(crate) device: bool,
    /// The CPU pool, by CPU id.
    pub(crate) pool: Vec<PoolCpu>,
    /// Bytes of huge pages on the pool's NUMA nodes, in use or not.
    pub(crate) page_bytes: u64,
}

/// A CPU of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolCpu {
    /// The kernel's CPU number.
    pub(crate) id: u32,
    /// Its core, named by the core's first CPU.
    pub(crate) core: u32,
    /// Its NUMA node, unless the kernel does not say.
    pub(crate) numa: Option<u32>,
}

impl Roots {
    /// Where the driver's device is seen.
    pub(crate) fn device(&self) -> PathBuf {
        self.dev.join("nitro_enclaves")
    }

    /// Directories whose events may mean that [`Node::read`] would differ now.
    pub(crate) fn places_to_watch(&self) -> Vec<PathBuf> {
        let pool = self.sysfs.join(POOL);
        let mut places = vec![self.dev.clone(), self.sysfs.join("module")];
        places.extend(pool.parent().map(Path::to_owned));
        places.extend(page_sizes(&self.sysfs.join(PAGES_OF_ALL_NODES)).map(|(_, path)| path));
        for (_, node) in numbered(&self.sysfs.join(NODES), "node") {
            places.extend(page_sizes(&node.join("hugepages")).map(|(_, path)| path));
        }
        places
    }
}

impl Node {
    /// The node as it is now. What cannot be read does not exist.
    pub(crate) fn read(roots: &Roots) -> Node {
        let pool = pool(&roots.sysfs);
        let numa: BTreeSet<u32> = pool.iter().filter_map(|cpu| cpu.numa).collect();
        Node {
            device: fs::metadata(roots.device()).is_ok_and(|device| !device.is_dir()),
            page_bytes: page_bytes(&roots.sysfs, &numa),
            pool,
        }
    }

    /// Whole cores in the pool.
    pub(crate) fn cores(&self) -> usize {
        self.pool.iter().map(|cpu| cpu.core).collect::<BTreeSet<_>>().len()
    }
}

fn pool(sysfs: &Path) -> Vec<PoolCpu> {
    let Some(ids) = fs::read_to_string(sysfs.join(POOL)).ok().and_then(|text| cpu_list(text.trim())) else {
        return Vec::new();
    };
    let cpus = sysfs.join(CPUS);
    let threads = Threads::of_core_zero(&cpus);
    let cpu = |id| {
        let path = cpus.join(format!("cpu{id}"));
        let numa = numbered(&path, "node").next().map(|(node, _)| node);
        PoolCpu { id, core: siblings(&path).map_or_else(|| threads.core_of(id), |all| all[0]), numa }
    };
    ids.into_iter().collect::<BTreeSet<u32>>().into_iter().map(cpu).collect()
}

/// How CPU numbers fall into cores. The kernel hides the topology of CPUs that
/// are offline, as those of the pool are; core 0 is never in the pool and has
/// the same shape as all the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Threads {
    /// Siblings are neighbours: 0 and 1.
    Adjacent { per_core: u32 },
    /// Siblings are this far apart: 0 and 8.
    Strided { cores: u32 },
}

impl Threads {
    fn of_core_zero(cpus: &Path) -> Threads {
        match siblings(&cpus.join("cpu0")).as_deref() {
            Some([0, second, ..]) if *second > 1 => Threads::Strided { cores: *second },
            Some(all) => Threads::Adjacent { per_core: all.len() as u32 },
            None => Threads::Adjacent { per_core: 1 },
        }
    }

    fn core_of(self, cpu: u32) -> u32 {
        match self {
            Threads::Adjacent { per_core } => cpu - cpu % per_core,
            Threads::Strided { cores } => cpu % cores,
        }
    }
}

/// The CPUs of one core, lowest first; never empty.
fn siblings(cpu: &Path) -> Option<Vec<u32>> {
    let mut ids = cpu_list(fs::read_to_string(cpu.join("topology/thread_siblings_list")).ok()?.trim())?;
    ids.sort_unstable();
    (!ids.is_empty()).then_some(ids)
}

/// Bytes on the nodes `numa`, or on the whole machine where the kernel has no NUMA.
fn page_bytes(sysfs: &Path, numa: &BTreeSet<u32>) -> u64 {
    let mut places: Vec<PathBuf> =
        numa.iter().map(|node| sysfs.join(NODES).join(format!("node{node}/hugepages"))).collect();
    if places.is_empty() {
        places.push(sysfs.join(PAGES_OF_ALL_NODES));
    }
    let bytes = |(size, path): (PageSize, PathBuf)| {
        let count = fs::read_to_string(path.join("nr_hugepages")).ok()?.trim().parse::<u64>().ok()?;
        count.checked_mul(size.0)
    };
    let sizes = places.iter().flat_map(|place| page_sizes(place));
    sizes.filter(|(size, _)| size.0 >= SMALLEST_PAGE).filter_map(bytes).fold(0, u64::saturating_add)
}

fn page_sizes(place: &Path) -> impl Iterator<Item = (PageSize, PathBuf)> + use<> {
    fs::read_dir(place).into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        Some((PageSize::from_sysfs(entry.file_name().to_str()?)?, entry.path()))
    })
}

/// The entries `{prefix}N` of a directory.
fn numbered(place: &Path, prefix: &'static str) -> impl Iterator<Item = (u32, PathBuf)> + use<> {
    fs::read_dir(place).into_iter().flatten().filter_map(move |entry| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
        Some((number, entry.path()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Eight CPUs in four cores, two of them on NUMA node 1 and in the pool.
    fn machine(core_zero: &str, pool: &str) -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        write(root, "dev/nitro_enclaves", "");
        write(root, "sys/module/nitro_enclaves/parameters/ne_cpus", pool);
        write(root, "sys/devices/system/cpu/cpu0/topology/thread_siblings_list", core_zero);
        for cpu in 0..8 {
            write(root, &format!("sys/devices/system/cpu/cpu{cpu}/node{}/link", cpu / 4), "");
        }
        for (node, kib, count) in [(0, 2048, 1000), (1, 2048, 64), (1, 1 << 20, 1), (1, 64, 9999)] {
            let file = format!("sys/devices/system/node/node{node}/hugepages/hugepages-{kib}kB/nr_hugepages");
            write(root, &file, &format!("{count}\n"));
        }
        let roots = Roots { sysfs: root.join("sys"), dev: root.join("dev") };
        (dir, roots)
    }

    #[test]
    fn only_usable_pages_on_the_nodes_of_the_pool_count() {
        let (_dir, roots) = machine("0-1\n", "4-7\n");
        let node = Node::read(&roots);
        assert!(node.device);
        assert_eq!(node.page_bytes, (64 << 21) + (1 << 30));
        assert!(node.pool.iter().all(|cpu| cpu.numa == Some(1)));
    }

    #[test]
    fn cores_of_offline_cpus_follow_the_shape_of_core_zero() {
        for (core_zero, expected) in [("0-1", [4, 4, 6, 6]), ("0,4", [0, 1, 2, 3]), ("0", [4, 5, 6, 7])] {
            let (_dir, roots) = machine(core_zero, "4-7");
            let cores: Vec<u32> = Node::read(&roots).pool.iter().map(|cpu| cpu.core).collect();
            assert_eq!(cores, expected, "core 0 is {core_zero}");
        }
    }

    #[test]
    fn a_machine_without_the_driver_has_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { sysfs: dir.path().join("sys"), dev: dir.path().join("dev") };
        assert_eq!(Node::read(&roots), Node::default());
    }
}
