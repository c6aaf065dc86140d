//! The switch against a guest that keeps the rules and one that does not.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::connection::ROOM;
use super::super::packet::{Operation, STREAM};
use super::*;

const GUEST: u32 = 16;

fn header(key: Key, operation: Operation, length: u32) -> Header {
    Header {
        from: Address { cid: GUEST, port: key.guest_port },
        to: Address { cid: key.host_cid, port: key.host_port },
        length,
        kind: STREAM,
        code: operation.code(),
        flags: 0,
        room: 65536,
        taken: 0,
    }
}

fn key(host_cid: u32) -> Key {
    Key { host_cid, host_port: 9000, guest_port: 1234 }
}

/// A switch with one open connection that the guest made.
fn open(host_cid: u32) -> (Switch, Key) {
    let (mut switch, key) = (Switch::new(GUEST), key(host_cid));
    switch.receive(&header(key, Operation::Request, 0), &[]);
    assert_eq!(switch.next_effect(), Some(Effect::Dial(key)));
    switch.answer(key, true);
    assert_eq!(switch.next_effect(), Some(Effect::Room(key)));
    let answer = switch.next_control().unwrap();
    assert_eq!(answer.operation(), Some(Operation::Response));
    assert_eq!(answer.from, Address { cid: host_cid, port: 9000 }, "the one that was dialled answers");
    assert_eq!((answer.room, answer.taken), (ROOM, 0));
    (switch, key)
}

fn operations(switch: &mut Switch) -> Vec<Operation> {
    std::iter::from_fn(|| switch.next_control()).filter_map(|header| header.operation()).collect()
}

fn effects(switch: &mut Switch) -> Vec<Effect> {
    std::iter::from_fn(|| switch.next_effect()).collect()
}

#[test]
fn the_parent_answers_as_0_2_and_3_and_nobody_else_does() {
    for cid in [0, 2, 3] {
        open(cid);
    }
    for cid in [1, 4, GUEST, 17, u32::MAX] {
        let mut switch = Switch::new(GUEST);
        switch.receive(&header(key(cid), Operation::Request, 0), &[]);
        assert_eq!(effects(&mut switch), [], "CID {cid}");
        let refusal = switch.next_control().unwrap();
        assert_eq!((refusal.operation(), refusal.from.cid), (Some(Operation::Reset), cid));
    }
}

#[test]
fn a_refused_port_is_reset_and_forgotten() {
    let (mut switch, key) = (Switch::new(GUEST), key(3));
    for _ in 0..2 {
        switch.receive(&header(key, Operation::Request, 0), &[]);
        switch.answer(key, false);
        assert_eq!(effects(&mut switch), [Effect::Dial(key), Effect::Gone(key)]);
        assert_eq!(operations(&mut switch), [Operation::Reset]);
    }
}

#[test]
fn packets_of_another_source_and_of_another_type_reach_nothing() {
    let (mut switch, key) = open(3);
    let mut stranger = header(key, Operation::Reset, 0);
    stranger.from.cid = 17;
    switch.receive(&stranger, &[]);
    assert_eq!((effects(&mut switch), operations(&mut switch)), (vec![], vec![]));
    let mut seqpacket = header(key, Operation::Data, 1);
    seqpacket.kind = 2;
    switch.receive(&seqpacket, b"x");
    assert_eq!(effects(&mut switch), [Effect::Gone(key)]);
    assert_eq!(operations(&mut switch), [Operation::Reset]);
}

#[test]
fn a_reset_for_nothing_is_not_answered_but_anything_else_is() {
    let mut switch = Switch::new(GUEST);
    switch.receive(&header(key(3), Operation::Reset, 0), &[]);
    assert!(!switch.has_control(), "resets would answer each other for ever");
    switch.receive(&header(key(3), Operation::Data, 1), b"x");
    assert_eq!(operations(&mut switch), [Operation::Reset]);
}

#[test]
fn more_than_the_credit_is_a_violation() {
    let (mut switch, key) = open(3);
    let bytes = vec![7; 64 * 1024];
    for _ in 0..ROOM as usize / bytes.len() {
        switch.receive(&header(key, Operation::Data, 65536), &bytes);
        assert_eq!(effects(&mut switch), [Effect::Deliver(key)]);
    }
    switch.receive(&header(key, Operation::Data, 1), b"x");
    assert_eq!(effects(&mut switch), [Effect::Gone(key)]);
    assert_eq!(operations(&mut switch), [Operation::Reset]);
}

#[test]
fn a_length_that_lies_ends_the_connection() {
    let (mut switch, key) = open(3);
    switch.receive(&header(key, Operation::Data, 5), b"four");
    assert_eq!(effects(&mut switch), [Effect::Gone(key)]);
}

#[test]
fn the_guests_half_close_waits_for_its_bytes_and_leaves_the_other_way_open() {
    let (mut switch, key) = open(3);
    switch.receive(&header(key, Operation::Data, 4), b"last");
    switch.receive(&Header { flags: NO_SEND, ..header(key, Operation::Shutdown, 0) }, &[]);
    assert_eq!(effects(&mut switch), [Effect::Deliver(key)]);
    assert_eq!(switch.pending(key), b"last");
    switch.took(key, 4);
    assert_eq!(effects(&mut switch), [Effect::GuestSent(key)]);
    assert_eq!(operations(&mut switch), []);
    assert!(switch.may_send(key) > 0);
    switch.receive(&header(key, Operation::Data, 1), b"x");
    assert_eq!(effects(&mut switch), [Effect::Gone(key)], "bytes after the end");
}

#[test]
fn a_close_is_answered_with_the_reset_once_everything_was_taken() {
    let (mut switch, key) = open(3);
    switch.receive(&header(key, Operation::Data, 4), b"last");
    switch.receive(&Header { flags: CLOSED, ..header(key, Operation::Shutdown, 0) }, &[]);
    // Linux resets by itself after eight seconds; what it sent before still counts.
    switch.receive(&header(key, Operation::Reset, 0), &[]);
    assert_eq!(effects(&mut switch), [Effect::Deliver(key), Effect::GuestDeaf(key)]);
    assert_eq!(switch.may_send(key), 0);
    switch.took(key, 4);
    assert_eq!(effects(&mut switch), [Effect::GuestSent(key), Effect::Gone(key)]);
    assert_eq!(operations(&mut switch), [Operation::Reset]);
}

#[test]
fn the_hosts_ends_are_told_once_and_add_up() {
    let (mut switch, key) = open(3);
    switch.host_ends(key, NO_SEND);
    switch.host_ends(key, NO_SEND);
    switch.host_ends(key, NO_RECEIVE);
    let told: Vec<u32> = std::iter::from_fn(|| switch.next_control()).map(|header| header.flags).collect();
    assert_eq!(told, [NO_SEND, CLOSED]);
    assert_eq!(switch.may_send(key), 0);
    // What comes on its way is swallowed, not a violation.
    switch.receive(&header(key, Operation::Data, 4), b"late");
    assert_eq!(switch.pending(key), b"");
    switch.receive(&header(key, Operation::Reset, 0), &[]);
    assert!(effects(&mut switch).contains(&Effect::Gone(key)));
}

#[test]
fn a_dialled_guest_accepts_or_refuses() {
    let mut switch = Switch::new(GUEST);
    let key = switch.dial(2000, 5700).unwrap();
    assert_eq!(switch.dial(2000, 5700), None, "there is one already");
    let request = switch.next_control().unwrap();
    assert_eq!(request.operation(), Some(Operation::Request));
    assert_eq!((request.from, request.to), (Address { cid: 3, port: 2000 }, Address { cid: 16, port: 5700 }));
    switch.receive(&header(key, Operation::Response, 0), &[]);
    assert!(effects(&mut switch).contains(&Effect::Accepted(key)));

    let other = switch.dial(2001, 5700).unwrap();
    switch.receive(&header(other, Operation::Reset, 0), &[]);
    assert!(effects(&mut switch).contains(&Effect::Gone(other)));
}

#[test]
fn a_guest_that_leaves_answers_lying_is_not_listened_to() {
    let mut switch = Switch::new(GUEST);
    let mut port = 0;
    while switch.takes_packets() {
        port += 1;
        assert!(port < 100_000, "without bound");
        let key = Key { guest_port: port, ..key(9) };
        switch.receive(&header(key, Operation::Request, 0), &[]);
    }
    switch.next_control();
    assert!(switch.takes_packets());
}

/// What may happen next, in any order.
#[derive(Debug, Clone)]
enum Step {
    GuestWrites(u32),
    GuestReads(u32),
    GuestEnds,
    HostWrites(u32),
    HostReads(u32),
    HostEnds,
    Controls(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..70_000u32).prop_map(Step::GuestWrites),
        4 => (1..70_000u32).prop_map(Step::GuestReads),
        4 => (1..70_000u32).prop_map(Step::HostWrites),
        4 => (1..70_000u32).prop_map(Step::HostReads),
        4 => (0..4u8).prop_map(Step::Controls),
        1 => Just(Step::GuestEnds),
        1 => Just(Step::HostEnds),
    ]
}

/// A guest that keeps the rules, with a small receive buffer.
struct Guest {
    key: Key,
    room: u32,
    /// Bytes that were sent, and how far the switch says they were taken.
    sent: u32,
    host_room: u32,
    host_taken: u32,
    /// Bytes that were received and not read, and read.
    unread: VecDeque<u8>,
    read: Vec<u8>,
    ended: bool,
    host_ended: bool,
}

impl Guest {
    fn packet(&self, operation: Operation, length: u32) -> Header {
        Header { room: self.room, taken: self.read.len() as u32, ..header(self.key, operation, length) }
    }

    fn hears(&mut self, header: Header) {
        (self.host_room, self.host_taken) = (header.room, header.taken);
        match header.operation().unwrap() {
            Operation::Shutdown => self.host_ended |= header.flags & NO_SEND != 0,
            Operation::CreditUpdate | Operation::Response => {}
            other => panic!("{other:?} to a guest that keeps the rules"),
        }
    }

    fn may_send(&self) -> u32 {
        self.host_room - (self.sent - self.host_taken)
    }
}

fn stream(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

proptest! {
    #[test]
    fn bytes_arrive_in_order_within_credit_and_before_the_end(
        steps in prop::collection::vec(step(), 1..400),
        room in 1..100_000u32,
    ) {
        let (mut switch, key) = open(3);
        let mut guest = Guest {
            key, room, sent: 0, host_room: ROOM, host_taken: 0,
            unread: VecDeque::new(), read: Vec::new(), ended: false, host_ended: false,
        };
        let update = guest.packet(Operation::CreditUpdate, 0);
        switch.receive(&update, &[]);
        let (mut host_wrote, mut host_read, mut host_ended) = (0, Vec::new(), false);
        let mut told_end = false;
        // Whatever happened before, at last everybody reads until nothing moves.
        let finish = [Step::GuestReads(100_000), Step::HostReads(100_000), Step::Controls(200)];
        let steps = steps.into_iter().chain(std::iter::repeat_n(finish, 8).flatten());
        for step in steps {
            match step {
                Step::GuestWrites(count) if !guest.ended => {
                    let count = count.min(guest.may_send());
                    let bytes = stream(guest.sent as usize, count as usize);
                    let packet = guest.packet(Operation::Data, count);
                    guest.sent += count;
                    switch.receive(&packet, &bytes);
                }
                Step::GuestReads(count) => {
                    let count = (count as usize).min(guest.unread.len());
                    guest.read.extend(guest.unread.drain(..count));
                    let update = guest.packet(Operation::CreditUpdate, 0);
                    switch.receive(&update, &[]);
                }
                Step::GuestEnds if !guest.ended => {
                    guest.ended = true;
                    let packet = Header { flags: NO_SEND, ..guest.packet(Operation::Shutdown, 0) };
                    switch.receive(&packet, &[]);
                }
                Step::HostWrites(count) if !host_ended => {
                    let count = count.min(switch.may_send(key));
                    if count > 0 {
                        prop_assert!(guest.unread.len() as u32 + count <= guest.room, "over the guest's credit");
                        let packet = switch.send(key, count).unwrap();
                        guest.unread.extend(stream(host_wrote, count as usize));
                        (guest.host_room, guest.host_taken) = (packet.room, packet.taken);
                        host_wrote += count as usize;
                    }
                }
                Step::HostReads(mut count) => while count > 0 {
                    let bytes = switch.pending(key);
                    if bytes.is_empty() {
                        break;
                    }
                    let take = bytes.len().min(count as usize);
                    host_read.extend_from_slice(&bytes[..take]);
                    switch.took(key, take);
                    count -= take as u32;
                },
                Step::HostEnds if !host_ended => {
                    host_ended = true;
                    switch.host_ends(key, NO_SEND);
                }
                Step::Controls(count) => for _ in 0..count {
                    let Some(header) = switch.next_control() else { break };
                    guest.hears(header);
                },
                _ => {}
            }
            for effect in effects(&mut switch) {
                prop_assert_ne!(effect, Effect::Gone(key));
                if effect == Effect::GuestSent(key) {
                    prop_assert!(guest.ended && !told_end);
                    prop_assert_eq!(host_read.len(), guest.sent as usize, "the end overtook bytes");
                    told_end = true;
                }
            }
        }
        prop_assert_eq!(&host_read, &stream(0, guest.sent as usize));
        prop_assert_eq!(&guest.read, &stream(0, host_wrote));
        prop_assert_eq!(told_end, guest.ended);
        prop_assert_eq!(guest.host_ended, host_ended);
        // Nobody is stuck: the guest knows of at least half of the room again.
        prop_assert!(guest.may_send() >= ROOM / 2, "starved: {}", guest.may_send());
    }

    #[test]
    fn whatever_a_guest_sends_memory_stays_bounded(
        packets in prop::collection::vec((any::<[u8; 4]>(), 0..9u16, 0..4u32, 0..200usize), 0..300),
    ) {
        let mut switch = Switch::new(GUEST);
        for ([cid, host, guest, answer], code, flags, length) in packets {
            let key = Key { host_cid: (cid % 5).into(), host_port: (host % 3).into(), guest_port: (guest % 3).into() };
            let length = length * 400;
            let raw = Header { code, flags, ..header(key, Operation::Data, length as u32) };
            switch.receive(&raw, &vec![0; length]);
            for effect in effects(&mut switch) {
                if let Effect::Dial(key) = effect {
                    switch.answer(key, answer % 4 != 0);
                }
            }
            prop_assert!(switch.pending(key).len() <= ROOM as usize);
        }
    }
}
