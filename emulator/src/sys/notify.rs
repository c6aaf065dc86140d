//! The supervisor's end of a seccomp listener: take a call, answer it.
//!
//! Sources: `linux/seccomp.h`, seccomp_unotify(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

#[repr(C)]
#[derive(Default)]
struct Notif {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    instruction_pointer: u64,
    args: [u64; 6],
}

#[repr(C)]
struct Response {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}

#[repr(C)]
struct AddFd {
    id: u64,
    flags: u32,
    srcfd: u32,
    newfd: u32,
    newfd_flags: u32,
}

const _: () = assert!(size_of::<Notif>() == 80);
const _: () = assert!(size_of::<Response>() == 24);
const _: () = assert!(size_of::<AddFd>() == 24);

const RECV: libc::c_ulong = 0xC050_2100; // SECCOMP_IOWR(0, struct seccomp_notif)
const SEND: libc::c_ulong = 0xC018_2101; // SECCOMP_IOWR(1, struct seccomp_notif_resp)
const ID_VALID: libc::c_ulong = 0x4008_2102; // SECCOMP_IOW(2, __u64)
const ADDFD: libc::c_ulong = 0x4018_2103; // SECCOMP_IOW(3, struct seccomp_notif_addfd)
const SET_FLAGS: libc::c_ulong = 0x4008_2104; // SECCOMP_IOW(4, __u64)

const FLAG_CONTINUE: u32 = 1;
const ADDFD_FLAG_SEND: u32 = 2;
const SYNC_WAKE_UP: u64 = 1;

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// Names this call to the kernel.
    pub(crate) id: u64,
    /// The calling thread, as this process sees it.
    pub(crate) thread: i32,
    /// System call number.
    pub(crate) number: libc::c_long,
    /// Its arguments.
    pub(crate) args: [u64; 6],
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The kernel runs the call itself.
    Native,
    /// The call returns this value.
    Value(i64),
    /// The call fails with this errno.
    Errno(i32),
}

/// A seccomp listener.
pub(crate) struct Listener {
    fd: OwnedFd,
}

impl Listener {
    /// Wraps the descriptor that installing a filter returned.
    pub(crate) fn new(fd: OwnedFd) -> Listener {
        // SAFETY: SET_FLAGS takes its argument by value. A kernel before 6.6
        // refuses it, which only costs speed.
        let _ = unsafe { libc::ioctl(fd.as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
        Listener { fd }
    }

    /// Takes the next call; blocks unless poll reported one.
    /// `None` when the caller was gone before it could be taken.
    pub(crate) fn receive(&self) -> io::Result<Option<Call>> {
        let mut notif = Notif::default();
        // SAFETY: RECV fills one zeroed `seccomp_notif`; size asserted above.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), RECV, &mut notif) } < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENOENT | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        Ok(Some(Call {
            id: notif.id,
            thread: notif.pid as i32,
            number: notif.number.into(),
            args: notif.args,
        }))
    }

    /// Whether the caller still waits for this call. Check it after reading
    /// from the caller and before believing what was read.
    pub(crate) fn waits(&self, id: u64) -> bool {
        // SAFETY: ID_VALID reads one u64.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), ID_VALID, &id) == 0 }
    }

    /// Answers a call.
    ///
    /// # Errors
    /// ENOENT when the caller no longer waits: it died or took a signal.
    pub(crate) fn reply(&self, id: u64, reply: Reply) -> io::Result<()> {
        let (val, error, flags) = match reply {
            Reply::Native => (0, 0, FLAG_CONTINUE),
            Reply::Value(value) => (value, 0, 0),
            Reply::Errno(errno) => (0, -errno, 0),
        };
        let response = Response { id, val, error, flags };
        // SAFETY: SEND reads one `seccomp_notif_resp`; size asserted above.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), SEND, &response) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Puts a copy of `fd` into the caller and makes its number the call's
    /// result, in one step.
    ///
    /// # Errors
    /// ENOENT when the caller no longer waits, EMFILE when it has no room.
    pub(crate) fn reply_with_fd(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) -> io::Result<()> {
        let newfd_flags = if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 };
        let add = AddFd { id, flags: ADDFD_FLAG_SEND, srcfd: fd.as_raw_fd() as u32, newfd: 0, newfd_flags };
        // SAFETY: ADDFD reads one `seccomp_notif_addfd`; size asserted above;
        // `fd` is open for the duration of the call.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), ADDFD, &add) } {
            rc if rc >= 0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
