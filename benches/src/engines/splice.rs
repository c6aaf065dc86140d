//! Pages moved through a pipe; no byte is copied by this process.
//!
//! A pipe is taken when a socket becomes readable and given back when it is
//! empty again, so an idle connection holds none.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use relay::VSOCK_WRITE_MAX;
use rustix::net::Shutdown;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio_vsock::VsockStream;

const PIPE: usize = 256 * 1024;
const KEPT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn take() -> io::Result<Pipe> {
        if let Some(pipe) = FREE.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        fcntl_setpipe_size(&write, PIPE)?;
        Ok(Pipe { read, write })
    }

    fn give_back(self) {
        FREE.with_borrow_mut(|free| {
            if free.len() < KEPT {
                free.push(self);
            }
        });
    }
}

pub(super) async fn carry(tcp: TcpStream, vsock: VsockStream) -> io::Result<()> {
    // One type for both families keeps this loser short.
    let tcp = OwnedFd::from(tcp.into_std()?);
    let tcp = UnixStream::from_std(tcp.into())?;
    let vsock = UnixStream::from_std(OwnedFd::from(vsock).into())?;
    tokio::try_join!(one_way(&tcp, &vsock, VSOCK_WRITE_MAX), one_way(&vsock, &tcp, PIPE)).map(drop)
}

async fn one_way(from: &UnixStream, to: &UnixStream, write_max: usize) -> io::Result<()> {
    loop {
        from.readable().await?;
        let pipe = Pipe::take()?;
        let outcome = from.try_io(Interest::READABLE, || moved(from, &pipe.write, PIPE));
        match outcome {
            Ok(0) => {
                pipe.give_back();
                return Ok(rustix::net::shutdown(to, Shutdown::Write)?);
            }
            Ok(mut left) => {
                while left > 0 {
                    to.writable().await?;
                    let most = left.min(write_max);
                    match to.try_io(Interest::WRITABLE, || moved(&pipe.read, to, most)) {
                        Ok(count) => left -= count,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                pipe.give_back();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => pipe.give_back(),
            Err(error) => return Err(error),
        }
    }
}

fn moved(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
}
