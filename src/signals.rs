//! The process's signals, as events; and, as PID 1, the children of others.

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::exit::{Blame, Exit};
use crate::supervisor::Event;

/// Handlers that are in place: from here on no signal is lost or fatal.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    window: Signal,
    child: Signal,
}

/// The kernel has no room for handlers: never seen.
#[derive(Debug, thiserror::Error)]
#[error("cannot handle signals")]
pub(crate) struct SignalError(#[from] std::io::Error);

impl Blame for SignalError {
    fn exit(&self) -> Exit {
        Exit::Bug
    }

    fn fix(&self) -> String {
        "report this with the lines above it".into()
    }
}

impl Signals {
    /// Puts the handlers in place.
    pub(crate) fn install() -> Result<Signals, SignalError> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            window: signal(SignalKind::window_change())?,
            child: signal(SignalKind::child())?,
        })
    }

    /// Sends stop requests to `events` and signals for the workload to `forward`,
    /// until `stop`.
    pub(crate) async fn pass_on(
        mut self,
        events: mpsc::Sender<Event>,
        forward: mpsc::Sender<u8>,
        stop: CancellationToken,
    ) {
        loop {
            let (kind, stops) = tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = self.terminate.recv() => (SignalKind::terminate(), true),
                Some(()) = self.interrupt.recv() => (SignalKind::interrupt(), true),
                Some(()) = self.hangup.recv() => (SignalKind::hangup(), false),
                Some(()) = self.user1.recv() => (SignalKind::user_defined1(), false),
                Some(()) = self.user2.recv() => (SignalKind::user_defined2(), false),
                Some(()) = self.window.recv() => (SignalKind::window_change(), false),
                Some(()) = self.child.recv() => {
                    reap();
                    continue;
                }
            };
            let number = kind.as_raw_value() as u8;
            if stops {
                tracing::info!(signal = number, "asked to stop");
                // The supervisor hears until this task has ended.
                let _ = events.send(Event::Stop { signal: number }).await;
            } else if forward.try_send(number).is_err() {
                tracing::warn!(signal = number, "signal dropped: the enclave cannot be told now");
            }
        }
    }
}

/// As PID 1 of a container the shim inherits whatever somebody started with
/// `kubectl exec` and left. It has no children of its own.
fn reap() {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(status) => tracing::debug!(?status, "reaped"),
            Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot reap children");
                return;
            }
        }
    }
}
