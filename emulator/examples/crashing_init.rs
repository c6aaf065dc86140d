//! A first process for tests of a kernel's panic: becomes the agent, which the
//! workload's root has at `/enclave-app`, and leaves a child behind that presses
//! sysrq `c` when somebody connects to vsock port 666.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use socket2::{Domain, SockAddr, Socket, Type};

/// What the child is told.
const CHILD: &str = "press-when-called";
const PORT: u32 = 666;

fn main() -> io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some(CHILD) {
        return press_when_called();
    }
    Command::new("/init").arg(CHILD).spawn()?;
    Err(Command::new("/workload/rootfs/enclave-app").exec())
}

fn press_when_called() -> io::Result<()> {
    let listener = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    listener.bind(&SockAddr::vsock(libc::VMADDR_CID_ANY, PORT))?;
    listener.listen(1)?;
    listener.accept()?;
    // The agent's own mounts are there when it is ready, which the caller waits for;
    // without them this makes its own.
    if !Path::new("/proc/sysrq-trigger").exists() {
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)?;
    }
    fs::write("/proc/sysrq-trigger", "c")?;
    // Written, it has crashed; this is the case of a kernel without the key.
    std::thread::sleep(Duration::from_secs(1));
    Err(io::Error::other("the kernel lives on"))
}
