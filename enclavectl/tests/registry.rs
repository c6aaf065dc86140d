//! Images from and to a registry: Debian's docker-registry on loopback, filled
//! and read back by skopeo.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod inputs;
mod server;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use eif::rootfs::Digest;
use inputs::{Inputs, MANIFEST, PROGRAM, failed, succeeded};
use serde_json::{Value, json};
use server::{Cut, Registry};

const USER: &str = "builder";
const PASSWORD: &str = "s3cret";

fn inputs() -> Inputs {
    Inputs::new(&json!({"Entrypoint": ["/hello"], "Cmd": ["serve"], "Env": ["A=1"], "User": "7"}))
}

/// An image whose layer takes more than one piece to carry.
fn large_inputs() -> Inputs {
    let inputs = inputs();
    let noise: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(inputs.path("rootfs/noise"), noise).unwrap();
    inputs.shell("tar --owner=0 --group=0 --mtime=@0 --sort=name -cf layer.tar -C rootfs etc hello noise");
    inputs.layout(&json!({"Cmd": ["/hello"]}));
    inputs
}

/// Sends the layout's image to the registry by a tool of other hands.
fn fill(inputs: &Inputs, registry: &Registry, name: &str) {
    let address = registry.address;
    inputs.shell(&format!(
        "skopeo --insecure-policy copy -q --preserve-digests --dest-tls-verify=false oci:oci:v1 docker://{address}/{name}"
    ));
}

fn manifest_digest(inputs: &Inputs) -> String {
    let index: Value = serde_json::from_slice(&fs::read(inputs.path("oci/index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

/// Writes Docker's configuration for the test.
fn docker_config(inputs: &Inputs, config: &Value) {
    fs::create_dir_all(inputs.path("docker")).unwrap();
    fs::write(inputs.path("docker/config.json"), config.to_string()).unwrap();
}

fn auths(registry: &Registry, password: &str) -> Value {
    json!({"auths": {registry.address.to_string(): {"auth": STANDARD.encode(format!("{USER}:{password}"))}}})
}

#[test]
fn an_image_from_a_registry_has_the_same_bytes_as_its_layout() {
    let Some(registry) = Registry::start("") else { return };
    let inputs = inputs();
    let expected = inputs.image(&["--image", "oci:oci"]);
    fill(&inputs, &registry, "team/app:v1");
    let name = format!("docker://{}/team/app", registry.address);
    let digest = manifest_digest(&inputs);
    let unpinned = inputs.build(&["--image", &format!("{name}:v1")]);
    succeeded(&unpinned);
    let told = String::from_utf8_lossy(&unpinned.stderr).into_owned();
    assert!(told.contains(&format!("name it with @{digest}")), "{told}");
    assert!(fs::read(inputs.path("out.eif")).unwrap() == expected);
    for pinned in [format!("{name}@{digest}"), format!("{name}:v1@{digest}")] {
        let output = inputs.build(&["--image", &pinned]);
        succeeded(&output);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "nothing is left to say");
        assert!(fs::read(inputs.path("out.eif")).unwrap() == expected);
    }
    // The manifest can name it as well.
    fs::write(inputs.path("enclave.yaml"), format!("{MANIFEST}image: {name}@{digest}\n")).unwrap();
    assert!(inputs.image(&[]) == expected);
}

#[test]
fn what_is_not_there_or_has_another_digest_is_refused() {
    let Some(registry) = Registry::start("") else { return };
    let inputs = inputs();
    fill(&inputs, &registry, "app:v1");
    let before = inputs.names();
    let name = format!("docker://{}/app", registry.address);
    let other = Digest::sha256(b"other").to_string();
    for missing in [format!("{name}:v2"), format!("{name}@{other}"), name.replace("/app", "/none")] {
        failed(&inputs.build(&["--image", &missing]), 66, "has no");
        assert_eq!(inputs.names(), before, "{missing}");
    }
    // A registry whose files were changed behind its back: first the layer, then the configuration.
    let digest = manifest_digest(&inputs);
    let manifest: Value = serde_json::from_slice(&registry.blob(&digest.parse().unwrap())).unwrap();
    for part in [&manifest["layers"][0], &manifest["config"]] {
        let part: Digest = part["digest"].as_str().unwrap().parse().unwrap();
        let bytes = registry.blob(&part);
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        fs::write(registry.blob_path(&part), changed).unwrap();
        failed(&inputs.build(&["--image", &format!("{name}:v1")]), 65, "expected sha256:");
        fs::write(registry.blob_path(&part), bytes).unwrap();
    }
    let mut changed = registry.blob(&digest.parse().unwrap());
    changed.push(b'\n');
    fs::write(registry.blob_path(&digest.parse().unwrap()), changed).unwrap();
    let output = inputs.build(&["--image", &format!("{name}@{digest}")]);
    assert!(!output.status.success());
    assert_eq!(inputs.names(), before);
}

#[test]
fn the_image_for_the_kernels_architecture_is_fetched_and_no_other() {
    let Some(registry) = Registry::start("") else { return };
    let inputs = inputs();
    let expected = inputs.image(&["--image", "oci:oci"]);
    let index: Value = serde_json::from_slice(&fs::read(inputs.path("oci/index.json")).unwrap()).unwrap();
    let mut amd64 = index["manifests"][0].clone();
    amd64["platform"] = json!({"architecture": "amd64", "os": "linux"});
    amd64.as_object_mut().unwrap().remove("annotations");
    // The other image is not even an image: nobody may look at it.
    let mut arm64 = inputs.blob("application/vnd.oci.image.manifest.v1+json", b"{}");
    arm64["platform"] = json!({"architecture": "arm64", "os": "linux"});
    let document = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [arm64, amd64],
    });
    fill(&inputs, &registry, "app:one");
    let fake = registry.serve_index(&document.to_string());
    assert!(inputs.image(&["--image", &format!("docker://{fake}/app:both")]) == expected);
}

#[test]
fn credentials_are_those_of_dockers_configuration() {
    let Some(registry) = Registry::start(server::HTPASSWD) else { return };
    let inputs = inputs();
    let address = registry.address.to_string();
    inputs.shell(&format!(
        "skopeo --insecure-policy copy -q --preserve-digests --dest-tls-verify=false --dest-creds {USER}:{PASSWORD} oci:oci:v1 docker://{address}/app:v1"
    ));
    let image = format!("docker://{address}/app:v1");
    let arguments = ["--image", image.as_str()];
    failed(&inputs.build(&arguments), 77, "without credentials");
    docker_config(&inputs, &auths(&registry, "wrong"));
    failed(&inputs.build(&arguments), 77, "with the credentials of Docker's configuration");
    docker_config(&inputs, &auths(&registry, PASSWORD));
    succeeded(&inputs.build(&arguments));

    // A helper of one registry, and the store of all.
    let helper = inputs.path("docker-credential-test");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {address} ] || {{ echo credentials not found in native keychain; exit 1; }}\n\
         echo '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n"
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", inputs.0.path().display(), std::env::var("PATH").unwrap());
    let with_helper = || inputs.command(&arguments).env("PATH", &path).output().unwrap();
    for config in [
        json!({"credHelpers": {address.clone(): "test"}}),
        json!({"credsStore": "test"}),
        json!({"credsStore": "test", "auths": {address.clone(): {}}}),
    ] {
        docker_config(&inputs, &config);
        succeeded(&with_helper());
    }
    fs::write(&helper, "#!/bin/sh\ncat >/dev/null; echo credentials not found in native keychain; exit 1\n")
        .unwrap();
    failed(&with_helper(), 77, "without credentials");
    fs::write(&helper, "#!/bin/sh\ncat >/dev/null; echo broken >&2; exit 3\n").unwrap();
    failed(&with_helper(), 64, "cannot use the credentials for 127.0.0.1");
    docker_config(&inputs, &json!({"auths": {address: {"auth": "", "identitytoken": "x"}}}));
    failed(&inputs.build(&arguments), 64, "identity token");
    fs::write(inputs.path("docker/config.json"), "no JSON").unwrap();
    failed(&inputs.build(&arguments), 64, "cannot use the credentials");
}

#[test]
fn a_pod_image_is_pushed_and_is_the_one_that_would_be_written() {
    let Some(registry) = Registry::start(server::HTPASSWD) else { return };
    let inputs = inputs();
    let name = format!("{}/team/pod:1", registry.address);
    let push = ["--image", "oci:oci", "--shim", PROGRAM, "--push", &name];
    // Found out before anything is built.
    failed(&inputs.build(&push), 77, "denies access");
    docker_config(&inputs, &auths(&registry, "wrong"));
    failed(&inputs.build(&push), 77, "denies access");
    assert!(!inputs.path("out.eif").exists());

    docker_config(&inputs, &auths(&registry, PASSWORD));
    let built = succeeded(&inputs.build(&[&push[..], &["--pod-image", "pod"]].concat()));
    let digest = built["PodImage"].as_str().unwrap();
    assert_eq!(built["Pushed"], format!("{name}@{digest}"));
    let creds = format!("--tls-verify=false --creds {USER}:{PASSWORD}");
    let inspected = inputs.shell(&format!("skopeo --insecure-policy inspect {creds} docker://{name}"));
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["Digest"], digest);
    inputs.shell(&format!(
        "skopeo --insecure-policy copy -q --preserve-digests --src-tls-verify=false --src-creds {USER}:{PASSWORD} docker://{name} oci:back:1 &&
         for blob in back/blobs/sha256/*; do cmp $blob pod/blobs/sha256/${{blob##*/}} || exit 1; done"
    ));
    // Everything is there already: the same again, and without a local copy.
    assert_eq!(succeeded(&inputs.build(&push))["PodImage"], digest);
    failed(&inputs.build(&["--image", "oci:oci", "--push", &format!("{name}@{digest}")]), 64, "has its own");
}

#[test]
fn an_image_whose_records_cannot_be_written_is_not_pushed() {
    let Some(registry) = Registry::start("") else { return };
    let inputs = inputs();
    let name = format!("{}/pod:1", registry.address);
    for flag in ["--sbom", "--provenance"] {
        let push = ["--image", "oci:oci", "--shim", PROGRAM, "--push", &name, flag, "missing/file"];
        failed(&inputs.build(&push), 73, "missing/file");
        assert_eq!(registry.tags("pod"), [""; 0], "{flag}");
    }
    let push = ["--image", "oci:oci", "--shim", PROGRAM, "--push", &name, "--sbom", "sbom"];
    succeeded(&inputs.build(&push));
    assert_eq!(registry.tags("pod"), ["1"]);
}

#[test]
fn a_cut_download_goes_on_where_it_ended_and_ends_when_that_does_not_help() {
    let Some(registry) = Registry::start("") else { return };
    let inputs = large_inputs();
    let expected = inputs.image(&["--image", "oci:oci"]);
    fill(&inputs, &registry, "app:v1");
    let before = inputs.names();
    let proxy = Cut::of(registry.address).downloads_after(1 << 20).times(2).start();
    assert!(inputs.image(&["--image", &format!("docker://{}/app:v1", proxy.address)]) == expected);
    assert_eq!(proxy.cuts(), 2);
    let carried = proxy.downloaded();
    assert!(carried < (3 << 20) + (1 << 19), "{carried} bytes: nothing is fetched twice");

    let proxy = Cut::of(registry.address).downloads_after(100 << 10).start();
    failed(
        &inputs.build(&["--image", &format!("docker://{}/app:v1", proxy.address)]),
        69,
        "was interrupted 4 times",
    );
    assert_eq!(inputs.names(), before);
}

#[test]
fn a_cut_upload_is_begun_again_and_no_tag_appears_before_all_is_there() {
    let Some(registry) = Registry::start("") else { return };
    let inputs = large_inputs();
    let push = |address: std::net::SocketAddr| {
        inputs.build(&["--image", "oci:oci", "--shim", PROGRAM, "--push", &format!("{address}/pod:1")])
    };
    let proxy = Cut::of(registry.address).uploads_after(1 << 20).start();
    failed(&push(proxy.address), 69, "was interrupted 4 times");
    assert_eq!(registry.tags("pod"), [""; 0]);
    assert!(!inputs.path("out.eif").exists(), "a failed push fails the build");
    let proxy = Cut::of(registry.address).uploads_after(1 << 20).times(2).start();
    succeeded(&push(proxy.address));
    assert_eq!(proxy.cuts(), 2);
    assert_eq!(registry.tags("pod"), ["1"]);
}

#[test]
fn a_registry_with_tls_is_believed_by_its_certificate_alone() {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str| files.path().join(name);
    let script = "
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority \\
            -keyout authority.key -out authority.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=registry \\
            -keyout key.pem -out request.pem
        echo subjectAltName=IP:127.0.0.1 >extensions
        openssl x509 -req -in request.pem -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 \\
            -extfile extensions -out cert.pem";
    let made = Command::new("sh").args(["-euc", script]).current_dir(files.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let tls = format!(
        "  tls: {{certificate: {}, key: {}}}\n",
        file("cert.pem").display(),
        file("key.pem").display()
    );
    let Some(registry) = Registry::start(&tls) else { return };
    let inputs = inputs();
    fill(&inputs, &registry, "app:v1");
    let image = format!("docker://{}/app:v1", registry.address);
    let build =
        |roots: PathBuf| inputs.command(&["--image", &image]).env("SSL_CERT_FILE", roots).output().unwrap();
    succeeded(&build(file("authority.pem")));
    failed(&build(PathBuf::from("/etc/ssl/certs/ca-certificates.crt")), 69, "cannot reach registry");
}

#[test]
fn a_registry_elsewhere_is_not_asked_without_tls() {
    // A name that leads nowhere (RFC 6761): what matters is what would be tried.
    let inputs = inputs();
    let output = inputs.build(&["--image", "docker://registry.invalid/app:v1"]);
    failed(&output, 69, "with --plain-http it would be asked without TLS");
}
