//! QEMU's command line, and the hidden command that becomes QEMU.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::accel::Kind;
use super::{LOG, MachineError, Wishes, state};

/// Names of the devices' sockets in the enclave's directory.
pub(super) const VSOCK_SOCKET: &str = "vsock.sock";
/// See [`VSOCK_SOCKET`].
pub(super) const NSM_SOCKET: &str = "nsm.sock";
/// `VIRTIO_ID_NITRO_SEC_MOD` of `linux/virtio_ids.h`.
const NSM_ID: u32 = 33;
/// More CPUs than this only slow an emulated machine down.
const EMULATED_CPUS: usize = 2;
const MIB: u64 = 1 << 20;

/// Arguments of the hidden command that becomes QEMU.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// QEMU and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes QEMU, in such a way that it ends with the thread that started this.
pub fn exec(args: Args) -> anyhow::Result<Infallible> {
    set_pdeathsig(Signal::SIGKILL)?;
    let (program, arguments) = args.command.split_first().context("no command")?;
    Err(Command::new(program).args(arguments).exec()).context("cannot execute QEMU")
}

/// Starts QEMU for a machine whose devices listen.
pub(super) fn spawn(program: &Path, wishes: &Wishes<'_>, accelerator: Kind) -> Result<Child, MachineError> {
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(wishes.dir.join(LOG));
    let console = OpenOptions::new().write(true).open(wishes.dir.join("console"));
    let mut command = under_node(program);
    command
        .args(machine(accelerator, wishes.cpus))
        .args(["-m", &format!("{}M", wishes.memory / MIB), "-object"])
        .arg(format!("memory-backend-memfd,id=mem,size={}M,share=on", wishes.memory / MIB))
        .arg("-kernel")
        .arg(wishes.boot.kernel())
        .arg("-initrd")
        .arg(wishes.boot.ramdisks())
        .args(["-append", &cmdline(accelerator, wishes.boot.cmdline())])
        .args(["-chardev", &format!("socket,id=nsm,path={NSM_SOCKET}")])
        .args(["-device", &format!("vhost-user-test-device,virtio-id={NSM_ID},num_vqs=1,chardev=nsm")])
        .args(["-chardev", &format!("socket,id=vsock,path={VSOCK_SOCKET}")])
        .args(["-device", "vhost-user-vsock-device,chardev=vsock"])
        .current_dir(wishes.dir)
        .stdin(Stdio::null())
        .stdout(console.map_err(state("open the console"))?)
        .stderr(log.map_err(state("open qemu.log"))?);
    command.spawn().map_err(|source| MachineError::NoQemu { program: program.to_owned(), source })
}

/// A processor that is emulated beside other work misses timer interrupts, and
/// Linux panics at boot when it counts too few. On KVM it does not count. In
/// front, because what follows ` -- ` is the init's.
fn cmdline(accelerator: Kind, image: &str) -> String {
    match accelerator {
        Kind::Kvm => image.to_owned(),
        Kind::Tcg => format!("no_timer_check {image}"),
    }
}

/// The command that becomes `program` and ends with the calling thread.
pub(super) fn under_node(program: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["__qemu", "--"]).arg(program);
    command
}

/// The machine without what it boots. It has what Nitro's has: a serial port
/// and virtio-mmio; i8042 because `reboot=k` ends the guest through it.
pub(super) fn machine(accelerator: Kind, cpus: usize) -> Vec<String> {
    let (accelerator, model, most) = match accelerator {
        Kind::Kvm => ("kvm", "host", usize::MAX),
        Kind::Tcg => ("tcg", "max", EMULATED_CPUS),
    };
    let cpus = cpus.clamp(1, most).to_string();
    let words = [
        "-M",
        "microvm,pit=on,pic=on,acpi=off,rtc=on,memory-backend=mem",
        "-accel",
        accelerator,
        "-cpu",
        model,
        "-smp",
        &cpus,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-device",
        "i8042",
        "-serial",
        "stdio",
    ];
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The file name that QEMU is looked up by when no option and no variable names one.
pub(crate) fn default_program() -> PathBuf {
    std::env::var_os("FAKENITRO_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into()).into()
}
