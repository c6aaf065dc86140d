//! Promise: building, inspecting and comparing images of 200,000 files takes
//! at most 64 MiB of writable anonymous memory, as the kernel counts it
//! (RLIMIT_DATA), with everything that a build can write besides.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod workshop;

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
    process::{Command, Output},
};

use workshop::{CURVES, PROGRAM, Workshop, succeeded};

const FILES: usize = 200_000;
const LIMIT: u64 = 64 << 20;

fn within(workshop: &Workshop, arguments: &[&str]) -> Output {
    let mut command = Command::new("prlimit");
    command.arg(format!("--data={LIMIT}")).arg(PROGRAM).args(arguments);
    command.current_dir(workshop.0.path()).output().unwrap()
}

#[test]
fn two_hundred_thousand_files_are_built_signed_recorded_inspected_and_compared_within_64_mib() {
    let workshop = Workshop::new();
    let tar = |name: &str, last: &str| {
        let mut output = BufWriter::new(fs::File::create(workshop.path(name)).unwrap());
        for index in 0..FILES {
            let path = format!("srv/{:03}/file-with-a-rather-long-name-{index:08}.json", index % 500);
            let content = if index == FILES - 1 { last } else { "content\n" };
            member(&mut output, &path, content.as_bytes());
        }
        let status = fs::read(Path::new("/var/lib/dpkg/status")).unwrap_or_default();
        member(&mut output, "var/lib/dpkg/status", &status);
        output.write_all(&[0; 1024]).unwrap();
        output.flush().unwrap();
    };
    tar("a.tar", "one\n");
    tar("b.tar", "two\n");
    let signed = workshop.signer("signer", CURVES[1].0);
    let build = |source: &str, output: &str| {
        let flags = ["--signing-certificate", "signer.pem", "--private-key", "signer.key"];
        let common =
            ["build", "--image", source, "--kernel", "kernel", "--app", "enclave.yaml", "--agent", PROGRAM];
        let records = ["-o", output, "--sbom", "sbom", "--provenance", "provenance"];
        let flags = if signed { &flags[..] } else { &[] };
        succeeded(&within(&workshop, &[&common[..], &records, flags].concat()));
    };
    build("tar:a.tar", "a.eif");
    build("tar:b.tar", "b.eif");
    succeeded(&within(&workshop, &["inspect", "a.eif"]));
    let differ = within(&workshop, &["diff", "a.eif", "b.eif"]);
    assert_eq!(differ.status.code(), Some(1), "{differ:?}");
    let text = String::from_utf8(differ.stdout).unwrap();
    assert!(text.contains(&format!("-{:08}.json: content from byte 0\n", FILES - 1)), "{text}");
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
