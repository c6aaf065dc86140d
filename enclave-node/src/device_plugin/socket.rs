//! The unix socket of a plugin, and the connections on it.
//!
//! ```text
//! bind ─▶ accept ─▶ HTTP/2 ─▶ Service
//!           │ too many     │ no request in time, no answer to pings
//!           └── closed     └── closed
//! ```
//! hyper carries the connections instead of tonic's own server: every task is
//! known here, so that a restart leaves nothing of the last server behind.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tonic::codegen::Service as _;

use super::api::device_plugin_server::DevicePluginServer;
use super::service::Service;

/// Kubelet needs one; the rest is for tools and for connections that die slowly.
const CONNECTIONS: usize = 32;
const STREAMS: u32 = 64;
/// Bytes of a request: ids of some thousand CPUs.
const LONGEST_MESSAGE: usize = 256 << 10;
/// Bytes of a request's headers.
const LONGEST_HEAD: u32 = 16 << 10;
/// Kubelet calls at once after it has connected.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(30);
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(20);
/// Calls that are being answered may finish within this time.
const GRACE: Duration = Duration::from_secs(3);
/// After an accept that failed: out of descriptors, most likely.
const BACK_OFF: Duration = Duration::from_millis(100);

/// A socket that kubelet can connect to.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    identity: Identity,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}", .path.display())]
pub(crate) struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// Tells a file from another one that later has its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Identity {
    /// Of what is at `path` now.
    pub(crate) fn of(path: &Path) -> Option<Identity> {
        let file = fs::symlink_metadata(path).ok()?;
        Some(Identity { device: file.dev(), inode: file.ino(), changed: (file.ctime(), file.ctime_nsec()) })
    }
}

impl Socket {
    /// Listens on `path`, in the place of what an earlier plugin left there.
    /// The name is never without a socket, so that an earlier plugin that still
    /// runs sees that it was replaced, not that its socket was lost.
    pub(crate) fn bind(path: &Path) -> Result<Socket, SocketError> {
        let fault = |source| SocketError { path: path.to_owned(), source };
        if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
            return Err(fault(io::Error::other("what is there is no socket")));
        }
        let nameless = path.with_file_name(passing_name());
        let listener = UnixListener::bind(&nameless).map_err(fault)?;
        fs::set_permissions(&nameless, fs::Permissions::from_mode(0o600)).map_err(fault)?;
        fs::rename(&nameless, path).map_err(fault)?;
        let identity = Identity::of(path).ok_or_else(|| fault(io::ErrorKind::NotFound.into()))?;
        Ok(Socket { listener, path: path.to_owned(), identity })
    }

    /// What [`Identity::of`] says as long as nobody has removed the socket.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Answers with `service` until its stop token, and then until the last
    /// connection has ended; the file is gone first.
    pub(crate) async fn serve(self, service: Service) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = service.stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => {
                        let connection = converse(stream, service.clone());
                        service.tasks.spawn(async move {
                            connection.await;
                            drop(place);
                        });
                    }
                    Err(_) => tracing::warn!(limit = CONNECTIONS, "connection refused: too many"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    sleep(BACK_OFF).await;
                }
            }
        }
        if Identity::of(&self.path) == Some(self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
        drop(self.listener);
        service.tasks.close();
        if timeout(GRACE * 2, service.tasks.wait()).await.is_err() {
            tracing::error!(left = service.tasks.len(), "calls that do not end are left behind");
        }
    }
}

/// A name that no other plugin uses at the same moment; pods share process ids.
fn passing_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!(".{:x}", now.subsec_nanos())
}

/// One connection, from its preface to its end.
async fn converse(stream: UnixStream, service: Service) {
    let stop = service.stop.clone();
    let spoke = Arc::new(Notify::new());
    let server = DevicePluginServer::new(service.clone()).max_decoding_message_size(LONGEST_MESSAGE);
    let answer = {
        let spoke = Arc::clone(&spoke);
        hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            spoke.notify_one();
            server.clone().call(request)
        })
    };
    let mut connection = pin!(builder(service.tasks).serve_connection(TokioIo::new(stream), answer));
    let silent = async {
        if timeout(FIRST_REQUEST_WITHIN, spoke.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silent => {
            tracing::info!("connection closed: no request in time");
            return;
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "connection failed");
    }
}

fn builder(tasks: TaskTracker) -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(Tasks(tasks));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(LONGEST_HEAD)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_WITHIN);
    builder
}

/// Runs hyper's streams where they can be waited for.
#[derive(Debug, Clone)]
struct Tasks(TaskTracker);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}
