//! Reads, writes, measures and builds Enclave Image Format (EIF) files.
//!
//! ```text
//! kernel, cmdline, metadata ──┐
//! agent   ──ramdisk──▶ cpio ──┼──▶ ImageWriter ──▶ FILE.eif ──▶ Image ──▶ Layout
//! rootfs  ──ramdisk──▶ cpio ──┘         └────────▶ Measurements ◀──┘
//! ```
//!
//! Read [`layout`] first (the format), then [`image`] (checks a file that
//! nobody vouches for), [`measure`](Measurements), [`writer`] and [`ramdisk`].
#![forbid(unsafe_code)]

pub mod boot_files;
pub mod cpio;
pub mod diff;
pub mod image;
pub mod layout;
mod measure;
pub mod metadata;
mod parse;
pub mod pcr;
pub mod ramdisk;
pub mod rootfs;
pub mod shadow;
pub mod signature;
mod source;
pub mod writer;

pub use image::{Image, ImageError};
pub use layout::{Architecture, Layout, Section, SectionKind};
pub use metadata::{BuildMetadata, Metadata};
pub use parse::Fault;
pub use pcr::{Measurements, ParsePcrError, Pcr};
pub use signature::{Signature, SignatureCheckError};
pub use writer::{ImageWriter, WriteError, write_signed};
