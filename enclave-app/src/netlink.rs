//! The few rtnetlink requests that an enclave's networks need.
//!
//! A socket belongs to the network namespace of the thread that opened it, and
//! so do the requests sent on it. Source: rtnetlink(7), Linux
//! `include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,veth}.h`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTPROT_BOOT: u8 = 3;
const AF_INET: u8 = libc::AF_INET as u8;

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

/// Where packets to a network go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To this neighbour.
    Gateway(Ipv4Addr),
    /// Here: every address of the network is this machine's own.
    Local,
}

/// A connection to the kernel of one network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// In this thread's network namespace.
    pub(crate) fn open() -> io::Result<Netlink> {
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(Netlink {
            socket: socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?,
        })
    }

    /// Sets IFF_UP on the interface.
    pub(crate) fn set_up(&self, index: u32) -> io::Result<()> {
        self.ask(RTM_NEWLINK, 0, &interface(index, IFF_UP))
    }

    /// Makes a pair of interfaces: `name` here, `peer` in the namespace `there`.
    pub(crate) fn make_veth(
        &self,
        name: &str,
        peer: &str,
        there: BorrowedFd<'_>,
        mtu: u32,
    ) -> io::Result<()> {
        let mut far = interface(0, 0);
        attribute(&mut far, IFLA_IFNAME, &text(peer));
        attribute(&mut far, IFLA_MTU, &mtu.to_ne_bytes());
        attribute(&mut far, IFLA_NET_NS_FD, &there.as_raw_fd().to_ne_bytes());
        let mut data = Vec::new();
        attribute(&mut data, VETH_INFO_PEER, &far);
        let mut info = Vec::new();
        attribute(&mut info, IFLA_INFO_KIND, &text("veth"));
        attribute(&mut info, IFLA_INFO_DATA, &data);
        let mut body = interface(0, 0);
        attribute(&mut body, IFLA_IFNAME, &text(name));
        attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
        attribute(&mut body, IFLA_LINKINFO, &info);
        self.ask(RTM_NEWLINK, NLM_F_CREATE_EXCL, &body)
    }

    /// Gives an interface an address; its network becomes a neighbourhood.
    pub(crate) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        // ifaddrmsg: family, prefix, flags, scope, index.
        let mut body = vec![AF_INET, prefix, 0, 0];
        body.extend(index.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &address.octets());
        attribute(&mut body, IFA_ADDRESS, &address.octets());
        self.ask(RTM_NEWADDR, NLM_F_CREATE_EXCL, &body)
    }

    /// Adds a route by way of the interface.
    pub(crate) fn add_route(&self, to: Network, route: Route, index: u32) -> io::Result<()> {
        // RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RTN_UNICAST or RT_TABLE_LOCAL, RT_SCOPE_HOST, RTN_LOCAL.
        let (table, scope, kind) = match route {
            Route::Gateway(_) => (254, 0, 1),
            Route::Local => (255, 254, 2),
        };
        // rtmsg: family, prefixes of destination and source, tos, table, protocol, scope, type, flags.
        let mut body = vec![AF_INET, to.prefix, 0, 0, table, RTPROT_BOOT, scope, kind, 0, 0, 0, 0];
        attribute(&mut body, RTA_DST, &to.address.octets());
        if let Route::Gateway(gateway) = route {
            attribute(&mut body, RTA_GATEWAY, &gateway.octets());
        }
        attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
        self.ask(RTM_NEWROUTE, NLM_F_CREATE_EXCL, &body)
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        // nlmsghdr: length, type, flags, sequence, port.
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST_ACK | flags).to_ne_bytes());
        message.extend(1u32.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        acknowledged(&answer[..length])
    }
}

/// `ifinfomsg`: family, type, index, flags, changed flags.
fn interface(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}

/// `rtattr`: length, type, data, padding to four bytes.
fn attribute(body: &mut Vec<u8>, kind: u16, data: &[u8]) {
    // No attribute here comes near the limit: names, numbers and what holds them.
    let length = u16::try_from(4 + data.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(data);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn text(name: &str) -> Vec<u8> {
    name.bytes().chain([0]).collect()
}

/// `nlmsgerr`: a header and a negative errno, 0 for success.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let errno = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, errno) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(errno)) => Err(Errno::from_raw(errno.saturating_neg()).into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_errno() {
        let mut answer = [0; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert!(acknowledged(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(acknowledged(&answer).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(acknowledged(&answer[..18]).is_err());
    }

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        let mut body = Vec::new();
        attribute(&mut body, IFLA_IFNAME, &text("lo"));
        attribute(&mut body, IFLA_MTU, &7u32.to_ne_bytes());
        assert_eq!(body.len(), 8 + 8);
        assert_eq!(body[..2], 7u16.to_ne_bytes());
        assert_eq!(body[4..8], *b"lo\0\0");
    }
}
