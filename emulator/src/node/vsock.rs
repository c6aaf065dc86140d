//! AF_VSOCK over AF_UNIX: the socket calls that carry a vsock address.
//!
//! Everything acts on the caller's own open file, borrowed by pidfd_getfd, so
//! duplicates, children and epoll registrations stay true. Data, listen,
//! shutdown, poll and close are the kernel's and never come here.
//! Behaviour follows net/vmw_vsock/af_vsock.c.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::caller::{Caller, Errno, Outcome};
use super::guests;
use super::names::{ANY, Address, HOST, HYPERVISOR, LOCAL, Mark, PARENT};
use super::supervisor::Member;
use crate::sys::process;

const CAP_NET_BIND_SERVICE: u32 = 10;
/// `LAST_RESERVED_PORT` of af_vsock.c.
const LAST_RESERVED_PORT: u32 = 1023;
/// How long a full backlog may stay full. A real listener resets at once, but
/// its kernel also queues faster than this emulation accepts.
const BACKLOG_GRACE: Duration = Duration::from_secs(1);
/// How often a blocked call looks whether its caller is still there: the
/// kernel does not tell when a signal takes it away.
const CALLER_CHECK_MS: u16 = 100;

/// socket(AF_VSOCK, type, protocol)
pub(super) fn socket(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    let flags = caller.int(1) & (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    match caller.int(1) & !flags {
        libc::SOCK_STREAM => {}
        // Without a datagram transport the kernel finds no device.
        libc::SOCK_DGRAM => return Err(Errno(libc::ENODEV)),
        _ => return Err(Errno(libc::ESOCKTNOSUPPORT)),
    }
    if !matches!(caller.int(2), 0 | libc::AF_VSOCK) {
        return Err(Errno(libc::EPROTONOSUPPORT));
    }
    let nonblocking = flags & libc::SOCK_NONBLOCK != 0;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None::<Protocol>)?;
    socket.set_nonblocking(nonblocking)?;
    Mark::FRESH.put_on(&socket)?;
    Ok(Outcome::Descriptor { fd: socket.into(), close_on_exec: flags & libc::SOCK_CLOEXEC != 0 })
}

/// bind(fd, address, length)
pub(super) fn bind(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    let raw: [u8; 16] = caller.array(caller.call.args[1])?;
    if !is_vsock(&raw) || !caller.waits() {
        return Ok(Outcome::Native);
    }
    let Some((fd, mark)) = our_socket(caller)? else { return Ok(Outcome::Native) };
    let wanted = Address::parse(&raw).map_err(Errno)?;
    let own = caller.desk.member.cid();
    let names = &caller.desk.node.names;
    let socket = SockRef::from(&fd);
    if names.address(&socket.local_addr()?).is_some() {
        return Err(Errno(libc::EINVAL));
    }
    if wanted.cid != ANY && wanted.cid != own && wanted.cid != LOCAL {
        return Err(Errno(libc::EADDRNOTAVAIL));
    }
    let mark = Mark { bound_to_any: wanted.cid == ANY, ..mark };
    if wanted.port == ANY {
        bind_somewhere(caller, &fd)?;
    } else {
        let privileged = || process::has_capability(caller.call.thread, CAP_NET_BIND_SERVICE);
        if wanted.port <= LAST_RESERVED_PORT && !privileged()? {
            return Err(Errno(libc::EACCES));
        }
        socket.bind(&names.name(Address { cid: own, port: wanted.port })?)?;
    }
    mark.put_on(&fd)?;
    Ok(Outcome::Value(0))
}

/// connect(fd, address, length)
pub(super) fn connect(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    let raw: [u8; 16] = caller.array(caller.call.args[1])?;
    if !is_vsock(&raw) || !caller.waits() {
        return Ok(Outcome::Native);
    }
    let Some((fd, mark)) = our_socket(caller)? else { return Ok(Outcome::Native) };
    let wanted = Address::parse(&raw).map_err(Errno)?;
    let owner = owner_of(caller, wanted.cid)?;
    let names = &caller.desk.node.names;
    let socket = SockRef::from(&fd);
    if names.address(&socket.local_addr()?).is_none() {
        bind_somewhere(caller, &fd)?;
    }
    let target = Address { cid: owner, port: wanted.port };
    let dialled = matches!(wanted.cid, LOCAL | HOST).then_some(wanted.cid);
    let mark = Mark { dialled, ..mark };
    if let Some(guest) = caller.desk.node.guest(owner) {
        let job = move |caller: &Caller<'_>| guests::connect(caller, &guest, fd, target, mark);
        return Ok(Outcome::Later(Box::new(job)));
    }

    let target = names.name(target)?;
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let first = socket.connect(&target);
    fcntl(&fd, FcntlArg::F_SETFL(flags))?;
    match first {
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
            Ok(Outcome::Later(Box::new(move |caller| connect_patiently(caller, fd, target, flags, mark))))
        }
        other => connected(caller, &fd, mark, other),
    }
}

/// The listener's backlog is full: waits a moment for room in it.
fn connect_patiently(
    caller: &Caller<'_>,
    fd: OwnedFd,
    target: socket2::SockAddr,
    flags: OFlag,
    mark: Mark,
) -> Result<Outcome, Errno> {
    let socket = SockRef::from(&fd);
    let before = socket.write_timeout()?;
    socket.set_write_timeout(Some(BACKLOG_GRACE))?;
    fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    let result = socket.connect(&target);
    fcntl(&fd, FcntlArg::F_SETFL(flags))?;
    socket.set_write_timeout(before)?;
    connected(caller, &fd, mark, result)
}

pub(super) fn connected(
    caller: &Caller<'_>,
    fd: &OwnedFd,
    mark: Mark,
    result: std::io::Result<()>,
) -> Result<Outcome, Errno> {
    let cookie = SockRef::from(fd).cookie()?;
    match result.map_err(Errno::from) {
        Ok(()) => {
            mark.put_on(fd)?;
            Ok(Outcome::Connected { cookie })
        }
        Err(Errno(libc::EISCONN)) if caller.desk.take_undelivered(cookie) => {
            Ok(Outcome::Connected { cookie })
        }
        // No such name, nobody listening, or no room: the peer answers RST.
        Err(Errno(libc::ECONNREFUSED | libc::EAGAIN)) => Err(Errno(libc::ECONNRESET)),
        Err(errno) => Err(errno),
    }
}

/// Whose socket is dialled at `cid`.
fn owner_of(caller: &Caller<'_>, cid: u32) -> Result<u32, Errno> {
    let own = caller.desk.member.cid();
    match (&caller.desk.member, cid) {
        (_, LOCAL) => Ok(own),
        (Member::Parent, PARENT | HYPERVISOR) => Ok(cid),
        (Member::Parent, _) if caller.desk.node.has_enclave(cid) => Ok(cid),
        (Member::Parent, _) => Err(Errno(libc::ENODEV)),
        (Member::Enclave(_), PARENT | HOST) => Ok(PARENT),
        (Member::Enclave(_), _) if cid == own => Ok(own),
        // An enclave's only way out leads to the parent; the rest is reset there.
        (Member::Enclave(_), _) => Err(Errno(libc::ECONNRESET)),
    }
}

/// accept(fd, address, length) and accept4(fd, address, length, flags)
pub(super) fn accept(caller: &Caller<'_>, flags: i32) -> Result<Outcome, Errno> {
    let Some((fd, _)) = our_socket(caller)? else { return Ok(Outcome::Native) };
    let socket = SockRef::from(&fd);
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 || !socket.is_listener()? {
        return Err(Errno(libc::EINVAL));
    }
    let cookie = socket.cookie()?;
    if let Some(accepted) = accept_waiting(caller, &fd, cookie)? {
        return accepted_with_address(caller, cookie, accepted, flags);
    }
    if OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?).contains(OFlag::O_NONBLOCK) {
        return Err(Errno(libc::EAGAIN));
    }
    let deadline = socket.read_timeout()?.map(|timeout| Instant::now() + timeout);
    Ok(Outcome::Later(Box::new(move |caller| {
        while caller.waits() {
            if let Some(accepted) = accept_waiting(caller, &fd, cookie)? {
                return accepted_with_address(caller, cookie, accepted, flags);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Errno(libc::EAGAIN));
            }
            readable(&fd, PollTimeout::from(CALLER_CHECK_MS))?;
        }
        Err(Errno(libc::EINTR))
    })))
}

/// Accepts what is already there. Only the node accepts on its sockets, one
/// call at a time, so after a positive poll the accept cannot block.
fn accept_waiting(caller: &Caller<'_>, fd: &OwnedFd, cookie: u64) -> Result<Option<Socket>, Errno> {
    let _turn = caller.desk.node.accept_turn();
    if let Some(socket) = caller.desk.take_unclaimed(cookie) {
        return Ok(Some(socket));
    }
    if !readable(fd, PollTimeout::ZERO)? {
        return Ok(None);
    }
    Ok(Some(SockRef::from(fd).accept()?.0))
}

fn accepted_with_address(
    caller: &Caller<'_>,
    listener: u64,
    socket: Socket,
    flags: i32,
) -> Result<Outcome, Errno> {
    Mark::FRESH.put_on(&socket)?;
    socket.set_nonblocking(flags & libc::SOCK_NONBLOCK != 0)?;
    if caller.call.args[1] != 0 {
        let peer = caller.desk.node.names.address(&socket.peer_addr()?).unwrap_or(Address::UNBOUND);
        caller.write_sized(caller.call.args[1], caller.call.args[2], &peer.to_bytes())?;
    }
    Ok(Outcome::Accepted { listener, socket, close_on_exec: flags & libc::SOCK_CLOEXEC != 0 })
}

/// getsockname(fd, address, length)
pub(super) fn own_address(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    let Some((fd, mark)) = our_socket(caller)? else { return Ok(Outcome::Native) };
    let local = caller.desk.node.names.address(&SockRef::from(&fd).local_addr()?);
    let address = match local {
        Some(address) if mark.bound_to_any => Address { cid: ANY, ..address },
        Some(address) => address,
        None => Address::UNBOUND,
    };
    caller.write_sized(caller.call.args[1], caller.call.args[2], &address.to_bytes())?;
    Ok(Outcome::Value(0))
}

/// getpeername(fd, address, length)
pub(super) fn peer_address(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    let Some((fd, mark)) = our_socket(caller)? else { return Ok(Outcome::Native) };
    let peer = SockRef::from(&fd).peer_addr()?;
    let peer = caller.desk.node.names.address(&peer).ok_or(Errno(libc::ENOTCONN))?;
    let address = Address { cid: mark.dialled.unwrap_or(peer.cid), ..peer };
    caller.write_sized(caller.call.args[1], caller.call.args[2], &address.to_bytes())?;
    Ok(Outcome::Value(0))
}

/// The caller's descriptor in argument 0, if it is a vsock socket of this node.
pub(super) fn our_socket(caller: &Caller<'_>) -> Result<Option<(OwnedFd, Mark)>, Errno> {
    let fd = caller.descriptor(0)?;
    let mark = mark_of(&fd);
    Ok(mark.map(|mark| (fd, mark)))
}

/// The mark of a descriptor if it is ours: every socket gets one when it is
/// created or accepted.
pub(super) fn mark_of(fd: &impl AsFd) -> Option<Mark> {
    Mark::of(fd)
}

/// Binds a socket to a free port above the reserved ones.
fn bind_somewhere(caller: &Caller<'_>, fd: &OwnedFd) -> Result<(), Errno> {
    let node = caller.desk.node.as_ref();
    let cid = caller.desk.member.cid();
    for _ in 0..u16::MAX {
        let name = node.names.name(Address { cid, port: node.next_port() })?;
        match SockRef::from(fd).bind(&name) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => continue,
            other => return Ok(other?),
        }
    }
    Err(Errno(libc::EADDRNOTAVAIL))
}

fn is_vsock(raw: &[u8; 16]) -> bool {
    u16::from_ne_bytes([raw[0], raw[1]]) == libc::AF_VSOCK as u16
}

fn readable(fd: &OwnedFd, timeout: PollTimeout) -> Result<bool, Errno> {
    let mut wanted = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut wanted, timeout) {
        Ok(count) => Ok(count > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
