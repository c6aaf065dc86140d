//! Ramdisks: read back by another program, the same bytes whatever order and
//! time the inputs have, and never over the agent.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod sample;

use std::{
    fs::{self, File},
    io::{Cursor, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use eif::{
    Image,
    boot_files::Module,
    cpio::{CpioError, Entry, Reader, S_IFDIR, S_IFLNK, S_IFREG, Writer},
    ramdisk::{RamdiskError, Workload, write_agent},
    rootfs::{Refused, SourceError, open_directory},
    shadow::{self, Shadow},
};
use sample::{RAMDISK, assemble, sections};
use tempfile::TempDir;

/// A root filesystem with one of each kind of file that needs no privilege,
/// made in the given order.
fn rootfs(reversed: bool, age: Duration) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let mut steps: Vec<Box<dyn Fn()>> = vec![
        Box::new(|| fs::write(path("etc/motd"), "hello\n").unwrap()),
        Box::new(|| fs::write(path("etc/empty"), "").unwrap()),
        Box::new(|| fs::write(path("bin/big"), sample::pattern(300_000, 9)).unwrap()),
        Box::new(|| symlink("/bin/big", path("bin/link")).unwrap()),
        Box::new(|| fs::create_dir(path("var")).unwrap()),
        Box::new(|| fs::write(path("etc-issue"), "sorts between etc and etc/motd\n").unwrap()),
    ];
    for directory in ["bin", "etc"] {
        fs::create_dir(path(directory)).unwrap();
    }
    if reversed {
        steps.reverse();
    }
    steps.iter().for_each(|step| step());
    let links = if reversed { ["lib", "abc"] } else { ["abc", "lib"] };
    for link in links {
        fs::hard_link(path("bin/big"), path(link)).unwrap();
    }
    fs::set_permissions(path("bin/big"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(path("var"), fs::Permissions::from_mode(0o1777)).unwrap();
    let times = fs::FileTimes::new().set_modified(SystemTime::now() - age);
    File::open(path("etc/motd")).unwrap().set_times(times).unwrap();
    drop(steps);
    root
}

fn workload(rootfs: &Path) -> Workload {
    Workload::of(open_directory(rootfs).unwrap())
}

fn packed(rootfs: &Path) -> Vec<u8> {
    workload(rootfs).write(br#"{"argv":["/a"]}"#, Vec::new(), &|_| ()).unwrap()
}

#[test]
fn order_and_times_of_the_files_do_not_show() {
    let first = rootfs(false, Duration::ZERO);
    let second = rootfs(true, Duration::from_secs(100_000));
    assert!(packed(first.path()) == packed(second.path()), "two builds of one tree differ");
}

#[test]
fn content_and_modes_do_show() {
    let root = rootfs(false, Duration::ZERO);
    let before = packed(root.path());
    fs::set_permissions(root.path().join("etc/motd"), fs::Permissions::from_mode(0o600)).unwrap();
    let after = packed(root.path());
    assert!(before != after);
}

#[test]
fn the_cpio_program_reads_back_what_was_packed() {
    let root = rootfs(false, Duration::ZERO);
    let archive = packed(root.path());
    let unpacked = tempfile::tempdir().unwrap();
    let started = Command::new("cpio")
        .args(["--extract", "--make-directories", "--quiet", "--no-absolute-filenames"])
        .current_dir(unpacked.path())
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut cpio) = started else {
        eprintln!("SKIPPED: the cpio program is not installed");
        return;
    };
    cpio.stdin.take().unwrap().write_all(&archive).unwrap();
    assert!(cpio.wait().unwrap().success());

    let at = |name: &str| unpacked.path().join("workload/rootfs").join(name);
    let mode = |name: &str| fs::symlink_metadata(at(name)).unwrap().mode() & 0o7777;
    assert_eq!(fs::read_to_string(at("etc/motd")).unwrap(), "hello\n");
    assert!(fs::read(at("bin/big")).unwrap() == sample::pattern(300_000, 9));
    assert_eq!(fs::read_link(at("bin/link")).unwrap(), Path::new("/bin/big"));
    assert_eq!(mode("bin/big"), 0o4751);
    assert_eq!(fs::metadata(at("etc/empty")).unwrap().len(), 0);
    let inode = |name: &str| fs::metadata(at(name)).unwrap().ino();
    assert_eq!((inode("abc"), inode("lib")), (inode("bin/big"), inode("bin/big")));
    assert!(at("var").is_dir());
    let settings = fs::read(unpacked.path().join("workload/settings.json")).unwrap();
    assert_eq!(settings, br#"{"argv":["/a"]}"#);
}

#[test]
fn data_of_a_file_with_many_names_is_stored_once() {
    let root = rootfs(false, Duration::ZERO);
    let archive = packed(root.path());
    assert!(archive.len() < 310_000, "{} bytes", archive.len());
    assert_eq!(archive.len() % 512, 0);
}

#[test]
fn a_link_to_a_file_outside_counts_as_a_file() {
    let root = rootfs(false, Duration::ZERO);
    let outside = tempfile::NamedTempFile::new_in(root.path().parent().unwrap()).unwrap();
    fs::write(outside.path(), "shared").unwrap();
    let tree = tempfile::tempdir_in(root.path().parent().unwrap()).unwrap();
    fs::hard_link(outside.path(), tree.path().join("file")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    fs::copy(outside.path(), copy.path().join("file")).unwrap();
    assert!(packed(tree.path()) == packed(copy.path()));
}

#[test]
fn a_file_of_4_gib_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("large");
    File::create(&path).unwrap().set_len(1 << 32).unwrap();
    let error = open_directory(root.path()).map(drop).unwrap_err();
    let SourceError::Refused { path: named, source: Refused::Large { size: 0x1_0000_0000, .. }, .. } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(named, "large");
    File::create(&path).unwrap().set_len((1 << 32) - 1).unwrap();
    assert_eq!(workload(root.path()).bytes(), (1 << 32) - 1);
}

#[test]
fn a_file_that_changes_between_listing_and_reading_is_an_error() {
    let root = rootfs(false, Duration::ZERO);
    let workload = workload(root.path());
    fs::write(root.path().join("etc/motd"), "longer than before\n").unwrap();
    let error = workload.write(b"{}", Vec::new(), &|_| ()).unwrap_err();
    assert!(matches!(&error, RamdiskError::Changed { path } if path.ends_with("etc/motd")), "{error}");
}

#[test]
fn ramdisk_0_holds_the_agent_and_empty_directories() {
    let mut agent = tempfile::NamedTempFile::new().unwrap();
    agent.write_all(b"\x7fELF and so on").unwrap();
    let mut file = File::open(agent.path()).unwrap();
    let archive = write_agent(&mut file, agent.path(), &[], Vec::new()).unwrap();
    let found = entries(&archive);
    let expected = [
        directory("dev", 0o755),
        ("init".to_owned(), S_IFREG | 0o755, b"\x7fELF and so on".to_vec()),
        directory("proc", 0o755),
        directory("run", 0o755),
        directory("sys", 0o755),
        directory("tmp", 0o1777),
    ];
    assert_eq!(found, expected);
}

#[test]
fn modules_are_numbered_in_the_order_in_which_they_are_loaded() {
    let directory_of_modules = tempfile::tempdir().unwrap();
    let module = |name: &str, content: &str| {
        let path = directory_of_modules.path().join(name);
        fs::write(&path, content).unwrap();
        Module { file: File::open(&path).unwrap(), path, name: name.to_owned() }
    };
    let modules = [module("vsock.ko", "first"), module("nsm.ko", "second"), module("a.ko", "third")];
    let agent = tempfile::NamedTempFile::new().unwrap();
    let mut file = File::open(agent.path()).unwrap();
    let archive = write_agent(&mut file, agent.path(), &modules, Vec::new()).unwrap();
    let file = |name: &str, content: &str| (name.to_owned(), S_IFREG | 0o644, content.as_bytes().to_vec());
    let expected = [
        directory("modules", 0o755),
        file("modules/00-vsock.ko", "first"),
        file("modules/01-nsm.ko", "second"),
        file("modules/02-a.ko", "third"),
    ];
    assert_eq!(entries(&archive)[2..6], expected);
    let many: Vec<_> = (0..101).map(|index| module(&format!("{index}.ko"), "")).collect();
    let mut file = File::open(agent.path()).unwrap();
    let error = write_agent(&mut file, agent.path(), &many, Vec::new()).unwrap_err();
    assert!(matches!(error, RamdiskError::ManyModules { count: 101 }), "{error}");
}

fn directory(name: &str, mode: u32) -> (String, u32, Vec<u8>) {
    (name.to_owned(), S_IFDIR | mode, Vec::new())
}

/// Name, mode and content of all entries.
fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
    let mut reader = Reader::new(Cursor::new(archive)).unwrap();
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let data = &archive[entry.data_offset as usize..][..entry.size as usize];
        found.push((String::from_utf8(entry.name).unwrap(), entry.mode, data.to_vec()));
    }
    found
}

#[test]
fn names_must_ascend_and_be_relative() {
    let entry = |name: &'static str| Entry {
        name: name.as_bytes(),
        mode: S_IFREG,
        uid: 0,
        gid: 0,
        inode: 1,
        links: 1,
        device: (0, 0),
        size: 0,
    };
    let append = |names: &[&'static str]| {
        let mut writer = Writer::new(Vec::new());
        names.iter().try_for_each(|name| writer.append(&entry(name), &mut std::io::empty()))
    };
    assert!(append(&["a", "a-b", "a/b"]).is_ok());
    for names in [&["b", "a"][..], &["a", "a"]] {
        assert!(matches!(append(names), Err(CpioError::Order)));
    }
    for name in ["", "/a", "TRAILER!!!"] {
        assert!(matches!(append(&[name]), Err(CpioError::Name)));
    }
    let long: &'static str = "x".repeat(4096).leak();
    assert!(matches!(append(&[long]), Err(CpioError::LongName { len: 4096 })));
    assert!(append(&[&long[1..]]).is_ok());
}

/// The sample image with two ramdisks of these names and modes.
fn image_with(first: &[(&str, u32)], second: &[(&str, u32)]) -> Vec<u8> {
    let archive = |entries: &[(&str, u32)]| {
        let mut archive = Vec::new();
        for (name, mode) in entries.iter().chain(&[("TRAILER!!!", 0)]) {
            let fields = [1, *mode, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u32 + 1, 0];
            archive.extend(b"070701");
            archive.extend(fields.iter().flat_map(|field| format!("{field:08X}").into_bytes()));
            archive.extend(name.bytes().chain([0]));
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive
    };
    let mut sections = sections();
    sections[3] = (RAMDISK, archive(first));
    sections[4] = (RAMDISK, archive(second));
    assemble(&sections)
}

#[test]
fn entries_that_replace_the_agent_are_found_however_they_are_spelled() {
    let first = [("dev", S_IFDIR), ("init", S_IFREG), ("sbin/helper", S_IFREG)];
    let findings = |second: &[(&str, u32)]| {
        let bytes = image_with(&first, second);
        shadow::find(&Image::parse(&bytes).unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(findings(&[("workload", S_IFDIR), ("workload/init", S_IFREG), ("dev", S_IFDIR)]), [""; 0]);
    for name in ["init", "/init", "./init", "//init", "init/", "sbin/helper", "sbin//./helper"] {
        let found = findings(&[("workload", S_IFDIR), (name, S_IFREG)]);
        assert!(found.len() == 1 && found[0].contains("replaces"), "{name}: {found:?}");
    }
    for (name, kind) in [("dev", S_IFLNK), ("sbin", S_IFLNK), ("init", S_IFDIR)] {
        assert_eq!(findings(&[(name, kind)]).len(), 1, "{name}");
    }
    for second in [&[("workload/../init", S_IFREG)][..], &[("a", S_IFLNK), ("a/init", S_IFREG)]] {
        let found = findings(second);
        assert!(found.len() == 1 && found[0].contains("unclear"), "{found:?}");
    }
}

#[test]
fn a_module_that_a_later_ramdisk_adds_is_found() {
    let first = [("init", S_IFREG), ("modules", S_IFDIR), ("modules/00-nsm.ko", S_IFREG)];
    let bytes = image_with(&first, &[("modules", S_IFDIR), ("modules/01-other.ko", S_IFREG)]);
    let findings = shadow::find(&Image::parse(&bytes).unwrap());
    assert!(matches!(&findings[..], [Shadow::AddsModule { ramdisk: 1, .. }]), "{findings:?}");
}

#[test]
fn an_archive_after_the_end_mark_is_looked_at_too() {
    let hidden =
        image_with(&[("init", S_IFREG)], &[("workload", S_IFDIR), ("TRAILER!!!", 0), ("init", S_IFREG)]);
    let findings = shadow::find(&Image::parse(&hidden).unwrap());
    assert!(matches!(&findings[..], [Shadow::Replaces { ramdisk: 1, .. }]), "{findings:?}");
}

#[test]
fn a_ramdisk_that_cannot_be_listed_is_said_to_be_so() {
    let bytes = assemble(&sections());
    let findings = shadow::find(&Image::parse(&bytes).unwrap());
    assert_eq!(findings.len(), 2);
    assert!(findings.iter().all(|finding| matches!(finding, Shadow::NotListed { .. })), "{findings:?}");
}
