//! Looks at the machine. Nothing here judges, and nothing is changed.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nitro_device::{Device, DeviceError};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::utsname::uname;
use nix::unistd::{getegid, geteuid, getgroups};

use crate::boot::plan::Snapshot;
use crate::boot::{self, BootError, CheckedImage};

/// What was seen.
#[derive(Debug)]
pub(super) struct Evidence {
    pub(super) device: DeviceEvidence,
    /// Whether the driver is there: /sys/module/nitro_enclaves.
    pub(super) module: bool,
    pub(super) machine: Snapshot,
    /// What socket(AF_VSOCK) answers.
    pub(super) vsock: Result<(), Errno>,
    /// `Seccomp:` of /proc/self/status: 2 is a filter.
    pub(super) seccomp: Option<u32>,
    /// Soft limit of RLIMIT_MEMLOCK in bytes; `None` is unlimited.
    pub(super) locked_memory: Option<u64>,
    /// `uname -r`.
    pub(super) kernel: String,
    /// The image, if there is one to look at.
    pub(super) image: Option<ImageEvidence>,
}

/// An image and what its checks say.
#[derive(Debug)]
pub(super) struct ImageEvidence {
    pub(super) path: PathBuf,
    pub(super) checked: Result<CheckedImage, BootError>,
}

/// The device file, and who we are to it.
#[derive(Debug)]
pub(super) struct DeviceEvidence {
    pub(super) path: PathBuf,
    pub(super) open: Result<(), DeviceError>,
    /// Whether it is a character device, its mode and its group.
    pub(super) file: Option<(bool, u32, u32)>,
    pub(super) user: u32,
    pub(super) groups: Vec<u32>,
}

impl Evidence {
    /// Looks at everything. Opens the device and closes it again.
    pub(super) fn gather(device: &Path, eif: Option<&Path>) -> Evidence {
        Evidence {
            device: DeviceEvidence::of(device),
            module: Path::new("/sys/module/nitro_enclaves").exists(),
            machine: Snapshot::take(Path::new("/")),
            vsock: boot::vsock_allowed(),
            seccomp: seccomp_mode(),
            locked_memory: locked_memory(),
            kernel: uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
            image: eif.map(|path| ImageEvidence {
                path: path.to_owned(),
                checked: CheckedImage::open(path, false),
            }),
        }
    }
}

impl DeviceEvidence {
    fn of(path: &Path) -> DeviceEvidence {
        let file = fs::metadata(path).ok();
        let mut groups: Vec<u32> =
            getgroups().unwrap_or_default().into_iter().map(|gid| gid.as_raw()).collect();
        groups.push(getegid().as_raw());
        groups.sort_unstable();
        groups.dedup();
        DeviceEvidence {
            path: path.to_owned(),
            open: Device::open(path).map(drop),
            file: file.map(|file| (file.file_type().is_char_device(), file.mode() & 0o7777, file.gid())),
            user: geteuid().as_raw(),
            groups,
        }
    }
}

fn seccomp_mode() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Seccomp:")?.trim().parse().ok())
}

fn locked_memory() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != nix::libc::RLIM_INFINITY).then_some(soft)
}
