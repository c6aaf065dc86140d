//! One connection between the guest and a socket of the parent: credit in both
//! directions, what is on its way, and who has ended what. No I/O, no addresses.
//!
//! ```text
//! Dialled ──RESPONSE──▶ Open        the parent connects to the guest
//! Asked ────RESPONSE──▶ Open        the guest connects to the parent
//! ```
//! Every stage ends by a reset from either side.

use std::collections::VecDeque;

use super::packet::{CLOSED, NO_RECEIVE, NO_SEND};

/// The receive buffer that the guest is told of, bytes: Linux's own default.
pub(crate) const ROOM: u32 = 256 * 1024;
/// The guest is told of free room when it knows of less than half.
const TELL_AT: u32 = ROOM / 2;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The guest was asked.
    Dialled,
    /// The guest has asked.
    Asked,
    /// Both agreed.
    Open,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    /// How far it is.
    pub(super) stage: Stage,
    /// What the guest has ended: [`NO_SEND`], [`NO_RECEIVE`].
    pub(super) guest_ended: u32,
    /// What the parent's socket has ended, as far as it was announced.
    pub(super) host_ended: u32,
    /// The end of the guest's bytes was passed on.
    pub(super) end_passed: bool,
    /// A credit update is queued.
    pub(super) update_queued: bool,
    pending: VecDeque<u8>,
    received: u32,
    taken: u32,
    told: u32,
    sent: u32,
    guest_taken: u32,
    guest_room: u32,
}

/// The guest sent more than it was allowed to, or after its own end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation;

impl Connection {
    pub(super) fn new(stage: Stage) -> Connection {
        Connection {
            stage,
            guest_ended: 0,
            host_ended: 0,
            end_passed: false,
            update_queued: false,
            pending: VecDeque::new(),
            received: 0,
            taken: 0,
            told: 0,
            sent: 0,
            guest_taken: 0,
            guest_room: 0,
        }
    }

    /// Takes the credit that every packet carries. Whether there is more than before.
    pub(super) fn credit(&mut self, room: u32, taken: u32) -> bool {
        let before = self.may_send();
        (self.guest_room, self.guest_taken) = (room, taken);
        self.may_send() > before
    }

    /// Bytes that may go to the guest now.
    pub(super) fn may_send(&self) -> u32 {
        if self.stage != Stage::Open || self.guest_ended & NO_RECEIVE != 0 || self.host_ended & NO_SEND != 0 {
            return 0;
        }
        self.guest_room.saturating_sub(self.sent.wrapping_sub(self.guest_taken))
    }

    /// `count` bytes go to the guest.
    pub(super) fn send(&mut self, count: u32) {
        self.sent = self.sent.wrapping_add(count);
    }

    /// Takes bytes of the guest; a socket that reads no more swallows them.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let waiting = self.received.wrapping_sub(self.taken);
        let length = u32::try_from(bytes.len()).map_err(|_| Violation)?;
        let fits = waiting.checked_add(length).is_some_and(|sum| sum <= ROOM);
        if self.stage != Stage::Open || self.guest_ended & NO_SEND != 0 || !fits {
            return Err(Violation);
        }
        self.received = self.received.wrapping_add(length);
        if self.host_ended & NO_RECEIVE != 0 {
            self.taken = self.received;
        } else {
            self.pending.extend(bytes);
        }
        Ok(())
    }

    /// The next bytes for the parent's socket.
    pub(super) fn pending(&self) -> &[u8] {
        self.pending.as_slices().0
    }

    /// Whether the socket has taken everything.
    pub(super) fn is_drained(&self) -> bool {
        self.pending.is_empty()
    }

    /// The socket took `count` of [`Connection::pending`].
    pub(super) fn take(&mut self, count: usize) {
        let count = count.min(self.pending.len());
        self.pending.drain(..count);
        self.taken = self.taken.wrapping_add(count as u32);
    }

    /// The socket ends `what`. Whether the guest does not know it yet.
    pub(super) fn end(&mut self, what: u32) -> bool {
        let news = what & !self.host_ended & CLOSED != 0;
        self.host_ended |= what & CLOSED;
        if self.host_ended & NO_RECEIVE != 0 {
            self.take(self.pending.len());
        }
        news
    }

    /// Whether the guest should be told of room that it cannot know of.
    pub(super) fn owes_update(&self) -> bool {
        let seen = ROOM.saturating_sub(self.received.wrapping_sub(self.told));
        self.stage == Stage::Open && self.told != self.taken && seen < TELL_AT
    }

    /// What the next packet tells as taken.
    pub(super) fn tell(&mut self) -> u32 {
        self.told = self.taken;
        self.taken
    }
}
