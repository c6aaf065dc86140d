//! What the shim on the parent and the agent in the enclave say to each other.
//!
//! Bytes in, values out: no socket, no clock, no task. The shim opens every
//! connection; the port says what it is for ([`port`]):
//!
//! ```text
//! control      hello ─▶ ◀─ greeting   then messages both ways, at any time
//! attestation  hello ─▶ ◀─ greeting   then request ─▶ ◀─ answer, one at a time
//! logs         hello ─▶ ◀─ greeting   then the workload's lines, agent to shim only
//! stream       hello, attach ─▶ ◀─ greeting   then one outgoing connection's raw bytes
//! ingress      no frames: the client's raw bytes, on the workload's own port
//! announced    hello, request ─▶ ◀─ greeting   then raw bytes: the client is introduced
//! ```
//!
//! A frame is a 32-bit big-endian length and that many bytes of CBOR, at most
//! [`MAX_FRAME`]. Read [`message`] for what can be said, [`frame`] for how.

#![forbid(unsafe_code)]

pub mod frame;
pub mod message;
pub mod proxy;
pub mod settings;
mod token;

pub use frame::{FrameError, FrameReader, MAX_FRAME, encode};
pub use message::{
    AnnouncedRequest, Attach, AttestationAnswer, AttestationOutcome, AttestationRequest, ExitStatus,
    Greeting, Hello, LogLine, LogMessage, LogStream, PROTOCOL, Phase, Refusal, ToAgent, ToShim, Undialled,
    Variable,
};
pub use proxy::{ProxyError, ProxyHeader};
pub use token::SessionToken;

/// The vsock ports on which the agent listens besides the workload's own.
pub mod port {
    /// Life cycle: who owns the enclave, what phase it is in, how it ended.
    pub const CONTROL: u32 = 5700;
    /// Attestation documents by nonce.
    pub const ATTESTATION: u32 = 5701;
    /// The workload's outgoing connections, dialled back by the shim.
    pub const STREAM: u32 = 5702;
    /// The workload's output, when its settings forward it.
    pub const LOGS: u32 = 5703;
    /// Connections to the workload whose client is introduced by a PROXY header.
    pub const ANNOUNCED: u32 = 5704;
    /// Where a launcher that is not our shim waits for the byte 0xB7, on CID 3.
    /// Source: the Nitro Enclaves loader's heartbeat.
    pub const HEARTBEAT: u32 = 9000;
    /// Every port that the agent keeps for itself.
    pub const RESERVED: [u32; 5] = [CONTROL, ATTESTATION, STREAM, LOGS, ANNOUNCED];
}

/// The byte that an enclave sends once it runs, and that its launcher echoes.
pub const HEARTBEAT: u8 = 0xB7;
