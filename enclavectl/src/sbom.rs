//! `--sbom`: the packages of the root filesystem, as CycloneDX 1.6.
//!
//! ```text
//! tree ─▶ dpkg status, apk installed ─▶ packages ─▶ components with purls
//!      └▶ os-release ───────────────────────┘
//! ```
//! Nothing is guessed: what no package database lists is not in it. Same
//! image, same bytes.

mod packages;

use std::{io, path::PathBuf};

use anyhow::Context;
use eif::rootfs::Tree;
use serde_json::{Value, json};

use crate::{
    failure::{Blame, Failure, OrBlame},
    manifest::Manifest,
    output::OutputFile,
};
use packages::{Distribution, Package};

/// A bill of materials, not yet written.
pub(crate) struct Sbom {
    path: PathBuf,
    json: Value,
}

impl Sbom {
    /// Lists the packages of `tree`.
    pub(crate) fn of(
        path: PathBuf,
        tree: &Tree,
        manifest: &Manifest,
        build_time: &str,
    ) -> Result<Sbom, Failure> {
        let found = packages::find(tree).context("cannot read the package database").or_blame(Blame::Data)?;
        for note in &found.notes {
            eprintln!("note: {note}");
        }
        let distribution = found.distribution.as_ref();
        let mut components: Vec<Value> = distribution.map(operating_system).into_iter().collect();
        components.extend(found.packages.iter().map(|package| component(package, distribution)));
        let json = json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "timestamp": build_time,
                "tools": {"components": [{
                    "type": "application",
                    "name": env!("CARGO_PKG_NAME"),
                    "version": env!("CARGO_PKG_VERSION"),
                }]},
                "component": {
                    "type": "container",
                    "bom-ref": "image",
                    "name": manifest.name,
                    "version": manifest.version,
                },
            },
            "components": components,
        });
        Ok(Sbom { path, json })
    }

    /// Writes it, whole or not at all.
    pub(crate) fn write(&self) -> Result<(), Failure> {
        write_json(&self.path, &self.json)
            .with_context(|| format!("cannot create {}", self.path.display()))
            .or_blame(Blame::CannotCreate)
    }
}

/// Writes `json` with a line end, whole or not at all.
pub(crate) fn write_json(path: &std::path::Path, json: &Value) -> io::Result<()> {
    let output = OutputFile::create(path)?;
    io::Write::write_all(&mut output.file()?, format!("{json:#}\n").as_bytes())?;
    output.publish()
}

fn operating_system(distribution: &Distribution) -> Value {
    let mut component = json!({
        "type": "operating-system",
        "bom-ref": format!("os:{}", distribution.name()),
        "name": distribution.id,
    });
    if let Some(version) = &distribution.version {
        component["version"] = json!(version);
    }
    component
}

fn component(package: &Package, distribution: Option<&Distribution>) -> Value {
    let purl = package.purl(distribution);
    let mut component = json!({
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
    });
    if let Some(maintainer) = &package.maintainer {
        component["supplier"] = json!({"name": maintainer});
    }
    if let Some(license) = &package.license {
        component["licenses"] = json!([{"license": {"name": license}}]);
    }
    component
}
