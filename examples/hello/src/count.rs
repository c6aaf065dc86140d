//! Reads until the peer has shut down its side, then answers with what came:
//! `COUNT SHA256\n`, and closes. Shows that a half-close passes both ways.

use std::io;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection. A peer that goes away early gets no answer.
pub(crate) async fn serve(stream: TcpStream) {
    if let Err(error) = answer(stream).await {
        eprintln!("hello: counting: {error}");
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let line = tally(&mut stream).await?;
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await
}

/// The other way round: shuts down its own side first and then reads what the
/// peer still sends. [`last`] tells what that was.
pub(crate) async fn serve_shut_down(mut stream: TcpStream) {
    let counted = async {
        stream.shutdown().await?;
        tally(&mut stream).await
    };
    match counted.await {
        Ok(line) => *LAST.lock().unwrap_or_else(PoisonError::into_inner) = line,
        Err(error) => eprintln!("hello: counting: {error}"),
    }
}

static LAST: Mutex<String> = Mutex::new(String::new());

/// The last line that [`serve_shut_down`] counted; empty before the first.
pub(crate) fn last() -> String {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

async fn tally(stream: &mut TcpStream) -> io::Result<String> {
    let mut digest = Context::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(format!("{count} {}\n", hex::encode(digest.finish()))),
            read => {
                digest.update(&buffer[..read]);
                count += read;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_answer_comes_after_the_peer_s_half_close() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let served = tokio::spawn(serve(accepted));
        client.write_all(b"abc").await.unwrap();
        client.shutdown().await.unwrap();
        let mut line = String::new();
        client.read_to_string(&mut line).await.unwrap();
        assert_eq!(line, "3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n");
        served.await.unwrap();
    }
}
