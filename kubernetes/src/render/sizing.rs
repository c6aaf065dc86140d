//! What follows from a request: pages, CPUs, nodes.

use super::{NodePackage, Request};
use crate::{
    instance::{Capacity, InstanceType},
    pages::{Arch, PagePlan},
    zone::{self, ZoneKind},
};

/// Enclaves that one instance can run (AWS user guide).
const MOST_ENCLAVES: u32 = 4;
/// Where the shim answers probes, metrics and attestation.
const SHIM_PORT: u16 = 9090;
/// The driver's least memory of an enclave, in MiB (NE_ERR_ENCLAVE_MEM_MIN_SIZE).
const LEAST_MIB: u64 = 64;
/// What kubelet, the system and the pods need, in MiB.
const NODE_NEEDS_MIB: u64 = 1024;
/// From this size on instances have more than one NUMA node.
const ONE_NUMA_NODE: u32 = 64;

/// Everything that is derived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizing {
    /// The nodes' architecture.
    pub arch: Arch,
    /// Memory of one enclave in MiB: what was asked for, or more where pages
    /// cannot be shared otherwise.
    pub enclave_mib: u64,
    /// Memory that a node sets aside.
    pub node_mib: u64,
    /// The node's pages.
    pub plan: PagePlan,
    /// One enclave's pages.
    pub share: PagePlan,
    /// CPUs that a node sets aside.
    pub cpu_count: u32,
    /// Nodes.
    pub nodes: u32,
}

/// Why a request cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A name that the API refuses (RFC 1123 label of at most 50 characters,
    /// so that suffixes fit).
    #[error("{what} {name:?} is no DNS label of at most 50 characters")]
    Name {
        /// Which one.
        what: &'static str,
        /// As given.
        name: String,
    },
    /// Text that would not stay one plain YAML value.
    #[error("{what} {text:?} holds characters other than letters, digits and . _ - / : @ +")]
    Text {
        /// Which one.
        what: &'static str,
        /// As given.
        text: String,
    },
    /// An archive that nodes could not fetch, or not check.
    #[error("the node package's {what} {text:?} is {why}")]
    NodePackage {
        /// Address or checksum.
        what: &'static str,
        /// As given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An image that may change from one start to the next.
    #[error("{what} {image:?} is not pinned: name a tag other than latest, or a digest")]
    Unpinned {
        /// Which one.
        what: &'static str,
        /// As given.
        image: String,
    },
    /// Not a type that can run enclaves.
    #[error("instance type {name:?} {why}")]
    InstanceType {
        /// As given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A number out of its range.
    #[error("{what} is {value}, not {least} to {most}")]
    Range {
        /// Which one.
        what: &'static str,
        /// As given.
        value: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// CPUs come as cores.
    #[error("{cpus} CPUs are not whole cores of {threads} threads")]
    Cores {
        /// As given.
        cpus: u32,
        /// Threads a core.
        threads: u32,
    },
    /// The image needs more memory.
    #[error("an image of {image} bytes needs at least {needed} MiB, not {memory} MiB")]
    ImageMemory {
        /// Bytes of the image.
        image: u64,
        /// Four times as much, in MiB.
        needed: u64,
        /// As given.
        memory: u64,
    },
    /// Image and instance type differ.
    #[error("the image is built for {image}, the instance type is {instance}")]
    Arch {
        /// The image's.
        image: Arch,
        /// The type's.
        instance: Arch,
    },
    /// The shim's own port, or a port twice.
    #[error("ingress port {port} is {why}")]
    Ingress {
        /// The port.
        port: u16,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Enclaves do not run there.
    #[error("zone {zone:?} is no regular availability zone")]
    Zone {
        /// As given.
        zone: String,
    },
}

impl Sizing {
    /// Checks a request and derives the rest.
    pub fn new(request: &Request) -> Result<Sizing, RequestError> {
        check_text(request)?;
        check_ingress(&request.ingress)?;
        request.node_package.as_ref().map_or(Ok(()), check_package)?;
        let capacity = instance(request)?;
        let enclaves = range("enclaves per node", request.enclaves_per_node, 1, MOST_ENCLAVES)?;
        let replicas = range("replicas", request.replicas, 1, 1000)?;
        let nodes = request.nodes.unwrap_or(replicas.div_ceil(enclaves));
        range("nodes", nodes, replicas.div_ceil(enclaves), 1000)?;
        for seconds in [request.drain_accept_seconds, request.drain_grace_seconds] {
            range("drain seconds", seconds, 0, 3600)?;
        }
        let cpu_count = cpus(request, &capacity, enclaves)?;
        let (enclave_mib, node_mib, plan, share) = memory(request, &capacity, enclaves)?;
        Ok(Sizing { arch: capacity.arch, enclave_mib, node_mib, plan, share, cpu_count, nodes })
    }
}

fn instance(request: &Request) -> Result<Capacity, RequestError> {
    let name = &request.instance_type;
    let error = |why| RequestError::InstanceType { name: name.clone(), why };
    let parsed = InstanceType::parse(name).ok_or_else(|| error("is not shaped like m5.xlarge"))?;
    let capacity = Capacity::of(name, None).ok_or_else(|| error("is not shaped like m5.xlarge"))?;
    if parsed.is_metal() || parsed.is_xen() {
        return Err(error("has no Nitro hypervisor"));
    }
    let least = if capacity.arch == Arch::X86_64 { 4 } else { 2 };
    if capacity.vcpus.is_none_or(|vcpus| vcpus < least) {
        return Err(error("is too small for enclaves"));
    }
    match request.image_arch {
        Some(image) if image != capacity.arch => Err(RequestError::Arch { image, instance: capacity.arch }),
        _ => Ok(capacity),
    }
}

fn cpus(request: &Request, capacity: &Capacity, enclaves: u32) -> Result<u32, RequestError> {
    let threads = capacity.threads_per_core.max(1);
    if request.cpus == 0 || !request.cpus.is_multiple_of(threads) {
        return Err(RequestError::Cores { cpus: request.cpus, threads });
    }
    let vcpus = capacity.vcpus.unwrap_or(0);
    // One NUMA node's CPUs, less the core that stays with the parent.
    let most = if vcpus > ONE_NUMA_NODE { vcpus / 2 } else { vcpus }.saturating_sub(threads);
    let count = request.cpus.saturating_mul(enclaves);
    range("CPUs of all enclaves on a node", count, threads, most)
}

/// The least that gives every enclave whole pages of the same sizes.
fn memory(
    request: &Request,
    capacity: &Capacity,
    enclaves: u32,
) -> Result<(u64, u64, PagePlan, PagePlan), RequestError> {
    const GIB: u64 = 1024;
    let enclaves = u64::from(enclaves);
    let most = capacity.memory_mib.map_or(1 << 24, |mib| mib.saturating_sub(NODE_NEEDS_MIB)) / enclaves;
    let too_much = |mib| RequestError::Range { what: "memory in MiB", value: mib, least: LEAST_MIB, most };
    if let Some(image) = request.image_bytes {
        let needed = image.div_ceil(1 << 20).saturating_mul(4);
        if request.memory_mib < needed {
            return Err(RequestError::ImageMemory { image, needed, memory: request.memory_mib });
        }
    }
    if request.memory_mib < LEAST_MIB || request.memory_mib > most {
        return Err(too_much(request.memory_mib));
    }
    let mut each = request.memory_mib.next_multiple_of(2);
    // Whole GiB can always be shared; nearer solutions come first.
    let last = each.next_multiple_of(GIB);
    while each <= last {
        let plan = PagePlan::new(each * enclaves, capacity.arch.page_sizes());
        let share = plan.as_ref().and_then(|plan| plan.shared_by(enclaves));
        if let (Some(plan), Some(share)) = (plan, share) {
            return if each > most { Err(too_much(each)) } else { Ok((each, each * enclaves, plan, share)) };
        }
        each += 2;
    }
    Err(too_much(last))
}

fn check_text(request: &Request) -> Result<(), RequestError> {
    for (what, name) in [
        ("name", &request.name),
        ("namespace", &request.namespace),
        ("cluster", &request.cluster),
        ("cluster namespace", &request.cluster_namespace),
    ] {
        if !is_label(name) {
            return Err(RequestError::Name { what, name: name.clone() });
        }
    }
    for (what, text) in [
        ("image", &request.image),
        ("device plugin image", &request.device_plugin_image),
        ("Kubernetes version", &request.kubernetes_version),
    ] {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@+".contains(c);
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || !text.chars().all(plain) || text.ends_with(':') {
            return Err(RequestError::Text { what, text: text.clone() });
        }
    }
    for (what, image) in [("image", &request.image), ("device plugin image", &request.device_plugin_image)] {
        let last = image.rsplit('/').next().unwrap_or(image);
        let tag = last.split_once(':').map(|(_, tag)| tag);
        if !image.contains('@') && tag.is_none_or(|tag| tag == "latest") {
            return Err(RequestError::Unpinned { what, image: image.clone() });
        }
    }
    match request.zones.iter().find(|zone| zone::kind(zone) != Some(ZoneKind::Regular)) {
        Some(zone) => Err(RequestError::Zone { zone: zone.clone() }),
        None => Ok(()),
    }
}

/// Both end up in a script that runs as root.
fn check_package(package: &NodePackage) -> Result<(), RequestError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@+%=~".contains(c);
    let rest = package.url.strip_prefix("https://").unwrap_or_default();
    let (what, text, why) = if rest.is_empty() || !rest.chars().all(plain) {
        ("address", &package.url, "no plain https address")
    } else if package.sha256.len() != 64 || !package.sha256.chars().all(|c| c.is_ascii_hexdigit()) {
        ("SHA-256", &package.sha256, "no checksum of 64 hexadecimal digits")
    } else {
        return Ok(());
    };
    Err(RequestError::NodePackage { what, text: text.clone(), why })
}

fn check_ingress(ports: &[u16]) -> Result<(), RequestError> {
    for (index, &port) in ports.iter().enumerate() {
        let why = match port {
            0 => "zero",
            SHIM_PORT => "the shim's own",
            _ if ports[..index].contains(&port) => "listed twice",
            _ => continue,
        };
        return Err(RequestError::Ingress { port, why });
    }
    Ok(())
}

fn is_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c != '-' && inner(c));
    (1..=50).contains(&name.len())
        && name.chars().all(inner)
        && edge(name.chars().next())
        && edge(name.chars().last())
        // Would be read as a number or a truth value.
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !matches!(name, "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n")
}

fn range(what: &'static str, value: u32, least: u32, most: u32) -> Result<u32, RequestError> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(RequestError::Range { what, value: value.into(), least: least.into(), most: most.into() })
}
