//! The last lines of something that goes on for long, bounded in bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that are kept.
pub(crate) const KEPT: usize = 64 * 1024;
/// A longer line is cut here, so that no enclave makes us hold more.
pub(crate) const LONGEST_LINE: usize = 4 * 1024;
/// What a line costs besides its text: empty lines are bounded too.
const LINE_OVERHEAD: usize = 32;

/// The last lines. Copies share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Tail {
    /// Adds a line, which must be [`printable`].
    pub(crate) fn push(&self, line: String) {
        let mut kept = self.lock();
        kept.bytes += line.len() + LINE_OVERHEAD;
        kept.lines.push_back(line);
        while kept.bytes > KEPT {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.len() + LINE_OVERHEAD;
        }
    }

    /// The last `count` lines.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        let kept = self.lock();
        kept.lines.iter().skip(kept.lines.len().saturating_sub(count)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Lines are whole after every push, whoever panicked.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line that is safe to print: control characters could rewrite an
/// operator's terminal.
pub(crate) fn printable(line: &str) -> String {
    line.trim_end()
        .chars()
        .map(|char| if char.is_control() && char != '\t' { '\u{FFFD}' } else { char })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_also_when_lines_are_empty() {
        let tail = Tail::default();
        for number in 0..100_000 {
            tail.push(if number % 2 == 0 { String::new() } else { number.to_string() });
            assert!(tail.lock().bytes <= KEPT && tail.lock().lines.len() <= KEPT / LINE_OVERHEAD);
        }
        assert_eq!(tail.last(1), ["99999"]);
        assert_eq!(tail.last(usize::MAX).len(), tail.lock().lines.len());
    }

    #[test]
    fn terminals_are_safe() {
        assert_eq!(printable("bad \x1b[2J\ttab\r"), "bad \u{FFFD}[2J\ttab");
    }
}
