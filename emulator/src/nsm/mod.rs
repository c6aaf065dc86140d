//! An emulated Nitro Security Module and the development authority it signs under.
//!
//! ```text
//! /dev/nsm ─▶ transport ─bytes─▶ Device ─▶ Module ─▶ request ─▶ pcr, document ─▶ response
//!                                            └─ Authority ─▶ profile ─▶ certificate ─▶ der
//! ```
//!
//! Nothing here knows a transport: bytes in, bytes out. Limits, locks, error codes
//! and the shape of documents are the device's; the root of the chain is made per
//! directory, and its name says that it is not AWS's. Read [`Module::answer`] first.
//! [`chain`], [`certificate`] and [`document`] also compose hostile input for tests.

mod authority;
pub mod certificate;
pub mod chain;
pub mod der;
mod device;
pub mod document;
mod faults;
mod identity;
mod key;
mod module;
mod pcr;
pub mod profile;
mod request;
mod response;
mod store;

#[cfg(test)]
mod tests;

pub use authority::{Authority, DEFAULT_REGION, Leaf};
pub use device::Device;
pub use faults::Faults;
pub use identity::{IdentityError, InstanceId, ModuleId};
pub use key::{KeyError, POINT_LEN, SIGNATURE_LEN, SigningKey};
pub use module::{Clock, Module};
pub use pcr::{Digest, FIRST_FREE, Measurements, PCR_COUNT};
pub use request::{FIELD_MAX, REQUEST_MAX};
pub use response::{ErrorCode, RANDOM_LEN, RESPONSE_MAX};
pub use store::{KEY_FILE, ROOT_FILE, StoreError};
