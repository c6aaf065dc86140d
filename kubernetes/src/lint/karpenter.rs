//! Rules on Karpenter's own kinds.

use super::{
    collect::Object,
    finding::Findings,
    model::Model,
    rule::{COUNT_FILL, KP_CPUS, KP_OVERLAY, KP_OVERLAY_ALPHA, KP_VERSION},
};
use crate::{
    pages::PageSize,
    quantity::{Bytes, Quantity},
    yaml::Node,
};

pub(super) fn check(model: &Model<'_>, findings: &mut Findings<'_>) {
    for object in &model.objects {
        match object.kind() {
            "EC2NodeClass" => {
                if let Some(node) = object.root.at(&["spec", "enclaveOptions", "enabled"]) {
                    let reason = "older versions drop the field and start instances without enclaves";
                    findings.add(&KP_VERSION, &object.spot(node), reason, "Karpenter 1.15 or later");
                    let reason = "it still counts the CPUs that the allocator takes from the node, and may place pods \
                                  that then stay Pending";
                    let replacement = "a NodeOverlay with the cpu that is left; then say that it is known";
                    findings.add(&KP_CPUS, &object.spot(node), reason, replacement);
                }
            }
            "NodeOverlay" => overlay(model, object, findings),
            _ => {}
        }
    }
}

fn overlay(model: &Model<'_>, object: &Object<'_>, findings: &mut Findings<'_>) {
    let Some(capacity) = object.root.at(&["spec", "capacity"]) else { return };
    let is_enclave = |name: &str| name.contains("/nitro_enclaves") || name.starts_with("hugepages-");
    if !capacity.entries().iter().any(|entry| entry.key.text().is_some_and(is_enclave)) {
        return;
    }
    findings.add(
        &KP_OVERLAY_ALPHA,
        &object.own_spot(),
        "v1alpha1: it does nothing unless the feature gate NodeOverlay is on",
        "--feature-gates NodeOverlay=true in Karpenter",
    );
    fill(model, capacity, object, findings);
    let pool = model.pools.iter().find(|pool| pool.is_on() && pool.allocation.is_some());
    let (Some(pool), Some(plan)) = (pool, pool.and_then(|pool| pool.plan(model.facts))) else { return };
    let cpus = pool.allocation.as_ref().map_or(0, |allocation| u64::from(allocation.cpus));
    for entry in capacity.entries() {
        let (Some(name), Some(value)) = (entry.key.text(), whole(&entry.value)) else { continue };
        let (real, text) = if let Some(size) = PageSize::from_resource(name) {
            (plan.bytes_in(size), Bytes(plan.bytes_in(size)).to_string())
        } else if name.ends_with("/nitro_enclaves_cpus") {
            (cpus, cpus.to_string())
        } else {
            continue;
        };
        if real != value {
            findings.add(
                &KP_OVERLAY,
                &object.spot(&entry.value),
                format!("the allocator's plan for the node is {plan} and {cpus} CPUs"),
                format!("{name}: {text:?}"),
            );
        }
    }
}

/// Slots that share what one pod takes whole.
fn fill(model: &Model<'_>, capacity: &Node, object: &Object<'_>, findings: &mut Findings<'_>) {
    for pod in &model.pods {
        let Some(slots_name) = pod.enclave_resource() else { continue };
        let Some(slots) =
            capacity.field(slots_name).filter(|slots| whole(slots).is_some_and(|slots| slots > 1))
        else {
            continue;
        };
        let taken = |name: &&str| {
            let offered = capacity.field(name).and_then(whole);
            let (limit, request) = pod.resource(name);
            *name != slots_name && offered.is_some() && offered == limit.or(request).and_then(whole)
        };
        if let Some(name) = pod.resource_names().into_iter().find(taken) {
            findings.add(
                &COUNT_FILL,
                &object.spot(slots),
                format!(
                    "{} takes all of {name}: one pod fills the node, the other slots stay empty",
                    pod.object.name()
                ),
                format!("{slots_name}: \"1\", or smaller pods"),
            );
        }
    }
}

fn whole(node: &Node) -> Option<u64> {
    Quantity::parse(node.text()?)?.whole()
}
