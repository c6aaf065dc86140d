//! The life of the node's process: take the socket, serve, leave when nobody is left.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::SystemTime;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::stat::{Mode, umask};
use nix::unistd::ForkResult;

use super::control::{Answer, Request};
use super::supervisor::{Desk, Member};
use super::{Config, Node, Presence};
use crate::nsm;
use crate::sys::notify::Listener;
use crate::sys::pidfd::Pidfd;
use crate::sys::process::{fork_single_threaded, inherited};

/// Held exclusively by whoever starts, joins or ends the node.
pub(crate) const LOCK_FILE: &str = "node.lock";
/// Where the node listens.
pub(crate) const SOCKET_FILE: &str = "node.sock";

/// Runs the node of `dir`. The caller holds the lock; `ready` is closed as
/// soon as the socket accepts.
fn run(dir: &Path, config: Config, ready: File) -> anyhow::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    let socket = dir.join(SOCKET_FILE);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).context("cannot listen on node.sock")?;
    listener.set_nonblocking(true)?;
    let watcher = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let authority = nsm::Authority::open(dir, nsm::DEFAULT_REGION, SystemTime::now())
        .context("cannot open the development authority")?;
    let node = Arc::new(Node::new(dir.to_owned(), config, watcher, authority)?);
    eprintln!("node of {} started, pid {}", dir.display(), std::process::id());
    drop(ready);
    let publisher = {
        let node = node.clone();
        thread::spawn(move || node.stats.publish(&node.dir.join("stats.json")))
    };
    let result = serve(&node, &listener, &socket);
    node.stats.end();
    let _ = publisher.join();
    eprintln!("node of {} ended", dir.display());
    result
}

/// Accepts until the last user has left.
fn serve(node: &Arc<Node>, listener: &UnixListener, socket: &Path) -> anyhow::Result<()> {
    loop {
        let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds =
            [wanted(listener.as_fd()), wanted(node.present.left.as_fd()), wanted(node.watcher.as_fd())];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let [connection, left, closed] = fds.map(|fd| fd.any().unwrap_or(false));
        if closed {
            node.free_closed_slots()?;
        }
        if connection {
            match listener.accept() {
                Ok((stream, _)) => greet(node, stream)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => eprintln!("cannot accept on node.sock: {error}"),
            }
        }
        if left {
            let _ = node.present.left.read();
            if may_leave(node, listener, socket)? {
                return Ok(());
            }
        }
    }
}

/// Under the lock nobody can be about to connect: either the connection is
/// there already, or its owner will find no socket and start a new node.
fn may_leave(node: &Node, listener: &UnixListener, socket: &Path) -> anyhow::Result<bool> {
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(node.dir.join(LOCK_FILE))?;
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        // Its holder connects, which brings us back here when it goes; if it
        // dies first, this brings us back.
        return wait_for_lock(node);
    };
    let pending = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)?;
    if pending > 0 || node.present.count.load(Ordering::Acquire) > 0 {
        return Ok(false);
    }
    fs::remove_file(socket)?;
    Ok(true)
}

/// Leaves the decision to a thread that waits for the lock.
fn wait_for_lock(node: &Node) -> anyhow::Result<bool> {
    let path = node.dir.join(LOCK_FILE);
    let presence: Presence = node.presence();
    thread::Builder::new().name("lock".into()).spawn(move || {
        if let Ok(file) = File::open(&path) {
            drop(Flock::lock(file, FlockArg::LockExclusive));
        }
        drop(presence);
    })?;
    Ok(false)
}

fn greet(node: &Arc<Node>, stream: UnixStream) -> io::Result<()> {
    let presence = node.presence();
    let node = node.clone();
    let spawned = thread::Builder::new().name("client".into()).spawn(move || {
        if let Err(error) = talk(&node, &stream) {
            eprintln!("a client of node.sock: {error}");
        }
        drop(presence);
    });
    spawned.map(drop)
}

fn talk(node: &Arc<Node>, stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while {
        line.clear();
        lines.read_line(&mut line)?
    } > 0
    {
        let answer = match serde_json::from_str(&line) {
            Ok(request) => handle(node, request),
            Err(error) => Answer::Refused(format!("not understood: {error}")),
        };
        let mut text = serde_json::to_string(&answer)?;
        text.push('\n');
        (&*stream).write_all(text.as_bytes())?;
    }
    Ok(())
}

fn handle(node: &Arc<Node>, request: Request) -> Answer {
    match request {
        Request::Hello(wishes) => match node.config.conflict(&wishes) {
            None => Answer::Node(node.config.clone()),
            Some(conflict) => Answer::Refused(format!("{conflict}; use another --state directory")),
        },
        Request::Join { pid, listener } => match join(node, pid, listener) {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Refused(format!("cannot take the filter of process {pid}: {error}")),
        },
        Request::Status => Answer::Status(node.status()),
        Request::Stats => Answer::Stats(node.stats.counts()),
        Request::Kill { cid } => match node.enclave(cid) {
            Some(enclave) => {
                enclave.kill();
                Answer::Done
            }
            None => Answer::Refused(format!("no enclave has CID {cid}")),
        },
    }
}

/// Serves a command's filter in a thread of its own, which ends with the
/// last process under the filter.
fn join(node: &Arc<Node>, pid: i32, listener: i32) -> io::Result<()> {
    let listener = Listener::new(Pidfd::of_process(pid)?.take(listener)?);
    let presence = node.presence();
    let desk = Desk::new(node.clone(), listener, Member::Parent);
    let serve = move || {
        if let Err(error) = desk.serve() {
            eprintln!("calls of process {pid} are no longer answered: {error}");
        }
        drop(desk);
        drop(presence);
    };
    thread::Builder::new().name(format!("desk of {pid}")).spawn(serve).map(drop)
}

/// Arguments of the hidden command that is the node.
#[derive(Debug, clap::Args)]
pub struct DaemonArgs {
    /// A [`Config`] as JSON
    #[arg(long)]
    config: String,
    /// Descriptor that is closed when the node listens
    #[arg(long)]
    ready: i32,
}

/// Forks away from the caller and runs the node of `dir`.
pub fn main(dir: &Path, args: DaemonArgs) -> anyhow::Result<()> {
    let config: Config = serde_json::from_str(&args.config).context("--config")?;
    let ready = File::from(inherited(args.ready).context("--ready")?);
    nix::unistd::setsid().context("cannot start a session")?;
    if let ForkResult::Parent { .. } = fork_single_threaded().context("cannot fork")? {
        return Ok(());
    }
    run(dir, config, ready)
}
