//! A pod as kubelet and containerd hand it to runc.
//!
//! ```text
//! enclavectl build --pod-image ─▶ root file system, entrypoint ─┐
//! enclavectl render ─▶ deployment.yaml, seccomp profile ────────┼─▶ config.json
//! device plugin's answer: the device, three variables ──────────┘
//! ```
//! Everything that the manifest says is used as it stands. What a real node
//! adds follows containerd's CRI plugin (masked paths, mounts) and kubelet
//! (cgroup limits, files under /etc, the termination log).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kubernetes::quantity::Quantity;
use serde_json::{Value, json};

use super::{Node, program_path};

/// What the device plugin puts into a container's environment for one enclave on one core.
const GRANTED: [(&str, &str); 3] =
    [("NITRO_ENCLAVES_CPUS", "2"), ("ENCLAVE_SHIM_CPU_IDS", "2,3"), ("ENCLAVE_SHIM_SLOT", "0")];
/// Page sizes that a node may have, as resources and as the hugetlb controller names them.
const PAGES: [(&str, &str); 2] = [("hugepages-2Mi", "2MB"), ("hugepages-1Gi", "1GB")];
/// What a container may do unless it drops them (runtime specification's usual set).
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A pod of one container, not started.
pub struct Pod {
    /// Holds `rootfs`, `config.json` and what kubelet mounts.
    pub bundle: PathBuf,
    /// The pod template's `spec`.
    pub spec: Value,
    entrypoint: Vec<String>,
    environment: Vec<(String, String)>,
    seccomp: Value,
    /// Group and mode of the node's device.
    device: (u32, u32),
}

impl Pod {
    /// Builds the image of `app` (examples/hello), its pod image and its
    /// manifests with the real `enclavectl`; `render` is further options of
    /// `enclavectl render`.
    pub fn hello(node: &Node, app: &str, render: &[&str]) -> Pod {
        let at = node.scratch().join("image");
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join("enclave.yaml"), app).unwrap();
        let mut build = Command::new(program_path("enclavectl"));
        build.current_dir(&at).args(["build", "--rootfs"]).arg(super::image::hello_rootfs());
        build.args(["--app", "enclave.yaml", "-o", "app.eif", "--pod-image", "layout", "--kernel"]);
        run(build.arg(super::image::kernel()));
        Pod::of_image(node, &at.join("layout"), &at.join("app.eif"), &at.join("enclave.yaml"), render)
    }

    /// The pod that `enclavectl render` makes for a pod image, an OCI layout.
    pub fn of_image(node: &Node, layout: &Path, eif: &Path, app: &Path, render: &[&str]) -> Pod {
        let bundle = node.scratch().join(format!("pod-{:x}", super::unique_number()));
        let manifests = bundle.join("manifests");
        fs::create_dir_all(&manifests).unwrap();
        let mut command = Command::new(program_path("enclavectl"));
        command.args(["render", "--image", "registry.example/app:1", "--instance-type", "m5.2xlarge"]);
        command.args([
            "--cluster",
            "c",
            "--kubernetes-version",
            "v1.33.0",
            "--device-gid",
            &DEVICE_GROUP.to_string(),
        ]);
        command.args(["--device-plugin-image", "registry.example/enclave-node:1"]).args(render);
        run(command.arg("--eif").arg(eif).arg("--app").arg(app).arg("-o").arg(&manifests));
        let entrypoint = unpack(layout, &bundle.join("rootfs"));
        let objects: Vec<Value> =
            serde_saphyr::from_multiple(&fs::read_to_string(manifests.join("deployment.yaml")).unwrap())
                .unwrap();
        let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap().clone();
        let spec = of_kind("Deployment")["spec"]["template"]["spec"].clone();
        config_map(&bundle, &spec, &of_kind("ConfigMap"));
        let profile = &spec["securityContext"]["seccompProfile"];
        assert_eq!(profile["type"], "Localhost");
        let profile = manifests.join(profile["localhostProfile"].as_str().unwrap());
        let seccomp = serde_json::from_slice(&fs::read(profile).unwrap()).unwrap();
        let environment = environment(&spec["containers"][0]);
        Pod { bundle, spec, entrypoint, environment, seccomp, device: (DEVICE_GROUP, 0o660) }
    }

    /// The device plugin's pod, whose volumes show `plugins` as kubelet's directory.
    pub fn device_plugin(node: &Node, plugins: &Path) -> Pod {
        let hello = Pod::hello(node, super::image::HELLO, &[]);
        let manifests = hello.bundle.join("manifests");
        let text = fs::read_to_string(manifests.join("device-plugin.yaml")).unwrap();
        let set: Value = serde_saphyr::from_str(&text).unwrap();
        let mut spec = set["spec"]["template"]["spec"].clone();
        for volume in spec["volumes"].as_array_mut().unwrap() {
            if volume["hostPath"]["path"] == "/var/lib/kubelet/device-plugins" {
                volume["hostPath"]["path"] = json!(plugins);
            }
        }
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let bundle = node.scratch().join("device-plugin");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::copy(program_path("enclave-node"), bundle.join("rootfs/enclave-node")).unwrap();
        let environment = environment(&spec["containers"][0]);
        let seccomp = super::container::default_profile().unwrap_or_default();
        Pod { bundle, spec, entrypoint: Vec::new(), environment, seccomp, ..hello }
    }

    /// Another value of a variable than the device plugin's or the manifest's.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Another profile than the rendered one, as the runtime's default would be.
    pub fn use_seccomp(&mut self, profile: Value) {
        self.seccomp = profile;
    }

    /// The container's `securityContext` and everything else of the manifest.
    pub fn container(&self) -> &Value {
        &self.spec["containers"][0]
    }

    /// The file behind /dev/termination-log.
    pub fn termination_log(&self) -> PathBuf {
        self.bundle.join("termination-log")
    }

    /// Writes `config.json` for a container in network namespace `network`
    /// and control group `group`.
    pub(super) fn write_config(&self, network: &Path, group: &str) {
        for (name, text) in [("hosts", "127.0.0.1 localhost\n"), ("resolv.conf", ""), ("hostname", "pod\n")] {
            fs::write(self.bundle.join(name), text).unwrap();
        }
        fs::write(self.termination_log(), "").unwrap();
        fs::set_permissions(self.termination_log(), PermissionsExt::from_mode(0o666)).unwrap();
        let config = json!({
            "ociVersion": "1.0.2",
            "process": self.process(),
            "root": {"path": "rootfs", "readonly": self.container()["securityContext"]["readOnlyRootFilesystem"]},
            "hostname": "pod",
            "mounts": self.mounts(),
            "linux": {
                "cgroupsPath": group,
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
                    {"type": "network", "path": network},
                ],
                "devices": if asks_for_an_enclave(self.container()) { vec![self.device_node()] } else { Vec::new() },
                "resources": self.resources(),
                "seccomp": self.seccomp,
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        });
        fs::write(self.bundle.join("config.json"), config.to_string()).unwrap();
    }

    fn process(&self) -> Value {
        let (pod, own) = (&self.spec["securityContext"], &self.container()["securityContext"]);
        let user = |name: &str| if own[name].is_null() { pod[name].clone() } else { own[name].clone() };
        let dropped: Vec<&str> = strings(&own["capabilities"]["drop"]);
        let kept: Vec<&str> = CAPABILITIES
            .into_iter()
            .filter(|name| {
                !dropped.iter().any(|drop| *drop == "ALL" || Some(*drop) == name.strip_prefix("CAP_"))
            })
            .collect();
        let args = match strings(&self.container()["command"]) {
            command if command.is_empty() => self.entrypoint.clone(),
            command => {
                command.into_iter().chain(strings(&self.container()["args"])).map(str::to_owned).collect()
            }
        };
        let environment = self.environment.iter().map(|(name, value)| format!("{name}={value}"));
        json!({
            "user": {
                "uid": user("runAsUser"), "gid": user("runAsGroup"), "additionalGids": pod["supplementalGroups"],
            },
            "args": args,
            "env": environment.collect::<Vec<_>>(),
            "cwd": "/",
            "capabilities": {"bounding": kept, "effective": kept, "permitted": kept},
            "noNewPrivileges": own["allowPrivilegeEscalation"] == false,
        })
    }

    /// Kubelet's limits: a page size that the pod does not name is limited to nothing.
    fn resources(&self) -> Value {
        let limits = &self.container()["resources"]["limits"];
        let pages: Vec<Value> = PAGES
            .into_iter()
            .filter(|(resource, _)| !limits[*resource].is_null() || is_page_size(resource))
            .map(|(resource, size)| {
                let limit = if limits[resource].is_null() { 0 } else { whole(&limits[resource]) };
                json!({"pageSize": size, "limit": limit})
            })
            .collect();
        let milli = Quantity::parse(limits["cpu"].as_str().unwrap()).unwrap();
        let milli = u64::try_from(milli.milli()).unwrap();
        let (major, minor) = self.device_number();
        let mut devices = vec![json!({"allow": false, "access": "rwm"})];
        if asks_for_an_enclave(self.container()) {
            devices.push(json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rw"}));
        }
        json!({
            "devices": devices,
            "memory": {"limit": whole(&limits["memory"])},
            "cpu": {"shares": milli * 1024 / 1000, "quota": milli * 100, "period": 100_000},
            "hugepageLimits": pages,
        })
    }

    /// Where the plugin's answer meets the node: the device as it is there.
    fn device_node(&self) -> Value {
        let (major, minor) = self.device_number();
        let (gid, mode) = self.device;
        json!({
            "path": "/dev/nitro_enclaves", "type": "c", "major": major, "minor": minor,
            "fileMode": mode, "uid": 0, "gid": gid,
        })
    }

    /// fakenitro's device has /dev/full's number: docs/emulator.md.
    fn device_number(&self) -> (u32, u32) {
        (1, 7)
    }

    fn mounts(&self) -> Value {
        let file = |destination: &str, name: &str, mode: &str| {
            let source = self.bundle.join(name);
            json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", mode]})
        };
        let special = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
        let closed = ["nosuid", "noexec", "nodev"];
        let mut mounts = vec![
            special("/proc", "proc", &closed),
            special("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            special(
                "/dev/pts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            special("/dev/mqueue", "mqueue", &closed),
            special("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            special("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            special("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            // The driver's parameters: on a Nitro instance they are the kernel's own, in every sysfs.
            json!({"destination": "/sys/module", "type": "bind", "source": "/sys/module", "options": ["rbind", "rprivate", "ro"]}),
            file("/etc/hosts", "hosts", "rw"),
            file("/etc/hostname", "hostname", "rw"),
            file("/etc/resolv.conf", "resolv.conf", "rw"),
            file("/dev/termination-log", "termination-log", "rw"),
        ];
        for mount in self.container()["volumeMounts"].as_array().into_iter().flatten() {
            let name = mount["name"].as_str().unwrap();
            let path = mount["mountPath"].as_str().unwrap();
            let volume = self.volume(name);
            match volume["emptyDir"]["medium"].as_str().and_then(|medium| medium.strip_prefix("HugePages-")) {
                Some(size) => {
                    let size = format!("pagesize={}", size.trim_end_matches('i'));
                    mounts.push(special(path, "hugetlbfs", &["nosuid", "nodev", "mode=0777", &size]));
                }
                None if !volume["hostPath"].is_null() => {
                    let source = volume["hostPath"]["path"].as_str().unwrap();
                    let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
                    mounts.push(json!({
                        "destination": path, "type": "bind", "source": source, "options": ["rbind", "rprivate", mode],
                    }));
                }
                None => {
                    assert!(!volume["configMap"].is_null(), "volume {name} of an unknown kind");
                    let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
                    mounts.push(file(path, &format!("volumes/{name}"), mode));
                }
            }
        }
        Value::Array(mounts)
    }

    fn volume(&self, name: &str) -> &Value {
        let volumes = self.spec["volumes"].as_array().unwrap();
        volumes.iter().find(|volume| volume["name"] == name).unwrap_or_else(|| panic!("no volume {name}"))
    }
}

/// Group of the node's device: what the manifests are rendered with.
pub const DEVICE_GROUP: u32 = 986;

/// `env` in its order: literal values and the downward API; then the plugin's.
fn environment(container: &Value) -> Vec<(String, String)> {
    let own = container["env"].as_array().into_iter().flatten().map(|variable| {
        let name = variable["name"].as_str().unwrap().to_owned();
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            None => variable["value"].as_str().unwrap(),
            Some("metadata.name") => "hello-7d4b9c6f5-abcde",
            Some("metadata.namespace") => "enclaves",
            Some("spec.nodeName") => "node-1",
            Some(path) => panic!("the downward API's {path} is not known here"),
        };
        (name, value.to_owned())
    });
    let granted = GRANTED.into_iter().filter(|_| asks_for_an_enclave(container));
    let granted = granted.map(|(name, value)| (name.to_owned(), value.to_owned()));
    granted.chain(own).collect()
}

/// Then kubelet asks the device plugin.
fn asks_for_an_enclave(container: &Value) -> bool {
    !container["resources"]["limits"]["aws.ec2.nitro/nitro_enclaves"].is_null()
}

/// What kubelet makes of the ConfigMap's volume.
fn config_map(bundle: &Path, spec: &Value, map: &Value) {
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        if volume["configMap"]["name"] != map["metadata"]["name"] || volume["configMap"].is_null() {
            continue;
        }
        let at = bundle.join("volumes").join(volume["name"].as_str().unwrap());
        fs::create_dir_all(&at).unwrap();
        for (name, text) in map["data"].as_object().unwrap() {
            fs::write(at.join(name), text.as_str().unwrap()).unwrap();
        }
    }
}

/// Lays the image's layers over one another; gives its entrypoint and command.
fn unpack(layout: &Path, root: &Path) -> Vec<String> {
    let json = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |descriptor: &Value| {
        layout.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
    };
    let manifest = json(blob(&json(layout.join("index.json"))["manifests"][0]));
    fs::create_dir_all(root).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        run(Command::new("tar").arg("-xf").arg(blob(layer)).arg("-C").arg(root));
    }
    let config = json(blob(&manifest["config"]))["config"].clone();
    strings(&config["Entrypoint"]).into_iter().chain(strings(&config["Cmd"])).map(str::to_owned).collect()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn whole(quantity: &Value) -> u64 {
    let text = quantity.as_str().unwrap();
    Quantity::parse(text).and_then(Quantity::whole).unwrap_or_else(|| panic!("quantity {text}"))
}

/// Whether this machine has such pages.
fn is_page_size(resource: &str) -> bool {
    let kib = if resource == "hugepages-2Mi" { 2048 } else { 1 << 20 };
    Path::new(&format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB")).exists()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
