//! From what was seen to findings. Pure: every sentence here is tested.

use nitro_device::PageSize;
use nix::errno::Errno;

use super::probe::{DeviceEvidence, Evidence, ImageEvidence};
use super::{Finding, Severity};
use crate::boot::plan::{Cpus, Pool, Snapshot, resource_line};
use crate::exit::{Blame, Exit, chain};

/// The driver's minimum, and what the fixes name.
const LEAST_MEMORY: u64 = 64 << 20;
/// MADV_POPULATE_WRITE came with it (madvise(2)).
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// One finding a check, in the order in which a launch meets them.
pub(super) fn judge(seen: &Evidence) -> Vec<Finding> {
    let mut findings = vec![
        kernel(&seen.kernel),
        module(seen.module),
        device(&seen.device),
        vsock(seen.vsock, seen.seccomp),
        cpu_pool(&seen.machine),
        pages(&seen.machine),
        limits(&seen.machine),
        locked_memory(seen.locked_memory),
    ];
    findings.extend(seen.image.iter().map(image));
    findings
}

fn fine(check: &'static str, cause: &str, evidence: String) -> Finding {
    Finding {
        check,
        severity: Severity::Fine,
        exit_code: 0,
        cause: cause.into(),
        evidence,
        fix: String::new(),
    }
}

fn warning(check: &'static str, cause: &str, evidence: String, fix: &str) -> Finding {
    Finding { severity: Severity::Warning, fix: fix.into(), ..fine(check, cause, evidence) }
}

fn error(check: &'static str, exit: Exit, cause: &str, evidence: String, fix: &str) -> Finding {
    Finding {
        severity: Severity::Error,
        exit_code: exit.code(),
        fix: fix.into(),
        ..fine(check, cause, evidence)
    }
}

fn kernel(release: &str) -> Finding {
    let evidence = format!("uname -r: {release}");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST_KERNEL => error(
            "kernel",
            Exit::Resources,
            "the kernel cannot make huge pages present without risk of SIGBUS",
            evidence,
            "use an AMI with Linux 5.14 or newer (Amazon Linux 2023, Bottlerocket)",
        ),
        (Some(_), Some(_)) => fine(
            "kernel",
            "new enough; vsock writes are kept under 32 KiB, which kernels since July 2025 may corrupt",
            evidence,
        ),
        _ => warning("kernel", "the kernel's version is not understood", evidence, "use Linux 5.14 or newer"),
    }
}

fn module(present: bool) -> Finding {
    let path = "/sys/module/nitro_enclaves";
    match present {
        true => fine("module", "the driver is loaded", format!("{path} exists")),
        false => error(
            "module",
            Exit::Unavailable,
            "the nitro_enclaves driver is not loaded",
            format!("{path} is missing"),
            "launch the instance with enclaves enabled (EnclaveOptions.Enabled) and run `modprobe nitro_enclaves` on the node",
        ),
    }
}

fn device(seen: &DeviceEvidence) -> Finding {
    let path = seen.path.display();
    let who = format!("uid {}, groups {:?}", seen.user, seen.groups);
    let file = match seen.file {
        Some((true, mode, gid)) => format!("{path} has mode {mode:o} and group {gid}; this is {who}"),
        Some((false, ..)) => format!("{path} is no device"),
        None => format!("{path} is missing; this is {who}"),
    };
    match (&seen.open, seen.file) {
        (Ok(()), Some((true, ..))) => fine("device", "the enclave device can be opened", file),
        (Ok(()), _) => error(
            "device",
            Exit::Unavailable,
            "what is at the device's place is none",
            file,
            "give the pod the device (resource aws.ec2.nitro/nitro_enclaves)",
        ),
        (Err(refused), Some((_, _, gid))) if refused.source.raw_os_error() == Some(Errno::EACCES as i32) => {
            error(
                "device",
                Exit::Unavailable,
                &chain(refused),
                file,
                &format!("set `supplementalGroups: [{gid}]` in the pod's securityContext"),
            )
        }
        (Err(refused), _) => error("device", Exit::Unavailable, &chain(refused), file, refused.fix()),
    }
}

fn vsock(answer: Result<(), Errno>, seccomp: Option<u32>) -> Finding {
    let filter = match seccomp {
        Some(2) => "a seccomp filter is active",
        Some(_) => "no seccomp filter is active",
        None => "whether a seccomp filter is active is not known",
    };
    match answer {
        Ok(()) => fine("vsock", "vsock sockets can be made", format!("socket(AF_VSOCK) succeeds; {filter}")),
        Err(errno @ (Errno::EPERM | Errno::EACCES)) => error(
            "vsock",
            Exit::Unavailable,
            "the pod's seccomp profile forbids vsock sockets",
            format!("socket(AF_VSOCK): {errno}; {filter}"),
            "use deploy/seccomp/enclave-shim.json as the pod's seccompProfile (type Localhost)",
        ),
        Err(errno) => error(
            "vsock",
            Exit::Unavailable,
            "the kernel makes no vsock sockets",
            format!("socket(AF_VSOCK): {errno}; {filter}"),
            "run `modprobe vsock` on the node",
        ),
    }
}

fn cpu_pool(machine: &Snapshot) -> Finding {
    let Some(pool) = &machine.cpus else {
        return warning(
            "cpus",
            "the driver does not say which CPUs are set aside",
            "no /sys/module/nitro_enclaves/parameters/ne_cpus".into(),
            "mount /sys into the pod, or look for the file on the node",
        );
    };
    let evidence = format!("pool {:?}, {} threads a core", pool.ids, pool.threads);
    match pool.check(&Cpus::Count(pool.threads)) {
        Ok(()) => fine("cpus", "CPUs are set aside for enclaves", evidence),
        Err(shortfall) => error("cpus", shortfall.exit(), &shortfall.to_string(), evidence, &shortfall.fix()),
    }
}

fn pages(machine: &Snapshot) -> Finding {
    let shown: Vec<String> = machine.pools.iter().map(free).collect();
    let evidence = match (shown.is_empty(), machine.node) {
        (true, _) => "no pool of 2 MiB pages or larger in /sys/kernel/mm/hugepages".to_owned(),
        (_, Some(node)) => format!("{}; the CPU pool is on NUMA node {node}", shown.join(", ")),
        (_, None) => shown.join(", "),
    };
    let bytes: u64 = machine.pools.iter().map(|pool| pool.free * pool.page.bytes()).sum();
    match bytes {
        LEAST_MEMORY.. => fine("pages", "huge pages are free", evidence),
        _ => error(
            "pages",
            Exit::Resources,
            "fewer huge pages are free than the smallest enclave needs (64 MiB)",
            evidence,
            "set memory_mib in /etc/nitro_enclaves/allocator.yaml on the node and restart the allocator, or end another enclave",
        ),
    }
}

fn free(pool: &Pool) -> String {
    let elsewhere =
        if pool.elsewhere > 0 { format!(" ({} on other nodes)", pool.elsewhere) } else { String::new() };
    format!("{} pages of {} free{elsewhere}", pool.free, pool.page)
}

fn limits(machine: &Snapshot) -> Finding {
    let limited: Vec<(&Pool, u64)> = machine
        .pools
        .iter()
        .filter_map(|pool| pool.limit.map(|limit| (pool, limit.max.saturating_sub(limit.used))))
        .collect();
    if limited.is_empty() {
        return fine(
            "limits",
            "no control group limits huge pages",
            "no hugetlb limit up to the root".into(),
        );
    }
    let shown: Vec<String> = limited
        .iter()
        .map(|(pool, left)| format!("{} MiB left of {} pages", left >> 20, pool.page))
        .collect();
    let left: u64 = limited.iter().map(|(_, left)| left).sum();
    let page = limited.iter().find(|(pool, _)| pool.free > 0).map_or(PageSize::MIB2, |(pool, _)| pool.page);
    match left {
        LEAST_MEMORY.. => fine("limits", "the pod may use huge pages", shown.join(", ")),
        _ => error(
            "limits",
            Exit::Resources,
            "the control group's hugetlb limit is below the smallest enclave (64 MiB)",
            shown.join(", "),
            &format!(
                "set `{}` or more in the container's resources.limits",
                resource_line(page, LEAST_MEMORY)
            ),
        ),
    }
}

/// Huge pages are never swapped and the driver pins them itself: the limit is
/// shown because it is often suspected.
fn locked_memory(limit: Option<u64>) -> Finding {
    let evidence =
        limit.map_or("RLIMIT_MEMLOCK: unlimited".into(), |limit| format!("RLIMIT_MEMLOCK: {limit} bytes"));
    fine("memlock", "the limit on locked memory does not matter to an enclave", evidence)
}

/// What the launch would check of it, and what is known of its kernel.
fn image(seen: &ImageEvidence) -> Finding {
    let path = seen.path.display();
    let image = match &seen.checked {
        Ok(image) => image,
        Err(refused) => {
            let evidence = format!("{path} was read");
            return error("image", refused.exit(), &chain(refused), evidence, &refused.fix());
        }
    };
    let evidence = format!("{path}: {image}");
    let advice = image.advice();
    match advice.is_empty() {
        true => fine("image", "the image can be launched on this architecture", evidence),
        false => warning("image", &advice.join("; "), evidence, "build the image with another kernel"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use nitro_device::Device;

    use super::*;
    use crate::boot::CheckedImage;
    use crate::boot::plan::{CpuPool, Limit};

    fn healthy() -> Evidence {
        let pool = Pool { page: PageSize::MIB2, free: 100, elsewhere: 0, limit: None };
        Evidence {
            device: DeviceEvidence {
                path: PathBuf::from("/dev/nitro_enclaves"),
                open: Ok(()),
                file: Some((true, 0o660, 991)),
                user: 1000,
                groups: vec![991, 1000],
            },
            module: true,
            machine: Snapshot {
                pools: vec![pool],
                cpus: Some(CpuPool { ids: vec![2, 3], threads: 2, stride: 1 }),
                node: None,
            },
            vsock: Ok(()),
            seccomp: Some(0),
            locked_memory: Some(65536),
            kernel: "6.1.0-28-amd64".into(),
            image: None,
        }
    }

    fn denied(errno: Errno) -> nitro_device::DeviceError {
        let mut error = Device::open(Path::new("/nonexistent/device")).unwrap_err();
        error.source = std::io::Error::from_raw_os_error(errno as i32);
        error
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_mend() {
        let findings = judge(&healthy());
        assert!(findings.iter().all(|finding| finding.severity == Severity::Fine), "{findings:?}");
        assert!(findings.iter().all(|finding| !finding.evidence.is_empty() && finding.fix.is_empty()));
    }

    #[test]
    fn every_ailment_has_its_code_evidence_and_fix() {
        type Ail = fn(&mut Evidence);
        let cases: [(&str, Ail, u8, &str, &str); 14] = [
            ("kernel", |seen| seen.kernel = "5.10.0-1".into(), 71, "5.10", "5.14"),
            ("module", |seen| seen.module = false, 69, "/sys/module", "modprobe nitro_enclaves"),
            (
                "device",
                |seen| {
                    (seen.device.open, seen.device.file) =
                        (Device::open(Path::new("/nonexistent/d")).map(drop), None)
                },
                69,
                "missing",
                "enclaves enabled",
            ),
            (
                "device",
                |seen| seen.device.open = Err(denied(Errno::EACCES)),
                69,
                "group 991",
                "`supplementalGroups: [991]`",
            ),
            (
                "device",
                |seen| seen.device.open = Err(denied(Errno::EPERM)),
                69,
                "group 991",
                "resource aws.ec2.nitro/nitro_enclaves",
            ),
            ("device", |seen| seen.device.file = Some((false, 0o644, 0)), 69, "no device", "resource"),
            (
                "vsock",
                |seen| (seen.vsock, seen.seccomp) = (Err(Errno::EPERM), Some(2)),
                69,
                "filter is active",
                "deploy/seccomp/enclave-shim.json",
            ),
            (
                "vsock",
                |seen| seen.vsock = Err(Errno::EACCES),
                69,
                "EACCES",
                "deploy/seccomp/enclave-shim.json",
            ),
            ("vsock", |seen| seen.vsock = Err(Errno::EAFNOSUPPORT), 69, "EAFNOSUPPORT", "modprobe vsock"),
            (
                "cpus",
                |seen| seen.machine.cpus = Some(CpuPool { ids: vec![], threads: 2, stride: 1 }),
                71,
                "pool []",
                "cpu_count",
            ),
            ("pages", |seen| seen.machine.pools[0].free = 31, 71, "31 pages", "memory_mib"),
            ("pages", |seen| seen.machine.pools.clear(), 71, "no pool", "memory_mib"),
            (
                "limits",
                |seen| seen.machine.pools[0].limit = Some(Limit { max: 64 << 20, used: 2 << 20 }),
                71,
                "62 MiB left",
                "`hugepages-2Mi: 64Mi`",
            ),
            (
                "image",
                |seen| {
                    let path = PathBuf::from("/nonexistent/app.eif");
                    let checked = CheckedImage::open(&path, false);
                    seen.image = Some(ImageEvidence { path, checked });
                },
                65,
                "/nonexistent/app.eif",
                "--eif",
            ),
        ];
        for (check, ail, code, evidence, fix) in cases {
            let mut seen = healthy();
            ail(&mut seen);
            let findings = judge(&seen);
            let bad: Vec<_> = findings.iter().filter(|finding| finding.severity != Severity::Fine).collect();
            let [finding] = bad[..] else { panic!("{check}: {bad:?}") };
            assert_eq!((finding.check, finding.exit_code), (check, code), "{finding:?}");
            assert!(finding.evidence.contains(evidence), "{finding:?}");
            assert!(finding.fix.contains(fix), "{finding:?}");
            assert!(!finding.cause.is_empty());
            // What another part of the program says is told in its own section.
            let elsewhere = ["cpus", "image"].contains(&check) || finding.cause.starts_with("cannot open ");
            let told = include_str!("../../docs/operations.md").contains(&format!("`{}`", finding.cause));
            assert!(elsewhere || told, "docs/operations.md does not tell `{}`", finding.cause);
        }
    }
}
