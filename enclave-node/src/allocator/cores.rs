//! Which CPUs an enclave pool may take. Pure.
//!
//! The rule is that of AWS's allocator script and of the driver: whole cores
//! of one NUMA node, never CPU 0's.

use super::sysfs::Machine;

/// Why no node can give the CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CoreError {
    #[error("{count} CPUs are not whole cores of {threads} threads")]
    NotWhole { count: u32, threads: u32 },
    #[error(
        "no NUMA node has {count} CPUs to give: at most {most}, because CPU 0's core stays with the parent"
    )]
    TooMany { count: u32, most: u32 },
    #[error("CPU {cpu} is not there")]
    NoSuchCpu { cpu: u32 },
    #[error("CPU {cpu} belongs to CPU 0's core, which stays with the parent")]
    Boot { cpu: u32 },
    #[error("CPU {sibling} is of the same core as CPU {cpu} and must be in the pool as well")]
    Sibling { cpu: u32, sibling: u32 },
    #[error("CPUs {first} and {cpu} are on different NUMA nodes")]
    Nodes { first: u32, cpu: u32 },
}

impl Machine {
    fn threads(&self) -> usize {
        self.siblings.values().map(Vec::len).max().unwrap_or(1)
    }

    /// The CPUs that each node would give, lowest node first. At least one.
    pub(super) fn candidates(&self, count: u32) -> Result<Vec<(u32, Vec<u32>)>, CoreError> {
        let threads = self.threads();
        if !(count as usize).is_multiple_of(threads) || count == 0 {
            return Err(CoreError::NotWhole { count, threads: threads as u32 });
        }
        let given = self.nodes.keys().map(|node| (*node, self.give(*node, threads)));
        let given: Vec<(u32, Vec<u32>)> = given.collect();
        let most = given.iter().map(|(_, cpus)| cpus.len()).max().unwrap_or(0);
        let mut enough = given;
        enough.retain(|(_, cpus)| cpus.len() >= count as usize);
        if enough.is_empty() {
            return Err(CoreError::TooMany { count, most: most as u32 });
        }
        for (_, cpus) in &mut enough {
            cpus.truncate(count as usize);
        }
        Ok(enough)
    }

    /// Every CPU that a node can give, core by core.
    fn give(&self, node: u32, threads: usize) -> Vec<u32> {
        let mut given = Vec::new();
        for cpu in self.nodes.get(&node).into_iter().flatten() {
            let core = self.siblings.get(cpu).map(Vec::as_slice).unwrap_or_default();
            let is_whole = core.len() == threads && !core.contains(&0);
            if is_whole && !given.contains(cpu) {
                given.extend(core);
            }
        }
        given
    }

    /// Checks a pool that was named; says its node.
    pub(super) fn node_of_pool(&self, pool: &[u32]) -> Result<u32, CoreError> {
        let node_of = |cpu: u32| {
            let found = self.nodes.iter().find(|(_, cpus)| cpus.contains(&cpu));
            found.map(|(node, _)| *node).ok_or(CoreError::NoSuchCpu { cpu })
        };
        let first = *pool.first().ok_or(CoreError::NotWhole { count: 0, threads: self.threads() as u32 })?;
        let node = node_of(first)?;
        for &cpu in pool {
            if node_of(cpu)? != node {
                return Err(CoreError::Nodes { first, cpu });
            }
            let core = self.siblings.get(&cpu).map(Vec::as_slice).unwrap_or_default();
            if core.contains(&0) {
                return Err(CoreError::Boot { cpu });
            }
            if let Some(&sibling) = core.iter().find(|sibling| !pool.contains(sibling)) {
                return Err(CoreError::Sibling { cpu, sibling });
            }
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of so many cores, threads numbered as EC2 does: first threads
    /// first, then their siblings.
    fn machine(nodes: u32, cores: u32, threads: u32) -> Machine {
        let all = nodes * cores;
        let core = |cpu: u32| cpu % all;
        let mut machine = Machine { nodes: Default::default(), siblings: Default::default() };
        for cpu in 0..all * threads {
            machine.nodes.entry(core(cpu) / cores).or_default().push(cpu);
            machine.siblings.insert(cpu, (0..threads).map(|thread| core(cpu) + thread * all).collect());
        }
        machine
    }

    #[test]
    fn whole_cores_are_taken_and_never_the_first() {
        // m5.2xlarge: 4 cores of 2 threads.
        let machine = machine(1, 4, 2);
        assert_eq!(machine.candidates(4).unwrap(), [(0, vec![1, 5, 2, 6])]);
        assert_eq!(machine.candidates(3), Err(CoreError::NotWhole { count: 3, threads: 2 }));
        assert_eq!(machine.candidates(8), Err(CoreError::TooMany { count: 8, most: 6 }));
    }

    #[test]
    fn odd_counts_are_whole_where_a_core_has_one_thread() {
        assert_eq!(machine(1, 4, 1).candidates(3).unwrap(), [(0, vec![1, 2, 3])]);
    }

    #[test]
    fn every_node_that_has_enough_is_a_candidate() {
        let machine = machine(2, 2, 2);
        assert_eq!(machine.candidates(2).unwrap(), [(0, vec![1, 5]), (1, vec![2, 6])]);
        assert_eq!(machine.candidates(4).unwrap(), [(1, vec![2, 6, 3, 7])]);
    }

    #[test]
    fn a_pool_by_id_is_checked_like_one_by_count() {
        let machine = machine(2, 2, 2);
        assert_eq!(machine.node_of_pool(&[1, 5]), Ok(0));
        assert_eq!(machine.node_of_pool(&[2, 3, 6, 7]), Ok(1));
        assert_eq!(machine.node_of_pool(&[1]), Err(CoreError::Sibling { cpu: 1, sibling: 5 }));
        assert_eq!(machine.node_of_pool(&[0, 4]), Err(CoreError::Boot { cpu: 0 }));
        assert_eq!(machine.node_of_pool(&[1, 2, 5, 6]), Err(CoreError::Nodes { first: 1, cpu: 2 }));
        assert_eq!(machine.node_of_pool(&[1, 5, 99]), Err(CoreError::NoSuchCpu { cpu: 99 }));
    }
}
