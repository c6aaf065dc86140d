//! The debug console: logged line by line, its end kept for reports.
//!
//! The hypervisor serves it at CID 0, port 10000 + CID, to one reader, for
//! enclaves in debug mode only.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nitro_device::Cid;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::session::dial;

/// Bytes of the console that are kept.
const KEPT: usize = 64 * 1024;
/// A longer line is cut here, so that no enclave makes us hold more.
const LONGEST_LINE: usize = 4 * 1024;
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(50);
/// nitro-cli waits as long for a console.
const GIVE_UP: Duration = Duration::from_secs(20);

/// The last lines of a console.
#[derive(Debug, Clone, Default)]
pub(crate) struct Console {
    kept: Arc<Mutex<Tail>>,
}

impl Console {
    /// The last `count` lines.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        let tail = self.lock();
        tail.lines.iter().skip(tail.lines.len().saturating_sub(count)).cloned().collect()
    }

    /// Reads until the enclave ends or `stop`.
    pub(crate) async fn follow(self, cid: Cid, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.read(cid) => {}
        }
        self.end_line();
    }

    async fn read(&self, cid: Cid) {
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
        loop {
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(count) => self.take(&bytes[..count]),
            }
        }
    }

    fn take(&self, bytes: &[u8]) {
        for line in self.lock().push(bytes) {
            tracing::info!(line, "console");
        }
    }

    fn end_line(&self) {
        let unfinished = !self.lock().partial.is_empty();
        if unfinished {
            self.take(b"\n");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tail> {
        // Lines are whole after every push, whoever panicked.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    bytes: usize,
    partial: Vec<u8>,
}

impl Tail {
    /// Adds bytes and returns the lines that they completed.
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut completed = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.partial.push(byte);
            }
            if byte == b'\n' || self.partial.len() >= LONGEST_LINE {
                let line = printable(&std::mem::take(&mut self.partial));
                completed.push(line.clone());
                self.keep(line);
            }
        }
        completed
    }

    fn keep(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > KEPT {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }
}

/// Control characters could rewrite an operator's terminal.
fn printable(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .trim_end()
        .chars()
        .map(|char| if char.is_control() && char != '\t' { '\u{FFFD}' } else { char })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_arrive_and_terminals_are_safe() {
        let console = Console::default();
        for piece in ["boo", "ting\r\nbad \x1b[2J\n", "last"] {
            console.take(piece.as_bytes());
        }
        console.end_line();
        assert_eq!(console.last(9), ["booting", "bad \u{FFFD}[2J", "last"]);
        assert_eq!(console.last(1), ["last"]);
    }

    #[test]
    fn what_is_kept_is_bounded_whatever_is_sent() {
        let console = Console::default();
        console.take(&vec![b'x'; 10 * KEPT]);
        for number in 0..10_000 {
            console.take(format!("line {number}\n").as_bytes());
        }
        let tail = console.lock();
        assert!(tail.lines.iter().map(String::len).sum::<usize>() <= KEPT);
        assert!(tail.partial.len() < LONGEST_LINE);
        assert_eq!(tail.lines.back().unwrap(), "line 9999");
    }
}
