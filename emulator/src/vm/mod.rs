//! The qemu engine: an enclave as a virtual machine that boots the image's own kernel.
//!
//! ```text
//! node ─▶ boot files out of the EIF ─▶ QEMU (microvm) ─▶ kernel ─▶ /init
//!   │                                    │ memory, shared with
//!   └─ vhost-user: vsock ─ sockets ◀─────┤
//!                  virtio-nsm ─ module ◀─┘
//! ```
//!
//! KVM is used when a guest was seen to boot under it ([`accel`]), else QEMU
//! emulates the processor. The machine ends with its QEMU, and that with the node.

mod accel;
mod boot_files;
mod nsm;
mod qemu;
mod queue;
mod sockets;
mod vsock;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub(crate) use accel::Accelerator;
pub(crate) use boot_files::BootFiles;
pub(crate) use qemu::default_program;
pub use qemu::{Args, exec};
use queue::Served;
pub(crate) use vsock::Vsock;

use crate::node::Node;
use crate::sys::pidfd::Pidfd;

/// How long QEMU may take to connect to its devices.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// What QEMU says goes to this file of the enclave's directory.
const LOG: &str = "qemu.log";

/// What a machine is made of.
pub(crate) struct Wishes<'a> {
    /// The enclave's directory; its FIFO `console` takes the serial port's output.
    pub(crate) dir: &'a Path,
    /// Context id.
    pub(crate) cid: u32,
    /// What it boots.
    pub(crate) boot: BootFiles,
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// CPUs that were given to it.
    pub(crate) cpus: usize,
    /// Its security module.
    pub(crate) nsm: Arc<crate::nsm::Device>,
}

/// A machine that runs.
pub(crate) struct Machine {
    /// The hypervisor.
    pub(crate) qemu: Child,
    /// The way in.
    pub(crate) vsock: Arc<Vsock>,
    vsock_served: Served<Arc<Vsock>>,
    nsm_served: Served<Arc<nsm::Nsm>>,
    /// QEMU reads it after it has connected, nobody tells when.
    _boot: BootFiles,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// QEMU is missing or too old.
    #[error("cannot run {} (10.2 or newer is needed: --qemu or FAKENITRO_QEMU)", .program.display())]
    NoQemu { program: PathBuf, source: io::Error },
    /// QEMU ended before the machine existed.
    #[error("{} ended at once: {said}", .program.display())]
    Ended { program: PathBuf, said: String },
    /// QEMU did not connect to its devices.
    #[error("{} did not come up within {CONNECT_WITHIN:?}", .program.display())]
    Silent { program: PathBuf },
    /// Files, sockets, threads.
    #[error("cannot {what}")]
    State { what: &'static str, source: io::Error },
}

fn state(what: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::State { what, source }
}

impl Machine {
    /// Starts a machine. It must be waited for in the thread that starts it:
    /// QEMU is killed when that ends.
    pub(crate) fn start(node: &Arc<Node>, wishes: Wishes<'_>) -> Result<Machine, MachineError> {
        let program = &node.config.qemu;
        let accelerator = node.config.accelerator.resolve(program, &wishes.boot);
        // Paths below are short whatever the state directory's is.
        let dir = fs::File::open(wishes.dir).map_err(state("open the enclave's directory"))?;
        let short = |name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()));
        let vsock = Arc::new(Vsock::new(wishes.cid, node.clone()).map_err(state("make the vsock device"))?);
        let nsm = Arc::new(nsm::Nsm::new(wishes.nsm.clone()).map_err(state("make the nsm device"))?);
        let mut vsock_served = Served::listen("vsock", vsock.clone(), &short(qemu::VSOCK_SOCKET))
            .map_err(state("listen for the vsock device"))?;
        vsock_served.watch(vsock.sockets(), vsock::SOCKETS_EVENT).map_err(state("watch sockets"))?;
        let mut nsm_served = Served::listen("nsm", nsm, &short(qemu::NSM_SOCKET))
            .map_err(state("listen for the nsm device"))?;
        let mut qemu = qemu::spawn(program, &wishes, accelerator)?;
        let connected = (|| {
            let process = Pidfd::of_process(qemu.id() as i32).map_err(state("open QEMU's pidfd"))?;
            let deadline = Instant::now() + CONNECT_WITHIN;
            for listener in [nsm_served.listener().as_fd(), vsock_served.listener().as_fd()] {
                await_connection(program, wishes.dir, listener, &process, deadline)?;
            }
            nsm_served.accept().map_err(state("serve the nsm device"))?;
            vsock_served.accept().map_err(state("serve the vsock device"))
        })();
        if let Err(error) = connected {
            let _ = qemu.kill();
            let _ = qemu.wait();
            return Err(error);
        }
        Ok(Machine { qemu, vsock, vsock_served, nsm_served, _boot: wishes.boot })
    }

    /// Ends the devices of a machine whose QEMU has ended.
    pub(crate) fn finish(self) {
        for waited in [self.vsock_served.wait(), self.nsm_served.wait()] {
            if let Err(error) = waited {
                eprintln!("a device of the machine: {error}");
            }
        }
        self.vsock.end();
    }
}

/// Waits until QEMU connects to `listener`.
fn await_connection(
    program: &Path,
    dir: &Path,
    listener: BorrowedFd<'_>,
    process: &Pidfd,
    deadline: Instant,
) -> Result<(), MachineError> {
    let program = || program.to_owned();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [listener, process.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, left) {
            Ok(0) => return Err(MachineError::Silent { program: program() }),
            Err(nix::errno::Errno::EINTR) => continue,
            other => other.map_err(|error| state("wait for QEMU")(error.into()))?,
        };
        let [connected, ended] = fds.map(|fd| fd.any().unwrap_or(false));
        if connected {
            return Ok(());
        }
        if ended {
            let said = fs::read_to_string(dir.join(LOG)).unwrap_or_default();
            let said = said.lines().last().unwrap_or("it said nothing").to_owned();
            return Err(MachineError::Ended { program: program(), said });
        }
    }
}
