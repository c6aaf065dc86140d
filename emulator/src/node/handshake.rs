//! The node's part in bringing a process enclave up.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use crate::engine::{self, HOST_ID_BASE, ID_COUNT, Report};
use crate::sys::notify::Listener;
use crate::sys::pidfd::Pidfd;

/// What the engine has made when only /init is missing.
pub(super) struct Handshake {
    /// Host PID of the first process.
    pub(super) pid: i32,
    /// Device and inode of its /dev/nsm.
    pub(super) nsm_node: (u64, u64),
    /// Its filter.
    pub(super) listener: Listener,
    /// The first process.
    pub(super) init: Pidfd,
}

/// Gives the engine its id map and takes its report and its filter's listener.
pub(super) fn shake_hands(control: &UnixStream, engine: u32) -> Result<Handshake, String> {
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
