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
use super::names::{Address, HYPERVISOR};
use super::ne::MemoryRegion;
use super::slot::{Phase, Slot};
use super::supervisor::{Desk, Member};
use super::{Node, Presence, files};
use crate::engine::{self, HOST_ID_BASE, ID_COUNT, Report};
use crate::nsm;
use crate::sys::notify::Listener;
use crate::sys::pidfd::Pidfd;

/// The console of enclave `n` is at CID 0, port `CONSOLE_PORT + n`.
pub(crate) const CONSOLE_PORT: u32 = 10_000;
/// An enclave whose first process was started.
pub(crate) struct Enclave {
    /// Its context id.
    pub(crate) cid: u32,
    /// Device and inode of its /dev/nsm.
    pub(crate) nsm_node: (u64, u64),
    /// Its security module.
    pub(crate) nsm: nsm::Device,
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
    /// PID 1 of the enclave, as the host sees it.
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
            StartError::Engine(_) | StartError::State(..) => libc::EIO,
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
    launch(node, slot, cid, Request { image, debug }, presence).inspect_err(|_| node.release_cid(cid))
}

struct Request {
    image: BootImage,
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
    engine: Child,
    dir: PathBuf,
    console: Arc<Console>,
    console_writer: File,
    threads: Vec<thread::JoinHandle<()>>,
    console_server: Option<(Arc<Socket>, thread::JoinHandle<()>)>,
}

impl Running {
    fn begin(node: &Arc<Node>, slot: &Arc<Slot>, cid: u32, request: Request) -> Result<Running, StartError> {
        let state = |what| move |error| StartError::State(what, error);
        let dir = node.dir.join("enclaves").join(cid.to_string());
        fresh_dir(&dir).map_err(state("make the enclave's directory"))?;
        let fifo = dir.join("console");
        let (console_reader, console_writer) = console_ends(&fifo).map_err(state("make the console"))?;
        let (control, theirs) = UnixStream::pair().map_err(state("make a control socket"))?;
        let image = &request.image;
        let mut engine = engine::command(&dir, image.file(), &image.ramdisks(), node.config.large_writes)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .map_err(state("start the engine"))?;
        let (module, hands) = thread::scope(|scope| {
            let module = scope.spawn(|| image.module(node, slot, request.debug));
            let hands = shake_hands(&control, engine.id()).map_err(StartError::Engine);
            (module.join().unwrap_or_else(|_| Err(StartError::Engine("measuring panicked".into()))), hands)
        });
        let (module, hands) = match module.and_then(|module| Ok((module, hands?))) {
            Ok(both) => both,
            Err(error) => {
                let _ = engine.kill();
                let _ = engine.wait();
                let _ = fs::remove_file(&fifo);
                return Err(error);
            }
        };
        let Handshake { pid, nsm_node, listener, init } = hands;
        let nsm = nsm::Device::new(module);
        let debug = request.debug;
        let enclave = Arc::new(Enclave { cid, nsm_node, nsm, slot_uid: slot.uid, debug, pid, init });
        let console = Arc::new(Console::default());
        let mut running = Running {
            enclave: enclave.clone(),
            engine,
            dir,
            console,
            console_writer,
            threads: Vec::new(),
            console_server: None,
        };
        running.serve(node, listener, console_reader).map_err(state("serve the enclave"))?;
        node.insert_enclave(&enclave);
        slot.content().phase = Phase::Running(Some(enclave.clone()));
        running.publish("running");
        // Only now may /init run: everything that it can ask for is there.
        writeln!(&control, "go").map_err(state("let the enclave go"))?;
        let mut last = String::new();
        let ended = BufReader::new(&control).read_line(&mut last);
        if !matches!(ended, Ok(0)) {
            running.wait(node, slot);
            return Err(StartError::Engine(last.trim().to_owned()));
        }
        Ok(running)
    }

    fn serve(&mut self, node: &Arc<Node>, listener: Listener, console: File) -> io::Result<()> {
        let cid = self.enclave.cid;
        let desk = Desk::new(node.clone(), listener, Member::Enclave(self.enclave.clone()));
        let name = |what: &str| thread::Builder::new().name(format!("{what} {cid}"));
        self.threads.push(name("desk").spawn(move || {
            if let Err(error) = desk.serve() {
                eprintln!("enclave {cid}: calls are no longer answered: {error}");
            }
        })?);
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
        if let Err(error) = self.engine.wait() {
            eprintln!("enclave {}: cannot wait for the engine: {error}", self.enclave.cid);
        }
        node.remove_enclave(self.enclave.cid);
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

struct Handshake {
    pid: i32,
    nsm_node: (u64, u64),
    listener: Listener,
    init: Pidfd,
}

/// Gives the engine its id map and takes its report and its filter's listener.
fn shake_hands(control: &UnixStream, engine: u32) -> Result<Handshake, String> {
    let text = |what: &str, error: io::Error| format!("{what}: {error}");
    let mut lines = BufReader::new(control);
    let mut report = Report::default();
    while report.listener.is_none() || report.pid.is_none() {
        let mut line = String::new();
        let count = lines.read_line(&mut line).map_err(|error| text("control socket", error))?;
        if count == 0 {
            return Err("ended before the enclave was up".into());
        }
        if line.trim() == engine::WANTS_MAP {
            let map = format!("0 {HOST_ID_BASE} {ID_COUNT}\n");
            for file in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{engine}/{file}"), &map).map_err(|error| {
                    text("cannot map user ids (does the kernel have user namespaces?)", error)
                })?;
            }
            (&*control).write_all(b"mapped\n").map_err(|error| text("control socket", error))?;
        } else {
            report.take(&line)?;
        }
    }
    let (Some(pid), Some(listener), Some(nsm_node)) = (report.pid, report.listener, report.nsm_node) else {
        return Err("incomplete report".into());
    };
    let init = Pidfd::of_process(pid).map_err(|error| text("pidfd of the first process", error))?;
    let listener = init.take(listener).map_err(|error| text("listener of the first process", error))?;
    Ok(Handshake { pid, nsm_node, listener: Listener::new(listener), init })
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
