//! A container image on this machine: as a layout, an archive, or its files.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::{
    Image, blob_name,
    tarball::{Content, Tarball},
};
use crate::output::{OutputFile, directory};

pub(super) fn layout(path: &Path, image: &Image, layer: &Tarball) -> io::Result<()> {
    in_new_directory(path, |beside| {
        for (name, bytes) in image.files() {
            let file = beside.join(name);
            fs::create_dir_all(directory(&file))?;
            fs::write(file, bytes)?;
        }
        layer.write(&mut File::create_new(beside.join(blob_name(&image.layer)))?)
    })
}

pub(super) fn files(path: &Path, layer: &Tarball) -> io::Result<()> {
    in_new_directory(path, |beside| layer.unpack(beside))
}

pub(super) fn archive(path: &Path, image: &Image, layer: &Tarball) -> io::Result<()> {
    let output = OutputFile::create(path)?;
    let mut archive = Tarball::default();
    archive.directory("blobs/");
    archive.directory("blobs/sha256/");
    let mut file = output.file()?;
    for (name, bytes) in image.files() {
        archive.file(&name, 0o644, Content::Bytes(bytes.clone()));
    }
    archive.file(&blob_name(&image.layer), 0o644, Content::Tarball(layer.try_clone()?));
    archive.write(&mut file)?;
    output.publish()
}

/// What `fill` puts into a directory appears at `path` whole or not at all.
fn in_new_directory(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let beside = tempfile::Builder::new().prefix(".enclavectl-").tempdir_in(directory(path))?;
    fill(beside.path())?;
    // A temporary directory is for its owner alone.
    fs::set_permissions(beside.path(), Permissions::from_mode(0o755))?;
    // Over an empty directory, too.
    fs::rename(beside.path(), path)?;
    // It is not there any more, and must not be removed from its new place.
    let _ = beside.keep();
    Ok(())
}
