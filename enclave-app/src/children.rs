//! What PID 1 owes to every process of the enclave: to take its exit status.

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use wire::ExitStatus;

/// Takes every ended child, orphans included, and returns how `own` ended if
/// it is among them. Must run on the task that starts processes: the standard
/// library waits by itself for a child whose exec failed.
pub(crate) fn reap(own: Option<Pid>) -> Option<ExitStatus> {
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(status) if status.pid() == own => ended = exit_status(status).or(ended),
            Ok(_) | Err(Errno::EINTR) => {}
            // Only EINVAL is left, which these flags cannot cause.
            Err(_) => return ended,
        }
    }
}

fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    match status {
        WaitStatus::Exited(_, code) => Some(ExitStatus::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX))),
        WaitStatus::Signaled(_, signal, _) => {
            Some(ExitStatus::Signal(u8::try_from(signal as i32).unwrap_or(u8::MAX)))
        }
        _ => None,
    }
}
