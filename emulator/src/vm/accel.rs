//! KVM or emulation: KVM only after a guest was seen to boot under it.
//!
//! That /dev/kvm opens says little: some hosts run guest kernels in an
//! instruction emulator that knows too few instructions. So the image's own
//! kernel is started without a ramdisk, and has to reach the panic that this
//! ends in. What was found is kept until the machine reboots, per QEMU and kernel.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::BootFiles;
use super::qemu::{machine, under_node};

/// A working KVM needs a small fraction of this.
const PROBE_WITHIN: Duration = Duration::from_secs(4);
/// What a kernel says last that finds no root.
const REACHED: &[u8] = b"Kernel panic - not syncing: VFS";
/// Enough for any kernel's first steps.
const PROBE_MEMORY: &str = "128M";
/// Where results are kept: gone with the machine's run.
const CACHE: &str = "/run/fakenitro-kvm";

/// What a node was told to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accelerator {
    /// KVM if a guest boots under it
    #[default]
    Auto,
    /// KVM, untried
    Kvm,
    /// Emulation
    Tcg,
}

/// What QEMU uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The processor's own virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Accelerator {
    /// Decides, which may take [`PROBE_WITHIN`] the first time.
    pub(super) fn resolve(self, program: &Path, boot: &BootFiles) -> Kind {
        match self {
            Accelerator::Kvm => Kind::Kvm,
            Accelerator::Tcg => Kind::Tcg,
            Accelerator::Auto if !Path::new("/dev/kvm").exists() => Kind::Tcg,
            Accelerator::Auto => remembered(program, boot),
        }
    }
}

fn remembered(program: &Path, boot: &BootFiles) -> Kind {
    let Some(place) = place(program, boot) else { return Kind::Tcg };
    match fs::read(&place).as_deref() {
        Ok(b"kvm") => return Kind::Kvm,
        Ok(b"tcg") => return Kind::Tcg,
        _ => {}
    }
    let started = Instant::now();
    let boots = boots(program, boot);
    eprintln!(
        "KVM: a guest {} ({:.1} s); kept in {}",
        if boots { "boots" } else { "does not boot, QEMU emulates" },
        started.elapsed().as_secs_f64(),
        place.display()
    );
    // Not kept: asked again next time.
    let _ = fs::create_dir_all(CACHE);
    let _ = fs::write(&place, if boots { "kvm" } else { "tcg" });
    if boots { Kind::Kvm } else { Kind::Tcg }
}

/// A name that another kernel, QEMU or run of the machine does not have.
fn place(program: &Path, boot: &BootFiles) -> Option<PathBuf> {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&fs::read("/proc/sys/kernel/random/boot_id").ok()?);
    hash.update(program.as_os_str().as_encoded_bytes());
    let mut kernel = File::open(boot.kernel()).ok()?;
    let mut chunk = vec![0; 1 << 20];
    loop {
        match kernel.read(&mut chunk).ok()? {
            0 => break,
            count => hash.update(&chunk[..count]),
        }
    }
    Some(Path::new(CACHE).join(hex::encode(&hash.finish().as_ref()[..16])))
}

/// Whether a kernel gets to its end under KVM, in time.
fn boots(program: &Path, boot: &BootFiles) -> bool {
    let mut command = under_node(program);
    command
        .args(machine(Kind::Kvm, 1))
        .args(["-m", PROBE_MEMORY, "-object", &format!("memory-backend-memfd,id=mem,size={PROBE_MEMORY}")])
        .arg("-kernel")
        .arg(boot.kernel())
        .args(["-append", "console=ttyS0 quiet reboot=k panic=-1 pci=off"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let Ok(mut qemu) = command.spawn() else { return false };
    let console = qemu.stdout.take().map(|console| File::from(OwnedFd::from(console)));
    let reached = console.is_some_and(|console| reaches(console, Instant::now() + PROBE_WITHIN));
    let _ = qemu.kill();
    let _ = qemu.wait();
    reached
}

/// Reads until the kernel's last words, its end, or the deadline.
fn reaches(mut console: File, deadline: Instant) -> bool {
    let (mut seen, mut chunk) = (Vec::<u8>::new(), [0; 4096]);
    loop {
        if seen.windows(REACHED.len()).any(|window| window == REACHED) {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(left) = PollTimeout::try_from(left) else { return false };
        match poll(&mut [PollFd::new(console.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        match console.read(&mut chunk) {
            Ok(0) | Err(_) => return false,
            Ok(count) => seen.extend(&chunk[..count]),
        }
    }
}
