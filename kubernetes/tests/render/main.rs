//! What is rendered agrees with itself, with the schemas of others, and with
//! the files under deploy/.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "../testdata/mod.rs"]
mod testdata;

use std::{env, fs, path::PathBuf, process::Command};

use kubernetes::{
    allocator,
    lint::{self, Facts, ImageFacts, Source},
    pages::Arch,
    render::{self, NodePackage, RenderError, Rendered, Request, RequestError},
    yaml,
};
use proptest::{prelude::*, strategy::ValueTree};
use serde_json::Value;

fn example() -> Request {
    Request {
        name: "hello".into(),
        namespace: "enclaves".into(),
        image: "registry.example/hello:1.0".into(),
        replicas: 2,
        ingress: vec![8080],
        memory_mib: 512,
        cpus: 2,
        enclaves_per_node: 1,
        nodes: None,
        instance_type: "m5.xlarge".into(),
        zones: vec!["us-east-1a".into()],
        cluster: "my-cluster".into(),
        cluster_namespace: "default".into(),
        kubernetes_version: "v1.33.0".into(),
        device_gid: 986,
        device_plugin_image: "registry.example/enclave-node:0.1.0".into(),
        drain_accept_seconds: 3,
        drain_grace_seconds: 22,
        hugepage_volume: false,
        node_package: None,
        image_bytes: Some(64 << 20),
        image_arch: Some(Arch::X86_64),
    }
}

/// A package of this project's allocator.
fn package() -> NodePackage {
    NodePackage {
        url: "https://packages.example/enclave-node-0.1.0-x86_64.tar.gz".into(),
        sha256: "5e".repeat(32),
    }
}

fn write_files(name: &str, files: &[Rendered]) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).unwrap();
    for rendered in files {
        fs::write(directory.join(&rendered.name), &rendered.text).unwrap();
    }
    directory
}

fn file<'a>(files: &'a [Rendered], name: &str) -> &'a str {
    &files.iter().find(|file| file.name == name).unwrap().text
}

fn findings(request: &Request, files: &[Rendered]) -> Vec<lint::Finding> {
    let sources: Vec<Source> =
        files.iter().map(|file| Source { name: file.name.clone(), text: file.text.clone() }).collect();
    let image = request.image_bytes.zip(request.image_arch).map(|(bytes, arch)| ImageFacts { bytes, arch });
    lint::lint(&sources, &Facts { image, instance_types: None })
}

fn requests() -> impl Strategy<Value = Request> {
    let types = prop::sample::select(vec![
        "m5.xlarge",
        "m5.2xlarge",
        "c6i.4xlarge",
        "r5.8xlarge",
        "m5.24xlarge",
        "m6g.large",
        "c6g.xlarge",
        "r6g.16xlarge",
        "m6a.48xlarge",
        "c5.12xlarge",
    ]);
    let sizes = (1u32..=4, 1u32..=8, 64u64..6000, 1u32..12);
    let rest = (
        prop::collection::btree_set(1024u16..65535, 0..4),
        prop::option::of(1u64..(600 << 20)),
        (any::<bool>(), any::<bool>()),
        0u32..65536,
        (0u32..60, 0u32..600),
        prop::collection::vec(
            prop::sample::select(vec!["us-east-1a", "eu-central-1b", "us-gov-west-1c"]),
            0..3,
        ),
    );
    (types, sizes, rest).prop_map(|(instance_type, sizes, rest)| {
        let (enclaves_per_node, cpus, memory_mib, replicas) = sizes;
        let (ports, image_bytes, (hugepage_volume, own_allocator), device_gid, drain, zones) = rest;
        let is_arm = instance_type.contains("6g");
        Request {
            replicas,
            ingress: ports.into_iter().filter(|port| *port != 9090).collect(),
            memory_mib,
            cpus,
            enclaves_per_node,
            instance_type: instance_type.into(),
            zones: zones.into_iter().map(str::to_owned).collect(),
            device_gid,
            drain_accept_seconds: drain.0,
            drain_grace_seconds: drain.1,
            hugepage_volume,
            node_package: own_allocator.then(package),
            image_bytes,
            image_arch: Some(if is_arm { Arch::Arm64 } else { Arch::X86_64 }),
            ..example()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_rendered_has_no_finding(request in requests()) {
        let Ok(files) = render::render(&request) else { return Ok(()) };
        let mut found = findings(&request, &files);
        if request.hugepage_volume {
            // Asked for, and told that it is not needed.
            prop_assert!(found.iter().any(|finding| finding.id == "pod-page-volume"));
            found.retain(|finding| finding.id != "pod-page-volume");
        }
        prop_assert!(found.is_empty(), "{:#?}\n{:#?}", found, request);
        prop_assert_eq!(render::render(&request).unwrap(), files);
    }

    #[test]
    fn pods_ask_for_exactly_their_share_of_the_node(request in requests()) {
        let Ok(sizing) = render::Sizing::new(&request) else { return Ok(()) };
        prop_assert!(sizing.enclave_mib >= request.memory_mib);
        prop_assert_eq!(sizing.share.usable() * u64::from(request.enclaves_per_node), sizing.plan.usable());
        prop_assert_eq!(sizing.plan.unusable(), 0);
        prop_assert_eq!(sizing.share.usable(), sizing.enclave_mib << 20);
    }
}

#[test]
fn most_requests_of_the_property_test_can_be_rendered() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = requests();
    let rendered = (0..300)
        .filter(|_| render::render(&strategy.new_tree(&mut runner).unwrap().current()).is_ok())
        .count();
    assert!(rendered > 60, "{rendered} of 300: the property would hold of nothing");
}

#[test]
fn the_allocator_of_aws_reads_the_file() {
    let files = render::render(&example()).unwrap();
    let reading = allocator::read(file(&files, "allocator.yaml"));
    assert_eq!(reading.warnings, []);
    let reservation = reading.outcome.unwrap().reservation().unwrap();
    assert_eq!((reservation.memory_mib, reservation.cpus), (512, allocator::Cpus::Count(2)));
}

#[test]
fn pages_that_cannot_be_shared_are_rounded_up_until_they_can() {
    let request =
        Request { enclaves_per_node: 2, memory_mib: 768, instance_type: "m5.2xlarge".into(), ..example() };
    let files = render::render(&request).unwrap();
    assert!(file(&files, "allocator.yaml").contains("memory_mib: 2048\n"));
    assert!(file(&files, "deployment.yaml").contains("hugepages-1Gi: 1Gi\n"));
}

#[test]
fn requests_that_cannot_be_met_say_why() {
    type Change = fn(&mut Request);
    let cases: [(Change, &str); 15] = [
        (|r| r.ingress = vec![80, 9090], "port 9090 is the shim's own"),
        (|r| r.name = "Hello".into(), "name \"Hello\""),
        (|r| r.image = "a:latest".into(), "not pinned"),
        (|r| r.image = "a:1 # x".into(), "characters"),
        (|r| r.instance_type = "m5.metal".into(), "no Nitro hypervisor"),
        (|r| r.instance_type = "m5.large".into(), "too small"),
        (|r| r.instance_type = "m6g.large".into(), "built for x86_64"),
        (|r| r.cpus = 3, "whole cores"),
        (|r| r.cpus = 4, "CPUs of all enclaves on a node is 4, not 2 to 2"),
        (|r| r.memory_mib = 60, "needs at least 256 MiB"),
        (|r| r.memory_mib = 16384, "memory in MiB is 16384"),
        (|r| r.enclaves_per_node = 5, "enclaves per node is 5, not 1 to 4"),
        (
            |r| r.node_package = Some(NodePackage { url: "https://a/b;reboot".into(), ..package() }),
            "no plain https",
        ),
        (
            |r| r.node_package = Some(NodePackage { sha256: "5e".into(), ..package() }),
            "64 hexadecimal digits",
        ),
        (|r| r.zones = vec!["us-east-1-bos-1a".into()], "no regular availability zone"),
    ];
    for (change, text) in cases {
        let mut request = example();
        change(&mut request);
        match render::render(&request) {
            Err(RenderError::Request(error)) => {
                assert!(error.to_string().contains(text), "{error} has no {text:?}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let mut request = example();
    request.nodes = Some(1);
    assert!(matches!(render::render(&request), Err(RenderError::Request(RequestError::Range { .. }))));
}

#[test]
fn rendered_kinds_validate_against_their_schemas() {
    let files = render::render(&example()).unwrap();
    let mut validated = Vec::new();
    for (crd, kind, version) in [
        (
            "crd_infrastructure.cluster.x-k8s.io_awsmanagedmachinepools.yaml",
            "AWSManagedMachinePool",
            "v1beta2",
        ),
        ("crd_bootstrap.cluster.x-k8s.io_nodeadmconfigs.yaml", "NodeadmConfig", "v1beta2"),
    ] {
        let Some(text) = testdata::read(&format!("k8s/capa/{crd}")) else { return };
        let crd: Value = serde_saphyr::from_str(&text).unwrap();
        let versions = crd["spec"]["versions"].as_array().unwrap();
        let served = versions.iter().find(|one| one["name"] == version && one["served"] == true).unwrap();
        let mut schema = served["schema"]["openAPIV3Schema"].clone();
        refuse_unknown(&mut schema);
        let validator = jsonschema::validator_for(&schema).unwrap();
        for object in objects(file(&files, "machine-pool.yaml")).into_iter().filter(|one| one["kind"] == kind)
        {
            let errors: Vec<String> = validator
                .iter_errors(&object)
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            assert!(errors.is_empty(), "{kind}: {errors:#?}");
            validated.push(kind);
            // The validator is one that can refuse.
            let mut broken = object.clone();
            broken["spec"]["enclaveOptions"] = serde_json::json!({ "enabled": true });
            assert!(!validator.is_valid(&broken), "{kind}");
        }
    }
    assert_eq!(validated, ["AWSManagedMachinePool", "NodeadmConfig"]);
}

/// The API server drops what a schema does not name; here it is an error.
fn refuse_unknown(schema: &mut Value) {
    if let Some(map) = schema.as_object_mut() {
        let preserves = map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        // metadata is the API server's own.
        let known =
            map.get("properties").is_some_and(|properties| !properties.as_object().unwrap().is_empty());
        if known && !preserves && !map.contains_key("additionalProperties") {
            map.insert("additionalProperties".into(), Value::Bool(false));
        }
        map.values_mut().for_each(refuse_unknown);
    } else if let Some(items) = schema.as_array_mut() {
        items.iter_mut().for_each(refuse_unknown);
    }
}

fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

#[test]
fn machine_pool_and_karpenter_kinds_have_the_shape_of_the_examples() {
    let files = render::render(&example()).unwrap();
    for (example, rendered, kind) in [
        ("k8s/capa/doc_example_nodepool.yaml", "machine-pool.yaml", "MachinePool"),
        ("k8s/karpenter/ec2nodeclass.yaml", "karpenter.yaml", "EC2NodeClass"),
        ("k8s/karpenter/nodepool.yaml", "karpenter.yaml", "NodePool"),
    ] {
        let Some(text) = testdata::read(example) else { return };
        let theirs = objects(&text).into_iter().find(|one| one["kind"] == kind).unwrap();
        let ours = objects(file(&files, rendered)).into_iter().find(|one| one["kind"] == kind).unwrap();
        assert_eq!(theirs["apiVersion"], ours["apiVersion"]);
        same_shape(&theirs["spec"], &ours["spec"], kind);
    }
}

/// Every field of theirs is there with the same type.
fn same_shape(theirs: &Value, ours: &Value, path: &str) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (name, value) in theirs {
                let path = format!("{path}.{name}");
                same_shape(value, ours.get(name).unwrap_or_else(|| panic!("no {path}")), &path);
            }
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            same_shape(&theirs[0], &ours[0], &format!("{path}[0]"));
        }
        _ => assert_eq!(std::mem::discriminant(theirs), std::mem::discriminant(ours), "{path}"),
    }
}

#[test]
fn user_data_fits_what_ec2_takes() {
    // 16 KiB before base64 (EC2 user guide); nodeadm's own part and the frame
    // of both are well below 4 KiB.
    let files = render::render(&example()).unwrap();
    for name in ["machine-pool.yaml", "karpenter.yaml"] {
        assert!(file(&files, name).len() < 12 << 10, "{name}: {}", file(&files, name).len());
    }
}

#[test]
fn every_file_is_yaml_and_keeps_its_text() {
    let files = render::render(&example()).unwrap();
    for rendered in &files {
        let documents = yaml::documents(&rendered.text).unwrap();
        assert!(!documents.is_empty(), "{}", rendered.name);
        assert!(!rendered.text.contains("{{"), "{}", rendered.name);
        assert!(rendered.text.ends_with('\n') && !rendered.text.contains(" \n"), "{}", rendered.name);
    }
    let profile: Value = serde_json::from_str(file(&files, "enclave-shim.json")).unwrap();
    let pool = objects(file(&files, "machine-pool.yaml"));
    let nodeadm = pool.iter().find(|one| one["kind"] == "NodeadmConfig").unwrap();
    let on_node = nodeadm["spec"]["files"].as_array().unwrap().last().unwrap();
    assert_eq!(serde_json::from_str::<Value>(on_node["content"].as_str().unwrap()).unwrap(), profile);
}

/// Helm's templates are Go's text/template.
#[test]
fn the_engine_of_helm_fills_the_chart_with_the_same_text() {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let request = Request { hugepage_volume: true, zones: vec![], ..example() };
    for (case, request) in [("one", example()), ("two", request)] {
        let files = render::render(&request).unwrap();
        let directory = write_files(&format!("chart-{case}"), &files);
        let output = Command::new("go")
            .env("GO111MODULE", "off")
            .arg("run")
            .arg(manifest.join("tests/render/chart.go"))
            .arg(directory.join("values.yaml"))
            .arg(manifest.join("../deploy/chart/templates"))
            .arg(&directory)
            .args(["machine-pool.yaml", "karpenter.yaml", "device-plugin.yaml", "deployment.yaml"])
            .output();
        let Ok(output) = output else {
            eprintln!("SKIPPED: there is no go (Debian: golang-go)");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Helm's Go SDK and Kubernetes' schemas, from PyPI, in an environment of their own.
fn python() -> Result<PathBuf, String> {
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("outside");
    let python = home.join("bin/python");
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    if run(Command::new(&python).args(["-c", "import helm_python, kubernetes_validate"])).is_err() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        let packages = ["helm-python-sdk==0.2.*", "kubernetes-validate==1.*"];
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
    }
    Ok(python)
}

#[test]
fn helm_itself_fills_the_chart_alike_and_the_core_kinds_are_valid_for_kubernetes() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => {
            return eprintln!("SKIPPED: no helm-python-sdk and kubernetes-validate from PyPI: {why}");
        }
    };
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let request = Request {
        hugepage_volume: true,
        zones: vec![],
        ingress: vec![],
        node_package: Some(package()),
        ..example()
    };
    for (case, request) in [("plain", example()), ("odd", request)] {
        let directory = write_files(&format!("outside-{case}"), &render::render(&request).unwrap());
        for version in ["1.31", "1.33", "1.35"] {
            let output = Command::new(&python)
                .arg(manifest.join("tests/render/outside.py"))
                .arg(manifest.join("../deploy/chart"))
                .arg(&directory)
                .arg(version)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(said, "4 files as Helm fills them, 5 core objects valid\n");
        }
    }
}

/// Set UPDATE_DEPLOY=1 to write them.
#[test]
fn the_files_under_deploy_are_what_is_rendered() {
    let deploy = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let files = render::render(&example()).unwrap();
    for (path, text) in [
        ("seccomp/enclave-shim.json", file(&files, "enclave-shim.json")),
        ("chart/values.yaml", file(&files, "values.yaml")),
    ] {
        let path = deploy.join(path);
        if env::var_os("UPDATE_DEPLOY").is_some() {
            fs::write(&path, text).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap_or_default(), text, "{}", path.display());
    }
}
