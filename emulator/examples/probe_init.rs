//! A first process for the emulator's tests: does what `/probe` says, line by
//! line, and prints what came of it on the console.
//!
//! `print TEXT`, `exit N`, `hang`, `dial CID PORT TEXT`, `echo PORT N` (serves
//! N connections), `flood CID PORT BYTES` (one write), `pour CID PORT BYTES WRITE`
//! (many, then prints the answer), `nsm HEX`, `seed`, `mischief`, `sysrq KEY`,
//! `reboot`, `addresses`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nix::unistd::{Pid, sethostname};
use socket2::{Domain, SockAddr, Socket, Type};

type Outcome = Result<String, Box<dyn std::error::Error>>;

fn main() {
    if let Err(error) = mounts() {
        println!("cannot mount what is missing: {error}");
    }
    let script = fs::read_to_string("/probe").unwrap_or_default();
    for line in script.lines() {
        match run(line) {
            Ok(text) => println!("{line}: {text}"),
            Err(error) => println!("{line}: error {error}"),
        }
    }
}

/// A kernel starts its init with nothing mounted.
fn mounts() -> io::Result<()> {
    for (what, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(place)?;
        if fs::metadata(place)?.dev() == fs::metadata("/")?.dev() {
            mount(Some(what), place, Some(what), MsFlags::empty(), None::<&str>)?;
        }
    }
    Ok(())
}

fn run(line: &str) -> Outcome {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["print", ..] => Ok("printed".into()),
        ["exit", code] => std::process::exit(code.parse()?),
        ["hang"] => loop {
            std::thread::park();
        },
        ["dial", cid, port, text] => dial(cid.parse()?, port.parse()?, text),
        ["echo", port, count] => echo(port.parse()?, count.parse()?),
        ["flood", cid, port, bytes] => flood(cid.parse()?, port.parse()?, bytes.parse()?),
        ["pour", cid, port, bytes, write] => {
            pour(cid.parse()?, port.parse()?, bytes.parse()?, write.parse()?)
        }
        ["sysrq", key] => Ok(fs::write("/proc/sysrq-trigger", key).map(|()| "pressed".into())?),
        ["nsm", request] => nsm(&hex::decode(request)?),
        ["seed"] => seed(),
        ["mischief"] => Ok(mischief()),
        ["reboot"] => {
            set_cad_enabled(false)?;
            match reboot(RebootMode::RB_AUTOBOOT)? {}
        }
        ["addresses"] => addresses(),
        _ => Err("unknown".into()),
    }
}

fn socket() -> io::Result<Socket> {
    Socket::new(Domain::VSOCK, Type::STREAM, None)
}

fn dial(cid: u32, port: u32, text: &str) -> Outcome {
    let mut stream = socket()?;
    stream.connect(&SockAddr::vsock(cid, port))?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn echo(port: u32, count: u32) -> Outcome {
    let listener = socket()?;
    listener.bind(&SockAddr::vsock(libc::VMADDR_CID_ANY, port))?;
    listener.listen(128)?;
    println!("listening on {port}");
    let mut peers = Vec::new();
    for _ in 0..count {
        let (mut stream, peer) = listener.accept()?;
        peers.push(peer.as_vsock_address().map_or(0, |(cid, _)| cid));
        let mut buffer = [0; 16384];
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                n => stream.write_all(&buffer[..n])?,
            }
        }
    }
    Ok(format!("{peers:?}"))
}

fn flood(cid: u32, port: u32, bytes: usize) -> Outcome {
    let mut stream = socket()?;
    stream.connect(&SockAddr::vsock(cid, port))?;
    let count = stream.write(&vec![b'x'; bytes])?;
    Ok(format!("{count} in one write"))
}

/// Sends `bytes` bytes, `size` in each write, and prints what comes back.
fn pour(cid: u32, port: u32, bytes: usize, size: usize) -> Outcome {
    let mut stream = socket()?;
    stream.connect(&SockAddr::vsock(cid, port))?;
    let data: Vec<u8> = (0..bytes as u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    for piece in data.chunks(size) {
        stream.write_all(piece)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn addresses() -> Outcome {
    let listener = socket()?;
    let unbound = listener.local_addr()?.as_vsock_address();
    listener.bind(&SockAddr::vsock(libc::VMADDR_CID_ANY, 700))?;
    Ok(format!("{unbound:?} {:?} {:?}", listener.local_addr()?.as_vsock_address(), socket()?.domain()?))
}

#[repr(C)]
struct Message {
    request: libc::iovec,
    response: libc::iovec,
}

fn nsm(request: &[u8]) -> Outcome {
    let device = OpenOptions::new().read(true).write(true).open("/dev/nsm")?;
    let mut response = vec![0u8; 0x3000];
    let mut message = Message {
        request: libc::iovec { iov_base: request.as_ptr().cast_mut().cast(), iov_len: request.len() },
        response: libc::iovec { iov_base: response.as_mut_ptr().cast(), iov_len: response.len() },
    };
    // SAFETY: both buffers live across the call and have the lengths that are
    // stated; the request is only read.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), 0xC020_0A00, &mut message) };
    if result < 0 {
        return Err(io::Error::last_os_error().into());
    }
    response.truncate(message.response.iov_len);
    Ok(hex::encode(response))
}

fn seed() -> Outcome {
    let device = File::options().write(true).open("/dev/random")?;
    let entropy: [u32; 3] = [32, 4, 0xABCD_EF01];
    // SAFETY: `struct rand_pool_info` with 4 bytes of data.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), 0x4008_5203, &entropy) };
    if result < 0 { Err(io::Error::last_os_error().into()) } else { Ok("credited".into()) }
}

/// Tries to change the host; every line must fail or stay inside.
fn mischief() -> String {
    let told = |what: &str, result: Result<(), Errno>| match result {
        Ok(()) => println!("mischief {what}: done"),
        Err(error) => println!("mischief {what}: {error}"),
    };
    let write = |path: &str, text: &str| {
        let result =
            OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
        result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    };
    told("hostname", sethostname("mischief"));
    told("clock", clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(Duration::from_secs(1))));
    told("sysctl", write("/proc/sys/kernel/panic", "4242"));
    told("core pattern", write("/proc/sys/kernel/core_pattern", "mischief"));
    told("huge pages", write("/proc/sys/vm/nr_hugepages", "1"));
    told("sysrq", write("/proc/sysrq-trigger", "b"));
    told("oom", write("/proc/1/oom_score_adj", "-1000"));
    told("block device", mknod("/disk", SFlag::S_IFBLK, Mode::S_IRWXU, makedev(254, 0)));
    told("mount", mount(Some("mischief"), "/mischief-mount", Some("tmpfs"), MsFlags::empty(), None::<&str>));
    fs::create_dir_all("/m").ok();
    told("mount inside", mount(Some("mischief"), "/m", Some("tmpfs"), MsFlags::empty(), None::<&str>));
    // SAFETY: an empty module image and no parameters; the kernel only reads them.
    let loaded = unsafe { libc::syscall(libc::SYS_init_module, [0u8; 8].as_ptr(), 8, c"".as_ptr()) };
    told("module", Errno::result(loaded).map(drop));
    told("kill everybody", kill(Pid::from_raw(-1), Signal::SIGKILL));
    told("kill parent", kill(Pid::from_raw(0), Signal::SIGWINCH));
    "over".to_owned()
}
