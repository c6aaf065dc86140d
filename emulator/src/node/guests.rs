//! Connecting to a machine: its listeners are behind its own kernel, so the
//! guest is asked first, and a name is there for the moment of meeting only.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use socket2::{Domain, SockRef, Socket, Type};

use super::caller::{Caller, Errno, Outcome};
use super::names::{Address, Mark, Names};
use super::vsock::connected;
use crate::vm::Vsock;

/// The rest of connect(2) for a caller's socket that has an address.
pub(super) fn connect(
    caller: &Caller<'_>,
    guest: &Vsock,
    fd: OwnedFd,
    target: Address,
    mark: Mark,
) -> Result<Outcome, Errno> {
    let socket = SockRef::from(&fd);
    let names = &caller.desk.node.names;
    if socket.peer_addr().is_ok() {
        return connected(caller, &fd, mark, Err(io::Error::from_raw_os_error(libc::EISCONN)));
    }
    let local = names.address(&socket.local_addr()?).ok_or(Errno(libc::EINVAL))?;
    let patience = caller.desk.node.options.connect_timeout(socket.cookie()?);
    let reset = Errno(libc::ECONNRESET);
    let (key, answer) = guest.dial(local.port, target.port).ok_or(reset)?;
    match answer.recv_timeout(patience) {
        Ok(true) => {}
        Ok(false) | Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Err(reset),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            guest.abandon(key);
            return Err(Errno(libc::ETIMEDOUT));
        }
    }
    let met = meet(names, &socket, target).and_then(|end| guest.attach(key, end));
    if met.is_err() {
        guest.abandon(key);
    }
    connected(caller, &fd, mark, met)
}

/// Connects `socket` to a socket that has the address `target`, and returns that.
fn meet(names: &Names, socket: &Socket, target: Address) -> io::Result<Socket> {
    static MEETING: Mutex<()> = Mutex::new(());
    let _turn = MEETING.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let name = names.name(target)?;
    place.bind(&name)?;
    place.listen(1)?;
    socket.connect(&name)?;
    Ok(place.accept()?.0)
}
