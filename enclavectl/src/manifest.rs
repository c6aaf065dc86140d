//! `enclave.yaml`: what an application is called, where its image is, how it is
//! started, and what it may do. Over the container image's own configuration, if
//! there is one, it becomes the agent's measured settings. AWS's
//! enclave_manifest.json is read in its place.

mod aws;

use std::{collections::BTreeMap, path::PathBuf};

use egress::Policy;
use eif::rootfs::RunConfig;
use serde::Deserialize;
use wire::settings::{AttestedTls, LogAccess, NsmAccess, Ready, Settings, VsockAccess};

/// The manifest. Unknown fields are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// The image's name. Only in its metadata.
    pub(crate) name: String,
    /// The image's version. Only in its metadata.
    pub(crate) version: String,
    /// Where the root filesystem comes from unless the command line says: as
    /// `--image` has it, paths from the manifest's directory.
    pub(crate) image: Option<String>,
    /// What boots, unless the command line says.
    pub(crate) kernel: Option<KernelFiles>,
    /// Program and first arguments. Replaces the image's ENTRYPOINT and its
    /// CMD, which was written for that one.
    entrypoint: Option<Vec<String>>,
    /// Further arguments, or the program when there is no entrypoint. Replaces
    /// the image's CMD.
    cmd: Option<Vec<String>>,
    /// Environment variables, over the image's; those that it has not are
    /// sorted by name.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// `uid:gid`, or `name[:group]` of the root filesystem's own /etc/passwd.
    /// Default: the image's, or 0:0.
    user: Option<String>,
    /// Where the program starts. Default: the image's, or `/`.
    workdir: Option<String>,
    /// TCP ports that the parent may reach.
    #[serde(default)]
    pub(crate) ingress: Vec<u16>,
    /// Those of `ingress` on which the program reads a PROXY protocol v2 header.
    #[serde(default)]
    pub(crate) proxy_protocol: Vec<u16>,
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
    /// Where the workload may connect: rules as `egress check` explains them.
    #[serde(default)]
    egress: Policy,
    /// Ingress ports on which the agent ends TLS, and whether documents are
    /// made for single sessions: `{ports: [8443], session: false}`.
    #[serde(default)]
    attested_tls: AttestedTls,
    /// Names of variables that the pod may set; measured in PCR16.
    #[serde(default)]
    pod_env: Vec<String>,
}

/// A kernel and its own modules; paths from the manifest's directory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelFiles {
    pub(crate) image: PathBuf,
    /// In the order in which the agent loads them.
    #[serde(default)]
    pub(crate) modules: Vec<PathBuf>,
}

impl Manifest {
    /// Reads our manifest, or AWS's.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Manifest> {
        match aws::parse(text)? {
            Some(manifest) => Ok(manifest),
            None => Ok(serde_saphyr::from_str(text)?),
        }
    }

    /// The agent's settings: argv is the entrypoint followed by the command,
    /// as the OCI image specification has it (config.md).
    pub(crate) fn settings(&self, image: &RunConfig) -> Settings {
        let (entrypoint, default_cmd) = match &self.entrypoint {
            Some(own) => (own.as_slice(), &[][..]),
            None => (image.entrypoint.as_slice(), image.cmd.as_slice()),
        };
        let cmd = self.cmd.as_deref().unwrap_or(default_cmd);
        Settings {
            argv: entrypoint.iter().chain(cmd).cloned().collect(),
            env: self.environment(&image.env),
            user: first_of(self.user.as_deref(), &image.user, "0:0"),
            workdir: absolute(first_of(self.workdir.as_deref(), &image.workdir, "/")),
            ingress: self.ingress.clone(),
            proxy_protocol: self.proxy_protocol.clone(),
            ready: self.ready,
            nsm: self.nsm,
            vsock: self.vsock,
            logs: self.logs,
            egress: self.egress.clone().into(),
            attested_tls: self.attested_tls.clone(),
            pod_env: self.pod_env.clone(),
        }
    }

    /// The image's variables with the manifest's values, then what only the
    /// manifest has. Of two variables of one name the last counts, in place of
    /// the first.
    fn environment(&self, image: &[String]) -> Vec<String> {
        let own = self.env.iter().map(|(name, value)| format!("{name}={value}"));
        let mut variables: Vec<String> = Vec::new();
        for variable in image.iter().cloned().chain(own) {
            let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
            match variables.iter_mut().find(|earlier| name(earlier) == name(&variable)) {
                Some(earlier) => *earlier = variable,
                None => variables.push(variable),
            }
        }
        variables
    }
}

fn first_of(own: Option<&str>, image: &str, default: &str) -> String {
    own.unwrap_or(if image.is_empty() { default } else { image }).to_owned()
}

/// Builders have written WORKDIR without its slash; runtimes start at the root.
fn absolute(workdir: String) -> String {
    if workdir.starts_with('/') { workdir } else { format!("/{workdir}") }
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
        let settings = Manifest::parse(&text).unwrap().settings(&RunConfig::default());
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
            "{HEAD}cmd: [/a]\nready: notify\nnsm: direct\nvsock: allow\nlogs: forward\nuser: www:www\nworkdir: /srv\negress: ['API.example.com:443']\n"
        );
        let settings = Manifest::parse(&text).unwrap().settings(&RunConfig::default());
        assert_eq!(
            (settings.ready, settings.nsm, settings.vsock, settings.logs),
            (Ready::Notify, NsmAccess::Direct, VsockAccess::Allow, LogAccess::Forward)
        );
        assert_eq!((settings.user.as_str(), settings.workdir.as_str()), ("www:www", "/srv"));
        assert_eq!(settings.egress, ["api.example.com:443"]);
    }

    #[test]
    fn unknown_fields_and_words_are_refused() {
        for line in [
            "colour: red",
            "nsm: full",
            "ingress: [65536]",
            "entrypoint: /hello",
            "egress: ['a.com']",
            "env: {A: [1]}",
        ] {
            assert!(Manifest::parse(&format!("{HEAD}{line}\n")).is_err(), "{line}");
        }
        assert!(Manifest::parse("version: '1'\ncmd: [/a]\n").is_err(), "a name is required");
    }
}
