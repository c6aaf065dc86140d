//! The enclave's CPUs and the pool that they come from. Pure.
//!
//! The driver gives whole cores only (NE_ERR_FULL_CORES_NOT_USED), and says so
//! when the memory is long filled; here it is said before anything is touched.

use serde::Serialize;

use crate::exit::{Blame, Exit};

/// The enclave's CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cpus {
    /// So many; the driver picks.
    Count(u32),
    /// These.
    Ids(Vec<u32>),
}

impl Cpus {
    /// One entry a CPU: its id, or `None` for the driver's choice.
    pub(crate) fn each(&self) -> Vec<Option<u32>> {
        match self {
            Cpus::Count(count) => vec![None; *count as usize],
            Cpus::Ids(ids) => ids.iter().copied().map(Some).collect(),
        }
    }
}

/// CPUs that the instance set aside for enclaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuPool {
    /// Rising.
    pub(crate) ids: Vec<u32>,
    /// Hardware threads of a core.
    pub(crate) threads: u32,
    /// From one thread of a core to the next.
    pub(crate) stride: u32,
}

/// Why the CPUs cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CpuShortfall {
    #[error("no CPUs are set aside for enclaves on this node")]
    Empty,
    #[error("need {needed} CPUs, the whole pool has {pool}")]
    Few { needed: u32, pool: u32 },
    #[error("CPU {id} is not in the pool, which is {pool:?}")]
    NotPooled { id: u32, pool: Vec<u32> },
    #[error("{count} CPUs are no whole cores: a core has {threads} threads here")]
    PartOfCore { count: u32, threads: u32 },
    #[error("CPU {id} without {sibling} is no whole core")]
    Sibling { id: u32, sibling: u32 },
}

impl Blame for CpuShortfall {
    fn exit(&self) -> Exit {
        match self {
            CpuShortfall::Empty | CpuShortfall::Few { .. } => Exit::Resources,
            _ => Exit::Usage,
        }
    }

    fn fix(&self) -> String {
        match self {
            CpuShortfall::Empty => {
                "set cpu_count in /etc/nitro_enclaves/allocator.yaml and restart the allocator on the node"
                    .into()
            }
            CpuShortfall::Few { needed, pool } => {
                format!(
                    "set `cpus: {pool}` or less, or cpu_count to at least {needed} in allocator.yaml on the node"
                )
            }
            CpuShortfall::NotPooled { .. } => {
                "choose cpu_ids from /sys/module/nitro_enclaves/parameters/ne_cpus, or give a count (cpus)"
                    .into()
            }
            CpuShortfall::PartOfCore { count, threads } => {
                format!("set `cpus: {}`", count.next_multiple_of(*threads))
            }
            CpuShortfall::Sibling { sibling, .. } => format!("add {sibling} to cpu_ids"),
        }
    }
}

impl CpuPool {
    /// Whether the pool could give these. What other enclaves hold of it, only
    /// the driver knows.
    pub(crate) fn check(&self, wanted: &Cpus) -> Result<(), CpuShortfall> {
        let size = self.ids.len() as u32;
        let threads = if self.has_whole_cores() { self.threads } else { 1 };
        match wanted {
            _ if size == 0 => Err(CpuShortfall::Empty),
            Cpus::Count(needed) if *needed > size => Err(CpuShortfall::Few { needed: *needed, pool: size }),
            Cpus::Count(count) if count % threads != 0 => {
                Err(CpuShortfall::PartOfCore { count: *count, threads })
            }
            Cpus::Count(_) => Ok(()),
            Cpus::Ids(ids) => self.check_ids(ids, threads),
        }
    }

    fn check_ids(&self, ids: &[u32], threads: u32) -> Result<(), CpuShortfall> {
        for &id in ids {
            if !self.ids.contains(&id) {
                return Err(CpuShortfall::NotPooled { id, pool: self.ids.clone() });
            }
            let missing = self.core_of(id).find(|sibling| threads > 1 && !ids.contains(sibling));
            if let Some(sibling) = missing {
                return Err(CpuShortfall::Sibling { id, sibling });
            }
        }
        Ok(())
    }

    /// The driver accepts no other pool: where this is false, the threads of
    /// cores are numbered in another way than CPU 0's, and are not judged.
    fn has_whole_cores(&self) -> bool {
        self.ids.iter().all(|&id| self.core_of(id).all(|sibling| self.ids.contains(&sibling)))
    }

    /// The threads of the core of `id`.
    fn core_of(&self, id: u32) -> impl Iterator<Item = u32> + use<> {
        let (threads, stride) = (self.threads.max(1), self.stride.max(1));
        let first = if stride == 1 { id - id % threads } else { id % stride };
        (0..threads).map(move |thread| first + thread * stride)
    }
}

/// A kernel's list of CPUs: `2-5,8`.
pub(crate) fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > 1 << 16 {
            return None;
        }
        ids.extend(first..=last);
    }
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(list: &str, threads: u32, stride: u32) -> CpuPool {
        CpuPool { ids: parse_list(list).unwrap(), threads, stride }
    }

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("2-4,8\n"), Some(vec![2, 3, 4, 8]));
        assert_eq!(parse_list("\n"), Some(vec![]));
        for wrong in ["4-2", "a", "1-", "1-99999999"] {
            assert_eq!(parse_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn half_cores_are_refused_in_both_ways_of_numbering_threads() {
        for (pool, half, whole) in
            [(pool("2-5", 2, 1), vec![2, 4], vec![2, 3]), (pool("2-3,50-51", 2, 48), vec![2, 3], vec![2, 50])]
        {
            let refused = pool.check(&Cpus::Ids(half)).unwrap_err();
            assert!(matches!(refused, CpuShortfall::Sibling { .. }), "{refused:?}");
            assert_eq!(
                (refused.exit(), refused.fix()),
                (Exit::Usage, format!("add {} to cpu_ids", whole[1]))
            );
            assert_eq!(pool.check(&Cpus::Ids(whole)), Ok(()));
            let odd = pool.check(&Cpus::Count(3)).unwrap_err();
            assert_eq!(odd.fix(), "set `cpus: 4`");
        }
    }

    #[test]
    fn each_shortfall_says_whom_to_blame() {
        let pool = pool("2-5", 1, 1);
        assert_eq!(pool.check(&Cpus::Count(6)).unwrap_err().exit(), Exit::Resources);
        assert_eq!(pool.check(&Cpus::Ids(vec![2, 9])).unwrap_err().exit(), Exit::Usage);
        let empty = CpuPool { ids: vec![], threads: 2, stride: 1 };
        assert_eq!(empty.check(&Cpus::Count(2)), Err(CpuShortfall::Empty));
        // A pool that is not whole cores by this numbering is left to the driver.
        assert_eq!(CpuPool { ids: vec![2, 3], threads: 2, stride: 8 }.check(&Cpus::Count(1)), Ok(()));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_whole_cores_of_the_pool(
            cores in 1u32..20, threads in 1u32..3, stride in 0u32..2, count in 1u32..50,
            ids in proptest::collection::btree_set(0u32..80, 1..8),
        ) {
            let stride = if stride == 0 { 1 } else { 40 };
            let ids_of = |core: u32| (0..threads).map(move |t| if stride == 1 { core * threads + t } else { core + t * stride });
            let mut all: Vec<u32> = (1..=cores).flat_map(ids_of).collect();
            all.sort_unstable();
            let pool = CpuPool { ids: all.clone(), threads, stride };
            prop_assert_eq!(
                pool.check(&Cpus::Count(count)).is_ok(),
                count as usize <= all.len() && count % threads == 0
            );
            let whole = (1..=cores).all(|core| {
                let taken = ids_of(core).filter(|id| ids.contains(id)).count();
                taken == 0 || taken == threads as usize
            });
            let chosen: Vec<u32> = ids.iter().copied().collect();
            let pooled = chosen.iter().all(|id| all.contains(id));
            prop_assert_eq!(pool.check(&Cpus::Ids(chosen)).is_ok(), whole && pooled);
        }
    }
}
