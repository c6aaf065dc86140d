//! Offers a node's enclaves and enclave CPUs to kubelet.

use crate::exit::Failure;

/// Offers a node's enclaves and enclave CPUs to kubelet.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Serves until SIGTERM.
pub(crate) fn run(_args: &Args) -> Result<(), Failure> {
    Ok(())
}
