//! Addresses that are not of the public internet, by what they would reach.
//!
//! Source: the IANA special-purpose address registries (RFC 6890 and updates).
//! Addresses that carry an IPv4 address inside (NAT64, 6to4) count as that one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address is not public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reserved {
    /// The parent instance itself.
    Loopback,
    /// The link, with the instance metadata and other services of EC2.
    LinkLocal,
    /// A private network: the VPC, the cluster.
    Private,
    /// Carrier-grade NAT, in EKS often the pods' own network.
    SharedSpace,
    /// Many receivers.
    Multicast,
    /// "This network" and the unspecified address.
    Unspecified,
    /// Documentation, benchmarks, protocol assignments, future use.
    SpecialPurpose,
}

impl fmt::Display for Reserved {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Reserved::Loopback => "loopback",
            Reserved::LinkLocal => "link-local (instance metadata)",
            Reserved::Private => "private",
            Reserved::SharedSpace => "shared address space",
            Reserved::Multicast => "multicast",
            Reserved::Unspecified => "unspecified",
            Reserved::SpecialPurpose => "special-purpose",
        })
    }
}

/// What `address` is if it is not public.
pub fn reserved(address: IpAddr) -> Option<Reserved> {
    match address.to_canonical() {
        IpAddr::V4(address) => reserved_v4(address),
        IpAddr::V6(address) => reserved_v6(address),
    }
}

fn reserved_v4(address: Ipv4Addr) -> Option<Reserved> {
    let kind = match address.octets() {
        [127, ..] => Reserved::Loopback,
        [169, 254, ..] => Reserved::LinkLocal,
        [10, ..] | [192, 168, ..] => Reserved::Private,
        [172, second, ..] if second & 0xF0 == 16 => Reserved::Private,
        [100, second, ..] if second & 0xC0 == 64 => Reserved::SharedSpace,
        [0, ..] => Reserved::Unspecified,
        [224..=239, ..] => Reserved::Multicast,
        [192, 0, 0, _] | [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [192, 88, 99, _] => {
            Reserved::SpecialPurpose
        }
        [198, 18..=19, ..] | [240..=255, ..] => Reserved::SpecialPurpose,
        _ => return None,
    };
    Some(kind)
}

fn reserved_v6(address: Ipv6Addr) -> Option<Reserved> {
    let segments = address.segments();
    let kind = match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => Reserved::Loopback,
        [0, 0, 0, 0, 0, 0, 0, 0] => Reserved::Unspecified,
        // IPv4-compatible (deprecated, RFC 4291): some stacks still connect to the IPv4 address.
        [0, 0, 0, 0, 0, 0, _, _] => {
            return Some(inner(address).and_then(reserved_v4).unwrap_or(Reserved::SpecialPurpose));
        }
        // NAT64 (RFC 6052) and 6to4 (RFC 3056) reach the IPv4 address inside.
        [0x64, 0xFF9B, 0, 0, 0, 0, _, _] | [0x2002, ..] => return inner(address).and_then(reserved_v4),
        [first, ..] if first & 0xFFC0 == 0xFE80 => Reserved::LinkLocal,
        [first, ..] if first & 0xFE00 == 0xFC00 || first & 0xFFC0 == 0xFEC0 => Reserved::Private,
        [first, ..] if first & 0xFF00 == 0xFF00 => Reserved::Multicast,
        // Teredo and the other protocol assignments, documentation, discard, local NAT64.
        [0x2001, second, ..] if second < 0x200 || second == 0xDB8 => Reserved::SpecialPurpose,
        [0x100, 0, 0, 0, ..] | [0x64, 0xFF9B, ..] => Reserved::SpecialPurpose,
        [first, ..] if first & 0xE000 != 0x2000 => Reserved::SpecialPurpose,
        _ => return None,
    };
    Some(kind)
}

/// The kind of every address of `network`, if they are of one: its ends are, and no block of
/// this module lies apart from another of its kind within one prefix.
pub(crate) fn kind_of_all(network: &IpNet) -> Option<Reserved> {
    reserved(network.network()).filter(|kind| reserved(network.broadcast()) == Some(*kind))
}

/// The IPv4 address that a packet to `address` reaches, where it carries one inside.
pub(crate) fn inner(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let at = match address.segments() {
        [0, 0, 0, 0, 0, 0, _, _] | [0x64, 0xFF9B, 0, 0, 0, 0, _, _] => 12,
        [0x2002, ..] => 2,
        _ => return None,
    };
    address.octets()[at..].first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_public_internet_is_public() {
        for (address, kind) in [
            ("127.0.0.1", Reserved::Loopback),
            ("::1", Reserved::Loopback),
            ("::ffff:127.0.0.1", Reserved::Loopback),
            ("169.254.169.254", Reserved::LinkLocal),
            ("::ffff:169.254.169.254", Reserved::LinkLocal),
            ("64:ff9b::a9fe:a9fe", Reserved::LinkLocal),
            ("2002:a9fe:a9fe::1", Reserved::LinkLocal),
            ("fe80::1", Reserved::LinkLocal),
            ("fd00:ec2::254", Reserved::Private),
            ("10.0.0.1", Reserved::Private),
            ("172.31.255.255", Reserved::Private),
            ("192.168.1.1", Reserved::Private),
            ("100.64.0.1", Reserved::SharedSpace),
            ("0.0.0.0", Reserved::Unspecified),
            ("::", Reserved::Unspecified),
            ("224.0.0.1", Reserved::Multicast),
            ("ff02::1", Reserved::Multicast),
            ("255.255.255.255", Reserved::SpecialPurpose),
            ("2001:db8::1", Reserved::SpecialPurpose),
            ("2001::1", Reserved::SpecialPurpose),
            ("::7f00:1", Reserved::Loopback),
            ("4000::1", Reserved::SpecialPurpose),
        ] {
            assert_eq!(reserved(address.parse().unwrap()), Some(kind), "{address}");
        }
    }

    #[test]
    fn public_addresses_are_public() {
        for address in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::1"]
        {
            assert_eq!(reserved(address.parse().unwrap()), None, "{address}");
        }
    }
}
