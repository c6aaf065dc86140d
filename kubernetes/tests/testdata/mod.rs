//! Files of others that tests compare with. They lie beside the repository;
//! without them a test says so and is skipped.

use std::{env, fs, path::PathBuf};

/// A file's text, or `None` with a loud note.
pub(crate) fn read(name: &str) -> Option<String> {
    let root = env::var_os("ENCLAVE_SHIM_TESTDATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/testdata"),
        PathBuf::from,
    );
    let path = root.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) => {
            eprintln!("SKIPPED: {} cannot be read ({error}); set ENCLAVE_SHIM_TESTDATA", path.display());
            None
        }
    }
}
