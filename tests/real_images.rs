//! Promise: a real image, Debian from its packages or one of busybox, put into
//! a layout by umoci and carried on by skopeo, a registry and Docker, gives one
//! and the same enclave image from every form, and runs as it says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;
#[path = "../enclavectl/tests/server/mod.rs"]
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use eif::Architecture;
use eif::boot_files::open_agent;
use eif::rootfs::Digest;
use machine::container::has_runc;
use machine::{Container, Node, Pod, Shim, program_path};
use server::{Registry, docker::Dockerd};

const CONFIG: &str = "ingress: [{listen: 127.0.0.1:0, port: 8080}]\n\
                      http: {listen: 127.0.0.1:0}\nlog: {format: json}\ndrain: {accept: 0s}\n";
/// Answers every request with what it finds in the image.
const SERVE: &str = r#"use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => "0.0.0.0", LocalPort => 8080, Listen => 5, ReuseAddr => 1) or die;
while (my $client = $server->accept) {
    while (<$client>) { last if /^\r?$/ }
    my $body = `cat /etc/debian_version; dpkg-query -W libc6 | cut -f1; id -un; pwd; ls /etc/issue 2>&1; echo \$GREETING`;
    print $client "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
    close $client;
}
"#;

fn shell(directory: &Path, script: &str) {
    let output = Command::new("sh").args(["-euc", script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

/// How an image is run, for umoci and, where a form cannot say it, for the manifest.
struct Run {
    umoci: &'static str,
    manifest: &'static str,
}

const BUSYBOX: Run = Run {
    umoci: "--config.entrypoint /bin/sh --config.entrypoint -c \
                --config.cmd 'mkdir /tmp/w; (id -u; pwd; cat /var/key; stat -c %h /bin/busybox) >/tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w' \
                --config.user web --config.workingdir /var/www --config.env PATH=/bin",
    manifest: "entrypoint: [/bin/sh, -c]\ncmd: ['mkdir /tmp/w; (id -u; pwd; cat /var/key; stat -c %h /bin/busybox) >/tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w']\n\
                   user: web\nworkdir: /var/www\nenv: {PATH: /bin}\n",
};
const BUSYBOX_ANSWERS: &str = "1000\n/var/www\nprivate\n2";
const HEAD: &str = "name: real\nversion: '1'\ningress: [8080]\n";

/// The image `oci:v1` of the archives `layers`, lowest first.
fn layout(at: &Path, layers: &[&Path], run: &Run) {
    shell(at, "umoci init --layout oci && umoci new --image oci:v1");
    for layer in layers {
        shell(at, &format!("umoci raw add-layer --image oci:v1 {}", layer.display()));
    }
    shell(at, &format!("umoci config --image oci:v1 --architecture amd64 {}", run.umoci));
}

/// Builds every form; gives the enclave image that all of them are.
fn every_form(node: &Node, run: &Run) -> PathBuf {
    let at = node.scratch();
    fs::write(at.join("image.yaml"), HEAD).unwrap();
    fs::write(at.join("rootfs.yaml"), format!("{HEAD}{}", run.manifest)).unwrap();
    let build = |image: &str, app: &str, docker: Option<&Dockerd>| {
        let mut command = Command::new(program_path("enclavectl"));
        command.current_dir(at).args(["build", "--image", image, "--app", app, "-o", "out.eif", "--kernel"]);
        command.arg(machine::image::kernel()).env("DOCKER_CONFIG", at.join("no-docker-config"));
        let output = command.envs(docker.map(|docker| ("DOCKER_HOST", docker.host()))).output().unwrap();
        assert!(output.status.success(), "{image}: {}", String::from_utf8_lossy(&output.stderr));
        Digest::sha256_of(fs::File::open(at.join("out.eif")).unwrap()).unwrap()
    };
    let expected = build("oci:oci:v1", "image.yaml", None);
    let same = |image: &str, app: &str, docker: Option<&Dockerd>| {
        assert_eq!(build(image, app, docker), expected, "{image}")
    };

    shell(
        at,
        "copy() { skopeo --insecure-policy copy -q \"$@\"; }
         copy oci:oci:v1 oci-archive:oci.tar:v1 && copy oci:oci:v1 docker-archive:docker.tar:real:1
         copy --dest-compress --dest-compress-format zstd oci:oci:v1 oci:zstd:v1",
    );
    same("oci-archive:oci.tar:v1", "image.yaml", None);
    same("docker-archive:docker.tar:real:1", "image.yaml", None);
    same("oci:zstd", "image.yaml", None);
    if let Some(registry) = Registry::start("") {
        let name = format!("docker://{}/real:1", registry.address);
        shell(at, &format!("skopeo --insecure-policy copy -q --dest-tls-verify=false oci:oci:v1 {name}"));
        same(&name, "image.yaml", None);
    }
    if let Some(docker) = Dockerd::start() {
        docker.run(at, &["load", "-i", "docker.tar"]);
        same("docker-daemon:real:1", "image.yaml", Some(&docker));
    }
    // Last of all, the root filesystem alone: these are the only files that anybody unpacks.
    shell(at, "umoci unpack --image oci:v1 bundle && tar --numeric-owner -cf flat.tar -C bundle/rootfs .");
    same("rootfs:bundle/rootfs", "rootfs.yaml", None);
    same("tar:flat.tar", "rootfs.yaml", None);
    at.join("out.eif")
}

/// What the workload answers.
fn answer(node: &Node, eif: &Path, memory_mib: u32) -> String {
    let config = node.scratch().join("shim.yaml");
    fs::write(&config, format!("memory_mib: {memory_mib}\n{CONFIG}")).unwrap();
    let mut shim = Shim::spawn(node, &config, eif, &[]);
    shim.ready();
    shim.get("/").text().trim().to_owned()
}

#[test]
fn debian_from_its_packages_is_one_image_in_every_form_and_runs() {
    let debian = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/debian.tar");
    if !debian.exists() {
        eprintln!("SKIPPED: no Debian: scripts/debian-rootfs.sh target/debian.tar");
        return;
    }
    let node = Node::new();
    let at = node.scratch();
    fs::create_dir_all(at.join("upper/srv")).unwrap();
    fs::write(at.join("upper/srv/serve.pl"), SERVE).unwrap();
    shell(
        at,
        "mkdir upper/etc && : >upper/etc/.wh.issue && chmod 644 upper/srv/serve.pl &&
         tar --numeric-owner --owner=0 --group=0 -cf upper.tar -C upper srv/serve.pl etc/.wh.issue",
    );
    let run = Run {
        umoci: "--config.entrypoint /usr/bin/perl --config.cmd serve.pl --config.user www-data \
                --config.workingdir /srv --config.env 'GREETING=good day' --config.env PATH=/usr/bin:/bin",
        manifest: "entrypoint: [/usr/bin/perl]\ncmd: [serve.pl]\nuser: www-data\nworkdir: /srv\n\
                   env: {GREETING: good day, PATH: '/usr/bin:/bin'}\n",
    };
    layout(at, &[&debian, Path::new("upper.tar")], &run);
    let eif = every_form(&node, &run);
    let version = fs::read_to_string(at.join("bundle/rootfs/etc/debian_version")).unwrap();
    let answer = answer(&node, &eif, 256);
    let expected = [version.trim(), "libc6:amd64", "www-data", "/srv"];
    let lines: Vec<&str> = answer.lines().collect();
    assert_eq!(lines[..4], expected);
    assert!(lines[4].contains("No such file"), "the upper layer removed it: {answer}");
    assert_eq!(lines[5], "good day");
}

/// The archive `lower.tar` of an image of busybox, as Alpine's is: one program
/// under all its names, hard links and symbolic ones.
fn busybox(at: &Path) -> bool {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| {
        // Static, as Debian's busybox-static: the image holds no libraries.
        open_agent(Path::new(path), Architecture::X86_64).is_ok()
    });
    let Some(busybox) = busybox else {
        eprintln!("SKIPPED: there is no static busybox (Debian: busybox-static)");
        return false;
    };
    shell(
        at,
        &format!(
            "mkdir -p root/bin root/sbin root/usr/bin root/usr/sbin root/etc root/tmp root/var/www &&
             cp {busybox} root/bin/busybox && chmod 755 root/bin/busybox && chmod 1777 root/tmp &&
             for name in $(root/bin/busybox --list); do [ -e root/bin/$name ] || ln -s /bin/busybox root/bin/$name; done &&
             ln root/bin/busybox root/usr/bin/busybox-too &&
             echo 'web:x:1000:1000::/var/www:/bin/sh' >root/etc/passwd && echo 'web:x:1000:' >root/etc/group &&
             mkfifo root/var/pipe && mknod root/var/null c 1 3 && echo private >root/var/key &&
             chmod 640 root/var/key && chown 0:1000 root/var/key &&
             tar --numeric-owner -cf lower.tar -C root ."
        ),
    );
    true
}

#[test]
fn a_busybox_image_is_one_image_in_every_form_and_runs() {
    let node = Node::new();
    let at = node.scratch();
    if !busybox(at) {
        return;
    }
    layout(at, &[Path::new("lower.tar")], &BUSYBOX);
    let eif = every_form(&node, &BUSYBOX);
    assert_eq!(answer(&node, &eif, 64), BUSYBOX_ANSWERS);
}

/// Everything on the way is what users have: a layout by umoci, the pod image of
/// `enclavectl build`, the manifests of `enclavectl render`, runc.
#[test]
fn a_busybox_image_is_a_pod_image_that_a_container_runtime_starts() {
    let node = Node::for_pods();
    let at = node.scratch();
    if !has_runc() || !busybox(at) {
        return;
    }
    layout(at, &[Path::new("lower.tar")], &BUSYBOX);
    fs::write(at.join("image.yaml"), HEAD).unwrap();
    let output = Command::new(program_path("enclavectl"))
        .current_dir(at)
        .args(["build", "--image", "oci:oci:v1", "--app", "image.yaml", "-o", "app.eif"])
        .args(["--pod-image", "pod", "--kernel"])
        .arg(machine::image::kernel())
        .output()
        .unwrap();
    assert!(output.status.success(), "enclavectl build: {}", String::from_utf8_lossy(&output.stderr));
    let pod = Pod::of_image(&node, &at.join("pod"), &at.join("app.eif"), &at.join("image.yaml"), &[]);
    let mut container = Container::start(&node, pod);
    container.ready();
    assert_eq!(container.get(8080, "/").text().trim(), BUSYBOX_ANSWERS);
}
