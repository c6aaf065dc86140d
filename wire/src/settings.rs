//! What the image says about its workload: written by the image build into the
//! second ramdisk, hence measured in PCR2; read by the agent.

use serde::{Deserialize, Serialize};

/// Where the settings lie in the enclave's initial filesystem.
pub const SETTINGS_PATH: &str = "/workload/settings.json";
/// Where the workload's root filesystem lies there.
pub const ROOTFS_PATH: &str = "/workload/rootfs";

/// The agent's settings. JSON; unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Program and arguments: ENTRYPOINT followed by CMD. Never empty.
    pub argv: Vec<String>,
    /// Variables as `NAME=value`, in order.
    #[serde(default)]
    pub env: Vec<String>,
    /// `user`, `user:group`, `uid` or `uid:gid`; names are looked up in the
    /// workload's own /etc/passwd and /etc/group. Default `0:0`.
    #[serde(default = "root")]
    pub user: String,
    /// Absolute path in the workload's root filesystem; created when missing.
    #[serde(default = "slash")]
    pub workdir: String,
    /// TCP ports of the workload that the parent may reach.
    #[serde(default)]
    pub ingress: Vec<u16>,
    /// Those of `ingress` on which the workload reads a PROXY protocol v2 header.
    /// Only the shim that claimed the enclave can reach them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol: Vec<u16>,
    /// When the workload counts as ready.
    #[serde(default)]
    pub ready: Ready,
    /// How the workload may use the Nitro Security Module.
    #[serde(default)]
    pub nsm: NsmAccess,
    /// Whether the workload may open AF_VSOCK sockets of its own.
    #[serde(default)]
    pub vsock: VsockAccess,
    /// Whether the parent may read the workload's output in production mode.
    #[serde(default)]
    pub logs: LogAccess,
    /// Where the workload may connect, as the rules of the `egress` crate, which
    /// the image build has checked. Without any there is no way out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// Where the agent ends TLS in the workload's place.
    #[serde(default, skip_serializing_if = "AttestedTls::is_off")]
    pub attested_tls: AttestedTls,
    /// Names of variables whose values come from the pod: measured in PCR16
    /// before the workload starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_env: Vec<String>,
}

/// Attested TLS, ended by the agent with a key that is born in the enclave.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestedTls {
    /// Ingress ports: clients speak TLS, the workload gets plain bytes there.
    pub ports: Vec<u16>,
    /// Whether clients may have a document made for their very session.
    #[serde(default)]
    pub session: bool,
}

impl AttestedTls {
    /// True when no port is named.
    pub fn is_off(&self) -> bool {
        self.ports.is_empty()
    }
}

/// When a workload counts as ready.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// It listens on every ingress port; without ingress ports, it has been started.
    #[default]
    Listen,
    /// It has been started.
    Started,
    /// It writes `READY=1` to the socket named by NOTIFY_SOCKET (sd_notify(3)).
    Notify,
}

/// How a workload may use the Nitro Security Module.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NsmAccess {
    /// Through the agent's local socket.
    #[default]
    Socket,
    /// By /dev/nsm itself: it can then extend and lock PCRs and attest anything.
    Direct,
    /// Not at all.
    None,
}

/// Whether a workload may open AF_VSOCK sockets.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VsockAccess {
    /// It may not: a vsock of its own would step around the egress policy.
    #[default]
    Deny,
    /// It may.
    Allow,
}

/// Whether the parent may read what a workload writes to its standard output
/// and error. Measured, because output may hold what the parent must not see.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogAccess {
    /// It goes to the console, which only debug mode shows.
    #[default]
    Deny,
    /// It goes to the shim, line by line.
    Forward,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not the JSON of [`Settings`].
    #[error("settings are not valid")]
    Malformed(#[from] serde_json::Error),
    /// `argv` holds no program.
    #[error("argv is empty: the image names neither an entrypoint nor a command")]
    NoProgram,
    /// A string that the kernel takes NUL-terminated holds a NUL.
    #[error("{field} holds a NUL byte")]
    Nul {
        /// Which field.
        field: &'static str,
    },
    /// `workdir` is relative.
    #[error("workdir {workdir:?} is not an absolute path")]
    RelativeWorkdir {
        /// As given.
        workdir: String,
    },
    /// A variable has no `=`, or no name.
    #[error("variable {variable:?} is not NAME=value")]
    Variable {
        /// As given.
        variable: String,
    },
    /// A PROXY protocol port that is no ingress port.
    #[error("proxy_protocol port {port} is not one of ingress")]
    ProxyProtocol {
        /// The port.
        port: u16,
    },
    /// An ingress port is 0, listed twice, or kept by the agent.
    #[error("ingress port {port} is {why}")]
    Ingress {
        /// The port.
        port: u16,
        /// `zero`, `listed twice` or `kept by the agent`.
        why: &'static str,
    },
    /// A port of attested TLS is no ingress port.
    #[error("attested_tls port {port} is not an ingress port")]
    AttestedTls {
        /// The port.
        port: u16,
    },
    /// The first bytes of one connection cannot be both.
    #[error(
        "port {port} is one of proxy_protocol and of attested_tls: the agent ends TLS or passes a header on"
    )]
    TwoFirstBytes {
        /// The port.
        port: u16,
    },
    /// A name that no program reads, or that is listed twice.
    #[error("pod_env name {name:?} is {why}")]
    PodEnv {
        /// As given.
        name: String,
        /// `not letters, digits and _` or `listed twice`.
        why: &'static str,
    },
}

impl Settings {
    /// Parses and checks the bytes of [`SETTINGS_PATH`].
    pub fn from_json(bytes: &[u8]) -> Result<Settings, SettingsError> {
        let settings: Settings = serde_json::from_slice(bytes)?;
        settings.check()?;
        Ok(settings)
    }

    /// The bytes for [`SETTINGS_PATH`]. Same settings, same bytes.
    pub fn to_json(&self) -> Result<Vec<u8>, SettingsError> {
        self.check()?;
        Ok(serde_json::to_vec(self)?)
    }

    fn check(&self) -> Result<(), SettingsError> {
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(SettingsError::NoProgram);
        }
        for (field, holds_nul) in [
            ("argv", self.argv.iter().any(|text| text.contains('\0'))),
            ("env", self.env.iter().any(|text| text.contains('\0'))),
            ("user", self.user.contains('\0')),
            ("workdir", self.workdir.contains('\0')),
        ] {
            if holds_nul {
                return Err(SettingsError::Nul { field });
            }
        }
        if !self.workdir.starts_with('/') {
            return Err(SettingsError::RelativeWorkdir { workdir: self.workdir.clone() });
        }
        if let Some(variable) = self.env.iter().find(|variable| variable.find('=').is_none_or(|at| at == 0)) {
            return Err(SettingsError::Variable { variable: variable.clone() });
        }
        self.check_ingress()?;
        let stray = self.attested_tls.ports.iter().find(|port| !self.ingress.contains(port));
        if let Some(&port) = stray {
            return Err(SettingsError::AttestedTls { port });
        }
        let both = self.attested_tls.ports.iter().find(|port| self.proxy_protocol.contains(port));
        if let Some(&port) = both {
            return Err(SettingsError::TwoFirstBytes { port });
        }
        self.check_pod_env()
    }

    fn check_pod_env(&self) -> Result<(), SettingsError> {
        for (index, name) in self.pod_env.iter().enumerate() {
            let why = if !is_name(name) {
                "not letters, digits and _"
            } else if self.pod_env[..index].contains(name) {
                "listed twice"
            } else {
                continue;
            };
            return Err(SettingsError::PodEnv { name: name.clone(), why });
        }
        Ok(())
    }

    fn check_ingress(&self) -> Result<(), SettingsError> {
        for (index, &port) in self.ingress.iter().enumerate() {
            let why = if port == 0 {
                "zero"
            } else if self.ingress[..index].contains(&port) {
                "listed twice"
            } else if crate::port::RESERVED.contains(&u32::from(port)) {
                "kept by the agent"
            } else {
                continue;
            };
            return Err(SettingsError::Ingress { port, why });
        }
        match self.proxy_protocol.iter().find(|port| !self.ingress.contains(port)) {
            Some(&port) => Err(SettingsError::ProxyProtocol { port }),
            None => Ok(()),
        }
    }
}

/// A name as shells know it. Source: POSIX.1-2024, XBD 3.216.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn root() -> String {
    "0:0".to_owned()
}

fn slash() -> String {
    "/".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"argv":["/hello"]}"#;

    #[test]
    fn only_the_program_is_required() {
        let settings = Settings::from_json(MINIMAL.as_bytes()).unwrap();
        assert_eq!(settings.user, "0:0");
        assert_eq!(settings.workdir, "/");
        assert_eq!(
            (settings.ready, settings.nsm, settings.vsock, settings.logs),
            (Ready::Listen, NsmAccess::Socket, VsockAccess::Deny, LogAccess::Deny)
        );
        assert_eq!(Settings::from_json(&settings.to_json().unwrap()).unwrap(), settings);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (json, message) in [
            (r#"{"argv":[]}"#, "argv is empty"),
            (r#"{"argv":["/a"],"colour":1}"#, "not valid"),
            (r#"{"argv":["/a\u0000b"]}"#, "argv holds a NUL"),
            (r#"{"argv":["/a"],"workdir":"srv"}"#, "workdir \"srv\""),
            (r#"{"argv":["/a"],"env":["=x"]}"#, "variable \"=x\""),
            (r#"{"argv":["/a"],"ingress":[0]}"#, "port 0 is zero"),
            (r#"{"argv":["/a"],"ingress":[80,80]}"#, "port 80 is listed twice"),
            (r#"{"argv":["/a"],"ingress":[5701]}"#, "port 5701 is kept by the agent"),
            (r#"{"argv":["/a"],"ingress":[5703]}"#, "port 5703 is kept by the agent"),
            (r#"{"argv":["/a"],"ingress":[80],"proxy_protocol":[81]}"#, "port 81 is not one of ingress"),
            (r#"{"argv":["/a"],"logs":"all"}"#, "not valid"),
            (r#"{"argv":["/a"],"attested_tls":{"ports":[443]}}"#, "port 443 is not an ingress port"),
            (
                r#"{"argv":["/a"],"ingress":[443],"proxy_protocol":[443],"attested_tls":{"ports":[443]}}"#,
                "port 443 is one of proxy_protocol and of attested_tls",
            ),
            (r#"{"argv":["/a"],"pod_env":["A","A"]}"#, "name \"A\" is listed twice"),
            (r#"{"argv":["/a"],"pod_env":["A=b"]}"#, "name \"A=b\" is not letters"),
            (r#"{"argv":["/a"],"pod_env":["1A"]}"#, "name \"1A\" is not letters"),
            (r#"{"argv":["/a"],"pod_env":[""]}"#, "name \"\" is not letters"),
        ] {
            let error = Settings::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{json}: {error}");
        }
    }
}
