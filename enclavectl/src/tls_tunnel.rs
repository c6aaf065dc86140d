//! `enclavectl tls-tunnel`: lets any program talk to an enclave over attested TLS.
//!
//! ```text
//! curl ─TCP─▶ --listen ─▶ dial, verify ─TLS 1.3─▶ enclave
//!                           │ refused
//!                           └──▶ reset the client, say why
//! ```
//!
//! One task owns one connection, which is verified anew. Half-close passes
//! both ways; an end of TLS that is no proper end resets the client, so that a
//! cut answer never looks whole.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep};

use crate::attest::dial::{Dialler, Target};
use crate::failure::{Blame, Failure, OrBlame};
use crate::report::print_text;
use crate::verify::expect::Expectations;

/// Let local programs talk to an enclave over attested TLS
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The enclave's TLS port
    #[arg(long, value_name = "HOST:PORT")]
    connect: Target,
    /// Where local programs connect; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Have a document made for each session, beside the certificate's
    #[arg(long)]
    session: bool,
    /// Connections at a time; more wait
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    max_connections: u32,
    #[command(flatten)]
    expectations: Expectations,
}

/// Longest wait after an accept that failed for want of descriptors.
const BACK_OFF: Duration = Duration::from_millis(100);

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let expected = args.expectations.read()?;
    let dialler = Dialler::new(args.connect, &expected, args.session)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().or_blame(Blame::Io)?;
    runtime.block_on(async {
        // A server that is refused now is told at once, not at the first request.
        if let Err(error) = dialler.dial().await {
            return error.report(false);
        }
        let cannot = || format!("cannot listen on {}", args.listen);
        let listener = TcpListener::bind(args.listen).await.with_context(cannot).or_blame(Blame::Io)?;
        let address = listener.local_addr().or_blame(Blame::Io)?;
        print_text(&format!("listening on {address}\n"))?;
        serve(listener, dialler, args.max_connections).await.or_blame(Blame::Io)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Serves until SIGINT or SIGTERM, then ends what is open.
async fn serve(listener: TcpListener, dialler: Dialler, limit: u32) -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (dialler, permits) = (Arc::new(dialler), Arc::new(Semaphore::new(limit as usize)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            // Never closed, so the permit always comes.
            let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok((listener.accept().await?.0, permit))
        };
        let accepted: io::Result<_> = tokio::select! {
            accepted = accepted => accepted,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((client, permit)) => {
                let dialler = dialler.clone();
                connections.spawn(async move {
                    let _permit = permit;
                    carry(client, &dialler).await;
                });
            }
            Err(error) => {
                eprintln!("cannot accept: {error}");
                sleep(BACK_OFF).await;
            }
        }
    }
    connections.shutdown().await;
    Ok(())
}

/// Carries one connection to its end.
async fn carry(mut client: TcpStream, dialler: &Dialler) {
    let ended = match dialler.dial().await {
        Ok(mut enclave) => {
            copy_bidirectional(&mut client, &mut enclave.stream).await.map_err(anyhow::Error::new)
        }
        Err(error) => Err(error.into()),
    };
    match ended {
        // Both directions have been shut down already.
        Ok(_) => drop(client.shutdown().await),
        Err(error) => {
            eprintln!("connection: {error:#}");
            // Closing now sends a reset instead of an orderly end.
            let _ = client.set_zero_linger();
        }
    }
}
