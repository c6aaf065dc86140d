//! Any JSON as the index, manifest and configuration of an image layout:
//! refused, or an image.
//!
//! The input is the three documents, separated by NUL bytes. `@M`, `@C` and
//! `@L` in them become the digests of manifest, configuration and layer, `%M`,
//! `%C` and `%L` their sizes, so that what is behind the digests is reached. The
//! same index is then read as the document of a registry.
#![no_main]

use std::{
    error::Error,
    fs::{self, File},
    path::PathBuf,
    sync::LazyLock,
};

use eif::{
    Architecture,
    rootfs::{Blobs, Digest, Limits, Opening, Wanted, open_oci_document, open_oci_layout},
};
use libfuzzer_sys::fuzz_target;

static LAYOUT: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("fuzz-oci-{}", std::process::id()));
    fs::create_dir_all(path.join("blobs/sha256")).unwrap();
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    path
});

fuzz_target!(|data: &[u8]| {
    let mut documents = data.splitn(3, |&byte| byte == 0).map(<[u8]>::to_vec);
    let (Some(index), Some(manifest), Some(config)) = (documents.next(), documents.next(), documents.next())
    else {
        return;
    };
    let mut stored = Vec::new();
    let mut names: Vec<(char, String, usize)> = Vec::new();
    for (name, bytes) in [('L', vec![0; 1024]), ('C', config), ('M', manifest)] {
        let bytes = replaced(bytes, &names);
        let digest = Digest::sha256(&bytes);
        let path = LAYOUT.join("blobs/sha256").join(digest.hex());
        fs::write(&path, &bytes).unwrap();
        stored.push(path);
        names.push((name, digest.to_string(), bytes.len()));
    }
    let index = replaced(index, &names);
    fs::write(LAYOUT.join("index.json"), &index).unwrap();
    for image in [
        open_oci_layout(&LAYOUT, None, opening()),
        open_oci_document("fuzz", &index, None, &Stored, opening()),
    ] {
        let Ok(image) = image else { continue };
        assert_eq!(image.tree.entries(), 0);
        assert_eq!(image.digest.to_string(), names[1].1);
    }
    stored.into_iter().for_each(|path| drop(fs::remove_file(path)));
});

fn opening() -> Opening {
    let mut spool = File::options();
    spool.read(true).write(true).create(true).truncate(true);
    let spool = spool.open(LAYOUT.join("spool")).unwrap();
    Opening { architecture: Architecture::X86_64, limits: Limits::default(), spool }
}

/// The layout's blobs, as a registry would give them.
struct Stored;

impl Blobs for Stored {
    fn fetch(&self, wanted: &[Wanted]) -> Result<Vec<File>, Box<dyn Error + Send + Sync>> {
        let open = |wanted: &Wanted| {
            File::open(LAYOUT.join("blobs").join(wanted.digest.algorithm()).join(wanted.digest.hex()))
        };
        Ok(wanted.iter().map(open).collect::<Result<_, _>>()?)
    }
}

fn replaced(bytes: Vec<u8>, names: &[(char, String, usize)]) -> Vec<u8> {
    let Ok(mut text) = String::from_utf8(bytes) else { return Vec::new() };
    // A document that is nothing but marks would grow thirtyfold.
    text.truncate(text.char_indices().nth(4096).map_or(text.len(), |(at, _)| at));
    for (name, digest, size) in names {
        text = text.replace(&format!("@{name}"), digest).replace(&format!("%{name}"), &size.to_string());
    }
    text.into_bytes()
}
