//! Promise: building, inspecting and comparing images of 200,000 files takes
//! at most 64 MiB of writable anonymous memory, as the kernel counts it
//! (RLIMIT_DATA), with everything that a build can write besides.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod inputs;
mod server;
mod workshop;

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
    process::{Command, Output},
};

use eif::rootfs::Digest;
use inputs::{Inputs, MANIFEST};
use serde_json::json;
use server::Registry;
use workshop::{CURVES, PROGRAM, Workshop, succeeded};

const FILES: usize = 200_000;
const LIMIT: u64 = 64 << 20;
/// Bytes that a file system in memory needs for [`FILES`] files of a page.
const TREE: u64 = 1 << 30;

fn within(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("prlimit");
    command.arg(format!("--data={LIMIT}")).arg(PROGRAM).args(arguments);
    command.current_dir(directory).output().unwrap()
}

/// An archive of [`FILES`] files and this machine's list of packages.
fn archive(path: &Path, last: &str) {
    let mut output = BufWriter::new(fs::File::create(path).unwrap());
    for index in 0..FILES {
        let path = format!("srv/{:03}/file-with-a-rather-long-name-{index:08}.json", index % 500);
        let content = if index == FILES - 1 { last } else { "content\n" };
        member(&mut output, &path, content.as_bytes());
    }
    let status = fs::read(Path::new("/var/lib/dpkg/status")).unwrap_or_default();
    member(&mut output, "var/lib/dpkg/status", &status);
    output.write_all(&[0; 1024]).unwrap();
    output.flush().unwrap();
}

#[test]
fn two_hundred_thousand_files_are_built_signed_recorded_inspected_and_compared_within_64_mib() {
    let workshop = Workshop::new();
    archive(&workshop.path("a.tar"), "one\n");
    archive(&workshop.path("b.tar"), "two\n");
    let signed = workshop.signer("signer", CURVES[1].0);
    let build = |source: &str, output: &str| {
        let flags = ["--signing-certificate", "signer.pem", "--private-key", "signer.key"];
        let common =
            ["build", "--image", source, "--kernel", "kernel", "--app", "enclave.yaml", "--agent", PROGRAM];
        let records = ["-o", output, "--sbom", "sbom", "--provenance", "provenance"];
        let flags = if signed { &flags[..] } else { &[] };
        succeeded(&within(workshop.0.path(), &[&common[..], &records, flags].concat()));
    };
    build("tar:a.tar", "a.eif");
    build("tar:b.tar", "b.eif");
    succeeded(&within(workshop.0.path(), &["inspect", "a.eif"]));
    let differ = within(workshop.0.path(), &["diff", "a.eif", "b.eif"]);
    assert_eq!(differ.status.code(), Some(1), "{differ:?}");
    let text = String::from_utf8(differ.stdout).unwrap();
    assert!(text.contains(&format!("-{:08}.json: content from byte 0\n", FILES - 1)), "{text}");
}

#[test]
fn as_many_come_from_a_registry_and_go_to_it_as_a_pod_image_within_64_mib() {
    let Some(registry) = Registry::start("") else { return };
    let run = json!({"Cmd": ["/hello"]});
    let inputs = Inputs::new(&run);
    archive(&inputs.path("layer.tar"), "one\n");
    inputs.layout(&run);
    let (source, pod) =
        (format!("docker://{}/large:v1", registry.address), format!("{}/pod:v1", registry.address));
    inputs.shell(&format!("skopeo --insecure-policy copy -q --dest-tls-verify=false oci:oci:v1 {source}"));
    let common =
        ["build", "--kernel", "kernel", "--app", "enclave.yaml", "-o", "out.eif", "--agent", PROGRAM];
    let registry_flags = ["--image", &source, "--shim", PROGRAM, "--push", &pod, "--sbom", "sbom"];
    succeeded(&within(inputs.0.path(), &[&common[..], &registry_flags].concat()));
    assert_eq!(registry.tags("pod"), ["v1"]);
    assert!(fs::metadata(inputs.path("out.eif")).unwrap().len() > FILES as u64 * 128, "every file is there");
}

#[test]
fn as_many_come_from_a_docker_archive_and_from_a_directory_within_64_mib() {
    let inputs = Inputs::new(&json!({}));
    fs::write(inputs.path("enclave.yaml"), format!("{MANIFEST}cmd: [/hello]\n")).unwrap();
    archive(&inputs.path("layer.tar"), "one\n");
    let layer = Digest::sha256(&fs::read(inputs.path("layer.tar")).unwrap()).to_string();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer]}});
    fs::write(inputs.path("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["large:v1"], "Layers": ["layer.tar"]}]);
    fs::write(inputs.path("manifest.json"), manifest.to_string()).unwrap();
    inputs.shell("tar -cf docker.tar manifest.json config.json layer.tar");
    let build = |source: &str| {
        let common = ["build", "--kernel", "kernel", "--app", "enclave.yaml", "-o", "out.eif"];
        succeeded(&within(
            inputs.0.path(),
            &[&common[..], &["--agent", PROGRAM, "--image", source]].concat(),
        ));
        Digest::sha256(&fs::read(inputs.path("out.eif")).unwrap())
    };
    assert!(
        fs::metadata(inputs.path("layer.tar")).unwrap().len() > FILES as u64 * 1024,
        "every file is there"
    );
    let expected = build("docker-archive:docker.tar");
    // In memory: a disk takes minutes to make and remove as many files.
    let memory = nix::sys::statvfs::statvfs("/dev/shm").unwrap();
    if memory.blocks_available() * memory.fragment_size() < TREE {
        eprintln!("REDUCED: /dev/shm has less than {TREE} bytes for a directory of as many files");
        return;
    }
    let large = tempfile::tempdir_in("/dev/shm").unwrap();
    let directory = large.path().display();
    inputs.shell(&format!("tar -xf layer.tar -C {directory}"));
    assert_eq!(build(&format!("rootfs:{directory}")), expected);
}

/// One file in ustar.
fn member(output: &mut impl Write, path: &str, content: &[u8]) {
    let mut block = [0u8; 512];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[148..156].fill(b' ');
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    output.write_all(&block).unwrap();
    output.write_all(content).unwrap();
    output.write_all(&vec![0; content.len().next_multiple_of(512) - content.len()]).unwrap();
}
