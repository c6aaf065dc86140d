//! Images as `docker save` writes them: a tar archive whose manifest.json names
//! configurations and layers.

use std::{fs::File, io, path::Path};

use serde::Deserialize;

use super::{
    ContainerImage, Digest, Opening, SourceError,
    archive::{Files, is_called},
    oci,
};

const ARCHIVE: &str = "a docker archive";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Opens an image of archive `path`. `reference` chooses among several: a tag,
/// or a name with a tag. `second_spool` makes another empty file, needed when
/// the archive itself is compressed.
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

fn open_files(
    files: &Files,
    reference: Option<&str>,
    opening: Opening,
) -> Result<ContainerImage, SourceError> {
    let absent = || SourceError::NotAnImage {
        path: files.path().to_owned(),
        expected: ARCHIVE,
        missing: "manifest.json",
    };
    let (manifests, _): (Vec<Manifest>, _) = files.find("manifest.json")?.ok_or_else(absent)?.json(None)?;
    let manifest = choose(&manifests, reference)?;

    let blob = files.open(&manifest.config)?;
    // The archive names it by its digest: `HEX.json`, or `blobs/sha256/HEX`.
    let name = manifest.config.trim_end_matches(".json");
    let named = name.rsplit_once('/').map_or(name, |(_, name)| name);
    let expected = format!("sha256:{named}").parse::<Digest>().ok();
    let (config, bytes) = blob.json(expected.as_ref())?;
    let layers = manifest.layers.iter().map(|layer| Ok((files.open(layer)?, None)));
    let layers = layers.collect::<Result<Vec<_>, SourceError>>()?;
    oci::merge(&config, Digest::sha256(&bytes), &blob.what, layers, opening)
}

fn choose<'a>(manifests: &'a [Manifest], reference: Option<&str>) -> Result<&'a Manifest, SourceError> {
    let found = || manifests.iter().flat_map(Manifest::tags).cloned().collect();
    let mut fitting =
        manifests.iter().filter(|manifest| reference.is_none_or(|wanted| manifest.is_called(wanted)));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(SourceError::Ambiguous { found: found() }),
        (None, _) => {
            Err(SourceError::NoSuchImage { wanted: reference.unwrap_or("at all").to_owned(), found: found() })
        }
    }
}

impl Manifest {
    fn tags(&self) -> impl Iterator<Item = &String> {
        self.repo_tags.iter().flatten()
    }

    fn is_called(&self, wanted: &str) -> bool {
        self.tags().any(|tag| is_called(tag, wanted))
    }
}
