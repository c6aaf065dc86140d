//! `enclavectl egress check`: which rule of a policy decides on a connection.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use egress::allowlist::{self, AllowlistError};
use egress::{Decision, MOST_LISTENED, Policy, Reach, Target};
use serde_json::{Value, json};

use crate::failure::{Blame, Failure, OrBlame};
use crate::report::{print_json, print_text};

/// Policies of outgoing connections.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Says whether a policy allows a connection, and by which rule. Exits 0 when it does, 1 when it does not
    Check(Check),
}

#[derive(Debug, clap::Args)]
struct Check {
    /// YAML file with the rules under `egress` (a policy, an enclave.yaml or a shim.yaml), or AWS's
    /// vsock-proxy.yaml
    file: PathBuf,
    /// Where the workload wants to connect, as `host:port`
    target: Target,
    /// An address to which the name resolves: decides on that too (may be repeated)
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Command::Check(check) = &args.command;
    let file = check.file.display();
    let text = fs::read_to_string(&check.file)
        .with_context(|| format!("cannot read {file}"))
        .or_blame(Blame::NoInput)?;
    let cannot_use = || format!("cannot use {file}");
    let (policy, is_allowlist) = match allowlist::from_yaml(&text) {
        Err(AllowlistError::Missing) => {
            (Policy::from_yaml(&text).with_context(cannot_use).or_blame(Blame::Usage)?, false)
        }
        read => (read.with_context(cannot_use).or_blame(Blame::Usage)?, true),
    };

    let named = policy.decide(&check.target);
    let addresses: Vec<(IpAddr, Decision)> = check
        .address
        .iter()
        .map(|&address| (address, policy.decide_address(address, check.target.port)))
        .collect();
    let reachable = check.address.is_empty() || addresses.iter().any(|(_, decision)| decision.is_allowed());
    let allowed = named.is_allowed() && reachable;
    let way = if is_allowlist { Way::Tunnel } else { Way::Agent(policy.reach(&check.target)) };
    if check.json {
        print_json(&as_json(check, allowed, &named, &addresses, way))?;
    } else {
        let mut text = as_text(check, &named, &addresses);
        if named.is_allowed() {
            text.push_str(&format!("  reached {}\n", way.sentence()));
        }
        print_text(&text)?;
    }
    Ok(ExitCode::from(u8::from(!allowed)))
}

fn as_text(check: &Check, named: &Decision, addresses: &[(IpAddr, Decision)]) -> String {
    let mut text = format!("{}: {}\n", check.target, sentence(named));
    for (address, decision) in addresses {
        text.push_str(&format!("  at {address}: {}\n", sentence(decision)));
    }
    text
}

/// How a workload gets there.
#[derive(Clone, Copy)]
enum Way {
    /// When its image has these rules.
    Agent(Reach),
    /// AWS's list is about tunnels.
    Tunnel,
}

impl Way {
    fn sentence(self) -> String {
        match self {
            Way::Agent(Reach::Name) => "by its name, without any setting".to_owned(),
            Way::Agent(Reach::ProxyForAddress) => {
                "through the agent's proxy only (HTTP CONNECT, SOCKS5): an address has no name".to_owned()
            }
            Way::Agent(Reach::ProxyForPorts) => format!(
                "through the agent's proxy only (HTTP CONNECT, SOCKS5): its rule has more than {MOST_LISTENED} ports"
            ),
            Way::Tunnel => {
                "through a tunnel of shim.yaml that leads there; a name in a private network needs a network rule too"
                    .to_owned()
            }
        }
    }

    fn word(self) -> &'static str {
        match self {
            Way::Agent(Reach::Name) => "name",
            Way::Agent(_) => "proxy",
            Way::Tunnel => "tunnel",
        }
    }
}

fn sentence(decision: &Decision) -> String {
    match &decision.rule {
        Some((number, rule)) => format!("{} (rule {number}: {rule})", decision.verdict),
        None => decision.verdict.to_string(),
    }
}

fn as_json(
    check: &Check,
    allowed: bool,
    named: &Decision,
    addresses: &[(IpAddr, Decision)],
    way: Way,
) -> Value {
    let one = |decision: &Decision| {
        json!({
            "allowed": decision.is_allowed(),
            "reason": decision.verdict.to_string(),
            "rule": decision.rule.as_ref().map(|(number, rule)| json!({"number": number, "text": rule})),
        })
    };
    let of_addresses: serde_json::Map<String, Value> =
        addresses.iter().map(|(address, decision)| (address.to_string(), one(decision))).collect();
    json!({
        "target": check.target.to_string(),
        "allowed": allowed,
        "name": one(named),
        "addresses": of_addresses,
        "reached": named.is_allowed().then(|| way.word()),
    })
}
