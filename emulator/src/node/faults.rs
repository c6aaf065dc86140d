//! Faults that a test asks for in `faults.json`.
//!
//! The file is a list such as
//! `[{"ioctl": "NE_ADD_VCPU", "errno": 257, "times": 1, "skip": 0}]` and is
//! read at every ioctl of the enclave device; replacing it starts its counts
//! anew.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use super::caller::Errno;

/// One fault.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    /// The ioctl's name, `NE_...`.
    ioctl: String,
    /// What it fails with: 1 to 4095.
    errno: i32,
    /// How often; absent means always.
    times: Option<u64>,
    /// How many calls pass first.
    #[serde(default)]
    skip: u64,
}

/// The faults of a node.
pub(crate) struct Faults {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    file: Option<(u64, i64, i64)>,
    faults: Vec<Fault>,
}

impl Faults {
    /// The faults of the node in `dir`.
    pub(crate) fn of(dir: &Path) -> Faults {
        Faults { path: dir.join("faults.json"), state: Mutex::default() }
    }

    /// Fails if a fault is due for this call of `ioctl`.
    pub(crate) fn check(&self, ioctl: &str) -> Result<(), Errno> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.refresh(&self.path);
        for fault in state.faults.iter_mut().filter(|fault| fault.ioctl == ioctl) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times != Some(0) {
                fault.times = fault.times.map(|times| times - 1);
                return Err(Errno(fault.errno));
            }
        }
        Ok(())
    }
}

impl State {
    fn refresh(&mut self, path: &Path) {
        let file = fs::metadata(path).ok().map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec()));
        if file == self.file {
            return;
        }
        self.file = file;
        self.faults = match fs::read(path).map_err(|e| e.to_string()).and_then(|text| parse(&text)) {
            Ok(faults) => faults,
            Err(_) if file.is_none() => Vec::new(),
            Err(error) => {
                eprintln!("no faults: {} is not understood: {error}", path.display());
                Vec::new()
            }
        };
    }
}

fn parse(text: &[u8]) -> Result<Vec<Fault>, String> {
    let faults: Vec<Fault> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match faults.iter().find(|fault| !(1..4096).contains(&fault.errno)) {
        Some(fault) => Err(format!("errno {} is not within 1 to 4095", fault.errno)),
        None => Ok(faults),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_skips_strikes_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::of(dir.path());
        assert_eq!(faults.check("NE_ADD_VCPU"), Ok(()));
        let text = r#"[{"ioctl": "NE_ADD_VCPU", "errno": 257, "times": 2, "skip": 1}]"#;
        fs::write(dir.path().join("faults.json"), text).unwrap();
        let seen: Vec<_> = (0..4).map(|_| faults.check("NE_ADD_VCPU")).collect();
        assert_eq!(seen, [Ok(()), Err(Errno(257)), Err(Errno(257)), Ok(())]);
        assert_eq!(faults.check("NE_CREATE_VM"), Ok(()));
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_whole() {
        assert!(parse(br#"[{"ioctl": "NE_ADD_VCPU", "errno": 0}]"#).is_err());
        assert!(parse(br#"[{"ioctl": "NE_ADD_VCPU", "errno": 5, "time": 1}]"#).is_err());
    }
}
