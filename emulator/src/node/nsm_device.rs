//! What is special inside an enclave: /dev/nsm and reboot.
//!
//! The transport follows drivers/misc/nsm.c: a request of at most 0x1000 bytes,
//! a response cut to the caller's buffer.

use std::sync::Arc;

use nix::sys::stat::fstat;

use super::caller::{Caller, Errno, Outcome};
use super::enclave::Enclave;
use crate::nsm::{REQUEST_MAX, RESPONSE_MAX};

/// `NSM_IOCTL_RAW`: `struct { struct iovec request, response; }`.
pub(super) fn request(caller: &Caller<'_>, enclave: &Arc<Enclave>) -> Result<Outcome, Errno> {
    let stat = fstat(caller.descriptor(0)?)?;
    if Some((stat.st_dev, stat.st_ino)) != enclave.nsm_node {
        return Ok(Outcome::Native);
    }
    let enclave = enclave.clone();
    Ok(Outcome::Later(Box::new(move |caller| exchange(caller, &enclave))))
}

fn exchange(caller: &Caller<'_>, enclave: &Enclave) -> Result<Outcome, Errno> {
    let message = caller.call.args[2];
    let raw: [u8; 32] = caller.array(message)?;
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&raw[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    let (request_address, request_length) = (word(0), word(8));
    let (response_address, room) = (word(16), word(24));
    if request_length > REQUEST_MAX as u64 {
        return Err(Errno(libc::EMSGSIZE));
    }
    let mut request = vec![0; request_length as usize];
    caller.read(request_address, &mut request)?;
    let response = enclave.nsm.serve(&request);
    let length = response.len().min(RESPONSE_MAX).min(room.min(RESPONSE_MAX as u64) as usize);
    caller.write(response_address, &response[..length])?;
    caller.write(message + 24, &(length as u64).to_ne_bytes())?;
    Ok(Outcome::Value(0))
}

/// reboot(magic, magic2, command, argument): the kernel ends a PID namespace
/// by itself, but knows no Ctrl-Alt-Del setting there.
pub(super) fn reboot(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    match caller.call.args[2] as u32 as i32 {
        libc::RB_ENABLE_CAD | libc::RB_DISABLE_CAD => Ok(Outcome::Value(0)),
        _ => Ok(Outcome::Native),
    }
}
