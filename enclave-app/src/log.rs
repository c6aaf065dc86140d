//! One line a fact, on the console: the only place where an enclave can be
//! seen before its shim has claimed it, and only in debug mode.

use std::io::Write;

/// Writes one line in one call, so that lines of the workload never cut it.
/// A console that is gone must not end PID 1: errors are dropped.
pub(crate) fn log(text: &str) {
    let line = format!("enclave-app: {}\n", text.replace('\n', " "));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
