//! The network in which the agent listens for the workload.
//!
//! ```text
//! the enclave's network                  the gateway's network
//! workload, 127.0.0.1, eth0 ═══veth═══ egress0, 198.19.255.1: DNS 53, proxy 3128
//! 198.19.255.2                           198.18.0.0/16 is local: one address per name
//! ```
//! It is the agent's listeners that get a namespace, not the workload: they are
//! a handful of sockets, made once, while the workload keeps the network in
//! which ingress dials it. 198.18.0.0/15 is set aside for networks like this
//! one (RFC 2544), so it never is the address of a real service.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use relay::{Carriers, Listener};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

use super::EgressError;
use crate::netlink::{self, Netlink, Route};

/// The agent, as the workload sees it.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
pub(super) const DNS_PORT: u16 = 53;
/// HTTP CONNECT and SOCKS5.
pub(super) const PROXY_PORT: u16 = 3128;
/// Addresses of names: all of 198.18.0.0/16 but the first and the last.
pub(super) const FIRST_NAME: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(super) const NAMES: usize = 65_534;

const WORKLOAD: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 2);
const LINK_PREFIX: u8 = 30;
const NAMES_NETWORK: netlink::Network =
    netlink::Network { address: Ipv4Addr::new(198, 18, 0, 0), prefix: 16 };
const WORKLOAD_INTERFACE: &str = "eth0";
const GATEWAY_INTERFACE: &str = "egress0";
/// Both ends are this machine: large packets cost less.
const MTU: u32 = 65_520;
const BACKLOG: u32 = 1024;

/// The sockets of the gateway. They keep its namespace alive.
pub(super) struct Network {
    /// One for every port, on all addresses; for [`Carriers::accept`].
    pub(super) listeners: Vec<Listener>,
    /// DNS over UDP.
    pub(super) dns: UdpSocket,
}

/// What is bound in the other namespace, before the runtime takes it.
struct Bound {
    listeners: Vec<TcpSocket>,
    dns: std::net::UdpSocket,
}

impl Network {
    /// Makes both ends and listens on `ports`.
    pub(super) fn make(ports: BTreeSet<u16>, carriers: &Carriers) -> Result<Network, EgressError> {
        let here = File::open("/proc/thread-self/ns/net").map_err(fault("open this network"))?;
        // A namespace belongs to a thread, and this one has others' work to do.
        let bound = std::thread::scope(|scope| {
            let made = scope.spawn(|| gateway_end(&here, &ports)).join();
            made.unwrap_or_else(|_| Err(fault("start a thread")(io::ErrorKind::Other.into())))
        })?;
        workload_end()?;
        let listen = |socket: TcpSocket| {
            let listener = socket.listen(BACKLOG).and_then(TcpListener::into_std);
            listener.and_then(|listener| carriers.listener(listener)).map_err(fault("listen"))
        };
        Ok(Network {
            listeners: bound.listeners.into_iter().map(listen).collect::<Result<_, _>>()?,
            dns: UdpSocket::from_std(bound.dns).map_err(fault("listen for DNS"))?,
        })
    }
}

/// In a thread of its own, which never leaves the new namespace again.
fn gateway_end(workloads: &File, ports: &BTreeSet<u16>) -> Result<Bound, EgressError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| fault("make a network namespace")(errno.into()))?;
    let kernel = Netlink::open().map_err(fault("open rtnetlink"))?;
    kernel
        .make_veth(GATEWAY_INTERFACE, WORKLOAD_INTERFACE, workloads.as_fd(), MTU)
        .map_err(fault("make a pair of interfaces"))?;
    let (loopback, gateway) = (index("lo")?, index(GATEWAY_INTERFACE)?);
    kernel.set_up(loopback).map_err(fault("bring up the gateway's loopback"))?;
    kernel.add_address(gateway, GATEWAY, LINK_PREFIX).map_err(fault("give the gateway its address"))?;
    kernel.set_up(gateway).map_err(fault("bring up the gateway"))?;
    kernel.add_route(NAMES_NETWORK, Route::Local, loopback).map_err(fault("take the addresses of names"))?;
    let bind = |port: u16| {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
        Ok(socket)
    };
    let listeners = ports.iter().map(|port| bind(*port)).collect::<io::Result<_>>();
    let dns = std::net::UdpSocket::bind((GATEWAY, DNS_PORT)).map_err(fault("bind the DNS port"))?;
    dns.set_nonblocking(true).map_err(fault("bind the DNS port"))?;
    Ok(Bound { listeners: listeners.map_err(fault("bind the ports of names"))?, dns })
}

fn workload_end() -> Result<(), EgressError> {
    let kernel = Netlink::open().map_err(fault("open rtnetlink"))?;
    let interface = index(WORKLOAD_INTERFACE)?;
    kernel.add_address(interface, WORKLOAD, LINK_PREFIX).map_err(fault("give the workload its address"))?;
    kernel.set_up(interface).map_err(fault("bring up the workload's interface"))?;
    kernel
        .add_route(NAMES_NETWORK, Route::Gateway(GATEWAY), interface)
        .map_err(fault("route the addresses of names"))
}

/// In this thread's namespace.
fn index(name: &str) -> Result<u32, EgressError> {
    if_nametoindex(name).map_err(|errno| fault("find an interface")(errno.into()))
}

fn fault(action: &'static str) -> impl Fn(io::Error) -> EgressError {
    move |source| EgressError::Network { action, source }
}
