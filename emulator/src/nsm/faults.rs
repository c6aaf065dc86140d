//! Faults that a test may ask of a module. None is on by default.

use std::time::Duration;

use super::response::ErrorCode;

/// What shall go wrong. The default is a healthy module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Each answer takes this long; [`Device`](super::Device) waits for it.
    pub delay: Duration,
    /// Every request fails with this code and changes nothing.
    pub error: Option<ErrorCode>,
    /// Answers are cut to this many bytes.
    pub truncate_to: Option<usize>,
    /// The document's payload is a definite-length map, as hardware wrote until 2025.
    pub definite_map: bool,
    /// Documents are signed under a leaf that expired an hour ago.
    pub stale_leaf: bool,
}
