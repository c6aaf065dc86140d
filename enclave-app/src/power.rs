//! The enclave's end.

use std::process::ExitCode;

use nix::sys::reboot::{RebootMode, reboot};

use crate::log::{chain, log};

/// Ends the enclave. A restart is the end of one: Nitro does not boot an
/// enclave twice, and virtual machines are started so as not to.
///
/// Returns only where there is no right to restart anything; PID 1's exit ends
/// the enclave there too.
pub(crate) fn off() -> ExitCode {
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    log(&format!("cannot restart the machine: {}", chain(&error)));
    ExitCode::SUCCESS
}
