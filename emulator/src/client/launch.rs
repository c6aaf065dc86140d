//! Becomes a command that lives on a node.
//!
//! The order matters: the node is started before the mount namespace and the
//! filter are this process's own, or it would inherit both.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use nix::unistd::{Uid, getpid};

use super::devices;
use super::link::Link;
use crate::filter;
use crate::node::control::{Answer, Request};
use crate::node::{Config, ConfigWishes};

/// Tells programs that they run on a node, and on which.
const STATE_VARIABLE: &str = "FAKENITRO_STATE";

/// Options of `fakenitro -- COMMAND`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    node: ConfigWishes,
    /// Leave /dev/nitro_enclaves out, as on an instance without enclave support
    #[arg(long)]
    no_device: bool,
    /// Group that may open /dev/nitro_enclaves (mode 0660)
    #[arg(long, value_name = "GID", default_value_t = 0)]
    device_group: u32,
}

/// The command itself could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot run {command}")]
pub struct NotRun {
    command: String,
    source: io::Error,
}

impl NotRun {
    /// 127 if there is no such command, else 126, as env(1) has it.
    pub fn code(&self) -> u8 {
        if self.source.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

/// Joins the node of `dir`, starting it if need be, and executes `command` in
/// place of this process. Returns only to say why not.
pub fn exec(dir: &Path, options: Options, command: &[OsString]) -> anyhow::Result<()> {
    let Some((program, arguments)) = command.split_first() else { bail!("no command") };
    if let Some(outer) = std::env::var_os(STATE_VARIABLE) {
        return exec_inside(Path::new(&outer), dir, program, arguments);
    }
    if !Uid::effective().is_root() {
        bail!("needs root: filters, device nodes and namespaces are set up (try sudo)");
    }
    let config = Config::new(options.node.clone())?;
    let mut link = Link::or_start(dir, &config)?;
    let Answer::Node(config) = link.ask(&Request::Hello(options.node))? else { bail!("odd answer to hello") };
    let dir = dir.canonicalize()?;
    devices::install(&dir, &config, (!options.no_device).then_some(options.device_group))?;
    let listener = filter::for_parent(config.large_writes).install().map_err(explain)?;
    link.ask(&Request::Join { pid: getpid().as_raw(), listener: listener.as_raw_fd() })?;
    let mut command = Command::new(program);
    run(command.args(arguments).env(STATE_VARIABLE, dir))
}

/// Already on a node: a second filter with a listener is not possible, and
/// for the same node not needed.
fn exec_inside(outer: &Path, dir: &Path, program: &OsString, arguments: &[OsString]) -> anyhow::Result<()> {
    if dir.canonicalize().ok().as_deref() != Some(outer) {
        bail!("already on the node of {}; nodes cannot be nested", outer.display());
    }
    run(Command::new(program).args(arguments))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let source = command.exec();
    let command = command.get_program().to_string_lossy().into_owned();
    Err(NotRun { command, source }.into())
}

fn explain(error: io::Error) -> anyhow::Error {
    let fix = match error.raw_os_error() {
        Some(libc::EBUSY) => {
            "a filter with a listener is already installed (nested fakenitro, or a container runtime's notify agent)"
        }
        Some(libc::EINVAL) => "the kernel is too old: Linux 5.14 or newer is needed",
        Some(libc::EACCES | libc::EPERM) => "CAP_SYS_ADMIN is needed (in a container: --privileged)",
        _ => "is seccomp built into this kernel?",
    };
    anyhow::Error::new(error).context(format!("cannot install the filter: {fix}"))
}

/// Context for a mount that failed.
pub(super) trait MountContext<T> {
    /// Names the mount and what it needs.
    fn mounting(self, what: &str) -> anyhow::Result<T>;
}

impl<T> MountContext<T> for nix::Result<T> {
    fn mounting(self, what: &str) -> anyhow::Result<T> {
        self.with_context(|| {
            format!(
                "cannot set up {what} (CAP_SYS_ADMIN and CAP_MKNOD are needed; in a container: --privileged)"
            )
        })
    }
}
