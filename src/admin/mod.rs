//! The admin socket: what operators and scripts ask a running shim, through
//! `enclave-shim describe` and `enclave-shim console`.
//!
//! ```text
//! client ── "describe" ──▶ shim ── "ok", JSON ──────────────────▶ closed
//!        ── "console" ───▶      ── "ok", last lines, then live ──▶ closed at the end
//!                               ── "error: why" ─────────────────▶ closed
//! ```
//! A Unix socket of mode 0600: who may connect is who may signal this process.
//! Nothing can be changed through it.

mod client;
mod server;

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

pub(crate) use client::ask;
pub(crate) use server::{Room, serve};

use crate::exit::{Blame, Exit};

/// Where it is unless `admin.socket` says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/run/enclave-shim/admin.sock";
/// What follows a request's line, when it can be answered.
const OK: &str = "ok";
/// Before the reason why it cannot.
const ERROR: &str = "error: ";

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error("cannot make the directory of the admin socket {}", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("another shim listens on the admin socket {}", .path.display())]
    Taken { path: PathBuf },
    #[error("cannot listen on the admin socket {}", .path.display())]
    Bind { path: PathBuf, source: io::Error },
}

impl Blame for AdminError {
    fn exit(&self) -> Exit {
        Exit::Usage
    }

    fn fix(&self) -> String {
        match self {
            AdminError::Taken { .. } => "give each shim an admin.socket of its own".into(),
            _ => "name a path in a writable directory with admin.socket, e.g. in an emptyDir".into(),
        }
    }
}

/// Listens on `named`, or on the default path if that can be had: a pod with a
/// read-only root need not have a place for it.
///
/// To be called while the process has one thread: it sets the umask.
pub(crate) fn bind(named: Option<&Path>) -> Result<Option<UnixListener>, AdminError> {
    match (named, bind_at(named.unwrap_or(Path::new(DEFAULT_PATH)))) {
        (_, Ok(listener)) => Ok(Some(listener)),
        (Some(_), Err(error)) => Err(error),
        (None, Err(error)) => {
            let reason = crate::exit::chain(&error);
            tracing::info!(reason, "no admin socket; `describe` and `console` will not work");
            Ok(None)
        }
    }
}

fn bind_at(path: &Path) -> Result<UnixListener, AdminError> {
    let fault = |source| AdminError::Bind { path: path.to_owned(), source };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        let made = std::fs::create_dir_all(directory);
        made.map_err(|source| AdminError::Directory { path: path.to_owned(), source })?;
    }
    remove_stale(path)?;
    // Closed to others from its first moment on.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(fault)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(fault)?;
    listener.set_nonblocking(true).map_err(fault)?;
    tracing::info!(socket = %path.display(), "admin socket bound");
    Ok(listener)
}

/// A socket on which nobody listens is what an earlier container left.
fn remove_stale(path: &Path) -> Result<(), AdminError> {
    // Of a file that is no socket connect(2) says the same; bind will refuse it.
    if !std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return Ok(());
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(AdminError::Taken { path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| AdminError::Bind { path: path.to_owned(), source })
        }
        // Nothing there, or nothing of ours: bind will tell.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/admin.sock");
        let first = bind_at(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(bind_at(&path), Err(AdminError::Taken { .. })));
        drop(first);
        bind_at(&path).unwrap();
        let file = directory.path().join("precious");
        std::fs::write(&file, "precious").unwrap();
        assert!(matches!(bind_at(&file), Err(AdminError::Bind { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn every_error_has_its_exit_code_a_cause_and_a_fix() {
        let path = || PathBuf::from("/x/admin.sock");
        let io = || io::Error::from_raw_os_error(30);
        for (error, fix) in [
            (AdminError::Directory { path: path(), source: io() }, "admin.socket"),
            (AdminError::Taken { path: path() }, "of its own"),
            (AdminError::Bind { path: path(), source: io() }, "writable"),
        ] {
            let failure = crate::exit::Failure::from(error);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.explanation.cause.contains("/x/admin.sock"), "{failure:?}");
            assert!(failure.explanation.fix.contains(fix), "{failure:?}");
        }
    }
}
