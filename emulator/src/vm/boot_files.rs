//! What a machine boots, as files that have no name: the kernel, and the
//! ramdisks behind each other as the kernel's loader wants them.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Archives start at multiples of this (Documentation/driver-api/early-userspace/buffer-format.rst).
const ARCHIVE_ALIGNMENT: u64 = 4;

/// See the module.
pub(crate) struct BootFiles {
    kernel: File,
    ramdisks: File,
    cmdline: String,
}

impl BootFiles {
    /// Takes them out of an image.
    pub(crate) fn from_image(image: &eif::Image<'_>) -> io::Result<BootFiles> {
        let cmdline = image.cmdline().map_err(io::Error::other)?;
        let cmdline = String::from_utf8(cmdline).map_err(io::Error::other)?;
        let layout = image.layout();
        let mut kernel = unnamed(c"enclave kernel")?;
        io::copy(&mut image.reader(layout.kernel()), &mut kernel)?;
        let mut ramdisks = unnamed(c"enclave ramdisks")?;
        for section in layout.ramdisks() {
            let end = ramdisks.stream_position()?;
            let padding = end.next_multiple_of(ARCHIVE_ALIGNMENT) - end;
            ramdisks.write_all(&[0; ARCHIVE_ALIGNMENT as usize][..padding as usize])?;
            io::copy(&mut image.reader(section), &mut ramdisks)?;
        }
        // AWS's builder ends it with a zero byte, QEMU's option cannot hold one.
        let cmdline = cmdline.trim_end_matches('\0').to_owned();
        Ok(BootFiles { kernel, ramdisks, cmdline })
    }

    /// The kernel's path, for children of this process.
    pub(super) fn kernel(&self) -> PathBuf {
        path(&self.kernel)
    }

    /// The ramdisks' path, for children of this process.
    pub(super) fn ramdisks(&self) -> PathBuf {
        path(&self.ramdisks)
    }

    /// The kernel's command line.
    pub(super) fn cmdline(&self) -> &str {
        &self.cmdline
    }
}

fn unnamed(name: &std::ffi::CStr) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}

fn path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}
