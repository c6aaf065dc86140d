//! The two ends of a measured connection: a blocking server and client.
//!
//! ```text
//! client sends   'U' n, n bytes      server answers one byte when it has them all
//!                'D' n               server sends n bytes
//!                'P'                 server sends back what comes, to the end
//!                'B'                 server sends one byte and closes
//! ```

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::endpoint::{Endpoint, prepare};

/// What a peer writes at once into a vsock: as the agent in an enclave does.
const VSOCK_PIECE: usize = relay::VSOCK_WRITE_MAX;
/// What a peer writes at once into TCP, and reads at once from either.
const TCP_PIECE: usize = 64 * 1024;
const READ_PIECE: usize = 256 * 1024;

/// Serves on every endpoint for the rest of the process.
pub(crate) fn serve_all(endpoints: &[Endpoint]) -> io::Result<()> {
    let mut threads = Vec::new();
    for &endpoint in endpoints {
        let listener = endpoint.listen()?;
        let accept = move || accept_for_ever(&listener, endpoint);
        threads.push(thread::Builder::new().spawn(accept)?);
    }
    println!("ready");
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn accept_for_ever(listener: &Socket, endpoint: Endpoint) {
    loop {
        // A client that has gone again and a full descriptor table both pass.
        let Ok((socket, _)) = listener.accept() else { continue };
        let served = prepare(&socket, endpoint).and_then(|()| detach(socket, endpoint));
        if let Err(error) = served {
            eprintln!("bench: cannot serve a connection: {error}");
        }
    }
}

/// A thread for one connection. An idle one is 16 KiB of stack.
fn detach(socket: Socket, endpoint: Endpoint) -> io::Result<()> {
    let task = move || {
        // A connection that the client or a contender breaks is that side's to report.
        let _ = answer(socket, endpoint);
    };
    thread::Builder::new().stack_size(64 * 1024).spawn(task).map(drop)
}

fn answer(mut socket: Socket, endpoint: Endpoint) -> io::Result<()> {
    let mut command = [0];
    socket.read_exact(&mut command)?;
    match command[0] {
        b'U' => {
            let length = read_length(&mut socket)?;
            swallow(&mut socket, length)?;
            socket.write_all(b"u")?;
            // Leaves the closing to the client: whoever closes first keeps the port.
            socket.read(&mut command).map(drop)
        }
        b'D' => {
            let length = read_length(&mut socket)?;
            pour(&mut socket, length, endpoint)?;
            socket.read(&mut command).map(drop)
        }
        b'P' => echo(&mut socket),
        _ => socket.write_all(b"b"),
    }
}

fn echo(socket: &mut Socket) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = socket.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        socket.write_all(&buffer[..count])?;
    }
}

/// Which way the bytes of a transfer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// Moves `bytes` over each of `streams` connections; the time from the first
/// byte to the last confirmation.
pub(crate) fn transfer(to: Endpoint, way: Way, streams: usize, bytes: u64) -> io::Result<Duration> {
    let sockets: Vec<Socket> = (0..streams).map(|_| to.dial()).collect::<io::Result<_>>()?;
    let start = Instant::now();
    let threads: Vec<_> = sockets
        .into_iter()
        .map(|mut socket| thread::spawn(move || one_transfer(&mut socket, to, way, bytes).map(|()| socket)))
        .collect();
    let mut kept = Vec::new();
    for thread in threads {
        kept.push(thread.join().map_err(|_| io::Error::other("a transfer panicked"))??);
    }
    Ok(start.elapsed())
}

fn one_transfer(socket: &mut Socket, to: Endpoint, way: Way, bytes: u64) -> io::Result<()> {
    let mut request = vec![if way == Way::Up { b'U' } else { b'D' }];
    request.extend_from_slice(&bytes.to_le_bytes());
    socket.write_all(&request)?;
    match way {
        Way::Up => {
            pour(socket, bytes, to)?;
            socket.read_exact(&mut [0])
        }
        Way::Down => swallow(socket, bytes),
    }
}

/// `rounds` questions of one byte, each with its answer; every round's time, sorted.
pub(crate) fn ping_pong(to: Endpoint, rounds: usize) -> io::Result<Vec<Duration>> {
    let mut socket = to.dial()?;
    socket.write_all(b"P")?;
    let mut times = Vec::with_capacity(rounds);
    // The first rounds find cold caches and sleeping cores.
    for round in 0..rounds + rounds / 10 {
        let start = Instant::now();
        socket.write_all(b"?")?;
        socket.read_exact(&mut [0])?;
        if round >= rounds / 10 {
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    Ok(times)
}

/// Opens, one byte each way, closes; `each` times on each of `parallel` threads.
pub(crate) fn connections(to: Endpoint, parallel: usize, each: usize) -> io::Result<Duration> {
    let start = Instant::now();
    let threads: Vec<_> = (0..parallel)
        .map(|_| {
            thread::spawn(move || -> io::Result<()> {
                for _ in 0..each {
                    let mut socket = to.dial()?;
                    socket.write_all(b"B")?;
                    socket.read_exact(&mut [0])?;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a dialler panicked"))??;
    }
    Ok(start.elapsed())
}

/// Connections that stay open without a word, each having echoed one byte.
pub(crate) fn idle(to: Endpoint, count: usize) -> io::Result<Vec<Socket>> {
    (0..count)
        .map(|_| {
            let mut socket = to.dial()?;
            socket.write_all(b"P")?;
            echoes(&mut socket)?;
            Ok(socket)
        })
        .collect()
}

/// Whether a connection of [`idle`] is still carried.
pub(crate) fn echoes(socket: &mut Socket) -> io::Result<()> {
    socket.write_all(b"!")?;
    socket.read_exact(&mut [0])
}

fn read_length(socket: &mut Socket) -> io::Result<u64> {
    let mut length = [0; 8];
    socket.read_exact(&mut length)?;
    Ok(u64::from_le_bytes(length))
}

fn pour(socket: &mut Socket, bytes: u64, endpoint: Endpoint) -> io::Result<()> {
    let size = match endpoint {
        Endpoint::Tcp(_) => TCP_PIECE,
        Endpoint::Vsock { .. } => VSOCK_PIECE,
    };
    let piece = vec![0x5a; size];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(piece.len() as u64) as usize;
        socket.write_all(&piece[..now])?;
        left -= now as u64;
    }
    Ok(())
}

fn swallow(socket: &mut Socket, bytes: u64) -> io::Result<()> {
    let mut piece = vec![0; READ_PIECE];
    let mut left = bytes;
    while left > 0 {
        let most = left.min(READ_PIECE as u64) as usize;
        let count = socket.read(&mut piece[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= count as u64;
    }
    Ok(())
}
