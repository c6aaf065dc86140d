//! The header of a virtio-vsock packet (virtio 1.2, section 5.10.6): 44 bytes, little-endian.

use crate::node::names::Address;

/// `sizeof(struct virtio_vsock_hdr)`.
pub(crate) const HEADER_LEN: usize = 44;
/// `VIRTIO_VSOCK_TYPE_STREAM`; nothing else is offered.
pub(super) const STREAM: u16 = 1;

/// What a packet is for (`VIRTIO_VSOCK_OP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Opens a connection.
    Request,
    /// Accepts one.
    Response,
    /// Refuses or ends one.
    Reset,
    /// Says that its sender will not send, or not receive, any more.
    Shutdown,
    /// Carries bytes.
    Data,
    /// Tells the sender's credit and nothing else.
    CreditUpdate,
    /// Asks for the receiver's credit.
    CreditRequest,
}

const OPERATIONS: [Operation; 7] = [
    Operation::Request,
    Operation::Response,
    Operation::Reset,
    Operation::Shutdown,
    Operation::Data,
    Operation::CreditUpdate,
    Operation::CreditRequest,
];

/// `VIRTIO_VSOCK_SHUTDOWN_RCV`: the sender of the packet takes nothing more.
pub(crate) const NO_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_SEND`: the sender of the packet sends nothing more.
pub(crate) const NO_SEND: u32 = 2;
/// Both.
pub(crate) const CLOSED: u32 = NO_RECEIVE | NO_SEND;

/// A packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Who sends it.
    pub(crate) from: Address,
    /// Who is to get it.
    pub(crate) to: Address,
    /// Bytes that follow.
    pub(crate) length: u32,
    /// `VIRTIO_VSOCK_TYPE_*`.
    pub(crate) kind: u16,
    /// `VIRTIO_VSOCK_OP_*`; see [`Header::operation`].
    pub(crate) code: u16,
    /// Of [`Operation::Shutdown`]: [`NO_RECEIVE`], [`NO_SEND`].
    pub(crate) flags: u32,
    /// The sender's receive buffer, bytes.
    pub(crate) room: u32,
    /// Bytes that the sender's application took so far, modulo 2^32.
    pub(crate) taken: u32,
}

impl Header {
    /// Reads a header; `None` where a CID does not fit 32 bits (the upper half is reserved).
    pub(crate) fn parse(raw: &[u8; HEADER_LEN]) -> Option<Header> {
        let short = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        if word(4) != 0 || word(12) != 0 {
            return None;
        }
        Some(Header {
            from: Address { cid: word(0), port: word(16) },
            to: Address { cid: word(8), port: word(20) },
            length: word(24),
            kind: short(28),
            code: short(30),
            flags: word(32),
            room: word(36),
            taken: word(40),
        })
    }

    /// Writes the header.
    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut raw = [0; HEADER_LEN];
        let words = [
            (0, self.from.cid),
            (8, self.to.cid),
            (16, self.from.port),
            (20, self.to.port),
            (24, self.length),
            (32, self.flags),
            (36, self.room),
            (40, self.taken),
        ];
        for (at, word) in words {
            raw[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        raw[28..30].copy_from_slice(&self.kind.to_le_bytes());
        raw[30..32].copy_from_slice(&self.code.to_le_bytes());
        raw
    }

    /// What the packet is for; `None` for numbers that mean nothing.
    pub(crate) fn operation(&self) -> Option<Operation> {
        OPERATIONS.get(usize::from(self.code).checked_sub(1)?).copied()
    }
}

impl Operation {
    /// `VIRTIO_VSOCK_OP_*`.
    pub(super) fn code(self) -> u16 {
        self as u16 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_bytes_and_reserved_bits_are_refused() {
        let header = Header {
            from: Address { cid: 16, port: 0xfedc_ba98 },
            to: Address { cid: 3, port: 9000 },
            length: 65536,
            kind: STREAM,
            code: Operation::Data.code(),
            flags: CLOSED,
            room: 262_144,
            taken: u32::MAX,
        };
        let mut raw = header.to_bytes();
        assert_eq!(Header::parse(&raw), Some(header));
        assert_eq!(header.operation(), Some(Operation::Data));
        raw[12] = 1;
        assert_eq!(Header::parse(&raw), None);
    }

    #[test]
    fn numbers_are_those_of_linux_virtio_vsock_h() {
        assert_eq!(Operation::Request.code(), 1);
        assert_eq!(Operation::Data.code(), 5);
        assert_eq!(Operation::CreditRequest.code(), 7);
        for (code, known) in [(0, false), (1, true), (7, true), (8, false), (u16::MAX, false)] {
            let header = Header::parse(&[0; HEADER_LEN]).map(|header| Header { code, ..header }).unwrap();
            assert_eq!(header.operation().is_some(), known, "{code}");
        }
    }
}
