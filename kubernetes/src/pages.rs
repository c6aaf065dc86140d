//! The page plan: which huge pages a node sets aside for `memory_mib`.
//!
//! The rule is the one of the allocator script of aws-nitro-enclaves-cli
//! (bootstrap/nitro-enclaves-allocator, 2950b36): round up to the smallest
//! page size, then take as many pages as fit, largest size first. A pod must
//! ask for exactly these sizes.

use std::fmt;

use crate::quantity::Bytes;

const MIB: u64 = 1 << 20;
/// The driver takes regions in multiples of this, so smaller pages are of no
/// use to an enclave (NE_MIN_MEM_REGION_SIZE, linux/nitro_enclaves.h).
pub const LEAST_REGION: PageSize = PageSize(2 * MIB);

/// A processor architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86, Intel or AMD.
    X86_64,
    /// 64-bit Arm: Graviton.
    Arm64,
}

impl Arch {
    /// Page sizes that a kernel with 4 KiB base pages offers, largest first.
    /// Not seen on Graviton hardware: other sources name the same sizes.
    pub fn page_sizes(self) -> &'static [PageSize] {
        match self {
            Arch::X86_64 => &[PageSize(1024 * MIB), PageSize(2 * MIB)],
            Arch::Arm64 => &[PageSize(1024 * MIB), PageSize(32 * MIB), PageSize(2 * MIB), PageSize(64 << 10)],
        }
    }

    /// As Kubernetes writes it in `kubernetes.io/arch`.
    pub fn kubernetes_name(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Arm64 => "arm64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arch::X86_64 => "x86_64",
            Arch::Arm64 => "arm64",
        })
    }
}

/// The size of one huge page, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(pub u64);

impl PageSize {
    /// Reads sysfs's `hugepages-2048kB` or `2048kB`.
    pub fn from_sysfs(name: &str) -> Option<PageSize> {
        let kib: u64 = name.strip_prefix("hugepages-").unwrap_or(name).strip_suffix("kB")?.parse().ok()?;
        (kib > 0).then(|| kib.checked_mul(1024).map(PageSize)).flatten()
    }

    /// Reads Kubernetes' `hugepages-2Mi`.
    pub fn from_resource(name: &str) -> Option<PageSize> {
        let bytes = crate::quantity::Quantity::parse(name.strip_prefix("hugepages-")?)?.whole()?;
        (bytes > 0).then_some(PageSize(bytes))
    }

    /// The directory under `/sys/devices/system/node/node0/hugepages`.
    pub fn sysfs_name(self) -> String {
        format!("hugepages-{}kB", self.0 / 1024)
    }

    /// The pod's resource, such as `hugepages-2Mi`.
    pub fn resource(self) -> String {
        format!("hugepages-{self}")
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bytes(self.0).fmt(f)
    }
}

/// Pages by size, largest first; no size with no pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PagePlan {
    pages: Vec<(PageSize, u64)>,
}

impl PagePlan {
    /// The plan for so much memory, when every request is granted. `sizes` in
    /// any order. Without sizes nothing can be planned: `None`.
    pub fn new(memory_mib: u64, sizes: &[PageSize]) -> Option<PagePlan> {
        let mut sizes = sizes.to_vec();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let mut remaining = rounded(memory_mib, *sizes.last()?)?;
        let mut pages = Vec::new();
        for size in sizes {
            let count = remaining / size.0;
            if count > 0 {
                pages.push((size, count));
            }
            remaining -= count * size.0;
        }
        Some(PagePlan { pages })
    }

    /// Pages by size, largest first.
    pub fn pages(&self) -> &[(PageSize, u64)] {
        &self.pages
    }

    /// Bytes in pages of this size.
    pub fn bytes_in(&self, size: PageSize) -> u64 {
        self.pages.iter().filter(|(offered, _)| *offered == size).map(|(size, count)| size.0 * count).sum()
    }

    /// Bytes that an enclave can use: those in pages of at least 2 MiB.
    pub fn usable(&self) -> u64 {
        self.pages.iter().filter(|(size, _)| *size >= LEAST_REGION).map(|(size, count)| size.0 * count).sum()
    }

    /// Bytes in pages that are too small for any enclave.
    pub fn unusable(&self) -> u64 {
        self.pages.iter().filter(|(size, _)| *size < LEAST_REGION).map(|(size, count)| size.0 * count).sum()
    }

    /// A pod's resource lines, such as `hugepages-1Gi: 4Gi`.
    pub fn resources(&self) -> impl Iterator<Item = (String, Bytes)> {
        self.pages
            .iter()
            .filter(|(size, _)| *size >= LEAST_REGION)
            .map(|(size, count)| (size.resource(), Bytes(size.0 * count)))
    }

    /// The same pages shared by `enclaves` enclaves, each with whole pages of
    /// one node; `None` when they cannot be shared evenly.
    pub fn shared_by(&self, enclaves: u64) -> Option<PagePlan> {
        if enclaves == 0 || self.pages.iter().any(|(_, count)| count % enclaves != 0) {
            return None;
        }
        let pages = self.pages.iter().map(|&(size, count)| (size, count / enclaves)).collect();
        Some(PagePlan { pages })
    }
}

/// `384 x 2Mi`, joined with ` + `.
impl fmt::Display for PagePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (size, count)) in self.pages.iter().enumerate() {
            let joint = if index > 0 { " + " } else { "" };
            write!(f, "{joint}{count} x {size}")?;
        }
        Ok(())
    }
}

/// Bytes for `memory_mib`, a multiple of the smallest page. The script's
/// arithmetic makes one page out of nothing; so does this.
pub fn rounded(memory_mib: u64, smallest: PageSize) -> Option<u64> {
    let bytes = memory_mib.checked_mul(MIB)?;
    bytes.max(1).div_ceil(smallest.0).checked_mul(smallest.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (bytes, sysfs, resource) in [
            (2 * MIB, "hugepages-2048kB", "hugepages-2Mi"),
            (1024 * MIB, "hugepages-1048576kB", "hugepages-1Gi"),
        ] {
            assert_eq!(PageSize::from_sysfs(sysfs), Some(PageSize(bytes)));
            assert_eq!(PageSize::from_resource(resource), Some(PageSize(bytes)));
            assert_eq!(PageSize(bytes).sysfs_name(), sysfs);
            assert_eq!(PageSize(bytes).resource(), resource);
        }
        assert_eq!(PageSize::from_sysfs("hugepages-0kB"), None);
        assert_eq!(PageSize::from_resource("hugepages-"), None);
    }

    #[test]
    fn a_plan_is_shared_by_whole_pages_or_not_at_all() {
        let plan = PagePlan::new(1536, Arch::X86_64.page_sizes()).unwrap();
        assert_eq!(plan.to_string(), "1 x 1Gi + 256 x 2Mi");
        assert_eq!(plan.shared_by(2), None, "one 1 GiB page cannot be halved");
        let plan = PagePlan::new(4096, Arch::X86_64.page_sizes()).unwrap();
        assert_eq!(plan.shared_by(4).unwrap().to_string(), "1 x 1Gi");
    }

    #[test]
    fn what_is_left_over_on_graviton_is_of_no_use_to_an_enclave() {
        let plan = PagePlan::new(769, Arch::Arm64.page_sizes()).unwrap();
        assert_eq!((plan.usable(), plan.unusable()), (768 * MIB, MIB));
        assert_eq!(plan.resources().count(), 1);
    }

    #[test]
    fn sizes_beyond_any_machine_are_refused_not_wrapped() {
        assert_eq!(PagePlan::new(u64::MAX, Arch::X86_64.page_sizes()), None);
        assert_eq!(PagePlan::new(1, &[]), None);
    }
}
