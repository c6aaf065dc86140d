//! The modules that this kernel needs: what the build put into ramdisk 0
//! (`/modules/00-nsm.ko`), in the order of their numbers. PCR1 covers them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

const DIRECTORY: &str = "/modules";

/// A module that the image holds and the kernel does not have now.
#[derive(Debug, thiserror::Error)]
pub(super) enum ModuleError {
    #[error("cannot list the modules in {}", .path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("cannot open module {}", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot load module {}{}", .path.display(), hint(*.source))]
    Load { path: PathBuf, source: Errno },
}

/// Loads all of them, before anything is opened that one of them drives.
pub(super) fn load() -> Result<(), ModuleError> {
    load_in_order(Path::new(DIRECTORY), |file| finit_module(file, c"", ModuleInitFlags::empty()))
}

/// Ends at the first that fails: the next may need it.
fn load_in_order(
    directory: &Path,
    mut load: impl FnMut(&File) -> nix::Result<()>,
) -> Result<(), ModuleError> {
    for name in names(directory).map_err(|source| ModuleError::List { path: directory.to_owned(), source })? {
        let path = directory.join(name);
        let file = File::open(&path).map_err(|source| ModuleError::Open { path: path.clone(), source })?;
        match load(&file) {
            // Built in, or loaded by whoever prepared this kernel.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(source) => return Err(ModuleError::Load { path, source }),
        }
    }
    Ok(())
}

/// None where there is no directory: the kernel has everything built in.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// What of the image is to be changed (kernel/module/main.c).
fn hint(error: Errno) -> &'static str {
    match error {
        Errno::ENOSYS => " (this kernel loads no modules: build the image without them)",
        Errno::ENOEXEC => " (was it built for this very kernel?)",
        Errno::ENOENT => " (it needs a symbol of a module that must be named before it)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    fn content(mut file: &File) -> String {
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        content
    }

    #[test]
    fn modules_are_loaded_by_their_numbers_and_the_first_failure_is_named() {
        let directory = directory(&[("10-c.ko", "c"), ("00-z.ko", "z"), ("01-a.ko", "a"), ("02-b.ko", "b")]);
        let mut seen = Vec::new();
        let all = load_in_order(directory.path(), |file| {
            seen.push(content(file));
            Ok(())
        });
        assert!(all.is_ok());
        assert_eq!(seen, ["z", "a", "b", "c"]);

        let mut seen = Vec::new();
        let error = load_in_order(directory.path(), |file| {
            seen.push(content(file));
            if seen.len() == 2 { Err(Errno::ENOENT) } else { Ok(()) }
        });
        assert_eq!(seen, ["z", "a"]);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("/01-a.ko") && text.contains("named before it"), "{text}");
    }

    #[test]
    fn what_the_kernel_has_already_is_no_failure_and_no_directory_means_none() {
        let directory = directory(&[("00-a.ko", "a"), ("01-b.ko", "b")]);
        let mut loaded = 0;
        let all = load_in_order(directory.path(), |_| {
            loaded += 1;
            Err(Errno::EEXIST)
        });
        assert!(all.is_ok());
        assert_eq!(loaded, 2);
        let none = load_in_order(&directory.path().join("missing"), |_| Err(Errno::EPERM));
        assert!(none.is_ok());
    }
}
