//! Why there is no plan, and the line of a manifest or of the node's
//! configuration that mends it.

use nitro_device::PageSize;

use super::snapshot::pool_path;
use super::{CpuShortfall, MIB, MOST_PIECES, Pool, mib};
use crate::exit::{Blame, Exit};

/// Why there is no plan. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Shortfall {
    /// The pod's limits allow less than is asked for.
    #[error("need {} MiB of huge pages, the control group's limits leave {} MiB", mib(.needed), mib(.left))]
    Granted { page: PageSize, needed: u64, left: u64, used: u64 },
    /// The node has fewer free pages than are asked for.
    #[error("need {} MiB of huge pages, {} MiB are free on this node", mib(.needed), mib(.free))]
    Free { page: PageSize, needed: u64, free: u64 },
    /// There would be enough pages, were they not on another NUMA node.
    #[error(
        "need {} MiB of huge pages on NUMA node {node} with the CPU pool, {} MiB are free there and {} MiB on other nodes",
        mib(.needed), mib(.free), mib(.elsewhere)
    )]
    Node { page: PageSize, node: u32, needed: u64, free: u64, elsewhere: u64 },
    /// The pages may be in more pieces than the driver can take.
    #[error("the memory may be in {pieces} pieces, an enclave's can be in {MOST_PIECES}")]
    Pieces { needed: u64, pieces: u64 },
    #[error(transparent)]
    Cpus(#[from] CpuShortfall),
    /// Neither wish nor grant nor free pages.
    #[error("there are no free huge pages for the enclave")]
    None { needed: u64 },
    /// The memory cannot hold the image, or is under the driver's minimum.
    #[error("the enclave would have {} MiB of memory, this image needs at least {} MiB", mib(.memory), mib(.needed))]
    Small { page: PageSize, memory: u64, needed: u64, chosen: bool },
}

impl Blame for Shortfall {
    fn exit(&self) -> Exit {
        match self {
            Shortfall::Small { chosen: true, .. } => Exit::Usage,
            Shortfall::Cpus(shortfall) => shortfall.exit(),
            _ => Exit::Resources,
        }
    }

    fn fix(&self) -> String {
        match *self {
            Shortfall::Cpus(ref shortfall) => shortfall.fix(),
            Shortfall::Pieces { needed, .. } => format!(
                "reserve 1 GiB pages and set `{}` in the container's resources.limits instead of 2 MiB pages",
                resource_line(PageSize::GIB1, needed)
            ),
            Shortfall::Node { page, node, needed, free, .. } => format!(
                "reserve {} more {page} pages on that node (/sys/devices/system/node/node{node}/hugepages/\
                 hugepages-{}kB/nr_hugepages), or move the CPU pool",
                (needed - free).div_ceil(page.bytes()),
                page.bytes() >> 10
            ),
            Shortfall::Granted { page, needed, used, .. } => {
                let line = resource_line(page, needed + used);
                let for_others = if used > 0 {
                    format!(", of which {} MiB are in use already", mib(&used))
                } else {
                    String::new()
                };
                format!("set `{line}` in the container's resources.limits{for_others}")
            }
            Shortfall::Free { page, needed, free } => format!(
                "reserve {} more {page} pages on the node (memory_mib in allocator.yaml, or {}/nr_hugepages), \
                 or ask for less; the pod needs `{}`",
                (needed - free).div_ceil(page.bytes()),
                pool_path(page).display(),
                resource_line(page, needed)
            ),
            Shortfall::None { needed } => format!(
                "reserve huge pages on the node and set `{}` in the container's resources.limits",
                resource_line(PageSize::MIB2, needed)
            ),
            Shortfall::Small { page, needed, chosen, .. } => {
                let line = resource_line(page, needed);
                let knob =
                    if chosen { format!("`memory_mib: {}` and ", mib(&needed)) } else { String::new() };
                format!("set {knob}`{line}` in the container's resources.limits")
            }
        }
    }
}

/// The line of a pod's manifest: `hugepages-2Mi: 128Mi`.
pub(crate) fn resource_line(page: PageSize, bytes: u64) -> String {
    let whole = bytes.div_ceil(page.bytes()) * page.bytes();
    format!("{}: {}Mi", page.resource(), whole / MIB)
}

/// Which of the two bounds is in the way.
pub(super) fn shortfall(needed: u64, pools: &[&Pool], node: Option<u32>) -> Shortfall {
    let page = page_to_name(pools);
    let left: u64 = pools
        .iter()
        .map(|pool| match pool.limit {
            Some(limit) => limit.max.saturating_sub(limit.used),
            None => pool.free * pool.page.bytes(),
        })
        .sum();
    let free: u64 = pools.iter().map(|pool| pool.available()).sum();
    if left < needed && pools.iter().any(|pool| pool.limit.is_some()) {
        let used = pools.iter().filter_map(|pool| pool.limit).map(|limit| limit.used.min(limit.max)).sum();
        return Shortfall::Granted { page, needed, left, used };
    }
    let elsewhere: u64 = pools.iter().map(|pool| pool.elsewhere * pool.page.bytes()).sum();
    match node {
        Some(node) if elsewhere > 0 && free + elsewhere >= needed => {
            Shortfall::Node { page, node, needed, free, elsewhere }
        }
        _ => Shortfall::Free { page, needed, free },
    }
}

/// The size that a fix names: the one that is granted or present, else 2 MiB.
pub(super) fn page_to_name(pools: &[&Pool]) -> PageSize {
    pools
        .iter()
        .rev()
        .find(|pool| pool.limit.is_some_and(|limit| limit.max > 0))
        .or_else(|| pools.iter().rev().find(|pool| pool.free > 0))
        .map_or(PageSize::MIB2, |pool| pool.page)
}
