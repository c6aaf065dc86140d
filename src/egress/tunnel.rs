//! Fixed tunnels: vsock ports of the instance, each of which leads to one target.
//!
//! ```text
//! enclave ─vsock─▶ port of CID 3 ─▶ own CID? ─▶ admission ─▶ connect, by policy ─▶ relay ─▶ target
//!                                     │ stranger   │ full        │ denied, failed
//!                                     └────────────┴─────────────┴──▶ closed, counted why
//! ```
//! For images without our agent, which know no other way out. These ports
//! belong to the whole node and everybody on it can dial them; the caller's CID
//! is the hypervisor's word, and only the own enclave's is served. The far end
//! is a program that closes as it likes: its end of stream is passed on as one.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use egress::{Policy, Target};
use nitro_device::Cid;
use nix::errno::Errno;
use relay::{Carriers, Vsock};
use tokio::time::{Instant, sleep};
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};
use tracing::Instrument;

use super::{Egress, Outcome};
use crate::config::Tunnel;
use crate::exit::{Blame, Exit};

const BACK_OFF: Duration = Duration::from_millis(100);
/// A stranger may dial as often as it likes; one line tells of it.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Numbers the tunnels' connections in logs.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Why a tunnel's port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on vsock port {port} of this instance for the tunnel to {to}")]
pub(crate) struct UnboundTunnel {
    port: u32,
    to: Target,
    source: io::Error,
}

impl UnboundTunnel {
    fn errno(&self) -> Option<Errno> {
        self.source.raw_os_error().map(Errno::from_raw)
    }
}

impl Blame for UnboundTunnel {
    fn exit(&self) -> Exit {
        match self.errno() {
            Some(Errno::EADDRINUSE | Errno::EMFILE | Errno::ENFILE) => Exit::Resources,
            Some(Errno::EACCES) => Exit::Usage,
            _ => Exit::Unavailable,
        }
    }

    fn fix(&self) -> String {
        match self.errno() {
            Some(Errno::EADDRINUSE) => {
                "give this tunnel another port under tunnels (all pods of a node share \
                                        its vsock ports), or end the program that has this one"
                    .into()
            }
            Some(Errno::EACCES) => "choose a port above 1023 for it under tunnels".into(),
            Some(Errno::EMFILE | Errno::ENFILE) => "raise the pod's limit on open files".into(),
            _ => "allow AF_VSOCK in the pod's seccomp profile; tunnels work on an instance with enclaves \
                  enabled only"
                .into(),
        }
    }
}

/// A tunnel whose port is taken. Callers wait until it is served.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: VsockListener,
    tunnel: Tunnel,
}

/// Takes the ports, so that a taken one is known before the launch.
pub(crate) fn bind(tunnels: &[Tunnel]) -> Result<Vec<Bound>, UnboundTunnel> {
    let one = |tunnel: &Tunnel| {
        let listener = VsockListener::bind(VsockAddr::new(Cid::PARENT, tunnel.port))
            .map_err(|source| UnboundTunnel { port: tunnel.port, to: tunnel.to.clone(), source })?;
        tracing::info!(tunnel = tunnel.port, to = %tunnel.to, "tunnel bound");
        Ok(Bound { listener, tunnel: tunnel.clone() })
    };
    tunnels.iter().map(one).collect()
}

impl Bound {
    /// Serves the enclave `cid`, on `carriers`, for as long as `egress` lasts.
    pub(crate) async fn serve(self, egress: Egress, carriers: Arc<Carriers>, cid: Cid) {
        let Bound { listener, tunnel } = self;
        let policy = tunnel.policy(&egress.policy);
        let stop = egress.abort.clone();
        let mut strangers = Strangers::default();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((caller, peer)) if peer.cid() == cid.get() => {
                    egress.take_tunnelled(caller, &tunnel, cid, (policy.clone(), &carriers));
                }
                Ok((_, peer)) => {
                    egress.metrics.ended(Outcome::Stranger);
                    if strangers.are_news() {
                        tracing::warn!(
                            cid = peer.cid(),
                            tunnel = tunnel.port,
                            "a stranger on a tunnel is closed"
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, tunnel = tunnel.port, "cannot accept a tunnel's connection");
                    let _ = stop.run_until_cancelled(sleep(BACK_OFF)).await;
                }
            }
        }
    }
}

/// When one was told of last.
#[derive(Debug, Default)]
struct Strangers(Option<Instant>);

impl Strangers {
    fn are_news(&mut self) -> bool {
        let news = self.0.is_none_or(|at| at.elapsed() >= TELL_AGAIN_AFTER);
        if news {
            self.0 = Some(Instant::now());
        }
        news
    }
}

impl Egress {
    fn take_tunnelled(
        &self,
        caller: VsockStream,
        tunnel: &Tunnel,
        cid: Cid,
        (policy, carriers): (Policy, &Carriers),
    ) {
        let conn = NEXT.fetch_add(1, Ordering::Relaxed);
        let span = tracing::debug_span!("tunnel", conn, %cid, port = tunnel.port, to = %tunnel.to);
        let (egress, to) = (self.clone(), tunnel.to.clone());
        // From here on only its carrier watches it.
        let caller = OwnedFd::from(caller);
        let (carrier, seat) = carriers.place();
        let carry = async move {
            let carried = pin!(egress.carry_tunnelled(caller, &to, &policy));
            let outcome = egress.abort.run_until_cancelled(carried).await.unwrap_or(Outcome::Aborted);
            egress.metrics.ended(outcome);
            drop(seat);
        };
        self.connections.spawn_on(carry.instrument(span), &carrier);
    }

    async fn carry_tunnelled(&self, caller: OwnedFd, to: &Target, policy: &Policy) -> Outcome {
        let _place = match self.admit(to) {
            Ok(place) => place,
            Err(full) => return Outcome::Undialled(full),
        };
        match self.reach(to, policy).await {
            Ok(server) => match Vsock::new(caller) {
                Ok(caller) => self.relay(server, caller, Vec::new(), None).await,
                Err(error) => {
                    tracing::warn!(%error, "a tunnel's connection cannot be watched");
                    Outcome::EnclaveFailed
                }
            },
            Err(reason) => Outcome::Undialled(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Failure;

    #[test]
    fn every_reason_that_a_port_cannot_be_had_has_its_code_and_fix() {
        for (errno, exit, fix) in [
            (Errno::EADDRINUSE, Exit::Resources, "another port"),
            (Errno::EACCES, Exit::Usage, "above 1023"),
            (Errno::EMFILE, Exit::Resources, "open files"),
            (Errno::EAFNOSUPPORT, Exit::Unavailable, "seccomp"),
            (Errno::EPERM, Exit::Unavailable, "seccomp"),
            (Errno::EADDRNOTAVAIL, Exit::Unavailable, "instance with enclaves"),
        ] {
            let source = io::Error::from(errno);
            let failure =
                Failure::from(UnboundTunnel { port: 8000, to: "a.com:443".parse().unwrap(), source });
            assert_eq!(failure.exit, exit, "{errno}");
            assert!(failure.explanation.cause.contains("port 8000"), "{failure:?}");
            assert!(failure.explanation.fix.contains(fix), "{failure:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_strangers_is_told_once_in_ten_seconds() {
        let mut strangers = Strangers::default();
        assert!(strangers.are_news());
        assert!((0..1000).all(|_| !strangers.are_news()));
        tokio::time::advance(TELL_AGAIN_AFTER).await;
        assert!(strangers.are_news());
    }
}
