//! `enclavectl build` and `inspect` as a user runs them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use eif::Image;
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_enclavectl");
const MANIFEST: &str = "name: hello\nversion: '1.2'\nentrypoint: [/hello]\ncmd: [serve]\ningress: [8080]\n";

/// Everything that a build takes, in one directory.
struct Inputs(TempDir);

impl Inputs {
    fn new() -> Inputs {
        let inputs = Inputs(tempfile::tempdir().unwrap());
        fs::create_dir_all(inputs.path("rootfs/etc")).unwrap();
        fs::write(inputs.path("rootfs/hello"), "program").unwrap();
        fs::write(inputs.path("rootfs/etc/motd"), "hello\n").unwrap();
        fs::write(inputs.path("enclave.yaml"), MANIFEST).unwrap();
        fs::write(inputs.path("kernel"), bzimage()).unwrap();
        inputs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The build command; this program itself serves as the agent, being
    /// a static program.
    fn build(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.current_dir(self.0.path()).env_remove("SOURCE_DATE_EPOCH").args([
            "build",
            "--rootfs",
            "rootfs",
            "--kernel",
            "kernel",
            "--app",
            "enclave.yaml",
            "-o",
            "out.eif",
            "--agent",
            PROGRAM,
        ]);
        command
    }

    fn image(&self) -> Vec<u8> {
        fs::read(self.path("out.eif")).unwrap()
    }

    /// That nothing but the inputs is here.
    #[track_caller]
    fn assert_nothing_left(&self) {
        let mut names: Vec<_> =
            fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["enclave.yaml", "kernel", "rootfs"]);
    }
}

/// As much of a bzImage as identifies one (Documentation/arch/x86/boot.rst).
fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0x90; 0x8000];
    bytes[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20E..0x210].copy_from_slice(&0x600_u16.to_le_bytes());
    bytes[0x800..0x810].copy_from_slice(b"6.1.0-9 (build) ");
    bytes
}

fn inspect(image: &Path, json: bool) -> Output {
    Command::new(PROGRAM).arg("inspect").arg(image).args(json.then_some("--json")).output().unwrap()
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The exit code, and the one line on stderr that must hold `expected`.
#[track_caller]
fn failed(output: &Output, code: i32, expected: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn build_prints_the_registers_that_inspect_and_the_library_find() {
    let inputs = Inputs::new();
    let built: Value = serde_json::from_str(&succeeded(&inputs.build().output().unwrap())).unwrap();
    let inspected: Value = serde_json::from_str(&succeeded(&inspect(&inputs.path("out.eif"), true))).unwrap();
    assert_eq!(built["Measurements"], inspected["Measurements"]);
    assert_eq!(built["Measurements"]["HashAlgorithm"], "Sha384 { ... }");
    let image = inputs.image();
    let (_, measurements) = Image::parse_measured(&image).unwrap();
    for (name, pcr) in [("PCR0", measurements.pcr0), ("PCR1", measurements.pcr1), ("PCR2", measurements.pcr2)]
    {
        assert_eq!(built["Measurements"][name], pcr.to_string());
    }
    assert!(built["Measurements"].get("PCR8").is_none());
}

#[test]
fn inspect_uses_the_field_names_of_describe_eif() {
    let inputs = Inputs::new();
    succeeded(&inputs.build().output().unwrap());
    let report: Value = serde_json::from_str(&succeeded(&inspect(&inputs.path("out.eif"), true))).unwrap();
    assert_eq!(report["EifVersion"], 4);
    assert_eq!((&report["IsSigned"], &report["CheckCRC"]), (&Value::Bool(false), &Value::Bool(true)));
    assert_eq!((&report["ImageName"], &report["ImageVersion"]), (&"hello".into(), &"1.2".into()));
    let metadata = &report["Metadata"];
    assert_eq!(metadata["BuildTime"], "1970-01-01T00:00:00Z");
    assert_eq!(
        (&metadata["OperatingSystem"], &metadata["KernelVersion"]),
        (&"Linux".into(), &"6.1.0-9".into())
    );
    assert!(report.get("SignatureCheck").is_none() && report.get("Warnings").is_none());
    let text = succeeded(&inspect(&inputs.path("out.eif"), false));
    for part in ["EIF version 4, x86_64", "reboot=k panic=30", "\"hello\" \"1.2\"", "ramdisk", "PCR2"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn two_builds_of_the_same_inputs_are_the_same_bytes() {
    let (first, second) = (Inputs::new(), Inputs::new());
    let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    fs::File::open(second.path("rootfs/hello")).unwrap().set_times(old).unwrap();
    succeeded(&first.build().output().unwrap());
    succeeded(&second.build().output().unwrap());
    assert!(first.image() == second.image());

    // The build time is in the metadata only: other bytes, same registers.
    let before = Image::parse(&first.image()).unwrap().measure().unwrap();
    succeeded(&first.build().env("SOURCE_DATE_EPOCH", "1732406400").output().unwrap());
    let image = first.image();
    let image = Image::parse(&image).unwrap();
    assert_eq!(image.metadata().unwrap().unwrap().build.build_time, "2024-11-24T00:00:00Z");
    assert_eq!(image.measure().unwrap(), before);
}

#[test]
fn the_image_holds_the_settings_that_the_manifest_asks_for() {
    let inputs = Inputs::new();
    succeeded(&inputs.build().args(["--cmdline", "quiet"]).output().unwrap());
    let bytes = inputs.image();
    let image = Image::parse(&bytes).unwrap();
    assert_eq!(image.cmdline().unwrap(), b"quiet");
    let section = image.layout().ramdisks().nth(1).unwrap();
    let input = std::io::BufReader::new(image.reader(section));
    let mut reader = eif::cpio::Reader::new(input).unwrap();
    let settings = std::iter::from_fn(|| reader.next_entry().unwrap())
        .find(|entry| format!("/{}", String::from_utf8_lossy(&entry.name)) == wire::settings::SETTINGS_PATH)
        .unwrap();
    let start = (section.payload.start + settings.data_offset) as usize;
    let json = &bytes[start..start + settings.size as usize];
    let settings = wire::settings::Settings::from_json(json).unwrap();
    assert_eq!(settings.argv, ["/hello", "serve"]);
    assert_eq!(settings.ingress, [8080]);
}

#[test]
fn an_image_appears_with_ordinary_rights_and_replaces_an_older_one() {
    let inputs = Inputs::new();
    fs::write(inputs.path("out.eif"), "older").unwrap();
    succeeded(&inputs.build().output().unwrap());
    assert!(Image::parse(&inputs.image()).is_ok());
    assert_eq!(fs::metadata(inputs.path("out.eif")).unwrap().permissions().mode() & 0o600, 0o600);
    fs::remove_file(inputs.path("out.eif")).unwrap();
    inputs.assert_nothing_left();
}

#[test]
fn unusable_inputs_are_named_and_leave_nothing_behind() {
    type Case = (fn(&Inputs), i32, &'static str);
    let cases: &[Case] = &[
        (|inputs| fs::write(inputs.path("kernel"), "no kernel").unwrap(), 65, "kernel is not a kernel"),
        (
            |inputs| fs::write(inputs.path("enclave.yaml"), format!("{MANIFEST}colour: red\n")).unwrap(),
            64,
            "colour",
        ),
        (
            |inputs| fs::write(inputs.path("enclave.yaml"), "name: a\nversion: b\n").unwrap(),
            64,
            "argv is empty",
        ),
        (|inputs| drop(fs::File::create(inputs.path("rootfs/big")).unwrap().set_len(1 << 32)), 65, "4 GiB"),
    ];
    for (break_it, code, message) in cases {
        let inputs = Inputs::new();
        break_it(&inputs);
        failed(&inputs.build().output().unwrap(), *code, message);
        inputs.assert_nothing_left();
    }
}

#[test]
fn unusable_arguments_are_named_and_leave_nothing_behind() {
    let inputs = Inputs::new();
    let long = "x".repeat(2048);
    for (arguments, code, message) in
        [(&["--cmdline", &long][..], 64, "2048 bytes"), (&["--no-such-flag"], 64, "--no-such-flag")]
    {
        failed(&inputs.build().args(arguments).output().unwrap(), code, message);
        inputs.assert_nothing_left();
    }
    failed(&inputs.build().env("SOURCE_DATE_EPOCH", "now").output().unwrap(), 64, "SOURCE_DATE_EPOCH");
    let with = |flag: &str, value: &str| {
        let mut arguments = [
            ("--rootfs", "rootfs"),
            ("--kernel", "kernel"),
            ("--app", "enclave.yaml"),
            ("--agent", PROGRAM),
            ("--output", "out.eif"),
        ];
        arguments.iter_mut().filter(|(name, _)| *name == flag).for_each(|argument| argument.1 = value);
        Command::new(PROGRAM)
            .arg("build")
            .args(arguments.iter().flat_map(|(name, value)| [name, value]))
            .current_dir(inputs.0.path())
            .output()
            .unwrap()
    };
    failed(&with("--rootfs", "nowhere"), 66, "cannot read nowhere");
    failed(&with("--kernel", "nowhere"), 66, "cannot read nowhere");
    failed(&with("--app", "nowhere"), 66, "manifest nowhere");
    failed(&with("--agent", "enclave.yaml"), 65, "not a 64-bit");
    failed(&with("--output", "nowhere/out.eif"), 73, "cannot create nowhere/out.eif");
    failed(&with("--output", "rootfs"), 73, "cannot create rootfs");
    inputs.assert_nothing_left();
}

#[test]
fn a_dynamic_agent_is_refused() {
    let inputs = Inputs::new();
    let mut elf = fs::read(PROGRAM).unwrap();
    let table = u64::from_le_bytes(elf[32..40].try_into().unwrap()) as usize;
    elf[table..table + 4].copy_from_slice(&3_u32.to_le_bytes());
    let agent = tempfile::NamedTempFile::new().unwrap();
    fs::write(agent.path(), &elf).unwrap();
    let mut command = Command::new(PROGRAM);
    command.current_dir(inputs.0.path()).args([
        "build",
        "--rootfs",
        "rootfs",
        "--kernel",
        "kernel",
        "--app",
        "enclave.yaml",
        "-o",
        "out.eif",
        "--agent",
    ]);
    failed(&command.arg(agent.path()).output().unwrap(), 65, "link it statically");
    inputs.assert_nothing_left();
}

#[test]
fn without_a_flag_the_agent_is_the_file_beside_the_program() {
    let inputs = Inputs::new();
    let programs = tempfile::tempdir().unwrap();
    let program = programs.path().join("enclavectl");
    fs::copy(PROGRAM, &program).unwrap();
    let build = || {
        Command::new(&program)
            .current_dir(inputs.0.path())
            .args([
                "build",
                "--rootfs",
                "rootfs",
                "--kernel",
                "kernel",
                "--app",
                "enclave.yaml",
                "-o",
                "out.eif",
            ])
            .output()
            .unwrap()
    };
    failed(&build(), 66, "name one with --agent");
    fs::copy(PROGRAM, programs.path().join("enclave-app")).unwrap();
    succeeded(&build());
    let beside = inputs.image();
    succeeded(&inputs.build().output().unwrap());
    assert!(beside == inputs.image());
}

#[test]
fn inspect_says_what_is_wrong_and_at_which_byte() {
    let inputs = Inputs::new();
    succeeded(&inputs.build().output().unwrap());
    let image = inputs.image();
    let path = inputs.path("bad.eif");
    for (change, message) in [
        (
            Box::new(|image: &mut Vec<u8>| image.truncate(4096)) as Box<dyn Fn(&mut Vec<u8>)>,
            "bad image at byte 4096",
        ),
        (Box::new(|image: &mut Vec<u8>| image.push(0)), "1 bytes follow the last section"),
        (Box::new(|image: &mut Vec<u8>| image[600] ^= 1), "checksum"),
        (Box::new(|image: &mut Vec<u8>| image[0] = b'X'), "neither an enclave image nor"),
    ] {
        let mut image = image.clone();
        change(&mut image);
        fs::write(&path, &image).unwrap();
        failed(&inspect(&path, true), 65, message);
    }
    failed(&inspect(&inputs.path("nowhere"), false), 66, "cannot open image");
}

#[test]
fn a_killed_build_leaves_nothing_behind() {
    let inputs = Inputs::new();
    let mut unnamed = fs::OpenOptions::new();
    unnamed.write(true).custom_flags(nix::libc::O_TMPFILE);
    if let Err(error) = unnamed.open(inputs.0.path()) {
        eprintln!("SKIPPED: the temporary directory's file system has no unnamed files ({error})");
        return;
    }
    // Large enough to be at work when the signal comes; all of it a hole.
    fs::File::create(inputs.path("rootfs/large")).unwrap().set_len(2 << 30).unwrap();
    let mut build = inputs.build().stdout(std::process::Stdio::null()).spawn().unwrap();
    let output_is_open = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", build.id())).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| {
            target.parent() == Some(inputs.0.path()) && target.to_string_lossy().contains("deleted")
        })
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !output_is_open() {
        assert!(std::time::Instant::now() < deadline, "the build never opened its output");
        std::thread::yield_now();
    }
    build.kill().unwrap();
    assert!(!build.wait().unwrap().success());
    inputs.assert_nothing_left();
}

#[test]
fn an_image_that_overwrites_its_agent_is_warned_of() {
    let inputs = Inputs::new();
    let metadata = eif::Metadata {
        image_name: "two agents".to_owned(),
        image_version: "1".to_owned(),
        build: eif::BuildMetadata {
            build_time: "1970-01-01T00:00:00Z".to_owned(),
            build_tool: "test".to_owned(),
            build_tool_version: "1".to_owned(),
            operating_system: "Linux".to_owned(),
            kernel_version: "6.1".to_owned(),
        },
        docker_info: Value::Null,
        custom: serde_json::json!({"team": "blue"}),
    };
    let path = inputs.path("out.eif");
    let output = fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let mut kernel = fs::File::open(inputs.path("kernel")).unwrap();
    let mut writer =
        eif::ImageWriter::create(output, eif::Architecture::X86_64, &mut kernel, "quiet", &metadata).unwrap();
    for agent in ["rootfs/hello", "rootfs/etc/motd"].map(|name| inputs.path(name)) {
        writer
            .generate_ramdisk(|ramdisk| {
                eif::ramdisk::write_agent(&mut fs::File::open(&agent).unwrap(), &agent, &[], ramdisk)
                    .unwrap();
                Ok::<_, eif::WriteError>(())
            })
            .unwrap();
    }
    writer.finish().unwrap();
    let output = inspect(&path, true);
    let report: Value = serde_json::from_str(&succeeded(&output)).unwrap();
    let warning = report["Warnings"][0].as_str().unwrap();
    assert!(warning.contains("replaces \"init\" of ramdisk 0"), "{warning}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(warning));
    assert_eq!(report["Metadata"]["team"], "blue");
}

#[test]
fn help_and_version_are_no_errors_and_other_usage_is_64() {
    let run = |arguments: &[&str]| Command::new(PROGRAM).args(arguments).output().unwrap().status.code();
    for arguments in [&["--help"][..], &["--version"], &["build", "--help"], &["inspect", "--version"]] {
        assert_eq!(run(arguments), Some(0), "{arguments:?}");
    }
    for arguments in [&[][..], &["nonsense"], &["build"], &["inspect"], &["inspect", "a", "b"]] {
        assert_eq!(run(arguments), Some(64), "{arguments:?}");
    }
}
