//! What both devices share: guest memory, queues, and the thread that serves them.

use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use vhost::vhost_user::Listener;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT, Reader, Writer};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// `VIRTIO_F_VERSION_1`, and ring features that need nothing of a device.
const VERSION_1: u64 = 1 << 32;
const INDIRECT: u64 = 1 << 28;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL: u64 = 1 << 30;
/// What both devices offer.
pub(super) const FEATURES: u64 = VERSION_1 | INDIRECT | PROTOCOL;

/// The guest's memory, as the front-end shares it.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;
/// One queue.
pub(super) type Vring = VringMutex<Memory>;
/// A buffer that the driver offers.
pub(super) struct Chain {
    inner: DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap<()>>>,
    memory: GuestMemoryLoadGuard<GuestMemoryMmap<()>>,
}

/// The next buffer of a queue that is in use.
pub(super) fn next_chain(vring: &Vring, memory: &Memory) -> Option<Chain> {
    let memory = memory.memory();
    let mut state = vring.get_mut();
    if !state.is_enabled() || !state.get_queue().ready() {
        return None;
    }
    let inner = state.get_queue_mut().pop_descriptor_chain(memory.clone())?;
    Some(Chain { inner, memory })
}

/// Puts the last buffer of [`next_chain`] back.
pub(super) fn put_back(vring: &Vring) {
    vring.get_mut().get_queue_mut().go_to_previous_position();
}

/// Gives a buffer back, `written` bytes of it filled.
pub(super) fn give_back(vring: &Vring, head: u16, written: usize) -> io::Result<()> {
    let written = u32::try_from(written).map_err(io::Error::other)?;
    vring.add_used(head, written).map_err(io::Error::other)
}

impl Chain {
    /// What [`give_back`] takes.
    pub(super) fn head(&self) -> u16 {
        self.inner.head_index()
    }

    /// The bytes that the driver wrote, wherever its descriptors have them.
    pub(super) fn reader(&self) -> io::Result<Reader<'_, ()>> {
        self.inner.clone().reader(&*self.memory).map_err(io::Error::other)
    }

    /// Room for bytes of the device.
    pub(super) fn writer(&self) -> io::Result<Writer<'_, ()>> {
        self.inner.clone().writer(&*self.memory).map_err(io::Error::other)
    }

    /// Fills the buffer from its start and gives it back.
    pub(super) fn fill(self, vring: &Vring, parts: &[&[u8]]) -> io::Result<()> {
        let mut writer = self.writer()?;
        for part in parts {
            writer.write_all(part)?;
        }
        let written = writer.bytes_written();
        give_back(vring, self.head(), written)
    }
}

/// Ends the thread that serves a device.
pub(super) struct Exit {
    pair: Mutex<Option<(EventConsumer, EventNotifier)>>,
}

impl Exit {
    pub(super) fn new() -> io::Result<Exit> {
        let pair = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(Exit { pair: Mutex::new(Some(pair)) })
    }

    /// Once: there is one thread.
    pub(super) fn take(&self) -> Option<(EventConsumer, EventNotifier)> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A device that is about to be, or is, connected to its front-end.
pub(super) struct Served<T: VhostUserBackend> {
    daemon: VhostUserDaemon<T>,
    listener: UnixListener,
}

impl<T> Served<T>
where
    T: VhostUserBackend<Bitmap = (), Vring = Vring> + Clone + 'static,
{
    /// Listens at `path` on behalf of `device`.
    pub(super) fn listen(name: &str, device: T, path: &Path) -> io::Result<Served<T>> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let text = |error: vhost_user_backend::Error| io::Error::other(error.to_string());
        let daemon = VhostUserDaemon::new(name.to_owned(), device, memory).map_err(text)?;
        Ok(Served { daemon, listener: UnixListener::bind(path)? })
    }

    /// Calls the device with event `number` when `fd` is readable.
    pub(super) fn watch(&self, fd: &impl std::os::fd::AsRawFd, number: u64) -> io::Result<()> {
        let readable = vmm_sys_util::epoll::EventSet::IN;
        for handler in self.daemon.get_epoll_handlers() {
            handler.register_listener(fd.as_raw_fd(), readable, number)?;
        }
        Ok(())
    }

    /// Readable when the front-end connects.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Takes the front-end's connection, which must be there.
    pub(super) fn accept(&mut self) -> io::Result<()> {
        let mut listener = Listener::from(self.listener.try_clone()?);
        self.daemon.start(&mut listener).map_err(|error| io::Error::other(error.to_string()))
    }

    /// Waits for the front-end to go, then ends the device's threads.
    pub(super) fn wait(mut self) -> io::Result<()> {
        use vhost::vhost_user::Error::{Disconnected, PartialMessage};
        match self.daemon.wait() {
            Ok(()) | Err(vhost_user_backend::Error::HandleRequest(Disconnected | PartialMessage)) => Ok(()),
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }
}
