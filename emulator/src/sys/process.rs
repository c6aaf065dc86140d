//! What /proc and fork tell about processes.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::unistd::{ForkResult, fork};

/// The process that a thread belongs to.
pub(crate) fn group_of(thread: i32) -> io::Result<i32> {
    let value = status_field(thread, "Tgid:")?;
    value.parse().map_err(|_| io::Error::other(format!("odd Tgid {value:?} of thread {thread}")))
}

/// Whether a thread has capability number `capability` in its effective set.
pub(crate) fn has_capability(thread: i32, capability: u32) -> io::Result<bool> {
    let value = status_field(thread, "CapEff:")?;
    let set = u64::from_str_radix(&value, 16)
        .map_err(|_| io::Error::other(format!("odd CapEff {value:?} of thread {thread}")))?;
    Ok(set & (1 << capability) != 0)
}

fn status_field(thread: i32, name: &str) -> io::Result<String> {
    let status = fs::read_to_string(format!("/proc/{thread}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.map(|value| value.trim().to_owned()).ok_or_else(|| io::Error::other(format!("no {name} in status")))
}

/// Forks a process that has a single thread.
///
/// # Errors
/// `EBUSY` when there are more threads: the child would have a copy of locks
/// that nobody ever releases.
pub(crate) fn fork_single_threaded() -> io::Result<ForkResult> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: this process has one thread (just counted; only that thread, which
    // is here, could start another), so every lock and allocator state is consistent.
    unsafe { fork() }.map_err(io::Error::from)
}

/// Takes over descriptor `fd`, which this program was started with, and keeps
/// it from its own children.
///
/// # Errors
/// EBADF when it is not open; EINVAL for the standard ones. Call it once per
/// descriptor, before anything else is opened.
pub(crate) fn inherited(fd: i32) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: F_SETFD takes integers; a number that is not open fails with EBADF.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is open (just checked) and came from the program that
    // executed this one: nothing here has opened or owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
