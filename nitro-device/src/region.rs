//! Memory of huge pages for an enclave: mapped, prefaulted, filled, donated.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// A huge page size in bytes: a power of two of at least 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageSize(u64);

impl PageSize {
    /// 2 MiB, the smallest that an enclave can use.
    pub const MIB2: PageSize = PageSize(2 << 20);
    /// 1 GiB.
    pub const GIB1: PageSize = PageSize(1 << 30);

    /// A page of this many bytes, if an enclave could use it.
    pub fn from_bytes(bytes: u64) -> Option<PageSize> {
        (bytes.is_power_of_two() && bytes >= PageSize::MIB2.0).then_some(PageSize(bytes))
    }

    /// Bytes of one page.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The name that Kubernetes gives the resource: `hugepages-2Mi`, `hugepages-1Gi`.
    pub fn resource(self) -> String {
        match self.0 {
            bytes if bytes >= 1 << 30 => format!("hugepages-{}Gi", bytes >> 30),
            bytes => format!("hugepages-{}Mi", bytes >> 20),
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 30 => write!(formatter, "{} GiB", bytes >> 30),
            bytes => write!(formatter, "{} MiB", bytes >> 20),
        }
    }
}

/// Why huge pages cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The length is zero or no multiple of the page size.
    #[error("{length} bytes are not a positive multiple of a {page} page")]
    Length {
        /// Bytes asked for.
        length: usize,
        /// The page size.
        page: PageSize,
    },
    /// mmap failed: the free pages, or the hugetlb reservation limit, do not suffice.
    #[error("cannot map {} MiB of {page} pages", .length >> 20)]
    Map {
        /// Bytes asked for.
        length: usize,
        /// The page size.
        page: PageSize,
        /// ENOMEM when the pool or the limit is too small.
        source: io::Error,
    },
    /// The pages were promised but could not be made present: the pod's
    /// hugetlb limit is lower than the mapping.
    #[error("cannot make {} MiB of {page} pages present", .length >> 20)]
    Prefault {
        /// Bytes of the mapping.
        length: usize,
        /// The page size.
        page: PageSize,
        /// EFAULT or ENOMEM when the cgroup's limit is lower.
        source: io::Error,
    },
}

/// Why a region cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The pages could not be made present.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The file could not be read; `UnexpectedEof` when it is shorter than promised.
    #[error("cannot read into the memory")]
    Read(#[source] io::Error),
}

/// Bytes that a thread takes at a time in [`HugeRegion::fill`]: a page that was
/// just zeroed is still in the cache when it is filled. So few that
/// threads end together, so many that taking them costs nothing.
const FILL_STEP: usize = 2 << 20;

/// A private mapping of huge pages that this process alone can see.
#[derive(Debug)]
pub struct HugeRegion {
    addr: NonNull<u8>,
    len: usize,
    page: PageSize,
}

// SAFETY: the region owns its mapping; the address means the same on every thread.
unsafe impl Send for HugeRegion {}
// SAFETY: shared access only reads; every write takes `&mut self`.
unsafe impl Sync for HugeRegion {}

impl HugeRegion {
    /// Maps `len` bytes of `page` pages. Nothing is touched yet.
    pub fn map(page: PageSize, len: usize) -> Result<HugeRegion, RegionError> {
        if len == 0 || !(len as u64).is_multiple_of(page.0) {
            return Err(RegionError::Length { length: len, page });
        }
        let size_flag = (page.0.trailing_zeros() as libc::c_int) << libc::MAP_HUGE_SHIFT;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | size_flag;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let addr = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        match NonNull::new(addr.cast::<u8>()) {
            Some(addr) if addr.as_ptr().cast() != libc::MAP_FAILED => Ok(HugeRegion { addr, len, page }),
            _ => Err(RegionError::Map { length: len, page, source: io::Error::last_os_error() }),
        }
    }

    /// Makes every page present, zeroed by the kernel, on `threads` threads.
    ///
    /// MADV_POPULATE_WRITE (Linux 5.14) returns an error where touching a page
    /// beyond the cgroup's limit would kill the process with SIGBUS.
    pub fn prefault(&mut self, threads: usize) -> Result<(), RegionError> {
        let page = self.page.0 as usize;
        let pages = self.len / page;
        let share = pages.div_ceil(threads.clamp(1, pages)) * page;
        let base = self.addr.as_ptr() as usize;
        let ends = self.len;
        let results = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..ends)
                .step_by(share)
                .map(|offset| scope.spawn(move || populate(base + offset, share.min(ends - offset))))
                .collect();
            workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>()
        });
        for result in results {
            let outcome = result.unwrap_or_else(|_| Err(io::Error::other("a prefault thread panicked")));
            outcome.map_err(|source| RegionError::Prefault { length: self.len, page: self.page, source })?;
        }
        Ok(())
    }

    /// Asks for the pages of NUMA node `node` only, for pages that are not
    /// present yet. Sandboxes may forbid it (EPERM), kernels may lack it
    /// (ENOSYS): then the kernel prefers the node of the calling thread.
    /// Source: mbind(2).
    pub fn bind_to_node(&mut self, node: u32) -> io::Result<()> {
        const MPOL_BIND: libc::c_long = 2;
        let mut mask = [0u64; 16];
        let word = mask.get_mut(node as usize / 64).ok_or(io::ErrorKind::InvalidInput)?;
        *word = 1 << (node % 64);
        // SAFETY: the range is our own mapping; the kernel reads 1024 bits of `mask`, which outlives
        // the call (`maxnode` counts one more than it reads).
        let rc = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.addr.as_ptr(),
                self.len,
                MPOL_BIND,
                mask.as_ptr(),
                1025usize,
                0,
            )
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Makes every page present and reads `len` bytes of `file` from
    /// `file_offset` into the region at `region_offset`, both at once: each of
    /// `threads` threads takes a few pages at a time, makes them present and
    /// fills them while they are in its cache.
    pub fn fill(
        &mut self,
        file: &File,
        file_offset: u64,
        region_offset: usize,
        len: usize,
        threads: usize,
    ) -> Result<(), FillError> {
        let end = region_offset.checked_add(len).filter(|&end| end <= self.len);
        let end = end.ok_or_else(|| FillError::Read(io::ErrorKind::InvalidInput.into()))?;
        if self.page.0 as usize > FILL_STEP {
            // A large page is filled by several threads: first all are made present.
            self.prefault(threads)?;
            return self
                .read_file_at_parallel(file, file_offset, region_offset, len, threads)
                .map_err(FillError::Read);
        }
        let (page, length) = (self.page, self.len);
        let queue = Mutex::new(self.bytes_mut().chunks_mut(FILL_STEP).enumerate());
        let work = || -> Result<(), FillError> {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((index, chunk)) = next else { return Ok(()) };
                let start = index * FILL_STEP;
                populate(chunk.as_mut_ptr() as usize, chunk.len())
                    .map_err(|source| RegionError::Prefault { length, page, source })?;
                let (from, to) = (region_offset.max(start), end.min(start + chunk.len()));
                if from < to {
                    let offset = file_offset + (from - region_offset) as u64;
                    read_exact_at(file, offset, &mut chunk[from - start..to - start])
                        .map_err(FillError::Read)?;
                }
            }
        };
        let threads = threads.clamp(1, length.div_ceil(FILL_STEP));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let joined: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            joined.into_iter().fold(own, |sum, result| {
                let panicked = |_| Err(FillError::Read(io::Error::other("a fill thread panicked")));
                sum.and(result.unwrap_or_else(panicked))
            })
        })
    }

    /// Reads `len` bytes of `file` from `file_offset` straight into the region
    /// at `region_offset`. Errors with `UnexpectedEof` when the file is shorter,
    /// `InvalidInput` when the region is.
    pub fn read_file_at(
        &mut self,
        file: &File,
        file_offset: u64,
        region_offset: usize,
        len: usize,
    ) -> io::Result<()> {
        let end = region_offset.checked_add(len).filter(|&end| end <= self.len);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        read_exact_at(file, file_offset, &mut self.bytes_mut()[region_offset..end])
    }

    /// Like [`HugeRegion::read_file_at`], the bytes shared out among `threads` threads.
    pub fn read_file_at_parallel(
        &mut self,
        file: &File,
        file_offset: u64,
        region_offset: usize,
        len: usize,
        threads: usize,
    ) -> io::Result<()> {
        let end = region_offset.checked_add(len).filter(|&end| end <= self.len);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        let share = len.div_ceil(threads.max(1)).max(1);
        let target = &mut self.bytes_mut()[region_offset..end];
        std::thread::scope(|scope| {
            let workers: Vec<_> = target
                .chunks_mut(share)
                .enumerate()
                .map(|(index, chunk)| {
                    scope.spawn(move || read_exact_at(file, file_offset + (index * share) as u64, chunk))
                })
                .collect();
            let joined: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            joined.into_iter().try_for_each(|result| {
                result.unwrap_or_else(|_| Err(io::Error::other("a read thread panicked")))
            })
        })
    }

    /// Bytes of the mapping.
    #[allow(clippy::len_without_is_empty)] // a region is never empty: `map` refuses it
    pub fn len(&self) -> usize {
        self.len
    }

    /// The size of its pages.
    pub fn page_size(&self) -> PageSize {
        self.page
    }

    /// The content. Reading a page that was not prefaulted may raise SIGBUS.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, `len` bytes long, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.addr.as_ptr(), self.len) }
    }

    pub(crate) fn addr(&self) -> usize {
        self.addr.as_ptr() as usize
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is writable, `len` bytes long, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.addr.as_ptr(), self.len) }
    }
}

impl Drop for HugeRegion {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and nothing borrows from it any more.
        let rc = unsafe { libc::munmap(self.addr.as_ptr().cast(), self.len) };
        debug_assert_eq!(rc, 0, "munmap of our own mapping failed");
    }
}

fn populate(addr: usize, len: usize) -> io::Result<()> {
    loop {
        // SAFETY: the range is part of a mapping that the caller holds exclusively; populating
        // changes no content.
        let rc = unsafe { libc::madvise(addr as *mut libc::c_void, len, libc::MADV_POPULATE_WRITE) };
        if rc == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn read_exact_at(file: &File, mut offset: u64, mut target: &mut [u8]) -> io::Result<()> {
    while !target.is_empty() {
        // SAFETY: the kernel writes at most `target.len()` bytes into `target`, which is exclusively ours.
        let count = unsafe {
            libc::pread(file.as_raw_fd(), target.as_mut_ptr().cast(), target.len(), offset as libc::off_t)
        };
        match count {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count if count > 0 => {
                offset += count as u64;
                target = &mut target[count as usize..];
            }
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_no_pages_make_up_are_refused() {
        for length in [0, 1, (2 << 20) - 1, (2 << 20) + 4096] {
            let error = HugeRegion::map(PageSize::MIB2, length).unwrap_err();
            assert!(matches!(error, RegionError::Length { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn more_than_the_pool_holds_is_an_error_not_a_crash() {
        // 1 PiB of 1 GiB pages: no pool is that large.
        let error = HugeRegion::map(PageSize::GIB1, 1 << 50).unwrap_err();
        assert!(matches!(error, RegionError::Map { .. }), "{error}");
    }

    #[test]
    fn page_sizes_have_the_names_of_kubernetes() {
        assert_eq!(PageSize::MIB2.resource(), "hugepages-2Mi");
        assert_eq!(PageSize::from_bytes(32 << 20).unwrap().resource(), "hugepages-32Mi");
        assert_eq!(PageSize::GIB1.resource(), "hugepages-1Gi");
        assert_eq!(PageSize::from_bytes(4096), None);
        assert_eq!(PageSize::from_bytes(3 << 20), None);
    }
}
