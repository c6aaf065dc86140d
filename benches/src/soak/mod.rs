//! A soak: many streams while their ends reset, half-close, stall, trickle and
//! leave early, through two relays, or through a shim and its enclave.
//!
//! ```text
//! client ─TCP─▶ relay ─vsock─▶ relay ─TCP─▶ server
//! client ─TCP─▶ shim  ─vsock─▶ agent ─TCP─▶ server, in the enclave   (--through)
//! ```
//! Every byte is a function of its stream and place, so both ends check each
//! one. A cut stream must never look whole. Nothing may be left in the relays;
//! shim and agent are watched by whoever started them.

mod ends;
mod stream;

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::contender::{Contender, Running, Side};
use crate::endpoint::Endpoint;
use crate::engines::Engine;
use ends::{PATIENCE, Tally};
use stream::{Stream, mix};

/// How long, and how many at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// How long new streams are opened
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Streams at once
    #[arg(long, default_value_t = 48)]
    parallel: usize,
    /// What the relays run
    #[arg(long, value_enum, default_value_t = Engine::BetweenRelays)]
    engine: Engine,
    /// Decides what the streams do
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instead of relays: a way to a `bench soak-server`
    #[arg(long, value_name = "ENDPOINT")]
    through: Option<Endpoint>,
    /// The way is going to break: from the end of standard input on, streams may be
    /// cut, and the soak is over when nobody takes new ones
    #[arg(long, requires = "through")]
    until_cut: bool,
}

pub(crate) fn run(plan: &Plan) -> anyhow::Result<()> {
    let tally = Arc::new(Tally::default());
    if plan.until_cut {
        let told = Arc::clone(&tally);
        thread::Builder::new().spawn(move || {
            // Whatever comes: it is the end that counts.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            told.doomed.store(true, Ordering::SeqCst);
        })?;
    }
    match plan.through {
        Some(way) => {
            open_streams(plan, way, &tally);
            if !plan.until_cut {
                let seen = ends::ask_for_faults(way).context("the server's faults cannot be had")?;
                anyhow::ensure!(seen.is_empty(), "the server has seen:\n{seen}");
            }
        }
        None => between_relays(plan, &tally)?,
    }
    verdict(&tally)
}

/// The far end of `--through`, for the rest of the process.
pub(crate) fn serve(listen: Endpoint) -> anyhow::Result<()> {
    let listener = TcpListener::from(std::os::fd::OwnedFd::from(listen.listen()?));
    println!("ready");
    ends::serve(&listener, &Arc::default());
    Ok(())
}

fn between_relays(plan: &Plan, tally: &Arc<Tally>) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = Endpoint::Tcp(listener.local_addr()?);
    let counted = Arc::clone(tally);
    thread::Builder::new().spawn(move || ends::serve(&listener, &counted))?;

    let ours = Contender::Engine(plan.engine, plan.engine.usual_runtime());
    let inner = ours.start(Side::Vsock, server)?;
    let outer = ours.start(Side::Tcp, inner.endpoint)?;
    let before = (descriptors(&inner)?, descriptors(&outer)?);
    open_streams(plan, outer.endpoint, tally);
    nothing_left(before, &inner, &outer)
}

fn open_streams(plan: &Plan, way: Endpoint, tally: &Tally) {
    let deadline = Instant::now() + Duration::from_secs(plan.seconds);
    let next = AtomicU64::new(mix(plan.seed));
    let goes_on = || Instant::now() < deadline || plan.until_cut;
    thread::scope(|scope| {
        for _ in 0..plan.parallel {
            scope.spawn(|| {
                while goes_on() && ends::client(Stream::of(next.fetch_add(1, Ordering::Relaxed)), way, tally)
                {
                }
            });
        }
    });
}

fn verdict(tally: &Tally) -> anyhow::Result<()> {
    let faults = tally.faults();
    for fault in faults.iter().take(20) {
        eprintln!("{fault}");
    }
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (streams, mib, cut) = (of(&tally.streams), of(&tally.bytes) >> 20, of(&tally.cut));
    println!("{streams} streams, {mib} MiB checked, {cut} cut, {} faults", faults.len());
    if streams == 0 || !faults.is_empty() {
        bail!("the soak failed");
    }
    Ok(())
}

/// Every connection's descriptors are closed again in both relays.
fn nothing_left(before: (usize, usize), inner: &Running, outer: &Running) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = (descriptors(inner)?, descriptors(outer)?);
        if now == before {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the relays had {before:?} descriptors open before and {now:?} after");
        }
        thread::yield_now();
    }
}

fn descriptors(running: &Running) -> anyhow::Result<usize> {
    let pid = running.pid().context("no relay")?;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
