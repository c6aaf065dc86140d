//! `enclavectl build` from container images and to container images, as a user
//! runs it. Images are made by tar and converted by skopeo where installed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use eif::{Image, rootfs::Digest};
use serde_json::{Value, json};
use tempfile::TempDir;
use wire::settings::Settings;

const PROGRAM: &str = env!("CARGO_BIN_EXE_enclavectl");
const MANIFEST: &str = "name: hello\nversion: '1.2'\ningress: [8080]\n";

/// A container image as a layout, kernel and manifest, in one directory.
struct Inputs(TempDir);

impl Inputs {
    fn new(run: &Value) -> Inputs {
        let inputs = Inputs(tempfile::tempdir().unwrap());
        fs::create_dir_all(inputs.path("rootfs/etc")).unwrap();
        fs::write(inputs.path("rootfs/hello"), "program").unwrap();
        fs::write(inputs.path("rootfs/etc/motd"), "hello\n").unwrap();
        for (name, mode) in [("rootfs/hello", 0o755), ("rootfs/etc/motd", 0o644), ("rootfs/etc", 0o755)] {
            fs::set_permissions(inputs.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(inputs.path("enclave.yaml"), MANIFEST).unwrap();
        fs::write(inputs.path("kernel"), bzimage()).unwrap();
        let root = "--owner=0 --group=0 --mtime=@0 --sort=name";
        inputs.shell(&format!("tar {root} -cf layer.tar -C rootfs etc hello"));
        inputs.layout(run);
        inputs
    }

    /// The layout `oci`, of layer.tar.
    fn layout(&self, run: &Value) {
        fs::create_dir_all(self.path("oci/blobs/sha256")).unwrap();
        fs::write(self.path("oci/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layer =
            self.blob("application/vnd.oci.image.layer.v1.tar", &fs::read(self.path("layer.tar")).unwrap());
        let rootfs = json!({"type": "layers", "diff_ids": [layer["digest"]]});
        let config = json!({"architecture": "amd64", "os": "linux", "config": run, "rootfs": rootfs});
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let mut manifest =
            self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(self.path("oci/index.json"), index.to_string()).unwrap();
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::sha256(bytes);
        fs::write(self.path("oci/blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn shell(&self, command: &str) -> Output {
        let output = Command::new("sh").args(["-c", command]).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        output
    }

    /// This program itself serves as agent and shim, being a static program.
    fn build(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM)
            .current_dir(self.0.path())
            .env_remove("SOURCE_DATE_EPOCH")
            .args([
                "build",
                "--kernel",
                "kernel",
                "--app",
                "enclave.yaml",
                "-o",
                "out.eif",
                "--agent",
                PROGRAM,
            ])
            .args(arguments)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn image(&self, arguments: &[&str]) -> Vec<u8> {
        succeeded(&self.build(arguments));
        fs::read(self.path("out.eif")).unwrap()
    }

    /// The agent's settings in the image that was built last.
    fn settings(&self) -> Settings {
        let bytes = fs::read(self.path("out.eif")).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let section = image.layout().ramdisks().nth(1).unwrap();
        let input = std::io::BufReader::new(image.reader(section));
        let mut reader = eif::cpio::Reader::new(input).unwrap();
        let found = std::iter::from_fn(|| reader.next_entry().unwrap())
            .find(|entry| entry.name == wire::settings::SETTINGS_PATH.as_bytes()[1..])
            .unwrap();
        let start = (section.payload.start + found.data_offset) as usize;
        Settings::from_json(&bytes[start..start + found.size as usize]).unwrap()
    }
}

/// As much of a bzImage as identifies one (Documentation/arch/x86/boot.rst).
fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0x90; 0x8000];
    bytes[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20E..0x210].copy_from_slice(&[0, 0]);
    bytes
}

#[track_caller]
fn succeeded(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn failed(output: &Output, code: i32, expected: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
}

fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: the program {program} is not installed");
    }
    found
}

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
    assert!(expected == elsewhere.image(&["--image", "oci:oci"]), "another directory, another time");
    if is_installed("skopeo") {
        inputs.shell("skopeo --insecure-policy copy oci:oci:v1 docker-archive:docker.tar:hello:v1");
        assert!(expected == inputs.image(&["--image", "docker-archive:docker.tar"]));
        assert!(expected == inputs.image(&["--image", "docker-archive:docker.tar:hello:v1"]));
    }
}

#[test]
fn directories_and_tars_have_the_same_bytes_too() {
    let inputs = Inputs::new(&json!({}));
    fs::write(inputs.path("enclave.yaml"), format!("{MANIFEST}cmd: [/hello]\n")).unwrap();
    let expected = inputs.image(&["--rootfs", "rootfs"]);
    assert!(expected == inputs.image(&["--image", "rootfs:rootfs"]));
    let owned_by_root = fs::metadata(inputs.path("rootfs"))
        .is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0);
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
    let before = names(inputs.0.path());
    for (arguments, code, message) in [
        (&["--image", "docker://hello"][..], 64, "a source is oci:DIR"),
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
        assert_eq!(names(inputs.0.path()), before, "{arguments:?}");
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
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
