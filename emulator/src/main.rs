//! fakenitro: runs a command on a machine that looks like a Nitro instance.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use emulator::client::{self, launch::Options};
use emulator::{engine, node, vm};

/// Usage errors of every program of this project.
const USAGE: u8 = 64;
/// As env(1) and nice(1): the wrapper itself failed.
const FAILED: u8 = 125;

/// Runs COMMAND with a working /dev/nitro_enclaves, AF_VSOCK and ne_cpus
#[derive(Parser)]
#[command(name = "fakenitro", version, subcommand_negates_reqs = true)]
struct Cli {
    /// The node's directory; commands that share it share the node
    #[arg(long, value_name = "DIR", default_value = "/run/fakenitro", global = true)]
    state: PathBuf,
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    task: Option<Task>,
    /// What to run, in place of this process
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

#[derive(Subcommand)]
enum Task {
    /// Show what runs on the node, as JSON
    Status,
    /// Show the node's counters, as JSON
    Stats,
    /// End an enclave as a crash does
    Kill {
        /// Its context id
        cid: u32,
    },
    #[command(name = "__node", hide = true)]
    Node(node::DaemonArgs),
    #[command(name = "__engine", hide = true)]
    Engine(engine::Args),
    #[command(name = "__qemu", hide = true)]
    Qemu(vm::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.task {
        None => client::launch::exec(&cli.state, cli.options, &cli.command),
        Some(Task::Status) => client::ask::status(&cli.state),
        Some(Task::Stats) => client::ask::stats(&cli.state),
        Some(Task::Kill { cid }) => client::ask::kill(&cli.state, cid),
        Some(Task::Node(args)) => node::main(&cli.state, args),
        Some(Task::Engine(args)) => engine::main(args),
        Some(Task::Qemu(args)) => vm::exec(args).map(|never| match never {}),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fakenitro: {error:#}");
            ExitCode::from(error.downcast_ref::<client::launch::NotRun>().map_or(FAILED, |not| not.code()))
        }
    }
}
