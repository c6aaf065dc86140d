//! What the kernel's vsock does with the options that its users may set. Needs a
//! kernel with vsock_loopback: scripts/true-vsock.sh boots one and sets TRUE_VSOCK.

#![allow(clippy::unwrap_used)] // a failure here is the test's

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

/// Of `linux/vm_sockets.h`; the default of the last two is 256 KiB.
const BUFFER_SIZE: libc::c_int = 0;
const BUFFER_MIN_SIZE: libc::c_int = 1;
const BUFFER_MAX_SIZE: libc::c_int = 2;
const DEFAULT: u64 = 256 << 10;

fn socket() -> Socket {
    Socket::new(Domain::VSOCK, Type::STREAM, None).unwrap()
}

fn option(socket: &Socket, name: libc::c_int) -> u64 {
    let mut value = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `value`.
    let rc = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::AF_VSOCK, name, (&raw mut value).cast(), &mut length)
    };
    assert_eq!((rc, length), (0, 8), "{}", io::Error::last_os_error());
    value
}

fn set_option(socket: &Socket, name: libc::c_int, value: u64) {
    let length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel reads the eight bytes of `value` and keeps no pointer.
    let rc = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::AF_VSOCK, name, (&raw const value).cast(), length)
    };
    assert_eq!(rc, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_larger_buffer_needs_a_larger_maximum_first_and_says_nothing_without() {
    if std::env::var_os("TRUE_VSOCK").is_none() {
        eprintln!("SKIPPED true_vsock: TRUE_VSOCK is not set (scripts/true-vsock.sh)");
        return;
    }
    let clamped = socket();
    assert_eq!([BUFFER_SIZE, BUFFER_MAX_SIZE].map(|name| option(&clamped, name)), [DEFAULT; 2]);
    set_option(&clamped, BUFFER_SIZE, 4 << 20);
    assert_eq!(option(&clamped, BUFFER_SIZE), DEFAULT, "clamped without an error");

    let raised = socket();
    set_option(&raised, BUFFER_MAX_SIZE, 4 << 20);
    set_option(&raised, BUFFER_SIZE, 4 << 20);
    assert_eq!(option(&raised, BUFFER_SIZE), 4 << 20);
    set_option(&raised, BUFFER_MIN_SIZE, 64 << 10);
    set_option(&raised, BUFFER_SIZE, 1);
    assert_eq!(option(&raised, BUFFER_SIZE), 64 << 10);
}
