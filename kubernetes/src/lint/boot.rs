//! Rules on how a node gets its pages and CPUs.

use super::{
    finding::Findings,
    model::{Model, PoolKind},
    rule::{
        BOOT_JOINS_ANYWAY, BOOT_LATE, BOOT_NO_ALLOCATOR, BOOT_NO_ENCLAVES, BOOT_REBOOT, BOOT_SECCOMP_DEFAULT,
    },
    script::OWN_UNIT,
};
use crate::yaml::Node;

pub(super) fn check(model: &Model<'_>, findings: &mut Findings<'_>) {
    for pool in &model.pools {
        let Some(boot) = pool.bootstrap.map(|index| &model.bootstraps[index]) else { continue };
        if pool.is_on() && boot.allocator.is_none() {
            findings.add(
                &BOOT_NO_ALLOCATOR,
                &boot.spot,
                format!(
                    "{} {} never starts an allocator: no CPUs and no huge pages are set aside",
                    boot.kind, boot.name
                ),
                "install aws-nitro-enclaves-cli, write the allocator's file, \
                 systemctl enable --now nitro-enclaves-allocator.service",
            );
        }
        if let Some(spot) = &boot.late_start {
            let reason = match pool.kind {
                PoolKind::Managed => "a managed node group runs no command after its bootstrap",
                _ => "kubelet reads the huge pages only when it starts, which is before this",
            };
            if pool.kind == PoolKind::Managed || !boot.restarts_kubelet {
                let before = "the command before the bootstrap: preNodeadmCommands, preBootstrapCommands";
                findings.add(&BOOT_LATE, spot, reason, before);
            }
        }
        let decided = pool.enclaves.is_none_or(|node| node.truth() == Some(false));
        if let (true, Some(spot)) = (decided && pool.kind != PoolKind::Settings, &boot.allocator) {
            let field = match pool.kind {
                PoolKind::Karpenter => "spec.enclaveOptions.enabled: true in the EC2NodeClass",
                _ => "spec.awsLaunchTemplate.enclaveOptions.enabled: true",
            };
            let reason = format!(
                "{} {} does not switch enclaves on, so the allocator finds no CPU pool file",
                pool.object.kind(),
                pool.object.name()
            );
            findings.add(&BOOT_NO_ENCLAVES, spot, reason, field);
        }
    }
    for boot in &model.bootstraps {
        let Some(allocator) = &boot.allocator else { continue };
        if !boot.is_required {
            findings.add(
                &BOOT_JOINS_ANYWAY,
                allocator,
                "when a command fails the script stops, but the node joins all the same, labelled, with enclave slots \
                 and without huge pages",
                "a drop-in for nodeadm-run.service with Requires= and After= on the allocator's unit",
            );
        }
        if !boot.is_before {
            findings.add(
                &BOOT_REBOOT,
                allocator,
                "the unit is not ordered before kubelet, which reads the node's huge pages only when it starts",
                format!("a drop-in with Before=nodeadm-run.service kubelet.service, as {OWN_UNIT}.service has it"),
            );
        }
        seccomp_default(model, boot.seccomp_default.as_ref(), findings);
    }
}

fn seccomp_default(model: &Model<'_>, spot: Option<&super::Spot>, findings: &mut Findings<'_>) {
    let Some(spot) = spot else { return };
    let has_profile = |spec: &Node| spec.at(&["securityContext", "seccompProfile"]).is_some();
    let unprotected = model.pods.iter().any(|pod| !has_profile(pod.spec) && !has_profile(pod.container));
    if unprotected || model.pods.is_empty() {
        findings.add(
            &BOOT_SECCOMP_DEFAULT,
            spot,
            "every pod without a profile of its own gets the runtime's, and socket(AF_VSOCK) fails with EPERM",
            "a Localhost profile in the enclave pods; or seccompDefault: false",
        );
    }
}
