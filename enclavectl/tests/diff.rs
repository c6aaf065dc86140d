//! Promise: `diff` names every difference of two images, section by section
//! and file by file, and nothing else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod workshop;

use std::{fs, os::unix::fs::PermissionsExt, process::Output};

use serde_json::Value;
use workshop::{CURVES, Workshop, failed, succeeded};

fn diff(workshop: &Workshop, more: &[&str]) -> Output {
    workshop.enclavectl(&[&["diff", "a.eif", "b.eif"][..], more].concat()).output().unwrap()
}

/// The report of two images that differ.
#[track_caller]
fn report(workshop: &Workshop) -> Value {
    let output = diff(workshop, &["--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names<'a>(report: &'a Value, list: &str, field: &str) -> Vec<&'a str> {
    report[list].as_array().unwrap().iter().map(|entry| entry[field].as_str().unwrap()).collect()
}

#[test]
fn the_same_build_twice_does_not_differ() {
    let workshop = Workshop::new();
    for name in ["a.eif", "b.eif"] {
        succeeded(&workshop.build(name, &[]).output().unwrap());
    }
    assert_eq!(succeeded(&diff(&workshop, &[])), "the images are the same\n");
    let report: Value = serde_json::from_str(&succeeded(&diff(&workshop, &["--json"]))).unwrap();
    assert_eq!(report["Same"], true);
}

#[test]
fn every_kind_of_change_to_a_file_is_named_and_no_other_file() {
    let workshop = Workshop::new();
    let path = |name: &str| workshop.path(name);
    fs::write(path("rootfs/etc/gone"), "x").unwrap();
    fs::write(path("rootfs/etc/mode"), "x").unwrap();
    fs::write(path("rootfs/etc/longer"), "x").unwrap();
    fs::write(path("rootfs/etc/same"), "x").unwrap();
    succeeded(&workshop.build("a.eif", &[]).output().unwrap());
    fs::remove_file(path("rootfs/etc/gone")).unwrap();
    fs::write(path("rootfs/etc/added"), "x").unwrap();
    fs::write(path("rootfs/etc/longer"), "xy").unwrap();
    fs::write(path("rootfs/etc/motd"), "hellO\n").unwrap();
    let before = fs::metadata(path("rootfs/etc/mode")).unwrap().permissions().mode();
    fs::set_permissions(path("rootfs/etc/mode"), fs::Permissions::from_mode(before ^ 0o100)).unwrap();
    succeeded(&workshop.build("b.eif", &[]).output().unwrap());

    let report = report(&workshop);
    assert_eq!(names(&report, "Values", "Name"), ["PCR0", "PCR2", "checksum"]);
    let [section] = report["Sections"].as_array().unwrap().as_slice() else { panic!("{report:#}") };
    assert_eq!(section["Name"], "ramdisk 1");
    let files: Vec<_> = section["Files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            let path = file["Path"].as_str().unwrap().strip_prefix("workload/rootfs/etc/").unwrap();
            let aspects = file["Aspects"].as_array().map(Vec::as_slice).unwrap_or_default();
            let aspects: Vec<_> = aspects.iter().map(|aspect| aspect["Name"].as_str().unwrap()).collect();
            format!("{path} {} {}", file["Change"].as_str().unwrap(), aspects.join(","))
        })
        .collect();
    let expected = [
        "added added ",
        "gone removed ",
        "longer modified size",
        "mode modified mode",
        "motd modified content from byte 4",
    ];
    assert_eq!(files, expected);

    let text = String::from_utf8(diff(&workshop, &[]).stdout).unwrap();
    for line in [
        "  - workload/rootfs/etc/gone\n",
        "  + workload/rootfs/etc/added\n",
        "  ~ workload/rootfs/etc/longer: size 1 | 2\n",
        "  ~ workload/rootfs/etc/motd: content from byte 4\n",
        &format!("mode: mode {before:o} | {:o}\n", before ^ 0o100),
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn kernel_command_line_metadata_and_signature_are_compared() {
    let workshop = Workshop::new();
    succeeded(&workshop.build("a.eif", &["--cmdline", "quiet"]).output().unwrap());
    let mut kernel = fs::read(workshop.path("kernel")).unwrap();
    kernel[0x7000] ^= 1;
    fs::write(workshop.path("kernel"), kernel).unwrap();
    let signed = workshop.signer("signer", CURVES[1].0);
    let flags = ["--signing-certificate", "signer.pem", "--private-key", "signer.key"];
    let flags = if signed { &flags[..] } else { &[] };
    let mut second = workshop.build("b.eif", &[&["--cmdline", "loud"][..], flags].concat());
    succeeded(&second.env("SOURCE_DATE_EPOCH", "1732406400").output().unwrap());

    let report = report(&workshop);
    let mut values = vec!["PCR0", "PCR1"];
    values.extend(signed.then_some("PCR8"));
    values.extend(["checksum", "command line", "metadata.BuildMetadata.BuildTime"]);
    values.extend(signed.then_some("signer"));
    assert_eq!(names(&report, "Values", "Name"), values);
    let mut sections = vec!["kernel", "cmdline", "metadata"];
    sections.extend(signed.then_some("signature"));
    assert_eq!(names(&report, "Sections", "Name"), sections);
    assert_eq!(report["Sections"][0]["FirstDifference"], 0x7000);

    let text = String::from_utf8(diff(&workshop, &[]).stdout).unwrap();
    assert!(text.contains("command line\n  - \"quiet\"\n  + \"loud\"\n"), "{text}");
    assert!(text.contains("kernel: 32768 bytes, different from byte 28672\n"), "{text}");
    if signed {
        assert!(text.contains("signature: only in the second image\n"), "{text}");
        assert!(text.contains("PCR8\n  - none\n  + "), "{text}");
    }
}

#[test]
fn what_is_no_image_is_trouble_not_a_difference() {
    let workshop = Workshop::new();
    succeeded(&workshop.build("a.eif", &[]).output().unwrap());
    failed(&diff(&workshop, &[]), 66, "b.eif");
    fs::write(workshop.path("b.eif"), vec![0; 4096]).unwrap();
    failed(&diff(&workshop, &[]), 65, "not an enclave image");
}
