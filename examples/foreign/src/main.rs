//! What an image without our agent looks like from outside: its first process
//! reports once to port 9000 of the parent, as AWS's own init does, and ends
//! the enclave when nobody answers. Then it echoes on port 8080, and carries on
//! port 8081: the first four bytes of a connection are a port of the parent, and
//! what follows goes there and back.
//!
//! With a file /silent in its ramdisk it never reports.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::thread;

use socket2::{Domain, SockAddr, Socket, Type};

const PARENT: u32 = 3;
const ANY: u32 = u32::MAX;
const HEARTBEAT_PORT: u32 = 9000;
const HEARTBEAT: u8 = 0xB7;
const ECHO_PORT: u32 = 8080;
const CARRY_PORT: u32 = 8081;

fn main() -> io::Result<()> {
    let (echoing, carrying) = (listen(ECHO_PORT)?, listen(CARRY_PORT)?);
    if !Path::new("/silent").exists() {
        report()?;
    }
    println!("foreign: up");
    thread::spawn(move || serve(carrying, |stream| drop(carry(stream))));
    serve(echoing, echo)
}

fn listen(port: u32) -> io::Result<Socket> {
    let listener = socket()?;
    listener.bind(&SockAddr::vsock(ANY, port))?;
    listener.listen(128)?;
    Ok(listener)
}

fn serve(listener: Socket, each: fn(Socket)) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(move || each(stream));
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

/// Both ways at once; each direction ends by itself.
fn carry(mut near: Socket) -> io::Result<()> {
    let mut port = [0; 4];
    near.read_exact(&mut port)?;
    let far = socket()?;
    far.connect(&SockAddr::vsock(PARENT, u32::from_be_bytes(port)))?;
    let (back, out) = (far.try_clone()?, near.try_clone()?);
    let returning = thread::spawn(move || pass(back, out));
    pass(near, far);
    // It ends with the far end's stream.
    let _ = returning.join();
    Ok(())
}

fn pass(mut from: Socket, mut to: Socket) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            // Nobody will read the rest: the sender learns it.
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
