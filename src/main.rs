//! Runs an AWS Nitro Enclave as the entrypoint of a container.
//!
//! ```text
//! command line ─▶ configuration ─▶ log ─▶ supervisor ─▶ report ─▶ exit code
//!                                           ├─ boot: from image to running enclave
//!                                           ├─ control: what the agent says and is told
//!                                           ├─ proxy: clients' connections
//!                                           └─ http: health, metrics, attestation
//! ```
//! Read [`supervisor`] first.

#![forbid(unsafe_code)]

mod attestation;
mod boot;
mod cli;
mod config;
mod console;
mod control;
mod exit;
mod http;
mod log;
mod proxy;
mod report;
mod session;
mod signals;
mod supervisor;
mod tail;
mod timeline;
mod workload_log;

use std::process::ExitCode;
use std::sync::Arc;

use cli::{Cli, Command, Run};
use config::Config;
use exit::Failure;
use report::Place;
use timeline::Timeline;

fn main() -> ExitCode {
    let timeline = Timeline::start();
    let code = match Cli::read(std::env::args_os()) {
        Ok(Cli { command: Command::Run(run) }) => execute(&run, timeline),
        Err(code) => code,
    };
    ExitCode::from(code)
}

fn execute(run: &Run, timeline: Timeline) -> u8 {
    let unread = Place {
        format: run.knobs.log_format.unwrap_or_default(),
        termination_log: run.knobs.termination_log.clone(),
    };
    let config = match config::load(run) {
        Ok(config) => Arc::new(config),
        Err(error) => return report::not_begun(&error.into(), &unread),
    };
    log::start(&config.log);
    report::end_on_panic(Place::from(&*config));
    tracing::info!(build = log::BUILD, config = effective(&config), "starting");
    announce(&config);
    if run.dry_run {
        return dry_run(&config, &timeline);
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report::not_begun(&no_threads(&error), &Place::from(&*config)),
    };
    let timeline = Arc::new(timeline);
    let outcome = runtime.block_on(supervisor::run(Arc::clone(&config), Arc::clone(&timeline)));
    // A launch that does not end is the only thing that could be left; the kernel closes it.
    runtime.shutdown_background();
    report::run_ended(&outcome, &config, &timeline)
}

/// What an operator must not overlook.
fn announce(config: &Config) {
    let whole = config.drain.whole().as_secs_f64().ceil();
    tracing::info!("terminationGracePeriodSeconds of the pod must be at least {whole}");
    if config.debug {
        let zero = "0".repeat(96);
        tracing::warn!("**************** DEBUG MODE: THIS ENCLAVE KEEPS NO SECRETS ****************");
        tracing::warn!("its console is readable on this instance, and no verifier accepts its documents:");
        tracing::warn!(pcr0 = zero, pcr1 = zero, pcr2 = zero, "all PCRs are zero in debug mode");
    }
}

fn dry_run(config: &Config, timeline: &Timeline) -> u8 {
    match boot::prepare(config, timeline) {
        Ok((_, plan)) => {
            println!("{plan}");
            0
        }
        Err(error) => report::not_begun(&error.into(), &Place::from(config)),
    }
}

fn effective(config: &Config) -> String {
    serde_json::to_string(config).unwrap_or_default()
}

fn no_threads(error: &std::io::Error) -> Failure {
    let fix = "raise the pod's limit on processes (pids)";
    Failure::new(exit::Exit::Resources, format!("cannot start threads: {error}"), fix)
}
