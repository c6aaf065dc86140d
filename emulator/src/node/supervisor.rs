//! Answers the system calls of one filter: of a command's process tree, or of
//! an enclave's.
//!
//! ```text
//! caller ─syscall─▶ listener ─▶ serve ─▶ handler ─▶ answer ─▶ caller goes on
//!                                          └ may block ─▶ thread ─▶ answer
//! ```
//!
//! One thread takes calls and never blocks in one; calls that wait go on in
//! threads that end when their caller does. [`Desk::serve`] returns when the
//! last process under the filter has ended.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use super::caller::{Caller, Errno, Outcome};
use super::enclave::Enclave;
use super::{Node, device, names, nsm_device, options, vsock, writes};
use crate::sys::notify::{Call, Listener, Reply};
use crate::sys::pidfd::Pidfd;

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID` of `linux/vm_sockets.h`.
pub(crate) const GET_LOCAL_CID: u32 = 0x07b9;
/// `NSM_IOCTL_RAW` of `linux/nsm.h`: _IOWR(0x0A, 0, 32 bytes).
pub(crate) const NSM_RAW: u32 = 0xC020_0A00;
/// `RNDADDTOENTCNT` and `RNDADDENTROPY` of `linux/random.h`.
pub(crate) const RNG_COUNT: u32 = 0x4004_5201;
/// See [`RNG_COUNT`].
pub(crate) const RNG_ADD: u32 = 0x4008_5203;
/// Threads whose pidfds are kept open by a desk.
const KNOWN_THREADS: usize = 256;

/// Who is under a filter.
pub(crate) enum Member {
    /// Programs on the parent instance.
    Parent,
    /// The programs of one enclave.
    Enclave(Arc<Enclave>),
}

impl Member {
    /// The CID that this member's sockets have.
    pub(crate) fn cid(&self) -> u32 {
        match self {
            Member::Parent => names::PARENT,
            Member::Enclave(enclave) => enclave.cid,
        }
    }
}

/// Where the calls of one filter arrive.
pub(crate) struct Desk {
    /// The node that answers.
    pub(crate) node: Arc<Node>,
    /// The filter's listener.
    pub(crate) listener: Listener,
    /// Who calls.
    pub(crate) member: Member,
    lost: Mutex<Lost>,
}

/// Results whose caller was interrupted by a signal before it got them.
#[derive(Default)]
struct Lost {
    accepted: HashMap<u64, VecDeque<Socket>>,
    connected: HashSet<u64>,
}

impl Desk {
    /// A desk for `member`.
    pub(crate) fn new(node: Arc<Node>, listener: Listener, member: Member) -> Desk {
        Desk { node, listener, member, lost: Mutex::default() }
    }

    /// Answers calls until nobody is left under the filter.
    pub(crate) fn serve(&self) -> io::Result<()> {
        let mut threads: HashMap<i32, Arc<Pidfd>> = HashMap::new();
        thread::scope(|workers| {
            loop {
                let mut wanted = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
                match poll(&mut wanted, PollTimeout::NONE) {
                    Err(nix::errno::Errno::EINTR) => continue,
                    other => other?,
                };
                let seen = wanted[0].revents().unwrap_or(PollFlags::empty());
                if !seen.contains(PollFlags::POLLIN) {
                    return Ok(());
                }
                if let Some(call) = self.listener.receive()? {
                    self.take(call, &mut threads, workers);
                }
            }
        })
    }

    /// Takes a connection that an interrupted accept left behind.
    pub(crate) fn take_unclaimed(&self, listener: u64) -> Option<Socket> {
        self.lost().accepted.get_mut(&listener)?.pop_front()
    }

    /// Whether a connect succeeded without its caller learning of it.
    pub(crate) fn take_undelivered(&self, cookie: u64) -> bool {
        self.lost().connected.remove(&cookie)
    }

    fn take<'scope>(
        &'scope self,
        call: Call,
        threads: &mut HashMap<i32, Arc<Pidfd>>,
        workers: &'scope Scope<'scope, '_>,
    ) {
        let Some(pidfd) = known(threads, call.thread) else {
            let _ = self.listener.reply(call.id, Reply::Errno(libc::ESRCH));
            return;
        };
        let caller = Caller { desk: self, call, pidfd };
        match dispatch(&caller) {
            Err(Errno(libc::ESRCH)) if threads.remove(&call.thread).is_some() => {
                // The number belongs to a new thread by now.
                let again = known(threads, call.thread).map(|pidfd| Caller { pidfd, ..caller });
                let result = again.as_ref().map_or(Err(Errno(libc::ESRCH)), dispatch);
                self.finish(again, call, result, workers);
            }
            result => self.finish(Some(caller), call, result, workers),
        }
    }

    fn finish<'scope>(
        &'scope self,
        caller: Option<Caller<'scope>>,
        call: Call,
        result: Result<Outcome, Errno>,
        workers: &'scope Scope<'scope, '_>,
    ) {
        match (result, caller) {
            (Ok(Outcome::Later(job)), Some(caller)) => {
                let spawned =
                    thread::Builder::new().name("blocked call".into()).spawn_scoped(workers, move || {
                        let result = job(&caller);
                        self.answer(call, result);
                    });
                if spawned.is_err() {
                    self.answer(call, Err(Errno(libc::EAGAIN)));
                }
            }
            (result, _) => self.answer(call, result),
        }
    }

    /// Gives the caller its result; what it cannot take any more is kept for
    /// its next call.
    fn answer(&self, call: Call, result: Result<Outcome, Errno>) {
        let sent = match result {
            Ok(Outcome::Native) => self.listener.reply(call.id, Reply::Native),
            Ok(Outcome::Value(value)) => self.listener.reply(call.id, Reply::Value(value)),
            Ok(Outcome::Descriptor { fd, close_on_exec }) => {
                self.listener.reply_with_fd(call.id, fd.as_fd(), close_on_exec)
            }
            Ok(Outcome::Accepted { listener, socket, close_on_exec }) => {
                let sent = self.listener.reply_with_fd(call.id, socket.as_fd(), close_on_exec);
                if is_gone(&sent) {
                    self.lost().accepted.entry(listener).or_default().push_front(socket);
                }
                sent
            }
            Ok(Outcome::Connected { cookie }) => {
                self.node.stats.count_connection();
                let sent = self.listener.reply(call.id, Reply::Value(0));
                if is_gone(&sent) {
                    self.lost().connected.insert(cookie);
                }
                sent
            }
            // A job never hands on to another job.
            Ok(Outcome::Later(_)) => self.listener.reply(call.id, Reply::Errno(libc::EDEADLK)),
            Err(Errno(errno)) => self.listener.reply(call.id, Reply::Errno(errno)),
        };
        if let Err(error) = sent
            && error.raw_os_error() != Some(libc::ENOENT)
        {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let _ = self.listener.reply(call.id, Reply::Errno(errno));
        }
    }

    fn lost(&self) -> MutexGuard<'_, Lost> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_gone(sent: &io::Result<()>) -> bool {
    sent.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT))
}

/// The pidfd of a thread. A kept one whose thread has ended answers ESRCH
/// for ever, so it can never stand for another thread.
fn known(threads: &mut HashMap<i32, Arc<Pidfd>>, thread: i32) -> Option<Arc<Pidfd>> {
    if let Some(pidfd) = threads.get(&thread) {
        return Some(pidfd.clone());
    }
    if threads.len() >= KNOWN_THREADS {
        threads.clear();
    }
    let pidfd = Arc::new(Pidfd::of_thread(thread).ok()?);
    threads.insert(thread, pidfd.clone());
    Some(pidfd)
}

/// Which handler a call belongs to; the filter lets nothing else through.
fn dispatch(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    match caller.call.number {
        libc::SYS_socket => vsock::socket(caller),
        libc::SYS_bind => vsock::bind(caller),
        libc::SYS_connect => vsock::connect(caller),
        libc::SYS_accept => vsock::accept(caller, 0),
        libc::SYS_accept4 => vsock::accept(caller, caller.int(3)),
        libc::SYS_getsockname => vsock::own_address(caller),
        libc::SYS_getpeername => vsock::peer_address(caller),
        libc::SYS_getsockopt => options::get(caller),
        libc::SYS_setsockopt => options::set(caller),
        libc::SYS_ioctl => ioctl(caller),
        libc::SYS_reboot => nsm_device::reboot(caller),
        _ => writes::write(caller),
    }
}

fn ioctl(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    match (caller.int(1) as u32, &caller.desk.member) {
        (NSM_RAW, Member::Enclave(enclave)) => nsm_device::request(caller, enclave),
        // The host's generator must not believe what an enclave says about entropy.
        (RNG_COUNT | RNG_ADD, Member::Enclave(_)) => Ok(Outcome::Value(0)),
        (GET_LOCAL_CID, member) => device::local_cid(caller, member.cid()),
        (_, Member::Parent) => device::ioctl(caller),
        _ => Ok(Outcome::Native),
    }
}
