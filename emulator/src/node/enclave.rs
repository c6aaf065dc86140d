//! A running enclave: from the image in donated memory to its end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::boot_image::BootImage;
use super::caller::Errno;
use super::console::Console;
use super::handshake::{Handshake, shake_hands};
use super::names::{Address, HYPERVISOR};
use super::ne::MemoryRegion;
use super::slot::{Phase, Slot};
use super::supervisor::{Desk, Member};
use super::{Engine, Node, Presence, files};
use crate::engine::{self, HOST_ID_BASE};
use crate::nsm;
use crate::sys::notify::Listener;
use crate::sys::pidfd::Pidfd;
use crate::vm::{self, Machine, MachineError, Vsock};

/// The console of enclave `n` is at CID 0, port `CONSOLE_PORT + n`.
pub(crate) const CONSOLE_PORT: u32 = 10_000;
/// An enclave whose first process was started.
pub(crate) struct Enclave {
    /// Its context id.
    pub(crate) cid: u32,
    /// Device and inode of its /dev/nsm.
    pub(crate) nsm_node: Option<(u64, u64)>,
    /// Its security module.
    pub(crate) nsm: Arc<nsm::Device>,
    /// The way into a machine.
    pub(crate) guest: Option<Arc<Vsock>>,
    slot_uid: u64,
    debug: bool,
    pid: i32,
    init: Pidfd,
}

/// `status.json` of an enclave, and its entry in `fakenitro status`.
#[derive(Debug, Clone, Serialize, serde::Deserialize)]
pub(crate) struct Status {
    /// Context id.
    pub(crate) cid: u32,
    /// Slot number, 16 hex digits.
    pub(crate) slot: String,
    /// PID 1 of the enclave, as the host sees it; of a machine, its QEMU.
    pub(crate) pid: i32,
    /// Started with NE_ENCLAVE_DEBUG_MODE.
    pub(crate) debug: bool,
    /// `running` or `ended`.
    pub(crate) state: String,
}

/// Why NE_START_ENCLAVE failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The memory cannot be read any more.
    #[error("cannot read the image out of donated memory")]
    Memory(Errno),
    /// What lies at the load offset is no image.
    #[error("no usable image in donated memory: {}", chain(.0))]
    Image(#[from] eif::ImageError),
    /// Another enclave has the CID.
    #[error("CID {0} is in use")]
    CidInUse(u32),
    /// The engine did not bring up the first process.
    #[error("process engine: {0}")]
    Engine(String),
    /// The engine did not bring up the machine.
    #[error("qemu engine: {}", chain(.0))]
    Machine(#[from] MachineError),
    /// A file of the state directory.
    #[error("cannot {0}: {1}")]
    State(&'static str, io::Error),
}

impl StartError {
    /// What the caller of the ioctl gets. The driver passes on what the
    /// hypervisor answers, which is documented nowhere.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            StartError::Memory(Errno(errno)) => *errno,
            StartError::Image(_) | StartError::CidInUse(_) => libc::EINVAL,
            StartError::Engine(_) | StartError::Machine(_) | StartError::State(..) => libc::EIO,
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Starts what lies in `regions` of the slot's creator, at CID `wanted` or,
/// if that is 0, at a free one.
pub(crate) fn start(
    node: &Arc<Node>,
    slot: &Arc<Slot>,
    regions: &[MemoryRegion],
    wanted: u32,
    debug: bool,
) -> Result<Arc<Enclave>, StartError> {
    let presence = node.presence();
    let image = BootImage::copy(slot.creator, regions)?;
    let cid = node.reserve_cid(wanted).ok_or(StartError::CidInUse(wanted))?;
    let memory = regions.iter().map(|region| region.size).sum();
    launch(node, slot, cid, Request { image, memory, debug }, presence).inspect_err(|_| node.release_cid(cid))
}

struct Request {
    image: BootImage,
    memory: u64,
    debug: bool,
}

/// Brings the engine up and leaves a thread that waits for its end.
fn launch(
    node: &Arc<Node>,
    slot: &Arc<Slot>,
    cid: u32,
    request: Request,
    presence: Presence,
) -> Result<Arc<Enclave>, StartError> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (node, slot) = (node.clone(), slot.clone());
    // The engine is tied to the life of the thread that starts it.
    let life = move || {
        let _presence = presence;
        let started = Running::begin(&node, &slot, cid, request);
        match started {
            Ok(running) => {
                let _ = sender.send(Ok(running.enclave.clone()));
                running.wait(&node, &slot);
            }
            Err(error) => {
                let _ = sender.send(Err(error));
            }
        }
    };
    thread::Builder::new()
        .name(format!("enclave {cid}"))
        .spawn(life)
        .map_err(|error| StartError::State("start a thread", error))?;
    receiver.recv().unwrap_or_else(|_| Err(StartError::Engine("its thread panicked".into())))
}

/// Everything that is joined or removed when an enclave ends.
struct Running {
    enclave: Arc<Enclave>,
    body: Body,
    dir: PathBuf,
    console: Arc<Console>,
    console_writer: File,
    threads: Vec<thread::JoinHandle<()>>,
    console_server: Option<(Arc<Socket>, thread::JoinHandle<()>)>,
}

/// What an enclave is on the host.
enum Body {
    Process(Child),
    Machine(Box<Machine>),
}

/// A body that lives, and what its engine says of it.
struct Raised {
    body: Body,
    pid: i32,
    init: Pidfd,
    nsm: Arc<nsm::Device>,
    /// Of a process: it waits for a word on the socket before it becomes /init.
    process: Option<(UnixStream, Listener, (u64, u64))>,
    guest: Option<Arc<Vsock>>,
}

impl Running {
    fn begin(node: &Arc<Node>, slot: &Arc<Slot>, cid: u32, request: Request) -> Result<Running, StartError> {
        let state = |what| move |error| StartError::State(what, error);
        let dir = node.dir.join("enclaves").join(cid.to_string());
        fresh_dir(&dir).map_err(state("make the enclave's directory"))?;
        let fifo = dir.join("console");
        let (console_reader, console_writer) = console_ends(&fifo).map_err(state("make the console"))?;
        let raised = match node.config.engine {
            Engine::Process => raise_process(node, slot, &dir, &request),
            Engine::Qemu => raise_machine(node, slot, cid, &dir, &request),
        };
        let Raised { body, pid, init, nsm, process, guest } =
            raised.inspect_err(|_| drop(fs::remove_file(&fifo)))?;
        let (nsm_node, debug) = (process.as_ref().map(|(_, _, node)| *node), request.debug);
        let enclave = Arc::new(Enclave { cid, nsm_node, nsm, guest, slot_uid: slot.uid, debug, pid, init });
        let (control, listener) = match process {
            Some((control, listener, _)) => (Some(control), Some(listener)),
            None => (None, None),
        };
        let mut running = Running {
            enclave: enclave.clone(),
            body,
            dir,
            console: Arc::new(Console::default()),
            console_writer,
            threads: Vec::new(),
            console_server: None,
        };
        running.serve(node, listener, console_reader).map_err(state("serve the enclave"))?;
        node.insert_enclave(&enclave);
        slot.content().phase = Phase::Running(Some(enclave.clone()));
        running.publish("running");
        if let Some(control) = control {
            // Only now may /init run: everything that it can ask for is there.
            writeln!(&control, "go").map_err(state("let the enclave go"))?;
            let mut last = String::new();
            let ended = BufReader::new(&control).read_line(&mut last);
            if !matches!(ended, Ok(0)) {
                running.wait(node, slot);
                return Err(StartError::Engine(last.trim().to_owned()));
            }
        }
        Ok(running)
    }

    fn serve(&mut self, node: &Arc<Node>, listener: Option<Listener>, console: File) -> io::Result<()> {
        let cid = self.enclave.cid;
        let name = |what: &str| thread::Builder::new().name(format!("{what} {cid}"));
        if let Some(listener) = listener {
            let desk = Desk::new(node.clone(), listener, Member::Enclave(self.enclave.clone()));
            self.threads.push(name("desk").spawn(move || {
                if let Err(error) = desk.serve() {
                    eprintln!("enclave {cid}: calls are no longer answered: {error}");
                }
            })?);
        }
        let (kept, log) = (self.console.clone(), self.dir.join("console.log"));
        self.threads.push(name("console").spawn(move || {
            if let Err(error) = kept.collect(console, &log) {
                eprintln!("enclave {cid}: console: {error}");
            }
        })?);
        if self.enclave.debug {
            let socket = Arc::new(Socket::new(Domain::UNIX, Type::STREAM, None)?);
            socket.bind(&node.names.name(Address { cid: HYPERVISOR, port: CONSOLE_PORT + cid })?)?;
            socket.listen(16)?;
            let (kept, listener) = (self.console.clone(), socket.clone());
            let server = name("console server").spawn(move || serve_console(&kept, &listener))?;
            self.console_server = Some((socket, server));
        }
        Ok(())
    }

    /// Waits for the end of the enclave and clears up after it.
    fn wait(mut self, node: &Arc<Node>, slot: &Slot) {
        let waited = match &mut self.body {
            Body::Process(engine) => engine.wait(),
            Body::Machine(machine) => machine.qemu.wait(),
        };
        match waited {
            Ok(status) => eprintln!("enclave {}: the engine ended: {status}", self.enclave.cid),
            Err(error) => eprintln!("enclave {}: cannot wait for the engine: {error}", self.enclave.cid),
        }
        node.remove_enclave(self.enclave.cid);
        if let Body::Machine(machine) = self.body {
            // What the guest sent last arrives before the hang-up.
            machine.finish();
        }
        slot.end();
        drop(self.console_writer);
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
        if let Some((socket, server)) = self.console_server.take() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
            let _ = server.join();
        }
        let _ = fs::remove_file(self.dir.join("console"));
        write_status(&self.dir, &self.enclave, "ended");
        node.release_cid(self.enclave.cid);
    }

    fn publish(&self, state: &str) {
        write_status(&self.dir, &self.enclave, state);
    }
}

fn write_status(dir: &std::path::Path, enclave: &Enclave, state: &str) {
    if let Err(error) = files::replace_json(&dir.join("status.json"), &enclave.status(state)) {
        eprintln!("enclave {}: cannot write status.json: {error}", enclave.cid);
    }
}

impl Enclave {
    /// Ends the enclave as a crash does.
    pub(crate) fn kill(&self) {
        if let Err(error) = self.init.signal(Signal::SIGKILL) {
            eprintln!("enclave {}: cannot kill PID {}: {error}", self.cid, self.pid);
        }
    }

    /// What is known about it.
    pub(crate) fn status(&self, state: &str) -> Status {
        Status {
            cid: self.cid,
            slot: format!("{:016x}", self.slot_uid),
            pid: self.pid,
            debug: self.debug,
            state: state.to_owned(),
        }
    }
}

/// Starts a process enclave as far as only /init is missing.
fn raise_process(
    node: &Node,
    slot: &Slot,
    dir: &std::path::Path,
    request: &Request,
) -> Result<Raised, StartError> {
    let (control, theirs) =
        UnixStream::pair().map_err(|error| StartError::State("make a control socket", error))?;
    let image = &request.image;
    let mut engine = engine::command(dir, image.file(), &image.ramdisks(), node.config.large_writes)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(|error| StartError::State("start the engine", error))?;
    let (module, hands) = thread::scope(|scope| {
        let module = scope.spawn(|| image.module(node, slot, request.debug));
        let hands = shake_hands(&control, engine.id()).map_err(StartError::Engine);
        (module.join().unwrap_or_else(|_| Err(StartError::Engine("measuring panicked".into()))), hands)
    });
    match module.and_then(|module| Ok((module, hands?))) {
        Ok((module, Handshake { pid, nsm_node, listener, init })) => Ok(Raised {
            body: Body::Process(engine),
            pid,
            init,
            nsm: Arc::new(nsm::Device::new(module)),
            process: Some((control, listener, nsm_node)),
            guest: None,
        }),
        Err(error) => {
            let _ = engine.kill();
            let _ = engine.wait();
            Err(error)
        }
    }
}

/// Starts a machine. Its kernel asks for random bytes early, so that the
/// module has to be there first.
fn raise_machine(
    node: &Arc<Node>,
    slot: &Slot,
    cid: u32,
    dir: &std::path::Path,
    request: &Request,
) -> Result<Raised, StartError> {
    let (module, boot) = thread::scope(|scope| {
        let module = scope.spawn(|| request.image.module(node, slot, request.debug));
        let boot = request.image.boot_files();
        (module.join().unwrap_or_else(|_| Err(StartError::Engine("measuring panicked".into()))), boot)
    });
    let nsm = Arc::new(nsm::Device::new(module?));
    let cpus = slot.content().taken.cpus.len();
    let wishes = vm::Wishes { dir, cid, boot: boot?, memory: request.memory, cpus, nsm: nsm.clone() };
    let mut machine = Machine::start(node, wishes)?;
    let pid = machine.qemu.id() as i32;
    let init = Pidfd::of_process(pid).map_err(|error| {
        let _ = machine.qemu.kill();
        let _ = machine.qemu.wait();
        StartError::State("open QEMU's pidfd", error)
    })?;
    let guest = Some(machine.vsock.clone());
    Ok(Raised { body: Body::Machine(Box::new(machine)), pid, init, nsm, process: None, guest })
}

fn fresh_dir(dir: &std::path::Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// A FIFO that the enclave's root may open, and its two ends; the write end
/// keeps it open while the enclave's own come and go.
fn console_ends(fifo: &std::path::Path) -> io::Result<(File, File)> {
    mkfifo(fifo, Mode::S_IRUSR | Mode::S_IWUSR)?;
    chown(fifo, Some(HOST_ID_BASE), Some(HOST_ID_BASE))?;
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(fifo)?;
    let writer = OpenOptions::new().write(true).open(fifo)?;
    Ok((reader, writer))
}

/// One thread per reader; all end with the console or with their reader.
fn serve_console(console: &Arc<Console>, listener: &Socket) {
    thread::scope(|scope| {
        while let Ok((reader, _)) = listener.accept() {
            scope.spawn(|| console.serve(reader));
        }
    });
}
