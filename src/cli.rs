//! The command line. Every knob of the configuration has a flag here and an
//! environment variable `ENCLAVE_SHIM_*`; a flag beats the variable, both beat
//! the file.
//!
//! Unknown variables with that prefix are left alone: Kubernetes makes
//! `ENCLAVE_SHIM_PORT` and the like for a Service called `enclave-shim`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use eif::Pcr;

use crate::config::{LogFormat, LogLevel, Readiness, Timespan, Tunnel};
use crate::exit::{Exit, Failure};
use crate::report::{self, Place};

/// Runs an AWS Nitro Enclave as the entrypoint of a container.
#[derive(Debug, Parser)]
#[command(name = "enclave-shim", version = crate::log::BUILD, after_help = exit_codes())]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Launch the enclave, carry its traffic, and end as it ends.
    Run(Box<Run>),
    /// Say what on this node or in this pod would keep an enclave from running.
    Doctor(Doctor),
    /// Print what a running shim's enclave is, as `nitro-cli describe-enclaves` does.
    Describe(Ask),
    /// Print the console of a running shim's enclave, if it is in debug mode, and go on as it does.
    Console(Ask),
}

/// Which shim is asked.
#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// The shim's admin socket.
    #[arg(long, value_name = "FILE", env = "ENCLAVE_SHIM_ADMIN_SOCKET", default_value = crate::admin::DEFAULT_PATH)]
    pub(crate) socket: PathBuf,
}

/// Exits 0 when all is well or only warned of, else with the worst finding's code.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The enclave device.
    #[arg(long, value_name = "FILE", env = "ENCLAVE_SHIM_DEVICE", default_value = nitro_device::DEVICE_PATH)]
    pub(crate) device: PathBuf,
    /// An image to look at as well [default: /enclave/image.eif if it exists].
    #[arg(long, value_name = "FILE", env = "ENCLAVE_SHIM_EIF")]
    pub(crate) eif: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a plan is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlanFormat {
    Text,
    Json,
}

#[derive(Debug, Default, Args)]
pub(crate) struct Run {
    /// YAML file; /enclave/shim.yaml is read when it exists and no other is named.
    #[arg(long, value_name = "FILE", env = "ENCLAVE_SHIM_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Check everything, print what would be launched, touch no device.
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    pub(crate) dry_run: Option<PlanFormat>,
    /// Print the fields of `nitro-cli run-enclave` on stdout once the workload is ready.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) knobs: Knobs,
}

/// What the command line and the environment may say about the configuration.
#[derive(Debug, Default, Args)]
pub(crate) struct Knobs {
    /// The enclave image [default: /enclave/image.eif].
    #[arg(long, value_name = "FILE", env = "ENCLAVE_SHIM_EIF")]
    pub(crate) eif: Option<PathBuf>,
    /// The enclave's memory in MiB [default: what the pod was granted].
    #[arg(long, value_name = "MIB", env = "ENCLAVE_SHIM_MEMORY_MIB")]
    pub(crate) memory_mib: Option<u64>,
    /// Number of CPUs; the driver picks them [default: 2]. A flag beats the ids that the device plugin granted.
    #[arg(long, value_name = "COUNT", env = "ENCLAVE_SHIM_CPUS")]
    pub(crate) cpus: Option<u32>,
    /// These CPUs, by id.
    #[arg(long, value_name = "ID,ID", env = "ENCLAVE_SHIM_CPU_IDS", value_delimiter = ',')]
    pub(crate) cpu_ids: Option<Vec<u32>>,
    /// Number of CPUs as the device plugin granted them; weaker than the two above.
    #[arg(long, value_name = "COUNT", env = "NITRO_ENCLAVES_CPUS", hide = true)]
    pub(crate) granted_cpus: Option<u32>,
    /// The node's enclave slots that the device plugin granted; names the first in logs, metrics and reports.
    #[arg(long, value_name = "ID,ID", env = "ENCLAVE_SHIM_SLOT", value_delimiter = ',', hide = true)]
    pub(crate) slots: Option<Vec<u32>>,
    /// Show the enclave's console. All PCRs are then zero.
    #[arg(long, env = "ENCLAVE_SHIM_DEBUG", value_parser = FalseyValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) debug: Option<bool>,
    /// Who says that the enclave is ready: agent, heartbeat (foreign images), auto [default: auto].
    #[arg(long, value_name = "HOW", env = "ENCLAVE_SHIM_READINESS")]
    pub(crate) readiness: Option<Readiness>,
    /// Launch only an image that measures this PCR0 (96 hex digits).
    #[arg(long, value_name = "HEX", env = "ENCLAVE_SHIM_EXPECT_PCR0")]
    pub(crate) expect_pcr0: Option<Pcr>,
    /// The same for PCR1: kernel, command line and agent.
    #[arg(long, value_name = "HEX", env = "ENCLAVE_SHIM_EXPECT_PCR1")]
    pub(crate) expect_pcr1: Option<Pcr>,
    /// The same for PCR2: the application.
    #[arg(long, value_name = "HEX", env = "ENCLAVE_SHIM_EXPECT_PCR2")]
    pub(crate) expect_pcr2: Option<Pcr>,
    /// The same for PCR8: the signing certificate.
    #[arg(long, value_name = "HEX", env = "ENCLAVE_SHIM_EXPECT_PCR8")]
    pub(crate) expect_pcr8: Option<Pcr>,
    /// Launch only a signed image: valid certificate, good signature over PCR0.
    #[arg(long, env = "ENCLAVE_SHIM_REQUIRE_SIGNATURE", value_parser = FalseyValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) require_signature: Option<bool>,
    /// The enclave's vsock context id [default: the driver's choice].
    #[arg(long, value_name = "CID", env = "ENCLAVE_SHIM_CID")]
    pub(crate) cid: Option<u32>,
    /// A vsock port of the instance that leads to a target, for the own enclave; may be repeated.
    #[arg(
        long = "tunnel",
        value_name = "PORT=HOST:PORT",
        env = "ENCLAVE_SHIM_TUNNELS",
        value_delimiter = ','
    )]
    pub(crate) tunnels: Option<Vec<Tunnel>>,
    /// AWS's vsock-proxy.yaml: every tunnel must lead to where it allows.
    #[arg(long, value_name = "FILE", env = "ENCLAVE_SHIM_VSOCK_PROXY_ALLOWLIST")]
    pub(crate) vsock_proxy_allowlist: Option<PathBuf>,
    /// Where /healthz, /readyz, /metrics and /v1/attestation are served [default: 127.0.0.1:9090].
    #[arg(long, value_name = "ADDRESS", env = "ENCLAVE_SHIM_HTTP_LISTEN")]
    pub(crate) http_listen: Option<SocketAddr>,
    /// The socket of `describe` and `console` [default: /run/enclave-shim/admin.sock if it can be made].
    #[arg(long, value_name = "FILE", env = "ENCLAVE_SHIM_ADMIN_SOCKET")]
    pub(crate) admin_socket: Option<PathBuf>,
    /// Give up what is not needed; false for finding out why something fails [default: true].
    #[arg(long, env = "ENCLAVE_SHIM_SANDBOX", value_name = "BOOL")]
    pub(crate) sandbox: Option<bool>,
    /// How long connections are still taken after SIGTERM [default: 3s].
    #[arg(long, value_name = "TIME", env = "ENCLAVE_SHIM_DRAIN_ACCEPT")]
    pub(crate) drain_accept: Option<Timespan>,
    /// How long the workload may take to end after its SIGTERM [default: 22s].
    #[arg(long, value_name = "TIME", env = "ENCLAVE_SHIM_DRAIN_GRACE")]
    pub(crate) drain_grace: Option<Timespan>,
    /// How long the enclave may take to be ready [default: 60s, and 1s for each 32 MiB of the image].
    #[arg(long, value_name = "TIME", env = "ENCLAVE_SHIM_BOOT_TIMEOUT")]
    pub(crate) boot_timeout: Option<Timespan>,
    /// text or json [default: text].
    #[arg(long, value_name = "FORMAT", env = "ENCLAVE_SHIM_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// error, warn, info, debug or trace [default: info].
    #[arg(long, value_name = "LEVEL", env = "ENCLAVE_SHIM_LOG_LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
    /// Lines of the workload's output a second; 0 for none [default: 1000].
    #[arg(long, value_name = "COUNT", env = "ENCLAVE_SHIM_LOG_WORKLOAD_LINES")]
    pub(crate) log_workload_lines: Option<u32>,
    /// Where the reason of a failure is left [default: /dev/termination-log if it exists].
    #[arg(long, value_name = "FILE", env = "ENCLAVE_SHIM_TERMINATION_LOG")]
    pub(crate) termination_log: Option<PathBuf>,
    /// The enclave device [default: /dev/nitro_enclaves].
    #[arg(long, value_name = "FILE", env = "ENCLAVE_SHIM_DEVICE")]
    pub(crate) device: Option<PathBuf>,
    /// Client connections at a time [default: 4096].
    #[arg(long, value_name = "COUNT", env = "ENCLAVE_SHIM_CONNECTIONS")]
    pub(crate) connections: Option<usize>,
    /// How long a dial into the enclave may take [default: 5s].
    #[arg(long, value_name = "TIME", env = "ENCLAVE_SHIM_DIAL_TIMEOUT")]
    pub(crate) dial_timeout: Option<Timespan>,
    /// How long a client may take for its PROXY header, or to say whom it wants [default: 5s].
    #[arg(long, value_name = "TIME", env = "ENCLAVE_SHIM_HEADER_TIMEOUT")]
    pub(crate) header_timeout: Option<Timespan>,
    /// End connections that are silent for so long; 0s for never [default: 0s].
    #[arg(long, value_name = "TIME", env = "ENCLAVE_SHIM_IDLE_TIMEOUT")]
    pub(crate) idle_timeout: Option<Timespan>,
    /// When the kernel asks whether a silent client is there still; 0s for never [default: 1m].
    #[arg(long, value_name = "TIME", env = "ENCLAVE_SHIM_KEEP_ALIVE")]
    pub(crate) keep_alive: Option<Timespan>,
}

impl Cli {
    /// The command, or the code to end with: 0 after help, 64 for a mistake.
    pub(crate) fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, u8> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let is_run = arguments.get(1).is_some_and(|command| command == "run");
        Cli::parsed(arguments).map_err(|error| match error.use_stderr() {
            true if is_run => report::not_begun(&misused(&error), &unread_place()),
            mistaken => {
                // Nothing can be done about a closed stderr.
                let _ = error.print();
                if mistaken { Exit::Usage.code() } else { 0 }
            }
        })
    }

    fn parsed(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
        let mut command = <Cli as CommandFactory>::command();
        let matches = command.try_get_matches_from_mut(arguments)?;
        let mut cli = Cli::from_arg_matches(&matches)?;
        if let (Command::Run(run), Some(given)) = (&mut cli.command, matches.subcommand_matches("run")) {
            let flagged = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
            match (flagged("cpus"), flagged("cpu_ids")) {
                (true, true) => {
                    let both = "--cpus and --cpu-ids cannot be used together";
                    return Err(command.error(ErrorKind::ArgumentConflict, both));
                }
                // The device plugin always sets ids.
                (true, false) => run.knobs.cpu_ids = None,
                (false, _) => {}
            }
        }
        Ok(cli)
    }
}

/// clap's first sentence as the cause, its tips as the fix.
fn misused(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let mut paragraphs = text.split("\n\n");
    let cause = paragraphs.next().unwrap_or_default().trim_start_matches("error: ");
    let tips = paragraphs.flat_map(str::lines).filter_map(|line| line.trim().strip_prefix("tip: "));
    let mut fixes: Vec<String> = tips.map(str::to_owned).collect();
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
        && let Some(name) = flag.split([' ', '=', '[']).next().and_then(|flag| flag.strip_prefix("--"))
        && error.kind() != ErrorKind::UnknownArgument
    {
        let variable = name.replace('-', "_").to_uppercase();
        fixes.push(format!(
            "correct --{name}, or the variable ENCLAVE_SHIM_{variable} where it comes from there"
        ));
    }
    fixes.push("`enclave-shim run --help` lists flags and variables".into());
    Failure::new(Exit::Usage, cause, fixes.join("; "))
}

/// Where a report goes before anything could be read: as the environment says.
fn unread_place() -> Place {
    let variable = |name: &str| std::env::var(name).ok();
    let format = match variable("ENCLAVE_SHIM_LOG_FORMAT").as_deref() {
        Some("json") => LogFormat::Json,
        _ => LogFormat::default(),
    };
    let termination_log = std::env::var_os("ENCLAVE_SHIM_TERMINATION_LOG").map(PathBuf::from);
    Place::open(format, termination_log.as_deref())
}

fn exit_codes() -> String {
    let mut text =
        String::from("Exit codes: the workload's own when it ended by itself (128 + n for a signal), else\n");
    for exit in Exit::ALL {
        text.push_str(&format!("  {}  {}\n", exit.code(), exit.meaning()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, u8> {
        Cli::read(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn every_usage_error_is_64_and_help_is_0() {
        for line in [
            "enclave-shim",
            "enclave-shim fly",
            "enclave-shim run --no-such-flag",
            "enclave-shim run --cid x",
            "enclave-shim run --drain-grace 5parsecs",
            "enclave-shim run --cpus 2 --cpu-ids 1,3",
            "enclave-shim run --expect-pcr0 00ff",
            "enclave-shim run --dry-run=xml",
            "enclave-shim doctor --fast",
        ] {
            assert_eq!(read(line).unwrap_err(), 64, "{line}");
        }
        assert_eq!(read("enclave-shim --help").unwrap_err(), 0);
        assert_eq!(read("enclave-shim --version").unwrap_err(), 0);
    }

    #[test]
    fn a_mistake_of_run_has_a_cause_and_a_fix_that_names_flag_and_variable() {
        let told = |line: &str| {
            let arguments = line.split_whitespace().map(OsString::from).collect();
            misused(&Cli::parsed(arguments).unwrap_err()).explanation
        };
        let memory = told("enclave-shim run --memory-mib 512Mi");
        assert!(memory.cause.contains("invalid value '512Mi' for '--memory-mib <MIB>'"), "{memory:?}");
        assert!(
            memory.fix.contains("correct --memory-mib, or the variable ENCLAVE_SHIM_MEMORY_MIB"),
            "{memory:?}"
        );
        let unknown = told("enclave-shim run --cpu 2");
        assert!(unknown.cause.contains("unexpected argument '--cpu'"), "{unknown:?}");
        assert!(unknown.fix.contains("'--cpus'") && !unknown.fix.contains("ENCLAVE_SHIM_CPU"), "{unknown:?}");
        let both = told("enclave-shim run --cpus 2 --cpu-ids 1,3");
        assert!(both.cause.contains("cannot be used together"), "{both:?}");
    }

    #[test]
    fn flags_are_read_with_their_units() {
        let line = "enclave-shim run --debug --cpu-ids 1,3 --drain-grace 1m --dry-run";
        let Command::Run(run) = read(line).unwrap().command else { panic!("not run") };
        assert_eq!(run.knobs.debug, Some(true));
        assert_eq!(run.knobs.cpu_ids, Some(vec![1, 3]));
        assert_eq!(run.knobs.drain_grace.map(|span| span.duration().as_secs()), Some(60));
        assert_eq!(run.dry_run, Some(PlanFormat::Text));
    }
}
