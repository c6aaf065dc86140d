//! Another process by descriptor: its open files, its end, its memory.
//!
//! Needs CAP_SYS_PTRACE over the other process. Sources: pidfd_open(2),
//! pidfd_getfd(2), pidfd_send_signal(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `PIDFD_THREAD` of `linux/pidfd.h` (Linux 6.9).
const PIDFD_THREAD: libc::c_uint = libc::O_EXCL as libc::c_uint;

/// A process or thread that can be named safely after it ended.
#[derive(Debug)]
pub(crate) struct Pidfd {
    fd: OwnedFd,
}

impl Pidfd {
    /// Opens a thread; on kernels without thread pidfds, its process.
    pub(crate) fn of_thread(thread: i32) -> io::Result<Pidfd> {
        match open(thread, PIDFD_THREAD) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                open(crate::sys::process::group_of(thread)?, 0)
            }
            other => other,
        }
    }

    /// Opens a process.
    pub(crate) fn of_process(pid: i32) -> io::Result<Pidfd> {
        open(pid, 0)
    }

    /// A copy of the other's descriptor number `fd` (close-on-exec).
    ///
    /// # Errors
    /// EBADF when it has no such descriptor, ESRCH when it has ended.
    pub(crate) fn take(&self, fd: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory of ours.
        let rc = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.fd.as_raw_fd(), fd, 0) };
        owned(rc)
    }

    /// Sends a signal; an already ended process is no error.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo makes the kernel fill in its own.
        let rc = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), signal as i32, no_info, 0)
        };
        match rc {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open(pid: i32, flags: libc::c_uint) -> io::Result<Pidfd> {
    // SAFETY: pidfd_open takes two integers.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
    Ok(Pidfd { fd: owned(rc)? })
}

fn owned(rc: libc::c_long) -> io::Result<OwnedFd> {
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both callers' system calls return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(rc as i32) })
}
