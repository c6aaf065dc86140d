//! The threads that carry: one for each core, each with a runtime of its own.
//!
//! ```text
//! accept ─▶ least loaded carrier ─▶ task that never moves to another thread
//! ```
//! Accepting is the first carrier's work too: where connections come one after
//! the other, no second thread is woken for any of them.
//!
//! A connection is woken on the core that carried it last and wakes no other
//! worker to share the work, which is where a runtime over all cores spends
//! 5 to 20 % more CPU (docs/performance.md).

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::Listener;

/// Threads for connections. Dropping it ends what they carry, and joins them.
#[derive(Debug)]
pub struct Carriers {
    each: Vec<Carrier>,
    /// Listeners that are served; they are no connections.
    listeners: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Carrier {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// One connection's place on a carrier; dropping it gives the place back.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Carriers {
    /// One for each core that this process may use, at most `most`.
    pub fn start(most: usize) -> io::Result<Carriers> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let each = (0..cores.min(most).max(1)).map(Carrier::start).collect::<io::Result<_>>()?;
        Ok(Carriers { each, listeners: Arc::default() })
    }

    /// The carrier that serves listeners, and that [`Carriers::place`] prefers among equals.
    fn first(&self) -> Handle {
        // There is always one: `start` makes one at least.
        self.each.first().map_or_else(Handle::current, |carrier| carrier.runtime.clone())
    }

    /// A listener for [`Carriers::accept`] from a socket that listens and does not block.
    pub fn listener(&self, socket: impl Into<OwnedFd>) -> io::Result<Listener> {
        let first = self.first();
        let _watching = first.enter();
        Listener::new(socket)
    }

    /// Serves a listener of [`Carriers::listener`] until `accepting` ends.
    pub fn accept(&self, accepting: impl Future<Output = ()> + Send + 'static) {
        let first = self.first();
        self.listeners.fetch_add(1, Ordering::Relaxed);
        let served = Place(Arc::clone(&self.listeners));
        first.spawn(async move {
            accepting.await;
            drop(served);
        });
    }

    /// Where fewest connections are: the task is spawned there and keeps the place.
    pub fn place(&self) -> (Handle, Place) {
        // There is always one: `start` makes one at least.
        let carrier = self.each.iter().min_by_key(|carrier| carrier.connections.load(Ordering::Relaxed));
        let (runtime, connections) = match carrier {
            Some(carrier) => (carrier.runtime.clone(), Arc::clone(&carrier.connections)),
            None => (Handle::current(), Arc::default()),
        };
        connections.fetch_add(1, Ordering::Relaxed);
        (runtime, Place(connections))
    }

    /// Tasks of all carriers that have not ended, but for their listeners.
    pub fn tasks(&self) -> usize {
        let alive: usize = self.each.iter().map(|carrier| carrier.runtime.metrics().num_alive_tasks()).sum();
        alive.saturating_sub(self.listeners.load(Ordering::Relaxed))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Carrier {
    fn start(number: usize) -> io::Result<Carrier> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name(format!("carrier-{number}")).spawn(move || {
            // An error is the sender's drop, which is the order to stop.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Carrier { runtime: handle, connections: Arc::default(), stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The last to let go may be a listener, on the very thread that it would wait for.
        let own = |thread: &JoinHandle<()>| thread.thread().id() == thread::current().id();
        if let Some(thread) = self.thread.take().filter(|thread| !own(thread)) {
            // A carrier that panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_where_fewest_are() {
        let carriers = Carriers {
            each: (0..3).map(|number| Carrier::start(number).unwrap()).collect(),
            listeners: Arc::default(),
        };
        let loads = || -> Vec<usize> {
            carriers.each.iter().map(|carrier| carrier.connections.load(Ordering::Relaxed)).collect()
        };
        let mut places: Vec<(Handle, Place)> = (0..6).map(|_| carriers.place()).collect();
        assert_eq!(loads(), [2, 2, 2]);
        // The second carrier's connections end; it gets the next two.
        let second = &carriers.each[1].connections;
        places.retain(|(_, place)| !Arc::ptr_eq(&place.0, second));
        assert_eq!(loads(), [2, 0, 2]);
        places.extend((0..2).map(|_| carriers.place()));
        assert_eq!(loads(), [2, 2, 2]);
    }

    #[test]
    fn a_listener_is_served_on_the_first_and_is_no_connection() {
        let carriers = Arc::new(Carriers::start(2).unwrap());
        let (said, hear) = std::sync::mpsc::channel();
        let (ending, ended) = oneshot::channel::<()>();
        // As in the shim: the listener's task is the last to hold the carriers.
        let held = Arc::clone(&carriers);
        carriers.accept(async move {
            said.send(thread::current().name().map(str::to_owned)).unwrap();
            let _ = ended.await;
            drop(held);
            said.send(None).unwrap();
        });
        assert_eq!(hear.recv().unwrap().as_deref(), Some("carrier-0"));
        assert_eq!(carriers.tasks(), 0);
        drop(carriers);
        ending.send(()).unwrap();
        assert_eq!(hear.recv().unwrap(), None);
    }

    #[test]
    fn dropping_them_ends_what_they_carry() {
        let carriers = Carriers::start(2).unwrap();
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<()>(1);
        let (carrier, _place) = carriers.place();
        carrier.spawn(async move {
            std::future::pending::<()>().await;
            drop(sender);
        });
        assert!(carriers.tasks() <= 1);
        drop(carriers);
        assert_eq!(receiver.blocking_recv(), None);
    }
}
