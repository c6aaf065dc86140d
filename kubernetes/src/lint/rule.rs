//! Every rule: its stable id, its level, what it is about.

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth knowing; nothing is wrong.
    Advice,
    /// It may work, and probably is not meant.
    Warning,
    /// It cannot work, or the API refuses it.
    Error,
}

/// One rule.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Never changes.
    pub id: &'static str,
    /// The level of its findings.
    pub level: Level,
    /// In one line.
    pub summary: &'static str,
}

macro_rules! rules {
    ($($name:ident $id:literal $level:ident $summary:literal;)*) => {
        $(pub(super) const $name: Rule = Rule { id: $id, level: Level::$level, summary: $summary };)*
        /// Every rule, by topic.
        pub const RULES: &[&Rule] = &[$(&$name),*];
    };
}

rules! {
    YAML "yaml" Error "the file is not YAML";
    DUPLICATE_KEY "duplicate-key" Error "a mapping has a key twice";

    ZONE_EDGE "zone-edge" Error "enclaves do not run in Local Zones and Wavelength Zones";
    ZONE_SUBNET "zone-subnet" Error "the pool uses a subnet that lies in an edge zone";
    ZONE_IMPLICIT "zone-implicit" Warning "the cluster has edge subnets and the pool names no zone or subnet";
    ZONE_NAME "zone-name" Warning "no availability zone has such a name";

    TYPE_NAME "type-name" Error "no instance type has such a name";
    TYPE_UNSUPPORTED "type-unsupported" Error "AWS's data says that the type has no enclaves";
    TYPE_FAMILY "type-family" Warning "a dated list says that the family has no enclaves";
    TYPE_ABSENT "type-absent" Warning "AWS's data does not describe the type";
    TYPE_SIZE "type-size" Error "the type has too few vCPUs for an enclave and its parent";
    TYPE_METAL "type-metal" Error "bare metal and Xen types have no enclaves";

    VCPU_CORES "vcpu-cores" Error "the pool's CPUs are not whole cores";
    VCPU_PARENT "vcpu-parent" Error "the parent instance keeps less than one core";
    VCPU_NUMA "vcpu-numa" Warning "the pool's CPUs may not fit one NUMA node";

    MEM_INSTANCE "mem-instance" Error "the reservation leaves the node less than it needs";
    MEM_PAGE_SIZE "mem-page-size" Error "the pod asks for a page size that the node does not have";
    MEM_SHORTFALL "mem-shortfall" Error "the pod asks for more pages than the node sets aside";
    MEM_UNUSED "mem-unused" Advice "pages are set aside that no pod can use";
    MEM_REMAINDER "mem-remainder" Warning "part of the reservation is in pages that no enclave can use";
    MEM_MINIMUM "mem-minimum" Error "an enclave needs at least 64 MiB";

    EIF_MEMORY "eif-memory" Error "the enclave's memory is less than four times its image";
    EIF_ARCH "eif-arch" Error "the image is built for another architecture";

    COUNT_SLOTS "count-slots" Error "an instance runs one to four enclaves";
    COUNT_PER_POD "count-per-pod" Warning "a container runs one enclave";
    COUNT_CPUS_CORES "count-cpus-cores" Error "an enclave's CPUs are not whole cores";
    COUNT_CPUS_POOL "count-cpus-pool" Error "a pod asks for more CPUs than the pool has";
    COUNT_CPUS_ADVERTISED "count-cpus-advertised" Error "the device plugin does not advertise enclave CPUs";
    COUNT_CPUS_UNBOUND "count-cpus-unbound" Warning "pods may share a node without saying how many CPUs they take";
    COUNT_CAPACITY "count-capacity" Warning "the pool cannot hold all replicas at once";
    COUNT_FILL "count-fill" Advice "one pod takes all that several slots share";

    LABEL_MISSING "label-missing" Error "the device plugin does not run on the pool";
    LABEL_VALUE "label-value" Error "the device plugin's label must be exactly `enabled`";
    LABEL_TAINT "label-taint" Error "the device plugin does not tolerate the pool's taint";

    AMI_DEFAULT "ami-default" Error "without amiType the pool gets Amazon Linux 2";
    AMI_AL2 "ami-al2" Error "Amazon Linux 2 has no dnf";
    AMI_AL2_OLD "ami-al2-old" Warning "Amazon Linux 2 images for EKS are out of support";
    AMI_NO_ALLOCATOR "ami-no-allocator" Error "this operating system has no allocator and runs no commands";
    AMI_ARCH "ami-arch" Error "image and instance type differ in architecture";
    AMI_CUSTOM "ami-custom" Error "amiType CUSTOM needs an image";

    ALLOC_READ "alloc-read" Error "the allocator refuses its configuration";
    ALLOC_DROPPED "alloc-dropped" Error "the allocator drops part of its configuration silently";
    ALLOC_REPEATED "alloc-repeated" Warning "a key is set twice";

    BOOT_NO_ALLOCATOR "boot-no-allocator" Error "enclaves are on, but nothing sets CPUs and memory aside";
    BOOT_NO_ENCLAVES "boot-no-enclaves" Error "the allocator runs, but enclaves are off";
    BOOT_NOT_STARTED "boot-not-started" Error "the allocator is enabled but not started";
    BOOT_ORDER "boot-order" Error "the allocator's configuration changes after it has started, or before it exists";
    BOOT_LATE "boot-late" Error "the allocator starts after the bootstrap, if at all";
    BOOT_COMMAND "boot-command" Error "a boot command that is no text";
    BOOT_SED "boot-sed" Error "the sed expression changes nothing";
    BOOT_SECCOMP_DEFAULT "boot-seccomp-default" Error "kubelet's default seccomp profile blocks AF_VSOCK";
    BOOT_JOINS_ANYWAY "boot-joins-anyway" Advice "a node whose commands failed still joins the cluster";
    BOOT_REBOOT "boot-reboot" Advice "after a reboot the allocator races kubelet";

    HIBERNATE "hibernate" Error "an instance with enclaves cannot hibernate";

    POD_NO_PAGES "pod-no-pages" Error "an enclave pod without huge pages";
    POD_REQUEST "pod-request" Error "requests and limits differ, or the limit is missing";
    POD_PAGE_MULTIPLE "pod-page-multiple" Error "not a positive multiple of the page size";
    POD_CPU_MEMORY "pod-cpu-memory" Error "huge pages need cpu or memory beside them";
    POD_DANGLING_MOUNT "pod-dangling-mount" Error "a mount names a volume that does not exist";
    POD_MEDIUM "pod-medium" Error "a huge page volume does not match the requests";
    POD_PAGE_VOLUME "pod-page-volume" Advice "an enclave needs no huge page volume";
    POD_TOLERATION "pod-toleration" Warning "the pod tolerates every taint";
    POD_TAINT "pod-taint" Error "the pod does not tolerate the pool's taint";
    POD_SECCOMP "pod-seccomp" Error "the runtime's default seccomp profile blocks AF_VSOCK";
    POD_SECCOMP_UNSET "pod-seccomp-unset" Advice "no seccomp profile is named";
    POD_IMAGE_TAG "pod-image-tag" Warning "the image is not pinned";
    POD_CID "pod-cid" Warning "a fixed CID collides with other pods on the node";
    POD_DEBUG "pod-debug" Warning "debug mode: all measurements are zero";
    POD_PRIVILEGED "pod-privileged" Warning "an enclave needs no privileged container";
    POD_STANDARD "pod-standard" Error "the namespace's Pod Security Standard refuses the pod";
    POD_GRACE "pod-grace" Warning "kubelet kills the pod before its drain is over";
    POD_SURGE "pod-surge" Advice "a rolling update needs room for one more pod";

    NG_TEMPLATE "ng-template" Error "not allowed in a managed node group's launch template";
    NG_BOTH "ng-both" Error "set beside a launch template";
    NG_EXISTING "ng-existing" Advice "an existing launch template changes by a new version and a rolling update";
    NG_VERSION "ng-version" Error "this API version is not served";
    NG_MISPLACED "ng-misplaced" Error "enclaveOptions here is not in the schema and is dropped";

    KP_VERSION "kp-version" Advice "needs Karpenter 1.15 or later";
    KP_OVERLAY "kp-overlay" Error "the overlay promises what the node does not have";
    KP_OVERLAY_ALPHA "kp-overlay-alpha" Advice "NodeOverlay is an alpha API";
    KP_CPUS "kp-cpus" Advice "Karpenter does not subtract the enclaves' CPUs";
}
