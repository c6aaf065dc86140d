//! `enclave.yaml`: what an application is called, how it is started, and what
//! it may do. Becomes the agent's measured settings.

use std::collections::BTreeMap;

use serde::Deserialize;
use wire::settings::{LogAccess, NsmAccess, Ready, Settings, VsockAccess};

/// The manifest. Unknown fields are refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// The image's name. Only in its metadata.
    pub(crate) name: String,
    /// The image's version. Only in its metadata.
    pub(crate) version: String,
    /// Program and first arguments.
    #[serde(default)]
    entrypoint: Vec<String>,
    /// Further arguments, or the program when there is no entrypoint.
    #[serde(default)]
    cmd: Vec<String>,
    /// Environment variables; sorted by name in the image.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// `uid:gid`, or `name[:group]` of the root filesystem's own /etc/passwd.
    #[serde(default = "root")]
    user: String,
    /// Where the program starts.
    #[serde(default = "slash")]
    workdir: String,
    /// TCP ports that the parent may reach.
    #[serde(default)]
    ingress: Vec<u16>,
    /// When the workload counts as ready: listen, started, notify.
    #[serde(default)]
    ready: Ready,
    /// Use of the Nitro Security Module: socket, direct, none.
    #[serde(default)]
    nsm: NsmAccess,
    /// Use of AF_VSOCK: deny, allow.
    #[serde(default)]
    vsock: VsockAccess,
    /// Whether the parent may read the workload's output: deny, forward.
    #[serde(default)]
    logs: LogAccess,
}

impl Manifest {
    pub(crate) fn from_yaml(text: &str) -> anyhow::Result<Manifest> {
        Ok(serde_saphyr::from_str(text)?)
    }

    /// The agent's settings: argv is the entrypoint followed by the command,
    /// as the OCI image specification has it.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            argv: self.entrypoint.iter().chain(&self.cmd).cloned().collect(),
            env: self.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            user: self.user.clone(),
            workdir: self.workdir.clone(),
            ingress: self.ingress.clone(),
            ready: self.ready,
            nsm: self.nsm,
            vsock: self.vsock,
            logs: self.logs,
        }
    }
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

    const HEAD: &str = "name: hello\nversion: '1'\n";

    #[test]
    fn argv_is_the_entrypoint_followed_by_the_command() {
        let text = format!(
            "{HEAD}entrypoint: [/hello, -v]\ncmd: [serve]\nenv: {{B: x=y, A: ''}}\ningress: [8080]\n"
        );
        let settings = Manifest::from_yaml(&text).unwrap().settings();
        assert_eq!(settings.argv, ["/hello", "-v", "serve"]);
        assert_eq!(settings.env, ["A=", "B=x=y"]);
        assert_eq!((settings.user.as_str(), settings.workdir.as_str()), ("0:0", "/"));
        assert_eq!(
            (settings.ready, settings.nsm, settings.vsock),
            (Ready::Listen, NsmAccess::Socket, VsockAccess::Deny)
        );
        assert_eq!(settings.ingress, [8080]);
    }

    #[test]
    fn every_choice_has_its_word() {
        let text = format!(
            "{HEAD}cmd: [/a]\nready: notify\nnsm: direct\nvsock: allow\nlogs: forward\nuser: www:www\nworkdir: /srv\n"
        );
        let settings = Manifest::from_yaml(&text).unwrap().settings();
        assert_eq!(
            (settings.ready, settings.nsm, settings.vsock, settings.logs),
            (Ready::Notify, NsmAccess::Direct, VsockAccess::Allow, LogAccess::Forward)
        );
        assert_eq!((settings.user.as_str(), settings.workdir.as_str()), ("www:www", "/srv"));
    }

    #[test]
    fn unknown_fields_and_words_are_refused() {
        for line in ["colour: red", "nsm: full", "ingress: [65536]", "entrypoint: /hello", "env: {A: [1]}"] {
            assert!(Manifest::from_yaml(&format!("{HEAD}{line}\n")).is_err(), "{line}");
        }
        assert!(Manifest::from_yaml("version: '1'\ncmd: [/a]\n").is_err(), "a name is required");
    }
}
