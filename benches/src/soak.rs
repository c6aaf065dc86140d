//! A soak: many streams through two relays, as through shim and agent, while
//! their ends reset, half-close, stall, trickle and leave early.
//!
//! ```text
//! client ─TCP─▶ relay ─vsock─▶ relay ─TCP─▶ server
//! ```
//! Every byte is a function of its stream and place, so both ends check each
//! one. A cut stream must never look whole. Nothing may be left in the relays.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use socket2::SockRef;

use crate::contender::{Contender, Running, Side};
use crate::endpoint::Endpoint;
use crate::engines::{Engine, Runtime};

/// No step of a stream takes longer, or it hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const HEADER: usize = 25;
const PIECE: usize = 16 * 1024;

/// How long, and how many at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// How long new streams are opened
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Streams at once
    #[arg(long, default_value_t = 48)]
    parallel: usize,
    /// What the relays run
    #[arg(long, value_enum, default_value_t = Engine::BetweenRelays)]
    engine: Engine,
    /// Decides what the streams do
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What a stream's ends do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Play {
    /// Question, half-close, answer, end.
    Whole,
    /// The same, one byte a write.
    Trickle,
    /// The same, but the client does not read for a while.
    Stall,
    /// The server ends its direction first and still gets everything.
    ServerFirst,
    /// The client resets in the middle of its question.
    ClientResets,
    /// The server resets in the middle of its answer.
    ServerResets,
    /// The client closes without reading the answer.
    Leave,
}

const PLAYS: [Play; 7] = [
    Play::Whole,
    Play::Trickle,
    Play::Stall,
    Play::ServerFirst,
    Play::ClientResets,
    Play::ServerResets,
    Play::Leave,
];

/// One stream, as its header says.
#[derive(Debug, Clone, Copy)]
struct Stream {
    play: Play,
    seed: u64,
    up: u64,
    down: u64,
}

impl Stream {
    fn of(seed: u64) -> Stream {
        let play = PLAYS[(mix(seed) % PLAYS.len() as u64) as usize];
        let most = match (play, mix(seed ^ 1) % 20) {
            (Play::Trickle, _) => 300,
            (_, 0) => 4 << 20,
            (_, 1..8) => 1 << 10,
            _ => 200 << 10,
        };
        Stream { play, seed, up: mix(seed ^ 2) % most, down: mix(seed ^ 3) % most }
    }

    fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = PLAYS.iter().position(|play| *play == self.play).unwrap_or(0) as u8;
        header[1..9].copy_from_slice(&self.seed.to_le_bytes());
        header[9..17].copy_from_slice(&self.up.to_le_bytes());
        header[17..25].copy_from_slice(&self.down.to_le_bytes());
        header
    }

    /// None if the header was damaged.
    fn parse(header: &[u8; HEADER]) -> Option<Stream> {
        let mut seed = [0; 8];
        seed.copy_from_slice(&header[1..9]);
        let stream = Stream::of(u64::from_le_bytes(seed));
        (stream.header() == *header).then_some(stream)
    }
}

/// What was seen, over all streams.
#[derive(Debug, Default)]
struct Tally {
    streams: AtomicU64,
    bytes: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Tally {
    fn fault(&self, stream: Stream, end: &str, what: &str) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.push(format!("{stream:?}: {end}: {what}"));
    }
}

pub(crate) fn run(plan: &Plan) -> anyhow::Result<()> {
    let tally = Arc::new(Tally::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = Endpoint::Tcp(listener.local_addr()?);
    let counted = Arc::clone(&tally);
    thread::Builder::new().spawn(move || serve(&listener, &counted))?;

    let ours = Contender::Engine(plan.engine, Runtime::Shared);
    let inner = ours.start(Side::Vsock, server)?;
    let outer = ours.start(Side::Tcp, inner.endpoint)?;
    let before = (descriptors(&inner)?, descriptors(&outer)?);

    let deadline = Instant::now() + Duration::from_secs(plan.seconds);
    let next = AtomicU64::new(mix(plan.seed));
    thread::scope(|scope| {
        for _ in 0..plan.parallel {
            scope.spawn(|| {
                while Instant::now() < deadline {
                    let stream = Stream::of(next.fetch_add(1, Ordering::Relaxed));
                    if let Err(error) = client(stream, outer.endpoint, &tally) {
                        tally.fault(stream, "client", &error.to_string());
                    }
                    tally.streams.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    nothing_left(before, &inner, &outer)?;
    let faults = tally.faults.lock().unwrap_or_else(PoisonError::into_inner);
    for fault in faults.iter().take(20) {
        eprintln!("{fault}");
    }
    let (streams, bytes) = (tally.streams.load(Ordering::Relaxed), tally.bytes.load(Ordering::Relaxed));
    println!("{streams} streams, {} MiB checked, {} faults", bytes >> 20, faults.len());
    if streams == 0 || !faults.is_empty() {
        bail!("the soak failed");
    }
    Ok(())
}

/// Every connection's descriptors are closed again in both relays.
fn nothing_left(before: (usize, usize), inner: &Running, outer: &Running) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = (descriptors(inner)?, descriptors(outer)?);
        if now == before {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the relays had {before:?} descriptors open before and {now:?} after");
        }
        thread::yield_now();
    }
}

fn descriptors(running: &Running) -> anyhow::Result<usize> {
    let pid = running.pid().context("no relay")?;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn client(stream: Stream, to: Endpoint, tally: &Tally) -> io::Result<()> {
    let mut socket = TcpStream::from(std::os::fd::OwnedFd::from(to.dial()?));
    patient(&socket)?;
    socket.write_all(&stream.header())?;
    match stream.play {
        Play::Whole | Play::Trickle | Play::Stall => {
            let step = if stream.play == Play::Trickle { 1 } else { PIECE };
            send(&mut socket, stream.seed, stream.up, step, tally)?;
            socket.shutdown(Shutdown::Write)?;
            if stream.play == Play::Stall {
                thread::sleep(Duration::from_millis(mix(stream.seed ^ 4) % 200));
            }
            whole(receive(&mut socket, !stream.seed, stream.down)?)
        }
        Play::ServerFirst => {
            whole(receive(&mut socket, !stream.seed, stream.down)?)?;
            send(&mut socket, stream.seed, stream.up, PIECE, tally)?;
            socket.shutdown(Shutdown::Write)?;
            // Until the server has everything: an end of stream, or its close.
            socket.read(&mut [0]).map(drop)
        }
        Play::ClientResets => {
            send(&mut socket, stream.seed, stream.up / 2, PIECE, tally)?;
            SockRef::from(&socket).set_linger(Some(Duration::ZERO))
        }
        Play::ServerResets => cut(receive(&mut socket, !stream.seed, stream.down + 1)),
        Play::Leave => send(&mut socket, stream.seed, stream.up, PIECE, tally),
    }
}

fn serve(listener: &TcpListener, tally: &Arc<Tally>) {
    for socket in listener.incoming().flatten() {
        let tally = Arc::clone(tally);
        let spawned = thread::Builder::new().stack_size(128 * 1024).spawn(move || server(socket, &tally));
        drop(spawned);
    }
}

fn server(mut socket: TcpStream, tally: &Tally) {
    let mut header = [0; HEADER];
    // A client that leaves at once may take its header back.
    if patient(&socket).and_then(|()| socket.read_exact(&mut header)).is_err() {
        return;
    }
    let Some(stream) = Stream::parse(&header) else {
        let nobody = Stream { play: Play::Whole, seed: 0, up: 0, down: 0 };
        return tally.fault(nobody, "server", &format!("damaged header {header:?}"));
    };
    if let Err(error) = answer(stream, &mut socket, tally) {
        tally.fault(stream, "server", &error.to_string());
    }
}

fn answer(stream: Stream, socket: &mut TcpStream, tally: &Tally) -> io::Result<()> {
    match stream.play {
        Play::Whole | Play::Trickle | Play::Stall => {
            whole(receive(socket, stream.seed, stream.up)?)?;
            send(socket, !stream.seed, stream.down, PIECE, tally)
        }
        Play::ServerFirst => {
            send(socket, !stream.seed, stream.down, PIECE, tally)?;
            socket.shutdown(Shutdown::Write)?;
            whole(receive(socket, stream.seed, stream.up)?)
        }
        Play::ClientResets => cut(receive(socket, stream.seed, stream.up + 1)),
        Play::ServerResets => {
            send(socket, !stream.seed, stream.down / 2, PIECE, tally)?;
            SockRef::from(&*socket).set_linger(Some(Duration::ZERO))
        }
        // The client is gone: what it sent may come whole or be cut, but not change.
        Play::Leave => {
            let _ = send(socket, !stream.seed, stream.down, PIECE, tally);
            match receive(socket, stream.seed, stream.up) {
                Err(error) if error.kind() == ErrorKind::InvalidData => Err(error),
                _ => Ok(()),
            }
        }
    }
}

/// A receiver's view of a stream that was announced with a length.
enum Ended {
    Complete,
    Short(u64),
}

fn whole(ended: Ended) -> io::Result<()> {
    match ended {
        Ended::Complete => Ok(()),
        Ended::Short(missing) => Err(io::Error::other(format!("lost the last {missing} bytes"))),
    }
}

/// A stream that its sender gave up must end in an error.
fn cut(received: io::Result<Ended>) -> io::Result<()> {
    match received {
        Ok(_) => Err(io::Error::other("a stream that was reset ended cleanly")),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads to the end of stream and compares every byte.
fn receive(socket: &mut TcpStream, seed: u64, length: u64) -> io::Result<Ended> {
    let mut piece = vec![0; PIECE];
    let mut place = 0;
    loop {
        let count = socket.read(&mut piece)?;
        if count == 0 && place == length {
            return Ok(Ended::Complete);
        }
        if count == 0 {
            return Ok(Ended::Short(length - place));
        }
        if let Some(at) = (0..count).find(|&at| piece[at] != byte(seed, place + at as u64)) {
            let place = place + at as u64;
            return Err(io::Error::new(ErrorKind::InvalidData, format!("byte {place} is wrong")));
        }
        place += count as u64;
        if place > length {
            return Err(io::Error::new(ErrorKind::InvalidData, "more bytes than were sent"));
        }
    }
}

fn send(socket: &mut TcpStream, seed: u64, length: u64, step: usize, tally: &Tally) -> io::Result<()> {
    let mut place = 0;
    while place < length {
        let now = (length - place).min(step as u64);
        let piece: Vec<u8> = (place..place + now).map(|place| byte(seed, place)).collect();
        socket.write_all(&piece)?;
        place += now;
        tally.bytes.fetch_add(now, Ordering::Relaxed);
    }
    Ok(())
}

fn patient(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))
}

fn byte(seed: u64, place: u64) -> u8 {
    (mix(seed ^ (place >> 3)) >> ((place & 7) * 8)) as u8
}

/// One step of the splitmix64 generator.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_header_is_noticed() {
        let header = Stream::of(7).header();
        assert!(Stream::parse(&header).is_some());
        for at in 0..HEADER {
            let mut changed = header;
            changed[at] ^= 1;
            assert!(Stream::parse(&changed).is_none(), "byte {at}");
        }
    }

    #[test]
    fn every_play_comes_up() {
        for play in PLAYS {
            assert!((0..100).any(|seed| Stream::of(seed).play == play), "{play:?}");
        }
    }
}
