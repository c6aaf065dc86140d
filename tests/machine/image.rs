//! Images built by the real `enclavectl build`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{Node, boots_kernels, program_path};

/// An EIF and what it measures.
pub struct Image {
    pub path: PathBuf,
    /// `Measurements` as the build printed them.
    pub measurements: Value,
}

/// The manifest of examples/hello.
pub const HELLO: &str = "
name: hello
version: '1'
entrypoint: [/hello]
user: app
workdir: /tmp
ingress: [8080, 8081]
";

impl Image {
    /// examples/hello as it is.
    pub fn hello(node: &Node) -> Image {
        Image::from_manifest(node, HELLO)
    }

    /// examples/hello with another manifest.
    pub fn from_manifest(node: &Node, manifest: &str) -> Image {
        Image::from_rootfs(node, manifest, &hello_rootfs())
    }

    /// examples/hello in an image of `mib` MiB: a file of noise fills it.
    pub fn padded(node: &Node, mib: u64) -> Image {
        let plain = std::fs::metadata(&Image::hello(node).path).unwrap().len();
        let rootfs = node.scratch().join("rootfs");
        let copied = Command::new("cp").arg("-a").arg(hello_rootfs()).arg(&rootfs).status().unwrap();
        assert!(copied.success());
        // The archive rounds entries up to four bytes: a page more is enough.
        let mut noise = vec![0; usize::try_from((mib << 20) + 4096 - plain).unwrap()];
        aws_lc_rs::rand::fill(&mut noise).unwrap();
        std::fs::write(rootfs.join("noise"), noise).unwrap();
        Image::from_rootfs(node, HELLO, &rootfs)
    }

    /// examples/hello with a command line of its own for the kernel.
    pub fn with_cmdline(node: &Node, cmdline: &str) -> Image {
        Image::build(node, HELLO, &hello_rootfs(), &[OsStr::new("--cmdline"), OsStr::new(cmdline)])
    }

    /// examples/hello with a first process that panics the kernel when called, and
    /// whose kernel then does not wait.
    pub fn crashing(node: &Node) -> Image {
        let rootfs = node.scratch().join("rootfs");
        let copied = Command::new("cp").arg("-a").arg(hello_rootfs()).arg(&rootfs).status().unwrap();
        assert!(copied.success());
        std::fs::copy(program_path("enclave-app"), rootfs.join("enclave-app")).unwrap();
        let init = program_path("examples/crashing_init");
        let cmdline = "console=ttyS0 quiet reboot=k panic=1 pci=off nomodules";
        let options = [OsStr::new("--agent"), init.as_os_str(), OsStr::new("--cmdline"), OsStr::new(cmdline)];
        Image::build(node, HELLO, &rootfs, &options)
    }

    /// The load tool of benches/ as workload, started with `arguments`, on `port`.
    pub fn of_bench(node: &Node, arguments: &str, port: u16, manifest: &str) -> Image {
        let rootfs = node.scratch().join("bench-rootfs");
        std::fs::create_dir_all(&rootfs).unwrap();
        std::fs::copy(program_path("bench"), rootfs.join("bench")).unwrap();
        let manifest = format!(
            "name: bench\nversion: '1'\nentrypoint: [/bench, {arguments}, 'tcp:0.0.0.0:{port}']\n\
             ingress: [{port}]\n{manifest}"
        );
        Image::from_rootfs(node, &manifest, &rootfs)
    }

    /// Any root filesystem.
    pub fn from_rootfs(node: &Node, manifest: &str, rootfs: &Path) -> Image {
        Image::build(node, manifest, rootfs, &[])
    }

    fn build(node: &Node, manifest: &str, rootfs: &Path, options: &[&OsStr]) -> Image {
        let name = format!("{:x}", fnv1a(manifest));
        let (app, path) =
            (node.scratch().join(format!("{name}.yaml")), node.scratch().join(format!("{name}.eif")));
        std::fs::write(&app, manifest).unwrap();
        let output = Command::new(program_path("enclavectl"))
            .arg("build")
            .arg("--rootfs")
            .arg(rootfs)
            .arg("--kernel")
            .arg(kernel())
            .arg("--app")
            .arg(&app)
            .arg("-o")
            .arg(&path)
            .args(options)
            .output()
            .unwrap();
        assert!(output.status.success(), "enclavectl build: {}", String::from_utf8_lossy(&output.stderr));
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        Image { path, measurements: printed["Measurements"].clone() }
    }
}

/// What `make programs` made of examples/hello.
pub fn hello_rootfs() -> PathBuf {
    let rootfs = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/hello-rootfs");
    assert!(rootfs.join("hello").exists(), "{} is missing: run `make programs` first", rootfs.display());
    rootfs
}

/// What ENCLAVE_KERNEL names, else Debian's, which only measures: to boot, a
/// kernel needs its drivers built in, as that of eif/kernel has.
pub fn kernel() -> PathBuf {
    let named = std::env::var_os("ENCLAVE_KERNEL").map(PathBuf::from);
    assert!(
        named.is_some() || !boots_kernels(),
        "ENCLAVE_KERNEL must name the output of eif/kernel/build.sh"
    );
    let kernel = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kernel/bzImage"));
    assert!(kernel.exists(), "{} is missing: run `make programs` first", kernel.display());
    kernel
}

fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
