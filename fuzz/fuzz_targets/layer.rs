//! Any bytes as one layer, or as two made of well-formed members: refused, or a
//! tree whose ramdisk is sound.
//!
//! The first byte chooses. Members are made of three bytes each: type, name
//! and link target out of few, so that they meet.
#![no_main]

use std::{io::Cursor, path::PathBuf, sync::LazyLock};

use eif::{
    Architecture,
    cpio::Reader,
    ramdisk::Workload,
    rootfs::{Limits, Opening, Tree, open_tar},
};
use libfuzzer_sys::fuzz_target;

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("fuzz-layer-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
});

const KINDS: &[u8] = b"0123456750001255";
const NAMES: [&str; 16] = [
    "a",
    "a/b",
    "a/b/c",
    "b",
    "b/c",
    "a/",
    "./a",
    "a-b",
    ".wh.a",
    "a/.wh.b",
    "a/.wh..wh..opq",
    ".wh..wh..opq",
    "../a",
    ".wh.b",
    "a//b",
    ".",
];

fuzz_target!(|data: &[u8]| {
    let Some((&mode, rest)) = data.split_first() else { return };
    let archive = if mode & 1 == 0 { rest.to_vec() } else { members(rest) };
    if let Some(tree) = open(&archive) {
        check(tree);
    }
});

fn open(archive: &[u8]) -> Option<Tree> {
    let path = DIRECTORY.join("layer.tar");
    std::fs::write(&path, archive).unwrap();
    let mut spool = std::fs::File::options();
    spool.read(true).write(true).create(true).truncate(true);
    let spool = spool.open(DIRECTORY.join("spool")).unwrap();
    let limits = Limits { total: 4 << 20, entries: 1000, ..Limits::default() };
    open_tar(&path, Opening { architecture: Architecture::X86_64, limits, spool }).ok()
}

fn check(tree: Tree) {
    let entries = tree.entries();
    let workload = Workload::of(tree);
    let Ok(archive) = workload.write(b"{}", Vec::new(), &|_| ()) else {
        panic!("a tree that was accepted cannot be written");
    };
    let mut reader = Reader::new(Cursor::new(&archive)).unwrap();
    let (mut found, mut last) = (0, Vec::new());
    while let Some(entry) = reader.next_entry().unwrap() {
        assert!(entry.name == b"workload" || entry.name.starts_with(b"workload/"));
        assert!(entry.name > last);
        assert!(entry.name.split(|&byte| byte == b'/').all(|part| !matches!(part, b"" | b"." | b"..")));
        found += 1;
        last = entry.name;
    }
    assert_eq!(found, entries + 3);
}

fn members(data: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for triple in data.chunks_exact(3).take(300) {
        let kind = KINDS[usize::from(triple[0]) % KINDS.len()];
        let name = NAMES[usize::from(triple[1]) % NAMES.len()];
        let link = if matches!(kind, b'1' | b'2') { NAMES[usize::from(triple[2]) % NAMES.len()] } else { "" };
        let content = if kind == b'0' { usize::from(triple[2]) * 5 } else { 0 };
        archive.extend(header(kind, name, link, content));
        archive.resize((archive.len() + content).next_multiple_of(512), triple[2]);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn header(kind: u8, name: &str, link: &str, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000755");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}
