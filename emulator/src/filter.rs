//! Which system calls the node answers, as a seccomp filter.
//!
//! What can be told apart by numbers alone is told apart here, so that other
//! programs' calls stay native: 16-byte (or `sockaddr_storage`) addresses,
//! option levels, ioctl numbers, write lengths.

use crate::node::supervisor::{GET_LOCAL_CID, NSM_RAW, RNG_ADD, RNG_COUNT};
use crate::node::writes::{LargeWrites, SAFE_WRITE};
use crate::sys::seccomp::{Action, Filter, Rule, Test};

/// Type and number of the Nitro Enclaves ioctls: 0xAE20 to 0xAE24, whatever size they claim.
const NE_IOCTLS: std::ops::RangeInclusive<u32> = 0xAE20..=0xAE24;
/// `sizeof(struct sockaddr_vm)` and `sizeof(struct sockaddr_storage)`.
const ADDRESS_LENGTHS: [u32; 2] = [16, 128];

/// The filter for a command on the parent instance.
pub(crate) fn for_parent(large_writes: LargeWrites) -> Filter {
    let ioctl =
        NE_IOCTLS.fold(notify(libc::SYS_ioctl), |rule, number| rule.when(&[Test::Masked(1, 0xffff, number)]));
    let ioctl = ioctl.when(&[Test::equals(1, GET_LOCAL_CID)]);
    let mut rules = sockets();
    rules.push(ioctl);
    rules.extend(writes(large_writes));
    Filter::new(&rules)
}

/// The filter for everything inside an enclave.
pub(crate) fn for_enclave(large_writes: LargeWrites) -> Filter {
    let ioctls = [NSM_RAW, RNG_COUNT, RNG_ADD, GET_LOCAL_CID];
    let ioctl = ioctls
        .into_iter()
        .fold(notify(libc::SYS_ioctl), |rule, number| rule.when(&[Test::equals(1, number)]));
    let mut rules = sockets();
    rules.push(ioctl);
    rules.push(notify(libc::SYS_reboot));
    rules.extend(writes(large_writes));
    Filter::new(&rules)
}

fn sockets() -> Vec<Rule> {
    let vsock = libc::AF_VSOCK as u32;
    let addressed = |number| {
        ADDRESS_LENGTHS.into_iter().fold(notify(number), |rule, length| rule.when(&[Test::equals(2, length)]))
    };
    vec![
        notify(libc::SYS_socket).when(&[Test::equals(0, vsock)]),
        addressed(libc::SYS_bind),
        addressed(libc::SYS_connect),
        notify(libc::SYS_accept),
        notify(libc::SYS_accept4),
        notify(libc::SYS_getsockname),
        notify(libc::SYS_getpeername),
        notify(libc::SYS_setsockopt).when(&[Test::equals(1, vsock)]),
        notify(libc::SYS_getsockopt)
            .when(&[Test::equals(1, vsock)])
            .when(&[Test::equals(1, libc::SOL_SOCKET as u32), Test::equals(2, libc::SO_DOMAIN as u32)]),
        // A ring's operations are no system calls; without rings programs use them.
        Rule::new(libc::SYS_io_uring_setup, Action::Fail(libc::ENOSYS as u16)),
    ]
}

fn writes(large_writes: LargeWrites) -> Vec<Rule> {
    if large_writes == LargeWrites::Off {
        return Vec::new();
    }
    let longer = |number, argument| notify(number).when(&[Test::Above(argument, SAFE_WRITE)]);
    vec![
        longer(libc::SYS_write, 2),
        longer(libc::SYS_sendto, 2),
        longer(libc::SYS_splice, 4),
        longer(libc::SYS_sendfile, 3),
        notify(libc::SYS_writev),
        notify(libc::SYS_sendmsg),
        notify(libc::SYS_sendmmsg),
    ]
}

fn notify(number: libc::c_long) -> Rule {
    Rule::new(number, Action::Notify)
}
