//! Which outgoing connections an enclave may make. Pure: no socket, no resolver.
//!
//! ```text
//! host:port ─▶ Target ─▶ Policy::decide ──denied──▶ refuse, and say by which rule
//!                             │ allowed by name
//!                             ▼
//!              every resolved address ─▶ Policy::decide_address ─▶ connect to those that are left
//! ```
//! The agent decides by name and port, measured with the image; the shim
//! decides again, by name, port and *resolved address*. What neither names is
//! refused, and so is every address that is not of the public internet unless
//! a network rule names it: a resolver cannot lead a name to the instance
//! metadata service. What AWS's vsock-proxy reads ([`allowlist`]) becomes a policy too.
//!
//! Beside the policy lies what the agent reads from the workload, as bytes in
//! and values out: [`dns`] questions, [`connect`] and [`socks`] requests, and
//! the [`names`] that have got an address.

#![forbid(unsafe_code)]

pub mod allowlist;
pub mod connect;
pub mod dns;
pub mod names;
mod policy;
mod reserved;
mod rule;
pub mod socks;
mod target;

pub use policy::{Decision, MOST_LISTENED, Policy, PolicyError, Reach, Verdict};
pub use reserved::{Reserved, reserved};
pub use rule::{PortRange, Ports, Rule, RuleError, Subject};
pub use target::{Host, Name, Target, TargetError};
