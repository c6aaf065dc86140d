//! `enclavectl lint` and `render` as a user runs them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_enclavectl");
const POOL: &str = "apiVersion: infrastructure.cluster.x-k8s.io/v1beta2\nkind: AWSManagedMachinePool\n\
    metadata:\n  name: pool\nspec:\n  amiType: CUSTOM\n  labels:\n    aws-nitro-enclaves-k8s-dp: \"true\"\n  \
    awsLaunchTemplate:\n    instanceType: m5.xlarge\n    ami:\n      eksLookupType: AmazonLinux2023\n    \
    enclaveOptions:\n      enabled: true\n";

fn run(directory: &Path, line: &str) -> Output {
    Command::new(PROGRAM).current_dir(directory).args(line.split_whitespace()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn directory_with(name: &str, text: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(name), text).unwrap();
    directory
}

#[test]
fn an_error_exits_1_and_every_format_tells_where() {
    let directory = directory_with("pool.yaml", POOL);
    let text = run(directory.path(), "lint pool.yaml");
    assert_eq!(code(&text), 1);
    assert!(stdout(&text).starts_with("pool.yaml:8:32: error[label-value]: "), "{}", stdout(&text));

    let json = run(directory.path(), "lint pool.yaml --json");
    assert_eq!(code(&json), 1);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    let finding = &json["findings"][0];
    assert_eq!(
        (&finding["id"], &finding["line"], &finding["column"]),
        (&"label-value".into(), &8.into(), &32.into())
    );
    assert_eq!(finding["value"], "true");
    assert_eq!(finding["replacement"], "aws-nitro-enclaves-k8s-dp: enabled");

    let sarif = run(directory.path(), "lint pool.yaml --format sarif");
    let sarif: Value = serde_json::from_slice(&sarif.stdout).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    assert_eq!(sarif["runs"][0]["results"][0]["ruleId"], "label-value");
}

#[test]
fn fix_repairs_the_file_and_then_all_is_well() {
    let directory = directory_with("pool.yaml", POOL);
    let fixed = run(directory.path(), "lint --fix .");
    assert_eq!(code(&fixed), 0, "{}", stdout(&fixed));
    assert_eq!(stdout(&fixed), "0 error(s), 0 warning(s), 0 advice\n");
    let text = fs::read_to_string(directory.path().join("pool.yaml")).unwrap();
    assert_eq!(text, POOL.replace("\"true\"", "enabled"));
}

#[test]
fn standard_input_is_a_file_as_well_and_every_rule_can_be_listed() {
    let directory = directory_with("pool.yaml", POOL);
    let piped = Command::new(PROGRAM)
        .args(["lint", "-"])
        .stdin(fs::File::open(directory.path().join("pool.yaml")).unwrap())
        .output()
        .unwrap();
    assert_eq!(code(&piped), 1);
    assert!(stdout(&piped).starts_with("stdin:8:32: error[label-value]: "), "{}", stdout(&piped));
    let rules = stdout(&run(directory.path(), "lint --rules"));
    assert!(rules.lines().count() > 70 && rules.contains("label-value            error    "), "{rules}");
}

#[test]
fn mistakes_of_the_caller_have_codes_of_their_own() {
    let directory = directory_with("types.json", "[]");
    fs::write(directory.path().join("pool.yaml"), POOL).unwrap();
    for (line, expected) in [
        ("lint", 64),
        ("lint pool.yaml --format csv", 64),
        ("lint pool.yaml --json --format text", 64),
        ("lint --fix -", 64),
        ("lint --rules pool.yaml", 64),
        ("lint missing.yaml", 66),
        ("lint pool.yaml --eif missing.eif", 66),
        ("lint pool.yaml --eif pool.yaml", 65),
        ("lint pool.yaml --instance-types types.json", 65),
        ("render", 64),
    ] {
        let output = run(directory.path(), line);
        assert_eq!(code(&output), expected, "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn what_is_rendered_is_the_same_twice_and_has_no_finding() {
    let directory = directory_with_image();
    let path = |name: &str| directory.path().join(name);
    let render = "render --app enclave.yaml --eif app.eif --image registry.example/hello:1 --instance-type m5.xlarge \
        --cluster c --kubernetes-version v1.33.0 --device-gid 986 \
        --device-plugin-image registry.example/enclave-node:1 --memory-mib 1024 -o made";
    assert_eq!(code(&run(directory.path(), &format!("{render} --check"))), 1, "nothing is there yet");
    let first = run(directory.path(), render);
    assert_eq!(code(&first), 0, "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(stdout(&first).matches("written").count(), 7);
    let again = run(directory.path(), render);
    assert_eq!(stdout(&again).matches("unchanged").count(), 7);
    assert_eq!(code(&run(directory.path(), &format!("{render} --check"))), 0);
    assert_eq!(fs::read_to_string(path("made/allocator.yaml")).unwrap().lines().next(), Some("---"));

    let linted = run(directory.path(), "lint made --eif app.eif");
    assert_eq!((code(&linted), stdout(&linted).as_str()), (0, "0 error(s), 0 warning(s), 0 advice\n"));

    let odd = run(directory.path(), &render.replace("-o made", "--cpus 3 -o odd"));
    assert_eq!(code(&odd), 64);
    assert!(!path("odd").exists());
}

#[test]
fn the_commands_of_the_guide_render_and_lint_as_it_says() {
    let directory = directory_with_image();
    let guide =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes.md")).unwrap();
    let guide = guide.replace("\\\n", " ");
    let mut ran = Vec::new();
    for line in guide.lines().filter_map(|line| line.strip_prefix("    enclavectl ")) {
        let (command, says) = line.split_once('#').unwrap_or((line, ""));
        let verb = command.split(' ').next().unwrap();
        if !["render", "lint"].contains(&verb) || command.contains("...") {
            continue;
        }
        let output = run(directory.path(), command);
        assert_eq!(code(&output), 0, "{command}: {}", String::from_utf8_lossy(&output.stderr));
        if verb == "lint" {
            assert_eq!(stdout(&output).trim(), says.trim(), "{command}");
        }
        ran.push(verb);
    }
    assert_eq!(ran, ["render", "lint"]);
    let deployment = fs::read_to_string(directory.path().join("manifests/deployment.yaml")).unwrap();
    assert!(deployment.contains("hugepages-2Mi: 768Mi"));
}

#[test]
fn a_package_of_our_allocator_needs_its_checksum() {
    let directory = directory_with_image();
    let render = "render --app enclave.yaml --eif app.eif --image registry.example/hello:1 --instance-type m5.xlarge \
        --cluster c --kubernetes-version v1.33.0 --device-gid 986 --device-plugin-image registry.example/enclave-node:1 \
        -o made --node-package https://packages.example/enclave-node.tar.gz";
    assert_eq!(code(&run(directory.path(), render)), 64);
    let sum = "5e".repeat(32);
    let rendered = run(directory.path(), &format!("{render} --node-package-sha256 {sum}"));
    assert_eq!(code(&rendered), 0, "{}", String::from_utf8_lossy(&rendered.stderr));
    for name in ["machine-pool.yaml", "karpenter.yaml"] {
        let text = fs::read_to_string(directory.path().join("made").join(name)).unwrap();
        assert!(
            text.contains(&format!("echo \"{sum}  /run/enclave-node.tar.gz\" | sha256sum --check")),
            "{text}"
        );
        assert!(!text.contains("dnf"), "{text}");
    }
    let linted = run(directory.path(), "lint made --eif app.eif");
    assert_eq!((code(&linted), stdout(&linted).as_str()), (0, "0 error(s), 0 warning(s), 0 advice\n"));
}

/// `enclave.yaml`, and the image `app.eif` that was built with it.
fn directory_with_image() -> TempDir {
    let directory =
        directory_with("enclave.yaml", "name: hello\nversion: '1'\nentrypoint: [/hello]\ningress: [8080]\n");
    let path = |name: &str| directory.path().join(name);
    fs::create_dir_all(path("rootfs")).unwrap();
    fs::write(path("rootfs/hello"), "program").unwrap();
    fs::write(path("kernel"), bzimage()).unwrap();
    let built = run(
        directory.path(),
        &format!("build --rootfs rootfs --kernel kernel --app enclave.yaml -o app.eif --agent {PROGRAM}"),
    );
    assert_eq!(code(&built), 0, "{}", String::from_utf8_lossy(&built.stderr));
    directory
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
