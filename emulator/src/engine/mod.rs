//! The process engine: an enclave as processes in namespaces of their own.
//!
//! ```text
//! node ─spawn─▶ engine: devices ─▶ user namespace ─▶ other namespaces ─▶ fork
//!                 │ (waits, dies with the node)                           │
//!                 └──────────────────────────────────────── PID 1: root, ramdisks, filter, /init
//! ```
//!
//! Root inside is an unprivileged number outside ([`HOST_ID_BASE`]), so that
//! the host's sysctls and files are out of reach by ordinary permissions. Not
//! a sandbox: it keeps mistakes in, not attackers.

mod cpio;
mod init;
mod outside;
mod unpack;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Host user and group id of the enclave's root.
pub(crate) const HOST_ID_BASE: u32 = 0x4000_0000;
/// Ids that the enclave has.
pub(crate) const ID_COUNT: u32 = 65536;
/// The line by which the engine asks for its id map.
pub(crate) const WANTS_MAP: &str = "map";

/// Where a ramdisk lies in the image, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ramdisk {
    /// First byte.
    pub(crate) start: u64,
    /// Past the last one.
    pub(crate) end: u64,
}

impl std::str::FromStr for Ramdisk {
    type Err = String;

    fn from_str(text: &str) -> Result<Ramdisk, String> {
        let parse = |part: &str| part.parse::<u64>().map_err(|error| error.to_string());
        let (start, end) = text.split_once('-').ok_or("not START-END")?;
        Ok(Ramdisk { start: parse(start)?, end: parse(end)? })
    }
}

/// Arguments of the hidden command that is the engine.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The enclave's directory
    #[arg(long)]
    dir: PathBuf,
    /// The image
    #[arg(long)]
    image: PathBuf,
    /// Ramdisks in order, START-END
    #[arg(long)]
    ramdisk: Vec<Ramdisk>,
    /// What happens to vsock writes above 32 KiB
    #[arg(long)]
    large_writes: crate::node::writes::LargeWrites,
}

/// The command that runs an image; its standard input must be the control socket.
pub(crate) fn command(
    dir: &Path,
    image: &File,
    ramdisks: &[Ramdisk],
    large_writes: crate::node::writes::LargeWrites,
) -> Command {
    use clap::ValueEnum;
    let mut command = Command::new("/proc/self/exe");
    command.arg("__engine").arg("--dir").arg(dir);
    command.arg("--image").arg(format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd()));
    for ramdisk in ramdisks {
        command.arg("--ramdisk").arg(format!("{}-{}", ramdisk.start, ramdisk.end));
    }
    if let Some(mode) = large_writes.to_possible_value() {
        command.arg("--large-writes").arg(mode.get_name());
    }
    command
}

/// Runs one enclave to its end.
pub fn main(args: Args) -> anyhow::Result<()> {
    outside::run(args)
}

/// What the engine tells the node, one item a line.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Host PID of the enclave's PID 1.
    pub(crate) pid: Option<i32>,
    /// Device and inode of /dev/nsm.
    pub(crate) nsm_node: Option<(u64, u64)>,
    /// Descriptor of the filter's listener in PID 1.
    pub(crate) listener: Option<i32>,
}

impl Report {
    /// Takes one line; an `error` line becomes the error.
    pub(crate) fn take(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let odd = || format!("odd line from the engine: {line:?}");
        match words.as_slice() {
            ["pid", pid] => self.pid = Some(pid.parse().map_err(|_| odd())?),
            ["nsm", dev, ino] => {
                self.nsm_node = Some((dev.parse().map_err(|_| odd())?, ino.parse().map_err(|_| odd())?));
            }
            ["listener", fd] => self.listener = Some(fd.parse().map_err(|_| odd())?),
            ["error", ..] => return Err(line["error".len()..].trim().to_owned()),
            _ => return Err(odd()),
        }
        Ok(())
    }
}
