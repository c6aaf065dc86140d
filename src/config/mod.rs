//! The configuration: one struct, read whole before anything is opened.
//!
//! ```text
//! shim.yaml ──▶ environment ──▶ flags ──▶ checks ──▶ Config
//! ```
//! Later layers win. Unknown keys are refused with their name and line. The
//! file's keys are the fields below; [`load()`] does the reading.

mod ingress;
mod load;
mod timespan;
mod tunnel;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use egress::Policy;
use eif::Pcr;
use serde::{Deserialize, Serialize};

pub(crate) use ingress::{Ingress, NameIn};
pub(crate) use load::load;
pub(crate) use timespan::Timespan;
pub(crate) use tunnel::Tunnel;

/// Everything that can be chosen. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The enclave image. Default: /enclave/image.eif.
    pub(crate) eif: PathBuf,
    /// The enclave's memory in MiB, at least 64. Default: the pod's huge page
    /// limits; without limits, what is free.
    pub(crate) memory_mib: Option<u64>,
    /// Number of CPUs; the driver picks them. Default: 2.
    pub(crate) cpus: u32,
    /// CPUs by id, instead of a number. Default: none.
    pub(crate) cpu_ids: Vec<u32>,
    /// The node's enclave slots that the device plugin granted. The first is
    /// this enclave's, and only names it: in the log, the metrics, reports and
    /// `describe`. Default: none.
    pub(crate) slots: Vec<u32>,
    /// Debug mode: the console is shown and all PCRs are zero. Default: false.
    pub(crate) debug: bool,
    /// The enclave's context id, at least 4. Default: the driver's choice.
    pub(crate) cid: Option<u32>,
    /// Ports that clients may reach. Default: none.
    pub(crate) ingress: Vec<Ingress>,
    /// Where the workload may connect, beside what its image allows: rules as
    /// `enclavectl egress check` explains them. Default: nowhere.
    pub(crate) egress: Policy,
    /// Fixed ways out for an enclave that dials the instance itself, as images
    /// without our agent do. Only its own enclave is served. Default: none.
    pub(crate) tunnels: Vec<Tunnel>,
    /// A file of AWS's vsock-proxy: every tunnel must lead to where it allows.
    /// Default: none is read.
    pub(crate) vsock_proxy_allowlist: Option<PathBuf>,
    pub(crate) resolver: Resolver,
    pub(crate) http: Http,
    pub(crate) admin: Admin,
    pub(crate) drain: Drain,
    pub(crate) boot: Boot,
    /// Who says that the enclave is ready. Default: auto.
    pub(crate) readiness: Readiness,
    /// What the image must measure to. Default: anything.
    pub(crate) expect: Expect,
    /// Whether the image must be signed: valid certificate, good signature,
    /// over the PCR0 that it measures. Whose signature: `expect.pcr8`. Default: false.
    pub(crate) require_signature: bool,
    pub(crate) log: Log,
    /// Where the reason of a failure is left. Default: /dev/termination-log, if it exists.
    pub(crate) termination_log: Option<PathBuf>,
    /// The enclave device. Default: /dev/nitro_enclaves.
    pub(crate) device: PathBuf,
    pub(crate) limits: Limits,
    /// The shim gives up what it does not need: other files, programs,
    /// processes. Default: true; false is for finding out why something fails.
    pub(crate) sandbox: bool,
}

/// The shim's own HTTP server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Http {
    /// Where it listens. Default: 127.0.0.1:9090; kubelet's probes and
    /// attestation clients need 0.0.0.0:9090.
    pub(crate) listen: SocketAddr,
    /// TLS 1.3 on that address instead of plain HTTP, kubelet's probes included
    /// (`scheme: HTTPS`). Read once, at the start. Default: plain HTTP.
    pub(crate) tls: Option<HttpTls>,
}

/// The HTTP server's own certificate. It vouches for the pod, not for the enclave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpTls {
    /// A PEM file: the certificate, then its issuers.
    pub(crate) certificate: PathBuf,
    /// A PEM file: the private key, not encrypted.
    pub(crate) key: PathBuf,
}

impl Config {
    /// Whether anything in the enclave may be connected to anything outside.
    pub(crate) fn goes_out(&self) -> bool {
        !self.egress.rules().is_empty() || !self.tunnels.is_empty()
    }
}

/// How names of the workload's targets are resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Resolver {
    /// Name servers as address:port. Default: those of /etc/resolv.conf.
    pub(crate) servers: Vec<SocketAddr>,
    /// How long after their time a name's last addresses are used on while no server answers.
    /// Default: 1h; 0s: not at all.
    pub(crate) stale: Timespan,
}

/// The socket of `describe` and `console`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Admin {
    /// A Unix socket, made with mode 0600. Default: /run/enclave-shim/admin.sock,
    /// if it can be made there.
    pub(crate) socket: Option<PathBuf>,
}

/// What happens after SIGTERM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Drain {
    /// How long connections are still taken while endpoints are removed. Default: 3s.
    pub(crate) accept: Timespan,
    /// How long the workload may take to end after its SIGTERM. Default: 22s,
    /// so that [`Drain::whole`] fits a pod's default of 30 s.
    pub(crate) grace: Timespan,
}

impl Drain {
    /// For a killed workload's last bytes, its exit status and the clean-up.
    const LEAVE: Duration = Duration::from_secs(5);

    /// From SIGTERM to this process's end at the latest: the least that a pod's
    /// terminationGracePeriodSeconds may be.
    pub(crate) fn whole(&self) -> Duration {
        self.accept.duration() + self.grace.duration() + Drain::LEAVE
    }
}

/// The launch.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Boot {
    /// How long the enclave may take from its start until it is ready.
    /// Default: 60s, and 1s for each 32 MiB of the image and of its unpacked ramdisks.
    pub(crate) timeout: Option<Timespan>,
}

/// Who says that the enclave is ready.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Readiness {
    /// The agent if the image has one, else the heartbeat.
    #[default]
    Auto,
    /// Our agent.
    Agent,
    /// The byte that nitro-cli waits for, on port 9000 of the instance.
    Heartbeat,
}

/// Registers that the image must measure to, 96 hexadecimal digits each. They
/// are compared with what lies in the enclave's memory.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expect {
    /// The whole image. Default: any.
    pub(crate) pcr0: Option<Pcr>,
    /// Kernel, command line and agent. Default: any.
    pub(crate) pcr1: Option<Pcr>,
    /// The application. Default: any.
    pub(crate) pcr2: Option<Pcr>,
    /// The signing certificate. Default: any, or none.
    pub(crate) pcr8: Option<Pcr>,
}

/// The log on stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// Default: text.
    pub(crate) format: LogFormat,
    /// Default: info.
    pub(crate) level: LogLevel,
    /// Lines of the workload's output a second, if its image forwards them
    /// (`logs: forward`, level info); more are dropped and counted. 0: none is
    /// fetched. Default: 1000.
    pub(crate) workload_lines: u32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Bounds on what clients can use up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Client connections at a time over all listeners; more are reset. Default: 4096.
    pub(crate) connections: usize,
    /// How long a dial into the enclave may take. Default: 5s.
    pub(crate) dial_timeout: Timespan,
    /// How long a client may take to say what a listener must know first: its
    /// PROXY header, or whom it wants (`sni`, `host`). Default: 5s.
    pub(crate) header_timeout: Timespan,
    /// Ends a connection, a client's or an outgoing one, over which nothing has
    /// gone either way for so long.
    /// Default: 0s, never: databases and queues keep silent connections for days.
    pub(crate) idle_timeout: Timespan,
    /// How long a silent client is left alone before the kernel asks whether it
    /// is there still: every quarter of this, four times. Default: 1m; 0s: never.
    pub(crate) keep_alive: Timespan,
    /// Outgoing connections at a time, those of tunnels among them; more are
    /// refused. Default: 1024.
    pub(crate) egress_connections: usize,
    /// How long it may take to resolve an outgoing connection's name and to
    /// connect, at most 50s: the agent waits for a minute. Default: 10s.
    pub(crate) egress_timeout: Timespan,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            eif: PathBuf::from("/enclave/image.eif"),
            memory_mib: None,
            cpus: 2,
            cpu_ids: Vec::new(),
            slots: Vec::new(),
            debug: false,
            cid: None,
            ingress: Vec::new(),
            egress: Policy::default(),
            tunnels: Vec::new(),
            vsock_proxy_allowlist: None,
            resolver: Resolver::default(),
            http: Http::default(),
            admin: Admin::default(),
            drain: Drain::default(),
            boot: Boot::default(),
            readiness: Readiness::Auto,
            expect: Expect::default(),
            require_signature: false,
            log: Log::default(),
            termination_log: None,
            device: PathBuf::from(nitro_device::DEVICE_PATH),
            limits: Limits::default(),
            sandbox: true,
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Text, level: LogLevel::Info, workload_lines: 1000 }
    }
}

impl Default for Http {
    fn default() -> Http {
        Http { listen: SocketAddr::from(([127, 0, 0, 1], 9090)), tls: None }
    }
}

impl Default for Resolver {
    fn default() -> Resolver {
        Resolver { servers: Vec::new(), stale: Timespan::from_secs(3600) }
    }
}

impl Default for Drain {
    fn default() -> Drain {
        Drain { accept: Timespan::from_secs(3), grace: Timespan::from_secs(22) }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 4096,
            dial_timeout: Timespan::from_secs(5),
            header_timeout: Timespan::from_secs(5),
            idle_timeout: Timespan::from_secs(0),
            keep_alive: Timespan::from_secs(60),
            egress_connections: 1024,
            egress_timeout: Timespan::from_secs(10),
        }
    }
}
