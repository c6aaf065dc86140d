//! Images in the OCI image layout, as a directory or an archive of one
//! (OCI image specification: image-layout.md, image-index.md, manifest.md).
//!
//! ```text
//! oci-layout, index.json ─▶ (index ─▶)* manifest ─▶ config
//!                                          └──────▶ layers, lowest first
//! ```

use std::{fs::File, io, path::Path};

use serde::Deserialize;

use super::{
    ContainerImage, Digest, Opening, SourceError,
    archive::{Files, is_called},
    config::Config,
    layer::{Blob, Merge, Vouched},
};
use crate::layout::Architecture;

const LAYOUT: &str = "an OCI image layout";
/// Indexes that lead to indexes.
const MAX_DEPTH: usize = 4;
/// Descriptors of one index, layers of one manifest.
const MAX_DESCRIPTORS: usize = 4096;
const TAG: &str = "org.opencontainers.image.ref.name";

#[derive(Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    architecture: String,
    os: String,
}

/// Opens an image of the layout in directory `path`. `reference` chooses among
/// several: a tag, or the digest of a manifest.
pub fn open_layout(
    path: &Path,
    reference: Option<&str>,
    opening: Opening,
) -> Result<ContainerImage, SourceError> {
    Layout { files: Files::in_directory(path) }.open(reference, opening)
}

/// Opens an image of the layout in the tar archive `path`. `second_spool` makes
/// another empty file, needed when the archive itself is compressed.
pub fn open_archive(
    path: &Path,
    reference: Option<&str>,
    opening: Opening,
    second_spool: &mut dyn FnMut() -> io::Result<File>,
) -> Result<ContainerImage, SourceError> {
    Layout { files: Files::in_archive(path, &opening.limits, second_spool)? }.open(reference, opening)
}

struct Layout {
    files: Files,
}

impl Layout {
    fn open(&self, reference: Option<&str>, opening: Opening) -> Result<ContainerImage, SourceError> {
        let absent = |missing| SourceError::NotAnImage {
            path: self.files.path().to_owned(),
            expected: LAYOUT,
            missing,
        };
        let marker = self.files.find("oci-layout")?.ok_or_else(|| absent("oci-layout"))?;
        let (Marker { version }, _) = marker.json(None)?;
        if !version.starts_with("1.") {
            let why = format!("its layout has version {version:?}");
            return Err(SourceError::Unusable { what: marker.what, why });
        }
        let (index, _) = self.files.find("index.json")?.ok_or_else(|| absent("index.json"))?.json(None)?;
        let manifest = self.manifest(&index, reference, opening.architecture)?;
        self.image(&manifest, opening)
    }

    /// The one manifest that is meant.
    fn manifest(
        &self,
        index: &Index,
        reference: Option<&str>,
        architecture: Architecture,
    ) -> Result<Descriptor, SourceError> {
        let named: Vec<&Descriptor> = match reference {
            None => index.manifests.iter().collect(),
            Some(wanted) => index.manifests.iter().filter(|found| found.is_called(wanted)).collect(),
        };
        let tags = || index.manifests.iter().map(Descriptor::name).collect::<Vec<_>>();
        if let (Some(wanted), []) = (reference, &named[..]) {
            return Err(SourceError::NoSuchImage { wanted: wanted.to_owned(), found: tags() });
        }
        let mut at: Vec<Descriptor> = named.into_iter().cloned().collect();
        for _ in 0..MAX_DEPTH {
            let chosen = match choose(&at, architecture)? {
                Some(chosen) => chosen,
                None => return Err(SourceError::Ambiguous { found: tags() }),
            };
            if !chosen.is_index() {
                return Ok(chosen);
            }
            let (Index { manifests }, _) = self.blob(&chosen)?.json(Some(&chosen.digest))?;
            at = manifests;
        }
        let why = format!("its indexes are nested more than {MAX_DEPTH} deep");
        Err(SourceError::Unusable { what: self.files.path().display().to_string(), why })
    }

    fn image(&self, manifest: &Descriptor, opening: Opening) -> Result<ContainerImage, SourceError> {
        let blob = self.blob(manifest)?;
        let (Manifest { config, layers }, _) = blob.json(Some(&manifest.digest))?;
        let config_blob = self.blob(&config)?;
        let (parsed, _): (Config, _) = config_blob.json(Some(&config.digest))?;
        let layers = layers.iter().map(|layer| {
            layer.check_layer(&blob.what)?;
            Ok((self.blob(layer)?, Some(layer.digest.clone())))
        });
        let layers = layers.collect::<Result<Vec<_>, SourceError>>()?;
        merge(&parsed, config.digest, &config_blob.what, layers, opening)
    }

    /// What a descriptor names; its digest is not checked here.
    fn blob(&self, descriptor: &Descriptor) -> Result<Blob, SourceError> {
        let digest = &descriptor.digest;
        let blob = self.files.open(&format!("blobs/{}/{}", digest.algorithm(), digest.hex()))?;
        let actual = blob.range.end - blob.range.start;
        if actual != descriptor.size {
            return Err(SourceError::Size { what: blob.what, expected: descriptor.size, actual });
        }
        Ok(blob)
    }
}

/// Puts the layers of an image over each other: what layouts and docker
/// archives have in common.
pub(crate) fn merge(
    config: &Config,
    digest: Digest,
    what: &str,
    layers: Vec<(Blob, Option<Digest>)>,
    opening: Opening,
) -> Result<ContainerImage, SourceError> {
    let unusable = |why: String| SourceError::Unusable { what: what.to_owned(), why };
    let wanted = go_name(opening.architecture);
    if config.os != "linux" || config.architecture != wanted {
        return Err(SourceError::NoSuchPlatform {
            wanted: opening.architecture,
            found: vec![format!("{}/{}", config.os, config.architecture)],
        });
    }
    if config.rootfs.kind != "layers" || config.rootfs.diff_ids.len() != layers.len() {
        let (ids, layers) = (config.rootfs.diff_ids.len(), layers.len());
        return Err(unusable(format!("it describes {ids} layers, the manifest {layers}")));
    }
    let mut merge = Merge::new(opening.limits, opening.spool);
    for ((blob, expected), diff_id) in layers.iter().zip(&config.rootfs.diff_ids) {
        merge.apply(blob, &Vouched::Digests { blob: expected.clone(), diff_id: diff_id.clone() })?;
    }
    let (tree, notes) = merge.finish()?;
    Ok(ContainerImage { tree, config: config.run(), digest, notes })
}

/// The only one, or the only one for `architecture`; nothing when several are.
fn choose(found: &[Descriptor], architecture: Architecture) -> Result<Option<Descriptor>, SourceError> {
    if found.len() > MAX_DESCRIPTORS {
        return Err(SourceError::Limit { what: "images in an index", limit: MAX_DESCRIPTORS as u64 });
    }
    let fits = |found: &&Descriptor| match &found.platform {
        Some(platform) => platform.os == "linux" && platform.architecture == go_name(architecture),
        None => true,
    };
    let mut fitting: Vec<&Descriptor> = found.iter().filter(fits).collect();
    // One image under several tags is one.
    fitting.dedup_by(|a, b| a.digest == b.digest);
    match &fitting[..] {
        [] => {
            let found = found.iter().map(Descriptor::name).collect();
            Err(SourceError::NoSuchPlatform { wanted: architecture, found })
        }
        [one] => Ok(Some((*one).clone())),
        _ => Ok(None),
    }
}

impl Descriptor {
    fn is_index(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }

    fn is_called(&self, wanted: &str) -> bool {
        let tag = self.annotations.get(TAG);
        tag.is_some_and(|tag| is_called(tag, wanted)) || wanted == self.digest.to_string()
    }

    /// For a message: a tag, a platform, or the digest.
    fn name(&self) -> String {
        match (self.annotations.get(TAG), &self.platform) {
            (Some(tag), _) => tag.clone(),
            (None, Some(platform)) => format!("{}/{}", platform.os, platform.architecture),
            (None, None) => self.digest.to_string(),
        }
    }

    /// That this is a layer which can be read. How it is compressed is seen
    /// from its bytes; encryption is not.
    fn check_layer(&self, what: &str) -> Result<(), SourceError> {
        if self.media_type.ends_with("+encrypted") || !self.media_type.contains("tar") {
            let why = format!("a layer has media type {:?}", self.media_type);
            return Err(SourceError::Unusable { what: what.to_owned(), why });
        }
        Ok(())
    }
}

/// GOARCH, which images are labelled with.
fn go_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "amd64",
        Architecture::Aarch64 => "arm64",
    }
}
