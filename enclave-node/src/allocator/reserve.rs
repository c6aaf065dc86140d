//! Sets pages and CPUs aside, or leaves everything as it was.
//!
//! ```text
//! pool emptied ─▶ for each node: pages ─▶ pool set ─▶ verified ─▶ recorded
//!       │                          │ short        │ refused
//!       └────────── pool restored ◀┴─ pages rolled back
//! ```
//! Pages that others had set stay: ours come on top. What is ours is known
//! from the [`Record`] of the last run.

use std::collections::BTreeMap;

use kubernetes::{
    allocator::{Cpus, Reservation, list_text},
    pages::{PageSize, rounded},
};
use serde::{Deserialize, Serialize};

use super::{
    cores::CoreError,
    sysfs::{Pools, Sysfs, SysfsError},
};

/// The driver's answer while an enclave holds its CPUs, and to a program
/// without CAP_SYS_ADMIN. A file that may not be opened is EACCES.
const EPERM: i32 = 1;

/// What the last run set aside. Gone after a reboot, as the pages are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) node: u32,
    /// Pages of ours by sysfs name.
    pub(super) pages: BTreeMap<String, u64>,
}

impl Record {
    fn of(&self, node: u32, size: PageSize) -> u64 {
        if node == self.node { self.pages.get(&size.sysfs_name()).copied().unwrap_or(0) } else { 0 }
    }
}

/// What is set aside now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Reserved {
    pub(super) node: u32,
    pub(super) cpus: Vec<u32>,
    pub(super) pages: Vec<PoolReport>,
}

/// One page size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct PoolReport {
    /// As Kubernetes names it.
    pub(super) resource: String,
    pub(super) ours: u64,
    /// Set by somebody else, and kept.
    pub(super) others: u64,
    /// Of all of them.
    pub(super) free: u64,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReserveError {
    #[error(
        "there is no enclave driver (was the instance launched with enclaves enabled, and nitro_enclaves loaded?)"
    )]
    NoDriver,
    #[error("the CPU pool is in use (end the enclaves on this node first), or CAP_SYS_ADMIN is missing")]
    EnclavesRunning,
    #[error("the driver refuses CPUs {cpus} as its pool")]
    PoolRefused { cpus: String, source: SysfsError },
    #[error("the pool holds CPUs {actual:?} after {expected:?} were written")]
    PoolDiffers { expected: Vec<u32>, actual: Vec<u32> },
    #[error("no NUMA node has memory for {memory_mib} MiB of huge pages: {short}")]
    Memory { memory_mib: u64, short: String },
    #[error("{memory_mib} MiB are more than any machine has")]
    TooLarge { memory_mib: u64 },
    #[error(transparent)]
    Cores(#[from] CoreError),
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    #[error("could not put everything back as it was: {left}")]
    Rollback {
        left: String,
        #[source]
        cause: Box<ReserveError>,
    },
}

/// A reservation that is about to happen.
pub(super) struct Reserve<'a> {
    pub(super) sysfs: Sysfs<'a>,
    pub(super) reservation: &'a Reservation,
    pub(super) record: Record,
    /// Clear what others set, as AWS's script does.
    pub(super) take_over: bool,
}

impl Reserve<'_> {
    /// Does it. On failure pool and pages are as they were before.
    pub(super) fn run(&self) -> Result<(Reserved, Record), ReserveError> {
        if !self.sysfs.has_driver() {
            return Err(ReserveError::NoDriver);
        }
        let old_pool = self.sysfs.cpu_pool()?;
        // CPUs must be online to be seen, and the pool empty to be set.
        self.sysfs.set_cpu_pool("").map_err(|error| match error {
            SysfsError::Io { source, .. } if source.raw_os_error() == Some(EPERM) => {
                ReserveError::EnclavesRunning
            }
            other => other.into(),
        })?;
        self.reserve().map_err(|cause| match self.restore_pool(&old_pool) {
            Ok(()) => cause,
            Err(error) => ReserveError::Rollback {
                left: format!("CPU pool {} ({error})", list_text(&old_pool)),
                cause: Box::new(cause),
            },
        })
    }

    fn restore_pool(&self, pool: &[u32]) -> Result<(), SysfsError> {
        self.sysfs.set_cpu_pool(&list_text(pool))
    }

    fn reserve(&self) -> Result<(Reserved, Record), ReserveError> {
        let machine = self.sysfs.machine()?;
        let candidates = match &self.reservation.cpus {
            Cpus::Count(count) => machine.candidates(*count)?,
            Cpus::Ids(ids) => vec![(machine.node_of_pool(ids)?, ids.clone())],
        };
        let before = self.snapshot(machine.nodes.keys())?;
        let mut shorts = Vec::new();
        for (node, cpus) in candidates {
            let outcome = self.try_node(node, &cpus, &before);
            match outcome {
                Ok(reserved) => return Ok(reserved),
                Err(error) => {
                    if let Err(left) = self.roll_back(&before) {
                        return Err(ReserveError::Rollback { left, cause: Box::new(error) });
                    }
                    match error {
                        ReserveError::Memory { short, .. } => shorts.push(short),
                        other => return Err(other),
                    }
                }
            }
        }
        Err(ReserveError::Memory { memory_mib: self.reservation.memory_mib, short: shorts.join("; ") })
    }

    fn snapshot<'n>(&self, nodes: impl Iterator<Item = &'n u32>) -> Result<BTreeMap<u32, Pools>, SysfsError> {
        nodes.map(|node| Ok((*node, self.sysfs.pools(*node)?))).collect()
    }

    fn try_node(
        &self,
        node: u32,
        cpus: &[u32],
        before: &BTreeMap<u32, Pools>,
    ) -> Result<(Reserved, Record), ReserveError> {
        let others = self.clear(node, before)?;
        let pages = self.take_pages(node, &others)?;
        let list = list_text(cpus);
        self.sysfs
            .set_cpu_pool(&list)
            .map_err(|source| ReserveError::PoolRefused { cpus: list.clone(), source })?;
        let mut expected = cpus.to_vec();
        expected.sort_unstable();
        let actual = self.sysfs.cpu_pool()?;
        if actual != expected {
            return Err(ReserveError::PoolDiffers { expected, actual });
        }
        let record =
            Record { node, pages: pages.iter().map(|(size, count)| (size.sysfs_name(), *count)).collect() };
        let reserved = report(&self.sysfs, &record, expected)?;
        Ok((reserved, record))
    }

    /// Gives back what the last run took, wherever that was, and says what
    /// others have on this node.
    fn clear(&self, node: u32, before: &BTreeMap<u32, Pools>) -> Result<Pools, SysfsError> {
        let mut others = Pools::new();
        for (&each, pools) in before {
            for (&size, &count) in pools {
                let mut kept = count.saturating_sub(self.record.of(each, size));
                if each == node && self.take_over {
                    kept = 0;
                }
                if kept != count {
                    self.sysfs.set_pages(each, size, kept)?;
                }
                if each == node {
                    others.insert(size, kept);
                }
            }
        }
        Ok(others)
    }

    /// Largest pages first; what is not granted is asked for in smaller ones.
    fn take_pages(&self, node: u32, others: &Pools) -> Result<Pools, ReserveError> {
        let memory_mib = self.reservation.memory_mib;
        let Some(smallest) = others.keys().next() else {
            return Err(ReserveError::Memory {
                memory_mib,
                short: format!("node {node} has no huge pages at all"),
            });
        };
        let mut missing = rounded(memory_mib, *smallest).ok_or(ReserveError::TooLarge { memory_mib })?;
        let mut taken = Pools::new();
        for (&size, &kept) in others.iter().rev() {
            let wanted = missing / size.0;
            if wanted == 0 {
                continue;
            }
            let there = self.sysfs.set_pages(node, size, kept + wanted)?;
            // More than was asked for is no gain: somebody else asked as well.
            let granted = there.saturating_sub(kept).min(wanted);
            if granted > 0 {
                taken.insert(size, granted);
            }
            missing -= granted * size.0;
        }
        if missing > 0 {
            let short = format!("node {node} is {} MiB short", missing.div_ceil(1 << 20));
            return Err(ReserveError::Memory { memory_mib, short });
        }
        Ok(taken)
    }

    /// Every pool as it was; says which are not.
    fn roll_back(&self, before: &BTreeMap<u32, Pools>) -> Result<(), String> {
        let mut left = Vec::new();
        // A pool that was set by the failed attempt keeps its CPUs offline.
        if let Err(error) = self.sysfs.set_cpu_pool("") {
            left.push(error.to_string());
        }
        // First down, then up, so that freed memory can be used again.
        for grow in [false, true] {
            for (&node, pools) in before {
                for (&size, &count) in pools {
                    let now = self.sysfs.pools(node).ok().and_then(|pools| pools.get(&size).copied());
                    let differs = now.is_none_or(|now| if grow { now < count } else { now > count });
                    if !differs {
                        continue;
                    }
                    match self.sysfs.set_pages(node, size, count) {
                        Ok(there) if there == count => {}
                        Ok(there) => left.push(format!("node {node}: {there} of {count} pages of {size}")),
                        Err(error) => left.push(error.to_string()),
                    }
                }
            }
        }
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }
}

/// What a record means on the machine as it is.
pub(super) fn report(sysfs: &Sysfs<'_>, record: &Record, cpus: Vec<u32>) -> Result<Reserved, SysfsError> {
    let mut pages = Vec::new();
    for (size, there) in sysfs.pools(record.node)?.into_iter().rev() {
        let ours = record.of(record.node, size);
        if there > 0 || ours > 0 {
            pages.push(PoolReport {
                resource: size.resource(),
                ours,
                others: there.saturating_sub(ours),
                free: sysfs.free(record.node, size)?,
            });
        }
    }
    Ok(Reserved { node: record.node, cpus, pages })
}
