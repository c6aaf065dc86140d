//! Measures the relay against its peers on the same sockets.
//!
//! Run it under fakenitro: one side of every connection is a vsock.
//! Read [`run`] first.

#![forbid(unsafe_code)]

mod contender;
mod echo;
mod endpoint;
mod engines;
mod judge;
mod meter;
mod peer;
mod report;
mod run;
mod soak;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use endpoint::Endpoint;
use engines::{Engine, Runtime};

/// Usage errors of every program of this project.
const USAGE: u8 = 64;

/// Measures relays between TCP and vsock
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Relay everything from one endpoint to another
    Relay {
        #[arg(long, value_enum)]
        engine: Engine,
        #[arg(long, value_enum)]
        runtime: Option<Runtime>,
        /// tcp:ADDRESS:PORT or vsock:CID:PORT
        #[arg(long)]
        listen: Endpoint,
        /// tcp:ADDRESS:PORT or vsock:CID:PORT
        #[arg(long)]
        to: Endpoint,
    },
    /// Answer as the far end of a measured connection does
    Serve {
        /// tcp:ADDRESS:PORT or vsock:CID:PORT
        listen: Vec<Endpoint>,
    },
    /// Compare contenders and write the figures as JSON
    Run(run::Plan),
    /// Write figures as tables and as a picture, and fail where one is beyond its gate
    Report(report::Plan),
    /// Check every byte of many streams whose ends misbehave
    Soak(soak::Plan),
    /// Be the far end of a soak through something else
    SoakServer {
        /// tcp:ADDRESS:PORT
        listen: Endpoint,
    },
    /// Send back what comes
    Echo {
        /// tcp:ADDRESS:PORT
        listen: Endpoint,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match cli.task {
        Task::Relay { engine, runtime, listen, to } => {
            let runtime = runtime.unwrap_or(engine.usual_runtime());
            engines::run(engine, runtime, listen, to).map_err(anyhow::Error::from)
        }
        Task::Serve { listen } => peer::serve_all(&listen).map_err(anyhow::Error::from),
        Task::Run(plan) => run::run(&plan),
        Task::Report(plan) => report::run(&plan),
        Task::Soak(plan) => soak::run(&plan),
        Task::SoakServer { listen } => soak::serve(listen),
        Task::Echo { listen } => echo::serve(listen),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Where tools that are no part of this project are installed by scripts/bench.sh.
fn default_tools() -> PathBuf {
    PathBuf::from("target/tools/bin")
}
