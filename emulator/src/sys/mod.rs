//! The system calls that std, nix and socket2 have no safe form of.
//!
//! Unsafe code of the emulator is here and nowhere else: [`seccomp`] installs
//! the filter, [`notify`] answers what it catches, [`pidfd`] borrows another
//! process's descriptors.

pub(crate) mod notify;
pub(crate) mod pidfd;
pub(crate) mod process;
pub(crate) mod seccomp;
