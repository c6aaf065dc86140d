//! Checks of donated memory against the donor's real pages, and reads from it.
//!
//! The driver pins the pages it is given; here the same questions are put to
//! /proc: is each page a huge one, is it there, and which pages are neighbours.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::caller::Errno;
use super::ne::{self, MemoryRegion};

/// End of user addresses (x86_64 and aarch64 with 4-level tables).
const USER_END: u64 = 1 << 47;

/// The checks that need no page: `ne_sanity_check_user_mem_region`.
pub(super) fn check_shape(region: MemoryRegion, donated: &[MemoryRegion]) -> Result<(), Errno> {
    if !region.size.is_multiple_of(ne::MIN_REGION) {
        return Err(Errno(ne::INVALID_MEM_REGION_SIZE));
    }
    if !region.address.is_multiple_of(ne::MIN_REGION) {
        return Err(Errno(ne::UNALIGNED_MEM_REGION_ADDR));
    }
    let end = region.address.checked_add(region.size).filter(|end| *end <= USER_END);
    let end = end.ok_or(Errno(ne::INVALID_MEM_REGION_ADDR))?;
    let overlaps = |other: &MemoryRegion| region.address < other.address + other.size && other.address < end;
    if donated.iter().any(overlaps) {
        return Err(Errno(ne::MEM_REGION_ALREADY_USED));
    }
    // The driver runs out of its zero page slots.
    if region.size == 0 { Err(Errno(libc::ENOMEM)) } else { Ok(()) }
}

/// Checks every page of `region` in process `pid` and returns how many
/// physically contiguous pieces they make, which is what the limit counts.
pub(super) fn check_pages(pid: i32, region: MemoryRegion) -> Result<usize, Errno> {
    let areas = areas(pid)?;
    let pagemap = fs::File::open(format!("/proc/{pid}/pagemap"));
    let (mut pieces, mut expected) = (0, None);
    let mut covered = 0;
    while covered < region.size {
        let address = region.address + covered;
        touch(pid, address)?;
        let area = areas.iter().find(|area| (area.start..area.end).contains(&address));
        let area = area.ok_or(Errno(libc::EFAULT))?;
        if !area.huge {
            return Err(Errno(ne::MEM_NOT_HUGE_PAGE));
        }
        if !area.page_size.is_multiple_of(ne::MIN_REGION) {
            return Err(Errno(ne::INVALID_PAGE_SIZE));
        }
        let frame = pagemap.as_ref().ok().and_then(|map| frame_at(map, address).ok()).flatten();
        if frame.is_none() || frame != expected {
            pieces += 1;
        }
        expected = frame.map(|frame| frame + area.page_size / PAGE);
        covered += area.page_size;
    }
    Ok(pieces)
}

/// Copies `into.len()` bytes from `offset` of the enclave's memory, which is
/// the donated regions in the order in which they were given.
pub(super) fn read_at(pid: i32, regions: &[MemoryRegion], offset: u64, into: &mut [u8]) -> Result<(), Errno> {
    let (mut skip, mut filled) = (offset, 0);
    for region in regions {
        if skip >= region.size {
            skip -= region.size;
            continue;
        }
        let take = ((region.size - skip) as usize).min(into.len() - filled);
        read_exactly(pid, region.address + skip, &mut into[filled..filled + take])?;
        filled += take;
        skip = 0;
    }
    if filled == into.len() { Ok(()) } else { Err(Errno(libc::EINVAL)) }
}

const PAGE: u64 = 4096;

struct Area {
    start: u64,
    end: u64,
    page_size: u64,
    huge: bool,
}

/// The mappings of a process, from `/proc/PID/smaps`.
fn areas(pid: i32) -> Result<Vec<Area>, Errno> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut areas: Vec<Area> = Vec::new();
    for line in text.lines() {
        if let Some((start, end)) = range(line) {
            areas.push(Area { start, end, page_size: PAGE, huge: false });
        } else if let Some(area) = areas.last_mut() {
            if let Some(size) = line.strip_prefix("KernelPageSize:") {
                let kib: u64 = size.trim().trim_end_matches(" kB").trim().parse().unwrap_or(4);
                area.page_size = kib * 1024;
            } else if let Some(flags) = line.strip_prefix("VmFlags:") {
                area.huge = flags.split_whitespace().any(|flag| flag == "ht");
            }
        }
    }
    Ok(areas)
}

fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Brings a page in, as pinning it would.
fn touch(pid: i32, address: u64) -> Result<(), Errno> {
    read_exactly(pid, address, &mut [0])
}

fn read_exactly(pid: i32, address: u64, into: &mut [u8]) -> Result<(), Errno> {
    let mut filled = 0;
    while filled < into.len() {
        let remote = RemoteIoVec { base: address as usize + filled, len: into.len() - filled };
        match process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut into[filled..])], &[remote]) {
            Ok(0) | Err(_) => return Err(Errno(libc::EFAULT)),
            Ok(count) => filled += count,
        }
    }
    Ok(())
}

/// The page frame behind an address; `None` when the kernel does not say.
fn frame_at(pagemap: &fs::File, address: u64) -> io::Result<Option<u64>> {
    let mut raw = [0; 8];
    pagemap.read_exact_at(&mut raw, address / PAGE * 8)?;
    let entry = u64::from_ne_bytes(raw);
    let frame = entry & ((1 << 55) - 1);
    Ok((entry >> 63 == 1 && frame != 0).then_some(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(address: u64, size: u64) -> MemoryRegion {
        MemoryRegion { flags: 0, size, address }
    }

    #[test]
    fn shapes_are_refused_in_the_drivers_order() {
        let two = 2 << 20;
        let donated = [region(4 * two, 2 * two)];
        let check = |address, size| check_shape(region(address, size), &donated).map_err(|e| e.0);
        assert_eq!(check(1, 1), Err(ne::INVALID_MEM_REGION_SIZE));
        assert_eq!(check(1, two), Err(ne::UNALIGNED_MEM_REGION_ADDR));
        assert_eq!(check(USER_END, two), Err(ne::INVALID_MEM_REGION_ADDR));
        assert_eq!(check(5 * two, two), Err(ne::MEM_REGION_ALREADY_USED));
        assert_eq!(check(3 * two, 2 * two), Err(ne::MEM_REGION_ALREADY_USED));
        assert_eq!(check(6 * two, two), Ok(()));
    }

    #[test]
    fn ordinary_pages_are_not_huge() {
        let memory = vec![1u8; 6 << 20];
        let aligned = (memory.as_ptr() as u64).next_multiple_of(2 << 20);
        let pid = std::process::id() as i32;
        assert_eq!(check_pages(pid, region(aligned, 2 << 20)), Err(Errno(ne::MEM_NOT_HUGE_PAGE)));
        assert_eq!(check_pages(pid, region(0, 2 << 20)), Err(Errno(libc::EFAULT)));
    }
}
