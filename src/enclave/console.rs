//! The debug console: logged line by line, its end kept for reports.
//!
//! The hypervisor serves it at CID 0, port 10000 + CID, to one reader, for
//! enclaves in debug mode only. Whoever else wants it asks this shim
//! (`enclave-shim console`).

use std::time::Duration;

use nitro_device::Cid;
use tokio::io::AsyncReadExt;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::enclave::session::dial;
use crate::supervisor::Event;
use crate::tail::{LONGEST_LINE, Tail, printable};

const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(50);
/// nitro-cli waits as long for a console.
const GIVE_UP: Duration = Duration::from_secs(20);
/// Lines that a follower may be behind before it misses some.
const FOLLOWERS_LAG: usize = 1024;

/// A console: its last lines, and those to come.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    tail: Tail,
    live: broadcast::Sender<String>,
}

impl Default for Console {
    fn default() -> Console {
        Console { tail: Tail::default(), live: broadcast::Sender::new(FOLLOWERS_LAG) }
    }
}

impl Console {
    /// The last `count` lines.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        self.tail.last(count)
    }

    /// The lines that come from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<String> {
        self.live.subscribe()
    }

    /// Reads until the enclave ends or `stop`. The first byte is a sign of life.
    pub(crate) async fn follow(self, cid: Cid, events: mpsc::Sender<Event>, stop: CancellationToken) {
        let mut cutter = Cutter::default();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.read(cid, &events, &mut cutter) => {}
        }
        self.take(cutter.end_line());
    }

    async fn read(&self, cid: Cid, events: &mpsc::Sender<Event>, cutter: &mut Cutter) {
        let begun = Instant::now();
        let mut stream = loop {
            match dial(Cid::HYPERVISOR, cid.console_port(), DIAL_TIMEOUT).await {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() > GIVE_UP => {
                    tracing::warn!(%error, "the debug console cannot be read");
                    return;
                }
                Err(_) => sleep(RETRY).await,
            }
        };
        let mut bytes = [0; 4096];
        let mut silent = true;
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            if std::mem::take(&mut silent) {
                // The supervisor lives as long as this task.
                let _ = events.send(Event::Contact).await;
            }
            self.take(cutter.push(&bytes[..count]));
        }
    }

    fn take(&self, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            tracing::info!(line, "console");
            self.tail.push(line.clone());
            // An error means that nobody follows.
            let _ = self.live.send(line);
        }
    }
}

/// Cuts bytes into printable lines.
#[derive(Debug, Default)]
struct Cutter {
    partial: Vec<u8>,
}

impl Cutter {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut completed = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.partial.push(byte);
            }
            if byte == b'\n' || self.partial.len() >= LONGEST_LINE {
                completed.push(printable(&String::from_utf8_lossy(&std::mem::take(&mut self.partial))));
            }
        }
        completed
    }

    fn end_line(&mut self) -> Vec<String> {
        if self.partial.is_empty() { Vec::new() } else { self.push(b"\n") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::KEPT;

    fn take(console: &Console, cutter: &mut Cutter, bytes: &[u8]) {
        console.take(cutter.push(bytes));
    }

    #[test]
    fn lines_are_whole_however_they_arrive_and_terminals_are_safe() {
        let (console, mut cutter) = (Console::default(), Cutter::default());
        for piece in ["boo", "ting\r\nbad \x1b[2J\n", "last"] {
            take(&console, &mut cutter, piece.as_bytes());
        }
        console.take(cutter.end_line());
        assert_eq!(console.last(9), ["booting", "bad \u{FFFD}[2J", "last"]);
        assert_eq!(console.last(1), ["last"]);
    }

    #[test]
    fn what_is_kept_is_bounded_whatever_is_sent() {
        let (console, mut cutter) = (Console::default(), Cutter::default());
        take(&console, &mut cutter, &vec![b'x'; 10 * KEPT]);
        take(&console, &mut cutter, &vec![0xff; KEPT]);
        for number in 0..10_000 {
            take(&console, &mut cutter, format!("line {number}\n").as_bytes());
        }
        let lines = console.last(usize::MAX);
        assert!(lines.iter().map(String::len).sum::<usize>() <= KEPT);
        assert!(cutter.partial.len() < LONGEST_LINE);
        assert_eq!(lines.last().unwrap(), "line 9999");
    }

    #[test]
    fn a_follower_hears_what_comes_and_a_slow_one_stops_nobody() {
        let (console, mut cutter) = (Console::default(), Cutter::default());
        let mut follower = console.subscribe();
        take(&console, &mut cutter, b"one\n");
        assert_eq!(follower.try_recv().unwrap(), "one");
        for _ in 0..2 * FOLLOWERS_LAG {
            take(&console, &mut cutter, b"more\n");
        }
        assert!(matches!(follower.try_recv(), Err(broadcast::error::TryRecvError::Lagged(_))));
    }
}
