//! PROXY protocol version 2: who the client is, in front of its first byte.
//!
//! ```text
//! signature 12 │ version, command 1 │ family 1 │ length 2 │ addresses │ TLVs
//! ```
//! A header is checked and then passed on as it came, so that what a load
//! balancer adds (its TLVs and their checksum) stays true. Source of the
//! format: HAProxy's proxy-protocol.txt, section 2.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes that say how many follow.
pub const FIXED: usize = 16;
/// Longest header that is taken: addresses, and far more TLVs than anybody sends.
pub const LONGEST: usize = 2048;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION: u8 = 0x20;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// Source and destination: an address and a port each.
const ADDRESSES_4: usize = 12;
const ADDRESSES_6: usize = 36;

/// One whole header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyHeader {
    bytes: Vec<u8>,
    client: Option<SocketAddr>,
}

/// Why bytes are no header. The sender is not a proxy, or not of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The client may be talking to the port directly.
    #[error("the connection does not begin with a PROXY protocol v2 header")]
    Signature,
    /// Neither LOCAL nor PROXY of version 2.
    #[error("the PROXY header's version and command are {0:#04x}, not 0x20 or 0x21")]
    Command(u8),
    /// More than [`LONGEST`] altogether.
    #[error("the PROXY header is {0} bytes long, at most {LONGEST} are taken")]
    TooLong(usize),
    /// The bytes end before the header does, or go on after it.
    #[error("the PROXY header says {expected} bytes and has {actual}")]
    Length {
        /// By its length field.
        expected: usize,
        /// As given.
        actual: usize,
    },
    /// The family's addresses do not fit into the length.
    #[error("the PROXY header is too short for its addresses")]
    Addresses,
    /// A TLV reaches beyond the end.
    #[error("a TLV of the PROXY header reaches beyond its end")]
    Tlv,
}

impl ProxyHeader {
    /// The header of a connection from `client` to `listener`.
    pub fn tcp(client: SocketAddr, listener: SocketAddr) -> ProxyHeader {
        let (from, to) = (client.ip().to_canonical(), listener.ip().to_canonical());
        let mut bytes = SIGNATURE.to_vec();
        bytes.push(VERSION | PROXY);
        if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
            bytes.push(TCP4);
            bytes.extend_from_slice(&(ADDRESSES_4 as u16).to_be_bytes());
            bytes.extend_from_slice(&from.octets());
            bytes.extend_from_slice(&to.octets());
        } else {
            bytes.push(TCP6);
            bytes.extend_from_slice(&(ADDRESSES_6 as u16).to_be_bytes());
            bytes.extend_from_slice(&as_v6(from).octets());
            bytes.extend_from_slice(&as_v6(to).octets());
        }
        bytes.extend_from_slice(&client.port().to_be_bytes());
        bytes.extend_from_slice(&listener.port().to_be_bytes());
        ProxyHeader { bytes, client: Some(SocketAddr::new(from, client.port())) }
    }

    /// Bytes of the whole header whose first are these.
    pub fn length(fixed: &[u8; FIXED]) -> Result<usize, ProxyError> {
        if !fixed.starts_with(SIGNATURE) {
            return Err(ProxyError::Signature);
        }
        if fixed[12] != VERSION | LOCAL && fixed[12] != VERSION | PROXY {
            return Err(ProxyError::Command(fixed[12]));
        }
        let length = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        if length <= LONGEST { Ok(length) } else { Err(ProxyError::TooLong(length)) }
    }

    /// Checks a whole header.
    pub fn parse(bytes: Vec<u8>) -> Result<ProxyHeader, ProxyError> {
        let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
            return Err(ProxyError::Signature);
        };
        let expected = ProxyHeader::length(fixed)?;
        if bytes.len() != expected {
            return Err(ProxyError::Length { expected, actual: bytes.len() });
        }
        let client = if fixed[12] == VERSION | LOCAL { None } else { client(fixed[13], rest)? };
        Ok(ProxyHeader { bytes, client })
    }

    /// Where the client is; none for the proxy's own connections (health checks)
    /// and for families that are not TCP over IP.
    pub fn client(&self) -> Option<SocketAddr> {
        self.client
    }

    /// As it is sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The source address of a PROXY command, after its TLVs have been walked.
fn client(family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
    let (client, tlvs) = match family {
        TCP4 => {
            let (from, tlvs) = rest.split_first_chunk::<ADDRESSES_4>().ok_or(ProxyError::Addresses)?;
            let [a, b, c, d, _, _, _, _, high, low, ..] = *from;
            (SocketAddr::from((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low]))), tlvs)
        }
        TCP6 => {
            let (from, tlvs) = rest.split_first_chunk::<ADDRESSES_6>().ok_or(ProxyError::Addresses)?;
            let address = from.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets));
            let address = address.ok_or(ProxyError::Addresses)?.to_canonical();
            (SocketAddr::new(address, u16::from_be_bytes([from[32], from[33]])), tlvs)
        }
        // Unspecified, UDP, Unix: nothing is known of where addresses end.
        _ => return Ok(None),
    };
    walk(tlvs)?;
    Ok(Some(client))
}

fn walk(mut tlvs: &[u8]) -> Result<(), ProxyError> {
    while !tlvs.is_empty() {
        let [_, high, low, rest @ ..] = tlvs else { return Err(ProxyError::Tlv) };
        tlvs = rest.get(usize::from(u16::from_be_bytes([*high, *low]))..).ok_or(ProxyError::Tlv)?;
    }
    Ok(())
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
        digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    const START: &str = "0d0a0d0a000d0a515549540a";

    #[test]
    fn a_load_balancers_header_is_understood_and_kept() {
        // 192.0.2.7:33000 to 10.1.2.3:443 with one TLV of two bytes.
        let bytes = header(&format!("{START} 21 11 0011 c0000207 0a010203 80e8 01bb ea0002 abcd"));
        let parsed = ProxyHeader::parse(bytes.clone()).unwrap();
        assert_eq!(parsed.client(), Some("192.0.2.7:33000".parse().unwrap()));
        assert_eq!(parsed.bytes(), bytes);
        assert_eq!(ProxyHeader::length(bytes.first_chunk().unwrap()), Ok(bytes.len()));
    }

    #[test]
    fn a_health_check_has_no_client() {
        let parsed = ProxyHeader::parse(header(&format!("{START} 20 00 0000"))).unwrap();
        assert_eq!(parsed.client(), None);
        let unix = header(&format!("{START} 21 31 0002 0000"));
        assert_eq!(ProxyHeader::parse(unix).unwrap().client(), None);
    }

    #[test]
    fn what_is_no_header_is_refused_with_its_reason() {
        for (text, error) in [
            ("474554202f20485454502f312e310d0a0d0a".to_owned(), ProxyError::Signature),
            (START.to_owned(), ProxyError::Signature),
            (format!("{START} 11 11 0000"), ProxyError::Command(0x11)),
            (format!("{START} 22 11 0000"), ProxyError::Command(0x22)),
            (format!("{START} 21 11 ffff"), ProxyError::TooLong(16 + 65535)),
            (format!("{START} 21 11 000c"), ProxyError::Length { expected: 28, actual: 16 }),
            (format!("{START} 20 00 0000 00"), ProxyError::Length { expected: 16, actual: 17 }),
            (format!("{START} 21 11 0004 c0000207"), ProxyError::Addresses),
            (format!("{START} 21 11 000e c0000207 0a010203 80e8 01bb ea00"), ProxyError::Tlv),
            (format!("{START} 21 11 000f c0000207 0a010203 80e8 01bb ea0001"), ProxyError::Tlv),
        ] {
            assert_eq!(ProxyHeader::parse(header(&text)), Err(error), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (client, listener, seen) in [
            ("192.0.2.7:33000", "10.1.2.3:443", "192.0.2.7:33000"),
            ("[2001:db8::7]:1", "[::1]:2", "[2001:db8::7]:1"),
            ("[::ffff:192.0.2.7]:5", "[::ffff:10.0.0.1]:6", "192.0.2.7:5"),
            ("192.0.2.7:5", "[2001:db8::1]:6", "192.0.2.7:5"),
        ] {
            let written = ProxyHeader::tcp(client.parse().unwrap(), listener.parse().unwrap());
            let read = ProxyHeader::parse(written.bytes().to_vec()).unwrap();
            assert_eq!((read.client(), &read), (Some(seen.parse().unwrap()), &written));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), signed in any::<bool>()) {
            if signed {
                bytes.splice(0..0, SIGNATURE.iter().copied().chain([0x21]));
            }
            if let Ok(header) = ProxyHeader::parse(bytes.clone()) {
                prop_assert_eq!(header.bytes(), bytes);
            }
        }
    }
}
