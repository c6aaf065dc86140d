//! What kubelet is told of a node: two resources, their devices, their health.
//!
//! ```text
//! enclaves: min(the configured maximum, whole cores in the pool, pages / 64 MiB)
//! CPUs:     the pool; a device's id is the CPU's id
//! ```
//! A resource that loses its ground keeps its devices and reports them as
//! unhealthy: the node's capacity stays to be seen, nothing is scheduled.

use super::api;
use super::node::{Node, SMALLEST_ENCLAVE};

const SLOT_PREFIX: &str = "nitro_enclaves_";

/// One of the two resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Enclaves: slots that give the device.
    Enclaves,
    /// CPUs of the pool.
    Cpus,
}

/// The devices of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Offer {
    /// By number.
    pub(crate) devices: Vec<Device>,
    /// Why all of them are unhealthy.
    pub(crate) trouble: Option<Trouble>,
}

/// A slot or a CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// Slot number or CPU id.
    pub(crate) number: u32,
    /// What it must be given away together with; a slot is alone.
    pub(crate) core: u32,
    /// NUMA nodes, none where the kernel does not say.
    pub(crate) numa: Vec<u32>,
}

/// What is missing on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// Enclaves are off in the launch template, or the module is not loaded.
    #[error(
        "no enclave device: is the instance launched with enclaves enabled and the nitro_enclaves module loaded?"
    )]
    NoDevice,
    /// The allocator did not run, or failed.
    #[error("the CPU pool is empty: run the allocator")]
    EmptyPool,
    /// Pages on the pool's NUMA node.
    #[error("less than 64 MiB of huge pages on the CPU pool's NUMA node: run the allocator")]
    NoPages,
}

impl Kind {
    /// The device's id in kubelet's books.
    pub(crate) fn device_id(self, number: u32) -> String {
        match self {
            Kind::Enclaves => format!("{SLOT_PREFIX}{number}"),
            Kind::Cpus => number.to_string(),
        }
    }

    /// The device that kubelet means by `id`.
    pub(crate) fn number(self, id: &str) -> Option<u32> {
        let number: u32 = match self {
            Kind::Enclaves => id.strip_prefix(SLOT_PREFIX)?.parse().ok()?,
            Kind::Cpus => id.parse().ok()?,
        };
        // Not "+1", not "01": one device has one name.
        (self.device_id(number) == id).then_some(number)
    }
}

impl Offer {
    /// What `node` has of `kind`, at most `max` enclaves, given what was `last` offered.
    pub(crate) fn new(kind: Kind, node: &Node, max: u32, last: &Offer) -> Offer {
        let trouble = trouble(kind, node);
        let mut devices = match kind {
            Kind::Enclaves => slots(node, max),
            Kind::Cpus => cpus(node),
        };
        if devices.is_empty() {
            devices.clone_from(&last.devices);
        }
        if devices.is_empty() && kind == Kind::Enclaves {
            devices = (0..max).map(|number| Device { number, core: number, numa: Vec::new() }).collect();
        }
        Offer { devices, trouble }
    }

    /// The device `number`, healthy or not.
    pub(crate) fn device(&self, number: u32) -> Option<&Device> {
        self.devices.iter().find(|device| device.number == number)
    }

    /// What `ListAndWatch` says.
    pub(crate) fn message(&self, kind: Kind) -> api::ListAndWatchResponse {
        let health = if self.trouble.is_none() { api::HEALTHY } else { api::UNHEALTHY };
        let device = |device: &Device| api::Device {
            id: kind.device_id(device.number),
            health: health.into(),
            topology: (!device.numa.is_empty()).then(|| api::TopologyInfo {
                nodes: device.numa.iter().map(|node| api::NumaNode { id: i64::from(*node) }).collect(),
            }),
        };
        api::ListAndWatchResponse { devices: self.devices.iter().map(device).collect() }
    }
}

fn trouble(kind: Kind, node: &Node) -> Option<Trouble> {
    if !node.device {
        Some(Trouble::NoDevice)
    } else if node.pool.is_empty() {
        Some(Trouble::EmptyPool)
    } else if kind == Kind::Enclaves && node.page_bytes < SMALLEST_ENCLAVE {
        Some(Trouble::NoPages)
    } else {
        None
    }
}

fn slots(node: &Node, max: u32) -> Vec<Device> {
    let cores = u32::try_from(node.cores()).unwrap_or(u32::MAX);
    let by_memory = u32::try_from(node.page_bytes / SMALLEST_ENCLAVE).unwrap_or(u32::MAX);
    let mut numa: Vec<u32> = node.pool.iter().filter_map(|cpu| cpu.numa).collect();
    numa.sort_unstable();
    numa.dedup();
    (0..max.min(cores).min(by_memory))
        .map(|number| Device { number, core: number, numa: numa.clone() })
        .collect()
}

fn cpus(node: &Node) -> Vec<Device> {
    let device = |cpu: &super::node::PoolCpu| Device {
        number: cpu.id,
        core: cpu.core,
        numa: cpu.numa.into_iter().collect(),
    };
    node.pool.iter().map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::super::node::PoolCpu;
    use super::*;

    fn node(cores: u32, mib: u64) -> Node {
        let cpu = |id| PoolCpu { id, core: id - id % 2, numa: Some(1) };
        Node { device: true, pool: (2..2 + 2 * cores).map(cpu).collect(), page_bytes: mib << 20 }
    }

    fn slots_of(node: &Node) -> usize {
        Offer::new(Kind::Enclaves, node, 4, &Offer::default()).devices.len()
    }

    #[test]
    fn the_scarcest_of_maximum_cores_and_pages_decides_the_slots() {
        assert_eq!(slots_of(&node(8, 4096)), 4);
        assert_eq!(slots_of(&node(1, 4096)), 1);
        assert_eq!(slots_of(&node(8, 191)), 2);
    }

    #[test]
    fn cpu_devices_are_called_by_their_cpu() {
        let message = Offer::new(Kind::Cpus, &node(1, 0), 4, &Offer::default()).message(Kind::Cpus);
        let ids: Vec<&str> = message.devices.iter().map(|device| device.id.as_str()).collect();
        assert_eq!(ids, ["2", "3"]);
        assert!(message.devices.iter().all(|device| device.health == "Healthy"));
        assert_eq!(message.devices[0].topology.as_ref().unwrap().nodes[0].id, 1);
    }

    #[test]
    fn a_lost_pool_leaves_the_devices_unhealthy() {
        let before = Offer::new(Kind::Cpus, &node(2, 512), 4, &Offer::default());
        let emptied = Node { pool: Vec::new(), ..node(2, 512) };
        let after = Offer::new(Kind::Cpus, &emptied, 4, &before);
        assert_eq!(after.devices, before.devices);
        assert_eq!(after.trouble, Some(Trouble::EmptyPool));
        assert!(after.message(Kind::Cpus).devices.iter().all(|device| device.health == "Unhealthy"));
    }

    #[test]
    fn a_node_without_the_device_shows_its_maximum_as_unhealthy() {
        let offer = Offer::new(Kind::Enclaves, &Node::default(), 4, &Offer::default());
        assert_eq!(offer.devices.len(), 4);
        assert_eq!(offer.trouble, Some(Trouble::NoDevice));
    }

    #[test]
    fn a_device_has_one_name_only() {
        for id in ["", "x", "+2", "02", "-1", "2 ", "4294967296"] {
            assert_eq!(Kind::Cpus.number(id), None, "{id:?}");
        }
        assert_eq!(Kind::Cpus.number("2"), Some(2));
        assert_eq!(Kind::Enclaves.number("nitro_enclaves_3"), Some(3));
        assert_eq!(Kind::Enclaves.number("3"), None);
    }
}
