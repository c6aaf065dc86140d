//! Reads the file in which AWS's vsock-proxy lists where it may lead to.
//!
//! ```text
//! allowlist:
//! - {address: kms.eu-west-1.amazonaws.com, port: 443}
//! - {address: 10.1.2.3, port: 5432}
//! ```
//! An entry is a permission of exactly one host at one port. Keys beside these
//! are not looked at, as the original does not. Unlike the original, an entry
//! is never resolved: a name allows that name, an address that address.

use serde::Deserialize;

use crate::{Policy, Rule, Target, TargetError};

/// Why text is no list of vsock-proxy's.
#[derive(Debug, thiserror::Error)]
pub enum AllowlistError {
    /// Some other file.
    #[error("it has no list named allowlist")]
    Missing,
    /// One entry is wrong.
    #[error("entry {number} is wrong")]
    Entry {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        source: TargetError,
    },
    /// Not YAML, or not of this shape.
    #[error("it cannot be read")]
    Yaml(#[from] serde_saphyr::Error),
}

#[derive(Deserialize)]
struct File {
    allowlist: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    address: String,
    port: u16,
}

/// The entries as rules, in their order.
pub fn from_yaml(text: &str) -> Result<Policy, AllowlistError> {
    let file: File = serde_saphyr::from_str(text)?;
    let rule = |(index, entry): (usize, &Entry)| {
        let target = Target::new(&entry.address, entry.port)
            .map_err(|source| AllowlistError::Entry { number: index + 1, source })?;
        Ok(Rule::from(&target))
    };
    let entries = file.allowlist.ok_or(AllowlistError::Missing)?;
    entries.iter().enumerate().map(rule).collect::<Result<_, _>>().map(Policy::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shape of the file that AWS ships, and what people add to it.
    const FILE: &str = "allowlist:
- {address: kms.us-east-1.amazonaws.com, port: 443}
- {address: kms-fips.us-east-1.amazonaws.com, port: 443}
- address: 10.1.2.3
  port: 5432
  comment: the database
- {address: '2001:db8::7', port: 6379}
- {address: 127.0.0.1, port: 9000}
other: 1
";

    #[test]
    fn an_entry_allows_its_host_at_its_port_and_nothing_else() {
        let list = from_yaml(FILE).unwrap();
        for (target, rule) in [
            ("kms.us-east-1.amazonaws.com:443", Some(1)),
            ("KMS.us-east-1.amazonaws.com.:443", Some(1)),
            ("10.1.2.3:5432", Some(3)),
            ("[2001:db8::7]:6379", Some(4)),
            ("127.0.0.1:9000", Some(5)),
            ("kms.us-east-1.amazonaws.com:80", None),
            ("a.kms.us-east-1.amazonaws.com:443", None),
            ("amazonaws.com:443", None),
            ("10.1.2.4:5432", None),
            ("169.254.169.254:80", None),
        ] {
            let decision = list.decide(&target.parse().unwrap());
            assert_eq!(decision.is_allowed(), rule.is_some(), "{target}");
            assert_eq!(decision.rule.map(|(number, _)| number), rule, "{target}");
        }
    }

    #[test]
    fn what_is_no_such_list_is_refused_with_its_reason() {
        assert!(matches!(from_yaml("egress: ['a.com:443']"), Err(AllowlistError::Missing)));
        for text in [
            "allowlist: [{address: a.com}]",
            "allowlist: [{port: 443}]",
            "allowlist: [{address: a.com, port: 65536}]",
            "allowlist: [{address: a.com, port: -1}]",
            "allowlist: {address: a.com, port: 443}",
            "allowlist: [",
        ] {
            assert!(matches!(from_yaml(text), Err(AllowlistError::Yaml(_))), "{text}");
        }
        for entry in
            ["{address: '*.a.com', port: 443}", "{address: 0x7f.1, port: 1}", "{address: a.com, port: 0}"]
        {
            let error = from_yaml(&format!("allowlist: [{{address: a.com, port: 1}}, {entry}]")).unwrap_err();
            assert!(matches!(error, AllowlistError::Entry { number: 2, .. }), "{entry}: {error}");
        }
    }
}
