//! The CPU pool: whole cores that the parent gave up, handed to enclaves.
//!
//! The pretended instance has CPUs 0 up to the pool's last one; core `n` has
//! the threads `n * t` to `n * t + t - 1`. Rules follow ne_misc_dev.c.

use std::collections::BTreeSet;

use super::ne;

/// The pool's free threads, by core.
#[derive(Debug)]
pub(crate) struct CpuPool {
    free: Vec<BTreeSet<u32>>,
    threads_per_core: u32,
}

/// What an enclave took from the pool.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Cores by number, with all their threads.
    pub(crate) cores: BTreeSet<usize>,
    /// CPUs that were added to the enclave.
    pub(crate) cpus: BTreeSet<u32>,
}

/// Why a pool was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PoolError {
    /// Not a list of CPU numbers and ranges below 4096.
    #[error("{0:?} is not a CPU list such as 2-9 or 1,3,5-7")]
    NotAList(String),
    /// The driver refuses half cores and CPU 0's core, so does this.
    #[error("CPU pool {0:?} must hold whole cores and not core 0")]
    NotWholeCores(String),
}

impl CpuPool {
    /// A pool of the CPUs in `list`, such as `2-9`; an empty list is an empty pool.
    pub(crate) fn parse(list: &str, threads_per_core: u32) -> Result<CpuPool, PoolError> {
        let cpus = parse_list(list).ok_or_else(|| PoolError::NotAList(list.to_owned()))?;
        let cores = cpus.last().map_or(0, |last| last / threads_per_core + 1);
        let mut free = Vec::new();
        for core in 0..cores {
            let threads: BTreeSet<u32> = (core * threads_per_core..(core + 1) * threads_per_core).collect();
            let pooled = threads.intersection(&cpus).count();
            let whole = pooled == 0 || (pooled == threads.len() && core != 0);
            if !whole {
                return Err(PoolError::NotWholeCores(list.to_owned()));
            }
            free.push(if pooled == 0 { BTreeSet::new() } else { threads });
        }
        Ok(CpuPool { free, threads_per_core })
    }

    /// Whether no core is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.iter().all(BTreeSet::is_empty)
    }

    /// Adds CPU `wanted` to an enclave, 0 for any; returns its number.
    ///
    /// # Errors
    /// The driver's codes 256, 257, 271 and 272.
    pub(crate) fn add(&mut self, taken: &mut Taken, wanted: u32) -> Result<u32, i32> {
        if wanted >= self.free.len() as u32 * self.threads_per_core {
            return Err(ne::INVALID_VCPU);
        }
        let cpu = if wanted == 0 { self.choose(taken)? } else { self.check(taken, wanted)? };
        taken.cpus.insert(cpu);
        Ok(cpu)
    }

    /// Takes back everything.
    pub(crate) fn give_back(&mut self, taken: &mut Taken) {
        for core in std::mem::take(&mut taken.cores) {
            self.free[core] = self.threads(core);
        }
        taken.cpus.clear();
    }

    /// Whether all threads of all taken cores were added.
    pub(crate) fn uses_full_cores(&self, taken: &Taken) -> bool {
        taken.cores.iter().all(|core| self.threads(*core).is_subset(&taken.cpus))
    }

    /// Siblings of an added CPU first, then a fresh core.
    fn choose(&mut self, taken: &mut Taken) -> Result<u32, i32> {
        let sibling =
            taken.cores.iter().flat_map(|core| self.threads(*core)).find(|c| !taken.cpus.contains(c));
        if let Some(cpu) = sibling {
            return Ok(cpu);
        }
        let core = self.free.iter().position(|threads| !threads.is_empty());
        let core = core.ok_or(ne::NO_CPUS_AVAIL_IN_POOL)?;
        self.take(taken, core);
        Ok(core as u32 * self.threads_per_core)
    }

    fn check(&mut self, taken: &mut Taken, cpu: u32) -> Result<u32, i32> {
        let core = (cpu / self.threads_per_core) as usize;
        if taken.cpus.contains(&cpu) {
            return Err(ne::VCPU_ALREADY_USED);
        }
        if taken.cores.contains(&core) {
            return Ok(cpu);
        }
        if !self.free[core].contains(&cpu) {
            return Err(ne::VCPU_NOT_IN_CPU_POOL);
        }
        self.take(taken, core);
        Ok(cpu)
    }

    fn take(&mut self, taken: &mut Taken, core: usize) {
        self.free[core].clear();
        taken.cores.insert(core);
    }

    fn threads(&self, core: usize) -> BTreeSet<u32> {
        let first = core as u32 * self.threads_per_core;
        (first..first + self.threads_per_core).collect()
    }
}

fn parse_list(list: &str) -> Option<BTreeSet<u32>> {
    let mut cpus = BTreeSet::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= 4096 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_choice_fills_cores_and_ends_with_the_pool() {
        let mut pool = CpuPool::parse("2-5", 2).unwrap();
        let mut taken = Taken::default();
        let chosen: Vec<_> = (0..5).map(|_| pool.add(&mut taken, 0)).collect();
        assert_eq!(chosen, [Ok(2), Ok(3), Ok(4), Ok(5), Err(ne::NO_CPUS_AVAIL_IN_POOL)]);
        assert!(pool.is_empty() && pool.uses_full_cores(&taken));
        pool.give_back(&mut taken);
        assert!(!pool.is_empty());
    }

    #[test]
    fn wrong_cpus_get_the_drivers_codes() {
        let mut pool = CpuPool::parse("2-3,6-7", 2).unwrap();
        let (mut one, mut other) = (Taken::default(), Taken::default());
        assert_eq!(pool.add(&mut one, 2), Ok(2));
        assert_eq!(pool.add(&mut one, 2), Err(ne::VCPU_ALREADY_USED));
        assert_eq!(pool.add(&mut other, 3), Err(ne::VCPU_NOT_IN_CPU_POOL));
        assert_eq!(pool.add(&mut one, 4), Err(ne::VCPU_NOT_IN_CPU_POOL));
        assert_eq!(pool.add(&mut one, 8), Err(ne::INVALID_VCPU));
        assert!(!pool.uses_full_cores(&one));
        assert_eq!(pool.add(&mut one, 0), Ok(3));
        assert!(pool.uses_full_cores(&one));
    }

    #[test]
    fn half_cores_and_core_zero_are_refused() {
        for list in ["2", "0-3", "2-4"] {
            assert_eq!(CpuPool::parse(list, 2).unwrap_err(), PoolError::NotWholeCores(list.into()));
        }
        assert!(matches!(CpuPool::parse("3-2", 2), Err(PoolError::NotAList(_))));
        assert!(CpuPool::parse("", 2).unwrap().is_empty());
    }
}
