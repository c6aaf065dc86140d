//! Promise: the workload asks the security module on its own socket, within the
//! limits of a workload; what the pod gives it is in PCR16 before it starts.
#![allow(clippy::unwrap_used, clippy::panic)] // a broken fixture ends the test

mod machine;

use std::path::Path;
use std::process::Command;

use machine::{Image, Node, Shim, client, program_path};
use serde_json::{Value, json};

const HEAD: &str = "name: hello\nversion: '1'\nentrypoint: [/hello]\nuser: app\ningress: [8080, 8081]\n";
/// `enclave-binding` and a zero byte, then what the agent's own bindings hold.
const RESERVED: &str = "656e636c6176652d62696e64696e67000101";

/// What the agent answers the workload.
fn ask(shim: &mut Shim, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = client::request(shim.ingress(8080), method, &format!("/agent{path}"), "", &body).unwrap();
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or_else(|_| json!(answer.text())))
}

/// A shim whose own environment is the pod's.
fn with_env(node: &Node, image: &Image, variables: &[(&str, &str)]) -> Shim {
    let config = machine::shim::config_file(node, machine::shim::MEMORY_64);
    let mut command = node.command(Path::new(env!("CARGO_BIN_EXE_enclave-shim")));
    command.arg("run").arg("--eif").arg(&image.path).arg("--config").arg(config);
    command.envs(variables.iter().copied());
    Shim::run(command)
}

/// Exit code and report of `enclavectl verify` for a document of the shim's relay.
fn verify(node: &Node, shim: &mut Shim, image: &Image, flags: &[&str]) -> (i32, Value) {
    let answer = client::get(shim.http(), "/v1/attestation?nonce=00ff").unwrap();
    let document = node.scratch().join("document");
    std::fs::write(&document, answer.json()["document"].as_str().unwrap()).unwrap();
    let output = Command::new(program_path("enclavectl"))
        .arg("verify")
        .arg(&document)
        .args(["--json", "--nonce", "00ff", "--root-pem"])
        .arg(node.path().join("dev-root.pem"))
        .arg("--eif")
        .arg(&image.path)
        .args(flags)
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code().unwrap(), report)
}

#[test]
fn a_workload_of_any_user_attests_extends_locks_and_draws_random_bytes() {
    let node = Node::new();
    let image = Image::from_manifest(&node, HEAD);
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    assert_eq!(shim.get("/whoami").json()["uid"], 1000);

    let fields = json!({ "user_data": "00ff", "public_key": "0102", "nonce": "aa" });
    let (status, answer) = ask(&mut shim, "POST", "/v1/attestation", &fields);
    assert_eq!(status, 200, "{answer}");
    let document = node.scratch().join("own");
    std::fs::write(&document, answer["document"].as_str().unwrap()).unwrap();
    let output = Command::new(program_path("enclavectl"))
        .arg("verify")
        .arg(&document)
        .args(["--user-data", "00ff", "--public-key", "0102", "--nonce", "aa", "--root-pem"])
        .arg(node.path().join("dev-root.pem"))
        .arg("--eif")
        .arg(&image.path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (status, answer) = ask(&mut shim, "POST", "/v1/attestation", &json!({ "user_data": RESERVED }));
    assert_eq!((status, &answer["code"]), (403, &json!("reserved-user-data")));

    let data = json!({ "data": "beef" });
    assert_eq!(ask(&mut shim, "POST", "/v1/pcrs/15/extend", &data).0, 400);
    assert_eq!(ask(&mut shim, "POST", "/v1/pcrs/17/extend", &data).0, 200);
    let (_, locked) = ask(&mut shim, "POST", "/v1/pcrs/17/lock", &Value::Null);
    assert_eq!(locked["locked"], true, "{locked}");
    assert_eq!(ask(&mut shim, "POST", "/v1/pcrs/17/extend", &data).0, 409);
    let (code, report) = verify(&node, &mut shim, &image, &[]);
    assert_eq!((code, &report["pcrs"]["PCR17"]), (0, &locked["value"]), "{report}");
    assert_eq!((&report["user_data"], &report["public_key"]), (&Value::Null, &Value::Null));

    let (_, first) = ask(&mut shim, "GET", "/v1/random?bytes=300", &Value::Null);
    let (_, second) = ask(&mut shim, "GET", "/v1/random?bytes=300", &Value::Null);
    assert_eq!(first["random"].as_str().unwrap().len(), 600);
    assert_ne!(first, second);
}

#[test]
fn an_image_that_wants_no_module_gets_no_socket() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::from_manifest(&node, &format!("{HEAD}nsm: none\n")));
    shim.ready();
    let (status, answer) = ask(&mut shim, "GET", "/v1/module", &Value::Null);
    assert_eq!(status, 502, "{answer}");
}

#[test]
fn the_pods_variables_are_measured_shown_and_only_those_that_the_image_names() {
    let node = Node::new();
    let image = Image::from_manifest(
        &node,
        &format!("{HEAD}env: {{MODE: image, KEPT: image}}\npod_env: [GREETING, MODE, ABSENT]\n"),
    );
    let mut shim = with_env(
        &node,
        &image,
        &[("GREETING", "hello world"), ("MODE", "pod"), ("KEPT", "pod"), ("SECRET", "pod")],
    );
    shim.ready();
    let env = shim.get("/env").text();
    for line in ["GREETING=hello world", "MODE=pod", "KEPT=image"] {
        assert!(env.lines().any(|found| found == line), "{line} in {env}");
    }
    assert!(!env.contains("SECRET") && !env.contains("ABSENT"), "{env}");
    let (status, answer) = ask(&mut shim, "POST", "/v1/pcrs/16/extend", &json!({ "data": "00" }));
    assert_eq!((status, &answer["code"]), (409, &json!("pcr-locked")), "the workload cannot change it");

    let flags = ["--pod-env", "MODE=pod", "--pod-env", "GREETING=hello world"];
    let (code, report) = verify(&node, &mut shim, &image, &flags);
    assert_eq!((code, &report["pod_env"]), (0, &json!(["MODE=pod", "GREETING=hello world"])), "{report}");
    for wrong in
        [&["--pod-env", "MODE=pod"][..], &["--pod-env", "MODE=image", "--pod-env", "GREETING=hello world"]]
    {
        let (code, report) = verify(&node, &mut shim, &image, wrong);
        assert_eq!((code, &report["code"]), (4, &json!("policy.pcr-mismatch")), "{wrong:?}: {report}");
    }
}

#[test]
fn a_pod_without_variables_is_measured_too() {
    let node = Node::new();
    let image = Image::from_manifest(&node, &format!("{HEAD}pod_env: [GREETING]\n"));
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    let (_, report) = verify(&node, &mut shim, &image, &[]);
    // SHA-384 of 48 zero bytes and of SHA-384 of nothing.
    let none = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, b"");
    let expected = [&[0; 48], none.as_ref()].concat();
    let expected = hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, &expected));
    assert_eq!(report["pcrs"]["PCR16"], json!(expected), "{report}");
}

/// examples/clients/enclave_agent.py as the workload of an enclave: whatever
/// fails in it ends the workload, so that nobody would serve the outcome.
const SCRIPT: &str = r#"
import sys
sys.path.insert(0, "/")
import enclave_agent as agent, encodings.idna, http.server, json
document = agent.attest(user_data=b"from Python", nonce=bytes.fromhex("00ff"))
try:
    agent.attest(user_data=bytes.fromhex("RESERVED"))
    sys.exit("a binding was signed")
except agent.Refused as refused:
    assert refused.code == "reserved-user-data", refused
before, locked = agent.pcr(18)
assert before == bytes(48) and not locked
after = agent.extend(18, b"data")
agent.lock(18)
assert agent.pcr(18) == (after, True)
assert len(agent.random(33)) == 33
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"document": document.hex(), "pcr18": after.hex()}).encode())
if __name__ == "__main__" and len(sys.argv) == 1:
    http.server.HTTPServer(("127.0.0.1", 8080), Page).serve_forever()
"#;

/// A root filesystem with Python and what it loads for the script.
fn python_rootfs(node: &Node) -> std::path::PathBuf {
    let root = node.scratch().join("python");
    let list = "import http.client, http.server, json, base64, socket, encodings.idna, sys, os, subprocess\n\
                files = {m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)}\n\
                files = {f for f in files if 'subprocess' not in f}\n\
                exe = os.path.realpath(sys.executable)\n\
                shared = [exe] + [f for f in files if f.endswith('.so')]\n\
                for name in shared:\n    for word in subprocess.run(['ldd', name], capture_output=True, text=True).stdout.split():\n        \
                if word.startswith('/'): files.add(word)\n\
                print(exe)\nprint('\\n'.join(sorted(files)))\n";
    let output = Command::new(machine::python()).args(["-I", "-c", list]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let listed = String::from_utf8(output.stdout).unwrap();
    let mut files = listed.lines();
    let place = |file: &Path, at: &Path| {
        let target = root.join(at.strip_prefix("/").unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(file, target).unwrap();
    };
    place(Path::new(files.next().unwrap()), Path::new("/usr/bin/python3"));
    files.map(Path::new).for_each(|file| place(file, file));
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clients/enclave_agent.py");
    place(&client, Path::new("/enclave_agent.py"));
    std::fs::write(root.join("main.py"), SCRIPT.replace("RESERVED", RESERVED)).unwrap();
    root
}

#[test]
fn the_python_client_does_what_it_is_documented_to_do() {
    let node = Node::new();
    let manifest = "name: python\nversion: '1'\nuser: '4711:0'\nentrypoint: [/usr/bin/python3, -I, /main.py]\ningress: [8080]\n";
    let image = Image::from_rootfs(&node, manifest, &python_rootfs(&node));
    let mut shim = Shim::with_config(&node, &image, "memory_mib: 208\n");
    shim.ready();
    let page = shim.get("/").json();
    let document = node.scratch().join("python.hex");
    std::fs::write(&document, page["document"].as_str().unwrap()).unwrap();
    let output = Command::new(program_path("enclavectl"))
        .arg("verify")
        .arg(&document)
        .args(["--nonce", "00ff", "--user-data", &hex::encode("from Python"), "--root-pem"])
        .arg(node.path().join("dev-root.pem"))
        .arg("--eif")
        .arg(&image.path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (_, report) = verify(&node, &mut shim, &image, &[]);
    assert_eq!(report["pcrs"]["PCR18"], page["pcr18"], "{report}");
}
