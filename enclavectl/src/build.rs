//! `enclavectl build`: a container image, a kernel and a manifest become an
//! enclave image. Same inputs, same bytes.

mod inputs;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use eif::{
    Architecture, BuildMetadata, ImageWriter, Measurements, Metadata, WriteError,
    boot_files::{BootFileError, Kernel},
    ramdisk::{self, RamdiskError, Workload},
    rootfs::{Digest, Tree},
    signature::{ImageSigner, SignError},
};
use serde::Serialize;

pub(crate) use self::inputs::program_path;
use self::inputs::{BootArgs, BootFiles, SourceArgs, read_manifest};
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

/// Builds an enclave image from a container image or a root filesystem, and
/// prints what it measures to.
///
/// The same inputs give the same bytes. The build time in the image's metadata
/// (which is not measured) is SOURCE_DATE_EPOCH, or 1970-01-01T00:00:00Z.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    boot: BootArgs,
    /// Kernel command line [default: AWS's for the kernel's architecture]
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
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

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let build_time = build_time(env::var("SOURCE_DATE_EPOCH").ok().as_deref()).or_blame(Blame::Usage)?;
    let manifest = read_manifest(&args.app)?;
    let signing = args.signing.open()?;
    let boot = args.boot.open(&manifest, &args.app)?;
    let source = args.source.source(&manifest, &args.app)?;
    let architecture = boot.kernel.architecture;
    let pod_image = args.pod_image.open(&manifest, architecture, args.plain_http)?;
    let output = OutputFile::create(&args.output)
        .with_context(|| cannot_create(&args.output))
        .or_blame(Blame::CannotCreate)?;

    let application = Application::open(args, &source, &manifest, architecture)?;
    let records = Records::prepare(args, &boot, &application, &manifest, &build_time)?;
    let workload = Workload::of(application.tree);
    let metadata = metadata(&manifest, build_time.clone(), &boot.kernel);
    let signer = signing.as_ref().map(Signing::signer);
    let cmdline = args.cmdline.as_deref().unwrap_or(default_cmdline(architecture));
    let writing =
        Writing { cmdline, metadata: &metadata, settings: &application.settings, signer: signer.as_ref() };
    let measurements = write(&output, boot, &workload, &writing).map_err(BuildError::into_failure)?;

    // Nothing is sent or appears whose records could not be written.
    let eif = output.file().with_context(|| cannot_create(&args.output)).or_blame(Blame::Io)?;
    records.write(&args.output, &eif, &measurements, &writing)?;
    let built = Built { eif: &eif, measurements: &measurements, architecture, build_time: &build_time };
    let digest = pod_image.map(|pod_image| pod_image.write(&manifest, &built)).transpose()?;
    output.publish().with_context(|| cannot_create(&args.output)).or_blame(Blame::CannotCreate)?;

    let pod_image = digest.map(|digest| digest.to_string());
    let pushed = args.pod_image.pushed_as(pod_image.as_deref());
    print_json(&BuildReport { measurements: measurements.into(), pod_image, pushed })?;
    Ok(ExitCode::SUCCESS)
}

fn cannot_create(path: &Path) -> String {
    format!("cannot create {}", path.display())
}

/// What the enclave runs.
struct Application {
    tree: Tree,
    /// The agent's.
    settings: Vec<u8>,
    /// Of the container image, if it is one.
    digest: Option<Digest>,
}

impl Application {
    fn open(
        args: &Args,
        source: &Source,
        manifest: &Manifest,
        architecture: Architecture,
    ) -> Result<Application, Failure> {
        let access = Access {
            limits: args.source.limits(),
            scratch: directory(&args.output),
            plain_http: args.plain_http,
        };
        let Opened { tree, config, notes, digest } = source.open(architecture, &access)?;
        for note in notes {
            eprintln!("note: {note}");
        }
        let settings = manifest
            .settings(&config)
            .to_json()
            .with_context(|| format!("cannot use manifest {}", args.app.display()))
            .or_blame(Blame::Usage)?;
        Ok(Application { tree, settings, digest })
    }
}

/// The records that were asked for.
struct Records<'a> {
    /// The inputs are read before they are packed: they say what went in.
    provenance: Option<(&'a Path, Materials)>,
    sbom: Option<Sbom>,
    kernel_version: String,
    architecture: Architecture,
    build_time: &'a str,
}

impl<'a> Records<'a> {
    fn prepare(
        args: &'a Args,
        boot: &BootFiles,
        application: &Application,
        manifest: &Manifest,
        build_time: &'a str,
    ) -> Result<Records<'a>, Failure> {
        let sbom = |path: &PathBuf| Sbom::of(path.clone(), &application.tree, manifest, build_time);
        let materials = |path: &'a PathBuf| {
            let materials = boot.materials(&args.app, application.digest.as_ref());
            Ok::<_, Failure>((
                path.as_path(),
                materials.context("cannot read the inputs").or_blame(Blame::Io)?,
            ))
        };
        Ok(Records {
            provenance: args.provenance.as_ref().map(materials).transpose()?,
            sbom: args.sbom.as_ref().map(sbom).transpose()?,
            kernel_version: boot.kernel.version.clone(),
            architecture: boot.kernel.architecture,
            build_time,
        })
    }

    fn write(
        self,
        output: &Path,
        eif: &fs::File,
        measurements: &Measurements,
        &Writing { cmdline, settings, .. }: &Writing<'_>,
    ) -> Result<(), Failure> {
        if let Some((path, materials)) = self.provenance {
            let parameters = provenance::Parameters {
                cmdline,
                kernel_version: &self.kernel_version,
                architecture: self.architecture.to_string(),
                build_time: self.build_time,
                settings,
            };
            provenance::write(path, output, eif, measurements, materials, &parameters)?;
        }
        self.sbom.map_or(Ok(()), |sbom| sbom.write())
    }
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
    BootFiles { mut kernel, mut agent, agent_path, modules }: BootFiles,
    workload: &Workload,
    &Writing { cmdline, metadata, settings, signer }: &Writing<'_>,
) -> Result<Measurements, BuildError> {
    let file = output.file().map_err(WriteError::Output)?;
    let mut writer = ImageWriter::create(file, kernel.architecture, &mut kernel.file, cmdline, metadata)?;
    writer.generate_ramdisk(|ramdisk| {
        ramdisk::write_agent(&mut agent, &agent_path, &modules, ramdisk).map(drop).map_err(BuildError::from)
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
            RamdiskError::ManyModules { .. } => Blame::Usage,
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
