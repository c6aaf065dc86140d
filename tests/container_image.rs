//! Promise: a container image becomes a pod image that runs it as the OCI image
//! specification says: ENTRYPOINT and CMD, ENV, USER, WORKDIR. The table asks
//! the running workload what it was given.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use eif::Architecture;
use eif::boot_files::open_agent;
use eif::rootfs::Digest;
use machine::{Node, Shim, program_path};
use serde_json::{Value, json};

const CONFIG: &str = "memory_mib: 64\ningress: [{listen: 127.0.0.1:0, port: 8080}]\n\
                      http: {listen: 127.0.0.1:0}\nlog: {format: json}\ndrain: {accept: 0s}\n";
/// Shows how it was started, then serves that.
const SCRIPT: &str = "mkdir /tmp/www && echo \"$0|$*|$COLOUR|$(id -u):$(id -g)|$(pwd)|$(cat /etc/layer)\" \
                      >/tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www";

/// Serves its arguments, its user and groups, its directory and the environment
/// that it was started with. Needs nothing of any of them.
const SHOW: &str = r#"#!/bin/sh
b=/bin/busybox
$b mkdir /tmp/www
{
    n=0; for word in "$@"; do n=$((n + 1)); echo "argument $n: $word"; done
    echo "user $($b id -u):$($b id -g), groups $($b id -G)"
    echo "directory $($b pwd)"
    $b tr '\0' '\n' </proc/$$/environ
} >/tmp/www/index.html
exec $b httpd -f -p 8080 -h /tmp/www
"#;

fn shell(directory: &Path, script: &str) {
    let output = Command::new("sh").args(["-euc", script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

/// busybox and its users as two layers, the first compressed, the second with a
/// whiteout.
fn busybox_layers(at: &Path) -> bool {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| {
        // Static, as Debian's busybox-static: the image holds no libraries.
        open_agent(Path::new(path), Architecture::X86_64).is_ok()
    });
    let Some(busybox) = busybox else {
        eprintln!("SKIPPED: there is no static busybox (Debian: busybox-static)");
        return false;
    };
    fs::copy(busybox, at.join("busybox")).unwrap();
    fs::write(at.join("show"), SHOW).unwrap();
    shell(
        at,
        "mkdir -p lower/bin lower/etc lower/tmp lower/srv/app upper/etc
         mv busybox show lower/bin && chmod 755 lower/bin/busybox lower/bin/show && chmod 1777 lower/tmp
         for name in sh httpd mkdir echo id pwd cat; do ln -s busybox lower/bin/$name; done
         echo 'app:x:1000:1000::/srv:/bin/sh' >lower/etc/passwd
         printf 'app:x:1000:\nwww:x:33:\nmore:x:2000:app\n' >lower/etc/group
         echo lower >lower/etc/layer && echo removed >lower/etc/removed
         echo upper >upper/etc/layer && : >upper/etc/.wh.removed
         tar -cf lower.tar -C lower . && gzip -k lower.tar && tar -cf upper.tar -C upper etc/layer etc/.wh.removed
         mkdir -p oci/blobs/sha256 && echo '{\"imageLayoutVersion\":\"1.0.0\"}' >oci/oci-layout",
    );
    true
}

/// The layers as an image that wants to be run so, in the layout `oci`.
fn image(at: &Path, run: &Value) {
    let blob = |bytes: &[u8], media_type: &str| {
        let digest = Digest::sha256(bytes);
        fs::write(at.join("oci/blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{media_type}"), "digest": digest.to_string(), "size": bytes.len()})
    };
    let read = |name: &str| fs::read(at.join(name)).unwrap();
    let layers = [blob(&read("lower.tar.gz"), "layer.v1.tar+gzip"), blob(&read("upper.tar"), "layer.v1.tar")];
    let diff_ids = ["lower.tar", "upper.tar"].map(|name| Digest::sha256(&read(name)).to_string());
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": run,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    fs::write(at.join("oci/index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())
        .unwrap();
}

/// The pod image's files, unpacked from its only layer, as a container sees
/// them: device and sysfs are what the runtime mounts.
fn pod(node: &Node, app: &str) -> Command {
    let at = node.scratch();
    fs::write(at.join("enclave.yaml"), app).unwrap();
    fs::write(at.join("shim.yaml"), CONFIG).unwrap();
    let output = Command::new(program_path("enclavectl"))
        .current_dir(at)
        .args(["build", "--image", "oci:oci", "--app", "enclave.yaml", "-o", "app.eif", "--pod-image", "pod"])
        .args(["--shim-config", "shim.yaml", "--kernel"])
        .arg(machine::image::kernel())
        .output()
        .unwrap();
    assert!(output.status.success(), "enclavectl build: {}", String::from_utf8_lossy(&output.stderr));
    let json = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |descriptor: &Value| {
        let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
        at.join("pod/blobs/sha256").join(digest.hex())
    };
    let manifest = json(blob(&json(at.join("pod/index.json"))["manifests"][0]));
    let entrypoint = json(blob(&manifest["config"]))["config"]["Entrypoint"].clone();
    let root = at.join("root");
    for directory in ["dev", "sys", "proc", "etc"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    shell(at, &format!("tar -xf {} -C root", blob(&manifest["layers"][0]).display()));
    let mut command = node.command(Path::new("/usr/bin/unshare"));
    command.args(["--mount", "sh", "-c"]).arg(
        "cd $0 && mount --rbind /dev dev && mount --rbind /sys sys && mount --rbind /proc proc && exec chroot . \"$@\"",
    );
    command.arg(&root).args(entrypoint.as_array().unwrap().iter().map(|word| word.as_str().unwrap()));
    command
}

/// What the workload says about its start.
fn started(run: &Value, manifest_lines: &str) -> Option<String> {
    let node = Node::new();
    if !busybox_layers(node.scratch()) {
        return None;
    }
    image(node.scratch(), run);
    let app = format!("name: busybox\nversion: '1'\ningress: [8080]\n{manifest_lines}");
    let mut shim = Shim::run(pod(&node, &app));
    shim.ready();
    Some(shim.get("/").text().trim().to_owned())
}

#[test]
fn an_image_is_run_as_it_says() {
    let run = json!({
        "Entrypoint": ["sh", "-c", SCRIPT, "zeroth"], "Cmd": ["first", "second word"],
        "Env": ["PATH=/bin", "COLOUR=dark green"], "User": "app", "WorkingDir": "/srv/app",
    });
    if let Some(started) = started(&run, "") {
        assert_eq!(started, "zeroth|first second word|dark green|1000:1000|/srv/app|upper");
    }
}

#[test]
fn the_manifest_overrides_what_the_image_says() {
    let run = json!({
        "Entrypoint": ["/bin/sh", "-c", SCRIPT, "zeroth"], "Cmd": ["first"],
        "Env": ["COLOUR=red", "PATH=/bin"], "User": "0", "WorkingDir": "/srv/app",
    });
    let own = "cmd: [own]\nenv: {COLOUR: blue}\nuser: '1000:7'\nworkdir: /srv\n";
    if let Some(started) = started(&run, own) {
        assert_eq!(started, "zeroth|own|blue|1000:7|/srv|upper");
    }
}

#[test]
fn a_command_without_an_entrypoint_is_the_program() {
    let run = json!({"Cmd": ["/bin/sh", "-c", format!("export PATH=/bin; {SCRIPT}"), "zeroth"], "Env": null});
    if let Some(started) = started(&run, "") {
        assert_eq!(started, "zeroth|||0:0|/|upper");
    }
}

/// A line of the table: how the image wants to be run, and what it then sees.
struct Case {
    run: Value,
    arguments: &'static [&'static str],
    user: &'static str,
    directory: &'static str,
    environment: &'static [&'static str],
}

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Every form of each field, several fields in one image.
fn table() -> Vec<Case> {
    vec![
        // ENTRYPOINT alone; root of an image that does not say who root is.
        Case {
            run: json!({"Entrypoint": ["/bin/show", "a b", ""], "Cmd": null, "Env": null, "User": "", "WorkingDir": ""}),
            arguments: &["a b", ""],
            user: "0:0, groups 0",
            directory: "/",
            environment: &[DEFAULT_PATH, "HOME=/"],
        },
        // CMD alone; a name brings its group, its further groups and its home; of a
        // variable the last value counts.
        Case {
            run: json!({"Cmd": ["/bin/show", "c"], "User": "app", "WorkingDir": "/srv/app",
                "Env": ["B=2", "A=x=y", "B=3", "NONE="]}),
            arguments: &["c"],
            user: "1000:1000, groups 1000 2000",
            directory: "/srv/app",
            environment: &[DEFAULT_PATH, "HOME=/srv", "B=3", "A=x=y", "NONE="],
        },
        // Both: CMD follows; a number with an entry is the same user; the directory is made.
        Case {
            run: json!({"Entrypoint": ["/bin/show", "e"], "Cmd": ["c", "-d d"], "User": "1000",
                "WorkingDir": "/srv/not/there", "Env": ["HOME=/elsewhere"]}),
            arguments: &["e", "c", "-d d"],
            user: "1000:1000, groups 1000 2000",
            directory: "/srv/not/there",
            environment: &[DEFAULT_PATH, "HOME=/elsewhere"],
        },
        // Shell form of ENTRYPOINT: CMD is of no use, the shell adds two variables; a
        // number without an entry.
        Case {
            run: json!({"Entrypoint": ["/bin/sh", "-c", "exec show $COLOUR one"], "Cmd": ["unused"], "User": "4242",
                "Env": ["PATH=/bin", "COLOUR=dark green"]}),
            arguments: &["dark", "green", "one"],
            user: "4242:0, groups 0",
            directory: "/",
            environment: &["PATH=/bin", "HOME=/", "COLOUR=dark green", "PWD=/", "SHLVL=1"],
        },
        // Shell form of CMD; user and group by number: no further groups.
        Case {
            run: json!({"Cmd": ["/bin/sh", "-c", "exec show \"$COLOUR\""], "User": "1000:7", "WorkingDir": "/tmp/",
                "Env": ["COLOUR=dark green"]}),
            arguments: &["dark green"],
            user: "1000:7, groups 7",
            directory: "/tmp",
            environment: &[DEFAULT_PATH, "HOME=/srv", "COLOUR=dark green", "PWD=/tmp", "SHLVL=1"],
        },
        // A program found by the image's own PATH; user and group by name.
        Case {
            run: json!({"Entrypoint": ["show"], "Cmd": [], "User": "app:www", "Env": ["PATH=/nowhere:/bin"]}),
            arguments: &[],
            user: "1000:33, groups 33",
            directory: "/",
            environment: &["PATH=/nowhere:/bin", "HOME=/srv"],
        },
        // A number without an entry, and a group by name; a path from the root without its slash.
        Case {
            run: json!({"Entrypoint": ["show"], "User": "4242:www", "WorkingDir": "srv/app"}),
            arguments: &[],
            user: "4242:33, groups 33",
            directory: "/srv/app",
            environment: &[DEFAULT_PATH, "HOME=/"],
        },
    ]
}

#[test]
fn every_form_of_every_field_reaches_the_program_as_the_specification_says() {
    let images = tempfile::tempdir().unwrap();
    let at = images.path();
    if !busybox_layers(at) {
        return;
    }
    fs::write(at.join("enclave.yaml"), "name: table\nversion: '1'\ningress: [8080]\n").unwrap();
    fs::write(at.join("shim.yaml"), CONFIG).unwrap();
    for Case { run, arguments, user, directory, environment } in table() {
        image(at, &run);
        let output = Command::new(program_path("enclavectl"))
            .current_dir(at)
            .args(["build", "--image", "oci:oci", "--app", "enclave.yaml", "-o", "app.eif", "--kernel"])
            .arg(machine::image::kernel())
            .output()
            .unwrap();
        assert!(output.status.success(), "{run}: {}", String::from_utf8_lossy(&output.stderr));
        let node = Node::new();
        let mut shim = Shim::spawn(&node, &at.join("shim.yaml"), &at.join("app.eif"), &[]);
        shim.ready();
        let numbered = arguments.iter().zip(1..);
        let mut expected: Vec<String> =
            numbered.map(|(argument, number)| format!("argument {number}: {argument}")).collect();
        expected.extend([format!("user {user}"), format!("directory {directory}")]);
        expected.extend(environment.iter().map(|variable| (*variable).to_owned()));
        let text = shim.get("/").text();
        let mut seen: Vec<&str> = text.lines().collect();
        // The order of variables means nothing, how often each is there does.
        seen.sort_unstable();
        expected.sort_unstable();
        assert_eq!(seen, expected, "{run}");
    }
}
