//! `enclavectl render`: the manifests of an enclave deployment, all from one
//! request.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use eif::Image;
use kubernetes::render::{self, NodePackage, RenderError, Rendered, Request};

use crate::{
    failure::{Blame, Failure, OrBlame},
    lint,
    manifest::Manifest,
    output::OutputFile,
    report::print_text,
};

/// Writes every manifest that an enclave deployment needs: allocator file,
/// node pools for Cluster API and Karpenter, device plugin, Deployment, seccomp
/// profile, values for the Helm chart.
///
/// The same request gives the same bytes. What is derived, such as the node's
/// page plan, stands beside its value as a comment.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Manifest of the application: its name and ingress ports
    #[arg(long, value_name = "FILE")]
    app: PathBuf,
    /// The enclave image: least memory, and architecture
    #[arg(long, value_name = "FILE")]
    eif: PathBuf,
    /// Image of the pod, pinned by tag or digest
    #[arg(long)]
    image: String,
    /// EC2 instance type of the nodes
    #[arg(long, value_name = "TYPE")]
    instance_type: String,
    /// The cluster's name in Cluster API, and Karpenter's discovery tag
    #[arg(long, value_name = "NAME")]
    cluster: String,
    /// Kubernetes version of the nodes, such as v1.33.0
    #[arg(long, value_name = "VERSION")]
    kubernetes_version: String,
    /// Group that owns /dev/nitro_enclaves: the nodes make it with this number
    #[arg(long, value_name = "GID")]
    device_gid: u32,
    /// Image that holds enclave-node
    #[arg(long, value_name = "IMAGE")]
    device_plugin_image: String,
    /// Directory to write the files into; made if it is missing
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Memory of one enclave [default: four times the image, at least 64]
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u64>,
    /// CPUs of one enclave
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Pods
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// Enclaves on one node, 1 to 4
    #[arg(long, default_value_t = 1)]
    enclaves_per_node: u32,
    /// Nodes [default: as many as the replicas need]
    #[arg(long)]
    nodes: Option<u32>,
    /// Namespace of the pods
    #[arg(long, default_value = "enclaves")]
    namespace: String,
    /// Namespace of the cluster's objects on the management cluster
    #[arg(long, value_name = "NAMESPACE", default_value = "default")]
    cluster_namespace: String,
    /// Availability zone of the nodes; may be given more than once [default: the cluster's]
    #[arg(long = "zone", value_name = "ZONE")]
    zones: Vec<String>,
    /// Seconds during which a pod that is stopped still accepts connections
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    drain_accept: u32,
    /// Seconds that the workload has to end
    #[arg(long, value_name = "SECONDS", default_value_t = 22)]
    drain_grace: u32,
    /// Where nodes fetch what `make node-package` made; then this project's allocator is
    /// installed instead of AWS's package
    #[arg(long, value_name = "URL", requires = "node_package_sha256")]
    node_package: Option<String>,
    /// Its SHA-256, 64 hexadecimal digits
    #[arg(long, value_name = "HEX", requires = "node_package")]
    node_package_sha256: Option<String>,
    /// Mount a huge page volume; enclaves do not need one, their memory is anonymous
    #[arg(long)]
    hugepage_volume: bool,
    /// Write nothing; exit 1 if a file is missing or differs
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let request = request(&args)?;
    let files = render::render(&request).map_err(|error| {
        let blame = match error {
            RenderError::Request(_) => Blame::Usage,
            RenderError::Template { .. } | RenderError::Profile { .. } => Blame::Data,
        };
        Failure::new(blame, error)
    })?;
    if args.check {
        return check(&args.output, &files);
    }
    let describe = || format!("cannot create directory {}", args.output.display());
    fs::create_dir_all(&args.output).with_context(describe).or_blame(Blame::CannotCreate)?;
    let mut report = String::new();
    for file in &files {
        let path = args.output.join(&file.name);
        let state = if same(&path, file) { "unchanged" } else { "written" };
        if state == "written" {
            write(&path, &file.text)?;
        }
        report.push_str(&format!("{state:<9} {}\n", path.display()));
    }
    print_text(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn request(args: &Args) -> Result<Request, Failure> {
    let text = fs::read_to_string(&args.app)
        .with_context(|| format!("cannot read manifest {}", args.app.display()))
        .or_blame(Blame::NoInput)?;
    let manifest = Manifest::parse(&text)
        .with_context(|| format!("cannot use manifest {}", args.app.display()))
        .or_blame(Blame::Usage)?;
    let image = Image::open(&args.eif)?;
    let bytes = image.layout().len();
    Ok(Request {
        ingress: manifest.ingress,
        name: manifest.name,
        namespace: args.namespace.clone(),
        image: args.image.clone(),
        replicas: args.replicas,
        memory_mib: args.memory_mib.unwrap_or_else(|| least_memory(bytes)),
        cpus: args.cpus,
        enclaves_per_node: args.enclaves_per_node,
        nodes: args.nodes,
        instance_type: args.instance_type.clone(),
        zones: args.zones.clone(),
        cluster: args.cluster.clone(),
        cluster_namespace: args.cluster_namespace.clone(),
        kubernetes_version: args.kubernetes_version.clone(),
        device_gid: args.device_gid,
        device_plugin_image: args.device_plugin_image.clone(),
        drain_accept_seconds: args.drain_accept,
        drain_grace_seconds: args.drain_grace,
        hugepage_volume: args.hugepage_volume,
        node_package: args
            .node_package
            .clone()
            .zip(args.node_package_sha256.clone())
            .map(|(url, sha256)| NodePackage { url, sha256 }),
        image_bytes: Some(bytes),
        image_arch: Some(lint::arch(image.layout().architecture)),
    })
}

/// What nitro-cli asks for (four times the image), in MiB; the driver's least
/// is 64.
fn least_memory(image: u64) -> u64 {
    (image.div_ceil(1 << 20) * 4).max(64)
}

fn check(directory: &Path, files: &[Rendered]) -> Result<ExitCode, Failure> {
    let differing: Vec<&Rendered> =
        files.iter().filter(|file| !same(&directory.join(&file.name), file)).collect();
    let report: String = differing
        .iter()
        .map(|file| format!("differs   {}\n", directory.join(&file.name).display()))
        .collect();
    print_text(&report)?;
    Ok(if differing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn same(path: &Path, file: &Rendered) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes == file.text.as_bytes())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let describe = || format!("cannot create {}", path.display());
    let output = OutputFile::create(path).with_context(describe).or_blame(Blame::CannotCreate)?;
    let mut file = output.file().with_context(describe).or_blame(Blame::Io)?;
    file.write_all(text.as_bytes()).with_context(describe).or_blame(Blame::Io)?;
    output.publish().with_context(describe).or_blame(Blame::CannotCreate)
}
