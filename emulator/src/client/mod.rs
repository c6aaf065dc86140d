//! The command line's side: becomes a command on a node, or asks a node something.

pub mod ask;
mod devices;
pub mod launch;
mod link;
