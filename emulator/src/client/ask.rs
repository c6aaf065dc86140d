//! Questions to a node that runs.

use std::path::Path;

use anyhow::{Context, bail};

use super::link::Link;
use crate::node::control::{Answer, NodeStatus, Request};

/// Prints what runs on the node of `dir`; a directory without a node has nothing running.
pub fn status(dir: &Path) -> anyhow::Result<()> {
    let status = match Link::existing(dir)? {
        None => None,
        Some(mut link) => match link.ask(&Request::Status)? {
            Answer::Status(status) => Some(status),
            other => bail!("odd answer {other:?}"),
        },
    };
    print(&status.unwrap_or(NodeStatus { pid: 0, slots: 0, cpus: Default::default(), enclaves: Vec::new() }))
}

/// Prints the node's counters; of a node that has ended, the last ones.
pub fn stats(dir: &Path) -> anyhow::Result<()> {
    match Link::existing(dir)? {
        None => {
            let path = dir.join("stats.json");
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("no node runs in {} and it left no counters", dir.display()))?;
            print!("{text}");
            Ok(())
        }
        Some(mut link) => match link.ask(&Request::Stats)? {
            Answer::Stats(counts) => print(&counts),
            other => bail!("odd answer {other:?}"),
        },
    }
}

/// Ends enclave `cid`.
pub fn kill(dir: &Path, cid: u32) -> anyhow::Result<()> {
    let Some(mut link) = Link::existing(dir)? else { bail!("no node runs in {}", dir.display()) };
    link.ask(&Request::Kill { cid }).map(drop)
}

fn print(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
