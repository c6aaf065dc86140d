//! Starts the workload with a container's rights and no more.
//!
//! ```text
//! agent ── /proc/self/exe ──▶ launcher: root ─▶ user ─▶ rights ─▶ exec ──▶ workload
//!   ▲                             │ failed                │
//!   └──── report pipe ◀── code, cause       closed by exec ┘ (nothing said: launched)
//! ```
//!
//! The launcher is this program again, in a process of its own with one thread:
//! it may change its own namespaces and rights without unsafe code between
//! fork and exec. It reads the same measured settings as the agent.

mod identity;
mod program;
mod rights;
mod root;

use std::fs::File;
use std::io::{self, PipeReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, dup2_stdin, fchown, fchownat};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use wire::settings::{NsmAccess, Ready, Settings, SettingsError, VsockAccess};

use crate::environment::Environment;
use crate::log::{chain, log};
use crate::logs::Outputs;
use identity::{Identity, IdentityError};
use program::ProgramError;
use rights::RightsError;
use root::{Root, RootError};

/// First argument of a launcher; settings and root filesystem follow.
pub(crate) const MODE: &str = "launch-workload";
/// Where the agent binds the workload's notify socket; see [`root::AGENT_RUN`].
pub(crate) const NOTIFY_PATH: &str = "/run/workload/notify.sock";
/// Where the agent binds the socket on which the workload asks the NSM; the
/// workload sees it at /run/enclave/agent.sock.
pub(crate) const LOCAL_PATH: &str = "/run/workload/agent.sock";
/// The notify socket as the workload sees it.
const NOTIFY_SEEN: &str = "/run/enclave/notify.sock";

/// The workload's /etc/resolv.conf, where the settings allow egress.
pub(crate) const RESOLV_CONF: &str = "/run/egress/resolv.conf";

/// Longest cause that is read.
const MAX_CAUSE: u64 = 4096;
/// As container runtimes say it when it is not the program's fault.
const CANNOT_PREPARE: u8 = 125;
/// What is made here, and by the workload unless it says otherwise, others may not write.
pub(crate) const UMASK: Mode = Mode::S_IWGRP.union(Mode::S_IWOTH);
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A launcher at work. It becomes the workload or ends.
pub(crate) struct Launcher {
    /// Of the launcher, then of the workload; leader of its own process group.
    pub(crate) pid: Pid,
    /// What it says.
    pub(crate) report: Report,
}

/// The reading end of the launcher's report.
pub(crate) struct Report(PipeReader);

/// Starts the launcher. Its end, or the workload's, is taken by [`crate::children`].
/// Without `outputs` it writes to the console. The pod's variables travel in
/// the launcher's own environment.
pub(crate) fn start(
    settings: &Path,
    rootfs: &Path,
    outputs: Option<Outputs>,
    pod: &Environment,
) -> io::Result<Launcher> {
    let (report, said) = io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    if let Some(Outputs { stdout, stderr }) = outputs {
        command.stdout(stdout).stderr(stderr);
    }
    let child = command
        .arg0("launcher")
        .arg(MODE)
        .args([settings, rootfs])
        .env_clear()
        .envs(pod.variables().map(|(name, value)| (name, value)))
        // The one descriptor besides the console that a child can be given.
        .stdin(Stdio::from(OwnedFd::from(said)))
        .process_group(0)
        .spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok(Launcher { pid: Pid::from_raw(pid), report: Report(report) })
}

impl Report {
    /// Waits until the launcher is the workload, or says why not.
    pub(crate) async fn read(self) -> Result<(), String> {
        let unreadable = |error: io::Error| format!("cannot read the launcher's report: {error}");
        let report = pipe::Receiver::from_owned_fd(self.0.into()).map_err(unreadable)?;
        let mut cause = Vec::new();
        report.take(MAX_CAUSE).read_to_end(&mut cause).await.map_err(unreadable)?;
        if cause.is_empty() { Ok(()) } else { Err(String::from_utf8_lossy(&cause).into_owned()) }
    }
}

/// Why the workload cannot be started.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("cannot prepare the workload's standard input")]
    Input(#[source] io::Error),
    #[error("cannot give the agent's socket {LOCAL_PATH} to the workload's user")]
    Local(#[source] Errno),
    #[error("cannot read the settings")]
    Unreadable(#[source] io::Error),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot enter the working directory {path}")]
    Workdir { path: String, source: io::Error },
    #[error(transparent)]
    Rights(#[from] RightsError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// The launcher. Returns only when it has failed.
pub(crate) fn enter(settings: &Path, rootfs: &Path) -> ExitCode {
    let Err(error) = become_workload(settings, rootfs);
    let cause = match error {
        Failure::Unreportable(error) => return fail(&error),
        Failure::Reported(error, mut report) => {
            // The agent is PID 1: it is there to read. Its console line follows from this one.
            let _ = report.write_all(chain(&error).as_bytes());
            error
        }
    };
    ExitCode::from(cause.code())
}

fn fail(error: &LaunchError) -> ExitCode {
    log(&chain(error));
    ExitCode::from(error.code())
}

enum Failure {
    /// There is no pipe to say it on.
    Unreportable(LaunchError),
    Reported(LaunchError, File),
}

fn become_workload(settings: &Path, rootfs: &Path) -> Result<std::convert::Infallible, Failure> {
    close_inherited();
    let report = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(report) => File::from(report),
        Err(error) => return Err(Failure::Unreportable(LaunchError::Input(error))),
    };
    launch(settings, rootfs).map_err(|error| Failure::Reported(error, report))
}

/// The agent's own descriptors close on exec; what the agent itself inherited
/// from an engine does not, and is nothing for the workload. This process has
/// opened nothing yet.
fn close_inherited() {
    let listed = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // EBADF: the listing's own.
        let _ = nix::unistd::close(number);
    }
}

/// The steps in their order. What needs rights comes before they are dropped.
fn launch(settings: &Path, rootfs: &Path) -> Result<std::convert::Infallible, LaunchError> {
    umask(UMASK);
    let settings = Settings::from_json(&std::fs::read(settings).map_err(LaunchError::Unreadable)?)?;
    let root = Root {
        nsm: settings.nsm == NsmAccess::Direct,
        vsock: settings.vsock == VsockAccess::Allow,
        agent: settings.ready == Ready::Notify || settings.nsm == NsmAccess::Socket,
        resolver: !settings.egress.is_empty(),
    };
    // Where it is seen it can be used and not changed, so this way to it is kept.
    let local = open_local(&settings)?;
    root.enter(rootfs)?;
    let identity = Identity::resolve(&settings.user)?;
    if let Some(local) = local {
        give_local(&local, &identity)?;
    }
    stdin_from_null().map_err(LaunchError::Input)?;
    give_devices(&identity, root.nsm);
    enter_workdir(&settings.workdir)?;
    rights::drop_to(&identity, settings.vsock)?;
    let environment = environment(&settings, &identity);
    Ok(program::exec(&settings.argv, &environment)?)
}

fn open_local(settings: &Settings) -> Result<Option<OwnedFd>, LaunchError> {
    if settings.nsm != NsmAccess::Socket {
        return Ok(None);
    }
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    open(LOCAL_PATH, flags, Mode::empty()).map(Some).map_err(LaunchError::Local)
}

/// Only its owner may connect, and the agent compares again.
fn give_local(local: &OwnedFd, identity: &Identity) -> Result<(), LaunchError> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    fchownat(local, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH).map_err(LaunchError::Local)
}

fn stdin_from_null() -> io::Result<()> {
    Ok(dup2_stdin(File::open("/dev/null")?)?)
}

/// The console, so that /dev/stdout can be opened again by any user, and the
/// module where the settings give it away. Ownership of a file that is not a
/// device of this kernel cannot always be changed, and nothing depends on it.
fn give_devices(identity: &Identity, nsm: bool) {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let _ = fchown(io::stdout(), Some(uid), None);
    let _ = fchown(io::stderr(), Some(uid), None);
    if nsm {
        let _ = nix::unistd::chown(nitro_device::nsm::NSM_PATH, Some(uid), Some(gid));
    }
}

fn enter_workdir(path: &str) -> Result<(), LaunchError> {
    std::fs::create_dir_all(path)
        .and_then(|()| std::env::set_current_dir(path))
        .map_err(|source| LaunchError::Workdir { path: path.to_owned(), source })
}

/// Those that every container has, the settings', the pod's: the last counts.
fn environment(settings: &Settings, identity: &Identity) -> Vec<(String, String)> {
    let mut variables =
        vec![("PATH".to_owned(), DEFAULT_PATH.to_owned()), ("HOME".to_owned(), identity.home.clone())];
    if settings.ready == Ready::Notify {
        variables.push(("NOTIFY_SOCKET".to_owned(), NOTIFY_SEEN.to_owned()));
    }
    let own = settings.env.iter().filter_map(|variable| variable.split_once('='));
    variables.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    // This process was given nothing but what the settings name.
    let pod = settings.pod_env.iter().filter_map(|name| Some((name.clone(), std::env::var(name).ok()?)));
    variables.extend(pod);
    variables
}

impl LaunchError {
    /// As a shell says it: 127 not found, 126 found and not executable.
    fn code(&self) -> u8 {
        match self {
            LaunchError::Program(error) => error.code(),
            _ => CANNOT_PREPARE,
        }
    }
}
