//! Brings the loopback interface up.

use std::io;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

use crate::netlink::Netlink;

const NAME: &str = "lo";

/// Sets IFF_UP on `lo`; the kernel gives it 127.0.0.1 and ::1 by itself.
/// Nothing is asked for where it is up already: there may be no right to.
pub(super) fn up() -> io::Result<()> {
    if is_up() {
        return Ok(());
    }
    Netlink::open()?.set_up(if_nametoindex(NAME)?)
}

fn is_up() -> bool {
    getifaddrs().is_ok_and(|mut interfaces| {
        interfaces.any(|found| found.interface_name == NAME && found.flags.contains(InterfaceFlags::IFF_UP))
    })
}
