//! What a build is made of, all of it opened before anything is made.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use eif::{
    boot_files::{Kernel, Module, open_agent, open_kernel, open_module},
    rootfs::{Digest, Limits},
};

use crate::{
    failure::{Blame, Failure, OrBlame},
    manifest::Manifest,
    output::directory,
    provenance::Materials,
    source::Source,
};

/// Beside this program, when `--agent` is not given.
const AGENT_NAME: &str = "enclave-app";

#[derive(Debug, clap::Args)]
pub(super) struct SourceArgs {
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
    pub(super) fn limits(&self) -> Limits {
        Limits {
            total: self.max_bytes,
            entries: self.max_entries,
            window: self.max_window,
            ..Limits::default()
        }
    }

    /// The flag's, or the manifest's, whose paths are meant from its own directory.
    pub(super) fn source(&self, manifest: &Manifest, path: &Path) -> Result<Source, Failure> {
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

#[derive(Debug, clap::Args)]
pub(super) struct BootArgs {
    /// Kernel to boot: bzImage (x86_64) or uncompressed Image (aarch64) [default: the
    /// manifest's `kernel.image`]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Module of that kernel, such as the nsm.ko that comes with AWS's; of several, the agent
    /// loads the first first [default: the manifest's `kernel.modules`, with its kernel]
    #[arg(long = "module", value_name = "FILE")]
    modules: Vec<PathBuf>,
    /// Agent, a static program that becomes /init [default: enclave-app beside enclavectl]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// What is in the kernel and in ramdisk 0.
pub(super) struct BootFiles {
    pub(super) kernel: Kernel,
    pub(super) agent: File,
    pub(super) agent_path: PathBuf,
    pub(super) modules: Vec<Module>,
}

impl BootArgs {
    pub(super) fn open(&self, manifest: &Manifest, manifest_path: &Path) -> Result<BootFiles, Failure> {
        let (kernel, modules) = self.kernel_and_modules(manifest, manifest_path)?;
        let kernel = open_kernel(&kernel)?;
        let agent_path = program_path(self.agent.as_deref(), AGENT_NAME, "--agent")?;
        let agent = open_agent(&agent_path, kernel.architecture)?;
        let modules = modules.iter().map(|path| open_module(path, kernel.architecture));
        let modules = modules.collect::<Result<_, _>>()?;
        Ok(BootFiles { kernel, agent, agent_path, modules })
    }

    /// Modules fit one kernel: those of the manifest go with the manifest's.
    fn kernel_and_modules(
        &self,
        manifest: &Manifest,
        manifest_path: &Path,
    ) -> Result<(PathBuf, Vec<PathBuf>), Failure> {
        if let Some(kernel) = &self.kernel {
            return Ok((kernel.clone(), self.modules.clone()));
        }
        let Some(kernel) = &manifest.kernel else {
            let error = anyhow!("--kernel is required: {} names no kernel", manifest_path.display());
            return Err(Failure::new(Blame::Usage, error));
        };
        let from_manifest = |path: &PathBuf| directory(manifest_path).join(path);
        let modules = if self.modules.is_empty() {
            kernel.modules.iter().map(from_manifest).collect()
        } else {
            self.modules.clone()
        };
        Ok((from_manifest(&kernel.image), modules))
    }
}

impl BootFiles {
    /// These and what else goes into the image, by their digests.
    pub(super) fn materials(&self, manifest: &Path, image: Option<&Digest>) -> io::Result<Materials> {
        let mut materials = Materials::default();
        materials.add_file("kernel", &self.kernel.file)?;
        materials.add_file("agent", &self.agent)?;
        for Module { name, file, .. } in &self.modules {
            materials.add_file(&format!("module {name}"), file)?;
        }
        materials.add_path("manifest", manifest)?;
        image.iter().for_each(|digest| materials.add("container image configuration", digest));
        Ok(materials)
    }
}

pub(super) fn read_manifest(path: &Path) -> Result<Manifest, Failure> {
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
