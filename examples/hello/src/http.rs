//! The HTTP side.
//!
//! ```text
//! GET  /            a page           POST /echo        the body, streamed back
//! GET  /env         text             POST /sha256      its digest, in hexadecimal
//! GET  /whoami      JSON             POST /exit/CODE   the process exits
//! GET  /bytes/N     N known bytes    POST /abort       the process dies of SIGSEGV
//! GET  /slow/MS     after MS ms      GET  /probe       JSON: what it may do
//! GET  /last        what port 8082 counted last
//! any  /agent/PATH  the agent's answer to the same request at /PATH, see [`agent`]
//! ```

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::signal::{Signal, raise};
use nix::unistd::{getegid, geteuid, getgroups};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{agent, count, probe};

const PAGE: &str = "<!doctype html><title>hello</title><h1>Hello from an enclave</h1>\n";
/// `/bytes` repeats this many values: a prime, so that no buffer size hides a shift.
const PERIOD: u64 = 251;
/// Bytes of one frame of `/bytes`.
const PIECE: u64 = 64 * 1024;

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// One connection; after `stop` it ends with the request in flight.
pub(crate) async fn serve(stream: TcpStream, stop: CancellationToken) {
    // Fails only on a socket that is gone already.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        eprintln!("hello: {error}");
    }
}

async fn answer(request: Request<Incoming>) -> Answer {
    let path = request.uri().path().trim_matches('/').to_owned();
    let (name, argument) = path.split_once('/').unwrap_or((&path, ""));
    match (request.method(), name, argument) {
        (&Method::GET, "", "") => typed("text/html; charset=utf-8", PAGE),
        (&Method::GET, "env", "") => typed("text/plain; charset=utf-8", environment()),
        (&Method::GET, "whoami", "") => json(who()),
        (&Method::GET, "probe", "") => json(probe::all()),
        (&Method::GET, "last", "") => typed("text/plain; charset=utf-8", count::last()),
        (&Method::GET, "bytes", count) => with_number(count, |left| {
            Response::new(Pattern { sent: 0, left }.map_err(|never| match never {}).boxed())
        }),
        (&Method::GET, "slow", ms) => match ms.parse() {
            Ok(ms) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                typed("text/plain", "done\n")
            }
            Err(_) => status(StatusCode::BAD_REQUEST),
        },
        (&Method::POST, "echo", "") => Response::new(request.into_body().boxed()),
        (&Method::POST, "sha256", "") => sha256(request.into_body()).await,
        (&Method::POST, "exit", code) => {
            with_number(code, |code| std::process::exit(i32::try_from(code).unwrap_or(i32::MAX)))
        }
        // The standard library's handler takes the first for a stray one and
        // restores the default action: the second ends the process.
        (&Method::POST, "abort", "") => match raise(Signal::SIGSEGV).and_then(|()| raise(Signal::SIGSEGV)) {
            Ok(()) | Err(_) => status(StatusCode::INTERNAL_SERVER_ERROR),
        },
        (_, "agent", _) => ask_agent(request).await,
        _ => status(StatusCode::NOT_FOUND),
    }
}

/// Anybody may ask here: this is an instrument. A workload that lets clients
/// choose what it has signed vouches for them (docs/attestation.md).
async fn ask_agent(request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    let path = target.trim_start_matches("/agent").to_owned();
    let Ok(body) = body.collect().await else { return status(StatusCode::BAD_REQUEST) };
    match agent::ask(head.method, &path, body.to_bytes()).await {
        Ok((code, body)) => {
            let mut answer = typed("application/json", body);
            *answer.status_mut() = code;
            answer
        }
        Err(error) => {
            let mut answer = typed("text/plain", format!("{error:#}\n"));
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
            answer
        }
    }
}

async fn sha256(mut body: Incoming) -> Answer {
    let mut context = digest::Context::new(&digest::SHA256);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frame.data_ref().into_iter().for_each(|data| context.update(data)),
            Err(_) => return status(StatusCode::BAD_REQUEST),
        }
    }
    typed("text/plain", hex::encode(context.finish()))
}

/// `NAME=value` lines.
fn environment() -> String {
    let variables = std::env::vars_os();
    variables.map(|(name, value)| format!("{}={}\n", name.display(), value.display())).collect()
}

fn who() -> serde_json::Value {
    let groups = getgroups().map(|groups| groups.iter().map(|gid| gid.as_raw()).collect::<Vec<_>>());
    json!({
        "uid": geteuid().as_raw(),
        "gid": getegid().as_raw(),
        "groups": groups.unwrap_or_default(),
        "cwd": std::env::current_dir().unwrap_or_default(),
        "pid": std::process::id(),
        "args": std::env::args().collect::<Vec<_>>(),
    })
}

fn with_number(text: &str, answer: impl FnOnce(u64) -> Answer) -> Answer {
    text.parse().map_or_else(|_| status(StatusCode::BAD_REQUEST), answer)
}

fn json(value: serde_json::Value) -> Answer {
    typed("application/json", value.to_string())
}

fn typed(kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(whole(text.into()));
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    answer
}

fn status(code: StatusCode) -> Answer {
    let mut answer = Response::new(whole(Bytes::from(format!("{code}\n"))));
    *answer.status_mut() = code;
    answer
}

fn whole(bytes: Bytes) -> BoxBody<Bytes, hyper::Error> {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// Bytes 0, 1, … 250, 0, 1 …
struct Pattern {
    sent: u64,
    left: u64,
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let count = self.left.min(PIECE);
        let piece: Vec<u8> = (self.sent..self.sent + count).map(|at| (at % PERIOD) as u8).collect();
        self.sent += count;
        self.left -= count;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_pattern_goes_on_over_its_frames() {
        let count = 2 * PIECE + 5;
        let bytes = Pattern { sent: 0, left: count }.collect().await.unwrap().to_bytes();
        assert_eq!(bytes.len() as u64, count);
        assert!(bytes.iter().zip(0..).all(|(byte, at)| u64::from(*byte) == at % PERIOD));
    }
}
