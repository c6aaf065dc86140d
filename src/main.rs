//! Runs an AWS Nitro Enclave as the entrypoint of a container.
//!
//! ```text
//! command line ─▶ configuration ─▶ log ─▶ supervisor ─▶ report ─▶ exit code
//!                                           ├─ boot: from image to running enclave
//!                                           ├─ enclave: what it says and is told
//!                                           ├─ proxy: clients' connections
//!                                           ├─ egress: the workload's connections
//!                                           └─ http: health, metrics, attestation
//! ```
//! Read [`supervisor`] first.

#![forbid(unsafe_code)]

mod admin;
mod attestation;
mod boot;
mod carried;
mod cli;
mod config;
mod confine;
mod doctor;
mod egress;
mod enclave;
mod environment;
mod exit;
mod http;
mod identity;
mod log;
mod proxy;
mod report;
mod signals;
mod supervisor;
mod tail;
mod timeline;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use cli::{Cli, Command, PlanFormat, Run};
use config::{Config, LogFormat};
use exit::Failure;
use report::Place;
use supervisor::Wiring;
use timeline::Timeline;

fn main() -> ExitCode {
    let timeline = Timeline::start();
    let code = match Cli::read(std::env::args_os()) {
        Ok(Cli { command: Command::Run(run) }) => execute(&run, timeline),
        Ok(Cli { command: Command::Doctor(args) }) => doctor::run(&args),
        Ok(Cli { command: Command::Describe(shim) }) => ask(&shim.socket, "describe"),
        Ok(Cli { command: Command::Console(shim) }) => ask(&shim.socket, "console"),
        Err(code) => code,
    };
    ExitCode::from(code)
}

fn execute(run: &Run, timeline: Timeline) -> u8 {
    let config = match config::load(run) {
        Ok(config) => Arc::new(config),
        Err(error) => {
            let format = run.knobs.log_format.unwrap_or_default();
            return report::not_begun(
                &error.into(),
                &place(run, format, run.knobs.termination_log.as_deref()),
            );
        }
    };
    log::start(&config.log);
    // Open before files are out of reach.
    let place = Arc::new(place(run, config.log.format, config.termination_log.as_deref()));
    report::end_on_panic(Arc::clone(&place));
    tracing::info!(build = crate::log::BUILD, config = effective(&config), "starting");
    announce(&config);
    if let Some(format) = run.dry_run {
        return dry_run(&config, &timeline, format, &place);
    }
    live(run, &config, timeline, &place)
}

/// A dry run in a pod leaves the termination log to the shim that serves there.
fn place(run: &Run, format: LogFormat, termination_log: Option<&Path>) -> Place {
    match run.dry_run {
        Some(_) => Place::without_termination_log(format),
        None => Place::open(format, termination_log),
    }
}

/// One thread until the runtime starts: what it gives up, all threads lack.
fn live(run: &Run, config: &Arc<Config>, timeline: Timeline, place: &Place) -> u8 {
    let admin = match admin::bind(config.admin.socket.as_deref()) {
        Ok(admin) => admin,
        Err(error) => return report::not_begun(&error.into(), place),
    };
    let http_tls = match config.http.tls.as_ref().map(http::tls::server).transpose() {
        Ok(tls) => tls,
        Err(error) => return report::not_begun(&error.into(), place),
    };
    let confinement = confine::limit(config);
    let wiring = Wiring { admin, http_tls, confinement, print_identity: run.json };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report::not_begun(&no_threads(&error), place),
    };
    let timeline = Arc::new(timeline);
    let outcome = runtime.block_on(supervisor::run(Arc::clone(config), Arc::clone(&timeline), wiring));
    // A launch that does not end is the only thing that could be left; the kernel closes it.
    runtime.shutdown_background();
    report::run_ended(&outcome, config, &timeline, place)
}

fn ask(socket: &Path, request: &str) -> u8 {
    match admin::ask(socket, request, &mut std::io::stdout().lock()) {
        Ok(()) => 0,
        Err(error) => report::refused(&error.into()),
    }
}

/// What an operator must not overlook.
fn announce(config: &Config) {
    let whole = config.drain.whole().as_secs_f64().ceil();
    tracing::info!("terminationGracePeriodSeconds of the pod must be at least {whole}");
    if let [_, unused @ ..] = config.slots.as_slice()
        && !unused.is_empty()
    {
        tracing::warn!(
            ?unused,
            "more enclave slots were granted than the one that is used: ask for one a container"
        );
    }
    if config.debug {
        let zero = "0".repeat(96);
        tracing::warn!("**************** DEBUG MODE: THIS ENCLAVE KEEPS NO SECRETS ****************");
        tracing::warn!("its console is readable on this instance, and no verifier accepts its documents:");
        tracing::warn!(pcr0 = zero, pcr1 = zero, pcr2 = zero, "all PCRs are zero in debug mode");
    }
}

fn dry_run(config: &Config, timeline: &Timeline, format: PlanFormat, place: &Place) -> u8 {
    let checked = boot::prepare(config, timeline)
        .and_then(|(image, plan)| boot::compare_pins(config, &image).map(|()| plan));
    match checked {
        Ok(plan) => {
            match format {
                PlanFormat::Text => {
                    println!("{plan}");
                    plan.warnings.iter().for_each(|warning| println!("warning: {warning}"));
                }
                PlanFormat::Json => println!("{}", plan.json()),
            }
            0
        }
        Err(error) => report::not_begun(&error.into(), place),
    }
}

fn effective(config: &Config) -> String {
    serde_json::to_string(config).unwrap_or_default()
}

fn no_threads(error: &std::io::Error) -> Failure {
    let fix = "raise the pod's limit on processes (pids)";
    Failure::new(exit::Exit::Resources, format!("cannot start threads: {error}"), fix)
}
