//! The agent: PID 1 inside the enclave.
//!
//! ```text
//! kernel ─▶ boot ─▶ agent ──launches──▶ launcher ─▶ workload
//!                     ├── control, attestation, logs, ingress ◀── vsock ── shim
//!                     ├── egress: the workload's way out, carried by the shim
//!                     ├── local ◀── Unix socket ── workload
//!                     └── told by everyone, decided in life
//! ```
//!
//! Read [`life`] for what can happen, [`agent`] for who does it, [`launch`]
//! for how the workload loses its rights. The same file is the launcher: a
//! short-lived process of its own that builds the workload's root and execs.

#![forbid(unsafe_code)]

mod agent;
mod attestation;
mod attested_tls;
mod boot;
mod children;
mod claim;
mod control;
mod egress;
mod environment;
mod frames;
mod heartbeat;
mod ingress;
mod launch;
mod life;
mod listener;
mod local;
mod log;
mod logs;
mod netlink;
mod nsm;
mod power;
mod readiness;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use log::log;

/// Exit code of a wrong call, as in every program of this project.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let started = Instant::now();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let [mode, settings, rootfs] = arguments.as_slice()
        && mode == launch::MODE
    {
        return launch::enter(Path::new(settings), Path::new(rootfs));
    }
    if std::process::id() != 1 {
        // As anything but PID 1 it would end processes and mounts that are not its own.
        log("the agent runs only as PID 1 of an enclave; see `enclavectl build`");
        return ExitCode::from(USAGE);
    }
    let booted = boot::prepare();
    match agent::runtime() {
        Ok(runtime) => runtime.block_on(agent::run(started, booted)),
        Err(error) => log(&format!("cannot start the runtime: {error}")),
    }
    power::off()
}
