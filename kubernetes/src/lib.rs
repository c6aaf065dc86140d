//! What an enclave needs of a Kubernetes node and pod, and what is wrong with
//! the manifests that one has.
//!
//! Everything here is pure: text and facts in, findings or manifests out.
//! [`pages`] and [`allocator`] are the node's side, exactly as AWS's allocator
//! script does it. [`lint`] reads manifests of any origin and says what is wrong;
//! [`render`] makes manifests that have none of it.
#![forbid(unsafe_code)]

pub mod allocator;
pub mod instance;
pub mod lint;
pub mod pages;
pub mod quantity;
pub mod render;
pub mod yaml;
pub mod zone;
