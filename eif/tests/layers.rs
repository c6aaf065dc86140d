//! Layers over each other, as the OCI image specification's layer.md has it,
//! and what is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod container;

use container::{Layout, Tar, chain, header, listing, merged, opening_within, refused, seal};
use eif::rootfs::{Limits, SourceError, open_oci_layout, open_tar};

fn layer(tar: Tar) -> Vec<u8> {
    tar.end()
}

#[track_caller]
fn assert_merged(layers: &[Vec<u8>], expected: &[&str]) {
    assert_eq!(listing(merged(layers).unwrap()), expected);
}

#[test]
fn later_layers_replace_and_directories_keep_their_content() {
    let lower =
        Tar::default().directory("etc/", 0o755).file("etc/a", "1").file("etc/b", "2").symlink("x", "etc");
    let upper = Tar::default().directory("etc", 0o700).file("./etc/b", "3").file("x", "now a file");
    assert_merged(
        &[layer(lower), layer(upper)],
        &["etc 40700 ", "etc/a 100644 1", "etc/b 100644 3", "x 100644 now a file"],
    );
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_of_their_own_layer() {
    let lower = Tar::default().file("a/1", "1").file("a/2", "2").file("b/1", "3").file("c", "4");
    let base = layer(lower);
    for upper in [
        Tar::default().file("a/.wh.1", "").file(".wh.b", "").file("b/new", "5").file(".wh.c", ""),
        // The order within a layer does not matter.
        Tar::default().file("b/new", "5").file(".wh.c", "").file(".wh.b", "").file("a/.wh.1", ""),
    ] {
        assert_merged(
            &[base.clone(), layer(upper)],
            &["a 40755 ", "a/2 100644 2", "b 40755 ", "b/new 100644 5"],
        );
    }
    let again = layer(Tar::default().file(".wh.a", "").file("a", "a file"));
    assert_merged(&[base.clone(), again], &["a 100644 a file", "b 40755 ", "b/1 100644 3", "c 100644 4"]);
    let nothing = layer(Tar::default().file("not/there/.wh.x", "").file(".wh.y", ""));
    assert_merged(&[nothing], &[]);
}

#[test]
fn an_opaque_directory_hides_all_of_its_lower_content() {
    let lower =
        layer(Tar::default().directory("a", 0o711).file("a/1", "1").file("a/deep/2", "2").file("b", "3"));
    for upper in [
        Tar::default().directory("a", 0o700).file("a/.wh..wh..opq", "").file("a/new", "4"),
        Tar::default().directory("a", 0o700).file("a/new", "4").file("a/.wh..wh..opq", ""),
    ] {
        assert_merged(&[lower.clone(), layer(upper)], &["a 40700 ", "a/new 100644 4", "b 100644 3"]);
    }
    let root = layer(Tar::default().file(".wh..wh..opq", "").file("only", ""));
    assert_merged(&[lower, root], &["only 100644 "]);
}

#[test]
fn names_of_one_file_share_it_until_one_is_replaced() {
    let lower = Tar::default().file("a", "shared").hard_link("b", "a").hard_link("c/d", "/b");
    assert_merged(&[layer(lower.clone())], &["a 100644 ", "b 100644 ", "c 40755 ", "c/d 100644 shared"]);
    let upper = layer(Tar::default().file("c/d", "own"));
    assert_merged(&[layer(lower), upper], &["a 100644 ", "b 100644 shared", "c 40755 ", "c/d 100644 own"]);
}

#[test]
fn every_kind_of_entry_keeps_what_it_is() {
    let devices = Tar::default()
        .member(b'3', "null", "", 0o666, b"")
        .member(b'4', "disk", "", 0o600, b"")
        .member(b'6', "pipe", "", 0o640, b"")
        .member(b'0', "set-id", "", 0o6755, b"x")
        .member(b'7', "contiguous", "", 0o400, b"y")
        .member(0, "old-directory/", "", 0o1777, b"");
    assert_merged(
        &[layer(devices)],
        &[
            "contiguous 100400 y",
            "disk 60600 ",
            "null 20666 ",
            "old-directory 41777 ",
            "pipe 10640 ",
            "set-id 106755 x",
        ],
    );
}

#[test]
fn extended_headers_and_long_names_are_applied() {
    let long = format!("{}/{}", "d".repeat(200), "n".repeat(250));
    let gnu =
        Tar::default().member(b'L', "././@LongLink", "", 0, format!("{long}\0").as_bytes()).file("cut", "1");
    let pax = Tar::default()
        .pax(&[("path", &long), ("uid", "4000000000"), ("mtime", "1.5"), ("comment", "x")])
        .file("cut", "1");
    let directory = "d".repeat(200);
    let expected = [format!("{directory} 40755 "), format!("{long} 100644 1")];
    assert_eq!(listing(merged(&[layer(gnu)]).unwrap()), expected);
    assert_eq!(listing(merged(&[layer(pax)]).unwrap()), expected);

    let target = "t".repeat(3000);
    let link = Tar::default().pax(&[("linkpath", &target)]).symlink("link", "cut");
    assert_eq!(listing(merged(&[layer(link)]).unwrap()), [format!("link 120777 {target}")]);
    // A size in the extended header counts, not the one in the header.
    let mut tar = Tar::default().pax(&[("size", "3")]);
    tar.0.extend(header(b'0', b"sized", b"", 0o644, 0));
    assert_merged(&[layer(tar.data(b"abc").file("next", "n"))], &["next 100644 n", "sized 100644 abc"]);
}

#[test]
fn what_a_ramdisk_cannot_hold_is_told_by_file() {
    let capable = [("SCHILY.xattr.security.capability", "x"), ("SCHILY.xattr.security.selinux", "label")];
    let listed =
        [("SCHILY.xattr.system.posix_acl_access", "x"), ("SCHILY.xattr.system.posix_acl_default", "x")];
    let mut tar = Tar::default().pax(&capable).file("bin/ping", "").pax(&listed).directory("d", 0o755);
    for at in 0..7 {
        tar = tar.pax(&[("LIBARCHIVE.xattr.user.note", "MQ==")]).file(&format!("f{at}"), "");
    }
    let tar =
        tar.pax(&[("SCHILY.xattr.trusted.overlay.opaque", "y"), ("SCHILY.xattr.user.overlay.origin", "")]);
    let notes = merged(&[tar.file("silent", "").end()]).unwrap().notes();
    let starts = [
        r#"capabilities of "bin/ping" are left out"#,
        r#"access control lists of "d" are left out"#,
        r#"user attributes of "f0", "f1", "f2", "f3", "f4" and 2 more are left out"#,
    ];
    assert_eq!(notes.len(), starts.len(), "{notes:?}");
    assert!(notes.iter().zip(starts).all(|(note, start)| note.starts_with(start)), "{notes:?}");
    assert_eq!(merged(&[layer(Tar::default().file("f", ""))]).unwrap().notes(), [""; 0]);

    // A directory's files have them, too; not every file system can hold any.
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    std::fs::write(directory.path().join("f"), "").unwrap();
    let script = "import os; os.setxattr('f', 'user.note', b'1')";
    if container::tool("python3", &["-c", script], directory.path()).is_some() {
        let notes = eif::rootfs::open_directory(directory.path()).unwrap().notes();
        assert!(notes[0].starts_with(r#"user attributes of "f" are left out"#), "{notes:?}");
    }
}

#[test]
fn paths_that_lead_out_or_through_links_are_refused() {
    for (tar, reason) in [
        (Tar::default().file("../escape", ""), "holds \"..\""),
        (Tar::default().file("a/../../escape", ""), "holds \"..\""),
        (Tar::default().symlink("a", "/etc").file("a/passwd", ""), "through the symbolic link \"a\""),
        (Tar::default().file("a", "").file("a/b", ""), "through \"a\", which is not a directory"),
        (Tar::default().symlink("a", ".").file("a/.wh.b", ""), "through the symbolic link \"a\""),
        (Tar::default().symlink("l", "x").file("x/f", "").hard_link("h", "l/f"), "target is refused"),
        (Tar::default().hard_link("h", "../../etc/shadow"), "target is refused"),
        (Tar::default().hard_link("h", "later").file("later", ""), "not there before it"),
        (Tar::default().directory("d", 0o755).hard_link("h", "d"), "a directory"),
        (Tar::default().file("f", "").hard_link("f", "./f"), "whose place it takes"),
        (Tar::default().file("d/f", "").hard_link("d", "d/f"), "whose place it takes"),
        (Tar::default().file("d/.wh...", ""), "hides \"..\""),
        (Tar::default().file("d/.wh.", ""), "hides \"\""),
        (Tar::default().file(".wh.d/f", ""), "marks a removed file"),
        (Tar::default().symlink("/", "x"), "the root itself"),
        (Tar::default().symlink("x", ""), "target has 0 bytes"),
        (Tar::default().pax(&[("path", "a\0b")]).file("x", ""), "NUL"),
        (Tar::default().pax(&[("path", &"/x".repeat(2041))]).file("x", "1"), "at most 4079"),
        (Tar::default().pax(&[("path", &"x".repeat(256))]).file("x", "1"), "256 bytes, at most 255"),
    ] {
        let error = refused(&[layer(tar)]);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn an_absolute_path_is_one_below_the_root() {
    assert_merged(
        &[layer(Tar::default().file("/etc//./passwd", "x"))],
        &["etc 40755 ", "etc/passwd 100644 x"],
    );
}

#[test]
fn what_readers_of_tar_disagree_about_is_refused() {
    let header_with = |change: &dyn Fn(&mut [u8; 512])| {
        let mut block = header(b'0', b"f", b"", 0o644, 0);
        change(&mut block);
        seal(&mut block);
        Tar(block.to_vec())
    };
    let huge = header(b'L', b"long", b"", 0, 1 << 30);
    for (tar, reason) in [
        (Tar::default().member(b'2', "l", "x", 0o777, b"data"), "but has 4 bytes of data"),
        (Tar::default().member(b'5', "d", "", 0o777, b"data"), "but has 4 bytes of data"),
        (Tar::default().member(b'0', "f/", "", 0o777, b""), "ends in a slash"),
        (Tar::default().member(b'V', "volume", "", 0, b""), "type 'V'"),
        (
            Tar::default().pax(&[("path", "a")]).pax(&[("path", "b")]).file("c", ""),
            "an extended header twice",
        ),
        (Tar::default().member(b'L', "", "", 0, b"a").pax(&[("path", "b")]).file("c", ""), "a name twice"),
        (Tar::default().pax(&[("path", "a"), ("path", "b")]).file("c", ""), "path is given twice"),
        (Tar::default().member(b'g', "", "", 0, b"9 path=a\n").file("c", ""), "every entry"),
        (Tar::default().member(b'x', "", "", 0, b"9 path=a").file("c", ""), "does not fit its length"),
        (Tar::default().member(b'x', "", "", 0, b"99 path=a\n").file("c", ""), "does not fit its length"),
        (Tar::default().pax(&[("size", "-1")]).file("c", ""), "size is not a number"),
        (Tar::default().pax(&[("path", "a")]), "belongs to no entry"),
        (header_with(&|block| block[124] = b'9'), "a size that is no number"),
        (header_with(&|block| block[108..116].copy_from_slice(&[0x80, 1, 0, 0, 0, 0, 0, 0])), "an owner"),
        (Tar(huge.to_vec()), "at most 1048576 are accepted"),
    ] {
        let error = refused(&[layer(tar)]);
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let mut damaged = Tar::default().file("f", "").end();
    damaged[0] = b'g';
    assert!(refused(&[damaged]).contains("wrong checksum"));
    let cut = Tar::default().file("f", "content").0[..700].to_vec();
    assert!(refused(&[cut]).contains("does not end"));
    assert_merged(
        &[Tar::default().member(b'g', "", "", 0, b"13 comment=x\n").file("c", "").end()],
        &["c 100644 "],
    );
}

#[test]
fn an_archive_that_nobody_vouches_for_must_have_its_end_mark() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let tar = Tar::default().file("f", "x");
    std::fs::write(file.path(), &tar.0).unwrap();
    let open = || open_tar(file.path(), opening_within(Limits::default()));
    assert!(matches!(open().map(drop).unwrap_err(), SourceError::Tar { .. }));
    // A digest tells that nothing is missing.
    assert_merged(std::slice::from_ref(&tar.0), &["f 100644 x"]);
    std::fs::write(file.path(), tar.end()).unwrap();
    assert_eq!(listing(open().unwrap()), ["f 100644 x"]);
}

#[test]
fn sparse_files_of_every_format_get_their_holes_back() {
    let content = |text: &str| text.replace('.', "\0");
    let expected = [format!("f 100644 {}", content("..ab...cd."))];
    let map_1_0 = format!("2\n2\n2\n7\n2\n{}abcd", "\0".repeat(512 - 10));
    let describe = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "f")];
    let version_1_0 = Tar::default()
        .pax(&[&describe[..], &[("GNU.sparse.realsize", "10")]].concat())
        .file("GNUSparseFile.0/f", &map_1_0);
    let version_0_1 = Tar::default()
        .pax(&[("GNU.sparse.size", "10"), ("GNU.sparse.map", "2,2,7,2"), ("GNU.sparse.name", "f")])
        .file("x", "abcd");
    let pairs = [("offset", "2"), ("numbytes", "2"), ("offset", "7"), ("numbytes", "2")];
    let pairs = pairs.map(|(key, value)| (format!("GNU.sparse.{key}"), value));
    let mut records: Vec<(&str, &str)> = pairs.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    records.insert(0, ("GNU.sparse.size", "10"));
    let version_0_0 = Tar::default().pax(&records).file("f", "abcd");
    let mut block = header(b'S', b"f", b"", 0o644, 4);
    for (at, value) in [(386, 2), (398, 2), (410, 7), (422, 2), (483, 10)] {
        block[at..at + 11].copy_from_slice(format!("{value:011o}").as_bytes());
    }
    block[257..265].copy_from_slice(b"ustar  \0");
    block[329..345].fill(0);
    seal(&mut block);
    let old = Tar(block.to_vec()).data(b"abcd");
    for tar in [version_1_0, version_0_1, version_0_0, old] {
        assert_eq!(listing(merged(&[layer(tar.file("next", "n"))]).unwrap())[..1], expected);
    }
    for map in ["2,2,3,2", "7,2,2,2", "2,2,9,2", "2,2", "2,2,7,2,9"] {
        let tar = Tar::default().pax(&[("GNU.sparse.size", "10"), ("GNU.sparse.map", map)]).file("f", "abcd");
        assert!(refused(&[layer(tar)]).contains("sparse"), "{map}");
    }
}

#[test]
fn bombs_are_bounded_by_bytes_entries_files_and_layers() {
    let open = |layers: &[Vec<u8>], limits: Limits| {
        let layout = Layout::of(layers);
        chain(&open_oci_layout(layout.0.path(), None, opening_within(limits)).map(drop).unwrap_err())
    };
    let default = Limits::default();
    let many = (0..20).fold(Tar::default(), |tar, _| tar.file("same", ""));
    let error = open(&[layer(many.clone())], Limits { entries: 19, ..default });
    assert!(error.contains("more than 19 entries"), "{error}");
    let error = open(&[layer(many.clone()), layer(many)], Limits { entries: 39, ..default });
    assert!(error.contains("more than 39 entries"), "{error}");
    let large = layer(Tar::default().file("f", &"x".repeat(5000)));
    let error = open(std::slice::from_ref(&large), Limits { file: 4999, ..default });
    assert!(error.contains("5000 bytes, at most 4999"), "{error}");
    let error = open(&[large.clone(), large.clone()], Limits { total: 9000, ..default });
    assert!(error.contains("9000"), "{error}");
    let error = open(&[large.clone(), large], Limits { layers: 1, ..default });
    assert!(error.contains("more than 1 layers"), "{error}");
    // 8 EiB of holes in 512 bytes.
    let holes = Tar::default()
        .pax(&[("GNU.sparse.size", "9223372036854775807"), ("GNU.sparse.map", "")])
        .file("f", "");
    let error = open(&[layer(holes)], default);
    assert!(error.contains("9223372036854775807 bytes, at most 4294967295"), "{error}");
}
