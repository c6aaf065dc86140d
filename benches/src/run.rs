//! One run: every contender, every row, in turn, several times over.
//!
//! ```text
//! for each round: for each row: for each contender: start, measure, end
//! ```
//! Contenders of one row run minutes apart at most, so a ratio within a round
//! is fair on a machine that is doing other things too. Medians over rounds.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::contender::{Contender, Running, Side, server_endpoints};
use crate::endpoint::Endpoint;
use crate::meter::{self, SystemCalls};
use crate::peer::{self, Way};

const MIB: f64 = 1024.0 * 1024.0;
/// Descriptors of a contender that are no connection's.
const SPARE_DESCRIPTORS: usize = 200;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// direct, raw, ours, socat, vsock-proxy, small, owned, splice; /shared or /per-core behind an engine
    #[arg(long, value_delimiter = ',', default_value = "direct,raw,ours,socat,vsock-proxy")]
    contenders: Vec<String>,
    /// Rows to measure, by the beginning of their names; all if none is given
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Repetitions; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes of one transfer, in MiB, over all streams
    #[arg(long, default_value_t = 512)]
    mib: u64,
    /// Seconds for which idle connections stay silent before they must echo again
    #[arg(long, default_value_t = 0)]
    hold: u64,
    /// Where the peers' programs are
    #[arg(long, default_value_os_t = crate::default_tools())]
    tools: PathBuf,
    /// Write the figures to this file
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Figures by row, figure and contender; one number per round.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures(pub(crate) BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<f64>>>>);

impl Figures {
    fn add(&mut self, row: &str, figure: &str, contender: &str, value: f64) {
        let row = self.0.entry(row.to_owned()).or_default();
        row.entry(figure.to_owned()).or_default().entry(contender.to_owned()).or_default().push(value);
    }
}

/// What a row measures.
#[derive(Debug, Clone, Copy)]
enum Work {
    Transfer { way: Way, streams: usize },
    PingPong { rounds: usize },
    Connections { parallel: usize, each: usize },
    Idle { count: usize },
}

struct Row {
    name: &'static str,
    side: Side,
    work: Work,
}

const fn row(name: &'static str, side: Side, work: Work) -> Row {
    Row { name, side, work }
}

const fn transfer(way: Way, streams: usize) -> Work {
    Work::Transfer { way, streams }
}

const ROWS: &[Row] = &[
    row("ingress-to-vsock-1", Side::Tcp, transfer(Way::Up, 1)),
    row("ingress-from-vsock-1", Side::Tcp, transfer(Way::Down, 1)),
    row("egress-from-vsock-1", Side::Vsock, transfer(Way::Up, 1)),
    row("egress-to-vsock-1", Side::Vsock, transfer(Way::Down, 1)),
    row("ingress-to-vsock-8", Side::Tcp, transfer(Way::Up, 8)),
    row("ingress-from-vsock-8", Side::Tcp, transfer(Way::Down, 8)),
    row("egress-from-vsock-8", Side::Vsock, transfer(Way::Up, 8)),
    row("egress-to-vsock-8", Side::Vsock, transfer(Way::Down, 8)),
    row("ingress-ping-pong", Side::Tcp, Work::PingPong { rounds: 10_000 }),
    row("egress-ping-pong", Side::Vsock, Work::PingPong { rounds: 10_000 }),
    row("ingress-connections-1", Side::Tcp, Work::Connections { parallel: 1, each: 500 }),
    row("ingress-connections-32", Side::Tcp, Work::Connections { parallel: 32, each: 40 }),
    row("ingress-idle-2000", Side::Tcp, Work::Idle { count: 2_000 }),
    row("ingress-idle-10000", Side::Tcp, Work::Idle { count: 10_000 }),
];

pub(crate) fn run(plan: &Plan) -> anyhow::Result<()> {
    let most = most_connections()?;
    let mut figures = Figures::default();
    let contenders: Vec<(String, Contender)> = plan
        .contenders
        .iter()
        .map(|name| Ok((name.clone(), Contender::parse(name, &plan.tools)?)))
        .collect::<anyhow::Result<_>>()?;
    let servers = Servers::start()?;
    for round in 0..plan.rounds {
        for row in ROWS.iter().filter(|row| plan.wants(row.name)) {
            for (name, contender) in &contenders {
                if row.work.suits(contender) {
                    let measured = measure(row, contender, &servers, plan, most, |figure, value| {
                        figures.add(row.name, figure, name, value);
                    });
                    measured.with_context(|| format!("{} by {name}", row.name))?;
                }
            }
        }
        eprintln!("round {} of {}", round + 1, plan.rounds);
    }
    if let Some(output) = &plan.output {
        std::fs::write(output, serde_json::to_vec_pretty(&figures)?)?;
    }
    print(&figures);
    Ok(())
}

impl Plan {
    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| row.starts_with(wanted.as_str()))
    }
}

impl Work {
    /// A contender that serves one connection at a time would only wait, one
    /// that forks would fill the process table.
    fn suits(self, contender: &Contender) -> bool {
        match self {
            Work::Transfer { streams, .. } => streams == 1 || !contender.is_serial(),
            Work::PingPong { .. } => true,
            Work::Connections { parallel, .. } => parallel == 1 || !contender.is_serial(),
            Work::Idle { count } => match contender {
                Contender::Engine(engine, _) => count <= 2_000 || !engine.is_threaded(),
                Contender::Socat => count <= 2_000,
                Contender::Direct | Contender::VsockProxy(_) => false,
            },
        }
    }
}

/// The far ends, in a process of their own.
struct Servers {
    process: Child,
    vsock: Endpoint,
    tcp: Endpoint,
}

impl Servers {
    fn start() -> anyhow::Result<Servers> {
        let (vsock_listen, vsock) = server_endpoints(Side::Tcp)?;
        let (tcp_listen, tcp) = server_endpoints(Side::Vsock)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").args([vsock_listen.to_string(), tcp_listen.to_string()]);
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.as_mut().context("no output")?;
        output.read_exact(&mut [0; 6]).context("the servers did not start (is this run under fakenitro?)")?;
        Ok(Servers { process, vsock, tcp })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn measure(
    row: &Row,
    contender: &Contender,
    servers: &Servers,
    plan: &Plan,
    most: usize,
    mut note: impl FnMut(&str, f64),
) -> anyhow::Result<()> {
    let server = if row.side == Side::Tcp { servers.vsock } else { servers.tcp };
    let running = contender.start(row.side, server)?;
    match row.work {
        Work::Transfer { way, streams } => {
            let bytes = plan.mib * 1024 * 1024 / streams as u64;
            let mib = (bytes * streams as u64) as f64 / MIB;
            peer::transfer(running.endpoint, way, streams, bytes / 16)?;
            let (taken, cpu) = timed(&running, || peer::transfer(running.endpoint, way, streams, bytes))?;
            note("mib_per_s", mib / taken.as_secs_f64());
            if let Some(pid) = running.pid() {
                note("cpu_s_per_gib", cpu.as_secs_f64() / mib * 1024.0);
                let calls = SystemCalls::start(pid)?;
                peer::transfer(running.endpoint, way, streams, bytes)?;
                note("calls_per_mib", calls.stop()? as f64 / mib);
            }
        }
        Work::PingPong { rounds } => {
            let times = peer::ping_pong(running.endpoint, rounds)?;
            note("p50_us", times[times.len() / 2].as_secs_f64() * 1e6);
            note("p99_us", times[times.len() * 99 / 100].as_secs_f64() * 1e6);
        }
        Work::Connections { parallel, each } => {
            peer::connections(running.endpoint, 1, 50)?;
            let (taken, cpu) = timed(&running, || peer::connections(running.endpoint, parallel, each))?;
            let count = (parallel * each) as f64;
            note("per_s", count / taken.as_secs_f64());
            if running.pid().is_some() {
                note("cpu_us_each", cpu.as_secs_f64() * 1e6 / count);
            }
        }
        Work::Idle { count } => {
            let count = count.min(most);
            let pid = running.pid().context("nobody carries")?;
            peer::connections(running.endpoint, 1, 50)?;
            let before = meter::memory(pid)?;
            let mut sockets = peer::idle(running.endpoint, count)?;
            note("connections", count as f64);
            note("bytes_each", meter::memory(pid)?.saturating_sub(before) as f64 / count as f64);
            std::thread::sleep(Duration::from_secs(plan.hold));
            for socket in &mut sockets {
                peer::echoes(socket)?;
            }
        }
    }
    Ok(())
}

/// How long `work` took, and what the contender's CPU time for it was.
fn timed(
    running: &Running,
    work: impl FnOnce() -> std::io::Result<Duration>,
) -> anyhow::Result<(Duration, Duration)> {
    let cpu = || running.pid().map_or(Ok(Duration::ZERO), meter::cpu);
    let before = cpu()?;
    let taken = work()?;
    Ok((taken, cpu()?.saturating_sub(before)))
}

/// A connection is two descriptors of the contender; some more are its own.
fn most_connections() -> anyhow::Result<usize> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok((hard as usize).saturating_sub(SPARE_DESCRIPTORS) / 2)
}

fn print(figures: &Figures) {
    for (row, figures) in &figures.0 {
        for (figure, contenders) in figures {
            print!("{row:24} {figure:14}");
            for (contender, values) in contenders {
                print!("  {contender} {:.3}", median(values));
                if let Some(raw) = contenders.get("raw").filter(|_| contender != "raw") {
                    print!(" ({:.2})", ratio(values, raw));
                }
            }
            println!();
        }
    }
}

/// The median over rounds of one contender's value by the other's.
pub(crate) fn ratio(values: &[f64], others: &[f64]) -> f64 {
    let ratios: Vec<f64> = values.iter().zip(others).map(|(value, other)| value / other).collect();
    median(&ratios)
}

/// The middle of the values; the lower one of two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}
