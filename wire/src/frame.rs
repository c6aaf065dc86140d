//! Length-prefixed CBOR frames: [`encode`] one, or feed bytes to a [`FrameReader`].

use minicbor::{Decode, Encode};

/// Longest body in bytes. The largest real one is an attestation document
/// (the NSM answers with at most 0x3000 bytes) and its envelope.
pub const MAX_FRAME: usize = 32 * 1024;

/// Bytes in front of a body, which say how long it is.
pub const PREFIX: usize = 4;

/// Why bytes are not a frame. Every variant ends the connection: there is no
/// way to find the next frame after a wrong one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The length prefix, or the value to send, is over [`MAX_FRAME`].
    #[error("frame of {length} bytes, at most {MAX_FRAME} are allowed")]
    TooLong {
        /// Bytes announced by the peer, or needed by the value.
        length: usize,
    },
    /// The body is not the CBOR of the message that is expected here.
    #[error("frame is not a {expected}: {reason}")]
    Malformed {
        /// The Rust name of the expected message.
        expected: &'static str,
        /// The decoder's own words.
        reason: String,
    },
    /// The body goes on after the message.
    #[error("{extra} bytes after the {expected}")]
    Trailing {
        /// The Rust name of the expected message.
        expected: &'static str,
        /// Bytes left over.
        extra: usize,
    },
}

/// `message` as one frame, ready to be written.
pub fn encode<T: Encode<()>>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; PREFIX];
    // Writing to a Vec cannot fail; a failure here is the message's own.
    minicbor::encode(message, &mut bytes).map_err(|error| FrameError::Malformed {
        expected: std::any::type_name::<T>(),
        reason: error.to_string(),
    })?;
    let length = bytes.len() - PREFIX;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_FRAME => bytes[..PREFIX].copy_from_slice(&prefix.to_be_bytes()),
        _ => return Err(FrameError::TooLong { length }),
    }
    Ok(bytes)
}

/// Cuts a byte stream into frames. Holds at most one frame and what came with it.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    /// An empty reader.
    pub fn new() -> FrameReader {
        FrameReader::default()
    }

    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// How many bytes of the first frame's body are still to come; 0 as long as
    /// its prefix is not there either.
    pub fn announced(&self) -> Result<usize, FrameError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(0) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong { length });
        }
        Ok(length.saturating_sub(rest.len()))
    }

    /// The next message, or `None` until its last byte is there.
    pub fn next_message<T: for<'a> Decode<'a, ()>>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong { length });
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = decode(body)?;
        self.buffer.drain(..PREFIX + length);
        Ok(Some(message))
    }

    /// What came after the last message, on a connection that goes on without frames.
    pub fn into_rest(self) -> Vec<u8> {
        self.buffer
    }

    /// True when the stream may end here without cutting a frame.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

fn decode<T: for<'a> Decode<'a, ()>>(body: &[u8]) -> Result<T, FrameError> {
    let expected = std::any::type_name::<T>();
    let mut decoder = minicbor::Decoder::new(body);
    let message =
        decoder.decode().map_err(|error| FrameError::Malformed { expected, reason: error.to_string() })?;
    match body.len() - decoder.position() {
        0 => Ok(message),
        extra => Err(FrameError::Trailing { expected, extra }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttestationAnswer, AttestationOutcome, ExitStatus, ToAgent, ToShim};
    use proptest::prelude::*;

    #[test]
    fn frames_arrive_whole_however_they_are_cut() {
        let sent = [ToAgent::Ping { id: 7 }, ToAgent::Stop { grace_ms: 25_000 }, ToAgent::Goodbye];
        let bytes: Vec<u8> = sent.iter().flat_map(|message| encode(message).unwrap()).collect();
        for cut in 1..bytes.len() {
            let mut reader = FrameReader::new();
            let mut received = Vec::new();
            for piece in bytes.chunks(cut) {
                reader.push(piece);
                while let Some(message) = reader.next_message::<ToAgent>().unwrap() {
                    received.push(message);
                }
            }
            assert_eq!(received, sent, "cut into pieces of {cut}");
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn an_agent_that_does_not_tell_whether_it_is_busy_is_understood() {
        // Refused, as agents say it that know of nothing but the cause.
        let frame = [&[0, 0, 0, 8][..], b"\x82\x82\x01\x81\x62no\x07"].concat();
        let mut reader = FrameReader::new();
        reader.push(&frame);
        let outcome = AttestationOutcome::Refused { cause: "no".into(), busy: false };
        let answer = AttestationAnswer { outcome, nsm_us: 7 };
        assert_eq!(reader.next_message(), Ok(Some(answer)));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_arrive() {
        let mut reader = FrameReader::new();
        reader.push(&u32::MAX.to_be_bytes());
        assert_eq!(reader.next_message::<ToAgent>(), Err(FrameError::TooLong { length: u32::MAX as usize }));
    }

    #[test]
    fn bytes_after_the_message_are_refused() {
        let mut bytes = encode(&ToShim::Exited(ExitStatus::Code(7))).unwrap();
        bytes.push(0);
        let length = u32::try_from(bytes.len() - PREFIX).unwrap();
        bytes[..PREFIX].copy_from_slice(&length.to_be_bytes());
        let mut reader = FrameReader::new();
        reader.push(&bytes);
        assert!(matches!(reader.next_message::<ToShim>(), Err(FrameError::Trailing { extra: 1, .. })));
    }

    #[test]
    fn raw_bytes_after_the_last_frame_are_not_lost() {
        let mut bytes = encode(&ToAgent::Goodbye).unwrap();
        bytes.extend(b"220 ready");
        let mut reader = FrameReader::new();
        reader.push(&bytes);
        assert_eq!(reader.next_message::<ToAgent>().unwrap(), Some(ToAgent::Goodbye));
        assert_eq!(reader.into_rest(), b"220 ready");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut reader = FrameReader::new();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next_message::<ToShim>() {}
        }
    }
}
