//! What is said with an enclave that runs, apart from traffic and attestation.
//!
//! ```text
//! session ── dials and greets the agent, as whoever claimed the enclave
//!    ├── control ────── orders in; phases, exit status and requests to connect out
//!    └── workload_log ─ the workload's output, where its settings forward it
//! pulse ── whether the agent answers
//! console ── the debug console, by the hypervisor
//! foreign ── stands in for all of these where the image has no agent
//! ```
//! Each runs as a task and tells the supervisor by events. Read [`session`] first.

pub(crate) mod console;
pub(crate) mod control;
pub(crate) mod foreign;
pub(crate) mod pulse;
pub(crate) mod session;
pub(crate) mod workload_log;
