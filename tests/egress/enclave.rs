//! An enclave whose workload is a shell: every connection to its port 8080 is a
//! script and gets its output. In it are Debian's own curl, psql and openssl.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::{Image, Node, Shim, client};

/// Where the agent answers, as docs/egress.md has it.
pub const GATEWAY: &str = "198.19.255.1";
pub const PROXY: &str = "198.19.255.1:3128";

pub struct Enclave {
    pub shim: Shim,
    address: SocketAddr,
}

/// A root filesystem with these programs of the host and what they load.
pub fn rootfs(node: &Node, programs: &[&Path]) -> PathBuf {
    let root = node.scratch().join("shell-rootfs");
    for directory in ["bin", "etc", "tmp", "run", "proc", "sys", "dev", "usr/bin"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "nc", "nslookup", "cat", "echo", "sleep", "seq", "head", "wc", "kill", "timeout", "grep", "tr",
        "sed",
    ] {
        std::os::unix::fs::symlink("/bin/busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    for program in programs {
        let listed = Command::new("ldd").arg(program).output().unwrap();
        assert!(listed.status.success(), "{}: run scripts/setup.sh test", program.display());
        let listed = String::from_utf8(listed.stdout).unwrap();
        let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.map(Path::new).chain([*program]) {
            let inside = root.join(file.strip_prefix("/").unwrap());
            std::fs::create_dir_all(inside.parent().unwrap()).unwrap();
            std::fs::copy(file, &inside).unwrap();
        }
        let name = program.file_name().unwrap();
        let short = root.join("usr/bin").join(name);
        if !short.exists() {
            std::os::unix::fs::symlink(program, short).unwrap();
        }
    }
    root
}

impl Enclave {
    /// Boots `rootfs` with its /start, or the shell alone; the image allows `image`, the shim `shim`, and asks `resolver` for names.
    pub fn start(
        node: &Node,
        rootfs: &Path,
        image: &[String],
        shim: &[String],
        resolver: SocketAddr,
    ) -> Enclave {
        Enclave::with(node, rootfs, image, shim, resolver, "")
    }

    /// The same with more lines of shim.yaml.
    pub fn with(
        node: &Node,
        rootfs: &Path,
        image: &[String],
        shim: &[String],
        resolver: SocketAddr,
        extra: &str,
    ) -> Enclave {
        let entrypoint = match rootfs.join("start").exists() {
            true => "[/bin/sh, /start]",
            false => "[/bin/nc, -ll, -p, '8080', -e, /bin/sh]",
        };
        let manifest = format!(
            "name: shell\nversion: '1'\nentrypoint: {entrypoint}\n\
             ingress: [8080]\nlogs: forward\negress: {}\n",
            serde_json::to_string(image).unwrap()
        );
        let image = Image::from_rootfs(node, &manifest, rootfs);
        let config = format!(
            "memory_mib: 192\negress: {}\nresolver: {{servers: ['{resolver}'], stale: 1m}}\n{extra}",
            serde_json::to_string(shim).unwrap()
        );
        let mut shim = Shim::with_config(node, &image, &config);
        shim.ready();
        let address = shim.ingress(8080);
        Enclave { shim, address }
    }

    /// Runs a script and returns what it printed, on both outputs.
    pub fn run(&self, script: &str) -> String {
        let mut stream = client::connect(self.address).unwrap();
        stream.write_all(format!("exec 2>&1\n{script}\n").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut printed = Vec::new();
        stream.read_to_end(&mut printed).unwrap();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        println!("--- {script}\n{printed}");
        printed
    }

    /// How often an outgoing connection ended like this.
    pub fn ended(&mut self, outcome: &str) -> u64 {
        let name = format!("enclave_shim_egress_connections_total{{outcome=\"{outcome}\"}}");
        self.shim.metric(&name).unwrap_or(0.0) as u64
    }

    /// What a name leads to within the enclave.
    pub fn address_of(&self, name: &str) -> String {
        let printed = self.run(&format!("nslookup -type=a {name} {GATEWAY}"));
        // The first address is the server's own.
        let addresses = printed.lines().filter_map(|line| line.strip_prefix("Address:")).map(str::trim);
        addresses.skip(1).collect::<Vec<_>>().join(" ")
    }
}
