//! The plugin's knobs: flags over environment over defaults.
//!
//! `MAX_ENCLAVES_PER_NODE` and `ENCLAVE_CPU_ADVERTISEMENT` mean what they mean
//! to AWS's device plugin (v0.4.1), and like there a value that cannot be
//! understood counts as unset; a flag that cannot be understood is refused.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::offer::Kind;

/// Enclaves on an instance: the hardware's limit, and the default.
const MOST_ENCLAVES: u32 = 4;
const MAX_ENCLAVES: &str = "MAX_ENCLAVES_PER_NODE";
const CPU_ADVERTISEMENT: &str = "ENCLAVE_CPU_ADVERTISEMENT";
/// `sun_path` without its final zero, less a passing name that is a little longer.
const LONGEST_SOCKET_PATH: usize = 107 - 4;

/// Offers a node's enclaves, and on request its enclave CPUs, to kubelet.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Enclaves offered at most, 1 to 4; fewer where cores or huge pages do not suffice
    /// [env: MAX_ENCLAVES_PER_NODE] [default: 4]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_ENCLAVES)))]
    max_enclaves_per_node: Option<u32>,
    /// Offers the CPUs of the pool as a resource of their own
    /// [env: ENCLAVE_CPU_ADVERTISEMENT] [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    enclave_cpu_advertisement: Option<bool>,
    /// Name of the resource "enclaves"; Karpenter before 1.15 knows enclaves only as
    /// eks.amazonaws.com/nitro-sandbox
    #[arg(
        long,
        value_name = "NAME",
        env = "ENCLAVE_RESOURCE_NAME",
        default_value = "aws.ec2.nitro/nitro_enclaves"
    )]
    enclave_resource: ResourceName,
    /// Name of the resource "CPUs"
    #[arg(
        long,
        value_name = "NAME",
        env = "ENCLAVE_CPU_RESOURCE_NAME",
        default_value = "aws.ec2.nitro/nitro_enclaves_cpus"
    )]
    cpu_resource: ResourceName,
    /// Kubelet's plugin directory
    #[arg(
        long,
        value_name = "DIR",
        env = "KUBELET_PLUGIN_DIR",
        default_value = "/var/lib/kubelet/device-plugins"
    )]
    pub(crate) plugin_dir: PathBuf,
    /// Where the node's sysfs is mounted
    #[arg(long, value_name = "DIR", env = "NODE_SYSFS", default_value = "/sys")]
    pub(crate) sysfs: PathBuf,
    /// Where the node's /dev is mounted
    #[arg(long, value_name = "DIR", env = "NODE_DEV", default_value = "/dev")]
    pub(crate) dev: PathBuf,
    /// The device on the node that containers get as /dev/nitro_enclaves
    #[arg(long, value_name = "PATH", env = "NODE_ENCLAVE_DEVICE", default_value = "/dev/nitro_enclaves")]
    pub(crate) device: String,
    /// Seconds after which the node is looked at without an event, 1 to 3600
    #[arg(long, value_name = "SECONDS", env = "RECHECK_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) recheck: u64,
    /// Serves /healthz, /readyz and /metrics here, such as 0.0.0.0:9808; off when absent
    #[arg(long, value_name = "ADDRESS", env = "METRICS_LISTEN")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", env = "LOG_LEVEL", default_value = "info")]
    pub(crate) log_level: tracing::level_filters::LevelFilter,
}

/// What cannot be put right by a default.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("{0} names both resources")]
    SameName(ResourceName),
    #[error("{0} and {1} would share the socket {2}")]
    SameSocket(ResourceName, ResourceName, String),
    #[error("socket path {} is longer than {LONGEST_SOCKET_PATH} bytes", .0.display())]
    LongPath(PathBuf),
}

impl Args {
    /// Each resource to offer with its name.
    pub(crate) fn resources(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<(Kind, ResourceName)>, SettingsError> {
        let mut resources = vec![(Kind::Enclaves, self.enclave_resource.clone())];
        let asked = || environment(CPU_ADVERTISEMENT).as_deref().and_then(go_bool);
        if self.enclave_cpu_advertisement.or_else(asked).unwrap_or(false) {
            resources.push((Kind::Cpus, self.cpu_resource.clone()));
        }
        if let [(_, one), (_, other)] = &resources[..] {
            if one == other {
                return Err(SettingsError::SameName(one.clone()));
            }
            if one.socket() == other.socket() {
                return Err(SettingsError::SameSocket(one.clone(), other.clone(), one.socket()));
            }
        }
        let paths = resources.iter().map(|(_, name)| self.plugin_dir.join(name.socket()));
        match paths.into_iter().find(|path| path.as_os_str().len() > LONGEST_SOCKET_PATH) {
            Some(path) => Err(SettingsError::LongPath(path)),
            None => Ok(resources),
        }
    }

    /// Enclaves at most.
    pub(crate) fn max_enclaves(&self, environment: impl Fn(&str) -> Option<String>) -> u32 {
        let valid = |text: &String| text.parse().ok().filter(|count| (1..=MOST_ENCLAVES).contains(count));
        let asked = || environment(MAX_ENCLAVES).as_ref().and_then(valid);
        self.max_enclaves_per_node.or_else(asked).unwrap_or(MOST_ENCLAVES)
    }
}

/// What Go's strconv.ParseBool understands, because AWS's plugin uses it.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// An extended resource's name, `domain/name`, as kubelet accepts it
/// (IsExtendedResourceName: a qualified name outside kubernetes.io).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourceName(String);

/// Why kubelet would refuse a name.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no extended resource: domain/name, not of kubernetes.io, name of at most 63 letters, digits, '-', '_', '.'"
)]
pub(crate) struct ResourceNameError(String);

impl FromStr for ResourceName {
    type Err = ResourceNameError;

    fn from_str(text: &str) -> Result<ResourceName, ResourceNameError> {
        let error = || ResourceNameError(text.to_owned());
        let (domain, name) = text.split_once('/').ok_or_else(error)?;
        let ends = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        let native = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
        let label = |label: &str| {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            label.len() <= 63 && ends(label) && label.chars().all(allowed)
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        // 253 bytes with the prefix "requests." that quotas put before it.
        let domain_fits = domain.len() <= 253 - "requests.".len() && domain.split('.').all(label);
        let name_fits = name.len() <= 63 && ends(name) && name.chars().all(allowed);
        let usable = !native && !domain.starts_with("requests.") && domain_fits && name_fits;
        usable.then(|| ResourceName(text.to_owned())).ok_or_else(error)
    }
}

impl ResourceName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The socket's name in the plugin directory, AWS's for AWS's names.
    pub(crate) fn socket(&self) -> String {
        let name = self.0.rsplit('/').next().unwrap_or_default();
        format!("{name}.sock")
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(flags: &str) -> Args {
        Cli::try_parse_from(std::iter::once("x").chain(flags.split_whitespace())).unwrap().args
    }

    fn environment(name: &'static str, value: &'static str) -> impl Fn(&str) -> Option<String> {
        move |asked| (asked == name).then(|| value.to_owned())
    }

    #[test]
    fn the_environment_means_what_it_means_to_awss_plugin() {
        for (value, expected) in [("1", 1), ("4", 4), ("0", 4), ("5", 4), ("x", 4), ("", 4), ("-1", 4)] {
            assert_eq!(args("").max_enclaves(environment(MAX_ENCLAVES, value)), expected, "{value:?}");
        }
        for (value, expected) in [("true", 2), ("1", 2), ("T", 2), ("yes", 1), ("false", 1), ("", 1)] {
            let resources = args("").resources(environment(CPU_ADVERTISEMENT, value)).unwrap();
            assert_eq!(resources.len(), expected, "{value:?}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_environment() {
        let args = args("--max-enclaves-per-node 2 --enclave-cpu-advertisement=false");
        assert_eq!(args.max_enclaves(environment(MAX_ENCLAVES, "3")), 2);
        assert_eq!(args.resources(environment(CPU_ADVERTISEMENT, "true")).unwrap().len(), 1);
    }

    #[test]
    fn a_flag_that_is_not_understood_is_refused() {
        for flags in ["--max-enclaves-per-node=5", "--enclave-cpu-advertisement=yes", "--enclave-resource=x"]
        {
            assert!(Cli::try_parse_from(["x", flags]).is_err(), "{flags}");
        }
    }

    #[test]
    fn sockets_are_called_as_awss_plugin_calls_them() {
        let resources = args("--enclave-cpu-advertisement").resources(|_| None).unwrap();
        let sockets: Vec<String> = resources.iter().map(|(_, name)| name.socket()).collect();
        assert_eq!(sockets, ["nitro_enclaves.sock", "nitro_enclaves_cpus.sock"]);
    }

    #[test]
    fn two_resources_cannot_share_a_socket() {
        let clash = "--enclave-cpu-advertisement --enclave-resource a.b/x --cpu-resource";
        let fault = |name| args(&format!("{clash} {name}")).resources(|_| None).unwrap_err();
        assert!(matches!(fault("a.b/x"), SettingsError::SameName(_)));
        assert!(matches!(fault("c.d/x"), SettingsError::SameSocket(..)));
    }

    #[test]
    fn kubelets_rule_for_names_is_ours() {
        for good in ["aws.ec2.nitro/nitro_enclaves", "eks.amazonaws.com/nitro-sandbox", "a/b"] {
            assert!(good.parse::<ResourceName>().is_ok(), "{good}");
        }
        for bad in [
            "cpu",
            "kubernetes.io/x",
            "x.kubernetes.io/y",
            "requests.a/b",
            "/x",
            "a/",
            "a/b/c",
            "A.b/c",
            "a..b/c",
            "a/-b",
            "a/b:c",
        ] {
            assert!(bad.parse::<ResourceName>().is_err(), "{bad}");
        }
    }
}
