//! The kernel's own filesystems.

use std::fs::{DirBuilder, metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::log::{chain, log};

struct Filesystem {
    path: &'static str,
    kind: &'static str,
    options: &'static str,
    flags: MsFlags,
    /// Nothing works without it.
    vital: bool,
}

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// In the order in which they contain each other.
const FILESYSTEMS: [Filesystem; 7] = [
    Filesystem { path: "/proc", kind: "proc", options: "", flags: QUIET, vital: true },
    Filesystem { path: "/sys", kind: "sysfs", options: "", flags: QUIET, vital: false },
    Filesystem {
        path: "/dev",
        kind: "devtmpfs",
        options: "mode=755",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        vital: true,
    },
    Filesystem {
        path: "/dev/pts",
        kind: "devpts",
        options: "newinstance,ptmxmode=0666,mode=620",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        vital: false,
    },
    Filesystem { path: "/dev/shm", kind: "tmpfs", options: "mode=1777", flags: QUIET, vital: false },
    Filesystem { path: "/run", kind: "tmpfs", options: "mode=755", flags: QUIET, vital: false },
    Filesystem { path: "/tmp", kind: "tmpfs", options: "mode=1777", flags: QUIET, vital: false },
];

/// A filesystem that is needed and cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    /// Its directory cannot be made.
    #[error("cannot make {path}")]
    Directory { path: &'static str, source: io::Error },
    /// The kernel refuses it.
    #[error("cannot mount {kind} on {path}")]
    Mount { kind: &'static str, path: &'static str, source: Errno },
}

/// Mounts what is not there yet. What is not vital may be missing, with a line on the console.
pub(super) fn mount_missing() -> Result<(), MountError> {
    for filesystem in &FILESYSTEMS {
        match mount_one(filesystem) {
            Err(error) if filesystem.vital => return Err(error),
            Err(error) => log(&chain(&error)),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn mount_one(&Filesystem { path, kind, options, flags, .. }: &Filesystem) -> Result<(), MountError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|source| MountError::Directory { path, source })?;
    if is_mounted(Path::new(path)) {
        return Ok(());
    }
    mount(Some(kind), path, Some(kind), flags, Some(options)).map_err(|source| MountError::Mount {
        kind,
        path,
        source,
    })
}

/// True when `path` lies on another filesystem than its parent.
fn is_mounted(path: &Path) -> bool {
    let device = |path: &Path| metadata(path).map(|found| found.dev());
    let parent = path.parent().unwrap_or(path);
    matches!((device(path), device(parent)), (Ok(own), Ok(outer)) if own != outer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_told_from_a_directory() {
        assert!(is_mounted(Path::new("/proc")));
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_mounted(directory.path().join("missing").as_path()));
        std::fs::create_dir(directory.path().join("plain")).unwrap();
        assert!(!is_mounted(directory.path().join("plain").as_path()));
    }
}
