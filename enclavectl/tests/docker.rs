//! Docker and our images: a daemon's image as a source, pod images that Docker
//! loads, and the Dockerfile. A dockerd of the test's own, started by it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod inputs;
mod server;

use std::{fs, path::Path, process::Output};

use eif::rootfs::Digest;
use inputs::{Inputs, MANIFEST, PROGRAM, failed, succeeded};
use serde_json::{Value, json};
use server::docker::Dockerd;

fn inputs() -> Inputs {
    Inputs::new(&json!({"Entrypoint": ["/hello"], "Cmd": ["serve"], "Env": ["A=1"], "User": "7"}))
}

/// One daemon for everything: that is what takes time.
#[test]
fn docker_gives_takes_and_makes_images() {
    let Some(docker) = Dockerd::start() else { return };
    let inputs = inputs();
    an_image_of_the_daemon_has_the_same_bytes_as_its_layout(&docker, &inputs);
    awss_manifest_names_the_daemons_image(&docker, &inputs);
    a_pod_image_is_loaded_as_it_is(&docker, &inputs);
    the_dockerfile_makes_the_same_files(&docker);
}

fn build(docker: &Dockerd, inputs: &Inputs, arguments: &[&str]) -> Output {
    inputs.command(arguments).env("DOCKER_HOST", docker.host()).output().unwrap()
}

fn an_image_of_the_daemon_has_the_same_bytes_as_its_layout(docker: &Dockerd, inputs: &Inputs) {
    let expected = inputs.image(&["--image", "oci:oci"]);
    inputs.shell("skopeo --insecure-policy copy -q oci:oci:v1 docker-archive:docker.tar:team/app:1.0");
    let at = inputs.0.path();
    docker.run(at, &["load", "-i", "docker.tar"]);
    docker.run(at, &["tag", "team/app:1.0", "team/app:latest"]);
    let id = docker.run(at, &["image", "inspect", "--format", "{{.Id}}", "team/app:1.0"]);
    for name in ["team/app:1.0", "team/app", &id] {
        succeeded(&build(docker, inputs, &["--image", &format!("docker-daemon:{name}")]));
        assert!(fs::read(inputs.path("out.eif")).unwrap() == expected, "{name}");
    }
    failed(&build(docker, inputs, &["--image", "docker-daemon:team/app:2"]), 66, "has no image team/app:2");
    let bounded = ["--image", "docker-daemon:team/app", "--max-bytes", "1000"];
    failed(&build(docker, inputs, &bounded), 65, "longer than 1000 bytes");
}

fn awss_manifest_names_the_daemons_image(docker: &Dockerd, inputs: &Inputs) {
    let manifest = json!({
        "name": "hello", "repository": "https://example.org/app.git", "tag": "v1",
        "eif": {"name": "hello.eif", "docker": {
            "image_name": "team/app", "image_tag": "1.0", "target": "",
            "x86_64": {"file_path": "a", "file_name": "Dockerfile", "build_path": "a"},
        }},
    });
    let ours = fs::read(inputs.path("enclave.yaml")).unwrap();
    fs::write(inputs.path("enclave.yaml"), manifest.to_string()).unwrap();
    succeeded(&build(docker, inputs, &[]));
    assert_eq!(inputs.settings().argv, ["/hello", "serve"]);
    fs::write(inputs.path("enclave.yaml"), ours).unwrap();
}

fn a_pod_image_is_loaded_as_it_is(docker: &Dockerd, inputs: &Inputs) {
    succeeded(&inputs.build(&["--image", "oci:oci", "--pod-image", "pod.tar", "--shim", PROGRAM]));
    let at = inputs.0.path();
    let told = docker.run(at, &["load", "-i", "pod.tar"]);
    assert!(told.ends_with("Loaded image: hello:1.2"), "{told}");
    let inspected: Value = serde_json::from_str(&docker.run(at, &["image", "inspect", "hello:1.2"])).unwrap();
    let config = &inspected[0]["Config"];
    assert_eq!(config["Entrypoint"], json!(["/enclave-shim", "run"]));
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(inspected[0]["Architecture"], "amd64");
    // Docker's ID is the digest of the configuration: nothing was changed.
    inputs.shell("mkdir -p loaded && tar -xf pod.tar -C loaded");
    let manifest: Value =
        serde_json::from_slice(&fs::read(inputs.path("loaded/manifest.json")).unwrap()).unwrap();
    let named = manifest[0]["Config"].as_str().unwrap().trim_start_matches("blobs/sha256/");
    assert_eq!(inspected[0]["Id"], format!("sha256:{named}"));
}

/// With local images as bases, and as a build without any network.
fn the_dockerfile_makes_the_same_files(docker: &Dockerd) {
    let inputs = inputs();
    let manifest = format!("{MANIFEST}entrypoint: [/hello]\nuser: '7'\n");
    fs::write(inputs.path("enclave.yaml"), manifest).unwrap();
    inputs.shell(
        "mkdir -p rootfs/srv && echo private >rootfs/srv/key && chmod 640 rootfs/srv/key && chown 7:8 rootfs/srv/key &&
         ln rootfs/srv/key rootfs/srv/other && ln -s hello rootfs/link && tar --numeric-owner -cf app.tar -C rootfs .",
    );
    let at = inputs.0.path();
    docker.run(at, &["import", "app.tar", "app:1"]);
    fs::create_dir_all(inputs.path("tools/usr/local/bin")).unwrap();
    for name in ["enclavectl", "enclave-shim", "enclave-app"] {
        fs::hard_link(PROGRAM, inputs.path("tools/usr/local/bin").join(name))
            .or_else(|_| fs::copy(PROGRAM, inputs.path("tools/usr/local/bin").join(name)).map(drop))
            .unwrap();
    }
    inputs.shell("mkdir -p context && cp enclave.yaml context && cp kernel context/kernel && tar -cf tools.tar -C tools .");
    docker.run(at, &["import", "tools.tar", "tools:1"]);
    let dockerfile = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Dockerfile");
    let dockerfile = dockerfile.to_str().unwrap();
    let arguments =
        ["--build-arg", "APP=app:1", "--build-arg", "TOOLS=tools:1", "--build-arg", "KERNEL=kernel"];
    let build =
        [&["build", "--network", "none", "--tag", "pod:1", "-f", dockerfile], &arguments[..], &["context"]];
    docker.run(at, &build.concat());

    let arguments = ["--image", "docker-daemon:app:1", "--shim", PROGRAM, "--pod-rootfs", "expected"];
    succeeded(&self::build(docker, &inputs, &arguments));
    docker.run(at, &["save", "-o", "pod.tar", "pod:1"]);
    inputs.shell(
        "mkdir saved found && tar -xf pod.tar -C saved && cat saved/manifest.json >manifest &&
         for layer in $(grep -o '[^\"]*layer.tar' manifest); do tar -xf saved/$layer -C found; done &&
         diff -r expected found && find expected -printf '%P %m\\n' | sort >expected.list &&
         find found -printf '%P %m\\n' | sort >found.list && diff expected.list found.list",
    );
    let config = docker.run(at, &["image", "inspect", "--format", "{{json .Config}}", "pod:1"]);
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["Entrypoint"], json!(["/enclave-shim", "run"]));
    assert_eq!((&config["User"], &config["WorkingDir"]), (&json!("65532:65532"), &json!("/")));
    let built = fs::read(inputs.path("found/enclave/image.eif")).unwrap();
    assert_eq!(Digest::sha256(&built), Digest::sha256(&fs::read(inputs.path("out.eif")).unwrap()));
}

#[test]
fn a_daemon_that_is_not_there_or_not_local_is_named() {
    let inputs = inputs();
    let build = |host: &str| {
        inputs.command(&["--image", "docker-daemon:app"]).env("DOCKER_HOST", host).output().unwrap()
    };
    failed(&build("unix:///nowhere/docker.sock"), 69, "cannot ask Docker at /nowhere/docker.sock");
    failed(&build("tcp://127.0.0.1:2375"), 64, "only unix:// sockets");
}
