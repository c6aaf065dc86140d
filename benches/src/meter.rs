//! What a process has used, seen from outside.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

const EVENT: &str = "raw_syscalls:sys_enter";

/// CPU time of a process and of its children, ended threads and children included.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let own: Duration = clock_gettime(clock_getcpuclockid(Pid::from_raw(pid as i32))?)?.into();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold blanks; the fields after it are counted from its end.
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ended: u64 = fields[13].parse::<u64>()? + fields[14].parse::<u64>()?;
    let live = children(pid)?.into_iter().filter_map(|child| cpu(child).ok()).sum::<Duration>();
    Ok(own + live + Duration::from_millis(ended * 10))
}

/// Private memory of a process and of its children, in bytes.
pub(crate) fn memory(pid: u32) -> anyhow::Result<u64> {
    // A child that has just ended counts nothing.
    let live = children(pid)?.into_iter().map(|child| memory(child).unwrap_or(0)).sum::<u64>();
    Ok(own_memory(pid)? + live)
}

fn children(pid: u32) -> anyhow::Result<Vec<u32>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(children.split_whitespace().filter_map(|child| child.parse().ok()).collect())
}

/// Resident bytes of a process that it shares with no other.
fn own_memory(pid: u32) -> anyhow::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    private
        .map(|line| {
            let kib = line.split_whitespace().nth(1).context("smaps_rollup")?;
            Ok(kib.parse::<u64>()? * 1024)
        })
        .sum()
}

/// Counts the system calls of a process and of threads that it starts: with
/// perf, or where that is missing with strace, which slows the process down.
#[derive(Debug)]
pub(crate) enum SystemCalls {
    Perf(Child),
    Strace(Child),
}

impl SystemCalls {
    /// Counting has begun when this returns.
    pub(crate) fn start(pid: u32) -> anyhow::Result<SystemCalls> {
        match perf(pid) {
            Ok(perf) => Ok(SystemCalls::Perf(perf)),
            Err(_) => Ok(SystemCalls::Strace(strace(pid)?)),
        }
    }

    pub(crate) fn stop(self) -> anyhow::Result<u64> {
        match self {
            SystemCalls::Perf(mut perf) => {
                drop(perf.stdin.take());
                let report = perf.wait_with_output()?;
                let report = String::from_utf8_lossy(&report.stderr);
                let line =
                    report.lines().find(|line| line.contains(EVENT)).context("perf counted nothing")?;
                let count = line.split(',').next().unwrap_or_default();
                count.parse().with_context(|| format!("perf said {line}"))
            }
            SystemCalls::Strace(strace) => {
                kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT)?;
                let report = strace.wait_with_output()?;
                let report = String::from_utf8_lossy(&report.stderr);
                let line = report.lines().rfind(|line| line.ends_with(" total"));
                // Columns: share, seconds, microseconds a call, calls, errors if any, name.
                let calls = line.and_then(|line| line.split_whitespace().nth(3));
                calls.and_then(|calls| calls.parse().ok()).context("strace counted nothing")
            }
        }
    }
}

fn perf(pid: u32) -> anyhow::Result<Child> {
    let mut command = Command::new("perf");
    command.args(["stat", "-x", ",", "-e", EVENT, "-p", &pid.to_string()]);
    // perf starts the command once it counts, and counts until it ends.
    command.args(["--", "sh", "-c", "echo on; exec cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut perf = command.spawn().context("cannot start perf")?;
    let output = perf.stdout.as_mut().context("perf")?;
    if let Err(error) = output.read_exact(&mut [0; 3]) {
        perf.wait()?;
        return Err(error).context("perf did not begin");
    }
    Ok(perf)
}

fn strace(pid: u32) -> anyhow::Result<Child> {
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-p", &pid.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut strace = command.spawn().context("neither perf nor strace can be started")?;
    let output = strace.stderr.as_mut().context("strace")?;
    // It says so when it has attached to the process.
    let mut said = Vec::new();
    while !said.ends_with(b"attached") {
        let mut next = [0];
        output.read_exact(&mut next).context("strace did not attach")?;
        said.push(next[0]);
    }
    Ok(strace)
}
