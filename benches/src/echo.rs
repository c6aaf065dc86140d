//! Sends back what comes, on as many connections as there are descriptors: the
//! far end for counts that no thread for each would do.

use std::os::fd::OwnedFd;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::endpoint::Endpoint;

/// Echoes for the rest of the process.
pub(crate) fn serve(listen: Endpoint) -> anyhow::Result<()> {
    let listener = listen.listen()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(OwnedFd::from(listener).into())?;
        println!("ready");
        loop {
            // A client that has gone again and a full descriptor table both pass.
            let Ok((stream, _)) = listener.accept().await else {
                tokio::task::yield_now().await;
                continue;
            };
            tokio::spawn(echo(stream));
        }
    })
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let mut piece = [0; 256];
        match stream.read(&mut piece).await? {
            0 => return Ok(()),
            count => stream.write_all(&piece[..count]).await?,
        }
    }
}
