//! An output file that appears whole or not at all.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    libc::O_TMPFILE,
    unistd::linkat,
};
use tempfile::{Builder, NamedTempFile};

/// What any new file gets, less the umask.
const MODE: u32 = 0o666;

/// A file being written in the directory where it will appear. Dropped
/// without [`OutputFile::publish`], it is gone.
pub(crate) struct OutputFile {
    content: Content,
    path: PathBuf,
}

enum Content {
    /// Without a name: gone even when this program is killed.
    Unnamed(File),
    /// Where the file system has no such files.
    Named(NamedTempFile),
}

impl OutputFile {
    pub(crate) fn create(path: &Path) -> io::Result<OutputFile> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let directory = directory(path);
        let unnamed =
            OpenOptions::new().read(true).write(true).mode(MODE).custom_flags(O_TMPFILE).open(directory);
        let content = match unnamed {
            Ok(file) => Content::Unnamed(file),
            // EOPNOTSUPP by the file system, EISDIR by an old kernel.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::IsADirectory) =>
            {
                Content::Named(beside().permissions(Permissions::from_mode(MODE)).tempfile_in(directory)?)
            }
            Err(error) => return Err(error),
        };
        Ok(OutputFile { content, path: path.to_owned() })
    }

    /// The same open file, for a writer that wants to own one.
    pub(crate) fn file(&self) -> io::Result<File> {
        match &self.content {
            Content::Unnamed(file) => file.try_clone(),
            Content::Named(file) => file.as_file().try_clone(),
        }
    }

    /// Puts the file in its place, over one that may be there.
    pub(crate) fn publish(self) -> io::Result<()> {
        let name = match self.content {
            Content::Named(file) => file.into_temp_path(),
            // A link cannot replace a file, a rename can: so the name beside.
            Content::Unnamed(file) => {
                let open_file = format!("/proc/self/fd/{}", file.as_raw_fd());
                let link = |name: &Path| {
                    linkat(AT_FDCWD, open_file.as_str(), AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW)?;
                    Ok(())
                };
                beside().make_in(directory(&self.path), link)?.into_temp_path()
            }
        };
        name.persist(&self.path).map_err(|error| error.error)
    }
}

/// The directory that `path` lies in.
pub(crate) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Names of temporary files.
fn beside() -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(".enclavectl-").suffix(".part");
    builder
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_only_when_published_and_replaces_the_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        for content in ["first", "second"] {
            let output = OutputFile::create(&path).unwrap();
            output.file().unwrap().write_all(content.as_bytes()).unwrap();
            assert_ne!(std::fs::read_to_string(&path).unwrap_or_default(), content);
            output.publish().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!(names(directory.path()), ["out"]);
        }
    }

    #[test]
    fn where_files_need_names_the_same_holds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let named = || Content::Named(beside().tempfile_in(directory.path()).unwrap());
        drop(OutputFile { content: named(), path: path.clone() });
        assert_eq!(names(directory.path()), [""; 0]);
        OutputFile { content: named(), path: path.clone() }.publish().unwrap();
        assert_eq!(names(directory.path()), ["out"]);
    }
}
