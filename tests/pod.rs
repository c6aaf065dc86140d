//! Promise: the container of a rendered pod starts under a real container
//! runtime with its manifest used as it stands, and does its whole job there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use machine::container::{default_profile, has_runc, status_field};
use machine::image::HELLO;
use machine::pod::DEVICE_GROUP;
use machine::{Container, Node, Pod, client, program_path, within};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
/// Drain times that a test can wait for.
const SHORT_DRAIN: [&str; 4] = ["--drain-accept", "1", "--drain-grace", "20"];

/// Starts the pod of examples/hello, changed by `change`.
fn started(node: &Node, render: &[&str], change: impl FnOnce(&mut Pod)) -> Container {
    let mut pod = Pod::hello(node, HELLO, render);
    change(&mut pod);
    Container::start(node, pod)
}

#[test]
fn a_rendered_pod_boots_serves_attests_and_drains() {
    if !has_runc() {
        return;
    }
    let node = Node::for_pods();
    let mut container = started(&node, &SHORT_DRAIN, |_| ());
    container.ready();
    assert_eq!(container.get(8080, "/").status, 200);

    let nonce = "00112233445566778899aabbccddeeff";
    let path = format!("/v1/attestation?nonce={nonce}");
    let address = container.address(9090);
    let document = client::request(address, "GET", &path, "Accept: application/cbor\r\n", &[]).unwrap();
    assert_eq!(document.status, 200, "{}", document.text());
    let file = node.scratch().join("document.cbor");
    fs::write(&file, &document.body).unwrap();
    let verdict = Command::new(program_path("enclavectl"))
        .arg("verify")
        .arg(&file)
        .arg("--root-pem")
        .arg(node.path().join("dev-root.pem"))
        .args(["--nonce", nonce, "--eif"])
        .arg(node.scratch().join("image/app.eif"))
        .output()
        .unwrap();
    assert!(verdict.status.success(), "{}", String::from_utf8_lossy(&verdict.stderr));

    let slow = container.address(8080);
    let request = std::thread::spawn(move || client::get(slow, "/slow/1500"));
    let open = "enclave_shim_ingress_connections_open 1";
    within(SOON, "the slow request is under way", || container.get(9090, "/metrics").text().contains(open));
    assert_eq!(container.stop(), 0, "the workload's own code\n{}", container.shim.log());
    assert_eq!(request.join().unwrap().unwrap().status, 200, "the request in flight");
}

#[test]
fn the_containers_rights_and_limits_are_the_manifests() {
    if !has_runc() {
        return;
    }
    let node = Node::for_pods();
    let mut container = started(&node, &[], |_| ());
    container.ready();
    let pid = container.pid();
    let field = |name: &str| status_field(pid, name);
    assert_eq!(field("Uid").split_whitespace().collect::<Vec<_>>(), ["65532"; 4]);
    assert_eq!(field("Gid").split_whitespace().collect::<Vec<_>>(), ["65532"; 4]);
    assert!(field("Groups").split_whitespace().any(|group| group == DEVICE_GROUP.to_string()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
    }
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let refused = fs::write(root.join("file"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS), "the root is read-only");
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(network(&pid.to_string()), network("self"));

    let limits = container.pod.container()["resources"]["limits"].clone();
    let (pages, memory) = (&limits["hugepages-2Mi"], &limits["memory"]);
    let groups = root.join("sys/fs/cgroup");
    let limit = |files: [&str; 2]| {
        let found = files.iter().find_map(|file| fs::read_to_string(groups.join(file)).ok());
        found.unwrap_or_else(|| panic!("none of {files:?}")).trim().parse::<u64>().unwrap()
    };
    let bytes = |quantity: &serde_json::Value| {
        quantity.as_str().unwrap().trim_end_matches("Mi").parse::<u64>().unwrap() << 20
    };
    assert_eq!(limit(["hugetlb.2MB.max", "hugetlb/hugetlb.2MB.limit_in_bytes"]), bytes(pages));
    assert_eq!(limit(["memory.max", "memory/memory.limit_in_bytes"]), bytes(memory));
    // The enclave is as large as the pod was granted.
    let log = container.shim.log();
    let mib = bytes(pages) >> 20;
    assert!(log.contains(&format!("{mib} MiB")) || log.contains(&bytes(pages).to_string()), "{log}");
}

#[test]
fn the_runtimes_default_profile_is_refused_with_the_line_to_change() {
    if !has_runc() {
        return;
    }
    let Some(profile) = default_profile() else {
        return eprintln!("SKIPPED: scripts/default-seccomp.sh has not made the default profile");
    };
    let node = Node::for_pods();
    let mut container = started(&node, &[], |pod| pod.use_seccomp(profile));
    assert_eq!(container.shim.exit_code(SOON), 69, "{}", container.shim.log());
    let left = fs::read_to_string(container.pod.termination_log()).unwrap();
    for text in [
        "cannot make a vsock socket",
        "allow AF_VSOCK in the pod's seccomp profile: deploy/seccomp/enclave-shim.json",
    ] {
        assert!(left.contains(text), "{left}");
    }
}

#[test]
fn without_the_devices_group_the_pod_is_told_so_and_the_report_has_its_slot() {
    if !has_runc() {
        return;
    }
    let node = Node::for_pods();
    let mut container = started(&node, &[], |pod| {
        pod.spec["securityContext"]["supplementalGroups"] = json!([12345]);
        pod.set("ENCLAVE_SHIM_SLOT", "3");
    });
    assert_eq!(container.shim.exit_code(SOON), 69, "{}", container.shim.log());
    let left = fs::read_to_string(container.pod.termination_log()).unwrap();
    assert!(left.contains("/dev/nitro_enclaves") && left.contains("group"), "{left}");
    let report: serde_json::Value = serde_json::from_str(left.lines().last().unwrap()).unwrap();
    assert_eq!(report["slot"], 3, "{left}");
}

#[test]
fn a_page_limit_below_the_image_is_71_with_the_resource_line() {
    if !has_runc() {
        return;
    }
    let node = Node::for_pods();
    let mut container = started(&node, &[], |pod| {
        pod.spec["containers"][0]["resources"]["limits"]["hugepages-2Mi"] = json!("64Mi");
        pod.set("ENCLAVE_SHIM_MEMORY_MIB", "128");
    });
    assert_eq!(container.shim.exit_code(SOON), 71, "{}", container.shim.log());
    let left = fs::read_to_string(container.pod.termination_log()).unwrap();
    assert!(left.contains("control group's limits leave 64 MiB"), "{left}");
    assert!(left.contains("`hugepages-2Mi: 128Mi`"), "{left}");
}

#[test]
fn the_device_plugins_slot_names_the_enclave_in_log_and_metrics() {
    if !has_runc() {
        return;
    }
    let node = Node::for_pods();
    let mut container = started(&node, &[], |pod| pod.set("ENCLAVE_SHIM_SLOT", "3"));
    container.ready();
    let metrics = container.get(9090, "/metrics").text();
    assert!(metrics.lines().any(|line| line == "enclave_shim_slot 3"), "{metrics}");
    let log = container.shim.log();
    assert!(log.lines().any(|line| line.contains("enclave started") && line.contains("slot=3")), "{log}");
}

#[test]
fn a_rendered_huge_page_volume_does_no_harm() {
    if !has_runc() {
        return;
    }
    let node = Node::for_pods();
    let mut container = started(&node, &["--hugepage-volume"], |_| ());
    container.ready();
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", container.pid())).unwrap();
    assert!(mounts.contains(" /hugepages-2mi hugetlbfs "), "{mounts}");
}

#[test]
fn the_device_plugins_container_needs_no_more_than_its_manifest_gives() {
    if !has_runc() {
        return;
    }
    let node = Node::for_pods();
    let plugins = node.scratch().join("device-plugins");
    fs::create_dir(&plugins).unwrap();
    let mut container = Container::start(&node, Pod::device_plugin(&node, &plugins));
    let address = container.address(container.port_named("metrics"));
    // fakenitro's node: one slot is rendered, the pool has eight CPUs.
    for line in ["resource=\"enclaves\",health=\"healthy\"} 1", "resource=\"cpus\",health=\"healthy\"} 8"] {
        container.shim.until(SOON, line, |_| {
            client::get(address, "/metrics").is_ok_and(|answer| answer.text().contains(line))
        });
    }
    for socket in ["nitro_enclaves.sock", "nitro_enclaves_cpus.sock"] {
        container.shim.until(SOON, socket, |_| plugins.join(socket).exists());
    }
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(u64::from_str_radix(&status_field(container.pid(), set), 16), Ok(0), "{set}");
    }
    assert_eq!(container.stop(), 0, "{}", container.shim.log());
}

/// The tests above use the file that render wrote; this is the one that is deployed.
#[test]
fn the_deployed_profile_is_the_rendered_one() {
    let node = Node::for_pods();
    let pod = Pod::hello(&node, HELLO, &[]);
    let deployed = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/seccomp/enclave-shim.json");
    let rendered = pod.bundle.join("manifests/enclave-shim.json");
    assert_eq!(fs::read(deployed).unwrap(), fs::read(rendered).unwrap());
}
