//! The metadata section: JSON that tells how an image was made. It is in the
//! checksum but in no PCR, so nothing may be decided by it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the metadata section holds. Field names and order are those that
/// nitro-cli writes and needs when it reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The application's name.
    #[serde(rename = "ImageName")]
    pub image_name: String,
    /// The application's version.
    #[serde(rename = "ImageVersion")]
    pub image_version: String,
    /// How it was built.
    #[serde(rename = "BuildMetadata")]
    pub build: BuildMetadata,
    /// `docker inspect` of the source image; null when there was none.
    #[serde(rename = "DockerInfo", default)]
    pub docker_info: Value,
    /// Whatever the builder's user added; null when nothing was.
    #[serde(rename = "CustomMetadata", default)]
    pub custom: Value,
}

/// How an image was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BuildMetadata {
    /// RFC 3339 time.
    pub build_time: String,
    /// Name of the program that built it.
    pub build_tool: String,
    /// Its version.
    pub build_tool_version: String,
    /// `Linux`, as the kernel's configuration says.
    pub operating_system: String,
    /// The kernel's version.
    pub kernel_version: String,
}

/// Why metadata cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Not the JSON of [`Metadata`].
    #[error("metadata is not the expected JSON")]
    Json(#[from] serde_json::Error),
}

impl Metadata {
    /// Parses a section's payload.
    pub fn from_json(bytes: &[u8]) -> Result<Metadata, MetadataError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// A section's payload. Same metadata, same bytes.
    pub fn to_json(&self) -> Result<Vec<u8>, MetadataError> {
        Ok(serde_json::to_vec(self)?)
    }
}
