//! Rules on the pod itself: what the API refuses, what kubelet refuses, and
//! what keeps an enclave from starting in it.

use super::{
    finding::Findings,
    model::{Model, Pod},
    pool::{tolerates, toleration},
    rule::{
        POD_CID, POD_CPU_MEMORY, POD_DANGLING_MOUNT, POD_DEBUG, POD_GRACE, POD_IMAGE_TAG, POD_MEDIUM,
        POD_NO_PAGES, POD_PAGE_MULTIPLE, POD_PAGE_VOLUME, POD_PRIVILEGED, POD_REQUEST, POD_SECCOMP,
        POD_SECCOMP_UNSET, POD_STANDARD, POD_SURGE, POD_TAINT, POD_TOLERATION,
    },
};
use crate::{
    pages::PageSize,
    quantity::Quantity,
    yaml::{Node, is_template},
};

/// The shim's defaults: connections are taken for 3 s more, then the workload
/// has 22 s.
const DRAIN_DEFAULT: (u64, u64) = (3, 22);
/// Seconds that the shim may need beyond them, for the agent's word and open connections.
const DRAIN_MARGIN: u64 = 5;
/// Kubernetes' default.
const GRACE_DEFAULT: u64 = 30;

pub(super) fn check(model: &Model<'_>, findings: &mut Findings<'_>) {
    for pod in &model.pods {
        resources(pod, findings);
        volumes(pod, findings);
        taints(model, pod, findings);
        seccomp(pod, findings);
        container(pod, findings);
        arguments(pod, findings);
        standard(model, pod, findings);
        ending(pod, findings);
        surge(model, pod, findings);
    }
}

/// What the API server validates (core/validation: huge pages and extended
/// resources cannot be overcommitted).
fn resources(pod: &Pod<'_>, findings: &mut Findings<'_>) {
    let names = pod.resource_names();
    let has_pages = names.iter().any(|name| name.starts_with("hugepages-"));
    if !has_pages {
        findings.add(
            &POD_NO_PAGES,
            &pod.own_spot(),
            "kubelet sets the limit of every page size that is not asked for to 0: the enclave gets no memory",
            "hugepages-2Mi: 512Mi, or what the node's page plan says",
        );
    }
    if has_pages && !names.iter().any(|name| matches!(*name, "cpu" | "memory")) {
        let reason = "the API refuses huge pages without cpu or memory in the same container";
        findings.add(&POD_CPU_MEMORY, &pod.own_spot(), reason, "cpu: 250m beside them");
    }
    for name in names.into_iter().filter(|name| name.starts_with("hugepages-") || name.contains('/')) {
        let quantity = |node: Option<&Node>| node.and_then(Node::text).and_then(Quantity::parse);
        match pod.resource(name) {
            (Some(limit), Some(request)) => {
                let (a, b) = (quantity(Some(limit)), quantity(Some(request)));
                if a.is_some() && b.is_some() && a != b {
                    let spot = pod.spot(request);
                    let text = findings.raw(&pod.spot(limit)).to_owned();
                    findings
                        .add(
                            &POD_REQUEST,
                            &spot,
                            format!("the limit of {name} is {text}; they must be equal"),
                            text.clone(),
                        )
                        .fix_with(&spot, text);
                }
            }
            (None, Some(request)) => {
                let spot = pod.spot(request);
                let reason = format!("{name} has a request and no limit");
                findings.add(&POD_REQUEST, &spot, reason, format!("{name}: {} in limits too", spot.value));
            }
            _ => {}
        }
        let (limit, request) = pod.resource(name);
        let Some((size, node)) = PageSize::from_resource(name).zip(limit.or(request)) else { continue };
        if node.is_template() {
            continue;
        }
        let bytes = quantity(Some(node)).and_then(Quantity::whole);
        if !bytes.is_some_and(|bytes| bytes > 0 && bytes.is_multiple_of(size.0)) {
            let up = bytes.unwrap_or(0).max(1).next_multiple_of(size.0);
            findings.add(
                &POD_PAGE_MULTIPLE,
                &pod.spot(node),
                format!("{name} takes positive multiples of {size}"),
                crate::quantity::Bytes(up).to_string(),
            );
        }
    }
}

fn volumes(pod: &Pod<'_>, findings: &mut Findings<'_>) {
    let volumes = pod.spec.field("volumes").map(Node::items).unwrap_or_default();
    let named = |name: &str| volumes.iter().find(|one| one.field("name").and_then(Node::text) == Some(name));
    let sizes: Vec<&str> =
        pod.resource_names().into_iter().filter(|name| name.starts_with("hugepages-")).collect();
    for mount in pod.container.field("volumeMounts").map(Node::items).unwrap_or_default() {
        let Some(name_node) = mount.field("name") else { continue };
        let Some(name) = name_node.text() else { continue };
        let Some(volume) = named(name) else {
            let known: Vec<&str> =
                volumes.iter().filter_map(|one| one.field("name").and_then(Node::text)).collect();
            findings.add(
                &POD_DANGLING_MOUNT,
                &pod.spot(name_node),
                format!("the pod has no volume {name}; the API refuses it"),
                if known.is_empty() {
                    "no such mount".to_owned()
                } else {
                    format!("one of {}", known.join(", "))
                },
            );
            continue;
        };
        let Some(medium) = volume.at(&["emptyDir", "medium"]) else { continue };
        let Some(kind) = medium.text().and_then(|text| text.strip_prefix("HugePages")) else { continue };
        let spot = pod.spot(medium);
        match kind.strip_prefix('-') {
            None if sizes.len() > 1 => {
                let reason = "the pod asks for several page sizes, so the medium must name one";
                findings.add(
                    &POD_MEDIUM,
                    &spot,
                    reason,
                    format!("HugePages-{}", &sizes[0]["hugepages-".len()..]),
                );
            }
            Some(size) if !sizes.iter().any(|name| name["hugepages-".len()..] == *size) => {
                let reason = format!("kubelet does not mount it: the pod asks for no hugepages-{size}");
                let replacement = sizes.first().map_or("a request".to_owned(), |name| {
                    format!("HugePages-{}", &name["hugepages-".len()..])
                });
                findings.add(&POD_MEDIUM, &spot, reason, replacement);
            }
            _ => {
                findings.add(
                    &POD_PAGE_VOLUME,
                    &spot,
                    "an enclave's memory is anonymous: nothing opens files in this volume, only the resource counts",
                    "no such volume and mount",
                );
            }
        }
    }
}

fn taints(model: &Model<'_>, pod: &Pod<'_>, findings: &mut Findings<'_>) {
    for one in pod.spec.field("tolerations").map(Node::items).unwrap_or_default() {
        let text = |name| one.field(name).and_then(Node::text);
        if text("key").is_none() && text("operator") == Some("Exists") {
            let effect = text("effect").unwrap_or("every effect");
            findings.add(
                &POD_TOLERATION,
                &pod.spot(one.field("effect").unwrap_or(one)),
                format!(
                    "it tolerates every taint with {effect}: the pod lands on nodes that are meant for others, and \
                     stays on dead ones"
                ),
                "the taint of the enclave pool alone",
            );
        }
    }
    // A bare fragment has no place for tolerations.
    if pod.spec.field("containers").is_none() {
        return;
    }
    let Some(pool) = model.pool_of(pod) else { return };
    for taint in &pool.taints {
        if taint.effect != "PreferNoSchedule" && !tolerates(pod.spec, taint) {
            let reason = format!(
                "{} has the taint {}={}:{}",
                pool.object.name(),
                taint.key,
                taint.value,
                taint.effect
            );
            findings.add(
                &POD_TAINT,
                &pod.own_spot(),
                reason,
                format!("tolerations: [{}]", toleration(taint)),
            );
        }
    }
}

fn seccomp(pod: &Pod<'_>, findings: &mut Findings<'_>) {
    if pod.spec.field("containers").is_none() {
        return;
    }
    let own = pod.container.at(&["securityContext", "seccompProfile", "type"]);
    let pods = pod.spec.at(&["securityContext", "seccompProfile", "type"]);
    match own.or(pods) {
        Some(node) if node.text() == Some("RuntimeDefault") => {
            findings.add(
                &POD_SECCOMP,
                &pod.spot(node),
                "containerd's and Docker's default profiles refuse socket(AF_VSOCK) with EPERM",
                "type: Localhost with localhostProfile: enclave-shim.json",
            );
        }
        Some(_) => {}
        None => {
            findings.add(
                &POD_SECCOMP_UNSET,
                &pod.own_spot(),
                "it runs unconfined, unless kubelet has seccompDefault: then AF_VSOCK is refused",
                "seccompProfile: {type: Localhost, localhostProfile: enclave-shim.json}",
            );
        }
    }
}

fn container(pod: &Pod<'_>, findings: &mut Findings<'_>) {
    if let Some(node) =
        pod.container.at(&["securityContext", "privileged"]).filter(|n| n.truth() == Some(true))
    {
        let reason = "the device plugin hands out the device; no privilege is needed for it";
        let spot = pod.spot(node);
        findings.add(&POD_PRIVILEGED, &spot, reason, "privileged: false").fix_with(&spot, "false");
    }
    let Some(image) = pod.container.field("image") else { return };
    let Some(text) = image.text().filter(|text| !is_template(text) && !text.contains('@')) else { return };
    let last = text.rsplit('/').next().unwrap_or(text);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    if tag.is_none_or(|tag| tag == "latest") {
        findings.add(
            &POD_IMAGE_TAG,
            &pod.spot(image),
            "what runs may change with every start, and its measurements with it",
            format!("{}@sha256:DIGEST", text.strip_suffix(":latest").unwrap_or(text)),
        );
    }
}

fn arguments(pod: &Pod<'_>, findings: &mut Findings<'_>) {
    let words = ["command", "args"].into_iter().filter_map(|part| pod.container.field(part));
    for node in words.flat_map(Node::items) {
        let text = node.text().unwrap_or_default();
        let flag = |name: &str| {
            text.split_whitespace()
                .any(|word| word == name || word.strip_prefix(name).is_some_and(|v| v.starts_with('=')))
        };
        if flag("--enclave-cid") || flag("--cid") {
            cid(pod, node, findings);
        }
        if flag("--debug-mode") || flag("--debug") {
            debug(pod, node, findings);
        }
    }
    for variable in pod.container.field("env").map(Node::items).unwrap_or_default() {
        let value = variable.field("value").and_then(Node::text).unwrap_or_default();
        match variable.field("name").and_then(Node::text) {
            Some("ENCLAVE_SHIM_CID") if !value.is_empty() => cid(pod, variable, findings),
            Some("ENCLAVE_SHIM_DEBUG") if !matches!(value, "" | "0" | "false" | "no" | "off") => {
                debug(pod, variable, findings);
            }
            _ => {}
        }
    }
}

fn cid(pod: &Pod<'_>, node: &Node, findings: &mut Findings<'_>) {
    let reason = "CIDs are the node's: a second pod with the same one does not start";
    findings.add(&POD_CID, &pod.spot(node), reason, "no CID: the driver assigns one");
}

fn debug(pod: &Pod<'_>, node: &Node, findings: &mut Findings<'_>) {
    let reason = "in debug mode all PCRs are zero and the console can be read: nothing is attested";
    findings.add(&POD_DEBUG, &pod.spot(node), reason, "no debug mode");
}

/// Pod Security Standard "restricted" of the pod's own namespace; "baseline"
/// refuses Unconfined.
fn standard(model: &Model<'_>, pod: &Pod<'_>, findings: &mut Findings<'_>) {
    let namespace = model.objects.iter().find(|object| {
        object.kind() == "Namespace" && object.name() == pod.object.namespace() && !object.name().is_empty()
    });
    let label = namespace
        .and_then(|object| object.root.at(&["metadata", "labels", "pod-security.kubernetes.io/enforce"]));
    let level = label.and_then(Node::text).unwrap_or_default();
    let own = |path: &[&str]| pod.container.field("securityContext").and_then(|context| context.at(path));
    let any = |path: &[&str]| own(path).or_else(|| pod.spec.field("securityContext")?.at(path));
    let seccomp = any(&["seccompProfile", "type"]).and_then(Node::text);
    let mut missing = Vec::new();
    if matches!(level, "restricted" | "baseline") {
        if own(&["privileged"]).is_some_and(|node| node.truth() == Some(true)) {
            missing.push("privileged: false");
        }
        if seccomp == Some("Unconfined") || (seccomp.is_none() && level == "restricted") {
            missing.push("seccompProfile: {type: Localhost, localhostProfile: enclave-shim.json}");
        }
    }
    if level == "restricted" {
        if own(&["allowPrivilegeEscalation"]).and_then(Node::truth) != Some(false) {
            missing.push("allowPrivilegeEscalation: false");
        }
        if any(&["runAsNonRoot"]).and_then(Node::truth) != Some(true) {
            missing.push("runAsNonRoot: true");
        }
        let dropped = own(&["capabilities", "drop"]).map(Node::items).unwrap_or_default();
        if !dropped.iter().any(|node| node.text() == Some("ALL")) {
            missing.push("capabilities: {drop: [ALL]}");
        }
    }
    if !missing.is_empty() {
        let reason = format!("namespace {} enforces {level}", pod.object.namespace());
        findings.add(
            &POD_STANDARD,
            &pod.own_spot(),
            reason,
            format!("securityContext: {}", missing.join(", ")),
        );
    }
}

fn ending(pod: &Pod<'_>, findings: &mut Findings<'_>) {
    let words =
        ["command", "args"].into_iter().filter_map(|part| pod.container.field(part)).flat_map(Node::items);
    let words: Vec<&str> = words.filter_map(Node::text).collect();
    if !words.iter().any(|word| word.ends_with("enclave-shim")) {
        return;
    }
    let environment = pod.container.field("env").map(Node::items).unwrap_or_default();
    let set = |name: &str, flag: &str, default: u64| {
        let variable = environment.iter().find(|one| one.field("name").and_then(Node::text) == Some(name));
        let variable = variable.and_then(|one| one.field("value")).and_then(Node::text);
        let argument = words.iter().find_map(|word| word.strip_prefix(flag)?.strip_prefix('='));
        argument.or(variable).map_or(Some(default), seconds)
    };
    let accept = set("ENCLAVE_SHIM_DRAIN_ACCEPT", "--drain-accept", DRAIN_DEFAULT.0);
    let grace = set("ENCLAVE_SHIM_DRAIN_GRACE", "--drain-grace", DRAIN_DEFAULT.1);
    let (Some(accept), Some(grace)) = (accept, grace) else { return };
    let node = pod.spec.field("terminationGracePeriodSeconds");
    let period = node.map_or(Some(GRACE_DEFAULT), Node::number);
    if period.is_some_and(|period| period < accept + grace + DRAIN_MARGIN) {
        findings.add(
            &POD_GRACE,
            &node.map_or_else(|| pod.own_spot(), |node| pod.spot(node)),
            format!(
                "the shim drains for up to {accept} s + {grace} s + {DRAIN_MARGIN} s and is killed before that"
            ),
            format!("terminationGracePeriodSeconds: {}", accept + grace + DRAIN_MARGIN),
        );
    }
}

/// A time as the shim reads it, in whole seconds.
fn seconds(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    match &text[end..] {
        "" | "s" => Some(number),
        "ms" => Some(number.div_ceil(1000)),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3600),
        _ => None,
    }
}

/// Enclave slots are few: a surge pod may have nowhere to go.
fn surge(model: &Model<'_>, pod: &Pod<'_>, findings: &mut Findings<'_>) {
    let strategy = pod.object.root.at(&["spec", "strategy"]);
    let kind = strategy.and_then(|node| node.field("type")).and_then(Node::text);
    let surge = strategy.and_then(|node| node.at(&["rollingUpdate", "maxSurge"]));
    let none = surge.and_then(Node::text).is_some_and(|text| matches!(text, "0" | "0%"));
    if pod.object.kind() != "Deployment" || kind == Some("Recreate") || none {
        return;
    }
    let Some(pool) = model.pool_of(pod) else { return };
    let (Some(nodes), Some(plan)) = (pool.most_nodes, pool.plan(model.facts)) else { return };
    let per_node = pod
        .resource_names()
        .into_iter()
        .filter_map(|name| {
            let (limit, request) = pod.resource(name);
            let bytes = Quantity::parse(limit.or(request)?.text()?)?.whole()?;
            plan.bytes_in(PageSize::from_resource(name)?).checked_div(bytes)
        })
        .min()
        .unwrap_or(0);
    if per_node > 0 && pod.count() >= nodes * per_node {
        findings.add(
            &POD_SURGE,
            &surge.map_or_else(|| pod.own_spot(), |node| pod.spot(node)),
            format!(
                "{nodes} node(s) hold {} such pod(s), and all are taken: the new pod stays Pending",
                nodes * per_node
            ),
            "strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}",
        );
    }
}
