//! For each rule a change after which it fires, and one close to it after
//! which it is silent. One table: splitting it would hide a missing rule.

/// What is changed in `base.yaml`. An edit is `from` and `to`.
pub(crate) struct Case {
    pub(crate) id: &'static str,
    /// After these the rule fires.
    pub(crate) fires: &'static [(&'static str, &'static str)],
    /// After these it does not.
    pub(crate) near: &'static [(&'static str, &'static str)],
}

const ZONES: &str = "availabilityZones: [us-east-1a]";
const TYPE: &str = "instanceType: m5.2xlarge";
const CPUS_SED: &str = "cpu_count: 4/";
const MEMORY_SED: &str = "memory_mib: 2048/";
const LIMIT_PAGES: &str = "hugepages-1Gi: 1Gi\n            cpu: 250m";
const REQUEST_PAGES: &str = "hugepages-1Gi: 1Gi\n      volumes";
const LABEL: &str = "    aws-nitro-enclaves-k8s-dp: enabled\n";
const FILES: &str = "  files:\n";
const START: &str = "  - systemctl enable --now nitro-enclaves-allocator.service\n";
const CLASS: &str = "---\napiVersion: karpenter.k8s.aws/v1\nkind: EC2NodeClass\nmetadata: {name: class}\nspec:\n  enclaveOptions: {enabled: true}\n";
const OTHER_CLASS: &str = "---\napiVersion: karpenter.k8s.aws/v1\nkind: EC2NodeClass\nmetadata: {name: class, annotations: {enclave-shim/lint-allow: kp-cpus}}\nspec:\n  enclaveOptions: {enabled: true}\n";
const PLAIN_CLASS: &str = "---\napiVersion: karpenter.k8s.aws/v1\nkind: EC2NodeClass\nmetadata: {name: class}\nspec:\n  amiFamily: AL2023\n";
const NAMESPACE: &str = "---\napiVersion: v1\nkind: Namespace\n";

pub(crate) const CASES: &[Case] = &[
    Case {
        id: "yaml",
        fires: &[(ZONES, "availabilityZones: [us-east-1a")],
        near: &[(ZONES, "availabilityZones: [\"us-east-1a\"]")],
    },
    Case {
        id: "duplicate-key",
        fires: &[("  amiType: CUSTOM\n", "  amiType: CUSTOM\n  amiType: CUSTOM\n")],
        near: &[("  amiType: CUSTOM\n", "  amiType: CUSTOM\n  amiVersion: CUSTOM\n")],
    },
    // Where the nodes are
    Case {
        id: "zone-edge",
        fires: &[(ZONES, "availabilityZones: [us-east-1-bos-1a]")],
        near: &[(ZONES, "availabilityZones: [us-east-1b]")],
    },
    Case {
        id: "zone-subnet",
        fires: &[("zoneType: availability-zone", "zoneType: wavelength-zone")],
        near: &[(
            "id: subnet-1, availabilityZone: us-east-1a, zoneType: availability-zone",
            "id: subnet-2, zoneType: wavelength-zone",
        )],
    },
    Case {
        id: "zone-implicit",
        fires: &[
            ("  availabilityZones: [us-east-1a]\n  subnetIDs: [subnet-1]\n", ""),
            ("zoneType: availability-zone", "zoneType: local-zone"),
        ],
        near: &[("  subnetIDs: [subnet-1]\n", ""), ("zoneType: availability-zone", "zoneType: local-zone")],
    },
    Case {
        id: "zone-name",
        fires: &[(ZONES, "availabilityZones: [us-east-1]")],
        near: &[(ZONES, "availabilityZones: [\"${ZONE}\"]")],
    },
    // What the nodes are
    Case {
        id: "type-name",
        fires: &[(TYPE, "instanceType: m5-2xlarge")],
        near: &[(TYPE, "instanceType: \"${TYPE}\"")],
    },
    Case {
        id: "type-unsupported",
        fires: &[(TYPE, "instanceType: t3.xlarge")],
        near: &[(TYPE, "instanceType: m5.4xlarge")],
    },
    Case {
        id: "type-absent",
        fires: &[(TYPE, "instanceType: m6i.2xlarge")],
        near: &[(TYPE, "instanceType: m5.4xlarge")],
    },
    Case {
        id: "type-family",
        fires: &[(TYPE, "instanceType: t3.2xlarge")],
        near: &[(TYPE, "instanceType: m6i.2xlarge")],
    },
    Case {
        id: "type-size",
        fires: &[(TYPE, "instanceType: m5.large")],
        near: &[(TYPE, "instanceType: m6g.large")],
    },
    Case {
        id: "type-metal",
        fires: &[(TYPE, "instanceType: m5.metal")],
        near: &[(TYPE, "instanceType: m5.24xlarge")],
    },
    Case {
        id: "vcpu-cores",
        fires: &[(CPUS_SED, "cpu_count: 3/")],
        near: &[(CPUS_SED, "cpu_count: 3/"), (TYPE, "instanceType: m6g.2xlarge")],
    },
    Case { id: "vcpu-parent", fires: &[(CPUS_SED, "cpu_count: 8/")], near: &[(CPUS_SED, "cpu_count: 6/")] },
    Case {
        id: "vcpu-numa",
        fires: &[(CPUS_SED, "cpu_count: 50/"), (TYPE, "instanceType: m5.24xlarge")],
        near: &[(CPUS_SED, "cpu_count: 46/"), (TYPE, "instanceType: m5.24xlarge")],
    },
    Case {
        id: "mem-instance",
        fires: &[(MEMORY_SED, "memory_mib: 31746/")],
        near: &[(MEMORY_SED, "memory_mib: 31744/")],
    },
    Case {
        id: "mem-remainder",
        fires: &[(MEMORY_SED, "memory_mib: 2049/")],
        near: &[(MEMORY_SED, "memory_mib: 2050/")],
    },
    // Memory and counts
    Case {
        id: "mem-page-size",
        fires: &[(MEMORY_SED, "memory_mib: 768/")],
        near: &[(MEMORY_SED, "memory_mib: 1024/")],
    },
    Case {
        id: "mem-shortfall",
        fires: &[(LIMIT_PAGES, "hugepages-1Gi: 3Gi\n            cpu: 250m")],
        near: &[(LIMIT_PAGES, "hugepages-1Gi: 2Gi\n            cpu: 250m")],
    },
    Case {
        id: "mem-unused",
        fires: &[(MEMORY_SED, "memory_mib: 2560/")],
        near: &[(MEMORY_SED, "memory_mib: 1024/")],
    },
    Case {
        id: "mem-minimum",
        fires: &[
            ("hugepages-1Gi: 1Gi", "hugepages-2Mi: 62Mi"),
            ("hugepages-1Gi: 1Gi", "hugepages-2Mi: 62Mi"),
        ],
        near: &[("hugepages-1Gi: 1Gi", "hugepages-2Mi: 64Mi"), ("hugepages-1Gi: 1Gi", "hugepages-2Mi: 64Mi")],
    },
    Case {
        id: "eif-memory",
        fires: &[
            ("hugepages-1Gi: 1Gi", "hugepages-2Mi: 510Mi"),
            ("hugepages-1Gi: 1Gi", "hugepages-2Mi: 510Mi"),
        ],
        near: &[
            ("hugepages-1Gi: 1Gi", "hugepages-2Mi: 512Mi"),
            ("hugepages-1Gi: 1Gi", "hugepages-2Mi: 512Mi"),
        ],
    },
    Case {
        id: "eif-arch",
        fires: &[(TYPE, "instanceType: m6g.2xlarge")],
        near: &[(TYPE, "instanceType: m6a.2xlarge")],
    },
    Case {
        id: "count-slots",
        fires: &[("MAX_ENCLAVES_PER_NODE, value: \"2\"", "MAX_ENCLAVES_PER_NODE, value: \"5\"")],
        near: &[("MAX_ENCLAVES_PER_NODE, value: \"2\"", "MAX_ENCLAVES_PER_NODE, value: \"4\"")],
    },
    Case {
        id: "count-per-pod",
        fires: &[
            ("nitro_enclaves: \"1\"", "nitro_enclaves: \"2\""),
            ("nitro_enclaves: \"1\"", "nitro_enclaves: \"2\""),
        ],
        near: &[("nitro_enclaves: \"1\"", "nitro_enclaves: 1")],
    },
    Case {
        id: "count-cpus-cores",
        fires: &[("enclaves_cpus: \"2\"", "enclaves_cpus: \"3\"")],
        near: &[("enclaves_cpus: \"2\"", "enclaves_cpus: \"4\"")],
    },
    Case {
        id: "count-cpus-pool",
        fires: &[("enclaves_cpus: \"2\"", "enclaves_cpus: \"6\"")],
        near: &[("enclaves_cpus: \"2\"", "enclaves_cpus: \"4\"")],
    },
    Case {
        id: "count-cpus-advertised",
        fires: &[(
            "ENCLAVE_CPU_ADVERTISEMENT, value: \"true\"",
            "ENCLAVE_CPU_ADVERTISEMENT, value: \"false\"",
        )],
        near: &[("ENCLAVE_CPU_ADVERTISEMENT, value: \"true\"", "ENCLAVE_CPU_ADVERTISEMENT, value: \"1\"")],
    },
    Case {
        id: "count-cpus-unbound",
        fires: &[
            ("            aws.ec2.nitro/nitro_enclaves_cpus: \"2\"\n", ""),
            ("            aws.ec2.nitro/nitro_enclaves_cpus: \"2\"\n", ""),
            (CPUS_SED, "cpu_count: 2/"),
        ],
        near: &[
            ("            aws.ec2.nitro/nitro_enclaves_cpus: \"2\"\n", ""),
            ("            aws.ec2.nitro/nitro_enclaves_cpus: \"2\"\n", ""),
            (CPUS_SED, "cpu_count: 2/"),
            ("  replicas: 2", "  replicas: 1"),
        ],
    },
    Case {
        id: "count-capacity",
        fires: &[("  replicas: 2", "  replicas: 5")],
        near: &[("  replicas: 2", "  replicas: 4")],
    },
    Case {
        id: "count-fill",
        fires: &[(
            NAMESPACE,
            "---\napiVersion: karpenter.sh/v1alpha1\nkind: NodeOverlay\nmetadata: {name: o}\nspec:\n  capacity: {aws.ec2.nitro/nitro_enclaves: \"4\", hugepages-1Gi: 1Gi}\n---\napiVersion: v1\nkind: Namespace\n",
        )],
        near: &[(
            NAMESPACE,
            "---\napiVersion: karpenter.sh/v1alpha1\nkind: NodeOverlay\nmetadata: {name: o}\nspec:\n  capacity: {aws.ec2.nitro/nitro_enclaves: \"4\", hugepages-1Gi: 4Gi}\n---\napiVersion: v1\nkind: Namespace\n",
        )],
    },
    // Label, taint, image
    Case {
        id: "label-missing",
        fires: &[(LABEL, "    other: enabled\n")],
        near: &[(LABEL, "    other: enabled\n    aws-nitro-enclaves-k8s-dp: enabled\n")],
    },
    Case {
        id: "label-value",
        fires: &[(LABEL, "    aws-nitro-enclaves-k8s-dp: Enabled\n")],
        near: &[(LABEL, "    aws-nitro-enclaves-k8s-dp: \"enabled\"\n")],
    },
    Case {
        id: "label-taint",
        fires: &[(
            "      tolerations:\n      - {key: enclaves, operator: Equal, value: \"yes\", effect: NoSchedule}\n      containers:\n      - name: plugin",
            "      containers:\n      - name: plugin",
        )],
        near: &[(
            "operator: Equal, value: \"yes\", effect: NoSchedule}\n      containers:\n      - name: plugin",
            "operator: Exists}\n      containers:\n      - name: plugin",
        )],
    },
    Case {
        id: "ami-default",
        fires: &[("  amiType: CUSTOM\n", "")],
        near: &[("  amiType: CUSTOM\n", "  amiType: AL2023_x86_64_STANDARD\n")],
    },
    Case {
        id: "ami-al2",
        fires: &[("eksLookupType: AmazonLinux2023", "eksLookupType: AmazonLinux")],
        near: &[
            ("eksLookupType: AmazonLinux2023", "eksLookupType: AmazonLinux"),
            ("- dnf install", "- yum install"),
        ],
    },
    Case {
        id: "ami-al2-old",
        fires: &[
            ("eksLookupType: AmazonLinux2023", "eksLookupType: AmazonLinux"),
            ("- dnf install", "- yum install"),
        ],
        near: &[("eksLookupType: AmazonLinux2023", "eksLookupType: AmazonLinux2023GPU")],
    },
    Case {
        id: "ami-no-allocator",
        fires: &[
            ("amiType: CUSTOM", "amiType: BOTTLEROCKET_x86_64"),
            ("    ami: {eksLookupType: AmazonLinux2023}\n", ""),
        ],
        near: &[
            ("amiType: CUSTOM", "amiType: AL2023_x86_64_STANDARD"),
            ("    ami: {eksLookupType: AmazonLinux2023}\n", ""),
        ],
    },
    Case {
        id: "ami-arch",
        fires: &[("amiType: CUSTOM", "amiType: AL2023_ARM_64_STANDARD")],
        near: &[("amiType: CUSTOM", "amiType: AL2023_x86_64_STANDARD")],
    },
    Case {
        id: "ami-custom",
        fires: &[("    ami: {eksLookupType: AmazonLinux2023}\n", "")],
        near: &[("ami: {eksLookupType: AmazonLinux2023}", "ami: {id: ami-1}")],
    },
    // The allocator's file and the boot
    Case {
        id: "alloc-read",
        fires: &[(
            FILES,
            "  files:\n  - path: /etc/nitro_enclaves/allocator.yaml\n    content: \"---\\nmemory: 2048\\ncpu_count: 4\\n\"\n",
        )],
        near: &[(
            FILES,
            "  files:\n  - path: /etc/nitro_enclaves/allocator.yaml\n    content: \"---\\nmemory_mib: 2048\\ncpu_count: 4\\n\"\n",
        )],
    },
    Case {
        id: "alloc-dropped",
        fires: &[(
            FILES,
            "  files:\n  - path: /etc/nitro_enclaves/allocator.yaml\n    content: \"---\\nmemory_mib: 2048\\ncpu_count: 4\"\n",
        )],
        near: &[(
            FILES,
            "  files:\n  - path: /etc/nitro_enclaves/allocator.yaml\n    content: |\n      ---\n      memory_mib: 2048\n      cpu_count: 4\n",
        )],
    },
    Case {
        id: "alloc-repeated",
        fires: &[(
            FILES,
            "  files:\n  - path: /etc/nitro_enclaves/allocator.yaml\n    content: \"---\\nmemory_mib: 2048\\nmemory_mib: 2048\\ncpu_count: 4\\n\"\n",
        )],
        near: &[(
            FILES,
            "  files:\n  - path: /etc/nitro_enclaves/allocator.yaml\n    content: \"---\\n# memory_mib: 2048\\nmemory_mib: 2048\\ncpu_count: 4\\n\"\n",
        )],
    },
    Case {
        id: "boot-no-allocator",
        fires: &[(START, "  - systemctl enable --now chronyd\n")],
        near: &[(START, "  - enclave-node allocator\n")],
    },
    Case {
        id: "boot-no-enclaves",
        fires: &[("enclaveOptions: {enabled: true}", "enclaveOptions: {enabled: false}")],
        near: &[("enclaveOptions: {enabled: true}", "enclaveOptions: {enabled: \"${ENCLAVES}\"}")],
    },
    Case {
        id: "boot-not-started",
        fires: &[(START, "  - systemctl enable nitro-enclaves-allocator.service\n")],
        near: &[(
            START,
            "  - systemctl enable nitro-enclaves-allocator.service && systemctl start nitro-enclaves-allocator\n",
        )],
    },
    Case {
        id: "boot-order",
        fires: &[(
            START,
            "  - systemctl enable --now nitro-enclaves-allocator.service\n  - 'sed -i s/2048/4096/ /etc/nitro_enclaves/allocator.yaml'\n",
        )],
        near: &[(
            START,
            "  - systemctl enable --now nitro-enclaves-allocator.service\n  - 'sed -i s/2048/4096/ /etc/other.yaml'\n",
        )],
    },
    Case {
        id: "boot-command",
        fires: &[(START, "  - echo a: b\n  - systemctl enable --now nitro-enclaves-allocator.service\n")],
        near: &[(START, "  - 'echo a: b'\n  - systemctl enable --now nitro-enclaves-allocator.service\n")],
    },
    Case {
        id: "boot-sed",
        fires: &[("s/cpu_count:.*/cpu_count: 4/", "s/cpu_pool:.*/cpu_pool: 2,3,4,5/")],
        near: &[("s/cpu_count:.*/cpu_count: 4/", "s/^cpu_count: .*/cpu_pool: 2,3,4,5/")],
    },
    Case {
        id: "boot-seccomp-default",
        fires: &[
            ("seccompDefault: false", "seccompDefault: true"),
            ("        seccompProfile: {type: Localhost, localhostProfile: enclave-shim.json}\n", ""),
        ],
        near: &[("seccompDefault: false", "seccompDefault: true")],
    },
    Case {
        id: "boot-joins-anyway",
        fires: &[("      Requires=nitro-enclaves-allocator.service\n", "")],
        near: &[("      Requires=", "      BindsTo=")],
    },
    Case {
        id: "boot-reboot",
        fires: &[("      After=nitro-enclaves-allocator.service\n", "")],
        near: &[("      After=nitro", "      # before kubelet\n      After=nitro")],
    },
    Case {
        id: "hibernate",
        fires: &[(
            "enclaveOptions: {enabled: true}",
            "enclaveOptions: {enabled: true}\n    hibernationOptions: {configured: true}",
        )],
        near: &[(
            "enclaveOptions: {enabled: true}",
            "enclaveOptions: {enabled: true}\n    hibernationOptions: {configured: false}",
        )],
    },
    // The pod
    Case {
        id: "pod-no-pages",
        fires: &[
            ("            hugepages-1Gi: 1Gi\n            cpu", "            cpu"),
            ("            hugepages-1Gi: 1Gi\n      volumes", "      volumes"),
        ],
        near: &[("            hugepages-1Gi: 1Gi\n      volumes", "      volumes")],
    },
    Case {
        id: "pod-request",
        fires: &[(REQUEST_PAGES, "hugepages-1Gi: 2Gi\n      volumes")],
        near: &[(REQUEST_PAGES, "hugepages-1Gi: 1024Mi\n      volumes")],
    },
    Case {
        id: "pod-page-multiple",
        fires: &[(LIMIT_PAGES, "hugepages-1Gi: 1536Mi\n            cpu: 250m")],
        near: &[(LIMIT_PAGES, "hugepages-1Gi: 2048Mi\n            cpu: 250m")],
    },
    Case {
        id: "pod-cpu-memory",
        fires: &[("            cpu: 250m\n", "")],
        near: &[("            cpu: 250m\n", "            memory: 64Mi\n")],
    },
    Case {
        id: "pod-dangling-mount",
        fires: &[(
            "        resources:",
            "        volumeMounts: [{name: tmp, mountPath: /tmp}]\n        resources:",
        )],
        near: &[
            (
                "        resources:",
                "        volumeMounts: [{name: tmp, mountPath: /tmp}]\n        resources:",
            ),
            ("volumes: []", "volumes: [{name: tmp, emptyDir: {}}]"),
        ],
    },
    Case {
        id: "pod-medium",
        fires: &[
            ("        resources:", "        volumeMounts: [{name: h, mountPath: /h}]\n        resources:"),
            ("volumes: []", "volumes: [{name: h, emptyDir: {medium: HugePages-2Mi}}]"),
        ],
        near: &[
            ("        resources:", "        volumeMounts: [{name: h, mountPath: /h}]\n        resources:"),
            ("volumes: []", "volumes: [{name: h, emptyDir: {medium: HugePages-1Gi}}]"),
        ],
    },
    Case {
        id: "pod-page-volume",
        fires: &[
            ("        resources:", "        volumeMounts: [{name: h, mountPath: /h}]\n        resources:"),
            ("volumes: []", "volumes: [{name: h, emptyDir: {medium: HugePages}}]"),
        ],
        near: &[
            ("        resources:", "        volumeMounts: [{name: h, mountPath: /h}]\n        resources:"),
            ("volumes: []", "volumes: [{name: h, emptyDir: {medium: Memory}}]"),
        ],
    },
    Case {
        id: "pod-toleration",
        fires: &[(
            "      - {key: enclaves, operator: Equal, value: \"yes\", effect: NoSchedule}\n      securityContext",
            "      - {operator: Exists, effect: NoSchedule}\n      securityContext",
        )],
        near: &[(
            "      - {key: enclaves, operator: Equal, value: \"yes\", effect: NoSchedule}\n      securityContext",
            "      - {key: enclaves, operator: Exists, effect: NoSchedule}\n      securityContext",
        )],
    },
    Case {
        id: "pod-taint",
        fires: &[(
            "value: \"yes\", effect: NoSchedule}\n      securityContext",
            "value: \"no\", effect: NoSchedule}\n      securityContext",
        )],
        near: &[(
            "value: \"yes\", effect: NoSchedule}\n      securityContext",
            "value: \"yes\"}\n      securityContext",
        )],
    },
    Case {
        id: "pod-seccomp",
        fires: &[("{type: Localhost, localhostProfile: enclave-shim.json}", "{type: RuntimeDefault}")],
        near: &[
            ("{type: Localhost, localhostProfile: enclave-shim.json}", "{type: RuntimeDefault}"),
            (
                "allowPrivilegeEscalation: false",
                "allowPrivilegeEscalation: false\n          seccompProfile: {type: Localhost, localhostProfile: a.json}",
            ),
        ],
    },
    Case {
        id: "pod-seccomp-unset",
        fires: &[("        seccompProfile: {type: Localhost, localhostProfile: enclave-shim.json}\n", "")],
        near: &[("{type: Localhost, localhostProfile: enclave-shim.json}", "{type: Unconfined}")],
    },
    Case {
        id: "pod-image-tag",
        fires: &[("registry.example/app:1.2", "registry.example:5000/app")],
        near: &[("registry.example/app:1.2", "registry.example:5000/app@sha256:00")],
    },
    Case {
        id: "pod-cid",
        fires: &[("[/enclave-shim, run]", "[/enclave-shim, run, --cid=16]")],
        near: &[("[/enclave-shim, run]", "[/enclave-shim, run, --cpus=16]")],
    },
    Case {
        id: "pod-debug",
        fires: &[("[/enclave-shim, run]", "[/enclave-shim, run, --debug]")],
        near: &[("[/enclave-shim, run]", "[/enclave-shim, run, --log-level=debug]")],
    },
    Case {
        id: "pod-privileged",
        fires: &[(
            "allowPrivilegeEscalation: false",
            "allowPrivilegeEscalation: false\n          privileged: true",
        )],
        near: &[(
            "allowPrivilegeEscalation: false",
            "allowPrivilegeEscalation: false\n          privileged: false",
        )],
    },
    Case {
        id: "pod-standard",
        fires: &[("        runAsNonRoot: true\n", "")],
        near: &[("        runAsNonRoot: true\n", ""), ("enforce: restricted", "enforce: baseline")],
    },
    Case {
        id: "pod-grace",
        fires: &[("terminationGracePeriodSeconds: 35", "terminationGracePeriodSeconds: 29")],
        near: &[("terminationGracePeriodSeconds: 35", "terminationGracePeriodSeconds: 30")],
    },
    Case {
        id: "pod-surge",
        fires: &[("maxSurge: 0", "maxSurge: 1"), ("  replicas: 2", "  replicas: 4")],
        near: &[("maxSurge: 0", "maxSurge: 1")],
    },
    // Node groups and Karpenter
    Case {
        id: "ng-template",
        fires: &[("    ami: {eks", "    marketType: Spot\n    ami: {eks")],
        near: &[("    ami: {eks", "    marketType: OnDemand\n    ami: {eks")],
    },
    Case {
        id: "ng-both",
        fires: &[("  amiType: CUSTOM\n", "  amiType: CUSTOM\n  diskSize: 20\n")],
        near: &[("  amiType: CUSTOM\n", "  amiType: CUSTOM\n  amiVersion: a\n")],
    },
    Case {
        id: "ng-existing",
        fires: &[("    ami: {eks", "    name: mine\n    ami: {eks")],
        near: &[("    ami: {eks", "    sshKeyName: mine\n    ami: {eks")],
    },
    Case {
        id: "boot-late",
        fires: &[
            ("kind: NodeadmConfig, name: boot", "kind: EKSConfig, name: boot"),
            ("kind: NodeadmConfig\n", "kind: EKSConfig\n"),
            ("preNodeadmCommands:", "postBootstrapCommands:"),
        ],
        near: &[
            ("kind: NodeadmConfig, name: boot", "kind: EKSConfig, name: boot"),
            ("kind: NodeadmConfig\n", "kind: EKSConfig\n"),
            ("preNodeadmCommands:", "preBootstrapCommands:"),
        ],
    },
    Case {
        id: "ng-version",
        fires: &[(
            "infrastructure.cluster.x-k8s.io/v1beta2\nkind: AWSManagedMachinePool",
            "infrastructure.cluster.x-k8s.io/v1beta1\nkind: AWSManagedMachinePool",
        )],
        near: &[(
            "cluster.x-k8s.io/v1beta1\nkind: MachinePool",
            "cluster.x-k8s.io/v1beta2\nkind: MachinePool",
        )],
    },
    Case {
        id: "ng-misplaced",
        fires: &[("  amiType: CUSTOM\n", "  amiType: CUSTOM\n  enclaveOptions: {enabled: true}\n")],
        near: &[(
            "apiVersion: v1\nkind: Namespace",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {enclaveOptions: x}\n---\napiVersion: v1\nkind: Namespace",
        )],
    },
    Case {
        id: "kp-version",
        fires: &[("      volumes: []\n", CLASS)],
        near: &[("      volumes: []\n", PLAIN_CLASS)],
    },
    Case {
        id: "kp-cpus",
        fires: &[("      volumes: []\n", CLASS)],
        near: &[("      volumes: []\n", OTHER_CLASS)],
    },
    Case {
        id: "kp-overlay",
        fires: &[(
            NAMESPACE,
            "---\napiVersion: karpenter.sh/v1alpha1\nkind: NodeOverlay\nmetadata: {name: o}\nspec:\n  capacity: {hugepages-2Mi: 2Gi}\n---\napiVersion: v1\nkind: Namespace\n",
        )],
        near: &[(
            NAMESPACE,
            "---\napiVersion: karpenter.sh/v1alpha1\nkind: NodeOverlay\nmetadata: {name: o}\nspec:\n  capacity: {hugepages-1Gi: 2Gi}\n---\napiVersion: v1\nkind: Namespace\n",
        )],
    },
    Case {
        id: "kp-overlay-alpha",
        fires: &[(
            NAMESPACE,
            "---\napiVersion: karpenter.sh/v1alpha1\nkind: NodeOverlay\nmetadata: {name: o}\nspec:\n  capacity: {hugepages-1Gi: 2Gi}\n---\napiVersion: v1\nkind: Namespace\n",
        )],
        near: &[(
            NAMESPACE,
            "---\napiVersion: karpenter.sh/v1alpha1\nkind: NodeOverlay\nmetadata: {name: o}\nspec:\n  capacity: {example.com/gpu: \"1\"}\n---\napiVersion: v1\nkind: Namespace\n",
        )],
    },
];
