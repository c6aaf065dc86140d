//! Socket options: level AF_VSOCK, and the SO_DOMAIN that tells what a socket is.
//!
//! Buffer sizes and the connect timeout are remembered and clamped as
//! af_vsock.c does; they change nothing, because the data path is AF_UNIX.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;

use super::caller::{Caller, Errno, Outcome};
use super::vsock::our_socket;

/// `SO_VM_SOCKETS_*` of `linux/vm_sockets.h`.
const BUFFER_SIZE: i32 = 0;
const BUFFER_MIN_SIZE: i32 = 1;
const BUFFER_MAX_SIZE: i32 = 2;
const CONNECT_TIMEOUT: i32 = 6;
const CONNECT_TIMEOUT_NEW: i32 = 8;
/// Sockets whose options are remembered; past this all are forgotten, which
/// only a program that reads options back long after setting them could see.
const REMEMBERED: usize = 4096;

/// The options that were set, by socket cookie.
#[derive(Default)]
pub(crate) struct Options {
    set: Mutex<HashMap<u64, BTreeMap<i32, u64>>>,
}

impl Options {
    fn value(&self, cookie: u64, option: i32) -> u64 {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let known = set.get(&cookie).and_then(|options| options.get(&option));
        known.copied().unwrap_or(match option {
            BUFFER_MIN_SIZE => 128,
            CONNECT_TIMEOUT => 2, // seconds: VSOCK_DEFAULT_CONNECT_TIMEOUT
            _ => 256 * 1024,
        })
    }

    /// How long a connect may take.
    pub(crate) fn connect_timeout(&self, cookie: u64) -> Duration {
        Duration::from_secs(self.value(cookie, CONNECT_TIMEOUT))
    }

    fn remember(&self, cookie: u64, option: i32, value: u64) {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        if set.len() >= REMEMBERED {
            set.clear();
        }
        set.entry(cookie).or_default().insert(option, value);
    }
}

/// getsockopt(fd, level, option, value, length) for level AF_VSOCK or SO_DOMAIN
pub(crate) fn get(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    let Some((fd, _)) = our_socket(caller)? else { return Ok(Outcome::Native) };
    let [value, length] = [caller.call.args[3], caller.call.args[4]];
    let (level, option) = (caller.int(1), caller.int(2));
    let known = &caller.desk.node.options;
    if level == libc::SOL_SOCKET {
        caller.write_sized(value, length, &libc::AF_VSOCK.to_ne_bytes())?;
        return Ok(Outcome::Value(0));
    }
    let cookie = SockRef::from(&fd).cookie()?;
    let bytes = match option {
        BUFFER_SIZE | BUFFER_MIN_SIZE | BUFFER_MAX_SIZE => known.value(cookie, option).to_ne_bytes().to_vec(),
        CONNECT_TIMEOUT | CONNECT_TIMEOUT_NEW => {
            let seconds = known.value(cookie, CONNECT_TIMEOUT);
            [seconds.to_ne_bytes(), 0u64.to_ne_bytes()].concat()
        }
        _ => return Err(Errno(libc::ENOPROTOOPT)),
    };
    let room = u32::from_ne_bytes(caller.array(length)?) as usize;
    if room < bytes.len() {
        return Err(Errno(libc::EINVAL));
    }
    caller.write_sized(value, length, &bytes)?;
    Ok(Outcome::Value(0))
}

/// setsockopt(fd, AF_VSOCK, option, value, length)
pub(crate) fn set(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    let Some((fd, _)) = our_socket(caller)? else { return Ok(Outcome::Native) };
    let (option, address, room) = (caller.int(2), caller.call.args[3], caller.call.args[4] as u32 as usize);
    let known = &caller.desk.node.options;
    let cookie = SockRef::from(&fd).cookie()?;
    if room < 8 {
        return Err(Errno(libc::EINVAL));
    }
    let value = u64::from_ne_bytes(caller.array(address)?);
    match option {
        BUFFER_SIZE => {
            let (low, high) = (known.value(cookie, BUFFER_MIN_SIZE), known.value(cookie, BUFFER_MAX_SIZE));
            known.remember(cookie, BUFFER_SIZE, value.min(high).max(low));
        }
        BUFFER_MIN_SIZE | BUFFER_MAX_SIZE => known.remember(cookie, option, value),
        CONNECT_TIMEOUT | CONNECT_TIMEOUT_NEW => {
            if room < 16 {
                return Err(Errno(libc::EINVAL));
            }
            known.remember(cookie, CONNECT_TIMEOUT, value);
        }
        _ => return Err(Errno(libc::ENOPROTOOPT)),
    }
    Ok(Outcome::Value(0))
}
