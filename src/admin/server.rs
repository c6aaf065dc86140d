//! Answers on the admin socket.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ERROR, OK};
use crate::confine::{self, Confinement};
use crate::enclave::console::Console;
use crate::identity::Identity;
use crate::supervisor::Status;
use crate::timeline::{Step, Timeline};

/// Clients at a time; more are closed at once.
const CLIENTS: usize = 16;
const REQUEST_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const LONGEST_REQUEST: u64 = 64;
const BACK_OFF: Duration = Duration::from_millis(100);

/// What can be told.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pub(crate) status: watch::Receiver<Status>,
    /// Set once the enclave runs.
    pub(crate) identity: Arc<OnceLock<Identity>>,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) console: Console,
    pub(crate) debug: bool,
    pub(crate) slot: Option<u32>,
    pub(crate) confinement: Confinement,
}

/// One element of `describe-enclaves`, with fields of our own at the end.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Description<'a> {
    #[serde(flatten)]
    identity: &'a Identity,
    state: &'static str,
    flags: &'static str,
    phase: &'static str,
    steps: Vec<Step>,
    /// Where a device plugin granted one.
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u32>,
    confinement: Confinement,
    /// What came of acts that must fail, tried just now.
    forbidden: Vec<confine::Probe>,
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: std::os::unix::net::UnixListener, room: Room, stop: CancellationToken) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "the admin socket cannot be served");
            return;
        }
    };
    let (clients, places) = (TaskTracker::new(), Arc::new(Semaphore::new(CLIENTS)));
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((client, _)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let (room, stop) = (room.clone(), stop.clone());
                clients.spawn(async move {
                    // A client that has gone is nobody's failure.
                    let _ = stop.run_until_cancelled(answer(client, &room)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an admin client");
                let _ = stop.run_until_cancelled(sleep(BACK_OFF)).await;
            }
        }
    }
    clients.close();
    clients.wait().await;
}

async fn answer(client: UnixStream, room: &Room) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let mut request = String::new();
    let mut bounded = (&mut client).take(LONGEST_REQUEST);
    timeout(REQUEST_WITHIN, bounded.read_line(&mut request)).await??;
    let client = client.into_inner();
    match request.trim_end() {
        "describe" => say(client, &format!("{OK}\n{}\n", describe(room))).await.map(drop),
        "console" if room.debug => follow(client, room).await,
        "console" => {
            let why = "the console is readable in debug mode only; run with --debug";
            say(client, &format!("{ERROR}{why}\n")).await.map(drop)
        }
        _ => say(client, &format!("{ERROR}no such request\n")).await.map(drop),
    }
}

async fn say(mut client: UnixStream, text: &str) -> std::io::Result<UnixStream> {
    timeout(ANSWER_WITHIN, client.write_all(text.as_bytes())).await??;
    Ok(client)
}

/// An array, as `describe-enclaves` prints it: empty until the enclave runs.
fn describe(room: &Room) -> String {
    let status = room.status.borrow().clone();
    let described: Vec<_> = room
        .identity
        .get()
        .map(|identity| Description {
            identity,
            state: if status.leaving { "TERMINATING" } else { "RUNNING" },
            flags: if room.debug { "DEBUG_MODE" } else { "NONE" },
            phase: status.phase,
            steps: room.timeline.steps(),
            slot: room.slot,
            confinement: room.confinement.clone(),
            forbidden: confine::probe(),
        })
        .into_iter()
        .collect();
    serde_json::to_string_pretty(&described).unwrap_or_default()
}

/// The lines so far that are kept, then those to come.
async fn follow(client: UnixStream, room: &Room) -> std::io::Result<()> {
    // Before the last lines are read: a line may be told twice, but none missed.
    let mut live = room.console.subscribe();
    let kept = room.console.last(usize::MAX);
    let mut client = say(client, &format!("{OK}\n")).await?;
    for line in kept {
        client = say(client, &format!("{line}\n")).await?;
    }
    loop {
        let mut nothing = [0; 64];
        let text = tokio::select! {
            line = live.recv() => match line {
                Ok(line) => format!("{line}\n"),
                Err(RecvError::Lagged(missed)) => format!("[{missed} lines missed]\n"),
                Err(RecvError::Closed) => return Ok(()),
            },
            read = client.read(&mut nothing) => match read? {
                0 => return Ok(()),
                _ => continue,
            },
        };
        client = say(client, &text).await?;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn room() -> Room {
        let status = Status { phase: "serving", ready: true, attests: true, leaving: false };
        Room {
            status: watch::Sender::new(status).subscribe(),
            identity: Arc::default(),
            timeline: Arc::new(Timeline::start()),
            console: Console::default(),
            debug: false,
            slot: None,
            confinement: Confinement::default(),
        }
    }

    /// Says `beginning` and reads to the end, whichever end it is.
    async fn told(path: &std::path::Path, beginning: &str) -> String {
        let mut client = UnixStream::connect(path).await.unwrap();
        let _ = client.write_all(beginning.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn slow_clients_take_no_place_for_long_and_endless_ones_are_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, room(), stop.clone()));
        let begun = Instant::now();
        let slow: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let path = path.clone();
                tokio::spawn(async move { told(&path, "descr").await })
            })
            .collect();
        for client in slow {
            assert_eq!(client.await.unwrap(), "");
        }
        assert!(
            begun.elapsed() >= REQUEST_WITHIN && begun.elapsed() < ANSWER_WITHIN,
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(told(&path, "describe\n").await, "ok\n[]\n");
        let endless = told(&path, &"x".repeat(100_000)).await;
        assert!(endless.is_empty() || endless == "error: no such request\n", "{endless}");
        stop.cancel();
        serving.await.unwrap();
    }
}
