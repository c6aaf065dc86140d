//! A local Docker daemon's image: what `docker save` would write, asked for
//! over the daemon's socket and kept in an unnamed file.

use std::{
    env,
    fs::File,
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::{Body, Bytes, Incoming},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

/// Where Docker listens unless DOCKER_HOST says otherwise.
const SOCKET: &str = "/var/run/docker.sock";
/// For the first byte, and between two pieces; the daemon packs while it sends.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of an error message.
const MAX_MESSAGE: usize = 64 << 10;

/// Why there is no image from the daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error("DOCKER_HOST is {host:?}: only unix:// sockets are supported")]
    Host { host: String },
    #[error("cannot ask Docker at {}", .socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("Docker at {} has no image {name}: {message}", .socket.display())]
    NoSuchImage { socket: PathBuf, name: String, message: String },
    #[error("Docker at {} answers {status} for image {name}: {message}", .socket.display())]
    Status { socket: PathBuf, name: String, status: StatusCode, message: String },
    #[error("Docker's answer for image {name} was interrupted after {received} bytes")]
    Interrupted { name: String, received: u64, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("image {name} is longer than {limit} bytes (--max-bytes raises that)")]
    TooLong { name: String, limit: u64 },
    #[error("cannot write the temporary file for image {name}")]
    Spool { name: String, source: io::Error },
}

/// Saves image `name`, a tag or an ID, into `file`; at most `limit` bytes.
pub(crate) fn save(name: &str, file: &mut File, limit: u64) -> Result<(), DaemonError> {
    let socket = socket(env::var("DOCKER_HOST").ok().as_deref())?;
    let unreachable = |source| DaemonError::Unreachable { socket: socket.clone(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(unreachable)?.block_on(transfer(&socket, name, file, limit))
}

fn socket(host: Option<&str>) -> Result<PathBuf, DaemonError> {
    match host {
        None | Some("") => Ok(SOCKET.into()),
        Some(host) => match host.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(path.into()),
            _ => Err(DaemonError::Host { host: host.to_owned() }),
        },
    }
}

async fn transfer(socket: &Path, name: &str, file: &mut File, limit: u64) -> Result<(), DaemonError> {
    let unreachable = |source| DaemonError::Unreachable { socket: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| unreachable(io::Error::other(error)))?;
    let exchange = async {
        let request = Request::get(format!("/images/{name}/get")).header(HOST, "docker");
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other).map_err(unreachable)?;
        let answer = timeout(PATIENCE, sender.send_request(request)).await;
        let answer = answer.map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?;
        let answer = answer.map_err(|error| unreachable(io::Error::other(error)))?;
        match answer.status() {
            StatusCode::OK => keep(answer.into_body(), name, file, limit).await,
            status => {
                let (socket, name) = (socket.to_owned(), name.to_owned());
                let message = message(answer.into_body()).await;
                Err(match status {
                    StatusCode::NOT_FOUND => DaemonError::NoSuchImage { socket, name, message },
                    status => DaemonError::Status { socket, name, status, message },
                })
            }
        }
    };
    let driver = tokio::spawn(connection);
    let outcome = exchange.await;
    driver.abort();
    // Aborted: there is nothing to learn from how it ended.
    let _ = driver.await;
    outcome
}

async fn keep(mut body: Incoming, name: &str, file: &mut File, limit: u64) -> Result<(), DaemonError> {
    let mut received = 0;
    let spool = |source| DaemonError::Spool { name: name.to_owned(), source };
    while !body.is_end_stream() {
        let interrupted =
            |received, source| DaemonError::Interrupted { name: name.to_owned(), received, source };
        let frame = timeout(PATIENCE, body.frame()).await;
        let frame = frame.map_err(|error| interrupted(received, error.into()))?;
        let Some(frame) = frame.transpose().map_err(|error| interrupted(received, error.into()))? else {
            break;
        };
        let Ok(data) = frame.into_data() else { continue };
        received += data.len() as u64;
        if received > limit {
            return Err(DaemonError::TooLong { name: name.to_owned(), limit });
        }
        file.write_all(&data).map_err(spool)?;
    }
    file.rewind().map_err(spool)
}

/// `{"message": TEXT}`, or the beginning of whatever else came, on one line.
async fn message(body: Incoming) -> String {
    let body = timeout(PATIENCE, Limited::new(body, MAX_MESSAGE).collect()).await;
    let bytes = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    let json: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let text = json.as_ref().and_then(|json| json["message"].as_str().map(str::to_owned));
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned());
    text.chars().take(200).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// Whether `name` can be in the path of a request: what Docker's names consist of.
pub(crate) fn is_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    !name.is_empty() && name.bytes().all(known) && !name.contains("..") && !name.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_dockers_own_or_the_one_that_is_named() {
        assert_eq!(socket(None).unwrap(), Path::new(SOCKET));
        assert_eq!(socket(Some("unix:///run/d.sock")).unwrap(), Path::new("/run/d.sock"));
        for host in ["tcp://127.0.0.1:2375", "ssh://host", "unix://relative"] {
            assert!(socket(Some(host)).is_err(), "{host}");
        }
    }

    #[test]
    fn names_cannot_lead_elsewhere() {
        for name in ["app", "app:1", "example.org:5000/a/b:1", &format!("a@sha256:{}", "0".repeat(64))] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a b", "a?x", "../info", "/a", "a\r\nb", "a%2f"] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
