//! Rules on machine pools: label, taint, image, launch template.

use super::{
    collect::Object,
    finding::Findings,
    model::{LABEL, Model, Pool, PoolKind, Taint},
    rule::{
        AMI_AL2, AMI_AL2_OLD, AMI_ARCH, AMI_CUSTOM, AMI_DEFAULT, AMI_NO_ALLOCATOR, EIF_ARCH, HIBERNATE,
        LABEL_MISSING, LABEL_TAINT, LABEL_VALUE, NG_BOTH, NG_EXISTING, NG_MISPLACED, NG_TEMPLATE, NG_VERSION,
    },
};
use crate::{pages::Arch, yaml::Node};

pub(super) fn check(model: &Model<'_>, findings: &mut Findings<'_>) {
    for pool in model.pools.iter().filter(|pool| pool.is_on()) {
        label(model, pool, findings);
        taints(model, pool, findings);
        image(model, pool, findings);
        image_arch(model, pool, findings);
        if pool.kind == PoolKind::Managed {
            managed(pool, findings);
        }
    }
    for object in &model.objects {
        misplaced(object, findings);
        hibernation(object, findings);
    }
}

fn label(model: &Model<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    if pool.kind == PoolKind::Settings || pool.object.kind() == "EC2NodeClass" {
        return;
    }
    let wanted = format!("{LABEL}: enabled");
    match pool.labels.and_then(|labels| labels.field(LABEL)) {
        Some(node) if node.text() == Some("enabled") || node.is_template() => {}
        Some(node) => {
            let spot = pool.object.spot(node);
            let reason = "the device plugin's nodeSelector compares with `enabled`, letter by letter";
            findings.add(&LABEL_VALUE, &spot, reason, wanted).fix_with(&spot, "enabled");
        }
        None => {
            let by_kubelet = pool.bootstrap.is_some_and(|index| model.bootstraps[index].labels_node);
            if by_kubelet {
                return;
            }
            let spot = pool.object.own_spot();
            let place = match pool.kind {
                PoolKind::SelfManaged => "kubelet's node-labels in the bootstrap configuration",
                PoolKind::Karpenter => "spec.template.metadata.labels",
                _ => "spec.labels",
            };
            findings.add(
                &LABEL_MISSING,
                &spot,
                "without this label no device plugin runs on the nodes, and pods stay Pending",
                format!("{wanted} in {place}"),
            );
        }
    }
}

fn taints(model: &Model<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    let blocking = |taint: &&Taint<'_>| matches!(taint.effect, "NoSchedule" | "NoExecute");
    for taint in pool.taints.iter().filter(blocking) {
        let tolerates = |spec: &Node| tolerates(spec, taint);
        if !model.plugins.is_empty() && !model.plugins.iter().any(|plugin| tolerates(plugin.spec)) {
            let Some(plugin) = model.plugins.iter().find(|plugin| !plugin.partial) else { continue };
            findings.add(
                &LABEL_TAINT,
                &pool.object.spot(taint.node.field("key").unwrap_or(taint.node)),
                format!(
                    "the DaemonSet {} has no toleration for it and does not run here",
                    plugin.object.name()
                ),
                format!("in the DaemonSet: {}", toleration(taint)),
            );
        }
    }
}

/// Whether a pod's spec tolerates a taint (Kubernetes core/v1 Toleration).
pub(super) fn tolerates(spec: &Node, taint: &Taint<'_>) -> bool {
    spec.field("tolerations").map(Node::items).unwrap_or_default().iter().any(|toleration| {
        let text = |name| toleration.field(name).and_then(Node::text);
        let key = text("key");
        let exists = text("operator") == Some("Exists");
        text("effect").is_none_or(|effect| effect.is_empty() || effect == taint.effect)
            && (key == Some(taint.key) || (key.is_none() && exists))
            && (exists || text("value").unwrap_or_default() == taint.value)
    })
}

pub(super) fn toleration(taint: &Taint<'_>) -> String {
    format!("{{key: {}, operator: Equal, value: {:?}, effect: {}}}", taint.key, taint.value, taint.effect)
}

fn image(model: &Model<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    let spec = pool.object.spec();
    let at = |path: &[&str]| spec.and_then(|spec| spec.at(path));
    let boot = pool.bootstrap.map(|index| &model.bootstraps[index]);
    let commands = boot.is_some_and(|boot| boot.has_commands);
    let family = at(&["amiType"]).or_else(|| at(&["amiFamily"]));
    let named = at(&["awsLaunchTemplate", "ami", "eksLookupType"]).or(family);
    if pool.kind == PoolKind::Managed && family.is_none() {
        let reason = if commands { "; its commands are for another system" } else { "" };
        findings.add(
            &AMI_DEFAULT,
            &pool.object.own_spot(),
            format!("amiType defaults to AL2_x86_64{reason}; it cannot be changed afterwards"),
            "amiType: CUSTOM with awsLaunchTemplate.ami.eksLookupType: AmazonLinux2023",
        );
    }
    if let Some(node) = named.filter(|node| !node.is_template()) {
        let name = node.text().unwrap_or_default();
        let spot = pool.object.spot(node);
        let is_al2 = matches!(name, "AmazonLinux" | "AmazonLinuxGPU" | "AL2") || name.starts_with("AL2_");
        if is_al2 && let Some(dnf) = boot.and_then(|boot| boot.dnf.as_ref()) {
            findings.add(
                &AMI_AL2,
                dnf,
                format!("the pool's image is {name}: Amazon Linux 2 has yum and amazon-linux-extras, no dnf"),
                "eksLookupType: AmazonLinux2023",
            );
        } else if is_al2 {
            let reason = "EKS publishes no new Amazon Linux 2 images";
            findings.add(&AMI_AL2_OLD, &spot, reason, "Amazon Linux 2023");
        }
        let lower = name.to_ascii_lowercase();
        if lower.starts_with("bottlerocket") || lower.starts_with("windows") {
            findings.add(
                &AMI_NO_ALLOCATOR,
                &spot,
                format!("{name} runs no boot commands and has no enclave allocator"),
                "Amazon Linux 2023",
            );
        }
    }
    let custom = family.is_some_and(|node| node.text() == Some("CUSTOM"));
    let has_image =
        at(&["awsLaunchTemplate", "ami", "id"]).or(at(&["awsLaunchTemplate", "ami", "eksLookupType"]));
    if let (true, Some(node), None) = (custom, family, has_image) {
        let reason = "the launch template names neither ami.id nor ami.eksLookupType";
        findings.add(&AMI_CUSTOM, &pool.object.spot(node), reason, "ami: {eksLookupType: AmazonLinux2023}");
    }
}

fn image_arch(model: &Model<'_>, pool: &Pool<'_>, findings: &mut Findings<'_>) {
    let ami = pool.object.root.at(&["spec", "amiType"]);
    let ami_arch = ami.and_then(Node::text).and_then(|name| {
        let name = name.to_ascii_uppercase();
        if name.contains("ARM_64") {
            Some(Arch::Arm64)
        } else if name.contains("X86_64") {
            Some(Arch::X86_64)
        } else {
            None
        }
    });
    for (node, capacity) in pool.capacities(model.facts) {
        let name = node.text().unwrap_or_default();
        if let (Some(ami), Some(arch)) = (ami, ami_arch.filter(|arch| *arch != capacity.arch)) {
            findings.add(
                &AMI_ARCH,
                &pool.object.spot(ami),
                format!("an {arch} image on {name}, which is {}", capacity.arch),
                format!("an {} image", capacity.arch),
            );
        }
        if let Some(image) = model.facts.image.filter(|image| image.arch != capacity.arch) {
            findings.add(
                &EIF_ARCH,
                &pool.object.spot(node),
                format!("the enclave image is built for {}, {name} is {}", image.arch, capacity.arch),
                format!("an instance type with {}", image.arch),
            );
        }
    }
}

/// What EKS and CAPA's webhook refuse in a managed node group.
fn managed(pool: &Pool<'_>, findings: &mut Findings<'_>) {
    let Some(spec) = pool.object.spec() else { return };
    let Some(template) = spec.field("awsLaunchTemplate") else { return };
    for (field, instead) in [
        ("iamInstanceProfile", "spec.roleName"),
        ("spotMarketOptions", "spec.capacityType: spot"),
        ("hibernationOptions", "no hibernation"),
    ] {
        if let Some(entry) = template.entry(field) {
            let reason = format!("EKS refuses a launch template with {field} for a managed node group");
            findings.add(&NG_TEMPLATE, &pool.object.spot(&entry.key), reason, instead);
        }
    }
    if let Some(node) = template.field("marketType").filter(|node| node.text() == Some("Spot")) {
        let reason = "EKS refuses a launch template with a spot market for a managed node group";
        findings.add(&NG_TEMPLATE, &pool.object.spot(node), reason, "spec.capacityType: spot");
    }
    for field in ["instanceType", "diskSize"] {
        if let Some(entry) = spec.entry(field) {
            let reason = format!("the webhook refuses spec.{field} beside awsLaunchTemplate");
            findings.add(&NG_BOTH, &pool.object.spot(&entry.key), reason, "the value in awsLaunchTemplate");
        }
    }
    for field in ["name", "versionNumber"] {
        if let Some(entry) = template.entry(field) {
            findings.add(
                &NG_EXISTING,
                &pool.object.spot(&entry.key),
                "changing enclaveOptions makes a new template version and a rolling update of the nodes; adding a \
                 template to a pool that has none needs a new pool",
                "plan for the update; check the version that the node group runs afterwards",
            );
        }
    }
    if pool.object.api().ends_with("/v1beta1") {
        let node = pool.object.root.field("apiVersion").unwrap_or(pool.object.root);
        let spot = pool.object.spot(node);
        findings
            .add(&NG_VERSION, &spot, "AWSManagedMachinePool v1beta1 is not served", "v1beta2")
            .fix_with(&spot, "infrastructure.cluster.x-k8s.io/v1beta2");
    }
}

/// Only awsLaunchTemplate of a pool and EC2NodeClass have enclaveOptions.
fn misplaced(object: &Object<'_>, findings: &mut Findings<'_>) {
    let right: &[&str] = match object.kind() {
        "AWSManagedMachinePool" | "AWSMachinePool" => &["spec", "awsLaunchTemplate", "enclaveOptions"],
        "EC2NodeClass" => &["spec", "enclaveOptions"],
        _ if !object.api().contains("infrastructure.cluster.x-k8s.io")
            && !object.api().contains("bootstrap.cluster.x-k8s.io")
            && !object.api().contains("karpenter") =>
        {
            return;
        }
        _ => &[],
    };
    let right = object.root.at(right).filter(|_| !right.is_empty()).map(|node| &node.place);
    object.root.walk(&mut |node| {
        let Some(entry) = node.entry("enclaveOptions").filter(|entry| Some(&entry.value.place) != right)
        else {
            return;
        };
        let replacement = match object.kind() {
            "AWSManagedMachinePool" | "AWSMachinePool" => "spec.awsLaunchTemplate.enclaveOptions",
            "EC2NodeClass" | "NodePool" => "spec.enclaveOptions of the EC2NodeClass",
            _ => "an AWSManagedMachinePool or AWSMachinePool: no other kind can switch enclaves on",
        };
        findings.add(
            &NG_MISPLACED,
            &object.spot(&entry.key),
            format!(
                "{} has no such field here; the API drops it and the instances start without enclaves",
                object.kind()
            ),
            replacement,
        );
    });
}

/// EC2 refuses hibernation and enclaves together, in every spelling of them.
fn hibernation(object: &Object<'_>, findings: &mut Findings<'_>) {
    let (mut enclaves, mut hibernate) = (false, Vec::new());
    object.root.walk(&mut |node| {
        let on = |name: &str, field: &str| {
            node.at(&[name, field])
                .filter(|value| value.text().is_some_and(|text| text.eq_ignore_ascii_case("true")))
        };
        enclaves |= on("enclaveOptions", "enabled").is_some() || on("EnclaveOptions", "Enabled").is_some();
        hibernate.extend(on("hibernationOptions", "configured"));
        hibernate.extend(on("HibernationOptions", "Configured"));
        for field in ["instanceInterruptionBehavior", "InstanceInterruptionBehavior"] {
            hibernate.extend(node.field(field).filter(|value| value.text() == Some("hibernate")));
        }
    });
    for node in hibernate.iter().filter(|_| enclaves) {
        let reason = "EC2 refuses an instance with both hibernation and enclaves";
        findings.add(&HIBERNATE, &object.spot(node), reason, "false, or no such field");
    }
}
