//! The guest's vsock device over vhost-user: carries packets between the queues,
//! the [`Switch`] and the parent's sockets, which are AF_UNIX.
//!
//! ```text
//! TX queue ─▶ take_packets ─▶ Switch ─▶ act ─▶ sockets ─┐
//! RX queue ◀─ fill ◀───────── Switch ◀───────── ready ◀─┘
//! ```
//!
//! One thread, the device's, does all of it; it is woken by either queue, by the
//! sockets (an epoll within its epoll) or by [`Vsock::dial`] and [`Vsock::attach`].
//! Bytes for the guest are read no earlier than it has a buffer for them.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::Socket;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use super::queue::{self, Exit, FEATURES, Memory, Vring};
use super::sockets::{Sockets, WAKE};
use crate::node::Node;
use crate::node::writes::{LargeWrites, SAFE_WRITE, damaged};
use crate::vsock::{HEADER_LEN, Header, Key, Switch};

const RX: usize = 0;
const TX: usize = 1;
/// Number of the event that sockets raise; 2 is the framework's.
pub(super) const SOCKETS_EVENT: u64 = 3;
/// The most that is read from a socket at once, bytes: what Linux puts in a packet.
const READ_AT_ONCE: usize = 64 * 1024;
/// Packets taken, or sent, before anybody else gets a turn.
const BATCH: usize = 128;

/// The device.
pub(crate) struct Vsock {
    cid: u32,
    node: Arc<Node>,
    epoll: Epoll,
    wake: EventFd,
    exit: Exit,
    state: Mutex<State>,
}

struct State {
    memory: Option<Memory>,
    vrings: Option<Vec<Vring>>,
    switch: Switch,
    sockets: Sockets,
    scratch: Vec<u8>,
}

impl Vsock {
    /// A device for the guest that has this CID.
    pub(super) fn new(cid: u32, node: Arc<Node>) -> io::Result<Vsock> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE))?;
        let state = State {
            memory: None,
            vrings: None,
            switch: Switch::new(cid),
            sockets: Sockets::default(),
            scratch: vec![0; READ_AT_ONCE],
        };
        Ok(Vsock { cid, node, epoll, wake, exit: Exit::new()?, state: Mutex::new(state) })
    }

    /// Readable when a socket wants something: event [`SOCKETS_EVENT`].
    pub(super) fn sockets(&self) -> &impl AsRawFd {
        &self.epoll.0
    }

    /// Asks the guest for a connection from the parent's `host_port`. The
    /// receiver tells whether it accepted, and is cut off with the guest.
    ///
    /// `None` when nobody in the guest can answer yet: its driver is not up.
    pub(crate) fn dial(&self, host_port: u32, guest_port: u32) -> Option<(Key, Receiver<bool>)> {
        let mut state = self.state();
        state.vrings.as_ref()?;
        let key = state.switch.dial(host_port, guest_port)?;
        let (sender, receiver) = channel();
        state.sockets.expect(key, sender);
        drop(state);
        self.wake();
        Some((key, receiver))
    }

    /// Gives an accepted connection its socket.
    pub(crate) fn attach(&self, key: Key, socket: Socket) -> io::Result<()> {
        let mut state = self.state();
        let State { switch, sockets, .. } = &mut *state;
        sockets.attach(&self.epoll, switch, key, socket)?;
        drop(state);
        self.wake();
        Ok(())
    }

    /// Takes a connection back that nobody waits for any more.
    pub(crate) fn abandon(&self, key: Key) {
        self.state().switch.reset(key);
        self.wake();
    }

    /// Delivers what the guest sent last, and closes every socket.
    pub(super) fn end(&self) {
        let mut state = self.state();
        self.act(&mut state);
        state.sockets = Sockets::default();
        state.vrings = None;
        state.switch = Switch::new(self.cid);
    }

    fn wake(&self) {
        // It can only fail when it is about to wake anyhow.
        let _ = self.wake.write(1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that can be done now, in turns.
    fn work(&self, state: &mut State) -> io::Result<()> {
        for _ in 0..BATCH {
            self.ready(state)?;
            let taken = self.take_packets(state)?;
            let acted = self.act(state);
            let sent = self.fill(state)?;
            if !taken && !acted && !sent && !state.switch.has_effect() {
                return Ok(());
            }
        }
        self.wake();
        Ok(())
    }

    /// Notes which sockets have something.
    fn ready(&self, state: &mut State) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            for event in &events[..count] {
                if event.data() == WAKE {
                    let _ = self.wake.read();
                } else {
                    state.sockets.ready(&mut state.switch, event.data(), event.events());
                }
            }
            if count < events.len() {
                return Ok(());
            }
        }
    }

    /// Packets of the guest. Whether there were any.
    fn take_packets(&self, state: &mut State) -> io::Result<bool> {
        let State { memory: Some(memory), vrings: Some(vrings), switch, .. } = state else {
            return Ok(false);
        };
        let Some(vring) = vrings.get(TX) else { return Ok(false) };
        let mut count = 0;
        while count < BATCH && switch.takes_packets() {
            let Some(chain) = queue::next_chain(vring, memory) else { break };
            match packet(&chain) {
                Ok((header, payload)) => switch.receive(&header, &self.checked(payload)),
                Err(error) => eprintln!("enclave {}: not a vsock packet: {error}", self.cid),
            }
            queue::give_back(vring, chain.head(), 0)?;
            count += 1;
        }
        if count > 0 {
            vring.signal_used_queue()?;
        }
        Ok(count > 0)
    }

    /// A packet above 32 KiB is a write above 32 KiB: counted, and damaged if asked for.
    fn checked(&self, payload: Vec<u8>) -> Vec<u8> {
        let mode = self.node.config.large_writes;
        if payload.len() <= SAFE_WRITE as usize || mode == LargeWrites::Off {
            return payload;
        }
        self.node.stats.count_large_write(self.cid);
        if mode == LargeWrites::Corrupt { damaged(payload) } else { payload }
    }

    /// What the switch asks for. Whether there was anything.
    fn act(&self, state: &mut State) -> bool {
        let State { switch, sockets, .. } = state;
        let mut any = false;
        while let Some(effect) = switch.next_effect() {
            sockets.act(&self.epoll, &self.node, self.cid, switch, effect);
            any = true;
        }
        any
    }

    /// Fills the guest's buffers. Whether any was.
    fn fill(&self, state: &mut State) -> io::Result<bool> {
        let State { memory: Some(memory), vrings: Some(vrings), switch, sockets, scratch } = state else {
            return Ok(false);
        };
        let Some(vring) = vrings.get(RX) else { return Ok(false) };
        let mut count = 0;
        while count < BATCH && (switch.has_control() || sockets.has_readable()) {
            let Some(chain) = queue::next_chain(vring, memory) else { break };
            let room = chain.writer()?.available_bytes().saturating_sub(HEADER_LEN).min(scratch.len());
            let next = match switch.next_control() {
                Some(header) => Some((header, 0)),
                None => sockets.read(switch, &mut scratch[..room]),
            };
            match next {
                Some((header, length)) => chain.fill(vring, &[&header.to_bytes(), &scratch[..length]])?,
                None => queue::put_back(vring),
            }
            // A socket that was at its end has made a packet without bytes.
            if next.is_some() {
                count += 1;
            }
        }
        if count > 0 {
            vring.signal_used_queue()?;
        }
        Ok(count > 0)
    }
}

/// A packet, wherever the driver's descriptors have its pieces.
fn packet(chain: &queue::Chain) -> io::Result<(Header, Vec<u8>)> {
    let mut reader = chain.reader()?;
    let mut raw = [0; HEADER_LEN];
    reader.read_exact(&mut raw)?;
    let header = Header::parse(&raw).ok_or(io::ErrorKind::InvalidData)?;
    let length = (header.length as usize).min(reader.available_bytes());
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload)?;
    Ok((header, payload))
}

impl VhostUserBackend for Vsock {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&self, _: bool) {}

    /// `struct virtio_vsock_config`: the guest's CID.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = u64::from(self.cid).to_le_bytes();
        let wanted = (offset as usize)..(offset as usize).saturating_add(size as usize);
        config.get(wanted).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.state().memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.take()
    }

    /// The guest is stopping: what it sent before is still there.
    fn stop_vring(&self, index: u32) -> io::Result<()> {
        let mut state = self.state();
        let vring = state.vrings.as_ref().and_then(|vrings| vrings.get(index as usize).cloned());
        if let Some(vring) = vring.filter(|_| index as usize == TX) {
            vring.set_queue_ready(true);
            let taken = self.take_packets(&mut state);
            vring.set_queue_ready(false);
            self.act(&mut state);
            taken?;
        }
        Ok(())
    }

    fn handle_event(&self, _: u16, _: EventSet, vrings: &[Vring], _: usize) -> io::Result<()> {
        let mut state = self.state();
        if state.vrings.is_none() && vrings.iter().all(|vring| vring.get_ref().is_enabled()) {
            state.vrings = Some(vrings.to_vec());
        }
        let worked = self.work(&mut state);
        if let Err(error) = &worked {
            eprintln!("enclave {}: vsock: {error}", self.cid);
        }
        worked
    }
}
