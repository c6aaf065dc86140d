//! Reads the layers of the configuration and checks the whole.

use std::io;
use std::path::{Path, PathBuf};

use nitro_device::{Cid, CidError};

use super::tunnel::{self, Tunnel, TunnelError};
use super::{Config, Ingress, Timespan};
use crate::cli::{Knobs, Run};
use crate::exit::{Blame, Exit};

/// Read when it exists and no other file is named.
const DEFAULT_PATH: &str = "/enclave/shim.yaml";
/// The driver's minimum (NE_ERR_ENCLAVE_MEM_MIN_SIZE).
const LEAST_MEMORY_MIB: u64 = 64;
/// More than any instance has; keeps sums of bytes far from overflow.
const MOST_MEMORY_MIB: u64 = 1 << 30;
/// Descriptors are the scarce thing: two a connection.
const MOST_CONNECTIONS: usize = 500_000;
/// The agent gives a dial up after 60 s.
const MOST_EGRESS_TIMEOUT: Timespan = Timespan::from_secs(50);

/// Why there is no configuration. Every variant is the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read configuration {}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("configuration {}{}: {reason}", .path.display(), line_text(.line))]
    Malformed { path: PathBuf, line: Option<u64>, reason: String },
    #[error("{knob} is {actual}, {expected}")]
    Range { knob: &'static str, actual: String, expected: String },
    #[error("cid cannot be used")]
    Cid(#[from] CidError),
    #[error("{knob} lists {value} twice")]
    Twice { knob: &'static str, value: String },
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
}

impl Blame for ConfigError {
    fn exit(&self) -> Exit {
        Exit::Usage
    }

    fn fix(&self) -> String {
        match self {
            ConfigError::Unreadable { .. } => {
                "give the path of a readable file with --config, or leave it out".into()
            }
            ConfigError::Malformed { path, line, .. } => {
                format!("correct {}{}", path.display(), line_text(line))
            }
            ConfigError::Range { knob, expected, .. } => {
                format!("choose another {knob}: {}", expected.trim_start_matches("but "))
            }
            ConfigError::Cid(_) => "choose a cid of at least 4, or leave it out".into(),
            ConfigError::Twice { knob, value } => format!("remove one {value} from {knob}"),
            ConfigError::Tunnel(error) => error.fix(),
        }
    }
}

/// The configuration that `run` names, checked.
pub(crate) fn load(run: &Run) -> Result<Config, ConfigError> {
    let mut config = match (&run.config, Path::new(DEFAULT_PATH)) {
        (Some(path), _) => read(path)?,
        (None, path) if path.exists() => read(path)?,
        (None, _) => Config::default(),
    };
    apply(&mut config, &run.knobs);
    check(&config)?;
    if let Some(path) = &config.vsock_proxy_allowlist {
        tunnel::check_listed(&config.tunnels, path)?;
    }
    Ok(config)
}

fn read(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    // An empty document is a configuration without wishes.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Config::default());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet();
        let line = error.location().map(|location| location.line());
        ConfigError::Malformed { path: path.to_owned(), line, reason: error.to_string() }
    })
}

fn apply(config: &mut Config, knobs: &Knobs) {
    fn set<T: Clone>(target: &mut T, knob: &Option<T>) {
        if let Some(value) = knob {
            target.clone_from(value);
        }
    }
    set(&mut config.eif, &knobs.eif);
    config.memory_mib = knobs.memory_mib.or(config.memory_mib);
    apply_cpus(config, knobs);
    set(&mut config.slots, &knobs.slots);
    set(&mut config.debug, &knobs.debug);
    set(&mut config.readiness, &knobs.readiness);
    config.expect.pcr0 = knobs.expect_pcr0.or(config.expect.pcr0);
    config.expect.pcr1 = knobs.expect_pcr1.or(config.expect.pcr1);
    config.expect.pcr2 = knobs.expect_pcr2.or(config.expect.pcr2);
    config.expect.pcr8 = knobs.expect_pcr8.or(config.expect.pcr8);
    set(&mut config.require_signature, &knobs.require_signature);
    config.cid = knobs.cid.or(config.cid);
    set(&mut config.tunnels, &knobs.tunnels);
    config.vsock_proxy_allowlist =
        knobs.vsock_proxy_allowlist.clone().or(config.vsock_proxy_allowlist.take());
    set(&mut config.http.listen, &knobs.http_listen);
    config.admin.socket = knobs.admin_socket.clone().or(config.admin.socket.take());
    set(&mut config.sandbox, &knobs.sandbox);
    set(&mut config.drain.accept, &knobs.drain_accept);
    set(&mut config.drain.grace, &knobs.drain_grace);
    config.boot.timeout = knobs.boot_timeout.or(config.boot.timeout);
    set(&mut config.log.format, &knobs.log_format);
    set(&mut config.log.level, &knobs.log_level);
    set(&mut config.log.workload_lines, &knobs.log_workload_lines);
    config.termination_log = knobs.termination_log.clone().or(config.termination_log.take());
    set(&mut config.device, &knobs.device);
    set(&mut config.limits.connections, &knobs.connections);
    set(&mut config.limits.dial_timeout, &knobs.dial_timeout);
    set(&mut config.limits.header_timeout, &knobs.header_timeout);
    set(&mut config.limits.idle_timeout, &knobs.idle_timeout);
    set(&mut config.limits.keep_alive, &knobs.keep_alive);
}

/// Ids, a count, the device plugin's count, the file: the first that speaks.
fn apply_cpus(config: &mut Config, knobs: &Knobs) {
    if let Some(ids) = &knobs.cpu_ids {
        config.cpu_ids.clone_from(ids);
    } else if let Some(count) = knobs.cpus.or(knobs.granted_cpus) {
        config.cpus = count;
        config.cpu_ids.clear();
    }
}

fn check(config: &Config) -> Result<(), ConfigError> {
    if let Some(mib) = config.memory_mib {
        in_range("memory_mib", mib, LEAST_MEMORY_MIB, MOST_MEMORY_MIB)?;
    }
    if config.cpu_ids.is_empty() {
        in_range("cpus", config.cpus, 1, 4096)?;
    }
    all_different("cpu_ids", &config.cpu_ids)?;
    // CPU 0 never is in the pool, and means "the driver's choice" to it.
    config.cpu_ids.iter().try_for_each(|&id| in_range("cpu_ids", id, 1, 4095))?;
    if let Some(cid) = config.cid {
        Cid::try_from(cid)?;
    }
    config.ingress.iter().try_for_each(Ingress::check)?;
    let fixed: Vec<_> =
        config.ingress.iter().map(|ingress| ingress.listen).filter(|listen| listen.port() != 0).collect();
    all_different("ingress.listen", &fixed)?;
    config.tunnels.iter().try_for_each(Tunnel::check)?;
    all_different("tunnels.port", &config.tunnels.iter().map(|tunnel| tunnel.port).collect::<Vec<_>>())?;
    in_range("limits.connections", config.limits.connections, 1, MOST_CONNECTIONS)?;
    in_range("limits.egress_connections", config.limits.egress_connections, 1, MOST_CONNECTIONS)?;
    in_range(
        "limits.egress_timeout",
        config.limits.egress_timeout,
        Timespan::from_secs(0),
        MOST_EGRESS_TIMEOUT,
    )?;
    let spans = [
        ("limits.dial_timeout", Some(config.limits.dial_timeout)),
        ("limits.header_timeout", Some(config.limits.header_timeout)),
        ("limits.egress_timeout", Some(config.limits.egress_timeout)),
        ("boot.timeout", config.boot.timeout),
    ];
    for (knob, span) in spans.into_iter().filter_map(|(knob, span)| Some((knob, span?))) {
        if span.duration().is_zero() {
            let expected = "but must be longer than 0s".to_owned();
            return Err(ConfigError::Range { knob, actual: span.to_string(), expected });
        }
    }
    Ok(())
}

pub(super) fn in_range<T: PartialOrd + std::fmt::Display>(
    knob: &'static str,
    actual: T,
    least: T,
    most: T,
) -> Result<(), ConfigError> {
    if actual >= least && actual <= most {
        return Ok(());
    }
    Err(ConfigError::Range {
        knob,
        actual: actual.to_string(),
        expected: format!("but must be {least} to {most}"),
    })
}

fn all_different<T: PartialEq + std::fmt::Display>(
    knob: &'static str,
    values: &[T],
) -> Result<(), ConfigError> {
    match values.iter().enumerate().find(|(index, value)| values[..*index].contains(value)) {
        Some((_, value)) => Err(ConfigError::Twice { knob, value: value.to_string() }),
        None => Ok(()),
    }
}

fn line_text(line: &Option<u64>) -> String {
    line.map(|line| format!(" line {line}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LogFormat, Timespan};

    const FULL: &str = r#"
eif: /srv/app.eif
memory_mib: 128
cpus: 4
slots: [2]
debug: true
cid: 21
ingress:
  - {listen: "0.0.0.0:8080", port: 80}
  - {listen: "[::]:8443", sni: {a.example.com: 443}, accept_proxy: true, send_proxy: true}
http: {listen: "127.0.0.1:9999", tls: {certificate: /tls/tls.crt, key: /tls/tls.key}}
admin: {socket: /tmp/admin.sock}
sandbox: false
drain: {accept: "1s", grace: "250ms"}
boot: {timeout: "10s"}
log: {format: json, level: debug, workload_lines: 7}
termination_log: /tmp/why
device: /dev/other
limits:
  {connections: 10, dial_timeout: "2s", header_timeout: "1s", idle_timeout: "1h", keep_alive: "9s", egress_connections: 7, egress_timeout: "3s"}
egress: ['api.example.com:443', '!10.0.0.0/8:*']
tunnels: [{port: 8000, to: 'kms.eu-west-1.amazonaws.com:443'}]
vsock_proxy_allowlist: /etc/nitro_enclaves/vsock-proxy.yaml
resolver: {servers: ["10.0.0.2:53"], stale: "0s"}
"#;

    fn parsed(text: &str) -> Result<Config, ConfigError> {
        let config = parse(Path::new("shim.yaml"), text)?;
        check(&config)?;
        Ok(config)
    }

    #[test]
    fn every_knob_is_read_and_written_back_the_same() {
        let config = parsed(FULL).unwrap();
        assert_eq!(config.ingress[1].listen, "[::]:8443".parse().unwrap());
        assert_eq!(config.drain.grace.duration().as_millis(), 250);
        assert_eq!(config.egress.rules().len(), 2);
        assert_eq!((config.log.format, config.log.workload_lines), (LogFormat::Json, 7));
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
    }

    #[test]
    fn an_empty_file_and_a_partial_section_mean_defaults() {
        assert_eq!(parsed("# nothing\n\n").unwrap(), Config::default());
        let config = parsed("drain: {grace: 1m}").unwrap();
        assert_eq!(config.drain.accept, Timespan::from_secs(3));
        assert_eq!(config.drain.grace, Timespan::from_secs(60));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name_and_line() {
        for (text, name, line) in [
            ("cpus: 2\nmemroy_mib: 64\n", "memroy_mib", 2),
            ("cpus: 2\ndrain:\n  accept: 1s\n  grase: 2s\n", "grase", 4),
            ("ingress:\n  - listen: 0.0.0.0:80\n    port: 80\n    proxy: true\n", "proxy", 4),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert!(
                matches!(error, ConfigError::Malformed { line: Some(at), .. } if at == line),
                "{error:?}"
            );
            assert_eq!(error.exit(), Exit::Usage);
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, message) in [
            ("memory_mib: 63", "memory_mib is 63"),
            ("cpus: 0", "cpus is 0"),
            ("cpu_ids: [1, 1]", "cpu_ids lists 1 twice"),
            ("cpu_ids: [0]", "cpu_ids is 0"),
            ("cid: 3", "cid cannot be used"),
            ("ingress: [{listen: '0.0.0.0:80', port: 0}]", "ingress.port is 0"),
            ("ingress: [{listen: '0.0.0.0:80', port: 5700}]", "5700"),
            (
                "ingress: [{listen: '0.0.0.0:80', port: 1}, {listen: '0.0.0.0:80', port: 2}]",
                "0.0.0.0:80 twice",
            ),
            ("ingress: [{listen: 'localhost', port: 1}]", "socket address"),
            ("limits: {connections: 0}", "limits.connections is 0"),
            ("limits: {egress_timeout: 51s}", "limits.egress_timeout is 51s"),
            ("egress: ['a.com:443', 'b.com']", "rule 2"),
            ("resolver: {servers: ['10.0.0.2']}", "socket address"),
            ("tunnels: [{port: 0, to: 'a.com:443'}]", "tunnels.port is 0"),
            ("tunnels: [{port: 8000, to: 'a.com'}]", "no port"),
            ("tunnels: [{port: 8000, to: 'a.com:1'}, {port: 8000, to: 'b.com:1'}]", "8000 twice"),
            ("boot: {timeout: 0s}", "boot.timeout is 0s"),
            ("drain: {grace: soon}", "soon"),
            ("log: {level: loud}", "loud"),
            ("cpus: 2\ncpus: 4", "cpus"),
            ("- a list", "shim.yaml"),
        ] {
            let error = parsed(text).unwrap_err();
            let text_of_error = crate::exit::chain(&error);
            assert!(text_of_error.contains(message), "{text}: {text_of_error}");
            assert!(!error.fix().is_empty());
        }
    }

    #[test]
    fn flags_and_environment_beat_the_file() {
        let mut config = parsed(FULL).unwrap();
        let knobs = Knobs {
            memory_mib: Some(256),
            http_listen: Some("127.0.0.1:1".parse().unwrap()),
            debug: Some(false),
            drain_grace: Some(Timespan::from_secs(9)),
            tunnels: Some(vec!["9=a.com:1".parse().unwrap()]),
            ..Knobs::default()
        };
        apply(&mut config, &knobs);
        assert_eq!(config.memory_mib, Some(256));
        assert_eq!(config.http.listen.port(), 1);
        assert!(!config.debug);
        assert_eq!(config.drain.grace, Timespan::from_secs(9));
        assert_eq!(config.tunnels[0].port, 9);
        assert!(config.vsock_proxy_allowlist.is_some());
        assert_eq!(config.cid, Some(21), "what is not overridden stays");
    }

    #[test]
    fn cpus_come_from_the_first_layer_that_names_them() {
        let with = |knobs: Knobs| {
            let mut config = parsed("cpu_ids: [9]").unwrap();
            apply(&mut config, &knobs);
            (config.cpus, config.cpu_ids)
        };
        assert_eq!(with(Knobs::default()), (2, vec![9]));
        assert_eq!(with(Knobs { granted_cpus: Some(4), ..Knobs::default() }), (4, vec![]));
        assert_eq!(with(Knobs { granted_cpus: Some(4), cpus: Some(6), ..Knobs::default() }), (6, vec![]));
        let ids = Knobs { granted_cpus: Some(2), cpu_ids: Some(vec![1, 3]), ..Knobs::default() };
        assert_eq!(with(ids).1, vec![1, 3]);
    }

    #[test]
    fn every_error_has_its_exit_code_a_cause_and_a_fix() {
        let path = || PathBuf::from("shim.yaml");
        for (error, cause, fix) in [
            (
                ConfigError::Unreadable { path: path(), source: io::Error::from_raw_os_error(13) },
                "cannot read configuration shim.yaml: Permission denied",
                "--config",
            ),
            (
                ConfigError::Malformed { path: path(), line: Some(2), reason: "no such key".into() },
                "configuration shim.yaml line 2: no such key",
                "correct shim.yaml line 2",
            ),
            (
                ConfigError::Range {
                    knob: "cpus",
                    actual: "0".into(),
                    expected: "but must be 1 to 4096".into(),
                },
                "cpus is 0, but must be 1 to 4096",
                "choose another cpus: must be 1 to 4096",
            ),
            (ConfigError::Cid(CidError(3)), "cid cannot be used", "at least 4"),
            (ConfigError::Twice { knob: "cpu_ids", value: "1".into() }, "lists 1 twice", "remove one 1"),
            (
                ConfigError::Tunnel(TunnelError::NotListed {
                    port: 8000,
                    to: "a.com:443".parse().unwrap(),
                    path: path(),
                }),
                "the tunnel at port 8000 leads to a.com:443",
                "to shim.yaml",
            ),
        ] {
            let failure = crate::exit::Failure::from(error);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.explanation.cause.contains(cause), "{failure:?}");
            assert!(failure.explanation.fix.contains(fix), "{failure:?}");
        }
    }

    #[test]
    fn a_named_file_must_exist() {
        let run = Run { config: Some("/nonexistent/shim.yaml".into()), ..Run::default() };
        let error = load(&run).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/shim.yaml"), "{error}");
    }
}
