//! `enclavectl build`: a container image, a kernel and a manifest become an
//! enclave image. Same inputs, same bytes.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use eif::{
    Architecture, BuildMetadata, ImageWriter, Measurements, Metadata, WriteError,
    boot_files::{BootFileError, Kernel, open_agent, open_kernel},
    ramdisk::{self, RamdiskError, Workload},
    rootfs::{Digest, Limits},
    signature::{ImageSigner, SignError},
};
use serde::Serialize;

use crate::{
    failure::{Blame, Failure, OrBlame},
    manifest::Manifest,
    output::{OutputFile, directory},
    pod_image::{Built, PodImageArgs},
    progress,
    provenance::{self, Materials},
    report::{MeasurementsReport, print_json},
    sbom::Sbom,
    signing::{Signing, SigningArgs},
    source::{Access, Opened, Source},
};

/// AWS's command lines for its own kernels (aws-nitro-enclaves-cli, blobs/).
const CMDLINE_X86_64: &str = "reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux \
                              i8042.nopnp i8042.dumbkbd random.trust_cpu=on";
const CMDLINE_AARCH64: &str =
    "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on root=/dev/ram0";
/// Beside this program, when `--agent` is not given.
const AGENT_NAME: &str = "enclave-app";

/// Builds an enclave image from a container image or a root filesystem, and
/// prints what it measures to.
///
/// The same inputs give the same bytes. The build time in the image's metadata
/// (which is not measured) is SOURCE_DATE_EPOCH, or 1970-01-01T00:00:00Z.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// Kernel to boot: bzImage (x86_64) or uncompressed Image (aarch64)
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Kernel command line [default: AWS's for the kernel's architecture]
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Agent, a static program that becomes /init [default: enclave-app beside enclavectl]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Manifest of the application
    #[arg(long, value_name = "FILE")]
    app: PathBuf,
    /// Image to write; it appears whole or not at all
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    signing: SigningArgs,
    /// Write what the image was made of, by digest, as a SLSA provenance
    #[arg(long, value_name = "FILE")]
    provenance: Option<PathBuf>,
    /// Write the packages of the root filesystem as a CycloneDX bill of materials
    #[arg(long, value_name = "FILE")]
    sbom: Option<PathBuf>,
    #[command(flatten)]
    pod_image: PodImageArgs,
    /// Ask registries without TLS also when they are on other machines: who is
    /// between can read credentials and contents, though not change contents that
    /// are named by digest
    #[arg(long)]
    plain_http: bool,
}

#[derive(Debug, clap::Args)]
struct SourceArgs {
    #[command(flatten)]
    which: WhichSource,
    /// Bytes that an image may have after decompression
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().total)]
    max_bytes: u64,
    /// Entries that an image's layers may have together
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().entries)]
    max_entries: u64,
    /// Window of zstd in bytes that a layer may ask for
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().window)]
    max_window: u64,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct WhichSource {
    /// Directory that becomes the workload's root filesystem
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Container image or root filesystem: `docker://NAME[:TAG][@DIGEST]` in a registry,
    /// `docker-daemon:NAME[:TAG]`, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`,
    /// `docker-archive:FILE[:TAG]`, `rootfs:DIR` or `tar:FILE`; of files `@DIGEST` in
    /// place of `:TAG` [default: the manifest's `image`]
    #[arg(long, value_name = "SOURCE")]
    image: Option<Source>,
}

impl SourceArgs {
    fn limits(&self) -> Limits {
        Limits {
            total: self.max_bytes,
            entries: self.max_entries,
            window: self.max_window,
            ..Limits::default()
        }
    }

    /// The flag's, or the manifest's, whose paths are meant from its own directory.
    fn source(&self, manifest: &Manifest, path: &Path) -> Result<Source, Failure> {
        match (&self.which, &manifest.image) {
            (WhichSource { image: Some(source), .. }, _) => Ok(source.clone()),
            (WhichSource { rootfs: Some(rootfs), .. }, _) => Ok(Source::Directory(rootfs.clone())),
            (_, Some(image)) => {
                let describe = || format!("cannot use image {image:?} of manifest {}", path.display());
                let source: Source = image.parse().with_context(describe).or_blame(Blame::Usage)?;
                Ok(source.relative_to(directory(path)))
            }
            (_, None) => {
                let error = anyhow!("--image or --rootfs is required: {} names no image", path.display());
                Err(Failure::new(Blame::Usage, error))
            }
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BuildReport {
    measurements: MeasurementsReport,
    /// Digest of the container image's manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_image: Option<String>,
    /// Where it was sent: name, tag and digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pushed: Option<String>,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let build_time = build_time(env::var("SOURCE_DATE_EPOCH").ok().as_deref()).or_blame(Blame::Usage)?;
    let manifest = read_manifest(&args.app)?;
    let signing = args.signing.open()?;
    let kernel = open_kernel(&args.kernel)?;
    let agent_path = program_path(args.agent.as_deref(), AGENT_NAME, "--agent")?;
    let agent = open_agent(&agent_path, kernel.architecture)?;
    let source = args.source.source(&manifest, &args.app)?;
    let pod_image = args.pod_image.open(&manifest, kernel.architecture, args.plain_http)?;
    let describe = || format!("cannot create {}", args.output.display());
    let output = OutputFile::create(&args.output).with_context(describe).or_blame(Blame::CannotCreate)?;

    let access = Access {
        limits: args.source.limits(),
        scratch: directory(&args.output),
        plain_http: args.plain_http,
    };
    let Opened { tree, config, notes, digest } = source.open(kernel.architecture, &access)?;
    for note in notes {
        eprintln!("note: {note}");
    }
    let settings = manifest
        .settings(&config)
        .to_json()
        .with_context(|| format!("cannot use manifest {}", args.app.display()))
        .or_blame(Blame::Usage)?;
    let sbom = args.sbom.map(|path| Sbom::of(path, &tree, &manifest, &build_time)).transpose()?;
    let workload = Workload::of(tree);

    let architecture = kernel.architecture;
    let kernel_version = kernel.version.clone();
    let materials = args.provenance.as_ref().map(|_| materials(&args.app, &kernel, &agent, digest.as_ref()));
    let materials = materials.transpose().context("cannot read the inputs").or_blame(Blame::Io)?;
    let metadata = metadata(&manifest, build_time.clone(), &kernel);
    let cmdline = args.cmdline.as_deref().unwrap_or(default_cmdline(kernel.architecture));
    let signer = signing.as_ref().map(Signing::signer);
    let writing = Writing { cmdline, metadata: &metadata, settings: &settings, signer: signer.as_ref() };
    let measurements = write(&output, kernel, (agent, &agent_path), &workload, &writing)
        .map_err(BuildError::into_failure)?;
    let pod_image = match pod_image {
        Some(pod_image) => {
            let eif = &output.file().with_context(describe).or_blame(Blame::Io)?;
            let built = Built { eif, measurements: &measurements, architecture, build_time: &build_time };
            Some(pod_image.write(&manifest, &built)?.to_string())
        }
        None => None,
    };
    if let (Some(path), Some(materials)) = (&args.provenance, materials) {
        let eif = output.file().with_context(describe).or_blame(Blame::Io)?;
        let parameters = provenance::Parameters {
            cmdline,
            kernel_version: &kernel_version,
            architecture: architecture.to_string(),
            build_time: &build_time,
            settings: &settings,
        };
        provenance::write(path, &args.output, eif, &measurements, materials, &parameters)?;
    }
    sbom.map_or(Ok(()), |sbom| sbom.write())?;
    output.publish().with_context(describe).or_blame(Blame::CannotCreate)?;

    let pushed = args.pod_image.pushed_as(pod_image.as_deref());
    print_json(&BuildReport { measurements: measurements.into(), pod_image, pushed })?;
    Ok(ExitCode::SUCCESS)
}

/// The inputs by their digests.
fn materials(
    manifest: &Path,
    kernel: &Kernel,
    agent: &fs::File,
    image: Option<&Digest>,
) -> io::Result<Materials> {
    let mut materials = Materials::default();
    materials.add_file("kernel", &kernel.file)?;
    materials.add_file("agent", agent)?;
    materials.add_path("manifest", manifest)?;
    image.iter().for_each(|digest| materials.add("container image configuration", digest));
    Ok(materials)
}

/// What goes into an image besides files.
struct Writing<'a> {
    cmdline: &'a str,
    metadata: &'a Metadata,
    /// The agent's.
    settings: &'a [u8],
    signer: Option<&'a ImageSigner<'a>>,
}

fn write(
    output: &OutputFile,
    mut kernel: Kernel,
    (mut agent, agent_path): (fs::File, &Path),
    workload: &Workload,
    &Writing { cmdline, metadata, settings, signer }: &Writing<'_>,
) -> Result<Measurements, BuildError> {
    let file = output.file().map_err(WriteError::Output)?;
    let mut writer = ImageWriter::create(file, kernel.architecture, &mut kernel.file, cmdline, metadata)?;
    writer.generate_ramdisk(|ramdisk| {
        ramdisk::write_agent(&mut agent, agent_path, ramdisk).map(drop).map_err(BuildError::from)
    })?;
    let packing = progress::bar("packing", workload.bytes());
    writer.generate_ramdisk(|ramdisk| {
        workload.write(settings, ramdisk, &|bytes| packing.inc(bytes)).map(drop).map_err(BuildError::from)
    })?;
    packing.finish_and_clear();
    let measuring = progress::bar("measuring", 0);
    let (_, measurements) =
        writer.finish_with(signer, |total| measuring.set_length(total), &|bytes| measuring.inc(bytes))?;
    measuring.finish_and_clear();
    Ok(measurements)
}

/// Why [`write()`] failed.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Ramdisk(#[from] RamdiskError),
}

impl BuildError {
    fn into_failure(self) -> Failure {
        match self {
            BuildError::Write(error) => error.into(),
            BuildError::Ramdisk(error) => error.into(),
        }
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Failure {
        let blame = match error {
            WriteError::LongCmdline { .. }
            | WriteError::NulInCmdline
            | WriteError::LongMetadata { .. }
            | WriteError::Metadata(_) => Blame::Usage,
            WriteError::EmptyKernel
            | WriteError::NoRamdisk
            | WriteError::TooManyRamdisks
            | WriteError::OldVersion { .. } => Blame::Data,
            // A key that is far away, or not the certificate's.
            WriteError::Sign(SignError::Key(_)) => Blame::Io,
            WriteError::Sign(_) => Blame::Data,
            WriteError::Input(error) => return error.into(),
            WriteError::Kernel(_)
            | WriteError::Ramdisk { .. }
            | WriteError::Output(_)
            | WriteError::ReadBack(_) => Blame::Io,
        };
        Failure::new(blame, error)
    }
}

impl From<RamdiskError> for Failure {
    fn from(error: RamdiskError) -> Failure {
        let blame = match error {
            RamdiskError::Read { .. } => Blame::NoInput,
            RamdiskError::TooLarge { .. } | RamdiskError::Changed { .. } | RamdiskError::LongPath { .. } => {
                Blame::Data
            }
            RamdiskError::Output(_) => Blame::Io,
        };
        Failure::new(blame, error)
    }
}

impl From<BootFileError> for Failure {
    fn from(error: BootFileError) -> Failure {
        let blame = if matches!(error, BootFileError::Read { .. }) { Blame::NoInput } else { Blame::Data };
        Failure::new(blame, error)
    }
}

fn read_manifest(path: &Path) -> Result<Manifest, Failure> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read manifest {}", path.display()))
        .or_blame(Blame::NoInput)?;
    Manifest::parse(&text)
        .with_context(|| format!("cannot use manifest {}", path.display()))
        .or_blame(Blame::Usage)
}

/// The program that a flag names, or the one of this name beside this program.
pub(crate) fn program_path(given: Option<&Path>, name: &str, flag: &str) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let beside = env::current_exe().context("cannot find this program's own file").or_blame(Blame::Io)?;
    let path = beside.with_file_name(name);
    if !path.exists() {
        let hint = anyhow!("there is no {name} at {} (name one with {flag})", path.display());
        return Err(Failure::new(Blame::NoInput, hint));
    }
    Ok(path)
}

fn default_cmdline(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => CMDLINE_X86_64,
        Architecture::Aarch64 => CMDLINE_AARCH64,
    }
}

fn metadata(manifest: &Manifest, build_time: String, kernel: &Kernel) -> Metadata {
    Metadata {
        image_name: manifest.name.clone(),
        image_version: manifest.version.clone(),
        build: BuildMetadata {
            build_time,
            build_tool: env!("CARGO_PKG_NAME").to_owned(),
            build_tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            operating_system: "Linux".to_owned(),
            kernel_version: kernel.version.clone(),
        },
        docker_info: serde_json::Value::Null,
        custom: serde_json::Value::Null,
    }
}

/// RFC 3339 time of SOURCE_DATE_EPOCH (seconds since 1970;
/// reproducible-builds.org), or of 1970 itself: never the clock.
fn build_time(source_date_epoch: Option<&str>) -> anyhow::Result<String> {
    let text = source_date_epoch.unwrap_or("0");
    let describe = || format!("SOURCE_DATE_EPOCH is {text:?}, not seconds since 1970");
    let seconds: i64 = text.parse().with_context(describe)?;
    Ok(jiff::Timestamp::from_second(seconds).with_context(describe)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_time_is_never_the_clock() {
        assert_eq!(build_time(None).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(build_time(Some("1732406400")).unwrap(), "2024-11-24T00:00:00Z");
        assert!(build_time(Some("yesterday")).is_err());
    }
}
