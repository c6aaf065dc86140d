//! Makes every manifest of an enclave deployment from one request, so that
//! they cannot disagree.
//!
//! ```text
//! Request ─▶ Sizing (page plan, CPUs, nodes) ─▶ values ─▶ chart's templates ─▶ files
//! ```
//! The templates are those of the Helm chart (deploy/chart): `helm install`
//! with the rendered values.yaml gives the same objects. Same request, same
//! bytes.

mod seccomp;
mod sizing;
mod template;

pub use seccomp::Profile;
pub use sizing::{RequestError, Sizing};
pub use template::TemplateError;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::pages::Arch;

/// The chart's templates, in the order in which they are applied.
const TEMPLATES: &[(&str, &str)] = &[
    ("machine-pool.yaml", include_str!("../../../deploy/chart/templates/machine-pool.yaml")),
    ("karpenter.yaml", include_str!("../../../deploy/chart/templates/karpenter.yaml")),
    ("device-plugin.yaml", include_str!("../../../deploy/chart/templates/device-plugin.yaml")),
    ("deployment.yaml", include_str!("../../../deploy/chart/templates/deployment.yaml")),
];

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Name of the Deployment and its Service.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The pod's image: pinned by a tag other than latest, or by digest.
    pub image: String,
    /// Pods.
    pub replicas: u32,
    /// Ports that clients may reach.
    pub ingress: Vec<u16>,
    /// Memory of one enclave in MiB. Rounded up to what the node's pages allow.
    pub memory_mib: u64,
    /// CPUs of one enclave.
    pub cpus: u32,
    /// Enclaves on one node, 1 to 4.
    pub enclaves_per_node: u32,
    /// Nodes. Default: as many as the replicas need.
    pub nodes: Option<u32>,
    /// EC2 instance type.
    pub instance_type: String,
    /// Regular availability zones; none for the cluster's own.
    pub zones: Vec<String>,
    /// The cluster's name in Cluster API, and its namespace there.
    pub cluster: String,
    /// Namespace of the cluster's objects on the management cluster.
    pub cluster_namespace: String,
    /// Kubernetes version of the nodes, such as v1.33.0.
    pub kubernetes_version: String,
    /// Group that owns /dev/nitro_enclaves on the node.
    pub device_gid: u32,
    /// Image of `enclave-node`.
    pub device_plugin_image: String,
    /// Drain: seconds during which connections are still accepted.
    pub drain_accept_seconds: u32,
    /// Drain: seconds that the workload has after SIGTERM.
    pub drain_grace_seconds: u32,
    /// Mount a huge page volume. Nothing needs it.
    pub hugepage_volume: bool,
    /// This project's allocator from there, instead of AWS's package.
    pub node_package: Option<NodePackage>,
    /// The enclave image, if it is there already.
    pub image_bytes: Option<u64>,
    /// Its architecture.
    pub image_arch: Option<Arch>,
}

/// The archive that `make node-package` makes, where nodes can fetch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePackage {
    /// An https address.
    pub url: String,
    /// The archive's SHA-256 in 64 hexadecimal digits.
    pub sha256: String,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Its name.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Why nothing can be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The request cannot be met.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A fault in the chart.
    #[error("template {name} is broken")]
    Template {
        /// Which one.
        name: &'static str,
        /// What is wrong.
        source: TemplateError,
    },
    /// The seccomp profile cannot be written.
    #[error("cannot write the seccomp profile: {reason}")]
    Profile {
        /// What is wrong.
        reason: String,
    },
}

impl From<serde_json::Error> for RenderError {
    fn from(error: serde_json::Error) -> RenderError {
        RenderError::Profile { reason: error.to_string() }
    }
}

/// Renders every file, in the order in which they are applied.
pub fn render(request: &Request) -> Result<Vec<Rendered>, RenderError> {
    let sizing = Sizing::new(request)?;
    let profile = Profile::new();
    let values = values(request, &sizing, profile.compact()?);
    let mut files = vec![Rendered { name: "allocator.yaml".into(), text: allocator(request, &sizing) }];
    for (name, template) in TEMPLATES {
        let text =
            template::fill(template, &values).map_err(|source| RenderError::Template { name, source })?;
        files.push(Rendered { name: (*name).to_owned(), text });
    }
    files.push(Rendered { name: "enclave-shim.json".into(), text: profile.pretty()? });
    files.push(Rendered { name: "values.yaml".into(), text: values_text(&values) });
    Ok(files)
}

fn allocator(request: &Request, sizing: &Sizing) -> String {
    format!(
        "---\n# {} x {} MiB; {} makes {} of it.\nmemory_mib: {}\n# {} x {}.\ncpu_count: {}\n",
        request.enclaves_per_node,
        sizing.enclave_mib,
        request.instance_type,
        sizing.plan,
        sizing.node_mib,
        request.enclaves_per_node,
        request.cpus,
        sizing.cpu_count,
    )
}

fn values(request: &Request, sizing: &Sizing, profile: String) -> BTreeMap<String, Value> {
    let ports: Vec<Value> = request.ingress.iter().map(|port| json!({ "port": port.to_string() })).collect();
    let zones: Vec<Value> = request.zones.iter().map(|zone| json!({ "name": zone })).collect();
    let pages: Vec<Value> = sizing
        .share
        .resources()
        .map(|(resource, bytes)| json!({ "bytes": bytes.to_string(), "resource": resource }))
        .collect();
    let volumes: Vec<Value> = sizing
        .share
        .resources()
        .filter(|_| request.hugepage_volume)
        .map(|(resource, _)| {
            let size = resource.trim_start_matches("hugepages-").to_owned();
            json!({ "medium": format!("HugePages-{size}"), "name": resource.to_lowercase() })
        })
        .collect();
    let own: Vec<Value> = request
        .node_package
        .iter()
        .map(|package| json!({ "sha256": package.sha256.to_lowercase(), "url": package.url }))
        .collect();
    // What starts the allocator, and what is there once it has succeeded.
    let (unit, mark) = match request.node_package {
        Some(_) => ("enclave-allocator.service", "/run/enclave-node/allocator.json"),
        None => ("nitro-enclaves-allocator.service", "/run/enclave-resources-reserved"),
    };
    let termination = request.drain_accept_seconds + request.drain_grace_seconds + 5;
    let mut values = BTreeMap::new();
    let mut set = |name: &str, value: Value| values.insert(name.to_owned(), value);
    set("name", json!(request.name));
    set("namespace", json!(request.namespace));
    set("image", json!(request.image));
    set("replicas", json!(request.replicas.to_string()));
    set("ports", json!(ports));
    set("enclaveMemoryMib", json!(sizing.enclave_mib.to_string()));
    set("enclaveCpus", json!(request.cpus.to_string()));
    set("enclavesPerNode", json!(request.enclaves_per_node.to_string()));
    set("instanceType", json!(request.instance_type));
    set("arch", json!(sizing.arch.kubernetes_name()));
    set("zones", json!(zones));
    set("nodes", json!(sizing.nodes.to_string()));
    set("memoryMib", json!(sizing.node_mib.to_string()));
    set("cpuCount", json!(sizing.cpu_count.to_string()));
    set("plan", json!(sizing.plan.to_string()));
    set("pages", json!(pages));
    set("hugepageVolumes", json!(volumes));
    set("awsAllocator", json!(own.is_empty()));
    set("nodePackages", json!(own));
    set("allocatorUnit", json!(unit));
    set("reservedMark", json!(mark));
    set("capa", json!(true));
    set("karpenter", json!(true));
    set("cluster", json!(request.cluster));
    set("clusterNamespace", json!(request.cluster_namespace));
    set("pool", json!(format!("{}-nodes", request.name)));
    set("kubernetesVersion", json!(request.kubernetes_version));
    set("deviceGid", json!(request.device_gid.to_string()));
    set("devicePluginImage", json!(request.device_plugin_image));
    set("drainAcceptSeconds", json!(request.drain_accept_seconds.to_string()));
    set("drainGraceSeconds", json!(request.drain_grace_seconds.to_string()));
    set("terminationSeconds", json!(termination.to_string()));
    set("configDigest", json!(digest(request)));
    set("seccompProfile", json!(profile));
    values
}

/// Changes when the ConfigMap does. FNV-1a, 64 bits: stable, and not for
/// secrets.
fn digest(request: &Request) -> String {
    let config =
        format!("{:?} {} {}", request.ingress, request.drain_accept_seconds, request.drain_grace_seconds);
    let hash = config.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// The chart's values. JSON is YAML; text stays text.
fn values_text(values: &BTreeMap<String, Value>) -> String {
    let mut text = String::from(
        "# For `helm install`: the same objects as rendered. Sizes depend on one another\n\
         # (page plan, CPUs, nodes): render again instead of changing one here.\n",
    );
    for (name, value) in values {
        text.push_str(&format!("{name}: {value}\n"));
    }
    text
}
