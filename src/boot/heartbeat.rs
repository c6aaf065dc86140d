//! The port on which a foreign image reports that it is up.
//!
//! AWS's init dials the parent (CID 3) on port 9000, sends 0xB7 and ends the
//! enclave unless somebody is there. Vsock ports belong to the whole node, so
//! launches of foreign images run one after another: the port is taken before
//! the enclave starts and held until its own beat has come.

use std::io;
use std::time::Duration;

use nitro_device::Cid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};

use super::BootError;
use super::retry::Pauses;

const PORT: u32 = 9000;
const BEAT: u8 = 0xB7;
/// Enclaves that can be ahead of us in the line: an instance has four slots.
const AHEAD: u32 = 3;
/// For a peer to send its byte once it is connected.
const BYTE_WITHIN: Duration = Duration::from_secs(1);

/// The port, taken.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    listener: VsockListener,
}

impl Heartbeat {
    /// Takes the port. Each launch ahead holds it for `boot_timeout` at most,
    /// so that is how long the wait can be, per launch.
    pub(super) fn take(boot_timeout: Duration, stop: &CancellationToken) -> Result<Heartbeat, BootError> {
        let mut pauses = Pauses::within(boot_timeout * AHEAD);
        let mut told = false;
        loop {
            if stop.is_cancelled() {
                return Err(BootError::Stopped);
            }
            match VsockListener::bind(VsockAddr::new(Cid::PARENT, PORT)) {
                Ok(listener) => return Ok(Heartbeat { listener }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if !told {
                        tracing::info!(port = PORT, "waiting for another launch on this node");
                        told = true;
                    }
                    if !pauses.pause() {
                        return Err(BootError::Heartbeat(error));
                    }
                }
                Err(error) => return Err(BootError::Heartbeat(error)),
            }
        }
    }

    /// Waits for the beat of `cid`, answers it and gives the port back. Nobody
    /// else is answered. Cancel-safe: nothing is kept.
    pub(crate) async fn wait(self, cid: Cid) -> io::Result<()> {
        loop {
            let (mut stream, peer) = self.listener.accept().await?;
            if peer.cid() != cid.get() {
                tracing::warn!(cid = peer.cid(), "a stranger on the heartbeat port is not answered");
                continue;
            }
            match timeout(BYTE_WITHIN, echo(&mut stream)).await {
                Ok(Ok(BEAT)) => return Ok(()),
                Ok(Ok(byte)) => tracing::warn!(byte, "not a heartbeat"),
                Ok(Err(error)) => tracing::warn!(%error, "a heartbeat broke off"),
                Err(_) => tracing::warn!("connected to the heartbeat port, but no byte came"),
            }
        }
    }
}

/// The byte that came, which is sent back if it is a beat.
async fn echo(stream: &mut VsockStream) -> io::Result<u8> {
    let byte = stream.read_u8().await?;
    if byte == BEAT {
        stream.write_all(&[byte]).await?;
    }
    Ok(byte)
}
