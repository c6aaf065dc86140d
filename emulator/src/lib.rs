//! A Nitro-shaped machine on any Linux box, for development and tests.

pub mod nsm;
