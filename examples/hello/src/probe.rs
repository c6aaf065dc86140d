//! Tries what an enclave's workload should not be able to do, and tells for
//! each attempt `ok` or the name of the error. What succeeds is undone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::geteuid;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};

/// Every attempt by name, who made it, the entries of /dev, and this process's descriptors.
pub(crate) fn all() -> Value {
    json!({
        "uid": geteuid().as_raw(),
        "vsock": word(vsock()),
        "vsock_device": word(write_to("/dev/vsock")),
        "nsm": word(write_to("/dev/nsm")),
        "pid1_fd": word(open_a_file_of_pid_1()),
        "pid1_root": word(fs::read_dir("/proc/1/root/").map(drop)),
        "pid1_memory": word(write_to("/proc/1/mem")),
        "pid1_pidfd_getfd": word(descriptor_of_pid_1()),
        "mknod": word(null_device()),
        "mount": word(temporary_mount()),
        "io_uring": word(io_uring::IoUring::new(2).map(drop)),
        "core_pattern": word(write_to("/proc/sys/kernel/core_pattern")),
        "sysfs": word(write_to("/sys/kernel/profiling")),
        "devices": names("/dev"),
        "descriptors": names("/proc/self/fd"),
    })
}

fn word(outcome: io::Result<()>) -> String {
    match outcome {
        Ok(()) => "ok".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(errno) => format!("{:?}", Errno::from_raw(errno)),
            None => error.to_string(),
        },
    }
}

fn vsock() -> io::Result<()> {
    Ok(socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map(drop)?)
}

fn write_to(path: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).map(drop)
}

/// Listing the numbers is no attempt: it opens nothing. A socket among them
/// cannot be opened by anybody (ENXIO), hence all are tried, and reading what
/// one is counts too.
fn open_a_file_of_pid_1() -> io::Result<()> {
    let mut outcome = Err(io::ErrorKind::NotFound.into());
    for number in fs::read_dir("/proc/1/fd")? {
        let path = number?.path();
        outcome = fs::read_link(&path).map(drop).or_else(|_| File::open(&path).map(drop));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn descriptor_of_pid_1() -> io::Result<()> {
    let pid_1 = pidfd_open(Pid::INIT, PidfdFlags::empty())?;
    Ok(pidfd_getfd(&pid_1, 2, PidfdGetfdFlags::empty()).map(drop)?)
}

/// The device 1:3, harmless, in the working directory.
fn null_device() -> io::Result<()> {
    let path = Path::new("probed-device");
    mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3))?;
    fs::remove_file(path)
}

fn temporary_mount() -> io::Result<()> {
    mount(Some("tmpfs"), "/proc/self/fdinfo", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    Ok(umount2("/proc/self/fdinfo", MntFlags::MNT_DETACH)?)
}

fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_told_by_the_name_of_its_error() {
        assert_eq!(word(Ok(())), "ok");
        assert_eq!(word(write_to("/no/such/file")), "ENOENT");
        assert!(names("/dev").contains(&"null".to_owned()));
    }
}
