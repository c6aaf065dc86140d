//! Images in the OCI image layout, as a directory or an archive of one
//! (OCI image specification: image-layout.md, image-index.md, manifest.md).
//!
//! ```text
//! oci-layout, index.json ─┐
//! a registry's document ──┴▶ (index ─▶)* manifest ─▶ config
//!                                            └─────▶ layers, lowest first
//! ```

use std::{error::Error, fs::File, io, path::Path};

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

/// An index or a manifest: what a registry has under a name.
#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
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
    open_files(&Files::in_directory(path), reference, opening)
}

/// Opens an image of the layout in the tar archive `path`. `second_spool` makes
/// another empty file, needed when the archive itself is compressed.
pub fn open_archive(
    path: &Path,
    reference: Option<&str>,
    opening: Opening,
    second_spool: &mut dyn FnMut() -> io::Result<File>,
) -> Result<ContainerImage, SourceError> {
    open_files(&Files::in_archive(path, &opening.limits, second_spool)?, reference, opening)
}

/// As [`open_archive`], for an archive that is open already; `name` is for messages.
pub fn read_archive(
    file: File,
    name: &Path,
    reference: Option<&str>,
    opening: Opening,
    second_spool: &mut dyn FnMut() -> io::Result<File>,
) -> Result<ContainerImage, SourceError> {
    open_files(&Files::of_archive(file, name, &opening.limits, second_spool)?, reference, opening)
}

/// Something that a document names by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Of all its bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// An index or manifest; registries keep these apart from other blobs.
    pub is_manifest: bool,
}

/// Where blobs come from that are not in files: a registry.
pub trait Blobs {
    /// A file for each that is wanted, in the same order, with its bytes and
    /// nothing else. Sizes and digests are compared by the caller.
    fn fetch(&self, wanted: &[Wanted]) -> Result<Vec<File>, Box<dyn Error + Send + Sync>>;
}

/// Opens the image that `document`, an index or a manifest, describes; it must
/// have the digest `expected`, if one is known. What it names comes from
/// `blobs`. `name` is for messages.
pub fn open_document(
    name: &str,
    document: &[u8],
    expected: Option<&Digest>,
    blobs: &dyn Blobs,
    opening: Opening,
) -> Result<ContainerImage, SourceError> {
    let parsed: Document = super::archive::parse_json(name, document, expected)?;
    let place = Place::Elsewhere { name, blobs };
    let manifest = match parsed {
        // What one reader takes for an index and another for a manifest is two images (CVE-2021-41190).
        Document { manifests: Some(_), layers: Some(_), .. } => {
            let why = "it is an index and a manifest at once".to_owned();
            return Err(SourceError::Unusable { what: name.to_owned(), why });
        }
        Document { manifests: Some(manifests), .. } => {
            let found = manifests.iter().map(|one| one.digest.to_string()).collect();
            let chosen = place.manifest(manifests, opening.architecture)?;
            place.read_manifest(&chosen.ok_or(SourceError::Ambiguous { found })?)?
        }
        Document { config: Some(config), layers: Some(layers), .. } => Manifest { config, layers },
        Document { .. } => {
            let why = "it is neither an index nor a manifest of an image".to_owned();
            return Err(SourceError::Unusable { what: name.to_owned(), why });
        }
    };
    place.image(manifest, name, opening)
}

fn open_files(
    files: &Files,
    reference: Option<&str>,
    opening: Opening,
) -> Result<ContainerImage, SourceError> {
    let absent =
        |missing| SourceError::NotAnImage { path: files.path().to_owned(), expected: LAYOUT, missing };
    let marker = files.find("oci-layout")?.ok_or_else(|| absent("oci-layout"))?;
    let (Marker { version }, _) = marker.json(None)?;
    if !version.starts_with("1.") {
        let why = format!("its layout has version {version:?}");
        return Err(SourceError::Unusable { what: marker.what, why });
    }
    let (Index { manifests }, _) =
        files.find("index.json")?.ok_or_else(|| absent("index.json"))?.json(None)?;
    let tags = manifests.iter().map(Descriptor::name).collect::<Vec<_>>();
    let named: Vec<Descriptor> = match reference {
        None => manifests,
        Some(wanted) => manifests.into_iter().filter(|found| found.is_called(wanted)).collect(),
    };
    if let (Some(wanted), []) = (reference, &named[..]) {
        return Err(SourceError::NoSuchImage { wanted: wanted.to_owned(), found: tags });
    }
    let place = Place::Files(files);
    let chosen = place.manifest(named, opening.architecture)?;
    let chosen = chosen.ok_or(SourceError::Ambiguous { found: tags })?;
    place.image(place.read_manifest(&chosen)?, &place.name(), opening)
}

/// Where the blobs of an image lie.
enum Place<'a> {
    Files(&'a Files),
    Elsewhere { name: &'a str, blobs: &'a dyn Blobs },
}

impl Place<'_> {
    fn name(&self) -> String {
        match self {
            Place::Files(files) => files.path().display().to_string(),
            Place::Elsewhere { name, .. } => (*name).to_owned(),
        }
    }

    /// The one manifest that is meant; nothing when several may be.
    fn manifest(
        &self,
        mut at: Vec<Descriptor>,
        architecture: Architecture,
    ) -> Result<Option<Descriptor>, SourceError> {
        for _ in 0..MAX_DEPTH {
            let Some(chosen) = choose(&at, architecture)? else { return Ok(None) };
            if !chosen.is_index() {
                return Ok(Some(chosen));
            }
            let (Index { manifests }, _) = self.blob(&chosen, true)?.json(Some(&chosen.digest))?;
            at = manifests;
        }
        let why = format!("its indexes are nested more than {MAX_DEPTH} deep");
        Err(SourceError::Unusable { what: self.name(), why })
    }

    fn read_manifest(&self, manifest: &Descriptor) -> Result<Manifest, SourceError> {
        Ok(self.blob(manifest, true)?.json(Some(&manifest.digest))?.0)
    }

    fn image(&self, manifest: Manifest, what: &str, opening: Opening) -> Result<ContainerImage, SourceError> {
        let Manifest { config, layers } = manifest;
        let config_blob = self.blob(&config, false)?;
        let (parsed, _): (Config, _) = config_blob.json(Some(&config.digest))?;
        // Before anything large is fetched.
        check(&parsed, &config_blob.what, layers.len(), &opening)?;
        let mut left = opening.limits.total;
        for layer in &layers {
            layer.check_layer(what)?;
            left = left
                .checked_sub(layer.size)
                .ok_or(SourceError::Limit { what: "bytes in the layers", limit: opening.limits.total })?;
        }
        let blobs = self.blobs(&layers, false)?;
        let digests = layers.iter().map(|layer| Some(layer.digest.clone()));
        merge(&parsed, config.digest, &config_blob.what, blobs.into_iter().zip(digests).collect(), opening)
    }

    fn blob(&self, descriptor: &Descriptor, is_manifest: bool) -> Result<Blob, SourceError> {
        let mut blobs = self.blobs(std::slice::from_ref(descriptor), is_manifest)?;
        blobs.pop().ok_or_else(|| self.incomplete())
    }

    /// What descriptors name; the digests are not checked here.
    fn blobs(&self, descriptors: &[Descriptor], is_manifest: bool) -> Result<Vec<Blob>, SourceError> {
        let blobs = match self {
            Place::Files(files) => {
                let open = |wanted: &Descriptor| {
                    files.open(&format!("blobs/{}/{}", wanted.digest.algorithm(), wanted.digest.hex()))
                };
                descriptors.iter().map(open).collect::<Result<Vec<_>, _>>()?
            }
            Place::Elsewhere { name, blobs } => {
                let wanted: Vec<_> = descriptors
                    .iter()
                    .map(|found| Wanted { digest: found.digest.clone(), size: found.size, is_manifest })
                    .collect();
                let fetched = blobs.fetch(&wanted);
                let fetched =
                    fetched.map_err(|source| SourceError::Fetch { what: (*name).to_owned(), source })?;
                let blob = |(file, wanted): (File, Wanted)| {
                    let len = file.metadata().map_err(SourceError::Spool)?.len();
                    Ok(Blob { what: format!("{} of {name}", wanted.digest), file, range: 0..len })
                };
                fetched.into_iter().zip(wanted).map(blob).collect::<Result<Vec<_>, SourceError>>()?
            }
        };
        if blobs.len() != descriptors.len() {
            return Err(self.incomplete());
        }
        for (blob, descriptor) in blobs.iter().zip(descriptors) {
            let (expected, actual) = (descriptor.size, blob.range.end - blob.range.start);
            if expected != actual {
                return Err(SourceError::Size { what: blob.what.clone(), expected, actual });
            }
        }
        Ok(blobs)
    }

    fn incomplete(&self) -> SourceError {
        SourceError::Unusable { what: self.name(), why: "a blob is missing".to_owned() }
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
    check(config, what, layers.len(), &opening)?;
    let mut merge = Merge::new(opening.limits, opening.spool);
    for ((blob, expected), diff_id) in layers.iter().zip(&config.rootfs.diff_ids) {
        merge.apply(blob, &Vouched::Digests { blob: expected.clone(), diff_id: diff_id.clone() })?;
    }
    let (tree, notes) = merge.finish()?;
    Ok(ContainerImage { tree, config: config.run(), digest, notes })
}

/// That the configuration is of such an image.
fn check(config: &Config, what: &str, layers: usize, opening: &Opening) -> Result<(), SourceError> {
    let unusable = |why: String| SourceError::Unusable { what: what.to_owned(), why };
    let wanted = go_name(opening.architecture);
    if config.os != "linux" || config.architecture != wanted {
        return Err(SourceError::NoSuchPlatform {
            wanted: opening.architecture,
            found: vec![format!("{}/{}", config.os, config.architecture)],
        });
    }
    if config.rootfs.kind != "layers" || config.rootfs.diff_ids.len() != layers {
        let ids = config.rootfs.diff_ids.len();
        return Err(unusable(format!("it describes {ids} layers, the manifest {layers}")));
    }
    if layers > opening.limits.layers {
        return Err(SourceError::Limit { what: "layers", limit: opening.limits.layers as u64 });
    }
    Ok(())
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
