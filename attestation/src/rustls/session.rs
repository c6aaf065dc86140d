//! A document of this very session, for clients to whom a certificate's is
//! not enough: that one proves that the key was born in an enclave, this one
//! that the enclave is at the other end now.
//!
//! ```text
//! ALPN enclave-session/1 selected, handshake done
//! client ─▶ 32 random bytes (the challenge)
//! server ─▶ length (2 bytes, big-endian), document
//!           nonce = exporter(LABEL, challenge), user_data = binding TlsSession
//! then the application's bytes, both ways
//! ```
//!
//! No I/O happens here: callers carry the bytes.

use ::rustls::ConnectionCommon;
use aws_lc_rs::rand;

use crate::cose::MAX_DOCUMENT;

/// The ALPN protocol that asks for a document of the session.
pub const ALPN: &[u8] = b"enclave-session/1";
/// Label of the exporter (RFC 8446 section 7.5). The prefix is that of
/// unregistered labels (RFC 5705 section 4).
pub const LABEL: &[u8] = b"EXPERIMENTAL enclave-session/1";

/// What the client sends: chosen at random for each session.
pub type Challenge = [u8; 32];
/// What the session's document must carry as its nonce.
pub type Nonce = [u8; 48];

/// Draws a challenge.
///
/// # Errors
/// When the system has no randomness.
pub fn challenge() -> Result<Challenge, ::rustls::Error> {
    let mut challenge = Challenge::default();
    rand::fill(&mut challenge).map_err(|_| ::rustls::Error::FailedToGetRandomBytes)?;
    Ok(challenge)
}

/// The nonce that both sides derive from the session and the challenge.
///
/// # Errors
/// While the handshake is not done.
pub fn nonce<Side>(
    connection: &ConnectionCommon<Side>,
    challenge: &Challenge,
) -> Result<Nonce, ::rustls::Error> {
    connection.export_keying_material([0; 48], LABEL, Some(challenge))
}

/// The server's answer: a document behind its length. `None` when it is
/// longer than any document.
pub fn answer(document: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(document.len()).ok().filter(|_| document.len() <= MAX_DOCUMENT)?;
    Some([&length.to_be_bytes()[..], document].concat())
}

/// The document's length from the first two bytes of the answer; `None` when
/// no document has it.
pub fn answer_length(head: [u8; 2]) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(head))).filter(|length| (1..=MAX_DOCUMENT).contains(length))
}
