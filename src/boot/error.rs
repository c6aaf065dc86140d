//! Why the enclave did not start: each with its exit code and its fix.

use std::io;
use std::path::PathBuf;

use eif::{Architecture, ImageError, SignatureCheckError};
use nitro_device::{CidError, DeviceError, RegionError};
use nix::errno::Errno;

use super::pins::Mismatch;
use super::plan::Shortfall;
use crate::exit::{Blame, Exit};

/// Why the enclave did not start. One variant per thing an operator can mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("image {} cannot be used", .path.display())]
    Image { path: PathBuf, source: ImageError },
    #[error("image {} is for {actual}, this machine is {expected}", .path.display())]
    Architecture { path: PathBuf, expected: Architecture, actual: Architecture },
    #[error("image {} is not signed, and `require_signature` is set", .path.display())]
    Unsigned { path: PathBuf },
    #[error("the signature of image {} is not good", .path.display())]
    Signature { path: PathBuf, source: Box<SignatureCheckError> },
    #[error("image {} is not the one that was meant", .path.display())]
    WrongImage { path: PathBuf, source: Box<Mismatch> },
    #[error("image {} cannot be read into the enclave's memory", .path.display())]
    Load { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Plan(#[from] Shortfall),
    #[error("cannot make a vsock socket")]
    NoVsock(#[source] Errno),
    #[error("no enclave device")]
    NoDevice(#[source] DeviceError),
    #[error("the enclave cannot be set up")]
    Device(#[from] DeviceError),
    #[error("the enclave's memory cannot be had")]
    Memory(#[from] RegionError),
    #[error("the driver loads images at byte {offset}, the memory ends at {memory}")]
    LoadOffset { offset: u64, memory: u64 },
    #[error("cid cannot be used")]
    Cid(#[from] CidError),
    #[error("port 9000 of this instance, on which foreign images report, cannot be taken")]
    Heartbeat(#[source] io::Error),
    #[error("stopped during the launch")]
    Stopped,
}

impl Blame for BootError {
    fn exit(&self) -> Exit {
        match self {
            BootError::Image { .. }
            | BootError::Architecture { .. }
            | BootError::Unsigned { .. }
            | BootError::Signature { .. }
            | BootError::WrongImage { .. }
            | BootError::Load { .. } => Exit::Image,
            BootError::Plan(shortfall) => shortfall.exit(),
            BootError::NoVsock(_) | BootError::NoDevice(_) => Exit::Unavailable,
            BootError::Device(_)
            | BootError::Memory(_)
            | BootError::Heartbeat(_)
            | BootError::LoadOffset { .. } => Exit::Resources,
            BootError::Cid(_) => Exit::Usage,
            BootError::Stopped => Exit::Bug,
        }
    }

    fn fix(&self) -> String {
        match self {
            BootError::Image { source: ImageError::Open { .. }, .. } => {
                "put the image there, or name it with --eif".into()
            }
            BootError::Image { .. } => "build the image again, and compare its checksum after copying".into(),
            BootError::Architecture { expected, .. } => format!("build the image for {expected}"),
            BootError::Unsigned { .. } => "sign the image, or leave require_signature out".into(),
            BootError::Signature { .. } => "sign this image again with a valid certificate".into(),
            BootError::WrongImage { source, .. } => format!(
                "ship the image that was meant, or set expect.{} to what it measures",
                source.register.to_lowercase()
            ),
            BootError::Heartbeat(_) => {
                "another launcher on this node (nitro-cli?) holds the port: end it, or use an image with our agent"
                    .into()
            }
            BootError::Load { .. } => "leave the image alone while the shim starts".into(),
            BootError::Plan(shortfall) => shortfall.fix(),
            BootError::NoVsock(Errno::EPERM | Errno::EACCES) => {
                "allow AF_VSOCK in the pod's seccomp profile: deploy/seccomp/enclave-shim.json does \
                 (runtimes' default profiles block it)"
                    .into()
            }
            BootError::NoVsock(_) => "load the vsock module on the instance".into(),
            BootError::NoDevice(error) | BootError::Device(error) => error.fix().into(),
            BootError::Memory(error) => memory_fix(error),
            BootError::LoadOffset { offset, .. } => {
                format!("set memory_mib to more than {}", offset.div_ceil(1 << 20))
            }
            BootError::Cid(_) => "choose a cid of at least 4, or leave it out".into(),
            BootError::Stopped => "nothing: it was asked to stop".into(),
        }
    }
}

fn memory_fix(error: &RegionError) -> String {
    // MADV_POPULATE_WRITE is not known before.
    if matches!(error, RegionError::Prefault { source, .. } if source.raw_os_error() == Some(Errno::EINVAL as i32))
    {
        return "use a node with Linux 5.14 or newer".into();
    }
    let (RegionError::Length { length, page }
    | RegionError::Map { length, page, .. }
    | RegionError::Prefault { length, page, .. }) = error;
    format!(
        "set `{}: {}Mi` in the container's resources.limits, and reserve as much on the node (another program may have taken it)",
        page.resource(),
        length >> 20
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use eif::Pcr;
    use nitro_device::{Device, PageSize};

    use super::*;
    use crate::boot::plan::CpuShortfall;

    fn device_error() -> DeviceError {
        Device::open(Path::new("/nonexistent/nitro_enclaves")).unwrap_err()
    }

    #[test]
    fn every_error_has_its_exit_code_a_cause_and_a_fix() {
        let path = || PathBuf::from("app.eif");
        let io = || io::Error::from_raw_os_error(5);
        let map = || RegionError::Map { length: 64 << 20, page: PageSize::MIB2, source: io() };
        let unknown = io::Error::from(Errno::EINVAL);
        let prefault = RegionError::Prefault { length: 64 << 20, page: PageSize::MIB2, source: unknown };
        let architectures = (Architecture::X86_64, Architecture::Aarch64);
        for (error, code, fix) in [
            (BootError::Image { path: path(), source: ImageError::NotAFile }, 65, "build the image again"),
            (
                BootError::Image { path: path(), source: ImageError::Open { path: path(), source: io() } },
                65,
                "--eif",
            ),
            (
                BootError::Architecture { path: path(), expected: architectures.0, actual: architectures.1 },
                65,
                "x86_64",
            ),
            (BootError::Unsigned { path: path() }, 65, "sign the image"),
            (
                BootError::Signature { path: path(), source: Box::new(SignatureCheckError::Expired) },
                65,
                "valid certificate",
            ),
            (
                BootError::WrongImage {
                    path: path(),
                    source: Box::new(Mismatch { register: "PCR2", expected: Pcr::ZERO, actual: None }),
                },
                65,
                "expect.pcr2",
            ),
            (BootError::Heartbeat(io::ErrorKind::AddrInUse.into()), 71, "another launcher"),
            (
                BootError::Plan(Shortfall::Cpus(CpuShortfall::PartOfCore { count: 3, threads: 2 })),
                64,
                "`cpus: 4`",
            ),
            (BootError::Load { path: path(), source: io() }, 65, "leave the image alone"),
            (BootError::Memory(prefault), 71, "Linux 5.14"),
            (BootError::Plan(Shortfall::None { needed: 64 << 20 }), 71, "`hugepages-2Mi: 64Mi`"),
            (BootError::NoVsock(Errno::EPERM), 69, "deploy/seccomp/enclave-shim.json"),
            (BootError::NoVsock(Errno::EAFNOSUPPORT), 69, "vsock module"),
            (BootError::NoDevice(device_error()), 69, "enclaves enabled"),
            (BootError::Device(device_error()), 71, "enclaves enabled"),
            (BootError::Memory(map()), 71, "`hugepages-2Mi: 64Mi`"),
            (BootError::LoadOffset { offset: 8 << 20, memory: 4 << 20 }, 71, "memory_mib"),
            (BootError::Cid(CidError(3)), 64, "cid"),
            (BootError::Stopped, 70, "stop"),
        ] {
            let failure = crate::exit::Failure::from(error);
            assert_eq!(failure.exit.code(), code, "{failure:?}");
            assert!(failure.explanation.fix.contains(fix), "{failure:?}");
            assert!(!failure.explanation.cause.is_empty(), "{failure:?}");
        }
    }

    #[test]
    fn a_missing_device_is_named_in_the_cause() {
        let error = BootError::NoDevice(device_error());
        let failure = crate::exit::Failure::from(error);
        assert!(failure.explanation.cause.contains("/nonexistent/nitro_enclaves"), "{failure:?}");
    }
}
