//! What a node needs so that its pods can run enclaves.
#![forbid(unsafe_code)]

mod allocator;

use std::process::ExitCode;

use clap::Parser;

/// What a node needs so that its pods can run enclaves.
#[derive(Parser)]
#[command(version, propagate_version = true)]
enum Command {
    Allocator(allocator::Args),
}

/// sysexits.h
const USAGE: u8 = 64;

fn main() -> ExitCode {
    match Command::try_parse() {
        Ok(Command::Allocator(args)) => allocator::run(&args),
        Err(error) => {
            // `--help` and `--version` come here as well, and are no errors.
            // Nothing is left to do when the terminal is gone.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
        }
    }
}
