//! Rules on where the nodes are and what they are.

use super::{
    Spot,
    finding::Findings,
    model::{Model, Pool, PoolKind},
    rule::{
        MEM_INSTANCE, MEM_REMAINDER, TYPE_ABSENT, TYPE_FAMILY, TYPE_METAL, TYPE_NAME, TYPE_SIZE,
        TYPE_UNSUPPORTED, VCPU_CORES, VCPU_NUMA, VCPU_PARENT, ZONE_EDGE, ZONE_IMPLICIT, ZONE_NAME,
        ZONE_SUBNET,
    },
};
use crate::{
    instance::{Capacity, InstanceType, LISTED, Support},
    pages::Arch,
    quantity::Bytes,
    yaml::Node,
    zone::{self, ZoneKind},
};

/// What Cluster API says once it is too late (cluster-api-provider-aws,
/// condition LaunchTemplateReady).
const EDGE_REASON: &str = "NitroEnclaveEdgeZoneUnsupported";
/// What kubelet, the system and the pods of a small node need at least.
const NODE_NEEDS_MIB: u64 = 1024;
/// From this size on instances have more than one NUMA node.
const ONE_NUMA_NODE: u32 = 64;

pub(super) fn check(model: &Model<'_>, findings: &mut Findings<'_>) {
    let edge_subnets = edge_subnets(model);
    for pool in model.pools.iter().filter(|pool| pool.is_on()) {
        zones(pool, findings);
        subnets(pool, &edge_subnets, findings);
        instance_types(model, pool, findings);
    }
    for pool in &model.pools {
        reservation(model, pool, findings);
    }
}

fn zones(pool: &Pool<'_>, findings: &mut Findings<'_>) {
    for node in &pool.zones {
        let (Some(name), false) = (node.text(), node.is_template()) else { continue };
        let spot = pool.object.spot(node);
        match zone::kind(name) {
            Some(ZoneKind::Regular) => {}
            Some(kind) => {
                let outcome = match pool.kind {
                    PoolKind::Karpenter => {
                        "Karpenter does not leave it out, and no enclave runs there".to_owned()
                    }
                    _ => format!("the pool will stay at LaunchTemplateReady=False, {EDGE_REASON}"),
                };
                let reason = format!("{name} is a {kind:?} Zone; {outcome}");
                let region: Vec<&str> = name.split('-').take(3).collect();
                findings.add(
                    &ZONE_EDGE,
                    &spot,
                    reason,
                    format!("{}a, or another regular zone", region.join("-")),
                );
            }
            None => {
                findings.add(
                    &ZONE_NAME,
                    &spot,
                    "not shaped like a zone such as us-east-1a",
                    "a zone of `aws ec2 describe-availability-zones`",
                );
            }
        }
    }
}

/// Subnets that a cluster object places in an edge zone: id, zone type.
fn edge_subnets<'a>(model: &Model<'a>) -> Vec<(Option<&'a str>, &'a str)> {
    let clusters = model.objects.iter().filter(|object| {
        matches!(object.kind(), "AWSCluster" | "AWSManagedControlPlane" | "AWSClusterTemplate")
    });
    let mut found = Vec::new();
    for cluster in clusters {
        let subnets = cluster.root.at(&["spec", "network", "subnets"]).map(Node::items).unwrap_or_default();
        for subnet in subnets {
            let zone_type = subnet.field("zoneType").and_then(Node::text);
            let by_name = subnet.field("availabilityZone").and_then(Node::text).and_then(zone::kind);
            let edge = match (zone_type, by_name) {
                (Some(kind @ ("local-zone" | "wavelength-zone")), _) => kind,
                (None, Some(ZoneKind::Local)) => "local-zone",
                (None, Some(ZoneKind::Wavelength)) => "wavelength-zone",
                _ => continue,
            };
            found.push((subnet.field("id").and_then(Node::text), edge));
        }
    }
    found
}

fn subnets(pool: &Pool<'_>, edge: &[(Option<&str>, &str)], findings: &mut Findings<'_>) {
    for node in &pool.subnets {
        if let Some((_, kind)) = edge.iter().find(|(id, _)| id.is_some() && *id == node.text()) {
            findings.add(
                &ZONE_SUBNET,
                &pool.object.spot(node),
                format!("the cluster has this subnet in a {kind}; the pool will report {EDGE_REASON}"),
                "a subnet in a regular zone",
            );
        }
    }
    let names_none = pool.zones.is_empty() && pool.subnets.is_empty();
    if names_none && !edge.is_empty() && pool.kind != PoolKind::Karpenter {
        findings.add(
            &ZONE_IMPLICIT,
            &pool.object.own_spot(),
            "CAPA compares only zones and subnets that the pool names itself, so a node may start in an edge zone and fail",
            "availabilityZones with regular zones",
        );
    }
}

fn instance_types(model: &Model<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    for node in &pool.instance_types {
        let (Some(name), false) = (node.text(), node.is_template()) else { continue };
        let spot = pool.object.spot(node);
        let parsed = InstanceType::parse(name);
        let capacity = Capacity::of(name, model.facts.instance_types.as_ref());
        let (Some(parsed), Some(capacity)) = (parsed, capacity) else {
            findings.add(
                &TYPE_NAME,
                &spot,
                "not shaped like m5.xlarge",
                "an instance type such as m5.xlarge",
            );
            continue;
        };
        if parsed.is_metal() || parsed.is_xen() {
            let what = if parsed.is_metal() { "a whole machine" } else { "virtualised by Xen" };
            let reason = format!("{name} is {what}: it has no Nitro hypervisor to run an enclave beside it");
            findings.add(&TYPE_METAL, &spot, reason, "a virtualised Nitro type such as m5.xlarge");
            continue;
        }
        support(&parsed, &capacity, name, &spot, findings);
        size(&parsed, &capacity, name, &spot, findings);
    }
}

fn support(
    parsed: &InstanceType<'_>,
    capacity: &Capacity,
    name: &str,
    spot: &Spot,
    findings: &mut Findings<'_>,
) {
    match capacity.support {
        Support::Yes | Support::Likely => {}
        Support::No => {
            findings.add(
                &TYPE_UNSUPPORTED,
                spot,
                format!("describe-instance-types says NitroEnclavesSupport: unsupported for {name}"),
                "a type with NitroEnclavesSupport: supported",
            );
        }
        Support::Absent => {
            let reason = format!("{name} is not in the instance types given");
            findings.add(&TYPE_ABSENT, spot, reason, "the output for this region and type");
        }
        Support::Doubtful => {
            let later = if parsed.exclusion() == Some(true) {
                "; later editions take most of its sizes back"
            } else {
                ""
            };
            findings.add(
                &TYPE_FAMILY,
                spot,
                format!("AWS's user guide of {LISTED} lists {} without enclaves{later}", parsed.family),
                format!("check with `aws ec2 describe-instance-types --instance-types {name}` and --instance-types FILE"),
            );
        }
    }
}

fn size(
    parsed: &InstanceType<'_>,
    capacity: &Capacity,
    name: &str,
    spot: &Spot,
    findings: &mut Findings<'_>,
) {
    let least = if capacity.arch == Arch::X86_64 { 4 } else { 2 };
    let size = if capacity.arch == Arch::X86_64 { "xlarge" } else { "large" };
    if capacity.vcpus.is_some_and(|vcpus| vcpus < least) {
        findings.add(
            &TYPE_SIZE,
            spot,
            format!(
                "{name} has {} vCPUs; {} needs at least {least}",
                capacity.vcpus.unwrap_or(0),
                capacity.arch
            ),
            format!("{}.{size}", parsed.family),
        );
    }
}

/// What the allocator takes, against what the instance has.
fn reservation(model: &Model<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    let Some(allocation) = &pool.allocation else { return };
    for (node, capacity) in pool.capacities(model.facts) {
        let name = node.text().unwrap_or_default();
        let threads = capacity.threads_per_core.max(1);
        let (cpus, spot) = (allocation.cpus, &allocation.cpu_spot);
        if cpus % threads != 0 {
            findings.add(
                &VCPU_CORES,
                spot,
                format!("{cpus} is no multiple of {threads}, the threads of a core of {name}; the allocator refuses"),
                format!("cpu_count: {}", cpus.next_multiple_of(threads)),
            );
        }
        if let Some(vcpus) = capacity.vcpus {
            if cpus + threads > vcpus {
                findings.add(
                    &VCPU_PARENT,
                    spot,
                    format!("{name} has {vcpus} vCPUs, and CPU 0's core ({threads}) stays with the parent"),
                    format!("cpu_count: {} at most", vcpus.saturating_sub(threads)),
                );
            } else if vcpus > ONE_NUMA_NODE && cpus + threads > vcpus / 2 {
                findings.add(
                    &VCPU_NUMA,
                    spot,
                    format!(
                        "an enclave's CPUs lie on one NUMA node, and {name} is likely to have two of {}",
                        vcpus / 2
                    ),
                    format!("cpu_count: {} at most", vcpus / 2 - threads),
                );
            }
        }
        if let Some(memory) = capacity.memory_mib.filter(|mib| allocation.memory_mib + NODE_NEEDS_MIB > *mib)
        {
            findings.add(
                &MEM_INSTANCE,
                &allocation.memory_spot,
                format!(
                    "{name} has {memory} MiB; {} for enclaves leave less than {NODE_NEEDS_MIB} MiB for the node",
                    allocation.memory_mib
                ),
                format!("memory_mib: {} at most", memory.saturating_sub(NODE_NEEDS_MIB)),
            );
        }
    }
    remainder(model, pool, findings);
}

fn remainder(model: &Model<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    let (Some(allocation), Some(plan)) = (&pool.allocation, pool.plan(model.facts)) else { return };
    let whole = allocation.memory_mib.next_multiple_of(2);
    let reason = if plan.unusable() > 0 {
        format!(
            "{} lie in pages smaller than 2 MiB, which the driver does not take ({plan})",
            Bytes(plan.unusable())
        )
    } else if whole != allocation.memory_mib {
        format!("pages of 2 MiB make {whole} of it")
    } else {
        return;
    };
    findings.add(&MEM_REMAINDER, &allocation.memory_spot, reason, format!("memory_mib: {whole}"));
}
