//! The two ends of every stream: what they send, and what they check.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use super::stream::{HEADER, Play, Stream, byte, mix};
use crate::endpoint::Endpoint;

/// No step of a stream takes longer, or it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
const PIECE: usize = 16 * 1024;
/// First byte of a connection that asks the server for its faults.
const REPORT: u8 = 0xff;

/// What was seen, over all streams.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) streams: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Streams that broke because the enclave was ended under them.
    pub(super) cut: AtomicU64,
    /// Whether that is going to happen any moment, or has.
    pub(super) doomed: AtomicBool,
    faults: Mutex<Vec<String>>,
}

impl Tally {
    pub(super) fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fault(&self, stream: Stream, end: &str, what: &str) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.push(format!("{stream:?}: {end}: {what}"));
    }

    /// Whatever happens, no byte may be wrong and no cut stream look whole.
    fn judge(&self, stream: Stream, end: &str, outcome: io::Result<()>) {
        let Err(error) = outcome else { return };
        let broke =
            !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::TimedOut | ErrorKind::WouldBlock);
        if broke && self.doomed.load(Ordering::SeqCst) {
            self.cut.fetch_add(1, Ordering::Relaxed);
        } else {
            self.fault(stream, end, &error.to_string());
        }
    }
}

/// One stream from its client's end. False if nobody takes it any more.
pub(super) fn client(stream: Stream, to: Endpoint, tally: &Tally) -> bool {
    let dialled = to.dial().map(|socket| TcpStream::from(std::os::fd::OwnedFd::from(socket)));
    let goes_on = dialled.is_ok();
    tally.judge(stream, "client", dialled.and_then(|socket| play(stream, socket, tally)));
    tally.streams.fetch_add(1, Ordering::Relaxed);
    goes_on
}

/// Serves streams for the rest of the process.
pub(super) fn serve(listener: &TcpListener, tally: &Arc<Tally>) {
    for socket in listener.incoming().flatten() {
        let tally = Arc::clone(tally);
        let spawned = thread::Builder::new().stack_size(128 * 1024).spawn(move || server(socket, &tally));
        drop(spawned);
    }
}

/// The faults that the server at the far end has seen, one a line.
pub(super) fn ask_for_faults(to: Endpoint) -> io::Result<String> {
    let mut socket = TcpStream::from(std::os::fd::OwnedFd::from(to.dial()?));
    patient(&socket)?;
    socket.write_all(&[REPORT; HEADER])?;
    let mut report = String::new();
    socket.read_to_string(&mut report)?;
    report.strip_suffix(".").map(str::to_owned).ok_or_else(|| ErrorKind::UnexpectedEof.into())
}

fn play(stream: Stream, mut socket: TcpStream, tally: &Tally) -> io::Result<()> {
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

fn server(mut socket: TcpStream, tally: &Tally) {
    let mut header = [0; HEADER];
    // A client that leaves at once may take its header back.
    if patient(&socket).and_then(|()| socket.read_exact(&mut header)).is_err() {
        return;
    }
    if header == [REPORT; HEADER] {
        // The end mark tells a report without faults from a cut one.
        let _ = write!(socket, "{}.", tally.faults().join("\n"));
        return;
    }
    let Some(stream) = Stream::parse(&header) else {
        let nobody = Stream { play: Play::Whole, seed: 0, up: 0, down: 0 };
        return tally.fault(nobody, "server", &format!("damaged header {header:?}"));
    };
    tally.judge(stream, "server", answer(stream, &mut socket, tally));
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
        Ended::Short(missing) => Err(wrong(format!("lost the last {missing} bytes"))),
    }
}

/// A stream that its sender gave up must end in an error.
fn cut(received: io::Result<Ended>) -> io::Result<()> {
    match received {
        Ok(_) => Err(wrong("a stream that was reset ended cleanly".to_owned())),
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
            return Err(wrong(format!("byte {} is wrong", place + at as u64)));
        }
        place += count as u64;
        if place > length {
            return Err(wrong("more bytes than were sent".to_owned()));
        }
    }
}

/// What must never happen, whatever else does.
fn wrong(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
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
