//! Reads a SOCKS5 client's two messages, and writes the answers.
//!
//! ```text
//! client: methods ─▶          ─▶ request (CONNECT host:port)
//! agent:          ◀─ no auth                                ◀─ reply
//! ```
//! Names are never resolved here: a request that names a host keeps its name
//! for the policy. Source: RFC 1928.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{Host, Target, TargetError};

/// The first byte of every message.
pub const VERSION: u8 = 5;
/// The answer to methods that hold "no authentication".
pub const NO_AUTHENTICATION: [u8; 2] = [VERSION, 0];
/// The answer to others.
pub const NO_METHOD: [u8; 2] = [VERSION, 0xFF];
/// The longest message: a request with a name of 255 bytes.
pub const LONGEST: usize = 4 + 1 + 255 + 2;

const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Why a client is not served.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocksError {
    /// Another version, SOCKS4 usually.
    #[error("version {0} is not SOCKS5")]
    Version(u8),
    /// It offers only methods with a secret.
    #[error("the client does not offer to go without authentication")]
    Method,
    /// BIND or UDP ASSOCIATE.
    #[error("command {0} is not CONNECT")]
    Command(u8),
    /// An address of another kind.
    #[error("addresses of type {0} are not known")]
    AddressType(u8),
    /// The name or the port is none.
    #[error("the target cannot be understood: {0}")]
    Target(#[from] TargetError),
}

/// REP of RFC 1928, section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The connection is open.
    Succeeded = 0,
    /// Anything else.
    Failed = 1,
    /// Not by the policy.
    NotAllowed = 2,
    /// No route.
    NetworkUnreachable = 3,
    /// The name does not exist, or does not answer.
    HostUnreachable = 4,
    /// Refused by the target.
    Refused = 5,
    /// BIND or UDP ASSOCIATE.
    CommandNotSupported = 7,
    /// See [`SocksError::AddressType`].
    AddressTypeNotSupported = 8,
}

impl Reply {
    /// The message. The bound address is of no use to anybody and left zero.
    pub fn message(self) -> [u8; 10] {
        [VERSION, self as u8, 0, IPV4, 0, 0, 0, 0, 0, 0]
    }
}

impl SocksError {
    /// What to tell the client.
    pub fn reply(&self) -> Reply {
        match self {
            SocksError::Command(_) => Reply::CommandNotSupported,
            SocksError::AddressType(_) => Reply::AddressTypeNotSupported,
            _ => Reply::Failed,
        }
    }
}

/// Something whole, and how many bytes it took.
pub type Whole<T> = Option<(T, usize)>;

/// The client's methods; `None` until they are whole.
pub fn methods(bytes: &[u8]) -> Result<Whole<()>, SocksError> {
    let Some(&version) = bytes.first() else { return Ok(None) };
    if version != VERSION {
        return Err(SocksError::Version(version));
    }
    let Some(&count) = bytes.get(1) else { return Ok(None) };
    let end = 2 + usize::from(count);
    match bytes.get(2..end) {
        None => Ok(None),
        Some(methods) if methods.contains(&0) => Ok(Some(((), end))),
        Some(_) => Err(SocksError::Method),
    }
}

/// The client's request; `None` until it is whole.
pub fn request(bytes: &[u8]) -> Result<Whole<Target>, SocksError> {
    let Some((&[version, command, _, kind], rest)) = bytes.split_first_chunk() else { return Ok(None) };
    if version != VERSION {
        return Err(SocksError::Version(version));
    }
    if command != CONNECT {
        return Err(SocksError::Command(command));
    }
    let Some((host, after)) = host(kind, rest)? else { return Ok(None) };
    let Some((&port, _)) = after.split_first_chunk() else { return Ok(None) };
    let target = match host {
        Written::Address(host) => Target { host, port: u16::from_be_bytes(port) },
        Written::Name(name) => Target::new(&name, u16::from_be_bytes(port))?,
    };
    if target.port == 0 {
        return Err(TargetError::Port("0".to_owned()).into());
    }
    Ok(Some((target, bytes.len() - after.len() + 2)))
}

enum Written {
    Address(Host),
    Name(String),
}

fn host(kind: u8, bytes: &[u8]) -> Result<Option<(Written, &[u8])>, SocksError> {
    let address = |address: std::net::IpAddr| Written::Address(Host::Address(address.to_canonical()));
    Ok(match kind {
        IPV4 => {
            bytes.split_first_chunk().map(|(octets, rest)| (address(Ipv4Addr::from(*octets).into()), rest))
        }
        IPV6 => {
            bytes.split_first_chunk().map(|(octets, rest)| (address(Ipv6Addr::from(*octets).into()), rest))
        }
        NAME => bytes.split_first().and_then(|(length, rest)| {
            let (name, rest) = rest.split_at_checked(usize::from(*length))?;
            Some((Written::Name(String::from_utf8_lossy(name).into_owned()), rest))
        }),
        other => return Err(SocksError::AddressType(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asking(kind: u8, host: &[u8], port: u16) -> Vec<u8> {
        [&[VERSION, CONNECT, 0, kind], host, &port.to_be_bytes()].concat()
    }

    fn by_name(name: &str, port: u16) -> Vec<u8> {
        asking(NAME, &[&[name.len() as u8], name.as_bytes()].concat(), port)
    }

    #[test]
    fn every_kind_of_address_is_understood_however_it_arrives() {
        for (message, target) in [
            (by_name("Example.com", 443), "example.com:443"),
            (by_name("192.0.2.7", 80), "192.0.2.7:80"),
            (asking(IPV4, &[192, 0, 2, 1], 80), "192.0.2.1:80"),
            (asking(IPV6, &Ipv6Addr::from_bits(1).octets(), 80), "[::1]:80"),
            (
                asking(IPV6, &Ipv4Addr::new(169, 254, 169, 254).to_ipv6_mapped().octets(), 80),
                "169.254.169.254:80",
            ),
        ] {
            for length in 0..message.len() {
                assert_eq!(request(&message[..length]), Ok(None), "{target} after {length} bytes");
            }
            let (read, length) = request(&[message.as_slice(), b"more"].concat()).unwrap().unwrap();
            assert_eq!((read.to_string().as_str(), length), (target, message.len()));
        }
        assert_eq!(methods(&[5, 2, 2, 0, 9]), Ok(Some(((), 4))));
        assert_eq!(methods(&[5, 2, 2]), Ok(None));
    }

    #[test]
    fn what_is_not_carried_out_is_refused_with_its_reason() {
        assert_eq!(methods(&[4, 1]), Err(SocksError::Version(4)));
        assert_eq!(methods(&[5, 1, 2]), Err(SocksError::Method));
        assert_eq!(methods(&[5, 0]), Err(SocksError::Method));
        assert_eq!(request(&[5, 2, 0, IPV4]), Err(SocksError::Command(2)));
        assert_eq!(request(&[5, 3, 0, IPV4]), Err(SocksError::Command(3)));
        assert_eq!(request(&[5, 1, 0, 9]), Err(SocksError::AddressType(9)));
        assert!(asking(IPV4, &[1, 1, 1, 1], 0).len() == 10);
        for message in [
            asking(IPV4, &[1, 1, 1, 1], 0),
            by_name("", 80),
            by_name("0x7f.1", 80),
            by_name("2130706433", 80),
            by_name("good.com\0.evil.com", 80),
            by_name("user@evil.com", 80),
        ] {
            assert!(matches!(request(&message), Err(SocksError::Target(_))), "{message:?}");
        }
        assert_eq!(SocksError::Command(2).reply().message()[1], 7);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = methods(&bytes);
            let _ = request(&bytes);
            let _ = request(&[&[VERSION, CONNECT, 0], bytes.as_slice()].concat());
        }
    }
}
