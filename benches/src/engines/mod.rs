//! The relays that were explored, behind one program.
//!
//! Only [`Engine::Ours`] ships; the others are kept so that their figures in
//! docs/performance.md can be measured again.

mod raw;
mod shared;
mod splice;

use std::io;

use socket2::Socket;

use crate::endpoint::Endpoint;

/// How bytes are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Engine {
    /// Blocking, two threads a connection, 64 KiB, no write cap: the yardstick
    Raw,
    /// The same with the write cap
    RawCapped,
    /// The relay crate, as shim and agent use it
    Ours,
    /// The same, told that another relay is at the vsock's far end
    BetweenRelays,
    /// The runtime's own copy loop, 8 KiB a direction
    Small,
    /// The same with 256 KiB a direction, held for life, and the write cap
    Owned,
    /// Pages moved through a pipe, at most 31 KiB at a time into the vsock
    Splice,
}

impl Engine {
    /// As it ships, or as it was explored.
    pub(crate) fn usual_runtime(self) -> Runtime {
        match self {
            Engine::Ours | Engine::BetweenRelays => Runtime::PerCore,
            _ => Runtime::Shared,
        }
    }

    /// Every connection costs threads.
    pub(crate) fn is_threaded(self) -> bool {
        matches!(self, Engine::Raw | Engine::RawCapped)
    }
}

/// Where tasks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Runtime {
    /// One runtime with a worker per core, which steal from one another
    Shared,
    /// One single-threaded runtime per core, each connection on the least loaded
    PerCore,
}

/// Relays what comes to `listen` for the rest of the process.
pub(crate) fn run(engine: Engine, runtime: Runtime, listen: Endpoint, to: Endpoint) -> io::Result<()> {
    let listener = listen.listen()?;
    match engine {
        Engine::Raw => raw::run(&listener, listen, to, usize::MAX),
        Engine::RawCapped => raw::run(&listener, listen, to, relay::VSOCK_WRITE_MAX),
        _ => shared::run(engine, runtime, listener, listen, to),
    }
}

type Listener = Socket;
