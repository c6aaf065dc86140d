//! Sets a Kubernetes node up for enclaves and offers them to its pods.
#![forbid(unsafe_code)]

mod allocator;
mod device_plugin;
mod exit;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

/// Sets a Kubernetes node up for enclaves and offers them to its pods.
#[derive(Parser)]
#[command(version, propagate_version = true)]
enum Command {
    Allocator(allocator::Args),
    DevicePlugin(device_plugin::Args),
}

fn main() -> ExitCode {
    let outcome = match Command::try_parse_from(arguments()) {
        Ok(Command::Allocator(args)) => return allocator::run(&args),
        Ok(Command::DevicePlugin(args)) => device_plugin::run(&args),
        Err(error) => return exit::usage(&error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// AWS's device plugin is asked for its version in Go's way.
fn arguments() -> impl Iterator<Item = OsString> {
    std::env::args_os().map(|argument| if argument == "-version" { "--version".into() } else { argument })
}
