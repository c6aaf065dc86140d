//! Where a workload wants to connect: a name or an address, and a port.
//!
//! One spelling, one meaning: what different resolvers read differently
//! (`2130706433`, `0177.0.0.1`, `0x7f.1`) is refused here, so that what was
//! checked is what is connected to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A DNS name: lower case, without the final dot, 1 to 253 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for `www.example.com` below `example.com`, not for itself.
    pub fn is_below(&self, parent: &Name) -> bool {
        self.0.strip_suffix(&parent.0).is_some_and(|front| front.ends_with('.'))
    }
}

/// A name or an address literal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// To be resolved.
    Name(Name),
    /// As it is; IPv4-mapped IPv6 addresses have become IPv4.
    Address(IpAddr),
}

/// A host and a port. Written as one string.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    /// The host.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
}

impl Target {
    /// From a host without brackets, as SOCKS and the wire protocol carry it.
    pub fn new(host: &str, port: u16) -> Result<Target, TargetError> {
        let host = match host.parse::<Ipv6Addr>() {
            Ok(address) => Host::Address(address.to_canonical()),
            Err(_) => host.parse()?,
        };
        if port == 0 {
            return Err(TargetError::Port(port.to_string()));
        }
        Ok(Target { host, port })
    }
}

impl Host {
    /// The inverse of [`Target::new`]: an IPv6 address has no brackets.
    pub fn bare(&self) -> String {
        match self {
            Host::Name(name) => name.to_string(),
            Host::Address(address) => address.to_string(),
        }
    }
}

/// Why text names no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There is no `:PORT` at the end.
    #[error("{0:?} has no port: write host:port")]
    NoPort(String),
    /// The port is 0, too large or no number.
    #[error("{0:?} is no port from 1 to 65535")]
    Port(String),
    /// A host that ends in a number but is no plain dotted address: programs
    /// disagree on what it means.
    #[error("{0:?} looks like an address but is none: write it as four decimal numbers")]
    Ambiguous(String),
    /// No DNS name: empty or long labels, or characters that no host has.
    #[error("{0:?} is no host name")]
    Name(String),
    /// Brackets without an IPv6 address.
    #[error("{0:?} is no IPv6 address")]
    Ipv6(String),
}

impl FromStr for Name {
    type Err = TargetError;

    /// Letters, digits, `-` and `_`, labels of 1 to 63 bytes (RFC 1035 section 2.3.4).
    fn from_str(text: &str) -> Result<Name, TargetError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label_is_good = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(label_is_good) {
            return Err(TargetError::Name(excerpt(text)));
        }
        if ends_in_a_number(&name) {
            return Err(TargetError::Ambiguous(excerpt(text)));
        }
        Ok(Name(name))
    }
}

impl FromStr for Host {
    type Err = TargetError;

    /// `example.com`, `192.0.2.1` or `[2001:db8::1]`.
    fn from_str(text: &str) -> Result<Host, TargetError> {
        if let Some(inner) = text.strip_prefix('[') {
            let address = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
            let address = address.ok_or_else(|| TargetError::Ipv6(excerpt(text)))?;
            return Ok(Host::Address(address.to_canonical()));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Host::Address(IpAddr::V4(address)));
        }
        text.parse().map(Host::Name)
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| TargetError::NoPort(excerpt(text)))?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = match port.parse() {
            Ok(port) if digits && port != 0 => port,
            _ => return Err(TargetError::Port(excerpt(port))),
        };
        Ok(Target { host: host.parse()?, port })
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Target, TargetError> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.to_string()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => name.fmt(formatter),
            Host::Address(IpAddr::V4(address)) => address.fmt(formatter),
            Host::Address(IpAddr::V6(address)) => write!(formatter, "[{address}]"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

/// The last label is a number in some notation (URL standard, "ends in a number").
fn ends_in_a_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hexadecimal = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    last.bytes().all(|byte| byte.is_ascii_digit()) || last.strip_prefix("0x").is_some_and(hexadecimal)
}

/// Enough of a peer's text to recognise it.
fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_has_one_meaning() {
        let target = |text: &str| text.parse::<Target>().map(|target| target.to_string());
        assert_eq!(target("Example.COM.:443").unwrap(), "example.com:443");
        assert_eq!(target("192.0.2.1:80").unwrap(), "192.0.2.1:80");
        assert_eq!(target("[2001:DB8::1]:80").unwrap(), "[2001:db8::1]:80");
        assert_eq!(target("[::ffff:169.254.169.254]:80").unwrap(), "169.254.169.254:80");
    }

    #[test]
    fn what_programs_read_differently_is_refused() {
        for host in
            ["2130706433", "0177.0.0.1", "0x7f.1", "0x7f000001", "127.1", "1.2.3.4.5", "256.1.1.1", "a.0x"]
        {
            let refused = format!("{host}:80").parse::<Target>().unwrap_err();
            assert!(matches!(refused, TargetError::Ambiguous(_)), "{host}: {refused}");
        }
    }

    #[test]
    fn what_is_no_target_is_refused_with_its_reason() {
        for (text, message) in [
            ("example.com", "no port"),
            ("example.com:0", "no port from 1"),
            ("example.com:65536", "no port from 1"),
            ("example.com:+80", "no port from 1"),
            ("user@example.com:80", "no host name"),
            ("exa mple.com:80", "no host name"),
            ("example..com:80", "no host name"),
            ("-a.com:80", "no host name"),
            (":80", "no host name"),
            ("::1:80", "no host name"),
            ("[::1:80", "no IPv6"),
            ("[fe80::1%eth0]:80", "no IPv6"),
            ("bücher.example:80", "no host name"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_bare_host_reads_back_and_is_as_strict() {
        for host in ["example.com", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(Target::new(host, 443).unwrap().host.bare(), host);
        }
        let mapped = Target::new("::ffff:169.254.169.254", 80).unwrap();
        assert_eq!(mapped.to_string(), "169.254.169.254:80");
        for (host, port) in [("0x7f.1", 80), ("2130706433", 80), ("a@b", 80), ("", 80), ("a.com", 0)] {
            assert!(Target::new(host, port).is_err(), "{host}:{port}");
        }
    }

    #[test]
    fn below_is_a_matter_of_labels() {
        let parent: Name = "example.com".parse().unwrap();
        for (name, below) in [
            ("www.example.com", true),
            ("a.b.example.com", true),
            ("example.com", false),
            ("notexample.com", false),
        ] {
            assert_eq!(name.parse::<Name>().unwrap().is_below(&parent), below, "{name}");
        }
    }
}
