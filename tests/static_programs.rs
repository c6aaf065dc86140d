//! Promise: what goes into a pod image or a ramdisk, and the program that builds
//! them, needs no file beside itself: each is one static ELF file.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;

use std::fs;
use std::path::Path;
use std::process::Command;

use machine::program_path;

const PROGRAMS: [&str; 4] = ["enclave-shim", "enclave-app", "enclavectl", "enclave-node"];
/// Source: elf(5).
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;

/// A 64-bit little-endian program.
struct Elf(Vec<u8>);

impl Elf {
    fn open(path: &Path) -> Elf {
        let bytes = fs::read(path).unwrap();
        assert_eq!(bytes[..6], *b"\x7fELF\x02\x01", "{}", path.display());
        Elf(bytes)
    }

    fn number(&self, at: u64, len: usize) -> u64 {
        let at = usize::try_from(at).unwrap();
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&self.0[at..at + len]);
        u64::from_le_bytes(bytes)
    }

    /// Kind, offset and size of every program header.
    fn segments(&self) -> Vec<[u64; 3]> {
        let (table, size, count) = (self.number(32, 8), self.number(54, 2), self.number(56, 2));
        assert!(size == 56 && count > 0, "{count} program headers of {size} bytes");
        let headers = (0..count).map(|index| table + index * size);
        headers.map(|at| [self.number(at, 4), self.number(at + 8, 8), self.number(at + 32, 8)]).collect()
    }

    /// Tags of the dynamic section. A static program that may lie anywhere has
    /// one, for its own relocations.
    fn dynamic_tags(&self) -> Vec<u64> {
        let dynamic = self.segments().into_iter().filter(|[kind, ..]| *kind == PT_DYNAMIC);
        let entries = dynamic.flat_map(|[_, offset, size]| (0..size / 16).map(move |n| offset + n * 16));
        entries.map(|at| self.number(at, 8)).take_while(|tag| *tag != DT_NULL).collect()
    }
}

/// Whether a program needs a loader or libraries of its machine.
fn is_static(path: &Path) -> bool {
    let elf = Elf::open(path);
    let interpreter = elf.segments().iter().any(|[kind, ..]| *kind == PT_INTERP);
    !interpreter && !elf.dynamic_tags().contains(&DT_NEEDED)
}

#[test]
fn no_program_asks_for_an_interpreter_or_a_library() {
    for name in PROGRAMS {
        assert!(is_static(&program_path(name)), "{name} is linked dynamically");
    }
    // The system's own shell tells whether the reader sees what it looks for.
    let shell = fs::canonicalize("/bin/bash").unwrap();
    let elf = Elf::open(&shell);
    assert!(
        elf.segments().iter().any(|[kind, ..]| *kind == PT_INTERP) && elf.dynamic_tags().contains(&DT_NEEDED)
    );
}

#[test]
fn every_program_starts_in_a_root_that_holds_nothing_else() {
    for name in PROGRAMS {
        let root = tempfile::tempdir().unwrap();
        fs::copy(program_path(name), root.path().join(name)).unwrap();
        let output =
            Command::new("chroot").arg(root.path()).args([&format!("/{name}"), "--version"]).output();
        let output = output.unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        // The agent has one job, and says so.
        let (code, text) = match name {
            "enclave-app" => (64, "only as PID 1"),
            _ => (0, env!("CARGO_PKG_VERSION")),
        };
        assert!(
            output.status.code() == Some(code) && said.contains(text),
            "{name}: {}: {said}",
            output.status
        );
    }
}
