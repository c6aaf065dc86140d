//! Rules on memory and counts: what pods ask for against what nodes have.

use super::{
    finding::Findings,
    model::{Model, Plugin, Pod, Pool},
    rule::{
        COUNT_CAPACITY, COUNT_CPUS_ADVERTISED, COUNT_CPUS_CORES, COUNT_CPUS_POOL, COUNT_CPUS_UNBOUND,
        COUNT_PER_POD, COUNT_SLOTS, EIF_MEMORY, MEM_MINIMUM, MEM_PAGE_SIZE, MEM_SHORTFALL, MEM_UNUSED,
    },
};
use crate::{
    pages::{PagePlan, PageSize},
    quantity::{Bytes, Quantity},
    yaml::Node,
};

const MIB: u64 = 1 << 20;
/// The driver's least memory of an enclave (NE_ERR_ENCLAVE_MEM_MIN_SIZE).
const LEAST_ENCLAVE: u64 = 64 * MIB;
/// Enclaves that one instance can run.
const MOST_SLOTS: u64 = 4;

pub(super) fn check(model: &Model<'_>, findings: &mut Findings<'_>) {
    for plugin in &model.plugins {
        slots(plugin, findings);
    }
    for pod in &model.pods {
        size(model, pod, findings);
        count(model, pod, findings);
        if let Some(pool) = model.pool_of(pod) {
            pages(model, pod, pool, findings);
            cpus(model, pod, pool, findings);
            capacity(model, pod, pool, findings);
        }
    }
}

fn slots(plugin: &Plugin<'_>, findings: &mut Findings<'_>) {
    let Some(node) = plugin.slots.filter(|node| !node.is_template()) else { return };
    if !node.number().is_some_and(|slots| (1..=MOST_SLOTS).contains(&slots)) {
        findings.add(
            &COUNT_SLOTS,
            &plugin.object.spot(node),
            "AWS's plugin falls back to 4, and an instance runs no more than 4",
            "\"4\", or fewer",
        );
    }
}

/// Huge pages of a pod: size, value and where it is written.
fn pages_of<'a>(pod: &Pod<'a>) -> Vec<(PageSize, u64, &'a Node)> {
    pod.resource_names()
        .into_iter()
        .filter_map(|name| {
            let size = PageSize::from_resource(name)?;
            let (limit, request) = pod.resource(name);
            let node = limit.or(request)?;
            Some((size, Quantity::parse(node.text()?)?.whole()?, node))
        })
        .collect()
}

fn size(model: &Model<'_>, pod: &Pod<'_>, findings: &mut Findings<'_>) {
    let pages = pages_of(pod);
    let total: u64 = pages.iter().map(|(_, bytes, _)| bytes).sum();
    let Some((size, _, node)) = pages.first() else { return };
    let spot = pod.spot(node);
    if total < LEAST_ENCLAVE {
        let reason = format!("{} in all; the driver refuses an enclave with less than 64 MiB", Bytes(total));
        findings.add(&MEM_MINIMUM, &spot, reason, format!("{}: 64Mi", size.resource()));
    }
    if let Some(image) = model.facts.image {
        let needed = image.bytes.div_ceil(MIB) * 4 * MIB;
        if total < needed {
            let rounded = needed.next_multiple_of(size.0);
            findings.add(
                &EIF_MEMORY,
                &spot,
                format!(
                    "the image has {} bytes; with less than {} the kernel may fail to unpack it, and nitro-cli refuses",
                    image.bytes,
                    Bytes(needed)
                ),
                format!("{}: {}", size.resource(), Bytes(rounded)),
            );
        }
    }
}

fn pages(model: &Model<'_>, pod: &Pod<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    let Some(plan) = pool.plan(model.facts) else { return };
    let lines: Vec<String> = plan.resources().map(|(name, bytes)| format!("{name}: {bytes}")).collect();
    let lines = lines.join(", ");
    let memory = pool.allocation.as_ref().map_or(0, |allocation| allocation.memory_mib);
    for (size, bytes, node) in pages_of(pod) {
        let offered = plan.bytes_in(size);
        let spot = pod.spot(node);
        if offered == 0 {
            let reason = format!(
                "the allocator makes {memory} MiB of {plan}: the node has no {} and the pod stays Pending",
                size.resource()
            );
            findings.add(&MEM_PAGE_SIZE, &spot, reason, lines.clone());
        } else if bytes > offered {
            let reason = format!("the node sets aside {} in such pages ({plan})", Bytes(offered));
            findings.add(&MEM_SHORTFALL, &spot, reason, format!("{}: {}", size.resource(), Bytes(offered)));
        }
    }
    unused(pod, &plan, findings);
}

fn unused(pod: &Pod<'_>, plan: &PagePlan, findings: &mut Findings<'_>) {
    let pages = pages_of(pod);
    let fits =
        |(size, bytes, _): &(PageSize, u64, &Node)| plan.bytes_in(*size).checked_div(*bytes).unwrap_or(0);
    let pods = pages.iter().map(fits).min().unwrap_or(0).min(MOST_SLOTS);
    let Some((_, _, node)) = pages.first().filter(|_| pods > 0) else { return };
    let used: u64 = pages.iter().map(|(_, bytes, _)| bytes * pods).sum();
    if used < plan.usable() {
        findings.add(
            &MEM_UNUSED,
            &pod.spot(node),
            format!(
                "{pods} such pod(s) fit a node and use {} of the {} set aside",
                Bytes(used),
                Bytes(plan.usable())
            ),
            format!("memory_mib: {}", used / MIB),
        );
    }
}

fn count(model: &Model<'_>, pod: &Pod<'_>, findings: &mut Findings<'_>) {
    if let Some(name) = pod.enclave_resource() {
        let (limit, request) = pod.resource(name);
        if let Some(node) = limit.or(request).filter(|node| node.number().is_some_and(|count| count > 1)) {
            findings.add(
                &COUNT_PER_POD,
                &pod.spot(node),
                "the device plugin hands out one device whatever the number, and an entrypoint runs one enclave",
                format!("{name}: \"1\""),
            );
        }
    }
    if let (Some(cpus), Some(false)) = (pod.enclave_cpus(), model.cpus_advertised()) {
        let replacement = "ENCLAVE_CPU_ADVERTISEMENT: \"true\" in the device plugin";
        let reason = "no node offers this resource: the device plugin does not advertise CPUs";
        findings.add(&COUNT_CPUS_ADVERTISED, &pod.spot(cpus), reason, replacement);
    }
}

fn cpus(model: &Model<'_>, pod: &Pod<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    let Some((node, cpus)) = pod.enclave_cpus().and_then(|node| Some((node, node.number()?))) else {
        unbound(model, pod, pool, findings);
        return;
    };
    let spot = pod.spot(node);
    let threads = pool.capacities(model.facts).iter().map(|(_, one)| u64::from(one.threads_per_core)).max();
    if let Some(threads) = threads.filter(|threads| cpus % threads != 0) {
        let reason = format!("cores have {threads} threads here, and an enclave takes whole cores");
        findings.add(&COUNT_CPUS_CORES, &spot, reason, format!("\"{}\"", cpus.next_multiple_of(threads)));
    }
    if let Some(allocation) = pool.allocation.as_ref().filter(|allocation| cpus > u64::from(allocation.cpus))
    {
        findings.add(
            &COUNT_CPUS_POOL,
            &spot,
            format!("the node sets aside {} CPUs for all its enclaves", allocation.cpus),
            format!("\"{}\", or cpu_count: {cpus}", allocation.cpus),
        );
    }
}

/// Several enclaves a node, and nobody counts their CPUs.
fn unbound(model: &Model<'_>, pod: &Pod<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    let Some(plan) = pool.plan(model.facts) else { return };
    let per_node = pages_of(pod)
        .iter()
        .map(|(size, bytes, _)| plan.bytes_in(*size).checked_div(*bytes).unwrap_or(0))
        .min()
        .unwrap_or(0);
    let cpus = pool.allocation.as_ref().map_or(0, |allocation| allocation.cpus);
    if pod.count() > 1 && per_node > 1 && cpus < 4 {
        findings.add(
            &COUNT_CPUS_UNBOUND,
            &pod.own_spot(),
            format!("{per_node} pods fit a node by pages and share its {cpus} CPUs; the second enclave fails (nitro-cli: E22)"),
            "aws.ec2.nitro/nitro_enclaves_cpus: \"2\", and a device plugin that advertises CPUs",
        );
    }
}

fn capacity(model: &Model<'_>, pod: &Pod<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    let (Some(nodes), Some(replicas)) = (pool.most_nodes, pod.replicas) else { return };
    let plugin = model.plugins.iter().find_map(|plugin| plugin.slots.and_then(Node::number));
    let mut per_node = plugin.unwrap_or(MOST_SLOTS).min(MOST_SLOTS);
    if let Some(plan) = pool.plan(model.facts) {
        for (size, bytes, _) in pages_of(pod) {
            per_node = per_node.min(plan.bytes_in(size).checked_div(bytes).unwrap_or(0));
        }
    }
    let pool_cpus = pool.allocation.as_ref().map(|allocation| u64::from(allocation.cpus));
    if let (Some(cpus), Some(pool_cpus)) = (pod.enclave_cpus().and_then(Node::number), pool_cpus) {
        per_node = per_node.min(pool_cpus.checked_div(cpus).unwrap_or(per_node));
    }
    // Pods that fit no node at all have a finding of their own.
    if per_node > 0 && pod.count() > nodes * per_node {
        findings.add(
            &COUNT_CAPACITY,
            &pod.spot(replicas),
            format!("{nodes} node(s) at most, with room for {per_node} such pod(s) each"),
            format!("replicas: {}", nodes * per_node),
        );
    }
}
