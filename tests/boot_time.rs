//! Promise: of the time from NE_START_ENCLAVE to ready, the agent's own share is
//! small. Prints every phase: docs/emulator.md has the table.
//!
//! ```text
//! NE_START ─▶ firmware, loader ─▶ kernel ─▶ agent ─▶ workload ─▶ the shim knows
//!          (engine)                     after_ms: the agent's own clock
//! ```

#![allow(clippy::unwrap_used, clippy::panic)] // a failure here is the test's

mod machine;

use std::time::Duration;

use machine::{Image, Node, Shim, boots_kernels, within};
use serde_json::Value;

/// The fastest of so many boots each: what is measured is the agent, not the neighbours.
const ROUNDS: usize = 4;
/// To the start of the workload, on a processor that is not emulated.
const AGENT_MS: u64 = 30;
/// The default, and the same without the kernel's words on the serial port.
const TALKATIVE: &str = "reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux \
                         i8042.nopnp i8042.dumbkbd random.trust_cpu=on";

/// Milliseconds, from one boot's log.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "all but one are only printed")]
struct Boot {
    /// NE_START_ENCLAVE to the kernel's own zero; nothing on the process engine.
    engine: u64,
    /// The kernel's own clock when it starts /init.
    kernel: u64,
    /// Agent's start to the workload's.
    agent: u64,
    /// The workload's start to ready.
    workload: u64,
    /// NE_START_ENCLAVE to ready, as the shim sees it.
    whole: u64,
}

/// The first value of `field` in a line whose fields fit.
fn field(lines: &[Value], fits: impl Fn(&Value) -> bool, name: &str) -> u64 {
    let found = lines.iter().map(|line| &line["fields"]).find(|fields| fits(fields));
    found.and_then(|fields| fields[name].as_u64()).unwrap_or_else(|| panic!("no {name}"))
}

fn boot(node: &Node, image: &Image) -> Boot {
    let mut shim = Shim::with_flags(node, image, &["--debug"]);
    shim.ready();
    let mut lines: Vec<Value> = Vec::new();
    within(Duration::from_secs(5), "the last phase is logged", || {
        lines = shim.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines.iter().any(|line| line["fields"]["step"] == "workload ready")
    });
    let step = |name: &str| field(&lines, |fields| fields["step"] == name, "at_ms");
    let agents = |phase: &str| field(&lines, |fields| fields["phase"] == phase, "after_ms");
    let (started, ready) = (agents("WorkloadStarted"), agents("Ready"));
    let begun = step("memory donated");
    // What is told late makes this late, so the earliest is the best.
    let agent_start = (step("workload started") - started).min(step("workload ready") - ready);
    let console = node.path().join(format!("enclaves/{}/console.log", node.running()[0]));
    let kernel = kernel_ms(&std::fs::read_to_string(console).unwrap()).unwrap_or(0);
    Boot {
        engine: (agent_start - begun).saturating_sub(kernel),
        kernel,
        agent: started,
        workload: ready - started,
        whole: step("workload ready") - begun,
    }
}

/// From `[    0.656123] Run /init as init process`.
fn kernel_ms(console: &str) -> Option<u64> {
    let line = console.lines().find(|line| line.contains("Run /init as init process"))?;
    let seconds: f64 = line.trim_start_matches('[').split(']').next()?.trim().parse().ok()?;
    Some((seconds * 1e3) as u64)
}

#[test]
fn the_agent_takes_at_most_thirty_milliseconds_of_a_boot() {
    let mut boots = Vec::new();
    for cmdline in [TALKATIVE.to_owned(), format!("{TALKATIVE} quiet")] {
        let node = Node::new();
        let image = Image::with_cmdline(&node, &cmdline);
        for _ in 0..ROUNDS {
            let measured = boot(&node, &image);
            println!("{measured:?}");
            boots.push(measured);
            within(Duration::from_secs(10), "the enclave is gone", || node.running().is_empty());
        }
    }
    let fastest = boots.iter().map(|boot| boot.agent).min().unwrap();
    // Emulated instructions take about twenty times as long, so there it is only told.
    assert!(boots_kernels() || fastest <= AGENT_MS, "the agent's share: {fastest} ms");
}
