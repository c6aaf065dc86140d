//! A fixed way out: a vsock port of the instance, and where it leads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use egress::allowlist::{self, AllowlistError};
use egress::{Policy, Rule, Target};
use serde::{Deserialize, Serialize};

use super::load::{ConfigError, in_range};
use crate::exit::{Blame, Exit};

/// Where foreign images report that they are up.
const HEARTBEAT_PORT: u32 = 9000;
/// The last one stands for "any".
const LAST_PORT: u32 = u32::MAX - 1;

/// One tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tunnel {
    /// The vsock port of the instance (CID 3) that the enclave dials: 1 to
    /// 4294967294, but not 9000. No other pod of the node may use the same.
    pub(crate) port: u32,
    /// Where it leads, as host:port. Nothing else has to allow it, but a name
    /// that leads to a private address needs a network rule under `egress`.
    pub(crate) to: Target,
}

/// Why the tunnels do not agree with vsock-proxy's list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error("cannot read the allow-list {}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the allow-list {} cannot be used", .path.display())]
    Malformed { path: PathBuf, source: Box<AllowlistError> },
    #[error("the tunnel at port {port} leads to {to}, which the allow-list {} does not name", .path.display())]
    NotListed { port: u32, to: Target, path: PathBuf },
}

impl Blame for TunnelError {
    fn exit(&self) -> Exit {
        Exit::Usage
    }

    fn fix(&self) -> String {
        match self {
            TunnelError::Unreadable { .. } => {
                "give the path of a readable file with vsock_proxy_allowlist, or leave it out".into()
            }
            TunnelError::Malformed { path, .. } => format!("correct {}", path.display()),
            TunnelError::NotListed { to, path, .. } => {
                let (host, port) = (to.host.bare(), to.port);
                format!(
                    "add {{address: \"{host}\", port: {port}}} to {}, or remove the tunnel",
                    path.display()
                )
            }
        }
    }
}

impl Tunnel {
    /// What it may connect to: its own target, and what else `egress` says of
    /// that, such as denials and the private networks that names may lead to.
    pub(crate) fn policy(&self, egress: &Policy) -> Policy {
        egress.and(Rule::from(&self.to))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.port == HEARTBEAT_PORT {
            let expected = "but foreign images report on that port".to_owned();
            return Err(ConfigError::Range { knob: "tunnels.port", actual: self.port.to_string(), expected });
        }
        in_range("tunnels.port", self.port, 1, LAST_PORT)
    }
}

/// Whether every tunnel leads to where vsock-proxy's file at `path` allows.
pub(super) fn check_listed(tunnels: &[Tunnel], path: &Path) -> Result<(), TunnelError> {
    let path = || path.to_owned();
    let text =
        fs::read_to_string(path()).map_err(|source| TunnelError::Unreadable { path: path(), source })?;
    let list = allowlist::from_yaml(&text)
        .map_err(|source| TunnelError::Malformed { path: path(), source: Box::new(source) })?;
    match tunnels.iter().find(|tunnel| !list.decide(&tunnel.to).is_allowed()) {
        Some(Tunnel { port, to }) => {
            Err(TunnelError::NotListed { port: *port, to: to.clone(), path: path() })
        }
        None => Ok(()),
    }
}

impl FromStr for Tunnel {
    type Err = String;

    /// `8000=kms.eu-west-1.amazonaws.com:443`
    fn from_str(text: &str) -> Result<Tunnel, String> {
        let (port, to) = text.split_once('=').ok_or("write PORT=HOST:PORT, such as 8000=example.com:443")?;
        let port = port.parse().map_err(|_| format!("{port:?} is no vsock port"))?;
        Ok(Tunnel { port, to: to.parse().map_err(|error: egress::TargetError| error.to_string())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Failure;

    fn tunnel(text: &str) -> Tunnel {
        text.parse().unwrap()
    }

    #[test]
    fn a_tunnel_is_written_on_one_line_or_in_the_file() {
        let read: Tunnel = serde_saphyr::from_str("port: 8000\nto: KMS.example.com:443\n").unwrap();
        assert_eq!(read, tunnel("8000=kms.example.com:443"));
        for wrong in ["8000", "8000=example.com", "x=example.com:443", "4294967296=a.com:1", "1=0x7f.1:80"] {
            assert!(wrong.parse::<Tunnel>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_that_cannot_be_meant_are_refused() {
        for (port, message) in
            [(0, "must be 1 to"), (u32::MAX, "must be 1 to"), (9000, "foreign images report")]
        {
            let error = tunnel(&format!("{port}=a.com:443")).check().unwrap_err().to_string();
            assert!(error.contains("tunnels.port") && error.contains(message), "{error}");
        }
        assert!(tunnel("8000=a.com:443").check().is_ok());
    }

    #[test]
    fn a_tunnel_is_its_own_permission_and_no_more() {
        let egress = Policy::try_from(vec!["10.1.0.0/16:443".to_owned(), "!10.1.9.9:*".to_owned()]).unwrap();
        let policy = tunnel("8000=a.com:443").policy(&egress);
        let address = |text: &str| policy.decide_address(text.parse().unwrap(), 443).is_allowed();
        assert!(policy.decide(&"a.com:443".parse().unwrap()).is_allowed());
        assert!(!policy.decide(&"a.com:80".parse().unwrap()).is_allowed());
        assert!(address("10.1.2.3") && address("1.1.1.1"));
        assert!(!address("10.1.9.9") && !address("10.2.0.1") && !address("169.254.169.254"));
        // Written out it is a network rule, a denial wins all the same.
        let literal = tunnel("8000=169.254.169.254:80");
        assert!(literal.policy(&Policy::default()).decide(&literal.to).is_allowed());
        let denying = Policy::try_from(vec!["!169.254.0.0/16:*".to_owned()]).unwrap();
        assert!(!literal.policy(&denying).decide(&literal.to).is_allowed());
    }

    #[test]
    fn every_tunnel_must_be_on_the_list_and_every_error_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock-proxy.yaml");
        let tunnels = [tunnel("8000=a.com:443"), tunnel("8001=[2001:db8::1]:80")];
        let missing = check_listed(&tunnels, &path).unwrap_err();
        fs::write(&path, "allowlist: 7").unwrap();
        let malformed = check_listed(&tunnels, &path).unwrap_err();
        fs::write(&path, "allowlist: [{address: a.com, port: 443}]").unwrap();
        let not_listed = check_listed(&tunnels, &path).unwrap_err();
        assert!(matches!(missing, TunnelError::Unreadable { .. }));
        assert!(matches!(malformed, TunnelError::Malformed { .. }));
        assert!(matches!(not_listed, TunnelError::NotListed { port: 8001, .. }));
        for (error, cause, fix) in [
            (missing, "cannot read the allow-list", "vsock_proxy_allowlist"),
            (malformed, "cannot be used", "correct"),
            (not_listed, "leads to [2001:db8::1]:80", "{address: \"2001:db8::1\", port: 80}"),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.explanation.cause.contains(cause), "{failure:?}");
            assert!(failure.explanation.fix.contains(fix), "{failure:?}");
        }
        assert!(check_listed(&tunnels[..1], &path).is_ok());
    }
}
