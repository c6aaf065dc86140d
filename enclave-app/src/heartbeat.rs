//! The sign of life that launchers other than our shim wait for.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_vsock::{VsockAddr, VsockStream};
use wire::HEARTBEAT;

/// The parent's CID, as seen by an enclave.
const PARENT: u32 = 3;
/// Nothing depends on the answer, so nothing waits for it for long.
const WITHIN: Duration = Duration::from_secs(5);

/// Sends the byte once and reads its echo. Must not be sent to a node when a
/// shim of ours owns the enclave: nitro-cli takes the first beat that it gets,
/// from any CID, as that of the enclave which it is starting.
pub(crate) async fn send() -> io::Result<()> {
    tokio::time::timeout(WITHIN, beat()).await?
}

async fn beat() -> io::Result<()> {
    let mut parent = VsockStream::connect(VsockAddr::new(PARENT, wire::port::HEARTBEAT)).await?;
    parent.write_all(&[HEARTBEAT]).await?;
    match parent.read_u8().await? {
        HEARTBEAT => Ok(()),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("answered {other:#04x}"))),
    }
}
