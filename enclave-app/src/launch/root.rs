//! The workload's root filesystem, in a mount namespace of its own.
//!
//! ```text
//! /            the image's files, without device nodes
//! /dev         a tmpfs with a container's devices: never the enclave's own /dev
//! /proc        the enclave's; settings of the kernel read-only, its memory hidden
//! /sys         the enclave's, read-only
//! /tmp, /run   a tmpfs where the image has the empty directory
//! /run/enclave what the agent shows: its sockets
//! /etc/resolv.conf  the agent's, where the settings allow egress
//! ```
//! uid 0 must find no way out: what is behind these mounts is taken away
//! before the workload starts, because it could otherwise be reached by chroot
//! or mounted again in a user namespace of its own.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, chroot, pivot_root};

/// The agent's directory that a workload may see, and where it sees it.
pub(super) const AGENT_RUN: (&str, &str) = ("/run/workload", "run/enclave");

/// Devices of every container, as far as the kernel has them.
const DEVICES: [&str; 7] = ["null", "zero", "full", "random", "urandom", "tty", "console"];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];
/// uid 0 may write these without any capability, and some of them make the
/// kernel start a program with all rights (core_pattern).
const READ_ONLY: [&str; 5] = ["proc/sys", "proc/sysrq-trigger", "proc/irq", "proc/bus", "proc/fs"];
/// What tells too much about the kernel or about other processes.
const HIDDEN: [&str; 4] = ["proc/kcore", "proc/keys", "proc/timer_list", "proc/sched_debug"];

const DEVICE_FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// What the settings open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    /// /dev/nsm.
    pub(super) nsm: bool,
    /// /dev/vsock.
    pub(super) vsock: bool,
    /// The agent's directory.
    pub(super) agent: bool,
    /// The agent's /etc/resolv.conf.
    pub(super) resolver: bool,
}

/// Which part cannot be built.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootError {
    /// A system call on a mount.
    #[error("cannot {action} {}", .path.display())]
    Mount { action: &'static str, path: PathBuf, source: Errno },
    /// A directory, file or link that a mount needs.
    #[error("cannot make {}", .path.display())]
    Make { path: PathBuf, source: io::Error },
    /// Mounts would go where the link points.
    #[error("{} is a symbolic link or no directory in the image", .path.display())]
    NotADirectory { path: PathBuf },
    /// The kernel's table of mounts.
    #[error("cannot read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
}

impl Root {
    /// Builds the root on `rootfs` and enters it. Changes only this process.
    pub(super) fn enter(&self, rootfs: &Path) -> Result<(), RootError> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(at("leave the mount namespace of", Path::new("/")))?;
        change("separate", Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        bind(rootfs, rootfs, MsFlags::MS_REC)?;
        restrict(rootfs, MsFlags::MS_NODEV)?;
        self.build_dev(rootfs)?;
        build_proc(rootfs)?;
        build_sys(rootfs)?;
        for (name, options) in [("tmp", "mode=1777"), ("run", "mode=755")] {
            if is_empty_directory(&rootfs.join(name)) {
                mount_tmpfs(&rootfs.join(name), QUIET, options)?;
            }
        }
        if self.agent {
            let (agent, workload) = AGENT_RUN;
            make_directory(&rootfs.join("run"), 0o755)?;
            let seen = make_directory(&rootfs.join(workload), 0o755)?;
            bind(Path::new(agent), &seen, MsFlags::empty())?;
            restrict(&seen, MsFlags::MS_RDONLY)?;
        }
        if self.resolver {
            show_resolver(rootfs)?;
        }
        switch(rootfs)
    }

    fn build_dev(&self, rootfs: &Path) -> Result<(), RootError> {
        let dev = make_directory(&rootfs.join("dev"), 0o755)?;
        mount_tmpfs(&dev, DEVICE_FLAGS, "mode=755,size=64k")?;
        let extra = [("nsm", self.nsm), ("vsock", self.vsock)];
        let extra = extra.iter().filter(|(_, open)| *open).map(|(name, _)| *name);
        for name in DEVICES.into_iter().chain(extra) {
            let source = Path::new("/dev").join(name);
            if source.exists() {
                bind_file(&source, &dev.join(name))?;
            }
        }
        for (target, name) in LINKS {
            symlink(target, dev.join(name))
                .map_err(|source| RootError::Make { path: dev.join(name), source })?;
        }
        let pts = make_directory(&dev.join("pts"), 0o755)?;
        let options = "newinstance,ptmxmode=0666,mode=620";
        mount(Some("devpts"), &pts, Some("devpts"), DEVICE_FLAGS, Some(options))
            .map_err(at("mount", &pts))?;
        let shm = make_directory(&dev.join("shm"), 0o1777)?;
        mount_tmpfs(&shm, QUIET | MsFlags::MS_NOEXEC, "mode=1777")
    }
}

/// A link is replaced by a file of its own: what it points to, often a file of
/// the build machine's, would have to be found within this root.
fn show_resolver(rootfs: &Path) -> Result<(), RootError> {
    let seen = make_directory(&rootfs.join("etc"), 0o755)?.join("resolv.conf");
    let make = |source| RootError::Make { path: seen.clone(), source };
    if fs::symlink_metadata(&seen).is_ok_and(|found| !found.is_file()) {
        fs::remove_file(&seen).map_err(make)?;
    }
    File::options().append(true).create(true).open(&seen).map_err(make)?;
    bind(Path::new(super::RESOLV_CONF), &seen, MsFlags::empty())?;
    restrict(&seen, MsFlags::MS_RDONLY)
}

fn build_proc(rootfs: &Path) -> Result<(), RootError> {
    let proc = make_directory(&rootfs.join("proc"), 0o555)?;
    bind_alone(Path::new("/proc"), &proc)?;
    for path in READ_ONLY.map(|path| rootfs.join(path)).iter().filter(|path| path.exists()) {
        bind(path, path, MsFlags::MS_REC)?;
        restrict(path, MsFlags::MS_RDONLY)?;
    }
    for path in HIDDEN.map(|path| rootfs.join(path)).iter().filter(|path| path.exists()) {
        bind(Path::new("/dev/null"), path, MsFlags::empty())?;
    }
    Ok(())
}

fn build_sys(rootfs: &Path) -> Result<(), RootError> {
    let sys = make_directory(&rootfs.join("sys"), 0o555)?;
    bind_alone(Path::new("/sys"), &sys)?;
    restrict(&sys, MsFlags::MS_RDONLY)
}

/// Makes `rootfs` the root, with nothing of the old one behind it.
fn switch(rootfs: &Path) -> Result<(), RootError> {
    chdir(rootfs).map_err(at("enter", rootfs))?;
    match pivot_root(".", ".") {
        // The old root now lies on the new one, at the same place.
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).map_err(at("leave the old root of", rootfs))?,
        // A kernel's initial filesystem is no mount that could be put elsewhere: it is covered instead.
        Err(Errno::EINVAL) => cover_root(rootfs)?,
        Err(error) => return Err(at("make the root of", rootfs)(error)),
    }
    chdir("/").map_err(at("enter", Path::new("/")))
}

fn cover_root(rootfs: &Path) -> Result<(), RootError> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(RootError::Mounts)?;
    for mounted in mounts_outside(&table, rootfs) {
        match umount2(&mounted, MntFlags::MNT_DETACH) {
            // Gone with the mount that contained it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(at("detach", &mounted)(error)),
        }
    }
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(at("cover / by", rootfs))?;
    chroot(".").map_err(at("make the root of", rootfs))
}

/// Mount points that are neither `/` nor below `rootfs`, the latest first.
/// Source: proc(5), /proc/pid/mountinfo, field 5.
fn mounts_outside(table: &str, rootfs: &Path) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut outside: Vec<PathBuf> =
        points.filter(|point| point != Path::new("/") && !point.starts_with(rootfs)).collect();
    outside.reverse();
    outside
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let plain = escapes.iter().fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain));
    PathBuf::from(plain)
}

/// Without the mounts below it where that is allowed: in namespaces that were
/// made with such mounts they may not be uncovered.
fn bind_alone(source: &Path, target: &Path) -> Result<(), RootError> {
    match bind(source, target, MsFlags::empty()) {
        Err(RootError::Mount { source: Errno::EINVAL, .. }) => bind(source, target, MsFlags::MS_REC),
        other => other,
    }
}

fn bind_file(source: &Path, target: &Path) -> Result<(), RootError> {
    File::create_new(target).map_err(|error| RootError::Make { path: target.to_owned(), source: error })?;
    bind(source, target, MsFlags::empty())
}

fn bind(source: &Path, target: &Path, recursive: MsFlags) -> Result<(), RootError> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | recursive, None::<&str>)
        .map_err(at("bind", target))
}

/// Adds flags to a bind mount. Those that it has must be said again: a mount
/// from outside a user namespace may not lose any.
fn restrict(path: &Path, flags: MsFlags) -> Result<(), RootError> {
    let present = statvfs(path).map_err(at("inspect", path))?.flags();
    let kept = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept = kept.iter().filter(|(found, _)| present.contains(*found)).map(|(_, flag)| *flag);
    let flags = kept.fold(flags, MsFlags::union);
    change("restrict", path, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags)
}

fn change(action: &'static str, path: &Path, flags: MsFlags) -> Result<(), RootError> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>).map_err(at(action, path))
}

fn mount_tmpfs(path: &Path, flags: MsFlags, options: &str) -> Result<(), RootError> {
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options)).map_err(at("mount", path))
}

/// A scratch image has none of the directories: they are made.
fn make_directory(path: &Path, mode: u32) -> Result<PathBuf, RootError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Ok(path.to_owned()),
        Ok(_) => return Err(RootError::NotADirectory { path: path.to_owned() }),
        Err(_) => {}
    }
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(|source| RootError::Make { path: path.to_owned(), source })?;
    Ok(path.to_owned())
}

/// What the image put there must stay visible.
fn is_empty_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
        && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn at(action: &'static str, path: &Path) -> impl Fn(Errno) -> RootError {
    move |source| RootError::Mount { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_outside_the_new_root_are_detached_and_inner_ones_first() {
        let table = "\
            21 1 0:1 / / rw - rootfs rootfs rw\n\
            22 21 0:20 / /proc rw,nosuid - proc proc rw\n\
            23 21 0:5 / /dev rw - devtmpfs devtmpfs rw\n\
            24 23 0:21 / /dev/pts rw - devpts devpts rw\n\
            25 21 0:1 /w /workload/rootfs rw - rootfs rootfs rw\n\
            26 25 0:22 / /workload/rootfs/dev rw - tmpfs tmpfs rw\n\
            27 21 0:23 / /mnt\\040a rw - tmpfs tmpfs rw\n";
        let expected = ["/mnt a", "/dev/pts", "/dev", "/proc"].map(PathBuf::from);
        assert_eq!(mounts_outside(table, Path::new("/workload/rootfs")), expected);
    }

    #[test]
    fn a_link_is_no_place_for_a_mount() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("dev");
        symlink("/tmp", &link).unwrap();
        assert!(matches!(make_directory(&link, 0o755), Err(RootError::NotADirectory { .. })));
        assert!(!is_empty_directory(&link));
    }
}
