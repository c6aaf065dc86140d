//! Frames of the wire protocol on a stream.

use std::io;

use minicbor::{Decode, Encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wire::{FrameError, FrameReader};

/// Read at once. Requests are short.
const PIECE: usize = 2048;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FramesError {
    /// The peer sent something else.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The connection ended within a frame, or does not take one in time.
    #[error("the connection ended within a frame")]
    Closed,
}

/// A stream of frames both ways.
#[derive(Debug)]
pub(crate) struct Frames<S> {
    stream: S,
    reader: FrameReader,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// Frames on `stream`.
    pub(crate) fn new(stream: S) -> Frames<S> {
        Frames { stream, reader: FrameReader::new() }
    }

    /// The stream itself, for bytes that are no frames. None if the peer sent
    /// some before it was asked to.
    pub(crate) fn into_stream(self) -> Option<S> {
        self.reader.is_empty().then_some(self.stream)
    }

    /// The stream, for a connection that goes on without frames, and what has been read of that.
    pub(crate) fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.reader.into_rest())
    }

    /// The next message; `None` at a clean end. May be dropped and called again.
    pub(crate) async fn receive<T: for<'a> Decode<'a, ()>>(&mut self) -> Result<Option<T>, FramesError> {
        loop {
            if let Some(message) = self.reader.next_message()? {
                return Ok(Some(message));
            }
            let mut piece = [0; PIECE];
            match self.stream.read(&mut piece).await? {
                0 if self.reader.is_empty() => return Ok(None),
                0 => return Err(FramesError::Closed),
                count => self.reader.push(&piece[..count]),
            }
        }
    }

    /// Sends one message. Must not be dropped half way.
    pub(crate) async fn send<T: Encode<()>>(&mut self, message: &T) -> Result<(), FramesError> {
        for piece in wire::encode(message)?.chunks(relay::VSOCK_WRITE_MAX) {
            self.stream.write_all(piece).await?;
        }
        Ok(self.stream.flush().await?)
    }
}
