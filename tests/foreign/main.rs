//! Promise: an image that is not ours runs too. It reports on a port that the
//! whole node shares, so launches wait for each other and answer only their own;
//! so do its tunnels, its way out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's
#![allow(unreachable_pub)]

#[path = "../machine/mod.rs"]
mod machine;
#[allow(dead_code)] // another test uses the rest
#[path = "../egress/outside.rs"]
mod outside;

mod image;
mod launches;
mod tunnels;

use std::time::Duration;

/// For what ends by itself.
pub const SOON: Duration = Duration::from_secs(30);
