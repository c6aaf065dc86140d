//! All connections of one guest. See the parent module.

use std::collections::{HashMap, VecDeque};

use super::connection::{Connection, ROOM, Stage};
use super::packet::{CLOSED, Header, NO_RECEIVE, NO_SEND, Operation, STREAM};
use crate::node::names::{Address, HOST, HYPERVISOR, PARENT};

/// Answers that may wait for the guest before no more packets are taken from it.
const ANSWERS_WAITING: usize = 1024;

/// Which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The parent's CID as the guest knows it.
    pub(crate) host_cid: u32,
    /// The parent's port.
    pub(crate) host_port: u32,
    /// The guest's port.
    pub(crate) guest_port: u32,
}

/// What the owner of the sockets has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The guest wants to connect: say what became of it by [`Switch::answer`].
    Dial(Key),
    /// The guest accepted what [`Switch::dial`] asked for.
    Accepted(Key),
    /// Bytes are waiting: [`Switch::pending`], [`Switch::took`].
    Deliver(Key),
    /// All bytes of the guest were taken and no more will come.
    GuestSent(Key),
    /// The guest takes no more bytes.
    GuestDeaf(Key),
    /// More bytes may be sent to the guest than before.
    Room(Key),
    /// The connection is over; a dialled one that never was is refused.
    Gone(Key),
}

/// See the parent module.
#[derive(Debug)]
pub(crate) struct Switch {
    guest: u32,
    connections: HashMap<Key, Connection>,
    controls: VecDeque<Control>,
    effects: VecDeque<Effect>,
}

#[derive(Debug)]
struct Control {
    key: Key,
    operation: Operation,
    flags: u32,
}

impl Switch {
    /// A switch for the guest with this CID.
    pub(crate) fn new(guest: u32) -> Switch {
        Switch { guest, connections: HashMap::new(), controls: VecDeque::new(), effects: VecDeque::new() }
    }

    /// Whether [`Switch::next_effect`] has one.
    pub(crate) fn has_effect(&self) -> bool {
        !self.effects.is_empty()
    }

    /// What is to be done next.
    pub(crate) fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether packets of the guest may be taken: not while it leaves too many answers lying.
    pub(crate) fn takes_packets(&self) -> bool {
        self.controls.len() < ANSWERS_WAITING
    }

    /// Takes a packet of the guest.
    pub(crate) fn receive(&mut self, header: &Header, payload: &[u8]) {
        if header.from.cid != self.guest {
            return;
        }
        let Header { from, to, .. } = *header;
        let key = Key { host_cid: to.cid, host_port: to.port, guest_port: from.port };
        let sound = header.kind == STREAM && payload.len() == header.length as usize;
        let Some(operation) = header.operation().filter(|_| sound && is_parent(to.cid)) else {
            return self.refuse(key, header.operation());
        };
        let Some(connection) = self.connections.get_mut(&key) else {
            return self.open(key, operation, header);
        };
        if connection.credit(header.room, header.taken) {
            self.effects.push_back(Effect::Room(key));
        }
        match (operation, connection.stage) {
            (Operation::Response, Stage::Dialled) => {
                connection.stage = Stage::Open;
                self.effects.extend([Effect::Accepted(key), Effect::Room(key)]);
            }
            // Its close was not answered in time; what it sent before still arrives.
            (Operation::Reset, Stage::Open)
                if connection.guest_ended == CLOSED && !connection.is_drained() => {}
            (Operation::Reset, _) => self.forget(key),
            (Operation::Shutdown, Stage::Open) => self.guest_ends(key, header.flags),
            (Operation::Data, Stage::Open) => match connection.receive(payload) {
                Ok(()) => self.effects.push_back(Effect::Deliver(key)),
                Err(_) => self.reset(key),
            },
            (Operation::CreditUpdate, _) => {}
            (Operation::CreditRequest, _) => self.control(key, Operation::CreditUpdate, 0),
            _ => self.reset(key),
        }
    }

    /// Asks the guest for a connection from the parent's `host_port`; `None`
    /// when there is one already.
    pub(crate) fn dial(&mut self, host_port: u32, guest_port: u32) -> Option<Key> {
        let key = Key { host_cid: PARENT, host_port, guest_port };
        if self.connections.contains_key(&key) {
            return None;
        }
        self.connections.insert(key, Connection::new(Stage::Dialled));
        self.control(key, Operation::Request, 0);
        Some(key)
    }

    /// Says what became of [`Effect::Dial`].
    pub(crate) fn answer(&mut self, key: Key, accepted: bool) {
        match self.connections.get_mut(&key) {
            Some(connection) if connection.stage == Stage::Asked && accepted => {
                connection.stage = Stage::Open;
                self.control(key, Operation::Response, 0);
                self.effects.push_back(Effect::Room(key));
            }
            Some(_) if !accepted => self.reset(key),
            _ => {}
        }
    }

    /// Ends a connection from this side, at once.
    pub(crate) fn reset(&mut self, key: Key) {
        self.control(key, Operation::Reset, 0);
        self.forget(key);
    }

    /// Bytes of the guest that wait for the socket, or the first of them.
    pub(crate) fn pending(&self, key: Key) -> &[u8] {
        self.connections.get(&key).map_or(&[], Connection::pending)
    }

    /// The socket took `count` bytes of [`Switch::pending`].
    pub(crate) fn took(&mut self, key: Key, count: usize) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.take(count);
        if connection.owes_update() && !connection.update_queued {
            connection.update_queued = true;
            self.control(key, Operation::CreditUpdate, 0);
        }
        self.settle(key);
    }

    /// The socket will send no more, take no more, or both.
    pub(crate) fn host_ends(&mut self, key: Key, what: u32) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.end(what) {
            let flags = connection.host_ended;
            self.control(key, Operation::Shutdown, flags);
        }
        self.settle(key);
    }

    /// Bytes that may be sent to the guest now.
    pub(crate) fn may_send(&self, key: Key) -> u32 {
        self.connections.get(&key).map_or(0, Connection::may_send)
    }

    /// The header of a packet with `count` bytes, at most [`Switch::may_send`].
    pub(crate) fn send(&mut self, key: Key, count: u32) -> Option<Header> {
        self.connections.get_mut(&key)?.send(count);
        Some(Header { length: count, ..self.header(key, Operation::Data, 0) })
    }

    /// Whether [`Switch::next_control`] has one.
    pub(crate) fn has_control(&self) -> bool {
        !self.controls.is_empty()
    }

    /// The next packet without bytes. These go before all others: nothing of a
    /// connection precedes its opening, and a socket's end is announced after its last byte was sent.
    pub(crate) fn next_control(&mut self) -> Option<Header> {
        let Control { key, operation, flags } = self.controls.pop_front()?;
        if let Some(connection) = self.connections.get_mut(&key)
            && operation == Operation::CreditUpdate
        {
            connection.update_queued = false;
        }
        Some(self.header(key, operation, flags))
    }

    fn open(&mut self, key: Key, operation: Operation, header: &Header) {
        match operation {
            Operation::Request => {
                let mut connection = Connection::new(Stage::Asked);
                connection.credit(header.room, header.taken);
                self.connections.insert(key, connection);
                self.effects.push_back(Effect::Dial(key));
            }
            Operation::Reset => {}
            _ => self.control(key, Operation::Reset, 0),
        }
    }

    fn refuse(&mut self, key: Key, operation: Option<Operation>) {
        if operation != Some(Operation::Reset) {
            self.reset(key);
        }
    }

    fn guest_ends(&mut self, key: Key, what: u32) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let deaf = what & NO_RECEIVE & !connection.guest_ended != 0;
        connection.guest_ended |= what & CLOSED;
        if deaf {
            self.effects.push_back(Effect::GuestDeaf(key));
        }
        self.settle(key);
    }

    /// Passes the guest's end on once nothing is pending, and answers a close
    /// with the reset that the guest's kernel waits for.
    fn settle(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if !connection.is_drained() || connection.guest_ended & NO_SEND == 0 {
            return;
        }
        if !connection.end_passed {
            connection.end_passed = true;
            self.effects.push_back(Effect::GuestSent(key));
        }
        if connection.guest_ended == CLOSED {
            self.reset(key);
        }
    }

    fn forget(&mut self, key: Key) {
        if self.connections.remove(&key).is_some() {
            self.effects.push_back(Effect::Gone(key));
        }
    }

    fn control(&mut self, key: Key, operation: Operation, flags: u32) {
        self.controls.push_back(Control { key, operation, flags });
    }

    fn header(&mut self, key: Key, operation: Operation, flags: u32) -> Header {
        let taken = self.connections.get_mut(&key).map(Connection::tell);
        Header {
            from: Address { cid: key.host_cid, port: key.host_port },
            to: Address { cid: self.guest, port: key.guest_port },
            length: 0,
            kind: STREAM,
            code: operation.code(),
            flags,
            room: if taken.is_some() { ROOM } else { 0 },
            taken: taken.unwrap_or(0),
        }
    }
}

fn is_parent(cid: u32) -> bool {
    matches!(cid, HYPERVISOR | HOST | PARENT)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
