//! `enclavectl build` from container images and to container images, as a user
//! runs it. Images are made by tar and converted by skopeo where installed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod inputs;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    process::Command,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use eif::{Image, rootfs::Digest};
use inputs::{Inputs, MANIFEST, PROGRAM, failed, is_installed, succeeded};
use serde_json::{Value, json};

#[test]
fn an_image_has_the_same_bytes_from_every_source() {
    let run = json!({"Entrypoint": ["/hello"], "Cmd": ["serve"], "Env": ["A=1"], "User": "7", "WorkingDir": "/etc"});
    let inputs = Inputs::new(&run);
    let expected = inputs.image(&["--image", "oci:oci"]);
    assert!(expected == inputs.image(&["--image", "oci:oci:v1"]));
    inputs.shell("tar -cf archive.tar -C oci . && gzip -k archive.tar");
    assert!(expected == inputs.image(&["--image", "oci-archive:archive.tar:v1"]));
    assert!(expected == inputs.image(&["--image", "oci-archive:archive.tar.gz"]));
    let elsewhere = Inputs::new(&run);
    assert!(expected == elsewhere.image(&["--image", "oci:oci"]), "another directory");
    if is_installed("skopeo") {
        inputs.shell("skopeo --insecure-policy copy oci:oci:v1 docker-archive:docker.tar:hello:v1");
        assert!(expected == inputs.image(&["--image", "docker-archive:docker.tar"]));
        assert!(expected == inputs.image(&["--image", "docker-archive:docker.tar:hello:v1"]));
    }
}

/// The forms of the image of `inputs` that are files; their members have the dates and owners of `flags`.
fn forms(inputs: &Inputs, flags: &str) -> Vec<&'static str> {
    inputs.shell(&format!("tar {flags} -cf archive.tar -C oci ."));
    let mut forms = vec!["oci:oci", "oci-archive:archive.tar"];
    if is_installed("skopeo") {
        inputs.shell("rm -rf docker.tar members && mkdir members");
        inputs.shell("skopeo --insecure-policy copy -q oci:oci:v1 docker-archive:docker.tar:hello:v1");
        inputs.shell(&format!(
            "tar -xf docker.tar -C members && cd members && tar {flags} -cf ../docker.tar *"
        ));
        forms.push("docker-archive:docker.tar");
    }
    forms
}

fn second() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn files_of_other_dates_have_the_same_bytes_at_another_time() {
    let inputs = Inputs::new(&json!({"Cmd": ["/hello"]}));
    let manifest = format!("{MANIFEST}cmd: [/hello]\n");
    fs::write(inputs.path("enclave.yaml"), manifest).unwrap();
    let images = |flags: &str| {
        let mut forms = forms(&inputs, flags);
        forms.push("rootfs:rootfs");
        forms.into_iter().map(|form| (form, inputs.image(&["--image", form]))).collect::<Vec<_>>()
    };
    let first = images("");
    let built = second();
    inputs.shell("find . -exec touch -h -d @981173106 {} +");
    while second() == built {
        thread::park_timeout(Duration::from_millis(10));
    }
    for ((form, image), (_, later)) in first.iter().zip(images("--mtime=@981173107")) {
        assert!(*image == later, "{form}");
    }
}

#[test]
fn another_user_builds_the_same_bytes_of_its_own_files() {
    const NOBODY: u32 = 65534;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root becomes another user");
        return;
    }
    let inputs = Inputs::new(&json!({"Cmd": ["/hello"]}));
    let expected = inputs.image(&["--image", "oci:oci"]);
    let forms = forms(&inputs, "--owner=65534 --group=65534");
    inputs.shell("mkdir theirs && cp -r oci *.tar kernel enclave.yaml theirs && chmod 711 .");
    let theirs = inputs.path("theirs");
    fs::copy(PROGRAM, theirs.join("enclavectl")).unwrap();
    inputs.shell("chown -R 65534:65534 theirs && chmod -R go= theirs");
    for form in forms {
        // Not PROGRAM: another user may have no way to the build's directory.
        let output = Command::new(theirs.join("enclavectl"))
            .args(["build", "--kernel", "kernel", "--app", "enclave.yaml", "-o", "out.eif"])
            .args(["--agent", "enclavectl", "--image", form])
            .current_dir(&theirs)
            .env_remove("SOURCE_DATE_EPOCH")
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        succeeded(&output);
        assert_eq!(fs::metadata(theirs.join("out.eif")).unwrap().uid(), NOBODY);
        assert!(expected == fs::read(theirs.join("out.eif")).unwrap(), "{form}");
    }
}

#[test]
fn directories_and_tars_have_the_same_bytes_too() {
    let inputs = Inputs::new(&json!({}));
    fs::write(inputs.path("enclave.yaml"), format!("{MANIFEST}cmd: [/hello]\n")).unwrap();
    let expected = inputs.image(&["--rootfs", "rootfs"]);
    assert!(expected == inputs.image(&["--image", "rootfs:rootfs"]));
    let owned_by_root = fs::metadata(inputs.path("rootfs")).is_ok_and(|metadata| metadata.uid() == 0);
    if owned_by_root {
        assert!(expected == inputs.image(&["--image", "tar:layer.tar"]));
        assert!(expected == inputs.image(&["--image", "oci:oci"]));
    }
}

/// OCI image specification, config.md; Kubernetes and `docker run` override
/// ENTRYPOINT and CMD in the same way.
#[test]
fn argv_environment_user_and_directory_follow_the_image_and_the_manifest() {
    struct Case(Value, &'static str, &'static [&'static str], &'static [&'static str], [&'static str; 2]);
    let full = json!({
        "Entrypoint": ["/hello", "-v"], "Cmd": ["serve"],
        "Env": ["PATH=/bin", "B=2", "A=x=y"], "User": "app:www", "WorkingDir": "/srv",
    });
    let cases = [
        Case(json!({"Cmd": ["/a", "b"]}), "", &["/a", "b"], &[], ["0:0", "/"]),
        Case(json!({"Entrypoint": ["/a"], "Cmd": null, "Env": null}), "", &["/a"], &[], ["0:0", "/"]),
        Case(
            full.clone(),
            "",
            &["/hello", "-v", "serve"],
            &["PATH=/bin", "B=2", "A=x=y"],
            ["app:www", "/srv"],
        ),
        Case(
            full.clone(),
            "cmd: [other]\nenv: {B: '3', Z: z, C: c}\nuser: '5'\n",
            &["/hello", "-v", "other"],
            &["PATH=/bin", "B=3", "A=x=y", "C=c", "Z=z"],
            ["5", "/srv"],
        ),
        Case(
            full.clone(),
            "entrypoint: [/b]\nworkdir: /\n",
            &["/b"],
            &["PATH=/bin", "B=2", "A=x=y"],
            ["app:www", "/"],
        ),
        Case(
            full.clone(),
            "entrypoint: [/b]\ncmd: [c]\nenv: {PATH: ''}\n",
            &["/b", "c"],
            &["PATH=", "B=2", "A=x=y"],
            ["app:www", "/srv"],
        ),
        Case(full, "cmd: []\n", &["/hello", "-v"], &["PATH=/bin", "B=2", "A=x=y"], ["app:www", "/srv"]),
        Case(
            json!({"Cmd": ["a"], "Env": ["A=1", "A=2"], "WorkingDir": "relative"}),
            "",
            &["a"],
            &["A=2"],
            ["0:0", "/relative"],
        ),
    ];
    for Case(run, manifest, argv, env, [user, workdir]) in cases {
        let inputs = Inputs::new(&run);
        fs::write(inputs.path("enclave.yaml"), format!("{MANIFEST}{manifest}")).unwrap();
        inputs.image(&["--image", "oci:oci"]);
        let settings = inputs.settings();
        assert_eq!(settings.argv, argv, "{run} {manifest}");
        assert_eq!(settings.env, env, "{run} {manifest}");
        assert_eq!([settings.user, settings.workdir], [user, workdir], "{run} {manifest}");
    }
}

#[test]
fn unusable_sources_are_named_and_leave_nothing_behind() {
    let inputs = Inputs::new(&json!({"Cmd": ["/hello"]}));
    fs::write(inputs.path("short.tar"), &fs::read(inputs.path("layer.tar")).unwrap()[..700]).unwrap();
    let before = inputs.names();
    for (arguments, code, message) in [
        (&["--image", "docker:hello"][..], 64, "a source is docker://NAME"),
        (&["--image", "oci:oci:v2"], 64, "no image v2; there are: v1"),
        (&["--image", "oci:nowhere"], 65, "has no oci-layout"),
        (&["--image", "oci-archive:nowhere"], 66, "cannot read nowhere"),
        (&["--image", "docker-archive:layer.tar"], 65, "has no manifest.json"),
        (&["--image", "tar:short.tar"], 65, "does not end"),
        (&["--image", "oci:oci", "--rootfs", "rootfs"], 64, "cannot be used with"),
        (&[], 64, "required"),
        (&["--image", "oci:oci", "--max-entries", "2"], 65, "more than 2 entries"),
        (&["--image", "oci:oci", "--max-bytes", "2000"], 65, "more than 2000 bytes"),
        (&["--image", "oci:oci", "--shim", PROGRAM], 64, "--pod-image"),
        (
            &["--image", "oci:oci", "--pod-image", "rootfs", "--shim", PROGRAM],
            73,
            "rootfs is there and not empty",
        ),
        (&["--image", "oci:oci", "--pod-image", "new", "--shim", "enclave.yaml"], 65, "not a 64-bit"),
    ] {
        failed(&inputs.build(arguments), code, message);
        assert_eq!(inputs.names(), before, "{arguments:?}");
    }
}

/// Builds a pod image at `path`; gives its manifest's digest.
fn pod_image(inputs: &Inputs, path: &str) -> String {
    let built = succeeded(&inputs.build(&["--image", "oci:oci", "--pod-image", path, "--shim", PROGRAM]));
    built["PodImage"].as_str().unwrap().to_owned()
}

#[test]
fn a_pod_image_holds_the_shim_the_enclave_image_and_its_configuration_and_nothing_else() {
    let inputs = Inputs::new(&json!({"Cmd": ["/hello"]}));
    let digest = pod_image(&inputs, "pod");
    let blob = |digest: &Value| {
        let digest: Digest = digest.as_str().unwrap().parse().unwrap();
        let bytes = fs::read(inputs.path("pod/blobs/sha256").join(digest.hex())).unwrap();
        assert_eq!(Digest::sha256(&bytes), digest);
        bytes
    };
    let index: Value = serde_json::from_slice(&fs::read(inputs.path("pod/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], digest);
    assert_eq!(index["manifests"][0]["platform"], json!({"architecture": "amd64", "os": "linux"}));
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0]["digest"])).unwrap();
    let config: Value = serde_json::from_slice(&blob(&manifest["config"]["digest"])).unwrap();
    assert_eq!(config["config"]["Entrypoint"], json!(["/enclave-shim", "run"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    let measured = Image::parse(&fs::read(inputs.path("out.eif")).unwrap()).unwrap().measure().unwrap();
    assert_eq!(config["config"]["Labels"]["enclave-shim.pcr0"], measured.pcr0.to_string());

    fs::write(inputs.path("layer"), blob(&manifest["layers"][0]["digest"])).unwrap();
    inputs.shell("mkdir unpacked && tar -xf layer -C unpacked && tar --numeric-owner -tvf layer > listing");
    let listing = fs::read_to_string(inputs.path("listing")).unwrap();
    let modes: BTreeMap<&str, &str> = listing
        .lines()
        .map(|line| (line.rsplit(' ').next().unwrap(), line.split(' ').next().unwrap()))
        .collect();
    let expected = [
        ("enclave-shim", "-rwxr-xr-x"),
        ("enclave/", "drwxr-xr-x"),
        ("enclave/image.eif", "-rw-r--r--"),
        ("enclave/shim.yaml", "-rw-r--r--"),
    ];
    assert_eq!(modes, BTreeMap::from(expected));
    let unpacked = |name: &str| fs::read(inputs.path("unpacked").join(name)).unwrap();
    assert!(unpacked("enclave/image.eif") == fs::read(inputs.path("out.eif")).unwrap());
    assert!(unpacked("enclave-shim") == fs::read(PROGRAM).unwrap());
    let yaml = String::from_utf8(unpacked("enclave/shim.yaml")).unwrap();
    assert!(yaml.contains("- listen: 0.0.0.0:8080\n  port: 8080\n"), "{yaml}");
}

#[test]
fn a_pod_image_has_the_same_digest_in_every_form_and_place() {
    let (first, second) =
        (Inputs::new(&json!({"Cmd": ["/hello"]})), Inputs::new(&json!({"Cmd": ["/hello"]})));
    let digest = pod_image(&first, "pod");
    assert_eq!(pod_image(&first, "pod.tar"), digest);
    assert_eq!(pod_image(&second, "elsewhere.tar"), digest);
    let bytes = |inputs: &Inputs, name: &str| fs::read(inputs.path(name)).unwrap();
    assert!(bytes(&first, "pod.tar") == bytes(&second, "elsewhere.tar"));
    first.shell("mkdir unpacked && tar -xf pod.tar -C unpacked && diff -r unpacked pod");
    // Its own configuration is used as it is.
    fs::write(first.path("shim.yaml"), "cpus: 4\n").unwrap();
    let arguments =
        ["--image", "oci:oci", "--pod-image", "own.tar", "--shim", PROGRAM, "--shim-config", "shim.yaml"];
    assert_ne!(succeeded(&first.build(&arguments))["PodImage"], digest);
}

#[test]
fn skopeo_reads_a_pod_image_in_each_of_its_forms() {
    if !is_installed("skopeo") {
        return;
    }
    let inputs = Inputs::new(&json!({"Cmd": ["/hello"]}));
    let digest = pod_image(&inputs, "pod");
    pod_image(&inputs, "pod.tar");
    for source in ["oci:pod:1.2", "oci-archive:pod.tar:1.2", "docker-archive:pod.tar:hello:1.2"] {
        let inspected = inputs.shell(&format!("skopeo --insecure-policy inspect {source}"));
        let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
        assert_eq!((&inspected["Os"], &inspected["Architecture"]), (&"linux".into(), &"amd64".into()));
        if !source.starts_with("docker") {
            assert_eq!(inspected["Digest"], digest);
        }
        inputs.shell(&format!("skopeo --insecure-policy copy {source} dir:copy && rm -r copy"));
    }
}
