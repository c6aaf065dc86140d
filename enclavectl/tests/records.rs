//! Promise: what a build records is true of the image and the same each time:
//! provenance with the digests of all inputs and sections, and the packages
//! of the root filesystem.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod workshop;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use eif::{Image, rootfs::Digest};
use serde_json::Value;
use workshop::{CURVES, PROGRAM, Workshop, failed, succeeded};

const BOTH: [&str; 4] = ["--provenance", "out.provenance", "--sbom", "out.sbom"];

fn read(workshop: &Workshop, name: &str) -> Value {
    serde_json::from_slice(&fs::read(workshop.path(name)).unwrap()).unwrap()
}

fn sha256(workshop: &Workshop, name: &str) -> String {
    Digest::sha256(&fs::read(workshop.path(name)).unwrap()).hex()
}

#[test]
fn provenance_names_every_input_and_section_by_its_digest() {
    let workshop = Workshop::new();
    succeeded(&workshop.build("out.eif", &BOTH).env("SOURCE_DATE_EPOCH", "86400").output().unwrap());
    let statement = read(&workshop, "out.provenance");
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    let subject = &statement["subject"][0];
    assert_eq!(
        (&subject["name"], &subject["digest"]["sha256"]),
        (&"out.eif".into(), &sha256(&workshop, "out.eif").into())
    );

    let definition = &statement["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["buildTime"], "1970-01-02T00:00:00Z");
    assert_eq!(definition["internalParameters"]["kernelVersion"], "6.1.0-9");
    assert_eq!(definition["internalParameters"]["settings"]["argv"][0], "/hello");
    let dependencies: Vec<_> = definition["resolvedDependencies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| {
            (input["name"].as_str().unwrap(), input["digest"]["sha256"].as_str().unwrap().to_owned())
        })
        .collect();
    let agent = Digest::sha256(&fs::read(PROGRAM).unwrap()).hex();
    let expected = [
        ("kernel", sha256(&workshop, "kernel")),
        ("agent", agent),
        ("manifest", sha256(&workshop, "enclave.yaml")),
    ];
    assert_eq!(dependencies, expected);

    let bytes = fs::read(workshop.path("out.eif")).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let byproducts = &statement["predicate"]["runDetails"]["byproducts"];
    assert_eq!(byproducts[0]["annotations"]["PCR0"], image.measure().unwrap().pcr0.to_string());
    let sections = byproducts[1]["annotations"]["sections"].as_array().unwrap();
    assert_eq!(sections.len(), 5);
    for (section, recorded) in image.layout().sections().iter().zip(sections) {
        assert_eq!(recorded["kind"], section.kind.to_string());
        let payload = &bytes[section.payload.start as usize..section.payload.end as usize];
        assert_eq!(recorded["digest"]["sha256"], Digest::sha256(payload).hex());
    }
}

#[test]
fn records_are_the_same_bytes_in_another_directory() {
    let (first, second) = (Workshop::new(), Workshop::new());
    for workshop in [&first, &second] {
        succeeded(&workshop.build("out.eif", &BOTH).output().unwrap());
    }
    for name in ["out.eif", "out.provenance", "out.sbom"] {
        assert!(fs::read(first.path(name)).unwrap() == fs::read(second.path(name)).unwrap(), "{name}");
    }
}

/// Every file that this machine's dpkg knows of, by its own words.
#[test]
fn the_sbom_of_debians_database_is_what_dpkg_query_lists() {
    let workshop = Workshop::new();
    let Ok(status) = fs::read("/var/lib/dpkg/status") else {
        eprintln!("SKIPPED: this machine has no dpkg");
        return;
    };
    fs::create_dir_all(workshop.path("rootfs/var/lib/dpkg")).unwrap();
    fs::create_dir_all(workshop.path("rootfs/usr/lib")).unwrap();
    fs::write(workshop.path("rootfs/var/lib/dpkg/status"), status).unwrap();
    fs::copy("/usr/lib/os-release", workshop.path("rootfs/usr/lib/os-release")).unwrap();
    symlink("../usr/lib/os-release", workshop.path("rootfs/etc/os-release")).unwrap();
    succeeded(&workshop.build("out.eif", &BOTH).output().unwrap());

    let format = "${db:Status-Status} ${Package} ${Version} ${Architecture}\n";
    let listed = Command::new("dpkg-query").args(["-W", "-f", format]).output().unwrap();
    let mut expected: Vec<_> = String::from_utf8(listed.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .map(str::to_owned)
        .collect();
    expected.sort();
    assert!(expected.len() > 50, "dpkg-query lists {} packages", expected.len());

    let sbom = read(&workshop, "out.sbom");
    assert_eq!((&sbom["bomFormat"], &sbom["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    let components = sbom["components"].as_array().unwrap();
    assert_eq!(
        (&components[0]["type"], &components[0]["name"]),
        (&"operating-system".into(), &"debian".into())
    );
    let mut found: Vec<_> = components[1..]
        .iter()
        .map(|component| {
            let purl = component["purl"].as_str().unwrap();
            assert!(purl.starts_with("pkg:deb/debian/") && purl.contains("distro=debian-"), "{purl}");
            let (_, rest) = purl.split_once("?arch=").unwrap();
            let architecture = rest.split('&').next().unwrap();
            format!(
                "{} {} {architecture}",
                component["name"].as_str().unwrap(),
                component["version"].as_str().unwrap()
            )
        })
        .collect();
    found.sort();
    assert_eq!(found, expected);
    let mut references: Vec<_> =
        components.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
    references.sort_unstable();
    references.dedup();
    assert_eq!(references.len(), components.len(), "a bom-ref names two components");
}

/// By the library of CycloneDX itself, against its published schema.
#[test]
fn the_sbom_is_valid_by_the_standards_own_validator() {
    let python = match validator() {
        Ok(python) => python,
        Err(reason) => {
            eprintln!("SKIPPED: no validator of CycloneDX here: {reason}");
            return;
        }
    };
    let workshop = Workshop::new();
    fs::create_dir_all(workshop.path("rootfs/var/lib/dpkg")).unwrap();
    let status = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nMaintainer: A <a@b>\nVersion: 1:2.36+x~1\n";
    fs::write(workshop.path("rootfs/var/lib/dpkg/status"), status).unwrap();
    fs::create_dir_all(workshop.path("rootfs/lib/apk/db")).unwrap();
    fs::write(workshop.path("rootfs/lib/apk/db/installed"), "P:musl\nV:1.2\nA:x86_64\nL:MIT AND BSD\n")
        .unwrap();
    succeeded(&workshop.build("out.eif", &BOTH).output().unwrap());
    let check = "import sys\n\
                 from cyclonedx.schema import SchemaVersion\n\
                 from cyclonedx.validation.json import JsonStrictValidator\n\
                 text = open(sys.argv[1]).read()\n\
                 found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)\n\
                 assert JsonStrictValidator(SchemaVersion.V1_6).validate_str('{}') is not None\n\
                 sys.exit(str(found) if found else 0)";
    let output = Command::new(python).args(["-c", check]).arg(workshop.path("out.sbom")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The Python that has it.
fn validator() -> Result<PathBuf, String> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cyclonedx-python");
    let python = home.join("bin/python");
    let run = |command: &mut Command| {
        let output = command.output().map_err(|error| error.to_string())?;
        let text = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(text()) }
    };
    if run(Command::new(&python).args(["-c", "import cyclonedx.validation.json, jsonschema"])).is_err() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        let install = ["-m", "pip", "install", "--quiet", "cyclonedx-python-lib[json-validation]==11.*"];
        run(Command::new(&python).args(install))?;
    }
    Ok(python)
}

#[test]
fn packages_of_alpine_and_distroless_are_listed_and_rpm_is_said_to_be_left_out() {
    let workshop = Workshop::new();
    let path = |name: &str| workshop.path(&format!("rootfs/{name}"));
    fs::create_dir_all(path("lib/apk/db")).unwrap();
    fs::write(
        path("lib/apk/db/installed"),
        "P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\n\nP:busybox\nV:1.36-r1\nA:x86_64\nL:GPL-2.0-only\n",
    )
    .unwrap();
    fs::write(path("etc/os-release"), "ID=alpine\nVERSION_ID=3.20.1\n").unwrap();
    fs::create_dir_all(path("var/lib/dpkg/status.d")).unwrap();
    fs::write(
        path("var/lib/dpkg/status.d/tzdata"),
        "Package: tzdata\nVersion: 2024a-0+deb12u1\nArchitecture: all\n",
    )
    .unwrap();
    fs::write(path("var/lib/dpkg/status.d/tzdata.md5sums"), "00  usr/share/zoneinfo\n").unwrap();
    succeeded(&workshop.build("out.eif", &BOTH).output().unwrap());
    let sbom = read(&workshop, "out.sbom");
    let purls: Vec<_> = sbom["components"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|component| component["purl"].as_str())
        .collect();
    let expected = [
        "pkg:apk/alpine/busybox@1.36-r1?arch=x86_64&distro=alpine-3.20.1",
        "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.20.1",
        "pkg:deb/alpine/tzdata@2024a-0%2Bdeb12u1?arch=all&distro=alpine-3.20.1",
    ];
    assert_eq!(purls, expected);
    assert_eq!(sbom["components"][1]["licenses"][0]["license"]["name"], "GPL-2.0-only");

    fs::create_dir_all(path("usr/lib/sysimage/rpm")).unwrap();
    fs::write(path("usr/lib/sysimage/rpm/rpmdb.sqlite"), "x").unwrap();
    let output = workshop.build("out.eif", &BOTH).output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("database of rpm, which is not read"),
        "{output:?}"
    );
}

/// An ELF object of x86_64, as far as it is looked at.
fn object() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (bytes[16], bytes[18]) = (1, 62);
    bytes
}

#[test]
fn a_policy_is_made_from_provenance_as_from_the_image() {
    let workshop = Workshop::new();
    succeeded(&workshop.build("out.eif", &BOTH).output().unwrap());
    let registers = |build: &str| {
        let output = workshop.enclavectl(&["policy", "from", build]).output().unwrap();
        succeeded(&output);
        let policy = String::from_utf8(output.stdout).unwrap();
        policy.lines().filter(|line| line.contains("PCR")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(registers("out.provenance"), registers("out.eif"));
    assert_eq!(registers("out.eif").len(), 3);
    let none = workshop.enclavectl(&["policy", "from", "out.sbom"]).output().unwrap();
    failed(&none, 65, "no measurements are in it");
}

#[test]
fn modules_of_the_manifest_go_with_its_kernel_and_those_of_the_flags_with_theirs() {
    let workshop = Workshop::new();
    fs::create_dir(workshop.path("blobs")).unwrap();
    fs::copy(workshop.path("kernel"), workshop.path("blobs/bzImage")).unwrap();
    for name in ["blobs/nsm.ko", "blobs/a.ko", "other.ko"] {
        fs::write(workshop.path(name), object()).unwrap();
    }
    let manifest = "name: hello\nversion: '1.2'\nentrypoint: [/hello]\n\
                    kernel: {image: blobs/bzImage, modules: [blobs/nsm.ko, blobs/a.ko]}\n";
    fs::write(workshop.path("enclave.yaml"), manifest).unwrap();
    let placed = |flags: &[&str]| {
        let common = ["build", "--rootfs", "rootfs", "--app", "enclave.yaml", "--agent", PROGRAM];
        let mut command = workshop.enclavectl(&common);
        succeeded(
            &command.args(["-o", "out.eif", "--provenance", "out.provenance"]).args(flags).output().unwrap(),
        );
        let bytes = fs::read(workshop.path("out.eif")).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let section = image.layout().ramdisks().next().unwrap();
        let mut reader = eif::cpio::Reader::new(std::io::BufReader::new(image.reader(section))).unwrap();
        let names = std::iter::from_fn(|| reader.next_entry().unwrap());
        let names = names.map(|entry| String::from_utf8(entry.name).unwrap());
        names.filter(|name| name.starts_with("modules/")).collect::<Vec<_>>()
    };
    assert_eq!(placed(&[]), ["modules/00-nsm.ko", "modules/01-a.ko"]);
    let inputs = &read(&workshop, "out.provenance")["predicate"]["buildDefinition"]["resolvedDependencies"];
    assert_eq!(inputs[2]["name"], "module nsm.ko");
    assert_eq!(inputs[2]["digest"]["sha256"], sha256(&workshop, "blobs/nsm.ko"));
    assert_eq!(placed(&["--kernel", "kernel"]), [""; 0]);
    assert_eq!(placed(&["--kernel", "kernel", "--module", "other.ko"]), ["modules/00-other.ko"]);
}

#[test]
fn a_record_that_cannot_be_written_leaves_no_image() {
    let workshop = Workshop::new();
    for flag in ["--sbom", "--provenance"] {
        let output = workshop.build("out.eif", &[flag, "missing/file"]).output().unwrap();
        failed(&output, 73, "missing/file");
        assert!(!workshop.path("out.eif").exists(), "{flag}");
    }
    if workshop.signer("signer", CURVES[0].0) && workshop.signer("other", CURVES[0].0) {
        let flags =
            [&BOTH[..], &["--signing-certificate", "signer.pem", "--private-key", "other.key"]].concat();
        failed(&workshop.build("out.eif", &flags).output().unwrap(), 65, "not the certificate's");
        assert!(!workshop.path("out.provenance").exists() && !workshop.path("out.sbom").exists());
    }
}
