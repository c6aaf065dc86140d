//! Promise: a workload reaches what both policies allow, by name and without
//! any setting, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on fails
#![allow(unreachable_pub)]

#[path = "../machine/mod.rs"]
mod machine;

mod adversarial;
mod connections;
mod enclave;
mod outside;
mod soak;
mod unmodified;
