//! Archives by this crate's writer, read back by its reader and by Debian's
//! cpio. For property tests and for a fuzz target.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, dead_code, reason = "shared by tests")]

use std::{
    collections::BTreeMap,
    io::{Cursor, Write},
    process::{Command, Stdio},
    thread,
};

use eif::cpio::{Entry, Reader, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, Writer};

const S_IFCHR: u32 = 0o020000;
/// What names are made of: cpio prints other bytes in ways of its own.
const LETTERS: &[u8] = b"abcXYZ019._-+";

/// A file of an archive, without its name.
#[derive(Debug, Clone)]
pub struct Node {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: (u32, u32),
    /// A file's content, or a link's target.
    pub data: Vec<u8>,
    /// Another name of the file, sorting after every other.
    pub twin: bool,
}

impl Node {
    /// Any numbers make a node.
    pub fn of(kind: u8, permissions: u16, uid: u32, gid: u32, data: &[u8], twin: bool) -> Node {
        let (kind, data, device) = match kind % 4 {
            0 => (S_IFDIR, Vec::new(), (0, 0)),
            1 => (S_IFLNK, [b"x", name(data, 1).as_slice()].concat(), (0, 0)),
            2 => (S_IFCHR, Vec::new(), (uid % 512, gid % 256)),
            _ => (S_IFREG, data.to_vec(), (0, 0)),
        };
        let mode = kind | u32::from(permissions) & 0o7777;
        Node { mode, uid, gid, device, data, twin: twin && kind == S_IFREG }
    }

    fn is_file(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }
}

/// A path of `depth` names at most that no program reads in two ways.
pub fn name(bytes: &[u8], depth: usize) -> Vec<u8> {
    let len = bytes.len().div_ceil(depth.max(1)).clamp(1, 255);
    let parts: Vec<Vec<u8>> = bytes
        .chunks(len)
        .map(|part| part.iter().map(|byte| LETTERS[usize::from(*byte) % LETTERS.len()]).collect())
        .filter(|part: &Vec<u8>| part != b"." && part != b"..")
        .collect();
    parts.join(&b'/')
}

/// Writes the nodes, and compares what both readers find.
pub fn check(nodes: &BTreeMap<Vec<u8>, Node>) {
    let archive = write(nodes);
    assert_eq!(archive.len() % 512, 0);
    let all = entries(nodes);
    let mut reader = Reader::new(Cursor::new(&archive)).unwrap();
    for (name, node, _, links, data) in &all {
        let listed = reader.next_entry().unwrap().unwrap();
        assert_eq!(listed.name, *name);
        assert_eq!((listed.mode, listed.uid, listed.gid), (node.mode, node.uid, node.gid));
        assert_eq!((listed.links, listed.device, listed.mtime), (*links, node.device, 0));
        let start = listed.data_offset as usize;
        assert!(archive[start..start + listed.size as usize] == **data, "content of {name:?}");
    }
    assert_eq!(reader.next_entry().unwrap(), None);
    debian(&all, &archive);
}

type Listed<'a> = (Vec<u8>, &'a Node, u32, u32, &'a [u8]);

/// Names in order with inode, links and data; the last name of a file has its data.
fn entries(nodes: &BTreeMap<Vec<u8>, Node>) -> Vec<Listed<'_>> {
    let mut all: Vec<Listed<'_>> = Vec::new();
    let mut twins: Vec<Listed<'_>> = Vec::new();
    for (inode, (name, node)) in (1..).zip(nodes) {
        let links = if node.twin { 2 } else { 1 };
        let data = if node.twin { &[][..] } else { &node.data };
        all.push((name.clone(), node, inode, links, data));
        if node.twin {
            twins.push(([b"zz/", &name[..]].concat(), node, inode, links, &node.data));
        }
    }
    all.extend(twins);
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all.dedup_by(|one, other| one.0 == other.0);
    all
}

fn write(nodes: &BTreeMap<Vec<u8>, Node>) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (name, node, inode, links, data) in &entries(nodes) {
        let entry = Entry {
            name,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            inode: *inode,
            links: *links,
            device: node.device,
            size: data.len() as u32,
        };
        writer.append(&entry, &mut &data[..]).unwrap();
    }
    writer.finish().unwrap()
}

/// GNU cpio lists the same names, types, owners and sizes, and the contents.
fn debian(all: &[Listed<'_>], archive: &[u8]) {
    let Some(listing) = cpio(&["-t", "-v", "-n", "--quiet"], archive) else {
        eprintln!("SKIPPED: cpio is not installed");
        return;
    };
    let listing = String::from_utf8(listing).unwrap();
    assert_eq!(listing.lines().count(), all.len(), "{listing}");
    for (line, (name, node, _, links, data)) in listing.lines().zip(all) {
        let words: Vec<_> = line.split_whitespace().collect();
        let kind = match node.mode & S_IFMT {
            S_IFDIR => 'd',
            S_IFLNK => 'l',
            S_IFCHR => 'c',
            _ => '-',
        };
        assert!(words[0].starts_with(kind), "{line}");
        assert_eq!(permissions(words[0]), node.mode & 0o7777, "{line}");
        assert_eq!(words[1..4], [links.to_string(), node.uid.to_string(), node.gid.to_string()], "{line}");
        let name = String::from_utf8_lossy(name);
        match kind {
            'l' => {
                assert!(line.ends_with(&format!(" {name} -> {}", String::from_utf8_lossy(data))), "{line}")
            }
            'c' => assert!(line.ends_with(&format!(" {name}")), "{line}"),
            _ => {
                assert_eq!(words[4], data.len().to_string(), "{line}");
                assert!(line.ends_with(&format!(" {name}")), "{line}");
            }
        }
    }
    let contents = cpio(&["-i", "--to-stdout", "--quiet"], archive).unwrap();
    let files = all.iter().filter(|(_, node, ..)| node.is_file());
    let expected: Vec<u8> = files.flat_map(|(.., data)| data.iter().copied()).collect();
    assert!(contents == expected, "cpio finds other contents");
}

fn permissions(text: &str) -> u32 {
    let mut mode = 0;
    for (index, letter) in text[1..10].chars().enumerate() {
        let (bit, special) = (0o400 >> index, [0o4000, 0o2000, 0o1000][index / 3]);
        mode |= match letter {
            '-' => 0,
            's' | 't' => bit | special,
            'S' | 'T' => special,
            _ => bit,
        };
    }
    mode
}

fn cpio(arguments: &[&str], archive: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new("cpio")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take().unwrap();
    let output = thread::scope(|scope| {
        // It stops at the end mark and leaves the padding: a broken pipe.
        scope.spawn(move || stdin.write_all(archive).or(Ok::<_, std::io::Error>(())));
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    Some(output.stdout)
}
