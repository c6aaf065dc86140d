//! The allocator against a kernel that grants, grants in part, or refuses.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
};

use kubernetes::pages::{PagePlan, PageSize};

use super::{
    cores::CoreError,
    reserve::{Record, Reserve, ReserveError},
    sysfs::{CPU_POOL, Files, Sysfs},
    *,
};

const TWO_MIB: PageSize = PageSize(2 << 20);
const ONE_GIB: PageSize = PageSize(1 << 30);

/// A kernel with one or two NUMA nodes of 4 cores with 2 threads each. A pool
/// grants up to its limit; all of a node's pages together up to its memory.
struct Kernel {
    files: RefCell<BTreeMap<String, String>>,
    limits: BTreeMap<(u32, PageSize), u64>,
    memory: BTreeMap<u32, u64>,
    enclaves_running: bool,
    refuses_pool: bool,
    /// Writes that fail from here on.
    writes_left: Cell<u32>,
}

fn kernel(nodes: u32, sizes: &[PageSize]) -> Kernel {
    let mut files = BTreeMap::from([(CPU_POOL.to_owned(), String::new())]);
    let cores = nodes * 4;
    for node in 0..nodes {
        let cpus: Vec<u32> = (0..cores * 2).filter(|cpu| cpu % cores / 4 == node).collect();
        files.insert(format!("sys/devices/system/node/node{node}/cpulist"), list_text(&cpus));
        for cpu in cpus {
            let siblings = format!("{},{}", cpu % cores, cpu % cores + cores);
            let at = format!("sys/devices/system/cpu/cpu{cpu}");
            files.insert(format!("{at}/topology/thread_siblings_list"), siblings);
            files.insert(format!("{at}/node{node}/cpulist"), String::new());
        }
        for size in sizes {
            for file in ["nr_hugepages", "free_hugepages"] {
                files.insert(pool_file(node, *size, file), "0\n".to_owned());
            }
        }
    }
    Kernel {
        files: RefCell::new(files),
        limits: BTreeMap::new(),
        memory: (0..nodes).map(|node| (node, 64 << 30)).collect(),
        enclaves_running: false,
        refuses_pool: false,
        writes_left: Cell::new(u32::MAX),
    }
}

fn pool_file(node: u32, size: PageSize, file: &str) -> String {
    format!("sys/devices/system/node/node{node}/hugepages/{}/{file}", size.sysfs_name())
}

impl Kernel {
    fn pages(&self, node: u32, size: PageSize) -> u64 {
        self.files.borrow()[&pool_file(node, size, "nr_hugepages")].trim().parse().unwrap()
    }

    fn pool(&self) -> String {
        self.files.borrow()[CPU_POOL].trim().to_owned()
    }

    fn state(&self) -> BTreeMap<String, String> {
        let changing = |path: &String| path.ends_with("nr_hugepages") || path == CPU_POOL;
        let files = self.files.borrow();
        files
            .iter()
            .filter(|(path, _)| changing(path))
            .map(|(p, t)| (p.clone(), t.trim().to_owned()))
            .collect()
    }

    /// What the kernel makes of a request for pages.
    fn grant(&self, path: &str, wanted: u64) -> u64 {
        let parts: Vec<&str> = path.split('/').collect();
        let node: u32 = parts[4].trim_start_matches("node").parse().unwrap();
        let size = PageSize::from_sysfs(parts[6]).unwrap();
        let files = self.files.borrow();
        let others: u64 = files
            .iter()
            .filter(|(p, _)| {
                p.contains(&format!("/node{node}/hug")) && p.ends_with("nr_hugepages") && *p != path
            })
            .map(|(p, t)| {
                let size = PageSize::from_sysfs(p.split('/').nth(6).unwrap()).unwrap();
                size.0 * t.trim().parse::<u64>().unwrap()
            })
            .sum();
        let room = (self.memory[&node].saturating_sub(others)) / size.0;
        wanted.min(room).min(self.limits.get(&(node, size)).copied().unwrap_or(u64::MAX))
    }

    fn reserve(
        &self,
        file: &str,
        record: Record,
        take_over: bool,
    ) -> Result<(Reserved, Record), ReserveError> {
        let reservation = reservation(file, "test").unwrap();
        Reserve { sysfs: Sysfs { files: self }, reservation: &reservation, record, take_over }.run()
    }
}

impl Files for Kernel {
    fn read(&self, path: &str) -> io::Result<String> {
        self.files.borrow().get(path).cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        if !self.files.borrow().contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        match self.writes_left.get() {
            0 => return Err(io::ErrorKind::InvalidInput.into()),
            left => self.writes_left.set(left - 1),
        }
        let text = if path == CPU_POOL {
            if self.enclaves_running {
                return Err(io::Error::from_raw_os_error(1));
            }
            if self.refuses_pool && !text.trim().is_empty() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            text.to_owned()
        } else {
            format!("{}\n", self.grant(path, text.trim().parse().unwrap()))
        };
        self.files.borrow_mut().insert(path.to_owned(), text.clone());
        if path.ends_with("nr_hugepages") {
            let free = path.replace("nr_hugepages", "free_hugepages");
            self.files.borrow_mut().insert(free, text);
        }
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let prefix = format!("{path}/");
        let mut names: Vec<String> = self
            .files
            .borrow()
            .keys()
            .filter_map(|file| Some(file.strip_prefix(&prefix)?.split('/').next()?.to_owned()))
            .collect();
        names.dedup();
        if names.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(names) }
    }
}

fn file(memory_mib: u64, cpus: &str) -> String {
    format!("---\nmemory_mib: {memory_mib}\n{cpus}\n")
}

#[test]
fn the_plan_is_that_of_the_script_when_everything_is_granted() {
    for memory_mib in [64, 512, 768, 769, 1024, 1536, 4096, 5000] {
        let kernel = kernel(1, &[TWO_MIB, ONE_GIB]);
        let (reserved, record) =
            kernel.reserve(&file(memory_mib, "cpu_count: 2"), Record::default(), false).unwrap();
        for (size, count) in PagePlan::new(memory_mib, &[TWO_MIB, ONE_GIB]).unwrap().pages() {
            assert_eq!(kernel.pages(0, *size), *count, "{memory_mib} MiB, {size}");
            assert_eq!(record.pages[&size.sysfs_name()], *count);
        }
        assert_eq!((kernel.pool().as_str(), reserved.cpus), ("1,5", vec![1, 5]));
    }
}

#[test]
fn what_is_not_granted_in_large_pages_comes_in_small_ones() {
    // Every number of 1 GiB pages that a node may grant of 3.
    for granted in 0..=3 {
        let mut kernel = kernel(1, &[TWO_MIB, ONE_GIB]);
        kernel.limits.insert((0, ONE_GIB), granted);
        kernel.reserve(&file(3072, "cpu_count: 2"), Record::default(), false).unwrap();
        assert_eq!(kernel.pages(0, ONE_GIB), granted);
        assert_eq!(kernel.pages(0, TWO_MIB), (3 - granted) * 512);
    }
}

#[test]
fn every_shortfall_leaves_everything_as_it_was() {
    // Granted, granted in part, refused: each of both sizes, with and without
    // pages of others and a pool of before.
    for large in [0, 1, 2] {
        for small in [0, 100, 511] {
            for others in [0, 7] {
                let mut kernel = kernel(1, &[TWO_MIB, ONE_GIB]);
                kernel.write(&pool_file(0, TWO_MIB, "nr_hugepages"), &others.to_string()).unwrap();
                kernel.write(CPU_POOL, "2,6").unwrap();
                kernel.limits.insert((0, ONE_GIB), large);
                kernel.limits.insert((0, TWO_MIB), small + others);
                let before = kernel.state();
                let error =
                    kernel.reserve(&file(3072, "cpu_count: 2"), Record::default(), false).unwrap_err();
                assert!(matches!(error, ReserveError::Memory { memory_mib: 3072, .. }), "{error}");
                let missing = 3072 - large * 1024 - small * 2;
                assert!(error.to_string().contains(&format!("node 0 is {missing} MiB short")), "{error}");
                assert_eq!(kernel.state(), before);
            }
        }
    }
}

#[test]
fn the_next_node_is_tried_when_one_has_too_little() {
    let mut kernel = kernel(2, &[TWO_MIB, ONE_GIB]);
    kernel.memory.insert(0, 1 << 30);
    let (reserved, _) = kernel.reserve(&file(2048, "cpu_count: 4"), Record::default(), false).unwrap();
    assert_eq!((reserved.node, reserved.cpus), (1, vec![4, 5, 12, 13]));
    assert_eq!((kernel.pages(0, ONE_GIB), kernel.pages(1, ONE_GIB)), (0, 2));
    // A pool by id stays where its CPUs are.
    let error = kernel.reserve(&file(2048, "cpu_pool: 1,9"), Record::default(), false).unwrap_err();
    assert!(error.to_string().contains("node 0 is 1024 MiB short"), "{error}");
}

#[test]
fn pages_of_others_are_kept_and_counted_unless_taken_over() {
    let kernel = kernel(1, &[TWO_MIB, ONE_GIB]);
    kernel.write(&pool_file(0, TWO_MIB, "nr_hugepages"), "10").unwrap();
    let (reserved, record) = kernel.reserve(&file(512, "cpu_count: 2"), Record::default(), false).unwrap();
    assert_eq!(kernel.pages(0, TWO_MIB), 266);
    let two = &reserved.pages[0];
    assert_eq!((two.resource.as_str(), two.ours, two.others, two.free), ("hugepages-2Mi", 256, 10, 266));
    // Another run knows which are ours: it does not add to them.
    let (_, record) = kernel.reserve(&file(1024, "cpu_count: 2"), record, false).unwrap();
    assert_eq!((kernel.pages(0, TWO_MIB), kernel.pages(0, ONE_GIB)), (10, 1));
    kernel.reserve(&file(512, "cpu_count: 2"), record, true).unwrap();
    assert_eq!((kernel.pages(0, TWO_MIB), kernel.pages(0, ONE_GIB)), (256, 0));
}

#[test]
fn pages_move_with_the_pool_to_another_node() {
    let kernel = kernel(2, &[TWO_MIB]);
    let (_, record) = kernel.reserve(&file(512, "cpu_pool: 1,9"), Record::default(), false).unwrap();
    kernel.reserve(&file(512, "cpu_pool: 4,12"), record, false).unwrap();
    assert_eq!((kernel.pages(0, TWO_MIB), kernel.pages(1, TWO_MIB)), (0, 256));
}

#[test]
fn enclaves_that_run_and_pools_that_are_refused_are_told_apart() {
    let mut running = kernel(1, &[TWO_MIB]);
    running.enclaves_running = true;
    let before = running.state();
    let error = running.reserve(&file(512, "cpu_count: 2"), Record::default(), false).unwrap_err();
    assert!(matches!(error, ReserveError::EnclavesRunning), "{error}");
    assert_eq!(running.state(), before);

    let mut refusing = kernel(1, &[TWO_MIB]);
    refusing.refuses_pool = true;
    let before = refusing.state();
    let error = refusing.reserve(&file(512, "cpu_count: 2"), Record::default(), false).unwrap_err();
    assert!(matches!(error, ReserveError::PoolRefused { .. }), "{error}");
    assert_eq!(refusing.state(), before, "pages are given back");

    let none = kernel(1, &[TWO_MIB]);
    none.files.borrow_mut().remove(CPU_POOL);
    let error = none.reserve(&file(512, "cpu_count: 2"), Record::default(), false).unwrap_err();
    assert!(matches!(error, ReserveError::NoDriver), "{error}");
}

#[test]
fn a_rollback_that_fails_is_said() {
    // Whichever write fails, and all after it: never silence, never success.
    for writes in 0..8 {
        let mut kernel = kernel(1, &[TWO_MIB, ONE_GIB]);
        kernel.write(&pool_file(0, TWO_MIB, "nr_hugepages"), "10").unwrap();
        kernel.limits.insert((0, ONE_GIB), 0);
        kernel.limits.insert((0, TWO_MIB), 20);
        let before = kernel.state();
        kernel.writes_left.set(writes);
        let error = kernel.reserve(&file(1024, "cpu_count: 2"), Record::default(), false).unwrap_err();
        if kernel.state() != before {
            assert!(matches!(error, ReserveError::Rollback { .. }), "{writes} writes: {error}");
        }
    }
}

#[test]
fn cpus_that_cannot_be_given_touch_nothing() {
    for (cpus, expected) in [
        ("cpu_count: 3", CoreError::NotWhole { count: 3, threads: 2 }),
        ("cpu_count: 8", CoreError::TooMany { count: 8, most: 6 }),
        ("cpu_pool: 1", CoreError::Sibling { cpu: 1, sibling: 5 }),
    ] {
        let kernel = kernel(1, &[TWO_MIB]);
        let before = kernel.state();
        let error = kernel.reserve(&file(512, cpus), Record::default(), false).unwrap_err();
        assert!(matches!(&error, ReserveError::Cores(core) if *core == expected), "{error}");
        assert_eq!(kernel.state(), before);
    }
}

#[test]
fn what_is_in_place_is_seen() {
    let kernel = kernel(1, &[TWO_MIB, ONE_GIB]);
    let sysfs = || Sysfs { files: &kernel };
    let asked = reservation(&file(1536, "cpu_count: 2"), "test").unwrap();
    assert_eq!(in_place(&sysfs(), &asked, None).unwrap(), None);
    let (reserved, record) = kernel.reserve(&file(1536, "cpu_count: 2"), Record::default(), false).unwrap();
    assert_eq!(in_place(&sysfs(), &asked, Some(&record)).unwrap(), Some(reserved.clone()));
    // Also without a record, as after AWS's allocator.
    assert_eq!(in_place(&sysfs(), &asked, None).unwrap(), Some(reserved));
    for changed in [file(1538, "cpu_count: 2"), file(1536, "cpu_count: 4"), file(1536, "cpu_pool: 2,6")] {
        let asked = reservation(&changed, "test").unwrap();
        assert_eq!(in_place(&sysfs(), &asked, Some(&record)).unwrap(), None, "{changed}");
    }
    kernel.write(&pool_file(0, TWO_MIB, "nr_hugepages"), "255").unwrap();
    assert_eq!(in_place(&sysfs(), &asked, Some(&record)).unwrap(), None, "somebody took pages away");
}
