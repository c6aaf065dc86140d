//! A Nitro-shaped machine on any Linux box, for development and tests.
//!
//! ```text
//! fakenitro -- COMMAND ──joins──▶ node (one per state directory) ──starts──▶ engine ─▶ /init
//!      client::launch                node::daemon                          engine, vm
//! ```
//!
//! [`client`] prepares and becomes the command, [`node`] answers its filtered
//! system calls, [`engine`] runs images as processes and [`vm`] as virtual
//! machines, [`nsm`] is their security module.

pub mod client;
pub mod engine;
mod filter;
pub mod node;
pub mod nsm;
mod sys;
pub mod vm;
mod vsock;
