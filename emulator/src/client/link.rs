//! A connection to a node, which is started if there is none.
//!
//! Whoever connects, starts or ends a node holds `node.lock` meanwhile, so a
//! node is never joined while it leaves and never started twice.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};

use crate::node::control::{Answer, Request};
use crate::node::{Config, LOCK_FILE, SOCKET_FILE};

/// The node's log.
pub(super) const LOG_FILE: &str = "fakenitro.log";

/// A connection to a node.
pub(super) struct Link {
    lines: BufReader<UnixStream>,
}

impl Link {
    /// Connects to the node of `dir` if there is one.
    pub(super) fn existing(dir: &Path) -> anyhow::Result<Option<Link>> {
        if !dir.is_dir() {
            return Ok(None);
        }
        let _lock = lock(dir)?;
        connect(dir)
    }

    /// Connects to the node of `dir`; starts one with `config` if there is none.
    pub(super) fn or_start(dir: &Path, config: &Config) -> anyhow::Result<Link> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make state directory {}", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        let lock = lock(dir)?;
        if let Some(link) = connect(dir)? {
            return Ok(link);
        }
        start(dir, config)
            .with_context(|| format!("cannot start the node, see {}", dir.join(LOG_FILE).display()))?;
        let link = connect(dir)?;
        drop(lock);
        link.with_context(|| format!("the node ended at once, see {}", dir.join(LOG_FILE).display()))
    }

    /// Asks and waits for the answer. Only read(2) and write(2) are used, so
    /// that it works under a filter that nobody serves yet.
    pub(super) fn ask(&mut self, request: &Request) -> anyhow::Result<Answer> {
        let mut text = serde_json::to_string(request)?;
        text.push('\n');
        self.lines.get_ref().write_all(text.as_bytes()).context("cannot write to the node")?;
        let mut line = String::new();
        self.lines.read_line(&mut line).context("cannot read from the node")?;
        match serde_json::from_str(&line).context("the node ended or answered oddly")? {
            Answer::Refused(why) => bail!("{why}"),
            answer => Ok(answer),
        }
    }
}

fn lock(dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {}", path.display()))
}

fn connect(dir: &Path) -> anyhow::Result<Option<Link>> {
    let path = dir.join(SOCKET_FILE);
    match UnixStream::connect(&path) {
        Ok(stream) => Ok(Some(Link { lines: BufReader::new(stream) })),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot connect to {}", path.display())),
    }
}

/// Starts a fresh copy of this program as the node, and waits until it
/// listens. The copy forks once more, so it is nobody's child.
fn start(dir: &Path, config: &Config) -> anyhow::Result<()> {
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(LOG_FILE))?;
    let (ready, theirs) = nix::unistd::pipe()?;
    let dir = dir.canonicalize()?;
    keep_across_exec(&theirs)?;
    let status = Command::new("/proc/self/exe")
        .arg("--state")
        .arg(&dir)
        .arg("__node")
        .args(["--config", &serde_json::to_string(config)?])
        .args(["--ready", &theirs.as_raw_fd().to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()?;
    drop(theirs);
    if !status.success() {
        bail!("it exited with {status}");
    }
    let mut nothing = Vec::new();
    File::from(ready).read_to_end(&mut nothing)?;
    Ok(())
}

fn keep_across_exec(fd: &OwnedFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).map_err(io::Error::from)
}
