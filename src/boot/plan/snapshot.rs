//! Takes the picture of the machine that the planner works from. What cannot
//! be read is left out: a missing file means "no such pool" or "no limit".
//!
//! Sources: Documentation/admin-guide/mm/hugetlbpage.rst,
//! cgroup-v2.rst (HugeTLB), cgroup-v1/hugetlb.rst.

use std::fs;
use std::path::{Path, PathBuf};

use nitro_device::PageSize;

use super::cpus::parse_list;
use super::{CpuPool, Limit, Pool, Snapshot};

const POOLS: &str = "sys/kernel/mm/hugepages";
const NODES: &str = "sys/devices/system/node";
const CPUS: &str = "sys/devices/system/cpu";
/// The driver's parameter. Source: drivers/virt/nitro_enclaves/ne_misc_dev.c.
const CPU_POOL: &str = "sys/module/nitro_enclaves/parameters/ne_cpus";
const CGROUPS: &str = "sys/fs/cgroup";
/// Kernels write about 2^63 for "no limit".
const NO_LIMIT: u64 = 1 << 60;

impl Snapshot {
    /// The machine whose file system begins at `root`.
    pub(crate) fn take(root: &Path) -> Snapshot {
        let groups = hugetlb_groups(root);
        let mut pools: Vec<Pool> = fs::read_dir(root.join(POOLS))
            .into_iter()
            .flatten()
            .filter_map(|entry| pool(&entry.ok()?.path(), &groups))
            .collect();
        pools.sort_by_key(|pool| pool.page);
        let cpus = cpu_pool(root);
        let node = cpus.as_ref().and_then(|cpus| memory_node(root, &cpus.ids));
        if let Some(node) = node {
            pools.iter_mut().for_each(|pool| keep_node(root, node, pool));
        }
        Snapshot { pools, cpus, node }
    }
}

/// The driver's pool, and how CPU 0 numbers the threads of its core: CPUs of
/// the pool are offline, and an offline CPU has no topology.
fn cpu_pool(root: &Path) -> Option<CpuPool> {
    let ids = parse_list(&fs::read_to_string(root.join(CPU_POOL)).ok()?)?;
    let siblings = fs::read_to_string(root.join(CPUS).join("cpu0/topology/thread_siblings_list"));
    let siblings = siblings.ok().and_then(|list| parse_list(&list)).unwrap_or_default();
    let stride = if let [first, second, ..] = siblings[..] { second - first } else { 1 };
    Some(CpuPool { ids, threads: siblings.len().max(1) as u32, stride })
}

/// The node of the pool's CPUs, on a machine with several. For offline CPUs,
/// which have no node any more, it is the only one that has huge pages.
fn memory_node(root: &Path, cpus: &[u32]) -> Option<u32> {
    let nodes = numbered(&root.join(NODES), "node");
    if nodes.len() < 2 {
        return None;
    }
    let of_cpu = |cpu: &u32| numbered(&root.join(CPUS).join(format!("cpu{cpu}")), "node").pop();
    cpus.iter().find_map(of_cpu).or_else(|| {
        let has_pages = |node: &u32| {
            let pools =
                fs::read_dir(root.join(NODES).join(format!("node{node}/hugepages"))).into_iter().flatten();
            pools.filter_map(|pool| number(&pool.ok()?.path().join("nr_hugepages"))).any(|pages| pages > 0)
        };
        let with_pages: Vec<u32> = nodes.into_iter().filter(has_pages).collect();
        if let [node] = with_pages[..] { Some(node) } else { None }
    })
}

/// Leaves of `free` only what is on `node`.
fn keep_node(root: &Path, node: u32, pool: &mut Pool) {
    let file = format!("node{node}/hugepages/hugepages-{}kB/free_hugepages", pool.page.bytes() >> 10);
    let here = number(&root.join(NODES).join(file)).unwrap_or(0).min(pool.free);
    pool.elsewhere = pool.free - here;
    pool.free = here;
}

/// Numbers `n` of the entries `<prefix>n` of a directory.
fn numbered(directory: &Path, prefix: &str) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()).collect()
}

/// Where the kernel keeps the pages of one size.
pub(super) fn pool_path(page: PageSize) -> PathBuf {
    Path::new("/").join(POOLS).join(format!("hugepages-{}kB", page.bytes() >> 10))
}

fn pool(path: &Path, groups: &[Group]) -> Option<Pool> {
    let kib: u64 =
        path.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    let page = PageSize::from_bytes(kib << 10)?;
    let free = number(&path.join("free_hugepages"))?;
    let reserved = number(&path.join("resv_hugepages")).unwrap_or(0);
    // The smallest grant and the smallest room may be of different groups.
    let both = |a: Limit, b: Limit| {
        let (max, left) = (a.max.min(b.max), room(a).min(room(b)));
        Limit { max, used: max - left }
    };
    let limit = groups.iter().flat_map(|group| group.limits(page)).reduce(both);
    Some(Pool { page, free: free.saturating_sub(reserved), elsewhere: 0, limit })
}

fn room(limit: Limit) -> u64 {
    limit.max.saturating_sub(limit.used)
}

/// One control group directory and the names that its version uses.
#[derive(Debug)]
struct Group {
    path: PathBuf,
    max: &'static str,
    used: &'static str,
}

impl Group {
    /// The limit on pages in use and the one on pages reserved by mmap.
    fn limits(&self, page: PageSize) -> Vec<Limit> {
        let size = match page.bytes() {
            bytes if bytes >= 1 << 30 => format!("{}GB", bytes >> 30),
            bytes => format!("{}MB", bytes >> 20),
        };
        let limit = |kind: &str| {
            let max = number(&self.path.join(format!("hugetlb.{size}{kind}.{}", self.max)))?;
            let used = number(&self.path.join(format!("hugetlb.{size}{kind}.{}", self.used))).unwrap_or(0);
            (max < NO_LIMIT).then_some(Limit { max, used })
        };
        [limit(""), limit(".rsvd")].into_iter().flatten().collect()
    }
}

/// The process's own group and every one above it: all their limits hold.
fn hugetlb_groups(root: &Path) -> Vec<Group> {
    let membership = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mounts, max, used): (&[&str], _, _) = match controllers {
            "" => (&["", "unified"], "max", "current"),
            names if names.split(',').any(|name| name == "hugetlb") => {
                (&["hugetlb"], "limit_in_bytes", "usage_in_bytes")
            }
            _ => continue,
        };
        for mount in mounts {
            let base = root.join(CGROUPS).join(mount);
            // Without a namespace of its own a container reads its group's path
            // on the host, but sees its own group as the root of the mount.
            let own = Some(base.join(path.trim_start_matches('/'))).filter(|own| own.is_dir());
            let lowest = own.unwrap_or_else(|| base.clone());
            let chain = lowest.ancestors().take_while(|ancestor| ancestor.starts_with(&base));
            groups.extend(chain.map(|path| Group { path: path.to_owned(), max, used }));
        }
    }
    groups
}

/// A file that holds one number; `max` and anything else is none.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const POOL: [(&str, &str); 3] = [
        ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "100\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "4\n"),
        ("sys/kernel/mm/hugepages/hugepages-64kB/free_hugepages", "9\n"),
    ];

    fn limit_of(files: &[(&str, &str)]) -> Option<Limit> {
        let root = machine(&[&POOL[..], files].concat());
        let snapshot = Snapshot::take(root.path());
        assert_eq!(snapshot.pools.len(), 1, "64 KiB pages are of no use to an enclave");
        assert_eq!((snapshot.pools[0].page, snapshot.pools[0].free), (PageSize::MIB2, 96));
        snapshot.pools[0].limit
    }

    #[test]
    fn the_tightest_limit_of_version_2_counts_also_from_a_parent_group() {
        let limit = limit_of(&[
            ("proc/self/cgroup", "0::/pod/container\n"),
            ("sys/fs/cgroup/pod/hugetlb.2MB.max", "33554432\n"),
            ("sys/fs/cgroup/pod/hugetlb.2MB.current", "2097152\n"),
            ("sys/fs/cgroup/pod/container/hugetlb.2MB.max", "max\n"),
            ("sys/fs/cgroup/pod/container/hugetlb.2MB.rsvd.max", "67108864\n"),
        ]);
        assert_eq!(limit, Some(Limit { max: 32 << 20, used: 2 << 20 }));
    }

    #[test]
    fn the_grant_is_the_own_groups_although_a_parent_has_less_room_left() {
        let limit = limit_of(&[
            ("proc/self/cgroup", "0::/pods/pod\n"),
            ("sys/fs/cgroup/pods/hugetlb.2MB.max", "4294967296\n"),
            ("sys/fs/cgroup/pods/hugetlb.2MB.current", "4194304000\n"),
            ("sys/fs/cgroup/pods/pod/hugetlb.2MB.max", "134217728\n"),
            ("sys/fs/cgroup/pods/pod/hugetlb.2MB.current", "0\n"),
        ]);
        // Room is what the parent has left: 96 MiB.
        assert_eq!(limit, Some(Limit { max: 128 << 20, used: 32 << 20 }));
    }

    #[test]
    fn version_1_is_read_by_its_own_names_and_without_its_path_at_the_mount() {
        let limit = limit_of(&[
            ("proc/self/cgroup", "5:cpu:/x\n4:hugetlb:/kubepods/pod1\n"),
            ("sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes", "134217728\n"),
            ("sys/fs/cgroup/hugetlb/hugetlb.2MB.usage_in_bytes", "0\n"),
        ]);
        assert_eq!(limit, Some(Limit { max: 128 << 20, used: 0 }));
    }

    #[test]
    fn no_group_no_file_and_the_kernels_largest_number_are_no_limit() {
        assert_eq!(limit_of(&[]), None);
        assert_eq!(limit_of(&[("proc/self/cgroup", "0::/\n")]), None);
        let largest = ("sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes", "9223372036852678656\n");
        assert_eq!(limit_of(&[("proc/self/cgroup", "4:hugetlb:/\n"), largest]), None);
    }

    #[test]
    fn the_cpu_pool_and_its_node_decide_which_pages_count() {
        let node = |node: u32, pages: &str| {
            (
                format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/free_hugepages"),
                pages.to_owned(),
            )
        };
        let files = [node(0, "70"), node(1, "30")];
        let mut files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (&**path, &**text)).collect();
        files.extend(POOL);
        files.push(("sys/module/nitro_enclaves/parameters/ne_cpus", "2-3,50-51\n"));
        files.push(("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0,48\n"));
        let unknown = Snapshot::take(machine(&files).path());
        assert_eq!((unknown.node, unknown.pools[0].free), (None, 96), "nothing tells the node");
        assert_eq!(unknown.cpus, Some(CpuPool { ids: vec![2, 3, 50, 51], threads: 2, stride: 48 }));

        let by_cpu = [&files[..], &[("sys/devices/system/cpu/cpu50/node1/here", "")]].concat();
        let snapshot = Snapshot::take(machine(&by_cpu).path());
        assert_eq!((snapshot.node, snapshot.pools[0].free, snapshot.pools[0].elsewhere), (Some(1), 30, 66));

        let pages = ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "70");
        let by_pages = Snapshot::take(machine(&[&files[..], &[pages]].concat()).path());
        assert_eq!((by_pages.node, by_pages.pools[0].free), (Some(0), 70));
    }
}
