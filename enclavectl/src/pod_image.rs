//! `enclavectl build --pod-image`: a container image that runs the enclave.
//!
//! ```text
//! /enclave-shim         the shim, a static program; `enclave-shim run` is the entrypoint
//! /enclave/image.eif    what it boots
//! /enclave/shim.yaml    how
//! ```
//! Nothing else: no shell, no libraries. One plain layer, times and owners fixed,
//! so that the same files give the same digest. Written as an OCI image layout
//! (directory), as an archive that is a layout and a docker archive at once, or
//! straight into a registry.

mod local;
mod tarball;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::ArgGroup;
use eif::{Architecture, Measurements, boot_files::open_agent, rootfs::Digest};
use oci_client::Reference;
use serde_json::{Value, json};

use self::tarball::{Content, Tarball};
use crate::{
    failure::{Blame, Failure, OrBlame},
    manifest::Manifest,
    registry::{Push, PushedImage},
};

/// Beside this program, when `--shim` is not given.
const SHIM_NAME: &str = "enclave-shim";
/// No name in any system's password file; distroless images use it, too.
const USER: &str = "65532:65532";
/// Where kubelet's probes and attestation clients reach the shim.
const HTTP_PORT: u16 = 9090;

/// The container image to write besides the enclave image.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("pod").multiple(true).args(["pod_image", "pod_rootfs", "push"]))]
pub(crate) struct PodImageArgs {
    /// Container image to write: PATH.tar becomes an archive (OCI layout and
    /// docker archive), any other path an OCI image layout in a new directory
    #[arg(long, value_name = "PATH")]
    pod_image: Option<PathBuf>,
    /// New directory to write the container image's files into, for another
    /// builder to make an image of
    #[arg(long, value_name = "DIR")]
    pod_rootfs: Option<PathBuf>,
    /// Name in a registry to send the container image to, with credentials of
    /// Docker's configuration; the tag is `latest` unless given
    #[arg(long, value_name = "NAME[:TAG]", value_parser = push_name)]
    push: Option<Reference>,
    /// Shim, a static program [default: enclave-shim beside enclavectl]
    #[arg(long, value_name = "FILE", requires = "pod")]
    shim: Option<PathBuf>,
    /// The shim's configuration [default: the manifest's ingress ports, HTTP on port 9090]
    #[arg(long, value_name = "FILE", requires = "pod")]
    shim_config: Option<PathBuf>,
}

/// Everything that was asked for and found, before anything is built.
pub(crate) struct PodImage {
    image: Option<PathBuf>,
    rootfs: Option<PathBuf>,
    push: Option<Push>,
    shim: File,
    config: Vec<u8>,
}

impl PodImageArgs {
    /// Opens the inputs; nothing when no container image is wanted.
    pub(crate) fn open(
        &self,
        manifest: &Manifest,
        architecture: Architecture,
        plain_http: bool,
    ) -> Result<Option<PodImage>, Failure> {
        if self.pod_image.is_none() && self.pod_rootfs.is_none() && self.push.is_none() {
            return Ok(None);
        }
        let shim_path = crate::build::program_path(self.shim.as_deref(), SHIM_NAME, "--shim")?;
        let shim = open_agent(&shim_path, architecture)?;
        let config = match &self.shim_config {
            Some(path) => {
                let describe = || format!("cannot read the shim's configuration {}", path.display());
                fs::read(path).with_context(describe).or_blame(Blame::NoInput)?
            }
            None => default_config(manifest),
        };
        let directories = self.pod_image.iter().filter(|path| !is_archive(path)).chain(&self.pod_rootfs);
        for path in directories {
            if fs::read_dir(path).is_ok_and(|mut found| found.next().is_some()) {
                let error = anyhow::anyhow!("{} is there and not empty", path.display());
                return Err(Failure::new(Blame::CannotCreate, error));
            }
        }
        // A registry that will not have it is found out before anything is built.
        let push = self.push.as_ref().map(|name| Push::open(name, plain_http)).transpose()?;
        let (image, rootfs) = (self.pod_image.clone(), self.pod_rootfs.clone());
        Ok(Some(PodImage { image, rootfs, push, shim, config }))
    }

    /// The name that pulls the image of this digest, if it was sent anywhere.
    pub(crate) fn pushed_as(&self, digest: Option<&str>) -> Option<String> {
        Some(format!("{}@{}", self.push.as_ref()?.whole(), digest?))
    }
}

fn push_name(text: &str) -> Result<Reference, String> {
    let reference: Reference = text.parse().map_err(|error| format!("{error}"))?;
    if reference.digest().is_some() {
        return Err("a digest cannot be chosen: the image has its own".to_owned());
    }
    Ok(reference)
}

/// Each ingress port under its own number, for clients of the pod.
fn default_config(manifest: &Manifest) -> Vec<u8> {
    let mut yaml = format!("http:\n  listen: 0.0.0.0:{HTTP_PORT}\n");
    if !manifest.ingress.is_empty() {
        yaml += "ingress:\n";
    }
    for port in &manifest.ingress {
        yaml += &format!("- listen: 0.0.0.0:{port}\n  port: {port}\n");
        if manifest.proxy_protocol.contains(port) {
            yaml += "  send_proxy: true\n";
        }
    }
    yaml.into_bytes()
}

fn is_archive(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tar")
}

/// What goes into the container image besides the inputs.
pub(crate) struct Built<'a> {
    pub(crate) eif: &'a File,
    pub(crate) measurements: &'a Measurements,
    pub(crate) architecture: Architecture,
    /// RFC 3339.
    pub(crate) build_time: &'a str,
}

impl PodImage {
    /// Sends and writes the container image, whole or not at all. Gives the
    /// digest of its manifest, by which a registry knows it.
    pub(crate) fn write(&self, manifest: &Manifest, built: &Built<'_>) -> Result<Digest, Failure> {
        let describe = || "cannot make the container image".to_owned();
        let layer = self.layer(built.eif).with_context(describe).or_blame(Blame::Io)?;
        let image = Image::describe(
            manifest,
            built,
            layer.digest().with_context(describe).or_blame(Blame::Io)?,
            layer.len(),
        );
        if let Some(push) = &self.push {
            push.send(&image.pushed(&layer), &|| layer.reader())?;
        }
        let cannot = |path: &Path| format!("cannot create {}", path.display());
        if let Some(path) = &self.image {
            let written = match is_archive(path) {
                true => local::archive(path, &image, &layer),
                false => local::layout(path, &image, &layer),
            };
            written.with_context(|| cannot(path)).or_blame(Blame::CannotCreate)?;
        }
        if let Some(path) = &self.rootfs {
            local::files(path, &layer).with_context(|| cannot(path)).or_blame(Blame::CannotCreate)?;
        }
        Ok(image.manifest.digest)
    }

    fn layer(&self, eif: &File) -> io::Result<Tarball> {
        let mut layer = Tarball::default();
        layer.directory("enclave/");
        layer.file("enclave/image.eif", 0o644, Content::of_file(eif)?);
        layer.file("enclave/shim.yaml", 0o644, Content::Bytes(self.config.clone()));
        layer.file("enclave-shim", 0o755, Content::of_file(&self.shim)?);
        Ok(layer)
    }
}

/// The small files of an image.
struct Image {
    /// Name and content of all but the layer.
    blobs: Vec<(String, Vec<u8>)>,
    layer: Digest,
    config: Blob,
    manifest: Blob,
}

struct Blob {
    digest: Digest,
    bytes: Vec<u8>,
}

impl Blob {
    fn of(value: &Value) -> Blob {
        let bytes = value.to_string().into_bytes();
        Blob { digest: Digest::sha256(&bytes), bytes }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest.to_string(), "size": self.bytes.len()})
    }
}

impl Image {
    fn describe(app: &Manifest, built: &Built<'_>, layer: Digest, layer_len: u64) -> Image {
        let platform = json!({"architecture": go_name(built.architecture), "os": "linux"});
        let config = Blob::of(&config(app, built, &layer));
        let manifest = Blob::of(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer.to_string(),
                "size": layer_len,
            }],
        }));
        let mut descriptor = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
        descriptor["platform"] = platform;
        let tag = reference(app);
        if let Some((_, tag)) = &tag {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor],
        });
        // What `docker load` reads; it takes the same blobs.
        let docker = json!([{
            "Config": blob_name(&config.digest),
            "RepoTags": tag.map(|(name, tag)| vec![format!("{name}:{tag}")]),
            "Layers": [blob_name(&layer)],
        }]);
        let blobs = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
            ("manifest.json".to_owned(), docker.to_string().into_bytes()),
            (blob_name(&config.digest), config.bytes.clone()),
            (blob_name(&manifest.digest), manifest.bytes.clone()),
        ];
        Image { blobs, layer, config, manifest }
    }

    fn pushed(&self, layer: &Tarball) -> PushedImage<'_> {
        PushedImage {
            manifest: &self.manifest.bytes,
            digest: &self.manifest.digest,
            config: &self.config.bytes,
            config_digest: &self.config.digest,
            layer_digest: &self.layer,
            layer_len: layer.len(),
        }
    }

    fn files(&self) -> impl Iterator<Item = (String, &Vec<u8>)> {
        self.blobs.iter().map(|(name, bytes)| (name.clone(), bytes))
    }
}

/// OCI image specification, config.md. The labels tell what the enclave
/// measures to, for whoever writes a policy; nothing believes them.
fn config(app: &Manifest, built: &Built<'_>, layer: &Digest) -> Value {
    let exposed: serde_json::Map<String, Value> =
        app.ingress.iter().chain([&HTTP_PORT]).map(|port| (format!("{port}/tcp"), json!({}))).collect();
    json!({
        "architecture": go_name(built.architecture),
        "os": "linux",
        "created": built.build_time,
        "config": {
            "Entrypoint": ["/enclave-shim", "run"],
            "User": USER,
            "WorkingDir": "/",
            "ExposedPorts": exposed,
            "Labels": {
                "org.opencontainers.image.title": app.name,
                "org.opencontainers.image.version": app.version,
                "enclave-shim.pcr0": built.measurements.pcr0.to_string(),
                "enclave-shim.pcr1": built.measurements.pcr1.to_string(),
                "enclave-shim.pcr2": built.measurements.pcr2.to_string(),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.to_string()]},
        "history": [{"created": built.build_time, "created_by": "enclavectl build --pod-image"}],
    })
}

/// Name and tag, where the manifest's name and version can be that in a
/// registry (distribution specification, "Pulling manifests").
fn reference(app: &Manifest) -> Option<(&str, &str)> {
    let lower = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let name = app.name.bytes().all(|byte| lower(byte) || matches!(byte, b'.' | b'_' | b'-' | b'/'))
        && app.name.split(['/', '.', '_', '-']).all(|part| !part.is_empty());
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let tag = app.version.len() <= 128
        && app.version.bytes().next().is_some_and(word)
        && app.version.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    (name && tag).then_some((&app.name, &app.version))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// GOARCH, which images are labelled with.
fn go_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "amd64",
        Architecture::Aarch64 => "arm64",
    }
}
