//! The three kernel interfaces of a Nitro enclave, and the only production
//! crate with unsafe code.
//!
//! ```text
//! parent instance                         inside the enclave
//!   [`Device`] ──▶ [`Enclave`] ──▶ [`RunningEnclave`]      [`nsm::Nsm`]
//!                     ▲ donate
//!               [`HugeRegion`]  (2 MiB or 1 GiB pages)
//! ```
//!
//! The enclave's descriptor is its life: whoever owns it owns the enclave, and
//! closing it ends the enclave. Start reading at [`device`].

mod abi;
mod cid;
pub mod device;
mod error;
pub mod nsm;
pub mod region;

pub use cid::{Cid, CidError};
pub use device::{DEVICE_PATH, Device, Enclave, Mode, NotDonated, RunningEnclave};
pub use error::{DeviceError, DriverCode};
pub use region::{FillError, HugeRegion, PageSize, RegionError};
