//! The enclave parts of all files, and how they belong together.

use super::{
    Facts, Source, Spot,
    collect::{self, Document, Object},
    finding::Findings,
    script::{self, Bootstrap},
};
use crate::{
    instance::Capacity,
    pages::{Arch, PagePlan},
    yaml::Node,
};

/// The label that AWS's device plugin selects nodes by.
pub(super) const LABEL: &str = "aws-nitro-enclaves-k8s-dp";

/// Everything that rules look at.
pub(super) struct Model<'a> {
    pub(super) facts: &'a Facts,
    pub(super) objects: Vec<Object<'a>>,
    pub(super) pools: Vec<Pool<'a>>,
    pub(super) bootstraps: Vec<Bootstrap>,
    pub(super) pods: Vec<Pod<'a>>,
    pub(super) plugins: Vec<Plugin<'a>>,
}

/// Nodes that are made alike.
pub(super) struct Pool<'a> {
    pub(super) object: Object<'a>,
    pub(super) kind: PoolKind,
    /// The value of `enclaveOptions.enabled`.
    pub(super) enclaves: Option<&'a Node>,
    pub(super) instance_types: Vec<&'a Node>,
    /// A mapping, where the kind has labels.
    pub(super) labels: Option<&'a Node>,
    pub(super) taints: Vec<Taint<'a>>,
    pub(super) zones: Vec<&'a Node>,
    pub(super) subnets: Vec<&'a Node>,
    pub(super) most_nodes: Option<u64>,
    /// Index into the bootstraps.
    pub(super) bootstrap: Option<usize>,
    pub(super) allocation: Option<Allocation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolKind {
    /// AWSManagedMachinePool.
    Managed,
    /// AWSMachinePool.
    SelfManaged,
    /// NodePool with its EC2NodeClass.
    Karpenter,
    /// enclavectl's settings.json, or an allocator.yaml by itself.
    Settings,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Taint<'a> {
    pub(super) key: &'a str,
    pub(super) value: &'a str,
    /// As pods write it.
    pub(super) effect: &'a str,
    pub(super) node: &'a Node,
}

/// What a node sets aside.
#[derive(Debug, Clone)]
pub(super) struct Allocation {
    pub(super) memory_mib: u64,
    pub(super) cpus: u32,
    pub(super) memory_spot: Spot,
    pub(super) cpu_spot: Spot,
}

/// A container that asks for an enclave, and its pod.
pub(super) struct Pod<'a> {
    pub(super) object: Object<'a>,
    /// The pod's spec; of a bare `resources:`, the document itself.
    pub(super) spec: &'a Node,
    pub(super) container: &'a Node,
    pub(super) replicas: Option<&'a Node>,
}

/// The device plugin's pod template.
pub(super) struct Plugin<'a> {
    pub(super) object: Object<'a>,
    pub(super) spec: &'a Node,
    pub(super) slots: Option<&'a Node>,
    pub(super) advertises_cpus: Option<&'a Node>,
    /// A patch or an override, not the whole.
    pub(super) partial: bool,
}

impl<'a> Model<'a> {
    pub(super) fn new(
        sources: &'a [Source],
        documents: &'a [Document],
        facts: &'a Facts,
        findings: &mut Findings<'_>,
    ) -> Model<'a> {
        let objects = collect::objects(documents);
        let bootstraps = script::bootstraps(sources, &objects, findings);
        let mut model =
            Model { facts, pools: pools(&objects), bootstraps, pods: vec![], plugins: vec![], objects };
        model.link();
        model.settle_allocations(sources, findings);
        for index in 0..model.objects.len() {
            model.find_pods(model.objects[index]);
        }
        model
    }

    /// The pool that a pod lands on: the one whose labels it selects. With
    /// several, none is certain and the first that sets pages aside is taken.
    pub(super) fn pool_of(&self, pod: &Pod<'a>) -> Option<&Pool<'a>> {
        let selector = pod.spec.field("nodeSelector").map(Node::entries).unwrap_or_default();
        let fits = |pool: &&Pool<'a>| {
            selector.iter().all(|wanted| {
                let key = wanted.key.text().unwrap_or_default();
                let label = pool.labels.and_then(|labels| labels.field(key)).and_then(Node::text);
                label.is_none_or(|label| Some(label) == wanted.value.text())
            })
        };
        let enclave_pools = self.pools.iter().filter(|pool| pool.is_on() || pool.allocation.is_some());
        let mut candidates: Vec<&Pool<'a>> = enclave_pools.filter(fits).collect();
        candidates.sort_by_key(|pool| pool.allocation.is_none());
        candidates.first().copied()
    }

    /// Whether enclave CPUs are offered as a resource; `None` without a plugin.
    pub(super) fn cpus_advertised(&self) -> Option<bool> {
        let on = |plugin: &Plugin<'_>| {
            matches!(
                plugin.advertises_cpus.and_then(Node::text),
                Some("1" | "t" | "T" | "true" | "TRUE" | "True")
            )
        };
        (!self.plugins.is_empty()).then(|| self.plugins.iter().any(on))
    }

    /// Joins pools and bootstraps as a MachinePool names them; a lone pair
    /// belongs together without being named.
    fn link(&mut self) {
        for machine_pool in self.objects.iter().filter(|object| object.kind() == "MachinePool") {
            let template = machine_pool.root.at(&["spec", "template", "spec"]);
            let reference = |path: &[&str]| template.and_then(|spec| spec.at(path)).and_then(Node::text);
            let pool_name = reference(&["infrastructureRef", "name"]);
            let boot_name = reference(&["bootstrap", "configRef", "name"]);
            let boot_kind = reference(&["bootstrap", "configRef", "kind"]);
            let bootstrap = self.bootstraps.iter().position(|boot| {
                Some(boot.name.as_str()) == boot_name && Some(boot.kind.as_str()) == boot_kind
            });
            for pool in &mut self.pools {
                if Some(pool.object.name()) == pool_name && pool.bootstrap.is_none() {
                    pool.bootstrap = bootstrap;
                }
            }
        }
        let lone = self.pools.len() == 1 && self.bootstraps.len() == 1;
        for pool in &mut self.pools {
            if pool.bootstrap.is_none() {
                pool.bootstrap = self.bootstraps.iter().position(|boot| match pool.kind {
                    PoolKind::Karpenter => Some(boot.name.as_str()) == class_name(&pool.object),
                    _ => lone,
                });
            }
        }
    }

    fn settle_allocations(&mut self, sources: &'a [Source], findings: &mut Findings<'_>) {
        for pool in &mut self.pools {
            if let Some(boot) = pool.bootstrap.map(|index| &self.bootstraps[index]) {
                pool.allocation = boot.allocation.clone();
            }
        }
        let loose = script::allocator_files(sources, &self.objects, findings);
        let [allocation] = loose.as_slice() else { return };
        if self.pools.is_empty() {
            if let Some(&object) = self.objects.first() {
                let mut pool = Pool::new(object, PoolKind::Settings);
                pool.allocation = Some(allocation.clone());
                self.pools.push(pool);
            }
            return;
        }
        let mut wanting = self.pools.iter_mut().filter(|pool| pool.is_on() && pool.allocation.is_none());
        if let (Some(pool), None) = (wanting.next(), wanting.next()) {
            pool.allocation = Some(allocation.clone());
        }
    }

    /// Pod templates are found by their shape, so that any kind may hold one.
    fn find_pods(&mut self, object: Object<'a>) {
        let replicas = object.root.at(&["spec", "replicas"]);
        if object.kind().is_empty() && object.root.field("resources").is_some() {
            let pod = Pod { object, spec: object.root, container: object.root, replicas: None };
            if pod.wants_enclave() {
                self.pods.push(pod);
            }
        }
        let mut specs = Vec::new();
        object.root.walk(&mut |node| {
            if node.field("containers").is_some_and(|containers| !containers.items().is_empty()) {
                specs.push(node);
            }
        });
        for spec in specs {
            let init = spec.field("initContainers").map(Node::items).unwrap_or_default();
            for container in spec.field("containers").into_iter().flat_map(Node::items).chain(init) {
                let pod = Pod { object, spec, container, replicas };
                if pod.wants_enclave() {
                    self.pods.push(pod);
                }
                self.plugins.extend(plugin(object, spec, container));
            }
        }
    }
}

impl<'a> Pool<'a> {
    fn new(object: Object<'a>, kind: PoolKind) -> Pool<'a> {
        Pool {
            object,
            kind,
            enclaves: None,
            instance_types: vec![],
            labels: None,
            taints: vec![],
            zones: vec![],
            subnets: vec![],
            most_nodes: None,
            bootstrap: None,
            allocation: None,
        }
    }

    /// Whether enclaves are switched on.
    pub(super) fn is_on(&self) -> bool {
        self.kind == PoolKind::Settings || self.enclaves.is_some_and(|node| node.truth() == Some(true))
    }

    /// The pool's instance types that can be looked up.
    pub(super) fn capacities(&self, facts: &Facts) -> Vec<(&'a Node, Capacity)> {
        let known =
            |node: &&'a Node| Some((*node, Capacity::of(node.text()?, facts.instance_types.as_ref())?));
        self.instance_types.iter().filter_map(known).collect()
    }

    /// The architecture, if it is known: by type, or by the image's facts.
    pub(super) fn arch(&self, facts: &Facts) -> Option<Arch> {
        let by_type = self.capacities(facts).first().map(|(_, capacity)| capacity.arch);
        by_type.or_else(|| facts.image.map(|image| image.arch))
    }

    /// The page plan; on an unknown architecture, x86's.
    pub(super) fn plan(&self, facts: &Facts) -> Option<PagePlan> {
        let arch = self.arch(facts).unwrap_or(Arch::X86_64);
        PagePlan::new(self.allocation.as_ref()?.memory_mib, arch.page_sizes())
    }
}

impl<'a> Pod<'a> {
    /// A resource's limit and request as they are written.
    pub(super) fn resource(&self, name: &str) -> (Option<&'a Node>, Option<&'a Node>) {
        let part = |part| self.container.at(&["resources", part, name]);
        (part("limits"), part("requests"))
    }

    /// Names of resources that are asked for, each once.
    pub(super) fn resource_names(&self) -> Vec<&'a str> {
        let mut names = Vec::new();
        for part in ["limits", "requests"] {
            for entry in self.container.at(&["resources", part]).map(Node::entries).unwrap_or_default() {
                match entry.key.text() {
                    Some(name) if !names.contains(&name) => names.push(name),
                    _ => {}
                }
            }
        }
        names
    }

    /// The name of the enclave resource.
    pub(super) fn enclave_resource(&self) -> Option<&'a str> {
        self.resource_names()
            .into_iter()
            .find(|name| name.ends_with("/nitro_enclaves") || *name == "eks.amazonaws.com/nitro-sandbox")
    }

    /// The limit on enclave CPUs.
    pub(super) fn enclave_cpus(&self) -> Option<&'a Node> {
        let name = self.resource_names().into_iter().find(|name| name.ends_with("/nitro_enclaves_cpus"))?;
        let (limit, request) = self.resource(name);
        limit.or(request)
    }

    fn wants_enclave(&self) -> bool {
        self.enclave_resource().is_some()
    }

    pub(super) fn spot(&self, node: &Node) -> Spot {
        self.object.spot(node)
    }

    /// Where the container is named.
    pub(super) fn own_spot(&self) -> Spot {
        self.spot(self.container.field("name").unwrap_or(self.container))
    }

    /// The number of pods; 1 if it is not written.
    pub(super) fn count(&self) -> u64 {
        self.replicas.and_then(Node::number).unwrap_or(1)
    }
}

fn pools<'a>(objects: &[Object<'a>]) -> Vec<Pool<'a>> {
    let mut pools = Vec::new();
    for &object in objects {
        let spec = object.spec();
        let at = |path: &[&str]| spec.and_then(|spec| spec.at(path));
        let items = |path: &[&str]| at(path).map(Node::items).unwrap_or_default();
        match object.kind() {
            kind @ ("AWSManagedMachinePool" | "AWSMachinePool") => {
                let managed = kind == "AWSManagedMachinePool";
                let kind = if managed { PoolKind::Managed } else { PoolKind::SelfManaged };
                let mut pool = Pool::new(object, kind);
                pool.enclaves = at(&["awsLaunchTemplate", "enclaveOptions", "enabled"]);
                pool.instance_types.extend(at(&["awsLaunchTemplate", "instanceType"]));
                let overrides = items(&["mixedInstancesPolicy", "overrides"]);
                pool.instance_types.extend(overrides.iter().filter_map(|one| one.field("instanceType")));
                pool.labels = at(&["labels"]);
                pool.taints = items(&["taints"]).iter().filter_map(capa_taint).collect();
                pool.zones = items(&["availabilityZones"]).iter().collect();
                pool.subnets = items(&["subnetIDs"]).iter().collect();
                pool.subnets.extend(items(&["subnets"]).iter().filter_map(|subnet| subnet.field("id")));
                let most = if managed { at(&["scaling", "maxSize"]) } else { at(&["maxSize"]) };
                pool.most_nodes = most.and_then(Node::number);
                pools.push(pool);
            }
            "NodePool" if object.api().starts_with("karpenter.sh/") => {
                pools.push(karpenter_pool(object, objects));
            }
            "" => pools.extend(settings_pool(object)),
            _ => {}
        }
    }
    // A node class that no pool uses yet.
    for &object in objects.iter().filter(|object| object.kind() == "EC2NodeClass") {
        let used = pools.iter().any(|pool| class_name(&pool.object) == Some(object.name()));
        let enclaves = object.root.at(&["spec", "enclaveOptions", "enabled"]);
        if !used && enclaves.is_some() {
            let mut pool = Pool::new(object, PoolKind::Karpenter);
            pool.enclaves = enclaves;
            pools.push(pool);
        }
    }
    pools
}

fn karpenter_pool<'a>(object: Object<'a>, objects: &[Object<'a>]) -> Pool<'a> {
    let mut pool = Pool::new(object, PoolKind::Karpenter);
    let template = object.root.at(&["spec", "template"]);
    pool.labels = template.and_then(|template| template.at(&["metadata", "labels"]));
    let taints = template.and_then(|template| template.at(&["spec", "taints"]));
    pool.taints = taints.map(Node::items).unwrap_or_default().iter().filter_map(taint).collect();
    let requirements = template.and_then(|template| template.at(&["spec", "requirements"]));
    for requirement in requirements.map(Node::items).unwrap_or_default() {
        if requirement.field("operator").and_then(Node::text) != Some("In") {
            continue;
        }
        let values = requirement.field("values").map(Node::items).unwrap_or_default();
        match requirement.field("key").and_then(Node::text) {
            Some("node.kubernetes.io/instance-type") => pool.instance_types.extend(values),
            Some("topology.kubernetes.io/zone") => pool.zones.extend(values),
            _ => {}
        }
    }
    let class = class_name(&object);
    let class = objects.iter().find(|other| other.kind() == "EC2NodeClass" && Some(other.name()) == class);
    pool.enclaves = class.and_then(|class| class.root.at(&["spec", "enclaveOptions", "enabled"]));
    pool
}

/// The node class that a Karpenter pool uses; of a class, its own name.
fn class_name<'a>(object: &Object<'a>) -> Option<&'a str> {
    if object.kind() == "EC2NodeClass" {
        return Some(object.name());
    }
    object.root.at(&["spec", "template", "spec", "nodeClassRef", "name"]).and_then(Node::text)
}

/// The settings.json of AWS's enclavectl.
fn settings_pool(object: Object<'_>) -> Option<Pool<'_>> {
    let memory = object.root.field("node_enclave_memory_limit_mib")?;
    let cpus = object.root.field("node_enclave_cpu_limit")?;
    let mut pool = Pool::new(object, PoolKind::Settings);
    pool.instance_types.extend(object.root.field("instance_type"));
    pool.most_nodes = object.root.field("eks_worker_node_capacity").and_then(Node::number);
    pool.allocation = Some(Allocation {
        memory_mib: memory.number()?,
        cpus: u32::try_from(cpus.number()?).ok()?,
        memory_spot: object.spot(memory),
        cpu_spot: object.spot(cpus),
    });
    Some(pool)
}

fn taint(node: &Node) -> Option<Taint<'_>> {
    let text = |name| node.field(name).and_then(Node::text).unwrap_or_default();
    Some(Taint { key: node.field("key")?.text()?, value: text("value"), effect: text("effect"), node })
}

fn capa_taint(node: &Node) -> Option<Taint<'_>> {
    let mut taint = taint(node)?;
    taint.effect = match taint.effect {
        "no-schedule" => "NoSchedule",
        "no-execute" => "NoExecute",
        "prefer-no-schedule" => "PreferNoSchedule",
        other => other,
    };
    Some(taint)
}

fn plugin<'a>(object: Object<'a>, spec: &'a Node, container: &'a Node) -> Option<Plugin<'a>> {
    let environment = container.field("env").map(Node::items).unwrap_or_default();
    let variable = |name: &str| {
        let found = environment.iter().find(|one| one.field("name").and_then(Node::text) == Some(name));
        found.and_then(|one| one.field("value"))
    };
    let words = ["command", "args"].into_iter().filter_map(|part| container.field(part));
    let is_ours = words.flat_map(Node::items).any(|word| word.text() == Some("device-plugin"));
    let image = container.field("image").and_then(Node::text);
    let is_aws = image.is_some_and(|image| image.contains("nitro-enclaves-k8s-device-plugin"));
    let slots = variable("MAX_ENCLAVES_PER_NODE");
    let advertises_cpus = variable("ENCLAVE_CPU_ADVERTISEMENT");
    (is_ours || is_aws || slots.is_some() || advertises_cpus.is_some()).then_some(Plugin {
        object,
        spec,
        slots,
        advertises_cpus,
        partial: image.is_none(),
    })
}
