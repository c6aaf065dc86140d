//! The yardstick: blocking, two threads a connection, 64 KiB buffers, no write cap.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;

use socket2::Socket;

use crate::endpoint::Endpoint;

const BUFFER: usize = 64 * 1024;

/// Relays everything that comes to `listener`, for the rest of the process.
pub(crate) fn run(listener: &Socket, listen: Endpoint, to: Endpoint, vsock_max: usize) -> io::Result<()> {
    let (near_max, far_max) = match listen {
        Endpoint::Vsock { .. } => (vsock_max, BUFFER),
        Endpoint::Tcp(_) => (BUFFER, vsock_max),
    };
    println!("ready");
    loop {
        let (near, _) = listener.accept()?;
        if matches!(listen, Endpoint::Tcp(_)) {
            near.set_tcp_nodelay(true)?;
        }
        thread::Builder::new().spawn(move || {
            // Broken connections are dropped; the peers see that.
            let _ = both(near, to, near_max, far_max);
        })?;
    }
}

fn both(near: Socket, to: Endpoint, near_max: usize, far_max: usize) -> io::Result<()> {
    let near = Arc::new(near);
    let far = Arc::new(to.dial_plainly()?);
    let (reader, writer) = (Arc::clone(&far), Arc::clone(&near));
    let back = thread::Builder::new().spawn(move || one_way(&reader, &writer, near_max))?;
    let forth = one_way(&near, &far, far_max);
    let _ = back.join();
    forth
}

fn one_way(mut from: &Socket, mut to: &Socket, write_max: usize) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        for piece in buffer[..count].chunks(write_max) {
            to.write_all(piece)?;
        }
    }
}
