//! How a command ends: the exit codes of sysexits.h, one line of cause.

use std::process::ExitCode;

/// Who has to act. The value is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Blame {
    /// The command line, the environment or a configuration file.
    Usage = 64,
    /// The node: a directory, a socket or the kernel refuses.
    Node = 71,
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    blame: Blame,
    cause: anyhow::Error,
}

impl Failure {
    pub(crate) fn new(blame: Blame, cause: impl Into<anyhow::Error>) -> Failure {
        Failure { blame, cause: cause.into() }
    }

    /// Prints the whole chain of causes on one line.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("error: {:#}", self.cause);
        ExitCode::from(self.blame as u8)
    }
}

/// What clap has to say. `--help` and `--version` come here as well, and are no errors.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to do when the terminal is gone.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(Blame::Usage as u8) } else { ExitCode::SUCCESS }
}
