//! `--provenance`: what an image was made of and by what, so that anybody can
//! make it again and compare. An in-toto Statement with a SLSA provenance
//! (slsa.dev/spec/v1.0/provenance), without the clock: same build, same bytes.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    path::Path,
};

use anyhow::Context;
use eif::{Image, Measurements, rootfs::Digest};
use serde_json::{Value, json};

use crate::{
    failure::{Blame, Failure, OrBlame},
    sbom::write_json,
};

/// Names the meaning of the parameters below.
const BUILD_TYPE: &str = "urn:enclave-shim:build:1";

/// What goes into an image, by digest.
#[derive(Default)]
pub(crate) struct Materials(Vec<Value>);

impl Materials {
    /// The file at `path`.
    pub(crate) fn add_path(&mut self, name: &str, path: &Path) -> io::Result<()> {
        self.add(name, &Digest::sha256_of(File::open(path)?)?);
        Ok(())
    }

    /// A file that is read from its start to its end; its position is as
    /// before when this is done.
    pub(crate) fn add_file(&mut self, name: &str, file: &File) -> io::Result<()> {
        let mut reading = file;
        let position = reading.stream_position()?;
        reading.rewind()?;
        let digest = Digest::sha256_of(reading)?;
        reading.seek(SeekFrom::Start(position))?;
        self.add(name, &digest);
        Ok(())
    }

    pub(crate) fn add(&mut self, name: &str, digest: &Digest) {
        self.0.push(json!({"name": name, "digest": by_algorithm(digest)}));
    }
}

/// What a build was asked for.
pub(crate) struct Parameters<'a> {
    pub(crate) cmdline: &'a str,
    pub(crate) kernel_version: &'a str,
    pub(crate) architecture: String,
    /// RFC 3339.
    pub(crate) build_time: &'a str,
    pub(crate) settings: &'a [u8],
}

/// Writes the statement about the finished image in `eif`.
pub(crate) fn write(
    path: &Path,
    output: &Path,
    eif: &File,
    measurements: &Measurements,
    materials: Materials,
    parameters: &Parameters<'_>,
) -> Result<(), Failure> {
    let describe = || format!("cannot create {}", path.display());
    let mut whole = eif.try_clone().with_context(describe).or_blame(Blame::Io)?;
    whole.rewind().with_context(describe).or_blame(Blame::Io)?;
    let digest = Digest::sha256_of(whole).with_context(describe).or_blame(Blame::Io)?;
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": by_algorithm(&digest)}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "cmdline": parameters.cmdline,
                    "architecture": parameters.architecture,
                    "buildTime": parameters.build_time,
                },
                "internalParameters": {
                    "kernelVersion": parameters.kernel_version,
                    "settings": serde_json::from_slice::<Value>(parameters.settings).or_blame(Blame::Io)?,
                },
                "resolvedDependencies": materials.0,
            },
            "runDetails": {
                "builder": {
                    "id": format!("urn:enclave-shim:{}", env!("CARGO_PKG_NAME")),
                    "version": {(env!("CARGO_PKG_NAME")): env!("CARGO_PKG_VERSION")},
                },
                "metadata": {},
                "byproducts": [
                    {"name": "measurements", "annotations": measurements},
                    {"name": "sections", "annotations": {"sections": sections(eif.try_clone().or_blame(Blame::Io)?)?}},
                ],
            },
        },
    });
    write_json(path, &statement).with_context(describe).or_blame(Blame::CannotCreate)
}

/// Kind, size and digest of each section's payload, in file order.
fn sections(eif: File) -> Result<Vec<Value>, Failure> {
    let image = Image::read(eif)?;
    let section = |section: &eif::Section| {
        let digest = Digest::sha256_of(image.reader(section))?;
        Ok(json!({"kind": section.kind.to_string(), "size": section.len(), "digest": by_algorithm(&digest)}))
    };
    let described: io::Result<Vec<_>> = image.layout().sections().iter().map(section).collect();
    described.context("cannot read the image back").or_blame(Blame::Io)
}

fn by_algorithm(digest: &Digest) -> Value {
    json!({digest.algorithm(): digest.hex()})
}
