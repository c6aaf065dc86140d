//! Root filesystems and where they come from, without unpacking a single file.
//!
//! ```text
//! directory ──────────────── scan ──────────────────────┐
//! OCI layout ─┐                                         ▼
//! archives   ─┼─▶ layer ─▶ gzip, zstd ─▶ tar ─▶ merge ─▶ Tree ─▶ ramdisk 1
//! tar        ─┘     │ digests                    │
//!                   └────────────── contents ────┴─▶ spool (one unnamed file)
//! ```
//!
//! A [`Tree`] knows names, modes, owners and where each content lies: in a
//! directory, in an archive, or in the spool. Everything that is read here was
//! made by strangers: sizes are bounded by [`Limits`], digests are compared,
//! and no name is ever given to the file system. Read [`tree`], then `layer`.

mod archive;
mod attributes;
mod compression;
mod config;
mod digest;
mod directory;
mod docker;
mod layer;
mod oci;
mod pax;
mod sparse;
mod spool;
mod tar;
pub mod tree;

use std::{fs::File, io, path::PathBuf};

pub use config::RunConfig;
pub use digest::Digest;
pub use docker::{open_archive as open_docker_archive, read_archive as read_docker_archive};
pub use layer::Refused;
pub use oci::{
    Blobs, Wanted, open_archive as open_oci_archive, open_document as open_oci_document,
    open_layout as open_oci_layout, read_archive as read_oci_archive,
};
pub use tar::TarError;
pub use tree::Tree;

use crate::layout::Architecture;

/// What a source may cost. Exceeding one refuses the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all layers after decompression, and of all contents with the
    /// holes of sparse files filled.
    pub total: u64,
    /// Bytes of one file. An entry of a ramdisk cannot have 4 GiB or more.
    pub file: u64,
    /// Entries of all layers together, also those that are replaced later.
    pub entries: u64,
    /// Layers.
    pub layers: usize,
    /// Bytes that a zstd frame may ask its decoder to look back; up to twice as
    /// much memory is taken. RFC 8878 (section 3.1.1.1.2) asks for 8 MiB.
    pub window: u64,
}

impl Default for Limits {
    /// 16 GiB in all, files below 4 GiB, a million entries, 256 layers, and a
    /// window of 16 MiB.
    fn default() -> Limits {
        Limits { total: 16 << 30, file: (1 << 32) - 1, entries: 1_000_000, layers: 256, window: 16 << 20 }
    }
}

/// What opening a container image takes besides the image.
pub struct Opening {
    /// Chooses among the images of an index.
    pub architecture: Architecture,
    /// Bounds.
    pub limits: Limits,
    /// An empty file without a name, open for reading and writing. Takes what
    /// was compressed: at most [`Limits::total`] bytes.
    pub spool: File,
}

/// A container image, ready to become a ramdisk.
pub struct ContainerImage {
    /// Its root filesystem.
    pub tree: Tree,
    /// How it wants to be run.
    pub config: RunConfig,
    /// Digest of the image's configuration, which names all content.
    pub digest: Digest,
    /// What was left out of the tree, in words for a person.
    pub notes: Vec<String>,
}

/// Why a source cannot become a root filesystem.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum SourceError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the spool (a temporary file for decompressed layers)")]
    Spool(#[source] io::Error),
    #[error("{} is not {expected}: it has no {missing}", .path.display())]
    NotAnImage { path: PathBuf, expected: &'static str, missing: &'static str },
    #[error("{what} is not valid JSON of its kind")]
    Json { what: String, source: serde_json::Error },
    #[error("{what} has {size} bytes, at most {limit} are accepted")]
    Large { what: String, size: u64, limit: u64 },
    #[error("{what} is {actual}, expected {expected}")]
    Digest { what: String, expected: Digest, actual: Digest },
    #[error("{what} has {actual} bytes, expected {expected}")]
    Size { what: String, expected: u64, actual: u64 },
    #[error("{what} cannot be used: {why}")]
    Unusable { what: String, why: String },
    #[error("there is no image {wanted}; there are: {}", list(.found))]
    NoSuchImage { wanted: String, found: Vec<String> },
    #[error("there are several images, name one of: {}", list(.found))]
    Ambiguous { found: Vec<String> },
    #[error("there is no image for linux/{wanted}; there are: {}", list(.found))]
    NoSuchPlatform { wanted: Architecture, found: Vec<String> },
    #[error("cannot fetch {what}")]
    Fetch { what: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{what} is compressed in a way that is not supported ({kind})")]
    Compression { what: String, kind: &'static str },
    #[error("cannot decompress {what}")]
    Decompress { what: String, source: io::Error },
    #[error("{what} is not a usable tar archive")]
    Tar { what: String, source: TarError },
    #[error("{what}: entry {path:?} is refused")]
    Refused { what: String, path: String, source: Refused },
    #[error("more than {limit} {what}: the source is refused (raise the limit if it is meant)")]
    Limit { what: &'static str, limit: u64 },
}

fn list(found: &[String]) -> String {
    if found.is_empty() { "none".to_owned() } else { found.join(", ") }
}

/// A plain or compressed tar archive as a root filesystem; no layers below it.
pub fn open_tar(path: &std::path::Path, opening: Opening) -> Result<Tree, SourceError> {
    let read_error = |source| SourceError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read_error)?;
    let len = file.metadata().map_err(read_error)?.len();
    let mut merge = layer::Merge::new(opening.limits, opening.spool);
    merge.apply(
        &layer::Blob { what: path.display().to_string(), file, range: 0..len },
        &layer::Vouched::Nothing,
    )?;
    merge.finish().map(|(tree, _)| tree)
}

/// A directory as a root filesystem. Symbolic links are kept, not followed;
/// mount points below are entered. Hard links to files outside count as files.
pub fn open_directory(path: &std::path::Path) -> Result<Tree, SourceError> {
    directory::scan(path)
}
