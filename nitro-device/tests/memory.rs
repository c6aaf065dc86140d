//! Promise: memory of real huge pages, of 2 MiB and of 1 GiB, holds the file
//! where it belongs and zeros elsewhere, and nothing of it stays mapped when
//! filling it or giving it away fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nitro_device::{FillError, HugeRegion, PageSize, RegionError};

const MIB: usize = 1 << 20;

/// One test at a time: they count this process's mappings.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Page sizes of this process's mappings of huge pages, in KiB.
fn mapped() -> Vec<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut sizes = Vec::new();
    let mut page = 0;
    for line in text.lines() {
        if let Some(size) = line.strip_prefix("KernelPageSize:") {
            page = size.trim().trim_end_matches(" kB").parse().unwrap();
        } else if line.starts_with("VmFlags:") && line.split_whitespace().any(|flag| flag == "ht") {
            sizes.push(page);
        }
    }
    sizes
}

/// `len` bytes of which each tells its place.
fn file(len: usize) -> (File, Vec<u8>) {
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + (at >> 12)) as u8).collect();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

/// A free page of 1 GiB in the pool, added if there was none and then given back at the end.
struct LargePage {
    before: u64,
}

impl LargePage {
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB";

    fn number(name: &str) -> Option<u64> {
        std::fs::read_to_string(format!("{}/{name}", Self::POOL)).ok()?.trim().parse().ok()
    }

    /// Nothing where the kernel has no such pages, or finds no room for one.
    fn reserve() -> Option<LargePage> {
        let page = LargePage { before: Self::number("nr_hugepages")? };
        // Room in one piece is rare on a machine that has run for a while.
        if Self::number("free_hugepages")? == 0 {
            let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
            std::fs::write(format!("{}/nr_hugepages", Self::POOL), (page.before + 1).to_string()).ok()?;
        }
        (Self::number("free_hugepages")? > 0).then_some(page)
    }
}

impl Drop for LargePage {
    fn drop(&mut self) {
        let _ = std::fs::write(format!("{}/nr_hugepages", Self::POOL), self.before.to_string());
    }
}

/// A file in the middle of the memory, over a boundary of the small pages.
fn holds_the_file(page: PageSize, len: usize, threads: usize) {
    let (file, bytes) = file(5 * MIB + 123);
    let (skipped, at) = (4097, MIB + 77);
    let mut region = HugeRegion::map(page, len).unwrap();
    assert_eq!(mapped(), [page.bytes() >> 10]);
    region.fill(&file, skipped as u64, at, bytes.len() - skipped, threads).unwrap();
    let end = at + bytes.len() - skipped;
    assert!(region.bytes()[at..end] == bytes[skipped..], "the file is not what was read");
    let zeros = |part: &[u8]| part.iter().all(|byte| *byte == 0);
    assert!(zeros(&region.bytes()[..at]), "something lies before the file");
    assert!(zeros(&region.bytes()[end..end.next_multiple_of(2 * MIB) + 2 * MIB]), "something lies after it");
    drop(region);
    assert!(mapped().is_empty());
}

#[test]
fn small_pages_hold_the_file_where_it_belongs_on_any_number_of_threads() {
    let _alone = alone();
    for threads in [1, 2, 7] {
        holds_the_file(PageSize::MIB2, 12 * MIB, threads);
    }
}

#[test]
fn a_page_of_a_gibibyte_holds_the_file_where_it_belongs() {
    let _alone = alone();
    let Some(_page) = LargePage::reserve() else {
        return eprintln!("SKIPPED: the kernel gives no page of 1 GiB here");
    };
    for threads in [1, 4] {
        holds_the_file(PageSize::GIB1, 1 << 30, threads);
    }
}

#[test]
fn memory_is_taken_from_the_node_that_it_is_bound_to_and_another_is_an_error() {
    let _alone = alone();
    let (file, bytes) = file(MIB);
    let mut region = HugeRegion::map(PageSize::MIB2, 4 * MIB).unwrap();
    region.bind_to_node(0).unwrap();
    region.fill(&file, 0, 0, bytes.len(), 2).unwrap();
    let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
    let bound = maps.lines().find(|line| line.contains(" huge")).unwrap_or_else(|| panic!("{maps}"));
    assert!(bound.contains("bind:0") && bound.contains("N0=2"), "{bound}");
    for node in [900, 5000] {
        let error = region.bind_to_node(node).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    }
}

#[test]
fn a_file_that_is_shorter_than_promised_is_an_error_and_leaves_nothing_mapped() {
    let _alone = alone();
    let (file, bytes) = file(3 * MIB);
    let mut region = HugeRegion::map(PageSize::MIB2, 8 * MIB).unwrap();
    let error = region.fill(&file, 0, 0, bytes.len() + 1, 2).unwrap_err();
    assert!(
        matches!(&error, FillError::Read(error) if error.kind() == std::io::ErrorKind::UnexpectedEof),
        "{error}"
    );
    drop(region);
    assert!(mapped().is_empty());
}

#[test]
fn more_than_the_pool_holds_is_an_error_and_leaves_nothing_mapped() {
    let _alone = alone();
    let kept = HugeRegion::map(PageSize::MIB2, 2 * MIB).unwrap();
    let error = HugeRegion::map(PageSize::MIB2, 1 << 46).unwrap_err();
    assert!(
        matches!(&error, RegionError::Map { source, .. } if source.raw_os_error() == Some(libc::ENOMEM)),
        "{error:?}"
    );
    assert_eq!(mapped(), [2048], "only what was there before");
    drop(kept);
    assert!(mapped().is_empty());
}
