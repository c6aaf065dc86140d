//! What a workload may do: a container's default capabilities without MKNOD,
//! no new privileges by exec, no vsock.
//!
//! Order: the bounding set while SETPCAP is there, groups and user, the other
//! sets, then the filter. The filter is installed by "no new privileges" and
//! not by SYS_ADMIN: set-user-ID programs in an image therefore gain nothing.

use std::collections::BTreeMap;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use wire::settings::VsockAccess;

use super::identity::Identity;

/// What container runtimes grant to uid 0, without MKNOD.
const GRANTED: [Capability; 13] = [
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

/// Set in the number of a system call of the x32 ABI, which has the same
/// architecture as x86-64 in a filter. Source: Linux `asm/unistd.h`.
#[cfg(target_arch = "x86_64")]
const ABIS: [i64; 2] = [0, 0x4000_0000];
#[cfg(not(target_arch = "x86_64"))]
const ABIS: [i64; 1] = [0];

/// Which right could not be dropped.
#[derive(Debug, thiserror::Error)]
pub(super) enum RightsError {
    /// The user, its group or its supplementary groups.
    #[error("cannot become uid {uid}, gid {gid}")]
    Identity { uid: u32, gid: u32, source: Errno },
    /// Capabilities.
    #[error("cannot limit the {set:?} capabilities")]
    Capabilities { set: CapSet, source: caps::errors::CapsError },
    /// PR_SET_NO_NEW_PRIVS.
    #[error("cannot forbid new privileges")]
    NoNewPrivileges(#[source] Errno),
    /// The kernel lacks seccomp filters, or this program is wrong.
    #[error("cannot install the system call filter (the enclave's kernel needs CONFIG_SECCOMP_FILTER)")]
    Filter(#[source] Box<dyn std::error::Error>),
}

/// Gives up everything that the workload may not have.
pub(super) fn drop_to(identity: &Identity, vsock: VsockAccess) -> Result<(), RightsError> {
    let granted: CapsHashSet = GRANTED.into_iter().collect();
    for capability in caps::runtime::thread_all_supported().difference(&granted) {
        caps::drop(None, CapSet::Bounding, *capability)
            .map_err(|source| RightsError::Capabilities { set: CapSet::Bounding, source })?;
    }
    become_user(identity).map_err(|source| RightsError::Identity {
        uid: identity.uid,
        gid: identity.gid,
        source,
    })?;
    let kept = if identity.uid == 0 { granted } else { CapsHashSet::new() };
    set(CapSet::Inheritable, &CapsHashSet::new())?;
    set(CapSet::Effective, &kept)?;
    set(CapSet::Permitted, &kept)?;
    set_no_new_privs().map_err(RightsError::NoNewPrivileges)?;
    match vsock {
        VsockAccess::Allow => Ok(()),
        VsockAccess::Deny => {
            let filter = filter().map_err(|error| RightsError::Filter(error.into()))?;
            seccompiler::apply_filter(&filter).map_err(|error| RightsError::Filter(error.into()))
        }
    }
}

fn become_user(identity: &Identity) -> nix::Result<()> {
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups)?;
    setgid(Gid::from_raw(identity.gid))?;
    setuid(Uid::from_raw(identity.uid))
}

fn set(set: CapSet, capabilities: &CapsHashSet) -> Result<(), RightsError> {
    caps::set(None, set, capabilities).map_err(|source| RightsError::Capabilities { set, source })
}

/// Refuses `socket(AF_VSOCK, …)` and io_uring, whose rings can open sockets
/// without a system call, with EPERM. Programs of another architecture (32-bit
/// ones) are killed at their first system call: their numbers mean other things.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    // The kernel reads the family as an int: only the lower half of the argument counts.
    let vsock = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_VSOCK as u64)?;
    let mut rules = BTreeMap::new();
    for abi in ABIS {
        rules.insert(abi | libc::SYS_socket, vec![SeccompRule::new(vec![vsock.clone()])?]);
        rules.insert(abi | libc::SYS_io_uring_setup, vec![]);
    }
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture)?.try_into()
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use super::*;

    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;
    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const KILL_PROCESS: u32 = 0x8000_0000;

    /// What the kernel's interpreter does with the instructions of a filter:
    /// load a word of `seccomp_data`, jump, mask, return. Source: Linux `include/uapi/linux/filter.h`.
    fn verdict(number: i64, architecture: u32, argument: u64) -> u32 {
        let mut data = [0u32; 16];
        (data[0], data[1]) = (number as u32, architecture);
        (data[4], data[5]) = (argument as u32, (argument >> 32) as u32);
        let program = filter().unwrap();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let step = &program[at];
            at += 1;
            let jump = |taken| usize::from(if taken { step.jt } else { step.jf });
            match step.code {
                0x20 => accumulator = data[step.k as usize / 4],
                0x54 => accumulator &= step.k,
                0x05 => at += step.k as usize,
                0x15 => at += jump(accumulator == step.k),
                0x25 => at += jump(accumulator > step.k),
                0x35 => at += jump(accumulator >= step.k),
                0x06 => return step.k,
                other => panic!("instruction {other:#x} is not known here"),
            }
        }
    }

    #[test]
    fn vsock_is_refused_in_every_spelling_and_other_sockets_are_not() {
        let vsock = libc::AF_VSOCK as u64;
        for number in [libc::SYS_socket, libc::SYS_socket | 0x4000_0000] {
            assert_eq!(verdict(number, X86_64, vsock), EPERM);
            assert_eq!(verdict(number, X86_64, vsock | 0xdead_beef_0000_0000), EPERM, "upper half");
            for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
                assert_eq!(verdict(number, X86_64, family as u64), ALLOW);
            }
        }
    }

    #[test]
    fn rings_are_refused_and_foreign_architectures_killed() {
        for number in [libc::SYS_io_uring_setup, libc::SYS_io_uring_setup | 0x4000_0000] {
            assert_eq!(verdict(number, X86_64, 8), EPERM);
        }
        assert_eq!(verdict(libc::SYS_read, X86_64, libc::AF_VSOCK as u64), ALLOW);
        // 359 is socket() there, which means something else here.
        assert_eq!(verdict(359, I386, libc::AF_VSOCK as u64), KILL_PROCESS);
    }
}
