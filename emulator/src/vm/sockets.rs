//! The parent's ends of the guest's connections: non-blocking AF_UNIX sockets
//! that bear vsock addresses as names.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, send};
use socket2::{Domain, Socket, Type};
use std::os::fd::AsRawFd;

use crate::node::Node;
use crate::node::names::{Address, PARENT};
use crate::vsock::{CLOSED, Effect, Header, Key, NO_RECEIVE, NO_SEND, Switch};

/// What the epoll says when it is no socket that woke it.
pub(super) const WAKE: u64 = 0;

/// See the module.
#[derive(Default)]
pub(super) struct Sockets {
    lines: HashMap<Key, Line>,
    keys: HashMap<u64, Key>,
    last: u64,
    readable: VecDeque<Key>,
}

/// One connection's end.
#[derive(Default)]
struct Line {
    socket: Option<Socket>,
    /// Number in the epoll; 0 without a socket.
    number: u64,
    /// Who waits for the guest to accept.
    waiting: Option<Sender<bool>>,
    /// It is in `readable`.
    queued: bool,
    /// The end of its bytes was seen.
    at_end: bool,
    guest_sent: bool,
    guest_deaf: bool,
}

impl Sockets {
    /// Whether [`Sockets::read`] may find something.
    pub(super) fn has_readable(&self) -> bool {
        !self.readable.is_empty()
    }

    /// A connection that the parent opens; `waiting` learns what the guest says.
    pub(super) fn expect(&mut self, key: Key, waiting: Sender<bool>) {
        self.lines.insert(key, Line { waiting: Some(waiting), ..Line::default() });
    }

    /// Gives a connection its socket. One that is over by now is closed instead.
    pub(super) fn attach(
        &mut self,
        epoll: &Epoll,
        switch: &mut Switch,
        key: Key,
        socket: Socket,
    ) -> io::Result<()> {
        let Some(line) = self.lines.get_mut(&key) else { return Ok(()) };
        self.last += 1;
        socket.set_nonblocking(true)?;
        let wanted =
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(&socket, EpollEvent::new(wanted, self.last))?;
        self.keys.insert(self.last, key);
        line.number = self.last;
        line.shut(&socket);
        line.socket = Some(socket);
        self.deliver(switch, key);
        Ok(())
    }

    /// Socket `number` raised `events`.
    pub(super) fn ready(&mut self, switch: &mut Switch, number: u64, events: EpollFlags) {
        let Some(&key) = self.keys.get(&number) else { return };
        if events.contains(EpollFlags::EPOLLOUT) {
            self.deliver(switch, key);
        }
        let at_end = self.lines.get(&key).is_some_and(|line| line.at_end);
        if at_end && events.contains(EpollFlags::EPOLLHUP) {
            switch.host_ends(key, CLOSED);
        }
        self.queue(key);
    }

    /// Does what the switch asks for.
    pub(super) fn act(
        &mut self,
        epoll: &Epoll,
        node: &Node,
        guest: u32,
        switch: &mut Switch,
        effect: Effect,
    ) {
        match effect {
            Effect::Dial(key) => {
                let dialled = dial(node, guest, key).and_then(|socket| {
                    self.lines.insert(key, Line::default());
                    self.attach(epoll, switch, key, socket)
                });
                if dialled.is_ok() {
                    node.stats.count_connection();
                } else {
                    self.forget(key);
                }
                switch.answer(key, dialled.is_ok());
            }
            Effect::Accepted(key) => self.tell(key, true),
            Effect::Deliver(key) => self.deliver(switch, key),
            Effect::Room(key) => self.queue(key),
            Effect::GuestSent(key) => self.change(key, |line| line.guest_sent = true),
            Effect::GuestDeaf(key) => self.change(key, |line| line.guest_deaf = true),
            Effect::Gone(key) => {
                self.tell(key, false);
                self.forget(key);
            }
        }
    }

    /// The next bytes for the guest, read into `into`, and their packet's header.
    pub(super) fn read(&mut self, switch: &mut Switch, into: &mut [u8]) -> Option<(Header, usize)> {
        while let Some(key) = self.readable.pop_front() {
            let Some(line) = self.lines.get_mut(&key) else { continue };
            line.queued = false;
            let limit = (switch.may_send(key) as usize).min(into.len());
            let Some(socket) = line.socket.as_ref().filter(|_| limit > 0 && !line.at_end) else { continue };
            match (&*socket).read(&mut into[..limit]) {
                Ok(0) => {
                    line.at_end = true;
                    let closed = hung_up(socket);
                    switch.host_ends(key, if closed { CLOSED } else { NO_SEND });
                    return None;
                }
                Ok(count) => {
                    self.queue(key);
                    return switch.send(key, count as u32).map(|header| (header, count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.queue(key),
                Err(_) => {
                    // Closed with bytes of the guest unread.
                    line.at_end = true;
                    switch.host_ends(key, CLOSED);
                    return None;
                }
            }
        }
        None
    }

    /// Writes what waits for the socket, as far as it takes it.
    fn deliver(&mut self, switch: &mut Switch, key: Key) {
        let Some(socket) = self.lines.get(&key).and_then(|line| line.socket.as_ref()) else { return };
        loop {
            let bytes = switch.pending(key);
            if bytes.is_empty() {
                return;
            }
            match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(count) => switch.took(key, count),
                Err(nix::errno::Errno::EAGAIN) => return,
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return switch.host_ends(key, NO_RECEIVE),
            }
        }
    }

    fn queue(&mut self, key: Key) {
        if let Some(line) = self.lines.get_mut(&key)
            && line.socket.is_some()
            && !line.at_end
            && !std::mem::replace(&mut line.queued, true)
        {
            self.readable.push_back(key);
        }
    }

    fn change(&mut self, key: Key, what: impl FnOnce(&mut Line)) {
        if let Some(line) = self.lines.get_mut(&key) {
            what(line);
            if let Some(socket) = &line.socket {
                line.shut(socket);
            }
        }
    }

    fn tell(&mut self, key: Key, accepted: bool) {
        if let Some(waiting) = self.lines.get_mut(&key).and_then(|line| line.waiting.take()) {
            // Its caller may have given up.
            let _ = waiting.send(accepted);
        }
    }

    fn forget(&mut self, key: Key) {
        if let Some(line) = self.lines.remove(&key) {
            self.keys.remove(&line.number);
        }
    }
}

impl Line {
    /// Passes the guest's ends on; those that were passed on before change nothing.
    fn shut(&self, socket: &Socket) {
        // A peer that is gone has nothing to learn.
        if self.guest_sent {
            let _ = socket.shutdown(Shutdown::Write);
        }
        if self.guest_deaf {
            let _ = socket.shutdown(Shutdown::Read);
        }
    }
}

/// Connects to the parent's socket at `key.host_port` from the guest's own address.
fn dial(node: &Node, guest: u32, key: Key) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&node.names.name(Address { cid: guest, port: key.guest_port })?)?;
    socket.connect(&node.names.name(Address { cid: PARENT, port: key.host_port })?)?;
    Ok(socket)
}

/// Whether the other end is closed, not just shut for writing.
fn hung_up(socket: &Socket) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO).is_ok();
    polled && fds[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
}
