//! Asks a running shim.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{ERROR, OK};
use crate::exit::{Blame, Exit};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("no shim listens on {}", .path.display())]
    Nobody { path: PathBuf, source: io::Error },
    #[error("the admin socket {} cannot be used", .path.display())]
    Denied { path: PathBuf, source: io::Error },
    #[error("the shim refused: {reason}")]
    Refused { reason: String },
    #[error("the conversation with the shim broke")]
    Broken(#[source] io::Error),
    #[error("the shim closed the connection without an answer")]
    Silent,
}

impl Blame for AskError {
    fn exit(&self) -> Exit {
        match self {
            AskError::Nobody { .. } | AskError::Denied { .. } => Exit::Unavailable,
            AskError::Refused { .. } => Exit::Usage,
            AskError::Broken(_) | AskError::Silent => Exit::EnclaveDied,
        }
    }

    fn fix(&self) -> String {
        match self {
            AskError::Nobody { .. } => "name the running shim's admin.socket with --socket".into(),
            AskError::Denied { .. } => "run this as the user of the shim, or as root".into(),
            AskError::Refused { .. } => "see the cause".into(),
            AskError::Broken(_) | AskError::Silent => "see whether the shim still runs; ask again".into(),
        }
    }
}

/// Writes the answer to `request` into `output` until the shim closes. A reader
/// of the output that has gone ends it without a failure.
pub(crate) fn ask(path: &Path, request: &str, output: &mut impl Write) -> Result<(), AskError> {
    let mut shim = UnixStream::connect(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => AskError::Nobody { path, source },
            _ => AskError::Denied { path, source },
        }
    })?;
    writeln!(shim, "{request}").map_err(AskError::Broken)?;
    let mut answer = BufReader::new(shim);
    let mut line = Vec::new();
    let mut begun = false;
    while answer.read_until(b'\n', &mut line).map_err(AskError::Broken)? > 0 {
        if begun {
            match output.write_all(&line).and_then(|()| output.flush()) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(AskError::Broken)?,
            }
        } else {
            begin(&line)?;
            begun = true;
        }
        line.clear();
    }
    if begun { Ok(()) } else { Err(AskError::Silent) }
}

fn begin(line: &[u8]) -> Result<(), AskError> {
    let line = String::from_utf8_lossy(line);
    match line.trim_end() {
        OK => Ok(()),
        other => Err(AskError::Refused { reason: other.strip_prefix(ERROR).unwrap_or(other).to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_exit_code_a_cause_and_a_fix() {
        let io = || io::Error::from_raw_os_error(13);
        let path = || PathBuf::from("/x/admin.sock");
        for (error, code) in [
            (AskError::Nobody { path: path(), source: io() }, 69),
            (AskError::Denied { path: path(), source: io() }, 69),
            (AskError::Refused { reason: "why".into() }, 64),
            (AskError::Broken(io()), 76),
            (AskError::Silent, 76),
        ] {
            let failure = crate::exit::Failure::from(error);
            assert_eq!(failure.exit.code(), code, "{failure:?}");
            assert!(!failure.explanation.cause.is_empty() && !failure.explanation.fix.is_empty());
        }
    }

    #[test]
    fn a_refusal_is_told_with_its_reason() {
        assert!(begin(b"ok\n").is_ok());
        let refused = begin(b"error: not today\n").unwrap_err();
        assert_eq!(refused.to_string(), "the shim refused: not today");
    }
}
