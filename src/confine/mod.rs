//! What the shim itself may do: less and less.
//!
//! ```text
//! start ─▶ limit() ─────────────────▶ launch ─▶ seal() ─────────────▶ serve
//!          files of the launch only             no file at all,
//!          (landlock), three capabilities,      no program, no process
//!          no new privileges                    (seccomp, every thread)
//! ```
//! A client that takes this process over finds sockets and nothing else. Both
//! are limits that a process sets itself and cannot lift. A kernel that lacks
//! one costs that layer and a warning, not the launch.

mod syscalls;

use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};
use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::execv;
use serde::Serialize;

use crate::config::Config;

/// What a launch may need when the shim runs as root: files of other users,
/// ports below 1024, more open files than the hard limit.
const KEPT: [Capability; 3] =
    [Capability::CAP_DAC_OVERRIDE, Capability::CAP_NET_BIND_SERVICE, Capability::CAP_SYS_RESOURCE];
/// Read by the launch: the machine, how names are resolved, and the random
/// token where a static libc has no getrandom(2) to be found at run time.
const READ: [&str; 6] = ["/sys", "/proc", "/etc/resolv.conf", "/etc/hosts", "/dev/random", "/dev/urandom"];

/// How far the limits hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Confinement {
    /// `enforced`, `partly` (an older kernel), `missing` (none) or `off`.
    files: &'static str,
    /// What is left until [`seal`] makes it useless.
    capabilities: Vec<String>,
    no_new_privileges: bool,
}

/// Leaves what the launch needs. To be called while the process has one
/// thread: later ones inherit it.
pub(crate) fn limit(config: &Config) -> Confinement {
    if !config.sandbox {
        tracing::warn!("sandbox is off: the shim keeps all its rights");
        return Confinement { files: "off", ..Confinement::default() };
    }
    let no_new_privileges = tell("no new privileges", set_no_new_privs()).is_some();
    let capabilities = tell("capabilities", limit_capabilities()).unwrap_or_default();
    let files = match limit_files(&config.eif, &config.device) {
        Ok(RulesetStatus::FullyEnforced) => "enforced",
        Ok(RulesetStatus::PartiallyEnforced) => "partly",
        Ok(RulesetStatus::NotEnforced) => {
            tracing::warn!(
                "this kernel has no landlock: until the enclave runs, the shim's files are not limited"
            );
            "missing"
        }
        Err(error) => {
            tracing::warn!(%error, "the shim's files cannot be limited");
            "missing"
        }
    };
    let confinement = Confinement { files, capabilities, no_new_privileges };
    tracing::info!(?confinement, "limited to the launch");
    confinement
}

/// Leaves what serving needs, for every thread. The enclave must run.
pub(crate) fn seal(config: &Config) {
    if !config.sandbox {
        return;
    }
    tell("system call filter", syscalls::forbid());
    let probes = probe();
    match probes.iter().find(|probe| probe.outcome != Errno::EPERM.to_string()) {
        None => tracing::info!("sealed: no file, no program, no process from here on"),
        Some(_) => tracing::warn!(?probes, "not sealed: acts that must fail do not"),
    }
}

/// An act that must fail once the shim is sealed, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Probe {
    act: &'static str,
    outcome: String,
}

/// Tries harmless ones of the acts that [`seal`] forbids.
pub(crate) fn probe() -> Vec<Probe> {
    let opened = std::fs::File::open("/proc/self/status").map(drop);
    let outcomes = [
        ("open a file", opened.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))),
        // Without the seal: ENOENT, no such program.
        ("run a program", execv::<&std::ffi::CStr>(c"/nonexistent", &[]).map(drop)),
        ("open a netlink socket", open_socket(AddressFamily::Netlink)),
        ("open a packet socket", open_socket(AddressFamily::Packet)),
    ];
    let told =
        |outcome: Result<(), Errno>| outcome.err().map_or("done".to_owned(), |errno| errno.to_string());
    outcomes.into_iter().map(|(act, outcome)| Probe { act, outcome: told(outcome) }).collect()
}

fn open_socket(family: AddressFamily) -> nix::Result<()> {
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).map(drop)
}

fn limit_files(eif: &Path, device: &Path) -> Result<RulesetStatus, RulesetError> {
    // Rights of later kernels than the running one's are left out by the library.
    let all = AccessFs::from_all(ABI::V5);
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let readable = READ.into_iter().map(Path::new).chain([eif]);
    // Paths that do not exist get no rule; the launch will say so.
    let status = Ruleset::default()
        .handle_access(all)?
        .create()?
        .add_rules(path_beneath_rules(readable, read))?
        .add_rules(path_beneath_rules(
            [device],
            AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        ))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Returns the names of those that are left.
fn limit_capabilities() -> Result<Vec<String>, caps::errors::CapsError> {
    for capability in caps::all().difference(&KEPT.into_iter().collect()) {
        // Needs SETPCAP; what is not permitted below cannot come back anyway.
        let _ = caps::drop(None, CapSet::Bounding, *capability);
    }
    let permitted = caps::read(None, CapSet::Permitted)?;
    let left: CapsHashSet = KEPT.into_iter().filter(|kept| permitted.contains(kept)).collect();
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Effective, &left)?;
    caps::set(None, CapSet::Permitted, &left)?;
    let mut names: Vec<String> = left.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(names)
}

fn tell<T, E: std::fmt::Display>(layer: &str, outcome: Result<T, E>) -> Option<T> {
    outcome.map_err(|error| tracing::warn!(%error, layer, "a limit cannot be set")).ok()
}

#[cfg(test)]
mod tests;
