//! The command's view of /dev and /sys/module, in a mount namespace of its own.
//!
//! /dev becomes a tmpfs with a node of the same number for every host device
//! and bind mounts for the rest, plus `nitro_enclaves` and `vsock`. Those two
//! are nodes of a harmless driver: opening them is native, with the kernel's
//! own permission checks, and their ioctls are what the filter catches.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, chown, symlink};
use std::path::Path;

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};

use super::launch::MountContext;
use crate::node::{Config, STAND_IN};

const NOTHING: Option<&str> = None;
const MODULES: &str = "/sys/module";

/// Replaces /dev and /sys/module for this process and its children. Without
/// a group it is an instance without enclave support. `state` lends two
/// directories to mount on; what is mounted there is invisible outside.
pub(super) fn install(state: &Path, config: &Config, device_group: Option<u32>) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).mounting("a mount namespace")?;
    // Mounts of the host still appear here; ours never appear there.
    mount(NOTHING, "/", NOTHING, MsFlags::MS_SLAVE | MsFlags::MS_REC, NOTHING).mounting("slave mounts")?;
    let before = umask(Mode::empty());
    let staging = state.join("mount");
    let result = directory(&staging).and_then(|()| {
        dev(&staging, device_group)?;
        if device_group.is_some() { modules(state, &staging, config) } else { Ok(()) }
    });
    umask(before);
    result
}

fn dev(staging: &Path, device_group: Option<u32>) -> anyhow::Result<()> {
    mount(Some("fakenitro"), staging, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))
        .mounting("/dev")?;
    for entry in fs::read_dir("/dev").context("cannot read /dev")? {
        let entry = entry?;
        if !matches!(entry.file_name().to_str(), Some("nitro_enclaves" | "vsock")) {
            copy(&entry.path(), &staging.join(entry.file_name()))
                .with_context(|| format!("cannot carry {} over", entry.path().display()))?;
        }
    }
    node(&staging.join("vsock"), 0o666, 0)?;
    if let Some(group) = device_group {
        node(&staging.join("nitro_enclaves"), 0o660, group)?;
    }
    mount(Some(staging), "/dev", NOTHING, MsFlags::MS_MOVE, NOTHING).mounting("/dev")
}

fn node(path: &Path, mode: u32, group: u32) -> anyhow::Result<()> {
    let (major, minor) = STAND_IN;
    let mode = Mode::from_bits_truncate(mode);
    mknod(path, SFlag::S_IFCHR, mode, makedev(major, minor)).mounting("a device node")?;
    Ok(chown(path, Some(0), Some(group))?)
}

/// One entry of the host's /dev.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    let kind = meta.file_type();
    if kind.is_symlink() {
        return Ok(symlink(fs::read_link(from)?, to)?);
    }
    if kind.is_char_device() || kind.is_block_device() {
        let kind = if kind.is_char_device() { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
        mknod(to, kind, Mode::from_bits_truncate(meta.mode()), meta.rdev()).mounting("a device node")?;
        return Ok(chown(to, Some(meta.uid()), Some(meta.gid()))?);
    }
    bind(from, to)
}

/// Shows `from` at `to`, with everything that is mounted below it.
fn bind(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        fs::create_dir(to)?
    } else {
        fs::write(to, "")?
    }
    mount(Some(from), to, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING).mounting("a bind mount")
}

/// Adds the driver's parameters to /sys/module.
fn modules(state: &Path, staging: &Path, config: &Config) -> anyhow::Result<()> {
    let ours = state.join("module");
    let parameters = ours.join("nitro_enclaves/parameters");
    directory(&parameters)?;
    show_pool(state, &parameters.join("ne_cpus"), &format!("{}\n", config.cpu_pool))?;
    let Some(layer) = ours.to_str().filter(|path| !path.contains([':', ',', '\\'])) else {
        bail!("state directory {} must not have ':', ',' or '\\' in its path", state.display());
    };
    let layers = format!("lowerdir={layer}:{MODULES}");
    if mount(Some("fakenitro"), MODULES, Some("overlay"), MsFlags::MS_RDONLY, Some(layers.as_str())).is_ok() {
        return Ok(());
    }
    // A kernel without overlay: the same by hand.
    mount(Some("fakenitro"), staging, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))
        .mounting(MODULES)?;
    for entry in fs::read_dir(MODULES).context("cannot read /sys/module")? {
        let entry = entry?;
        if entry.file_name() != "nitro_enclaves" {
            bind(&entry.path(), &staging.join(entry.file_name()))?;
        }
    }
    bind(&ours.join("nitro_enclaves"), &staging.join("nitro_enclaves"))?;
    mount(Some(staging), MODULES, NOTHING, MsFlags::MS_MOVE, NOTHING).mounting(MODULES)
}

/// Other commands of the node read the file meanwhile: it is never seen empty.
fn show_pool(state: &Path, path: &Path, pool: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|shown| shown == pool) {
        return Ok(());
    }
    let whole = state.join(format!("ne_cpus.{}", std::process::id()));
    fs::write(&whole, pool)?;
    fs::rename(whole, path)
}

fn directory(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}
