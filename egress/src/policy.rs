//! All rules together, and what they say of a target.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Host, Name, Reserved, Rule, RuleError, Subject, Target, reserved};

/// An ordered list of rules. Empty: nothing is allowed.
///
/// Written as a list of strings; the order is for people, it decides nothing:
/// a denial wins over every permission.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Policy {
    rules: Vec<Rule>,
}

/// Why text is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// One rule is wrong.
    #[error("egress rule {number} is wrong")]
    Rule {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        source: RuleError,
    },
    /// Not a YAML list of strings under `egress`.
    #[error("the egress policy cannot be read")]
    Yaml(#[from] serde_saphyr::Error),
}

/// A permission with more ports than this is reached through the agent's proxy
/// only: every port of the others has a listener.
pub const MOST_LISTENED: usize = 16;

/// How a workload gets to an allowed target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// By its name: the agent answers for it in DNS and listens on the port.
    Name,
    /// Through HTTP CONNECT or SOCKS5: an address has no name to answer for.
    ProxyForAddress,
    /// Through HTTP CONNECT or SOCKS5: only a wide range of ports names it.
    ProxyForPorts,
}

/// May it, or may it not, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// The rule that decided, counted from 1, and its text.
    pub rule: Option<(usize, String)>,
}

/// The answer and its reason. A closed set: it labels metrics and log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A rule allows it.
    Allowed,
    /// A rule denies it.
    Denied,
    /// No rule speaks of it.
    NotNamed,
    /// The address is not public, and no network rule names it.
    Reserved(Reserved),
}

impl Decision {
    /// True for [`Verdict::Allowed`].
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allowed
    }
}

impl Policy {
    /// A policy of these rules.
    pub fn new(rules: Vec<Rule>) -> Policy {
        Policy { rules }
    }

    /// The same policy with one rule more.
    pub fn and(&self, rule: Rule) -> Policy {
        Policy { rules: self.rules.iter().cloned().chain([rule]).collect() }
    }

    /// Reads a YAML file: `egress: [RULE, …]`. Other keys are not looked at, so
    /// that it may be a whole enclave.yaml or shim.yaml.
    pub fn from_yaml(text: &str) -> Result<Policy, PolicyError> {
        #[derive(Deserialize)]
        struct File {
            egress: Vec<String>,
        }
        let file: File = serde_saphyr::from_str(text)?;
        Policy::try_from(file.egress)
    }

    /// The rules as written.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What the rules say of a target as it is named. A name that is allowed
    /// here is allowed to be resolved; its addresses are decided on one by one.
    pub fn decide(&self, target: &Target) -> Decision {
        if let Some(denial) = self.find(|rule| rule.denies && rule.names(target)) {
            return Decision { verdict: Verdict::Denied, rule: Some(denial) };
        }
        if let Some(permission) = self.find(|rule| !rule.denies && rule.names(target)) {
            return Decision { verdict: Verdict::Allowed, rule: Some(permission) };
        }
        let verdict = match target.host {
            Host::Address(address) => reserved(address).map_or(Verdict::NotNamed, Verdict::Reserved),
            Host::Name(_) => Verdict::NotNamed,
        };
        Decision { verdict, rule: None }
    }

    /// What the rules say of an address to which an allowed name has led.
    /// Public addresses pass unless a network rule denies them; others only
    /// where a network rule names them.
    pub fn decide_address(&self, address: IpAddr, port: u16) -> Decision {
        if let Some(denial) = self.find(|rule| rule.denies && rule.holds(address, port)) {
            return Decision { verdict: Verdict::Denied, rule: Some(denial) };
        }
        let permission = self.find(|rule| !rule.denies && rule.holds(address, port));
        match (reserved(address), permission) {
            (_, Some(permission)) => Decision { verdict: Verdict::Allowed, rule: Some(permission) },
            (None, None) => Decision { verdict: Verdict::Allowed, rule: None },
            (Some(kind), None) => Decision { verdict: Verdict::Reserved(kind), rule: None },
        }
    }

    /// Every port that the agent listens on for names.
    pub fn listened_ports(&self) -> BTreeSet<u16> {
        self.listened().flat_map(|(_, ports)| ports).collect()
    }

    /// The names that are allowed as they are, in the order of the rules.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.listened().filter_map(|(rule, _)| match &rule.subject {
            Subject::Name(name) => Some(name),
            Subject::Below(_) | Subject::Network(_) => None,
        })
    }

    /// True when the workload may reach `name` by its name, at any port.
    pub fn answers_for(&self, name: &Name) -> bool {
        self.listened().any(|(rule, ports)| {
            let at = |port: u16| Target { host: Host::Name(name.clone()), port };
            ports.iter().any(|port| rule.names(&at(*port)) && self.decide(&at(*port)).is_allowed())
        })
    }

    /// How an allowed target is reached.
    pub fn reach(&self, target: &Target) -> Reach {
        match target.host {
            Host::Address(_) => Reach::ProxyForAddress,
            Host::Name(_) if self.listened().any(|(rule, _)| rule.names(target)) => Reach::Name,
            Host::Name(_) => Reach::ProxyForPorts,
        }
    }

    fn listened(&self) -> impl Iterator<Item = (&Rule, Vec<u16>)> {
        let permissions = self.rules.iter().filter(|rule| !rule.denies);
        let names = permissions.filter(|rule| !matches!(rule.subject, Subject::Network(_)));
        names.filter_map(|rule| Some((rule, rule.ports.each(MOST_LISTENED)?)))
    }

    fn find(&self, fits: impl Fn(&Rule) -> bool) -> Option<(usize, String)> {
        let index = self.rules.iter().position(fits)?;
        Some((index + 1, self.rules[index].to_string()))
    }
}

impl TryFrom<Vec<String>> for Policy {
    type Error = PolicyError;

    fn try_from(lines: Vec<String>) -> Result<Policy, PolicyError> {
        let rule = |(index, line): (usize, &String)| {
            line.parse().map_err(|source| PolicyError::Rule { number: index + 1, source })
        };
        Ok(Policy { rules: lines.iter().enumerate().map(rule).collect::<Result<_, _>>()? })
    }
}

impl From<Policy> for Vec<String> {
    fn from(policy: Policy) -> Vec<String> {
        policy.rules.iter().map(Rule::to_string).collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Allowed => formatter.write_str("allowed"),
            Verdict::Denied => formatter.write_str("denied by a rule"),
            Verdict::NotNamed => formatter.write_str("denied: no rule names it"),
            Verdict::Reserved(kind) => {
                write!(formatter, "denied: a {kind} address that no network rule names")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(rules: &[&str]) -> Policy {
        Policy::try_from(rules.iter().map(|rule| (*rule).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn verdict(policy: &Policy, target: &str) -> Verdict {
        policy.decide(&target.parse().unwrap()).verdict
    }

    #[test]
    fn nothing_is_allowed_that_no_rule_names() {
        let policy = policy(&["api.example.com:443", "*.cdn.example.com:443"]);
        assert_eq!(verdict(&policy, "api.example.com:443"), Verdict::Allowed);
        assert_eq!(verdict(&policy, "api.example.com:80"), Verdict::NotNamed);
        assert_eq!(verdict(&policy, "a.b.cdn.example.com:443"), Verdict::Allowed);
        assert_eq!(verdict(&policy, "cdn.example.com:443"), Verdict::NotNamed);
        assert_eq!(verdict(&policy, "93.184.215.14:443"), Verdict::NotNamed);
        assert_eq!(verdict(&Policy::default(), "api.example.com:443"), Verdict::NotNamed);
    }

    #[test]
    fn a_denial_wins_wherever_it_stands_and_is_named() {
        let policy = policy(&["*.example.com:*", "!admin.example.com:*"]);
        let decision = policy.decide(&"admin.example.com:443".parse().unwrap());
        assert_eq!(decision.verdict, Verdict::Denied);
        assert_eq!(decision.rule, Some((2, "!admin.example.com:*".to_owned())));
    }

    #[test]
    fn a_name_cannot_lead_to_an_address_that_no_network_rule_names() {
        let policy = policy(&["db.internal:5432", "10.1.0.0/16:5432"]);
        for (address, port, expected) in [
            ("10.1.2.3", 5432, Verdict::Allowed),
            ("10.1.2.3", 80, Verdict::Reserved(Reserved::Private)),
            ("10.2.0.1", 5432, Verdict::Reserved(Reserved::Private)),
            ("169.254.169.254", 5432, Verdict::Reserved(Reserved::LinkLocal)),
            ("::ffff:169.254.169.254", 5432, Verdict::Reserved(Reserved::LinkLocal)),
            ("::ffff:10.1.2.3", 5432, Verdict::Allowed),
            ("127.0.0.1", 5432, Verdict::Reserved(Reserved::Loopback)),
            ("1.1.1.1", 5432, Verdict::Allowed),
        ] {
            let decision = policy.decide_address(address.parse().unwrap(), port);
            assert_eq!(decision.verdict, expected, "{address}:{port}");
        }
    }

    #[test]
    fn a_network_names_what_is_not_public_only_where_all_of_it_is() {
        for (rule, address, allowed) in [
            ("0.0.0.0/0:*", "1.1.1.1", true),
            ("0.0.0.0/0:*", "169.254.169.254", false),
            ("0.0.0.0/0:*", "127.0.0.1", false),
            ("0.0.0.0/0:*", "10.1.2.3", false),
            ("8.0.0.0/5:*", "10.1.2.3", false),
            ("10.0.0.0/8:*", "10.1.2.3", true),
            ("169.254.0.0/16:*", "169.254.169.254", true),
            ("169.254.169.254:*", "169.254.169.254", true),
            ("[::]/0:*", "fd00:ec2::254", false),
            ("[::]/0:*", "2606:4700::1111", true),
            ("[64:ff9b::]/96:*", "64:ff9b::a9fe:a9fe", false),
            ("[fc00::]/7:*", "fd00:ec2::254", true),
            ("[::ffff:10.0.0.0]/104:*", "10.1.2.3", true),
        ] {
            let policy = policy(&[rule, "*.example.com:*"]);
            let address: std::net::IpAddr = address.parse().unwrap();
            assert_eq!(policy.decide_address(address, 80).is_allowed(), allowed, "{rule} {address}");
            let target = Target { host: crate::Host::Address(address), port: 80 };
            assert_eq!(policy.decide(&target).is_allowed(), allowed, "{rule} {address}, as it is");
        }
    }

    #[test]
    fn a_denial_holds_for_the_address_that_another_one_carries_inside() {
        for denial in ["!203.0.114.0/24:*", "![::ffff:203.0.114.0]/120:*"] {
            let policy = policy(&["*.example.com:*", "0.0.0.0/0:*", "[::]/0:*", denial]);
            for (address, allowed) in [
                ("203.0.114.1", false),
                ("::ffff:203.0.114.1", false),
                ("64:ff9b::cb00:7201", false),
                ("2002:cb00:7201::1", false),
                ("64:ff9b::cb00:7301", true),
            ] {
                let decision = policy.decide_address(address.parse().unwrap(), 80);
                assert_eq!(decision.is_allowed(), allowed, "{denial} {address}");
            }
        }
    }

    #[test]
    fn a_wide_permission_does_not_include_the_metadata_service_by_name() {
        let policy = policy(&["*.example.com:*"]);
        assert_eq!(verdict(&policy, "169.254.169.254:80"), Verdict::Reserved(Reserved::LinkLocal));
        assert!(!policy.decide_address("169.254.169.254".parse().unwrap(), 80).is_allowed());
    }

    #[test]
    fn names_with_few_ports_are_listened_for_and_the_rest_is_left_to_the_proxy() {
        let policy = policy(&[
            "api.example.com:443,8000-8014",
            "wide.example.com:1-17",
            "any.example.com:*",
            "*.cdn.example.com:80",
            "!old.cdn.example.com:*",
            "10.1.0.0/16:5432",
        ]);
        let ports: Vec<u16> = policy.listened_ports().into_iter().collect();
        assert_eq!(ports, [&[80, 443][..], &(8000..=8014).collect::<Vec<_>>()].concat());
        assert_eq!(policy.names().map(Name::as_str).collect::<Vec<_>>(), ["api.example.com"]);
        for (name, answered) in [
            ("api.example.com", true),
            ("a.cdn.example.com", true),
            ("old.cdn.example.com", false),
            ("wide.example.com", false),
            ("any.example.com", false),
            ("other.com", false),
        ] {
            assert_eq!(policy.answers_for(&name.parse().unwrap()), answered, "{name}");
        }
        for (target, reach) in [
            ("api.example.com:443", Reach::Name),
            ("a.cdn.example.com:80", Reach::Name),
            ("any.example.com:443", Reach::ProxyForPorts),
            ("10.1.2.3:5432", Reach::ProxyForAddress),
        ] {
            assert_eq!(policy.reach(&target.parse().unwrap()), reach, "{target}");
        }
    }

    #[test]
    fn files_are_read_strictly() {
        assert_eq!(Policy::from_yaml("egress: ['a.com:443']").unwrap(), policy(&["a.com:443"]));
        assert_eq!(Policy::from_yaml("name: x\negress: ['a.com:443']").unwrap(), policy(&["a.com:443"]));
        assert!(matches!(Policy::from_yaml("egres: []"), Err(PolicyError::Yaml(_))));
        let error = Policy::from_yaml("egress: ['a.com:443', 'b.com']").unwrap_err();
        assert!(matches!(error, PolicyError::Rule { number: 2, .. }), "{error}");
    }

    proptest! {
        #[test]
        fn text_never_panics(text in ".{0,60}") {
            let _ = text.parse::<Rule>();
            let _ = text.parse::<Target>();
        }

        #[test]
        fn without_network_rules_only_public_addresses_pass(bits in any::<u128>(), v4 in any::<bool>()) {
            let address = if v4 { IpAddr::from((bits as u32).to_be_bytes()) } else { IpAddr::from(bits.to_be_bytes()) };
            let decision = policy(&["*.com:*"]).decide_address(address, 443);
            prop_assert_eq!(decision.is_allowed(), reserved(address).is_none());
        }
    }
}
