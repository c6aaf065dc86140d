//! The engine's second half, PID 1 of the enclave: builds the root from the
//! ramdisks and becomes /init.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdout, execve, pivot_root, sethostname};

use super::outside::{NODES, ROOT};
use super::{Args, unpack};
use crate::filter;

const NOTHING: Option<&str> = None;

/// Never returns unless something failed.
pub(super) fn become_init(args: &Args, image: File, control: &UnixStream) -> anyhow::Result<Infallible> {
    set_pdeathsig(Signal::SIGKILL)?;
    root().context("cannot build the enclave's root")?;
    // Outside is out of reach from here on, also for links in the ramdisks.
    for (index, ramdisk) in args.ramdisk.iter().enumerate() {
        unpack::unpack(&image, *ramdisk).with_context(|| format!("ramdisk {index}"))?;
    }
    drop(image);
    if fs::symlink_metadata("/init").is_err() {
        bail!("no /init in the ramdisks");
    }
    sethostname("(none)")?;
    let console = OpenOptions::new().write(true).open("/dev/console").context("cannot open /dev/console")?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    drop(console);
    let listener = filter::for_enclave(args.large_writes).install().context("cannot install the filter")?;
    writeln!(&*control, "listener {}", listener.as_raw_fd())?;
    let mut answer = String::new();
    if BufReader::new(control).read_line(&mut answer)? == 0 {
        bail!("the node went away");
    }
    drop(listener);
    let init = CString::from(c"/init");
    execve(&init, &[&init], &[c"HOME=/", c"TERM=linux"]).context("cannot execute /init")
}

/// What the agent finds mounted, then the pivot into it.
fn root() -> anyhow::Result<()> {
    mount(NOTHING, "/", NOTHING, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NOTHING)?;
    let root = Path::new(ROOT);
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount(Some("rootfs"), root, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    for name in ["dev", "proc", "sys"] {
        fs::create_dir(root.join(name))?;
    }
    let masked = "does the host, or the container this runs in, cover parts of /proc or /sys?";
    mount(Some("proc"), &root.join("proc"), Some("proc"), quiet, NOTHING)
        .with_context(|| format!("cannot mount /proc ({masked})"))?;
    mount(Some("sysfs"), &root.join("sys"), Some("sysfs"), quiet, NOTHING)
        .with_context(|| format!("cannot mount /sys ({masked})"))?;
    dev(&root.join("dev")).context("/dev")?;
    std::env::set_current_dir(root)?;
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot leave the host's root")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

fn dev(dev: &Path) -> anyhow::Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("dev"), dev, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))?;
    for entry in fs::read_dir(NODES)? {
        let entry = entry?;
        let target = dev.join(entry.file_name());
        File::create(&target)?;
        mount(Some(&entry.path()), &target, NOTHING, MsFlags::MS_BIND, NOTHING)
            .with_context(|| entry.path().display().to_string())?;
    }
    for name in ["pts", "shm"] {
        fs::create_dir(dev.join(name))?;
    }
    let options = Some("newinstance,ptmxmode=0666,mode=0620,gid=5");
    mount(Some("devpts"), &dev.join("pts"), Some("devpts"), quiet, options).context("pts")?;
    mount(Some("shm"), &dev.join("shm"), Some("tmpfs"), quiet | MsFlags::MS_NODEV, Some("mode=1777"))?;
    symlink("pts/ptmx", dev.join("ptmx"))?;
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        symlink(format!("/proc/self/fd{target}"), dev.join(name))?;
    }
    Ok(())
}
