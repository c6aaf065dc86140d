//! Container images made by hand: tar members byte by byte, layers, layouts.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use eif::{
    Architecture,
    cpio::Reader,
    ramdisk::Workload,
    rootfs::{ContainerImage, Digest, Limits, Opening, SourceError, Tree, open_oci_layout},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A tar archive being written.
#[derive(Default, Clone)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    /// A ustar member with everything chosen.
    pub(crate) fn member(mut self, kind: u8, name: &str, link: &str, mode: u32, data: &[u8]) -> Tar {
        self.0.extend(header(kind, name.as_bytes(), link.as_bytes(), mode, data.len() as u64));
        self.data(data)
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Tar {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Tar {
        self.member(b'0', name, "", 0o644, data.as_bytes())
    }

    pub(crate) fn directory(self, name: &str, mode: u32) -> Tar {
        self.member(b'5', name, "", mode, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Tar {
        self.member(b'2', name, target, 0o777, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Tar {
        self.member(b'1', name, target, 0o644, b"")
    }

    pub(crate) fn pax(self, records: &[(&str, &str)]) -> Tar {
        let body: String = records.iter().map(|(key, value)| record(key, value)).collect();
        self.member(b'x', "pax", "", 0o644, body.as_bytes())
    }

    /// With the end mark.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

pub(crate) fn header(kind: u8, name: &[u8], link: &[u8], mode: u32, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    let mut octal = |at: usize, width: usize, value: u64| {
        block[at..at + width].copy_from_slice(format!("{value:0width$o}").as_bytes());
    };
    octal(100, 7, u64::from(mode));
    octal(108, 7, 0);
    octal(116, 7, 0);
    octal(124, 11, size);
    octal(136, 11, 0);
    octal(329, 7, 5);
    octal(337, 7, 9);
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

/// Makes the checksum right.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut len = rest.len() + 1;
    while format!("{len}{rest}").len() != len {
        len += 1;
    }
    format!("{len}{rest}")
}

/// An image layout being made in a directory of its own.
pub(crate) struct Layout(pub(crate) TempDir);

impl Layout {
    /// One image of these plain layers, without a tag.
    pub(crate) fn of(layers: &[Vec<u8>]) -> Layout {
        let layout = Layout::new();
        let layers: Vec<_> = layers.iter().map(|layer| (layer.clone(), layer.clone())).collect();
        let manifest = layout.manifest(&layers, "amd64", json!({"Cmd": ["/a"]}));
        layout.index(&json!([manifest]));
        layout
    }

    pub(crate) fn new() -> Layout {
        let layout = Layout(tempfile::tempdir().unwrap());
        fs::create_dir_all(layout.path("blobs/sha256")).unwrap();
        fs::write(layout.path("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        layout
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn index(&self, manifests: &Value) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.path("index.json"), index.to_string()).unwrap();
    }

    /// Stores bytes; gives their descriptor.
    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::sha256(bytes);
        fs::write(self.path("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Stores an image of layers, each packed and plain; gives the manifest's descriptor.
    pub(crate) fn manifest(&self, layers: &[(Vec<u8>, Vec<u8>)], architecture: &str, run: Value) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|(_, plain)| Digest::sha256(plain).to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|(packed, _)| self.blob("application/vnd.oci.image.layer.v1.tar", packed))
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())
    }

    pub(crate) fn open(&self, reference: Option<&str>) -> Result<ContainerImage, SourceError> {
        open_oci_layout(self.0.path(), reference, opening())
    }
}

pub(crate) fn opening() -> Opening {
    opening_within(Limits::default())
}

pub(crate) fn opening_within(limits: Limits) -> Opening {
    Opening { architecture: Architecture::X86_64, limits, spool: tempfile::tempfile().unwrap() }
}

/// The tree of an image of these layers.
pub(crate) fn merged(layers: &[Vec<u8>]) -> Result<Tree, SourceError> {
    Layout::of(layers).open(None).map(|image| image.tree)
}

/// The error with its causes.
pub(crate) fn chain(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Why the layers are refused.
#[track_caller]
pub(crate) fn refused(layers: &[Vec<u8>]) -> String {
    chain(&merged(layers).map(drop).unwrap_err())
}

/// Ramdisk 1 of a tree.
pub(crate) fn packed(tree: Tree) -> Vec<u8> {
    Workload::of(tree).write(b"{}", Vec::new(), &|_| ()).unwrap()
}

/// Path, mode and content of what is below the root filesystem, as text.
pub(crate) fn listing(tree: Tree) -> Vec<String> {
    let archive = packed(tree);
    let mut reader = Reader::new(Cursor::new(&archive)).unwrap();
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let name = String::from_utf8(entry.name).unwrap();
        let Some(name) = name.strip_prefix("workload/rootfs/") else { continue };
        let data = &archive[entry.data_offset as usize..][..entry.size as usize];
        found.push(format!("{name} {:o} {}", entry.mode, String::from_utf8_lossy(data)));
    }
    found
}

/// Runs a program; nothing, said loudly, when it is not installed.
pub(crate) fn tool(program: &str, arguments: &[&str], directory: &Path) -> Option<()> {
    let output = std::process::Command::new(program).args(arguments).current_dir(directory).output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: the program {program} is not installed");
            return None;
        }
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Some(())
}
