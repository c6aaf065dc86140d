//! The engine's first half, still root on the host: makes what only the host's
//! root can make, enters the namespaces, and waits for the enclave's PID 1.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Pid, Uid, dup2_stdin, setgroups, setresgid, setresuid};

use super::{Args, HOST_ID_BASE, WANTS_MAP, init};
use crate::node::STAND_IN;
use crate::sys::process::fork_single_threaded;

const NOTHING: Option<&str> = None;
/// The devices of an enclave that are the host's harmless ones.
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Directory of the device nodes, and where the enclave's root will be.
pub(super) const NODES: &str = "nodes";
/// See [`NODES`].
pub(super) const ROOT: &str = "root";

/// Runs one enclave to its end. Its standard input is the control socket.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let control = take_control()?;
    match begin(&args, &control) {
        Ok(child) => {
            // The end of file that tells that /init runs must depend on PID 1 alone.
            drop(control);
            waitpid(child, None).context("cannot wait for the enclave").map(drop)
        }
        Err(error) => {
            let _ = writeln!(&control, "error {}", format!("{error:#}").replace('\n', " "));
            Err(error)
        }
    }
}

/// Returns the enclave's PID 1; in PID 1 itself it returns only errors.
fn begin(args: &Args, control: &UnixStream) -> anyhow::Result<Pid> {
    let image = File::open(&args.image).context("cannot open the image")?;
    // By default the node outlives this; if it does not, the enclave must end.
    set_pdeathsig(Signal::SIGKILL)?;
    umask(Mode::empty());
    devices(&args.dir, control)
        .context("cannot make device nodes (CAP_MKNOD and CAP_SYS_ADMIN are needed)")?;
    enter(control)?;
    match fork_single_threaded().context("cannot fork")? {
        ForkResult::Parent { child } => {
            writeln!(&*control, "pid {child}")?;
            Ok(child)
        }
        ForkResult::Child => match init::become_init(args, image, control)? {},
    }
}

/// A tmpfs with the enclave's device nodes becomes the working directory:
/// after the user namespace, paths through the state directory are closed.
fn devices(dir: &Path, control: &UnixStream) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NOTHING)?;
    let place = dir.join("mount");
    fs::create_dir_all(&place)?;
    mount(Some("enclave"), &place, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))?;
    std::env::set_current_dir(&place)?;
    fs::create_dir(ROOT)?;
    fs::create_dir(NODES)?;
    for (name, major, minor) in DEVICES {
        device(name, 0o666, major, minor)?;
    }
    device("vsock", 0o666, STAND_IN.0, STAND_IN.1)?;
    device("nsm", 0o600, STAND_IN.0, STAND_IN.1)?;
    let nsm = fs::metadata(Path::new(NODES).join("nsm"))?;
    writeln!(&*control, "nsm {} {}", nsm.dev(), nsm.ino())?;
    let console = Path::new(NODES).join("console");
    fs::write(&console, "")?;
    mount(Some(&dir.join("console")), &console, NOTHING, MsFlags::MS_BIND, NOTHING)?;
    for path in [Path::new("."), Path::new(ROOT), Path::new(NODES)] {
        chown(path, Some(HOST_ID_BASE), Some(HOST_ID_BASE))?;
    }
    Ok(())
}

fn device(name: &str, mode: u32, major: u64, minor: u64) -> anyhow::Result<()> {
    let path = Path::new(NODES).join(name);
    mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(mode), makedev(major, minor))?;
    Ok(chown(&path, Some(HOST_ID_BASE), Some(HOST_ID_BASE))?)
}

/// Becomes the enclave's root, with every namespace its own.
fn enter(control: &UnixStream) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER).context(
        "cannot make a user namespace (sysctl user.max_user_namespaces, or the container's limits)",
    )?;
    writeln!(&*control, "{WANTS_MAP}")?;
    let mut answer = String::new();
    if BufReader::new(control).read_line(&mut answer)? == 0 {
        bail!("the node went away");
    }
    setgroups(&[])?;
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
    // A change of user clears it.
    set_pdeathsig(Signal::SIGKILL)?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).context("cannot make namespaces")
}

/// Moves the control socket away from standard input, which becomes /dev/null.
fn take_control() -> anyhow::Result<UnixStream> {
    let control: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(UnixStream::from(control))
}
