//! vsock addresses as abstract AF_UNIX names, and marks that tell our sockets
//! from a program's own.
//!
//! A name is `fakenitro/<node>/<cid>/<port>`: the kernel then refuses a second
//! bind with EADDRINUSE, forgets a name with its socket, and keeps both ends'
//! addresses, so the node has nothing to remember per socket.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use socket2::{SockAddr, SockRef};

/// `VMADDR_CID_ANY` and `VMADDR_PORT_ANY` of `linux/vm_sockets.h`.
pub(crate) const ANY: u32 = u32::MAX;
/// The node's owner, the parent instance, as every enclave sees it.
pub(crate) const PARENT: u32 = 3;
/// Who serves the debug consoles.
pub(crate) const HYPERVISOR: u32 = 0;
/// `VMADDR_CID_LOCAL`.
pub(crate) const LOCAL: u32 = 1;
/// `VMADDR_CID_HOST`.
pub(crate) const HOST: u32 = 2;

/// A vsock address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    /// Context: who.
    pub(crate) cid: u32,
    /// Port: which socket.
    pub(crate) port: u32,
}

impl Address {
    /// What an unbound socket reports.
    pub(crate) const UNBOUND: Address = Address { cid: ANY, port: ANY };

    /// Reads a `struct sockaddr_vm`.
    ///
    /// # Errors
    /// EAFNOSUPPORT for another family, EINVAL for unknown flags (`vsock_addr_validate`).
    pub(crate) fn parse(raw: &[u8; 16]) -> Result<Address, i32> {
        let word = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        if u16::from_ne_bytes([raw[0], raw[1]]) != libc::AF_VSOCK as u16 {
            return Err(libc::EAFNOSUPPORT);
        }
        // VMADDR_FLAG_TO_HOST is the only flag there is.
        if raw[12] & !1 != 0 {
            return Err(libc::EINVAL);
        }
        Ok(Address { port: word(4), cid: word(8) })
    }

    /// Writes a `struct sockaddr_vm`.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut raw = [0; 16];
        raw[..2].copy_from_slice(&(libc::AF_VSOCK as u16).to_ne_bytes());
        raw[4..8].copy_from_slice(&self.port.to_ne_bytes());
        raw[8..12].copy_from_slice(&self.cid.to_ne_bytes());
        raw
    }
}

/// The names of one node.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    prefix: String,
}

impl Names {
    /// Names for the node whose state is in `dir`.
    pub(crate) fn of(dir: &Path) -> io::Result<Names> {
        let meta = fs::metadata(dir)?;
        Ok(Names { prefix: format!("fakenitro/{:x}-{:x}/", meta.dev(), meta.ino()) })
    }

    /// The name that stands for an address.
    pub(crate) fn name(&self, address: Address) -> io::Result<SockAddr> {
        SockAddr::unix(format!("\0{}{}/{}", self.prefix, address.cid, address.port))
    }

    /// The address that a name stands for.
    pub(crate) fn address(&self, name: &SockAddr) -> Option<Address> {
        let text = std::str::from_utf8(name.as_abstract_namespace()?).ok()?;
        let (cid, port) = text.strip_prefix(&self.prefix)?.split_once('/')?;
        Some(Address { cid: cid.parse().ok()?, port: port.parse().ok()? })
    }
}

/// `SO_MARK` of our sockets: a magic number and what a name cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Bound to `ANY` rather than to the owner's CID.
    pub(crate) bound_to_any: bool,
    /// Connected by dialling CID 2 or 1, which is then the peer's address.
    pub(crate) dialled: Option<u32>,
}

const MAGIC: u32 = 0xFA4E_0000;
const BOUND_TO_ANY: u32 = 1;
const DIALLED_SHIFT: u32 = 4;

impl Mark {
    /// A socket that nothing was done to.
    pub(crate) const FRESH: Mark = Mark { bound_to_any: false, dialled: None };

    /// Puts the mark on a socket. Needs CAP_NET_ADMIN.
    pub(crate) fn put_on(self, socket: &impl AsFd) -> io::Result<()> {
        let dialled = self.dialled.unwrap_or(0) << DIALLED_SHIFT;
        let any = if self.bound_to_any { BOUND_TO_ANY } else { 0 };
        SockRef::from(socket).set_mark(MAGIC | any | dialled)
    }

    /// The mark of a descriptor, if it is one of our sockets.
    pub(crate) fn of(fd: &impl AsFd) -> Option<Mark> {
        let mark = SockRef::from(fd).mark().ok()?;
        if mark & 0xffff_0000 != MAGIC {
            return None;
        }
        let dialled = (mark & 0xffff) >> DIALLED_SHIFT;
        Some(Mark { bound_to_any: mark & BOUND_TO_ANY != 0, dialled: (dialled != 0).then_some(dialled) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_its_name_and_its_bytes() {
        let names = Names::of(Path::new("/")).unwrap();
        for address in [Address { cid: 3, port: 9000 }, Address { cid: 4_294_967_294, port: 4_294_967_294 }] {
            assert_eq!(names.address(&names.name(address).unwrap()), Some(address));
            assert_eq!(Address::parse(&address.to_bytes()), Ok(address));
        }
    }

    #[test]
    fn names_of_other_nodes_and_programs_are_not_ours() {
        let names = Names::of(Path::new("/")).unwrap();
        for name in ["\0fakenitro/0-0/3/9000", "\0dbus", "/run/socket"] {
            assert_eq!(names.address(&SockAddr::unix(name).unwrap()), None);
        }
    }

    #[test]
    fn flags_and_families_are_checked_as_the_kernel_does() {
        let mut raw = Address { cid: 3, port: 1 }.to_bytes();
        raw[12] = 2;
        assert_eq!(Address::parse(&raw), Err(libc::EINVAL));
        raw[0] = 1;
        assert_eq!(Address::parse(&raw), Err(libc::EAFNOSUPPORT));
    }
}
