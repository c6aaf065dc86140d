//! The checks of an image that need no device.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use eif::cpio::{self, ListError};
use eif::{Architecture, Image, ImageError, Pcr, Section};

use super::BootError;
use super::advice;
use super::plan::Needs;

/// What only our builder puts into the second ramdisk, and its first entry.
const SETTINGS: &[u8] = b"workload/settings.json";
const FIRST_ENTRY: &[u8] = b"workload";
/// How an uncompressed newc archive begins.
const NEWC: &[u8] = b"07070";
/// Compressed archives are counted this many times: an estimate, told as one.
const USUAL_COMPRESSION: u64 = 3;

/// An image that may be launched.
#[derive(Debug)]
pub(crate) struct CheckedImage {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) needs: Needs,
    /// What its kernel says of itself, such as `6.1.0-28-amd64`.
    pub(super) kernel: Option<String>,
    /// Whether our agent is in it.
    pub(super) has_agent: bool,
    /// The PCR0 that a good signature is over, if one was asked for.
    pub(super) signed: Option<Pcr>,
}

impl CheckedImage {
    /// Checks layout, CRC, architecture and, if wanted, the signature.
    pub(crate) fn open(path: &Path, require_signature: bool) -> Result<CheckedImage, BootError> {
        let blamed = |source| BootError::Image { path: path.to_owned(), source };
        let opened = || {
            let file = File::open(path)?;
            Ok((file.try_clone()?, file))
        };
        let (file, for_checks) =
            opened().map_err(|source| blamed(ImageError::Open { path: path.to_owned(), source }))?;
        let image = Image::read(for_checks).map_err(blamed)?;
        let (actual, expected) = (image.layout().architecture, Architecture::HOST);
        if actual != expected {
            return Err(BootError::Architecture { path: path.to_owned(), expected, actual });
        }
        Ok(CheckedImage {
            file,
            path: path.to_owned(),
            needs: Needs {
                file: image.layout().len(),
                unpacked: image.layout().ramdisks().map(|ramdisk| unpacked(&image, ramdisk)).sum(),
            },
            kernel: image.kernel_version(),
            has_agent: has_agent(&image),
            signed: if require_signature { Some(check_signature(&image, path)?) } else { None },
        })
    }
}

impl CheckedImage {
    /// A line for each known fault of its kernel.
    pub(crate) fn advice(&self) -> Vec<String> {
        advice::of(self.kernel.as_deref(), self.has_agent)
    }
}

impl fmt::Display for CheckedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agent = if self.has_agent { "our agent" } else { "no agent of ours" };
        let kernel = self.kernel.as_deref().unwrap_or("that does not say what it is");
        write!(f, "{} bytes, {agent}, kernel {kernel}", self.needs.file)
    }
}

/// The PCR0 for which the signature is good.
fn check_signature(image: &Image<'_>, path: &Path) -> Result<Pcr, BootError> {
    let blamed = |source| BootError::Image { path: path.to_owned(), source };
    let signature = image.signature().map_err(blamed)?;
    let signature = signature.ok_or_else(|| BootError::Unsigned { path: path.to_owned() })?;
    let measured = image.measure().map_err(blamed)?;
    signature
        .check(&measured.pcr0, SystemTime::now())
        .map_err(|source| BootError::Signature { path: path.to_owned(), source: Box::new(source) })?;
    Ok(measured.pcr0)
}

fn unpacked(image: &Image<'_>, ramdisk: &Section) -> u64 {
    let mut start = [0; NEWC.len()];
    let read = image.reader(ramdisk).read_exact(&mut start);
    if read.is_ok() && start == NEWC { ramdisk.len() } else { ramdisk.len() * USUAL_COMPRESSION }
}

/// A ramdisk that cannot be listed is none of ours.
fn has_agent(image: &Image<'_>) -> bool {
    let listed = || -> Result<bool, ListError> {
        let Some(ramdisk) = image.layout().ramdisks().nth(1) else { return Ok(false) };
        let input = BufReader::new(image.reader(ramdisk));
        let mut entries = cpio::Reader::new(input).map_err(|source| ListError::Read { offset: 0, source })?;
        if entries.next_entry()?.is_none_or(|first| first.name != FIRST_ENTRY) {
            return Ok(false);
        }
        while let Some(entry) = entries.next_entry()? {
            if entry.name == SETTINGS {
                return Ok(true);
            }
        }
        Ok(false)
    };
    listed().unwrap_or(false)
}
