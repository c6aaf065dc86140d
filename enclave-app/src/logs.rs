//! The workload's output, line by line, for the shim.
//!
//! ```text
//! stdout ─pipe─▶ pump ─┐
//! stderr ─pipe─▶ pump ─┴─▶ Backlog ─▶ connection ─vsock─▶ shim
//!                            └ full: the oldest lines are dropped and counted
//! ```
//! The workload never waits for a reader: pipes are always emptied. What the
//! shim is not there to take is kept, within a bound. Until a shim has claimed
//! the enclave the output goes to the console too, where other launchers look.

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, watch};
use wire::{LogLine, LogMessage, LogStream};

use crate::claim::{Claim, NotAdmitted, Purpose};
use crate::frames::{Frames, FramesError};

/// Bytes of text, and of what surrounds it, that wait for the shim.
const KEPT: usize = 256 * 1024;
/// What a line costs besides its text.
const LINE_OVERHEAD: usize = 64;
/// Bytes of text in one message; with its envelope well below a frame's limit.
const BATCH: usize = 16 * 1024;
/// Read at once from a pipe.
const PIECE: usize = 16 * 1024;

/// The writing ends, for the launcher.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) stdout: PipeWriter,
    pub(crate) stderr: PipeWriter,
}

/// The reading ends.
#[derive(Debug)]
pub(crate) struct Inputs {
    stdout: PipeReader,
    stderr: PipeReader,
}

/// One pipe for each output.
pub(crate) fn pipes() -> io::Result<(Outputs, Inputs)> {
    let (out_reader, stdout) = io::pipe()?;
    let (err_reader, stderr) = io::pipe()?;
    Ok((Outputs { stdout, stderr }, Inputs { stdout: out_reader, stderr: err_reader }))
}

/// What pumps and connections share.
#[derive(Debug)]
pub(crate) struct Logs {
    claim: Arc<Claim>,
    allowed: bool,
    backlog: Mutex<Backlog>,
    news: Notify,
    /// Number of the connection that is served.
    latest: watch::Sender<u64>,
}

impl Logs {
    /// `allowed` is what the measured settings say.
    pub(crate) fn new(claim: Arc<Claim>, allowed: bool) -> Logs {
        let (backlog, news) = (Mutex::new(Backlog::default()), Notify::new());
        Logs { claim, allowed, backlog, news, latest: watch::Sender::new(0) }
    }

    /// Empties both pipes until their last writer has gone.
    pub(crate) async fn pump(&self, inputs: Inputs) {
        tokio::join!(
            self.pump_one(LogStream::Stdout, inputs.stdout),
            self.pump_one(LogStream::Stderr, inputs.stderr)
        );
        self.lock().ended = true;
        self.news.notify_one();
    }

    async fn pump_one(&self, stream: LogStream, pipe: PipeReader) {
        // A descriptor that is no pipe: cannot be, it was made by `pipes`.
        let Ok(mut pipe) = pipe::Receiver::from_owned_fd(pipe.into()) else { return };
        let (mut cutter, mut piece) = (Cutter::default(), vec![0; PIECE]);
        while let Ok(count @ 1..) = pipe.read(&mut piece).await {
            if !self.claim.is_made() {
                let _ = io::stderr().write_all(&piece[..count]);
            }
            let lines = cutter.push(&piece[..count]);
            self.keep(stream, lines);
        }
        self.keep(stream, cutter.rest());
    }

    fn keep(&self, stream: LogStream, lines: impl IntoIterator<Item = String>) {
        let mut backlog = self.lock();
        for text in lines {
            backlog.push(LogLine { stream, text });
        }
        drop(backlog);
        self.news.notify_one();
    }

    /// Serves one connection until it ends or a newer one replaces it.
    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<(), NotAdmitted> {
        let mut frames = Frames::new(stream);
        self.claim.greet(Purpose::Logs { allowed: self.allowed }, &mut frames).await?;
        let mut latest = self.latest.subscribe();
        self.latest.send_modify(|number| *number += 1);
        let own = *latest.borrow_and_update();
        tokio::select! {
            _ = latest.wait_for(|number| *number != own) => Ok(()),
            ended = self.tell(&mut frames) => Ok(ended?),
        }
    }

    async fn tell<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        frames: &mut Frames<S>,
    ) -> Result<(), FramesError> {
        loop {
            let next = self.lock().next_message();
            if let Some(message) = &next {
                frames.send(message).await?;
            }
            if next == Some(LogMessage::End) {
                // The shim closes; it has nothing to say before.
                return frames.receive::<LogMessage>().await.map(drop);
            }
            if next.is_none() {
                tokio::select! {
                    () = self.news.notified() => {}
                    gone = frames.receive::<LogMessage>() => if gone?.is_none() { return Ok(()) },
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Backlog> {
        // Lines are whole after every push, whoever panicked.
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lines that wait, at most [`KEPT`] bytes of them.
#[derive(Debug, Default)]
struct Backlog {
    lines: VecDeque<LogLine>,
    bytes: usize,
    dropped: u64,
    ended: bool,
}

impl Backlog {
    fn push(&mut self, line: LogLine) {
        self.bytes += cost(&line);
        self.lines.push_back(line);
        while self.bytes > KEPT {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= cost(&oldest);
            self.dropped += 1;
        }
    }

    /// What is to be said next; `None` until there is something.
    fn next_message(&mut self) -> Option<LogMessage> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while let Some(line) = self.lines.front()
            && (lines.is_empty() || bytes + cost(line) <= BATCH)
        {
            bytes += cost(line);
            lines.extend(self.lines.pop_front());
        }
        self.bytes -= bytes;
        match lines.is_empty() {
            false => Some(LogMessage::Lines { dropped: std::mem::take(&mut self.dropped), lines }),
            true => self.ended.then_some(LogMessage::End),
        }
    }
}

fn cost(line: &LogLine) -> usize {
    line.text.len() + LINE_OVERHEAD
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
struct Cutter {
    partial: Vec<u8>,
}

impl Cutter {
    /// The lines that `bytes` complete.
    fn push(&mut self, mut bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        while !bytes.is_empty() {
            let room = LogLine::LONGEST - self.partial.len();
            let within = &bytes[..bytes.len().min(room)];
            let end = within.iter().position(|byte| *byte == b'\n');
            self.partial.extend_from_slice(&within[..end.unwrap_or(within.len())]);
            bytes = &bytes[end.map_or(within.len(), |at| at + 1)..];
            if end.is_some() || self.partial.len() == LogLine::LONGEST {
                lines.push(text(&std::mem::take(&mut self.partial)));
            }
        }
        lines
    }

    /// The line that was never ended.
    fn rest(self) -> Option<String> {
        (!self.partial.is_empty()).then(|| text(&self.partial))
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches('\r').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::duplex;
    use wire::{Greeting, Hello, PROTOCOL, Refusal, SessionToken};

    fn line(text: &str) -> LogLine {
        LogLine { stream: LogStream::Stdout, text: text.to_owned() }
    }

    fn hello() -> Hello {
        Hello { version: PROTOCOL, token: SessionToken::from_random([1; 16]) }
    }

    async fn claimed() -> Arc<Claim> {
        let claim = Arc::new(Claim::default());
        let (near, far) = duplex(1024);
        let mut shim = Frames::new(far);
        shim.send(&hello()).await.unwrap();
        claim.greet(Purpose::Control, &mut Frames::new(near)).await.unwrap();
        claim
    }

    #[test]
    fn a_full_backlog_drops_the_oldest_lines_and_says_how_many() {
        let mut backlog = Backlog::default();
        for number in 0..100_000 {
            backlog.push(line(&number.to_string()));
            assert!(backlog.bytes <= KEPT);
        }
        let Some(LogMessage::Lines { dropped, lines }) = backlog.next_message() else { panic!("no lines") };
        assert_eq!(lines[0].text, dropped.to_string(), "the first line after those that were dropped");
        let mut count = lines.len() as u64;
        while let Some(LogMessage::Lines { dropped: 0, lines }) = backlog.next_message() {
            count += lines.len() as u64;
        }
        assert_eq!(dropped + count, 100_000);
        assert_eq!(backlog.bytes, 0);
    }

    #[tokio::test]
    async fn what_was_written_is_told_in_order_and_then_its_end() {
        let logs = Arc::new(Logs::new(claimed().await, true));
        let (outputs, inputs) = pipes().unwrap();
        (&outputs.stdout).write_all(b"one\ntw").unwrap();
        (&outputs.stdout).write_all(b"o\r\nunfinished").unwrap();
        drop(outputs);
        logs.pump(inputs).await;
        let (near, far) = duplex(64 * 1024);
        let served = Arc::clone(&logs);
        let task = tokio::spawn(async move { served.serve(near).await });
        let mut shim = Frames::new(far);
        shim.send(&hello()).await.unwrap();
        assert!(matches!(shim.receive().await.unwrap(), Some(Greeting::Welcome { .. })));
        let Some(LogMessage::Lines { dropped: 0, lines }) = shim.receive().await.unwrap() else {
            panic!("no lines")
        };
        let texts: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["one", "two", "unfinished"]);
        assert_eq!(shim.receive().await.unwrap(), Some(LogMessage::End));
        drop(shim);
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn settings_that_deny_logs_are_told_so_and_a_stranger_is_not_told_even_that() {
        for (token, refusal) in [(1, Refusal::NotAllowed), (2, Refusal::AlreadyClaimed)] {
            let logs = Logs::new(claimed().await, false);
            let (near, far) = duplex(1024);
            let mut peer = Frames::new(far);
            peer.send(&Hello { version: PROTOCOL, token: SessionToken::from_random([token; 16]) })
                .await
                .unwrap();
            assert!(logs.serve(near).await.is_err());
            assert_eq!(peer.receive().await.unwrap(), Some(Greeting::Refused(refusal)));
        }
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_however_it_is_cut(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), b'a'..=b'z'], 0..20_000),
            cut in 1usize..6000,
        ) {
            let mut cutter = Cutter::default();
            let mut lines: Vec<String> = bytes.chunks(cut).flat_map(|piece| cutter.push(piece)).collect();
            lines.extend(cutter.rest());
            prop_assert!(lines.iter().all(|line| line.len() <= LogLine::LONGEST));
            let letters: Vec<u8> = bytes.into_iter().filter(|byte| *byte != b'\n').collect();
            prop_assert_eq!(lines.concat().into_bytes(), letters);
        }

        #[test]
        fn every_message_fits_a_frame(texts in proptest::collection::vec(".{0,1300}", 0..200)) {
            let mut backlog = Backlog::default();
            for text in &texts {
                for text in Cutter::default().push(format!("{text}\n").as_bytes()) {
                    backlog.push(line(&text));
                }
            }
            while let Some(message) = backlog.next_message() {
                prop_assert!(wire::encode(&message).is_ok());
            }
        }
    }
}
