//! One line of a policy.
//!
//! ```text
//! example.com:443              a name
//! *.example.com:443,8443       everything below a name, not the name itself
//! 10.1.0.0/16:5432-5433        a network; the only way to non-public addresses
//! [2001:db8::]/32:*            an IPv6 network, every port
//! !admin.example.com:*         denies; a denial wins over every permission
//! ```

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use crate::reserved::{inner, kind_of_all, reserved};
use crate::{Host, Name, Target};

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Exactly this name.
    Name(Name),
    /// Every name below this one.
    Below(Name),
    /// Every address of a network.
    Network(IpNet),
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// At least 1.
    pub first: u16,
    /// At least `first`.
    pub last: u16,
}

/// The ports of a rule. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(Vec<PortRange>);

impl Ports {
    /// True when one of the ranges holds `port`.
    pub fn contain(&self, port: u16) -> bool {
        self.0.iter().any(|range| (range.first..=range.last).contains(&port))
    }

    /// The ranges as written.
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }

    /// How many ports the ranges hold together (ranges that overlap count twice).
    pub fn count(&self) -> usize {
        self.0.iter().map(|range| usize::from(range.last - range.first) + 1).sum()
    }
}

/// A permission or a denial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `!` in front.
    pub denies: bool,
    /// What it is about.
    pub subject: Subject,
    /// At which ports.
    pub ports: Ports,
}

/// Why text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// There is no `:PORTS`.
    #[error("{0:?} names no ports: write host:443, host:8000-8010 or host:*")]
    NoPorts(String),
    /// Ports that are none.
    #[error("{0:?} is neither a port, a range of ports nor *")]
    Ports(String),
    /// A wildcard elsewhere than as the whole first label.
    #[error("{0:?} has a wildcard that is not its whole first label: write *.example.com")]
    Wildcard(String),
    /// No network.
    #[error("{0:?} is no network such as 10.0.0.0/8 or [2001:db8::]/32")]
    Network(String),
    /// Bits are set behind the prefix: probably a typing mistake.
    #[error("{written} has bits behind its prefix: did you mean {meant}?")]
    HostBits {
        /// As given.
        written: String,
        /// The network that holds it.
        meant: IpNet,
    },
    /// The host is none.
    #[error(transparent)]
    Host(#[from] crate::TargetError),
}

impl Ports {
    /// Every port, if there are at most `most`: what can be listened on one by one.
    pub fn each(&self, most: usize) -> Option<Vec<u16>> {
        let count: usize = self.0.iter().map(|range| usize::from(range.last - range.first) + 1).sum();
        (count <= most).then(|| self.0.iter().flat_map(|range| range.first..=range.last).collect())
    }
}

impl Rule {
    /// True when the rule speaks of this target as it is named, unresolved.
    pub fn names(&self, target: &Target) -> bool {
        self.ports.contain(target.port)
            && match (&self.subject, &target.host) {
                (Subject::Name(name), Host::Name(wanted)) => name == wanted,
                (Subject::Below(parent), Host::Name(wanted)) => wanted.is_below(parent),
                (Subject::Network(_), Host::Address(address)) => self.holds(*address, target.port),
                _ => false,
            }
    }

    /// True when the rule is a network that speaks of this address at this port.
    ///
    /// A denial speaks also of the IPv4 address that an IPv6 one carries inside (NAT64,
    /// 6to4). A permission speaks of an address that is not public only if all of its network
    /// is of that kind: who allows `0.0.0.0/0` has not named the instance metadata.
    pub fn holds(&self, address: IpAddr, port: u16) -> bool {
        let Subject::Network(network) = &self.subject else { return false };
        let address = address.to_canonical();
        let speaks = match (self.denies, address) {
            (true, IpAddr::V6(outer)) => {
                let inside = inner(outer).map(IpAddr::from);
                network.contains(&address) || inside.is_some_and(|address| network.contains(&address))
            }
            (true, IpAddr::V4(_)) => network.contains(&address),
            (false, _) => {
                let named = reserved(address).is_none_or(|kind| kind_of_all(network) == Some(kind));
                named && network.contains(&address)
            }
        };
        speaks && self.ports.contain(port)
    }
}

impl From<&Target> for Rule {
    /// The permission of this target alone.
    fn from(target: &Target) -> Rule {
        let subject = match &target.host {
            Host::Name(name) => Subject::Name(name.clone()),
            Host::Address(address) => Subject::Network(IpNet::from(*address)),
        };
        Rule {
            denies: false,
            subject,
            ports: Ports(vec![PortRange { first: target.port, last: target.port }]),
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Rule, RuleError> {
        let (denies, rest) = match text.trim().strip_prefix('!') {
            Some(rest) => (true, rest.trim_start()),
            None => (false, text.trim()),
        };
        let (subject, ports) = rest.rsplit_once(':').ok_or_else(|| RuleError::NoPorts(text.to_owned()))?;
        Ok(Rule { denies, subject: subject.parse()?, ports: ports.parse()? })
    }
}

impl FromStr for Subject {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Subject, RuleError> {
        if let Some(parent) = text.strip_prefix("*.").filter(|parent| !parent.contains('*')) {
            return Ok(Subject::Below(parent.parse()?));
        }
        if text.contains('*') {
            return Err(RuleError::Wildcard(text.to_owned()));
        }
        if let Some((address, prefix)) = text.rsplit_once('/') {
            return network(text, address, prefix);
        }
        Ok(match text.parse::<Host>()? {
            Host::Name(name) => Subject::Name(name),
            Host::Address(address) => Subject::Network(IpNet::from(address)),
        })
    }
}

fn network(text: &str, address: &str, prefix: &str) -> Result<Subject, RuleError> {
    let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    let network: IpNet =
        format!("{bare}/{prefix}").parse().map_err(|_| RuleError::Network(text.to_owned()))?;
    if network.trunc() != network {
        return Err(RuleError::HostBits { written: text.to_owned(), meant: network.trunc() });
    }
    Ok(Subject::Network(canonical(network)))
}

/// A network of IPv4-mapped addresses is one of IPv4: as that its addresses are compared.
fn canonical(network: IpNet) -> IpNet {
    match (network.addr().to_canonical(), network.prefix_len()) {
        (IpAddr::V4(address), length @ 96..) if matches!(network, IpNet::V6(_)) => {
            Ipv4Net::new(address, length - 96).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

impl FromStr for Ports {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Ports, RuleError> {
        if text == "*" {
            return Ok(Ports(vec![PortRange { first: 1, last: u16::MAX }]));
        }
        let wrong = || RuleError::Ports(text.to_owned());
        let port = |digits: &str| match digits.parse::<u16>() {
            Ok(port) if port != 0 && !digits.starts_with('+') => Ok(port),
            _ => Err(wrong()),
        };
        let range = |piece: &str| {
            let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
            let range = PortRange { first: port(first.trim())?, last: port(last.trim())? };
            if range.first <= range.last { Ok(range) } else { Err(wrong()) }
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Ports)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.denies {
            formatter.write_str("!")?;
        }
        match &self.subject {
            Subject::Name(name) => write!(formatter, "{name}")?,
            Subject::Below(parent) => write!(formatter, "*.{parent}")?,
            Subject::Network(IpNet::V4(network)) => write!(formatter, "{network}")?,
            Subject::Network(IpNet::V6(network)) => {
                write!(formatter, "[{}]/{}", network.addr(), network.prefix_len())?;
            }
        }
        write!(formatter, ":{}", self.ports)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str(",")?;
            }
            match (range.first, range.last) {
                (1, u16::MAX) => formatter.write_str("*")?,
                (first, last) if first == last => write!(formatter, "{first}")?,
                (first, last) => write!(formatter, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_back_as_they_are_meant() {
        for (text, shown) in [
            ("Example.com:443", "example.com:443"),
            ("*.example.com:443,8443", "*.example.com:443,8443"),
            ("10.1.0.0/16:5432-5433", "10.1.0.0/16:5432-5433"),
            ("10.1.2.3:22", "10.1.2.3/32:22"),
            ("[2001:db8::]/32:*", "[2001:db8::]/32:*"),
            ("2001:db8::/32:80", "[2001:db8::]/32:80"),
            ("! admin.example.com:*", "!admin.example.com:*"),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), shown);
            assert_eq!(shown.parse::<Rule>().unwrap(), rule, "{shown}");
        }
    }

    #[test]
    fn the_rule_of_a_target_is_the_one_that_is_written_like_it() {
        for text in ["example.com:443", "10.1.2.3:22", "[2001:db8::1]:80"] {
            assert_eq!(Rule::from(&text.parse::<Target>().unwrap()), text.parse().unwrap(), "{text}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_reason() {
        for (text, message) in [
            ("example.com", "names no ports"),
            ("example.com:", "neither a port"),
            ("example.com:0", "neither a port"),
            ("example.com:9-8", "neither a port"),
            ("example.com:http", "neither a port"),
            ("*:443", "first label"),
            ("www.*.com:443", "first label"),
            ("*a.com:443", "first label"),
            ("*.*.com:443", "first label"),
            ("10.0.0.1/8:80", "did you mean 10.0.0.0/8"),
            ("10.0.0.0/33:80", "no network"),
            ("0x7f.1:80", "looks like an address"),
            ("exa mple.com:80", "no host name"),
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
