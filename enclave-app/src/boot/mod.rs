//! What a kernel leaves to its first process, in boot order.
//!
//! Only what is missing is done: an engine that starts the agent in namespaces
//! may have prepared some of it.

mod loopback;
mod modules;
mod mounts;

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nitro_device::nsm::{NSM_PATH, Nsm};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::umask;

use crate::launch::UMASK;
use crate::log::{chain, log};

/// Open files of the agent (two a connection) and, by inheritance, of the workload.
const OPEN_FILES: u64 = 65_536;
/// From which port on a listener needs no right: 0, as container runtimes set it.
const UNPRIVILEGED_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// What the agent starts from. Errors are one line each: they are told to the
/// shim, which can be done only later.
pub(crate) struct Booted {
    /// Whether a workload can be run at all.
    pub(crate) machine: Result<(), String>,
    /// The module, held by nobody else.
    pub(crate) nsm: Result<Nsm, String>,
}

/// Makes a machine of a kernel.
pub(crate) fn prepare() -> Booted {
    umask(UMASK);
    let machine = mounts::mount_missing()
        .map_err(|error| chain(&error))
        .and_then(|()| load_modules())
        .and_then(|()| set_dumpable(false).map_err(|error| format!("cannot close /proc/1: {error}")))
        .and_then(|()| loopback::up().map_err(|error| format!("cannot bring up the loopback: {error}")));
    raise_open_files();
    if let Err(error) = std::fs::write(UNPRIVILEGED_PORTS, "0") {
        log(&format!("ports below 1024 need a right of their own: {error}"));
    }
    Booted { machine, nsm: take_nsm() }
}

/// Also on the console: without a module for vsock nobody else can be told.
fn load_modules() -> Result<(), String> {
    modules::load().map_err(|error| chain(&error)).inspect_err(|cause| log(cause))
}

/// Opens the module for the agent alone and lets it seed the kernel.
fn take_nsm() -> Result<Nsm, String> {
    // The workload's own /dev does not hold the module; this is the second lock.
    if let Err(error) = std::fs::set_permissions(NSM_PATH, Permissions::from_mode(0o600)) {
        log(&format!("cannot take {NSM_PATH}: {error}"));
    }
    let mut nsm = Nsm::open(Path::new(NSM_PATH)).map_err(|error| chain(&error))?;
    let seed = nsm.random().map_err(|error| chain(&error))?;
    if let Err(error) = seed_kernel(&seed) {
        log(&format!("cannot seed the kernel: {error}"));
    }
    Ok(nsm)
}

/// Mixes `seed` into the kernel's pool. Nothing is credited (RNDADDENTROPY has
/// no safe wrapper): that is done by the kernel's NSM driver, which registers
/// the module as a hardware generator with full quality.
fn seed_kernel(seed: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).open("/dev/random")?.write_all(seed)
}

/// The kernel gives 1024, and 4096 on request.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        let all = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES.max(hard));
        // Without the right to raise the hard limit, as much as there is.
        all.or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard.min(OPEN_FILES), hard))
    });
    if let Err(error) = raised {
        log(&format!("cannot raise the limit of open files: {error}"));
    }
}
