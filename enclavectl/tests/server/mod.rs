//! A real registry or Docker daemon for one test, and what can be between a
//! registry and its clients. The programs are Debian's, out of
//! scripts/container-tools.sh.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

pub mod docker;

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use eif::rootfs::Digest;
use tempfile::TempDir;

/// With this the registry knows one user: `builder`, `s3cret` (bcrypt).
pub const HTPASSWD: &str = "auth: {htpasswd: {realm: test, path: htpasswd}}\n";
const HTPASSWD_FILE: &str = "builder:$2b$04$abcdefghijklmnopqrstuuLZYjhNQAOdpbzt4WxWlUHjv1wsyH5DG\n";

/// Where scripts/container-tools.sh has put programs.
pub struct Tools {
    pub directory: PathBuf,
    /// For PATH and LD_LIBRARY_PATH of those that start others.
    pub path: OsString,
    pub libraries: PathBuf,
}

/// Nothing, with the reason on stderr, where they are not.
pub fn tools() -> Option<Tools> {
    // The workspace's, whichever crate's test this is.
    let start = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = start.ancestors().map(|at| at.join("target/container-tools")).find(|at| at.is_dir());
    let Some(directory) = directory else {
        eprintln!("SKIPPED: no container tools: scripts/container-tools.sh target/container-tools");
        return None;
    };
    let mut path = OsString::new();
    for part in ["usr/bin", "usr/sbin"] {
        path.push(directory.join(part));
        path.push(":");
    }
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let libraries = directory.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    Some(Tools { directory, path, libraries })
}

pub struct Registry {
    child: Child,
    pub address: SocketAddr,
    directory: TempDir,
    log: Option<thread::JoinHandle<()>>,
}

impl Registry {
    /// Debian's docker-registry on a port of the kernel's choice, with further
    /// lines of configuration; nothing where it is not installed.
    pub fn start(options: &str) -> Option<Registry> {
        let tools = tools()?;
        let directory = tempfile::tempdir().unwrap();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: storage}}}}\nhttp:\n  addr: 127.0.0.1:0\n{options}"
        );
        fs::write(directory.path().join("config.yml"), config).unwrap();
        fs::write(directory.path().join("htpasswd"), HTPASSWD_FILE).unwrap();
        let mut child = Command::new(tools.directory.join("usr/bin/docker-registry"))
            .args(["serve", "config.yml"])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.by_ref().find_map(|line| {
            let rest = line.split("listening on ").nth(1)?;
            rest.split(['"', ',', ' ']).next()?.parse().ok()
        });
        let address = address.unwrap_or_else(|| panic!("docker-registry ended: {:?}", child.wait()));
        // Somebody must read it, or the registry blocks.
        let log = thread::spawn(move || lines.for_each(drop));
        Some(Registry { child, address, directory, log: Some(log) })
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let blobs = self.directory.path().join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(&hex).join("data")
    }

    pub fn blob(&self, digest: &Digest) -> Vec<u8> {
        fs::read(self.blob_path(digest)).unwrap()
    }

    /// As the registry's files have them.
    pub fn tags(&self, name: &str) -> Vec<String> {
        let storage = self.directory.path().join("storage/docker/registry/v2/repositories");
        let Ok(tags) = fs::read_dir(storage.join(name).join("_manifests/tags")) else { return Vec::new() };
        tags.map(|tag| tag.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A registry that has `index` as the tag `both` of every name, and
    /// everything else from this one.
    pub fn serve_index(&self, index: &str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (upstream, index) = (self.address, index.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let index = index.clone();
                thread::spawn(move || answer(client, upstream, &index));
            }
        });
        address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}

/// One request: its connection is closed afterwards.
fn answer(mut client: TcpStream, upstream: SocketAddr, index: &str) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match client.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    if text.contains("/manifests/both ") {
        let header = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            index.len()
        );
        let _ = client.write_all(header.as_bytes()).and_then(|()| client.write_all(index.as_bytes()));
        return;
    }
    let Ok(mut server) = TcpStream::connect(upstream) else { return };
    let request = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    if server.write_all(request.as_bytes()).is_ok() {
        let _ = std::io::copy(&mut server, &mut client);
    }
}

/// A proxy that cuts connections.
pub struct Cut {
    upstream: SocketAddr,
    /// A connection is cut after these bytes to the client, or to the server.
    downloads: u64,
    uploads: u64,
    times: u64,
}

pub struct Cutting {
    pub address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    cuts: AtomicU64,
    downloaded: AtomicU64,
}

impl Cut {
    pub fn of(upstream: SocketAddr) -> Cut {
        Cut { upstream, downloads: u64::MAX, uploads: u64::MAX, times: u64::MAX }
    }

    pub fn downloads_after(self, downloads: u64) -> Cut {
        Cut { downloads, ..self }
    }

    pub fn uploads_after(self, uploads: u64) -> Cut {
        Cut { uploads, ..self }
    }

    /// Afterwards nothing is cut any more.
    pub fn times(self, times: u64) -> Cut {
        Cut { times, ..self }
    }

    pub fn start(self) -> Cutting {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        let cut = Arc::new(self);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(cut.upstream) else { continue };
                for (from, to, is_download) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap(), false),
                    (server, client, true),
                ] {
                    let (cut, counts) = (cut.clone(), shared.clone());
                    thread::spawn(move || cut.carry(from, to, is_download, &counts));
                }
            }
        });
        Cutting { address, counts }
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream, is_download: bool, counts: &Counts) {
        let limit = if is_download { self.downloads } else { self.uploads };
        let mut buffer = [0; 16 << 10];
        let mut carried = 0;
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            carried += count as u64;
            if carried > limit && counts.cuts.load(Ordering::Relaxed) < self.times {
                counts.cuts.fetch_add(1, Ordering::Relaxed);
                let _ = from.shutdown(Shutdown::Both);
                break;
            }
            if is_download {
                counts.downloaded.fetch_add(count as u64, Ordering::Relaxed);
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl Cutting {
    pub fn cuts(&self) -> u64 {
        self.counts.cuts.load(Ordering::Relaxed)
    }

    pub fn downloaded(&self) -> u64 {
        self.counts.downloaded.load(Ordering::Relaxed)
    }
}
