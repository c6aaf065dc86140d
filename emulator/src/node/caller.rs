//! One waiting system call: its caller's memory and descriptors, and what a
//! handler may answer.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use socket2::Socket;

use super::supervisor::Desk;
use crate::sys::notify::Call;
use crate::sys::pidfd::Pidfd;

/// An errno to fail with; driver errors 256 to 275 included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub i32);

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<nix::errno::Errno> for Errno {
    fn from(error: nix::errno::Errno) -> Errno {
        Errno(error as i32)
    }
}

/// How a call ends.
pub(crate) enum Outcome {
    /// Not about us: the kernel runs it.
    Native,
    /// Returns a value.
    Value(i64),
    /// Returns a new descriptor.
    Descriptor { fd: OwnedFd, close_on_exec: bool },
    /// Returns a connection of the listener with this cookie; when the caller is
    /// gone the next accept gets it.
    Accepted { listener: u64, socket: Socket, close_on_exec: bool },
    /// The socket with this cookie is connected; when a signal took the caller
    /// out of its call, the repeated call succeeds.
    Connected { cookie: u64 },
    /// May block: goes on in a thread of its own.
    Later(Job),
}

/// The rest of a call that may block.
pub(crate) type Job = Box<dyn FnOnce(&Caller<'_>) -> Result<Outcome, Errno> + Send>;

/// A thread that waits for its system call to be answered.
pub(crate) struct Caller<'a> {
    /// Where the call arrived.
    pub(crate) desk: &'a Desk,
    /// The call.
    pub(crate) call: Call,
    /// The calling thread.
    pub(crate) pidfd: Arc<Pidfd>,
}

impl Caller<'_> {
    /// Argument `index` as the 32 bits that the kernel's prototypes take.
    pub(crate) fn int(&self, index: usize) -> i32 {
        self.call.args[index] as i32
    }

    /// A copy of the caller's descriptor in argument `index`.
    pub(crate) fn descriptor(&self, index: usize) -> Result<OwnedFd, Errno> {
        Ok(self.pidfd.take(self.int(index))?)
    }

    /// Whether the caller still waits.
    pub(crate) fn waits(&self) -> bool {
        self.desk.listener.waits(self.call.id)
    }

    /// Reads the caller's memory; EFAULT unless all of it is there.
    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        if into.is_empty() {
            return Ok(());
        }
        let remote = RemoteIoVec { base: address as usize, len: into.len() };
        let wanted = into.len();
        let pid = Pid::from_raw(self.call.thread);
        match process_vm_readv(pid, &mut [IoSliceMut::new(into)], &[remote]) {
            Ok(count) if count == wanted => Ok(()),
            _ => Err(Errno(libc::EFAULT)),
        }
    }

    /// Reads an array of bytes.
    pub(crate) fn array<const N: usize>(&self, address: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes the caller's memory; EFAULT unless all of it is writable.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() {
            return Ok(());
        }
        let remote = RemoteIoVec { base: address as usize, len: bytes.len() };
        match process_vm_writev(Pid::from_raw(self.call.thread), &[IoSlice::new(bytes)], &[remote]) {
            Ok(count) if count == bytes.len() => Ok(()),
            _ => Err(Errno(libc::EFAULT)),
        }
    }

    /// Writes a value the way `move_addr_to_user` does: as much as the caller's
    /// length allows, then the true length.
    pub(crate) fn write_sized(&self, address: u64, length_address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let room = i32::from_ne_bytes(self.array(length_address)?);
        let room = usize::try_from(room).map_err(|_| Errno(libc::EINVAL))?;
        self.write(address, &bytes[..room.min(bytes.len())])?;
        self.write(length_address, &(bytes.len() as u32).to_ne_bytes())
    }
}
