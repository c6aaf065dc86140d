//! Watches for vsock writes above 32 KiB, which Nitro may corrupt silently
//! (Linux since 6693731487a8, July 2025, sends them as non-linear buffers).
//!
//! [`LargeWrites::Count`] counts them; [`LargeWrites::Corrupt`] also damages
//! what follows the first 32 KiB, so that an end-to-end hash sees it.

use std::os::fd::OwnedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use std::os::fd::{AsFd, AsRawFd};

use serde::{Deserialize, Serialize};

use super::caller::{Caller, Errno, Outcome};
use super::vsock::mark_of;

/// The largest write that Nitro is known to carry unharmed, in bytes.
pub(crate) const SAFE_WRITE: u32 = 32 * 1024;
/// The kernel's own bounds: `UIO_MAXIOV`, and what one write may carry.
const MAX_VECTORS: u64 = 1024;
const MAX_MESSAGES: u64 = 1024;
/// The most that is damaged in one go; a shorter write is a legal answer.
const MAX_DAMAGED: usize = 1 << 20;

/// What happens to a vsock write of more than [`SAFE_WRITE`] bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LargeWrites {
    /// It is counted in stats.json.
    #[default]
    Count,
    /// It is counted and damaged.
    Corrupt,
    /// It is not looked at; nothing slows writes down.
    Off,
}

/// Where a write call keeps its descriptor and its bytes.
enum Payload {
    /// One buffer.
    Buffer { address: u64, length: u64 },
    /// `struct iovec` array.
    Vectors { address: u64, count: u64 },
    /// Not in the caller's memory.
    Moved { length: u64 },
}

/// write, writev, sendto, sendmsg, sendmmsg, splice, sendfile
pub(crate) fn write(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    let target = if caller.call.number == libc::SYS_splice { 2 } else { 0 };
    let fd = caller.descriptor(target)?;
    if mark_of(&fd).is_none() {
        return Ok(Outcome::Native);
    }
    let Some((payload, length)) = largest(caller)? else { return Ok(Outcome::Native) };
    caller.desk.node.stats.count_large_write(caller.desk.member.cid());
    if caller.desk.node.config.large_writes != LargeWrites::Corrupt {
        return Ok(Outcome::Native);
    }
    let bytes = gather(caller, &payload, length)?;
    let Some(bytes) = bytes else { return Ok(Outcome::Native) };
    send_damaged(caller, fd, damaged(bytes))
}

/// The payload of the call if it is too large.
fn largest(caller: &Caller<'_>) -> Result<Option<(Payload, u64)>, Errno> {
    let args = caller.call.args;
    let vectors = |header: u64| -> Result<Payload, Errno> {
        let raw: [u8; 32] = caller.array(header)?; // struct msghdr: name, namelen, iov, iovlen
        Ok(Payload::Vectors { address: word(&raw, 16), count: word(&raw, 24) })
    };
    let payloads = match caller.call.number {
        libc::SYS_write | libc::SYS_sendto => vec![Payload::Buffer { address: args[1], length: args[2] }],
        libc::SYS_writev => vec![Payload::Vectors { address: args[1], count: args[2] }],
        libc::SYS_sendmsg => vec![vectors(args[1])?],
        libc::SYS_sendmmsg => {
            let headers = (0..args[2].min(MAX_MESSAGES)).map(|n| vectors(args[1] + n * 64));
            headers.collect::<Result<_, _>>()?
        }
        libc::SYS_splice => vec![Payload::Moved { length: args[4] }],
        _ => vec![Payload::Moved { length: args[3] }],
    };
    for payload in payloads {
        let length = match &payload {
            Payload::Buffer { length, .. } | Payload::Moved { length } => *length,
            Payload::Vectors { address, count } => {
                lengths(caller, *address, *count)?.iter().map(|(_, length)| *length).sum()
            }
        };
        if length > u64::from(SAFE_WRITE) {
            return Ok(Some((payload, length)));
        }
    }
    Ok(None)
}

fn lengths(caller: &Caller<'_>, address: u64, count: u64) -> Result<Vec<(u64, u64)>, Errno> {
    let mut raw = vec![0; (count.min(MAX_VECTORS) * 16) as usize];
    caller.read(address, &mut raw)?;
    Ok(raw.chunks_exact(16).map(|entry| (word(entry, 0), word(entry, 8))).collect())
}

/// The bytes of the write; `None` where they are not in the caller's memory.
fn gather(caller: &Caller<'_>, payload: &Payload, length: u64) -> Result<Option<Vec<u8>>, Errno> {
    let parts = match payload {
        Payload::Buffer { address, length } => vec![(*address, *length)],
        Payload::Vectors { address, count } => lengths(caller, *address, *count)?,
        Payload::Moved { .. } => return Ok(None),
    };
    let mut bytes = Vec::with_capacity((length as usize).min(MAX_DAMAGED));
    for (address, length) in parts {
        let take = (length as usize).min(MAX_DAMAGED - bytes.len());
        let start = bytes.len();
        bytes.resize(start + take, 0);
        caller.read(address, &mut bytes[start..])?;
    }
    Ok(Some(bytes))
}

/// Repeats the first fragment where the following ones should be, and makes
/// sure that the result differs even if the data repeats itself.
pub(crate) fn damaged(mut bytes: Vec<u8>) -> Vec<u8> {
    let (first, rest) = bytes.split_at_mut(SAFE_WRITE as usize);
    for chunk in rest.chunks_mut(SAFE_WRITE as usize) {
        let same = chunk == &first[..chunk.len()];
        let length = chunk.len();
        chunk.copy_from_slice(&first[..length]);
        if same {
            chunk[0] ^= 0xff;
        }
    }
    bytes
}

fn send_damaged(caller: &Caller<'_>, fd: OwnedFd, bytes: Vec<u8>) -> Result<Outcome, Errno> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match send(fd.as_raw_fd(), &bytes, flags) {
        Ok(count) => Ok(Outcome::Value(count as i64)),
        // The kernel's own call also raises SIGPIPE.
        Err(nix::errno::Errno::EPIPE) => Ok(Outcome::Native),
        Err(nix::errno::Errno::EAGAIN) if blocks(caller, &fd)? => {
            Ok(Outcome::Later(Box::new(move |caller| {
                while caller.waits() {
                    let mut wanted = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut wanted, PollTimeout::from(100u16))?;
                    match send(fd.as_raw_fd(), &bytes, flags) {
                        Ok(count) => return Ok(Outcome::Value(count as i64)),
                        Err(nix::errno::Errno::EPIPE) => return Ok(Outcome::Native),
                        Err(nix::errno::Errno::EAGAIN) => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(Errno(libc::EINTR))
            })))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the call may wait for room.
fn blocks(caller: &Caller<'_>, fd: &OwnedFd) -> Result<bool, Errno> {
    let asked_not_to = match caller.call.number {
        libc::SYS_sendto | libc::SYS_sendmmsg => caller.int(3) & libc::MSG_DONTWAIT != 0,
        libc::SYS_sendmsg => caller.int(2) & libc::MSG_DONTWAIT != 0,
        _ => false,
    };
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL)?;
    Ok(!asked_not_to && flags & libc::O_NONBLOCK == 0)
}

fn word(raw: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&raw[at..at + 8]);
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_keeps_the_length_and_never_misses() {
        for bytes in [vec![0; 65536], (0..100_000u32).map(|n| n as u8).collect(), vec![7; 32769]] {
            let after = damaged(bytes.clone());
            assert_eq!(after.len(), bytes.len());
            assert_eq!(after[..32768], bytes[..32768]);
            assert_ne!(after, bytes);
        }
    }
}
