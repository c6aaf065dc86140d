//! Who is to blame for a failed command, as the exit code of sysexits.h.

use std::process::ExitCode;

/// Where to look for the mistake. The value is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Blame {
    /// The command line, the environment or the manifest.
    Usage = 64,
    /// What is in an input file: image, kernel, agent, root filesystem.
    Data = 65,
    /// An input file that cannot be opened.
    NoInput = 66,
    /// A registry or daemon that does not answer, or not to the end.
    Unavailable = 69,
    /// The output cannot be created.
    CannotCreate = 73,
    /// The machine: reading or writing failed half way.
    Io = 74,
    /// A registry that wants other credentials.
    NoPermission = 77,
}

impl Blame {
    pub(crate) fn exit_code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
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
        self.blame.exit_code()
    }
}

/// Blames somebody for an error.
pub(crate) trait OrBlame<T> {
    fn or_blame(self, blame: Blame) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrBlame<T> for Result<T, E> {
    fn or_blame(self, blame: Blame) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(blame, error))
    }
}

/// An image is bad, or it cannot be read.
impl From<eif::ImageError> for Failure {
    fn from(error: eif::ImageError) -> Failure {
        let blame = match error {
            eif::ImageError::Open { .. } => Blame::NoInput,
            eif::ImageError::Read { .. } => Blame::Io,
            _ => Blame::Data,
        };
        Failure::new(blame, error)
    }
}
