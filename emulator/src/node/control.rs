//! What programs say to the node over `DIR/node.sock`: one JSON object a line,
//! answered by one line each. The socket is open to its owner only.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Config;
use super::enclave::Status;
use super::stats::Counts;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// What kind of node is this? Options that are given must agree with it.
    Hello(super::ConfigWishes),
    /// Serve the filter whose listener is descriptor `listener` of process `pid`.
    Join { pid: i32, listener: i32 },
    /// What runs here?
    Status,
    /// Counters.
    Stats,
    /// End an enclave as a crash does.
    Kill { cid: u32 },
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// To [`Request::Hello`].
    Node(Config),
    /// To [`Request::Join`] and [`Request::Kill`].
    Done,
    /// To [`Request::Status`].
    Status(NodeStatus),
    /// To [`Request::Stats`].
    Stats(Counts),
    /// It cannot be done, and why.
    Refused(String),
}

/// The node at a glance.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    /// The node's own process.
    pub(crate) pid: u32,
    /// Slots in use.
    pub(crate) slots: usize,
    /// CPUs that enclaves hold.
    pub(crate) cpus: BTreeSet<u32>,
    /// Enclaves that run.
    pub(crate) enclaves: Vec<Status>,
}
