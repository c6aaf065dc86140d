//! The programs that are compared, each started as a user would.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::endpoint::Endpoint;
use crate::engines::{Engine, Runtime};

/// The parent instance's own context id on Nitro.
const PARENT: u32 = 3;
/// `VMADDR_CID_ANY` of linux/vm_sockets.h.
const ANY: u32 = u32::MAX;
const START: Duration = Duration::from_secs(10);

/// Who carries the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Nobody: the client dials the server.
    Direct,
    Engine(Engine, Runtime),
    Socat,
    /// The crate of that name, built to this path.
    VsockProxy(PathBuf),
}

/// Which side the clients are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// TCP clients, a vsock server: ingress.
    Tcp,
    /// vsock clients, a TCP server: egress.
    Vsock,
}

impl Contender {
    pub(crate) fn parse(text: &str, tools: &Path) -> anyhow::Result<Contender> {
        Ok(match text {
            "direct" => Contender::Direct,
            "socat" => Contender::Socat,
            "vsock-proxy" => Contender::VsockProxy(tools.join("vsock-proxy")),
            _ => {
                let (engine, runtime) = text.split_once('/').unzip();
                let engine = Engine::from_str(engine.unwrap_or(text), false);
                let engine = engine.map_err(anyhow::Error::msg).context(text.to_owned())?;
                let runtime = match runtime.map(|runtime| Runtime::from_str(runtime, false)) {
                    Some(runtime) => runtime.map_err(anyhow::Error::msg).context(text.to_owned())?,
                    None => engine.usual_runtime(),
                };
                Contender::Engine(engine, runtime)
            }
        })
    }

    /// It serves one connection after the other.
    pub(crate) fn is_serial(&self) -> bool {
        matches!(self, Contender::VsockProxy(_))
    }

    /// Starts it in front of `server`; ready when this returns.
    pub(crate) fn start(&self, side: Side, server: Endpoint) -> anyhow::Result<Running> {
        let listen = match side {
            Side::Tcp => Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_port()?))),
            Side::Vsock => Endpoint::Vsock { cid: ANY, port: free_vsock_port() },
        };
        let mut command = match self {
            Contender::Direct => return Ok(Running { process: None, endpoint: server }),
            Contender::Engine(engine, runtime) => ours(*engine, *runtime, listen, server)?,
            Contender::Socat => socat(listen, server),
            Contender::VsockProxy(program) => vsock_proxy(program, listen, server),
        };
        let speaks = matches!(self, Contender::Engine(..));
        command.stdin(Stdio::null());
        if speaks {
            command.stdout(Stdio::piped());
        }
        let process = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let mut running = Running { process: Some(process), endpoint: reachable(listen) };
        running.wait(speaks)?;
        Ok(running)
    }
}

/// A contender that accepts connections on `endpoint`.
#[derive(Debug)]
pub(crate) struct Running {
    process: Option<Child>,
    pub(crate) endpoint: Endpoint,
}

impl Running {
    /// None where nobody carries.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    fn wait(&mut self, speaks: bool) -> anyhow::Result<()> {
        if speaks {
            let output = self.process.as_mut().and_then(|process| process.stdout.as_mut());
            let mut line = [0; 6];
            return Ok(output.context("no output")?.read_exact(&mut line)?);
        }
        let deadline = Instant::now() + START;
        while self.endpoint.dial().is_err() {
            if Instant::now() > deadline {
                bail!("nobody listens on {}", self.endpoint);
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn ours(engine: Engine, runtime: Runtime, listen: Endpoint, to: Endpoint) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    command.args(["relay", "--engine", &name(&|| engine.to_possible_value())]);
    command.args(["--runtime", &name(&|| runtime.to_possible_value())]);
    command.args(["--listen", &listen.to_string(), "--to", &to.to_string()]);
    Ok(command)
}

fn socat(listen: Endpoint, to: Endpoint) -> Command {
    let listen = match listen {
        Endpoint::Tcp(address) => {
            format!("TCP-LISTEN:{},bind={},fork,reuseaddr,backlog=4096,nodelay", address.port(), address.ip())
        }
        Endpoint::Vsock { port, .. } => format!("VSOCK-LISTEN:{port},fork,backlog=4096"),
    };
    let to = match to {
        Endpoint::Tcp(address) => format!("TCP:{address},nodelay"),
        Endpoint::Vsock { cid, port } => format!("VSOCK-CONNECT:{cid}:{port}"),
    };
    let mut command = Command::new("socat");
    command.args([listen, to]).stderr(Stdio::null());
    command
}

fn vsock_proxy(program: &Path, listen: Endpoint, to: Endpoint) -> Command {
    let address = |endpoint: Endpoint| match endpoint {
        Endpoint::Tcp(address) => address.to_string(),
        Endpoint::Vsock { cid, port } => format!("{cid}:{port}"),
    };
    let kind = |endpoint| if matches!(endpoint, Endpoint::Tcp(_)) { "tcp" } else { "vsock" };
    let mut command = Command::new(program);
    command.args([format!("--{}-source", kind(listen)), address(listen)]);
    command.args([format!("--{}-dest", kind(to)), address(to)]);
    command.stderr(Stdio::null());
    command
}

/// Where a listener on every context id is dialled.
fn reachable(listen: Endpoint) -> Endpoint {
    match listen {
        Endpoint::Vsock { port, .. } => Endpoint::Vsock { cid: PARENT, port },
        tcp => tcp,
    }
}

/// Where the server listens, and the address that it is dialled at.
pub(crate) fn server_endpoints(side: Side) -> anyhow::Result<(Endpoint, Endpoint)> {
    let listen = match side {
        Side::Tcp => Endpoint::Vsock { cid: ANY, port: free_vsock_port() },
        Side::Vsock => Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_port()?))),
    };
    Ok((listen, reachable(listen)))
}

fn free_tcp_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The node is this run's own: nobody else takes ports.
fn free_vsock_port() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(5000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_contenders_are_read() {
        let tools = Path::new("/tools");
        assert_eq!(Contender::parse("direct", tools).unwrap(), Contender::Direct);
        assert_eq!(
            Contender::parse("ours", tools).unwrap(),
            Contender::Engine(Engine::Ours, Runtime::PerCore)
        );
        assert_eq!(
            Contender::parse("ours/shared", tools).unwrap(),
            Contender::Engine(Engine::Ours, Runtime::Shared)
        );
        assert!(Contender::parse("ours/alone", tools).is_err());
        assert!(Contender::parse("nobody", tools).is_err());
    }
}
