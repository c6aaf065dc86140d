//! Kubelet's device plugin API v1beta1: messages, our server's glue, kubelet's
//! client. `v1beta1.rs` is generated from `v1beta1.proto` (see `generate/`).

#[allow(clippy::all, missing_docs, unreachable_pub, reason = "generated code")]
#[rustfmt::skip]
mod v1beta1;

pub(crate) use v1beta1::*;

/// What `Register` calls this API.
pub(crate) const VERSION: &str = "v1beta1";
/// A device that kubelet may give to a container.
pub(crate) const HEALTHY: &str = "Healthy";
/// A device that is counted and not given.
pub(crate) const UNHEALTHY: &str = "Unhealthy";
/// Where kubelet serves `Registration`, in the plugin directory.
pub(crate) const KUBELET_SOCKET: &str = "kubelet.sock";
