//! What an image without our agent looks like from outside: its first process
//! reports once to port 9000 of the parent, as AWS's own init does, and ends
//! the enclave when nobody answers. Then it echoes on port 8080.
//!
//! With a file /silent in its ramdisk it never reports.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;

use socket2::{Domain, SockAddr, Socket, Type};

const PARENT: u32 = 3;
const ANY: u32 = u32::MAX;
const HEARTBEAT_PORT: u32 = 9000;
const HEARTBEAT: u8 = 0xB7;
const ECHO_PORT: u32 = 8080;

fn main() -> io::Result<()> {
    let listener = socket()?;
    listener.bind(&SockAddr::vsock(ANY, ECHO_PORT))?;
    listener.listen(128)?;
    if !Path::new("/silent").exists() {
        report()?;
    }
    println!("foreign: up");
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(move || echo(stream));
    }
}

fn socket() -> io::Result<Socket> {
    Socket::new(Domain::VSOCK, Type::STREAM, None)
}

fn report() -> io::Result<()> {
    let mut stream = socket()?;
    stream.connect(&SockAddr::vsock(PARENT, HEARTBEAT_PORT))?;
    stream.write_all(&[HEARTBEAT])?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer != [HEARTBEAT] {
        return Err(io::Error::other(format!("the parent answered {answer:?}")));
    }
    Ok(())
}

/// Until the peer has nothing more to say. Its errors end its own connection only.
fn echo(mut stream: Socket) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
