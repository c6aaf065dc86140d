//! Sources: whatever form an image comes in, the ramdisk is the same; digests
//! are compared; the right one of several images is taken. Real tools make and
//! convert images where they are installed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod container;

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use container::{Layout, Tar, chain, listing, merged, opening, packed, tool};
use eif::rootfs::{
    Blobs, ContainerImage, Digest, SourceError, Wanted, open_directory, open_docker_archive,
    open_oci_archive, open_oci_document, open_oci_layout, open_tar,
};
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use tempfile::TempDir;

fn spool() -> std::io::Result<fs::File> {
    tempfile::tempfile()
}

fn oci_archive(path: &Path) -> Result<ContainerImage, SourceError> {
    open_oci_archive(path, None, opening(), &mut spool)
}

fn docker_archive(path: &Path, reference: Option<&str>) -> Result<ContainerImage, SourceError> {
    open_docker_archive(path, reference, opening(), &mut spool)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Compressed by the zstd program.
fn zstd(bytes: &[u8], arguments: &[&str]) -> Option<Vec<u8>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let path = file.path().to_str().unwrap();
    let packed = tempfile::tempdir().unwrap();
    tool("zstd", &[&["-q", path, "-o", "out"], arguments].concat(), packed.path())?;
    Some(fs::read(packed.path().join("out")).unwrap())
}

/// Files of all sizes, with holes, links and odd names.
fn tree() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    for directory in ["bin", "usr/lib/deep/er", "empty", &"long-directory/".repeat(12)] {
        fs::create_dir_all(path(directory)).unwrap();
    }
    let noise: Vec<u8> = (0..700_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (name, len) in [("bin/a", 0), ("bin/b", 1), ("bin/c", 511), ("bin/d", 512), ("usr/lib/e", 700_000)] {
        fs::write(path(name), &noise[..len]).unwrap();
    }
    fs::write(path("bin-utils"), "sorts between bin and bin/a").unwrap();
    fs::write(path(&format!("{}{}", "long-directory/".repeat(12), "n".repeat(200))), "long").unwrap();
    fs::write(path("usr/lib/umläut \t.txt"), "named").unwrap();
    let mut sparse = fs::File::create(path("usr/holes")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 1 << 20).unwrap();
    sparse.flush().unwrap();
    fs::hard_link(path("usr/lib/e"), path("usr/lib/deep/f")).unwrap();
    symlink("../lib/e", path("usr/lib/deep/link")).unwrap();
    symlink("x".repeat(1000), path("long-link")).unwrap();
    fs::set_permissions(path("bin/d"), fs::Permissions::from_mode(0o4755)).unwrap();
    assert!(tool("mkfifo", &["pipe"], root.path()).is_some());
    root
}

fn names(root: &Path) -> Vec<String> {
    fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_gnu_tar_packs_is_the_directory_in_every_format() {
    let root = tree();
    let expected = packed(open_directory(root.path()).unwrap());
    let scratch = tempfile::tempdir().unwrap();
    for options in [
        &["--format=gnu"][..],
        &["--format=posix"],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--xattrs", "--sort=name", "--gzip"],
    ] {
        let archive = scratch.path().join("archive.tar");
        let mut arguments = vec!["--create".to_owned(), "--file".to_owned(), archive.display().to_string()];
        arguments.extend(options.iter().map(ToString::to_string).chain(names(root.path())));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if tool("tar", &arguments, root.path()).is_none() {
            return;
        }
        let tree = open_tar(&archive, opening()).unwrap();
        assert!(packed(tree) == expected, "{options:?}");
    }
}

#[test]
fn compression_does_not_show() {
    let plain = Tar::default().file("a", &"text ".repeat(100_000)).symlink("l", "a").end();
    let expected = packed(merged(std::slice::from_ref(&plain)).unwrap());
    let half = plain.len() / 2;
    let mut forms =
        vec![("gzip", gzip(&plain)), ("two members", [gzip(&plain[..half]), gzip(&plain[half..])].concat())];
    if let Some(frame) = zstd(&plain, &["--check"]) {
        let halves = [&plain[..half], &plain[half..]].map(|half| zstd(half, &[]).unwrap());
        // A skippable frame, as zstd:chunked layers have.
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &halves[0], &halves[1]].concat();
        forms.extend([("zstd", frame), ("zstd frames", skipped)]);
    }
    for (name, form) in forms {
        let layout = Layout::new();
        let manifest = layout.manifest(&[(form, plain.clone())], "amd64", json!({}));
        layout.index(&json!([manifest]));
        assert!(packed(layout.open(None).unwrap().tree) == expected, "{name}");
    }
}

#[test]
fn damaged_and_unknown_compression_is_refused() {
    let plain = Tar::default().file("a", &"text ".repeat(10_000)).end();
    let refused = |bytes: &[u8]| {
        let layout = Layout::new();
        layout.index(&json!([layout.manifest(&[(bytes.to_vec(), plain.clone())], "amd64", json!({}))]));
        chain(&layout.open(None).map(drop).unwrap_err())
    };
    let packed = gzip(&plain);
    for cut in [1, 9, 40] {
        let error = refused(&packed[..packed.len() - cut]);
        assert!(error.contains("cannot decompress") || error.contains("cannot read"), "{cut}: {error}");
    }
    assert!(refused(b"\xfd7zXZ\0\0\0rest").contains("not supported (xz)"));
    assert!(refused(b"BZh91AY&SYrest").contains("not supported (bzip2)"));
    if let Some(window) = zstd(&vec![0; 200 << 20], &["--long=27", "-1"]) {
        let error = refused(&window);
        assert!(error.to_lowercase().contains("window"), "{error}");
    }
}

#[test]
fn every_digest_is_compared() {
    let plain = Tar::default().file("a", "content").end();
    let layout = Layout::of(std::slice::from_ref(&plain));
    assert!(layout.open(None).is_ok());
    let blobs: Vec<PathBuf> =
        fs::read_dir(layout.path("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(blobs.len(), 3);
    for blob in blobs {
        let before = fs::read(&blob).unwrap();
        // A byte at the end: whitespace in JSON, padding in a tar archive.
        let mut after = before.clone();
        let last = after.len() - 1;
        after[last] ^= 1;
        fs::write(&blob, &after).unwrap();
        let error = layout.open(None).map(drop).unwrap_err();
        assert!(matches!(error, SourceError::Digest { .. }), "{error}");
        fs::write(&blob, [&before[..], b" "].concat()).unwrap();
        let error = layout.open(None).map(drop).unwrap_err();
        assert!(matches!(error, SourceError::Size { .. }), "{error}");
        fs::write(&blob, before).unwrap();
    }
    // The layer is what the manifest says, but not what the configuration says.
    let other = Tar::default().file("a", "other").end();
    let layout = Layout::new();
    layout.index(&json!([layout.manifest(&[(gzip(&plain), other)], "amd64", json!({}))]));
    let error = chain(&layout.open(None).map(drop).unwrap_err());
    assert!(error.contains("decompressed"), "{error}");
}

#[test]
fn the_image_of_the_kernels_architecture_is_chosen() {
    let layout = Layout::new();
    let image = |architecture: &str| {
        let layer = Tar::default().file("arch", architecture).end();
        let mut manifest = layout.manifest(&[(layer.clone(), layer)], architecture, json!({}));
        manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
        manifest
    };
    let index = json!({"schemaVersion": 2, "manifests": [image("arm64"), image("amd64"), image("s390x")]});
    let index = layout.blob("application/vnd.oci.image.index.v1+json", index.to_string().as_bytes());
    layout.index(&json!([index]));
    assert_eq!(listing(layout.open(None).unwrap().tree), ["arch 100644 amd64"]);

    layout.index(&json!([image("arm64")]));
    let error = layout.open(None).map(drop).unwrap_err().to_string();
    assert!(error.contains("linux/x86_64") && error.contains("linux/arm64"), "{error}");
    // A platform that the index does not tell is found in the configuration.
    let mut manifest = image("arm64");
    manifest.as_object_mut().unwrap().remove("platform");
    layout.index(&json!([manifest]));
    assert!(matches!(layout.open(None).map(drop).unwrap_err(), SourceError::NoSuchPlatform { .. }));
}

/// A layout's blobs, one by one; remembers what was asked for.
struct Fetched<'a>(&'a Layout, std::sync::Mutex<Vec<Wanted>>);

impl Blobs for Fetched<'_> {
    fn fetch(&self, wanted: &[Wanted]) -> Result<Vec<fs::File>, Box<dyn std::error::Error + Send + Sync>> {
        self.1.lock().unwrap().extend_from_slice(wanted);
        let open = |wanted: &Wanted| fs::File::open(self.0.path("blobs/sha256").join(wanted.digest.hex()));
        Ok(wanted.iter().map(open).collect::<Result<_, _>>()?)
    }
}

#[test]
fn a_document_of_a_registry_leads_to_the_layouts_image_and_to_no_other_blob() {
    let layout = Layout::new();
    let image = |architecture: &str| {
        let layer = Tar::default().file("arch", architecture).end();
        let mut manifest = layout.manifest(&[(layer.clone(), layer)], architecture, json!({}));
        manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
        manifest
    };
    let (arm64, amd64) = (image("arm64"), image("amd64"));
    let index = json!({"schemaVersion": 2, "manifests": [arm64, amd64]}).to_string();
    let manifest = fs::read(layout.path("blobs").join(amd64["digest"].as_str().unwrap().replace(':', "/")));
    let manifest = manifest.unwrap();
    for (document, blobs) in [(index.as_bytes(), 3), (&manifest, 2)] {
        let fetched = Fetched(&layout, Default::default());
        let digest = Digest::sha256(document);
        let image = open_oci_document("name", document, Some(&digest), &fetched, opening()).unwrap();
        assert_eq!(listing(image.tree), ["arch 100644 amd64"]);
        let asked = fetched.1.into_inner().unwrap();
        assert_eq!(asked.len(), blobs, "{asked:?}");
        assert_eq!(asked.iter().filter(|wanted| wanted.is_manifest).count(), blobs - 2);
    }
    let refused = |document: &[u8], expected: Option<&Digest>| {
        let fetched = Fetched(&layout, Default::default());
        let error = open_oci_document("name", document, expected, &fetched, opening()).map(drop).unwrap_err();
        chain(&error)
    };
    let other = Digest::sha256(b"other");
    assert!(refused(&manifest, Some(&other)).contains("expected sha256:"));
    let mut both: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    both["manifests"] = json!([]);
    assert!(refused(both.to_string().as_bytes(), None).contains("an index and a manifest at once"));
    assert!(refused(b"{}", None).contains("neither an index nor a manifest"));
    let twice = json!({"manifests": [image("amd64"), {"digest": other.to_string(), "size": 1}]}).to_string();
    assert!(refused(twice.as_bytes(), None).contains("name one of"), "a digest must choose");
}

#[test]
fn a_tag_or_a_digest_chooses_among_several_images() {
    let layout = Layout::new();
    let image = |tag: &str| {
        let layer = Tar::default().file("tag", tag).end();
        let mut manifest = layout.manifest(&[(layer.clone(), layer)], "amd64", json!({}));
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        manifest
    };
    let (first, second) = (image("v1"), image("example.org/app:v2"));
    let digest = second["digest"].as_str().unwrap().to_owned();
    layout.index(&json!([first, second]));
    for (wanted, found) in [("v1", "v1"), ("v2", "example.org/app:v2"), (&digest, "example.org/app:v2")] {
        assert_eq!(listing(layout.open(Some(wanted)).unwrap().tree), [format!("tag 100644 {found}")]);
    }
    let error = layout.open(None).map(drop).unwrap_err().to_string();
    assert!(error.contains("name one of: v1, example.org/app:v2"), "{error}");
    let error = layout.open(Some("v3")).map(drop).unwrap_err().to_string();
    assert!(error.contains("no image v3"), "{error}");
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    let empty = tempfile::tempdir().unwrap();
    let error = open_oci_layout(empty.path(), None, opening()).map(drop).unwrap_err();
    assert!(matches!(error, SourceError::NotAnImage { missing: "oci-layout", .. }), "{error}");
    let tar = empty.path().join("x.tar");
    fs::write(&tar, Tar::default().file("f", "").end()).unwrap();
    assert!(matches!(oci_archive(&tar).map(drop).unwrap_err(), SourceError::NotAnImage { .. }));
    assert!(matches!(docker_archive(&tar, None).map(drop).unwrap_err(), SourceError::NotAnImage { .. }));
    let escape = Layout::of(&[]);
    let index = fs::read_to_string(escape.path("index.json")).unwrap();
    fs::write(escape.path("index.json"), index.replace("sha256:", "sha256:../../")).unwrap();
    let error = chain(&escape.open(None).map(drop).unwrap_err());
    assert!(error.contains("not a sha256 or sha512 digest"), "{error}");
}

#[test]
fn layouts_and_archives_of_one_image_give_the_same_ramdisk() {
    let root = tree();
    let scratch = tempfile::tempdir().unwrap();
    let layer = scratch.path().join("layer.tar");
    let mut arguments = vec!["--create".to_owned(), "--file".to_owned(), layer.display().to_string()];
    arguments.extend(names(root.path()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tool("tar", &arguments, root.path()).unwrap();
    let lower = fs::read(&layer).unwrap();
    let upper = Tar::default().file("bin/.wh.a", "").file("new", "n").end();
    let run = json!({"Entrypoint": ["/bin/d"], "Env": ["A=1"], "User": "7:8", "WorkingDir": "/usr"});

    let layout = Layout::new();
    let layers = [(gzip(&lower), lower.clone()), (upper.clone(), upper.clone())];
    layout.index(&json!([layout.manifest(&layers, "amd64", run.clone())]));
    let image = layout.open(None).unwrap();
    let (config, digest) = (image.config.clone(), image.digest.clone());
    let expected = packed(image.tree);

    let archive = scratch.path().join("oci.tar");
    tool("tar", &["--create", "--file", archive.to_str().unwrap(), "."], layout.0.path()).unwrap();
    let image = oci_archive(&archive).unwrap();
    assert_eq!((&image.config, &image.digest), (&config, &digest));
    assert!(packed(image.tree) == expected);
    let compressed = scratch.path().join("oci.tar.gz");
    fs::write(&compressed, gzip(&fs::read(&archive).unwrap())).unwrap();
    assert!(packed(oci_archive(&compressed).unwrap().tree) == expected);

    let config_bytes = fs::read(layout.path("blobs/sha256").join(digest.hex())).unwrap();
    let config_name = format!("{}.json", digest.hex());
    let manifest =
        json!([{"Config": config_name, "RepoTags": ["app:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let docker = Tar::default()
        .member(b'0', "c/layer.tar", "", 0o644, &lower)
        // docker save has written a layer that it had already as a link.
        .symlink("a/layer.tar", "../c/layer.tar")
        .member(b'0', "b/layer.tar", "", 0o644, &upper)
        .file(&config_name, &text(&config_bytes))
        .file("manifest.json", &manifest.to_string())
        .end();
    let archive = scratch.path().join("docker.tar");
    fs::write(&archive, docker).unwrap();
    for reference in [None, Some("1"), Some("app:1")] {
        let image = docker_archive(&archive, reference).unwrap();
        assert_eq!((&image.config, &image.digest), (&config, &digest));
        assert!(packed(image.tree) == expected);
    }
    assert!(docker_archive(&archive, Some("2")).is_err());
}

/// skopeo converts between all forms; what it writes is read.
#[test]
fn skopeo_and_umoci_images_are_the_directory_they_were_made_of() {
    let scratch = tempfile::tempdir().unwrap();
    let root = tree();
    let expected = packed(open_directory(root.path()).unwrap());
    let run = |program: &str, arguments: &[&str]| tool(program, arguments, scratch.path());
    if run("umoci", &["init", "--layout", "oci"]).is_none() {
        return;
    }
    run("umoci", &["new", "--image", "oci:v1"]).unwrap();
    let tar = scratch.path().join("layer.tar");
    let mut arguments = vec!["--create".to_owned(), "--file".to_owned(), tar.display().to_string()];
    arguments.extend(names(root.path()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tool("tar", &arguments, root.path()).unwrap();
    run("umoci", &["raw", "add-layer", "--image", "oci:v1", "layer.tar"]).unwrap();
    run("umoci", &["config", "--image", "oci:v1", "--config.entrypoint", "/bin/d", "--config.user", "7"])
        .unwrap();
    let check = |image: Result<ContainerImage, SourceError>| {
        let image = image.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(
            (&image.config.entrypoint[..], image.config.user.as_str()),
            (&["/bin/d".to_owned()][..], "7")
        );
        assert!(packed(image.tree) == expected);
    };
    check(open_oci_layout(&scratch.path().join("oci"), Some("v1"), opening()));
    for (destination, format) in [("oci-archive:a.tar:v1", &[][..]), ("docker-archive:d.tar:app:v1", &[])] {
        let copy = [&["--insecure-policy", "copy"][..], format, &["oci:oci:v1", destination]].concat();
        if run("skopeo", &copy).is_none() {
            return;
        }
    }
    check(oci_archive(&scratch.path().join("a.tar")));
    check(docker_archive(&scratch.path().join("d.tar"), Some("app:v1")));
    let zstd = [
        "--insecure-policy",
        "copy",
        "--dest-compress",
        "--dest-compress-format",
        "zstd",
        "oci:oci:v1",
        "oci:z:v1",
    ];
    run("skopeo", &zstd).unwrap();
    check(open_oci_layout(&scratch.path().join("z"), None, opening()));
}

#[test]
fn digests_are_parsed_strictly() {
    let digits = "0123456789abcdef".repeat(4);
    assert!(format!("sha256:{digits}").parse::<Digest>().is_ok());
    for text in [
        digits.clone(),
        format!("sha256:{}", &digits[1..]),
        format!("sha256:{}", digits.to_uppercase()),
        format!("md5:{digits}"),
        format!("sha256:../{}", &digits[3..]),
    ] {
        assert!(text.parse::<Digest>().is_err(), "{text}");
    }
}

/// A build of 200,000 files within 64 MiB of writable anonymous memory, as the
/// kernel counts it (RLIMIT_DATA): this very program is started again under it.
#[test]
fn two_hundred_thousand_files_need_less_than_64_mib() {
    const VARIABLE: &str = "EIF_TEST_LARGE_IMAGE";
    if let Some(path) = std::env::var_os(VARIABLE) {
        let image = open_oci_layout(Path::new(&path), None, opening()).unwrap();
        let mut count = Counting(0);
        let workload = eif::ramdisk::Workload::of(image.tree);
        assert_eq!(workload.entries(), 200_000 + 100 + 1);
        workload.write(b"{}", &mut count, &|_| ()).unwrap();
        assert!(count.0 > 200_000 * 110);
        return;
    }
    let mut tar = Tar::default();
    for at in 0..200_000 {
        let name = format!("directory-with-a-name/{:02}/file-with-a-rather-long-name-{at:08}.json", at % 100);
        tar = tar.member(b'0', &name, "", 0o644, b"");
    }
    let plain = tar.end();
    let mut forms = vec![("gzip", gzip(&plain))];
    // The default of common tools, and the largest window that is accepted.
    for window in ["--long=23", "--long=24"] {
        forms.extend(zstd(&plain, &["-1", window]).map(|packed| (window, packed)));
    }
    for (name, packed) in forms {
        let layout = Layout::new();
        layout.index(&json!([layout.manifest(&[(packed, plain.clone())], "amd64", json!({}))]));
        let output = Command::new("prlimit")
            .arg(format!("--data={}", 64 << 20))
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "two_hundred_thousand_files_need_less_than_64_mib", "--nocapture"])
            .env(VARIABLE, layout.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

struct Counting(u64);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn owners_and_roots_of_archives_are_kept() {
    let mut block = container::header(b'5', b"./", b"", 0o750, 0);
    block[108..116].copy_from_slice(b"0000007\0");
    container::seal(&mut block);
    let tree = merged(&[Tar(block.to_vec()).file("f", "").end()]).unwrap();
    let archive = packed(tree);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("archive"), &archive).unwrap();
    let unpack = ["--extract", "--quiet", "--no-absolute-filenames", "--file", "archive"];
    if tool("cpio", &unpack, directory.path()).is_none() {
        return;
    }
    let metadata = fs::metadata(directory.path().join("workload/rootfs")).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o750);
    if fs::metadata(directory.path()).unwrap().uid() == 0 {
        assert_eq!(metadata.uid(), 7);
    }
}
