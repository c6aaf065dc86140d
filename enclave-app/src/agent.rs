//! The task that owns the enclave's [`Life`], and everything that it starts.
//!
//! ```text
//! control connections ─┐
//! launcher, readiness ─┼─ events ─▶ Life ─ actions ─▶ signals, drain
//! SIGCHLD, SIGTERM ────┤              └─ status ──▶ control connections
//! deadline ────────────┘
//! ```

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay::Carriers;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_vsock::{VsockListener, VsockStream};
use wire::Variable;
use wire::port;
use wire::settings::{LogAccess, NsmAccess, ROOTFS_PATH, SETTINGS_PATH, Settings};

use crate::attestation;
use crate::attested_tls::AttestedTls;
use crate::boot::Booted;
use crate::children;
use crate::claim::Claim;
use crate::control::Control;
use crate::egress::{self, Dials, Egress};
use crate::environment::Environment;
use crate::heartbeat;
use crate::ingress::Ingress;
use crate::launch::{self, Launcher};
use crate::life::{Action, CLAIM_WINDOW, Event, Life};
use crate::listener::{self, Places};
use crate::local::Local;
use crate::log::{chain, log};
use crate::logs::{self, Logs};
use crate::nsm::Notary;
use crate::readiness::Rule;

/// Between SIGTERM and SIGKILL when it is PID 1 that is asked to end.
const OWN_GRACE: Duration = Duration::from_secs(10);
/// Control, attestation and log connections at once, each; strangers among them are gone after 2 s.
const MAX_CONNECTIONS: usize = 256;
/// Of the runtime, and of the carriers beside it. More threads than this do not make a
/// relay faster, and the CPUs are the workload's.
const MAX_THREADS: usize = 4;

/// The runtime of the agent.
pub(crate) fn runtime() -> io::Result<Runtime> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread().worker_threads(cpus.min(MAX_THREADS)).enable_all().build()
}

/// Lives the enclave's life, from boot to power-off.
pub(crate) async fn run(started: Instant, booted: Booted) {
    match Agent::new(started) {
        Ok(agent) => agent.live(booted).await,
        // Without signals or the control port nobody can be told anything.
        Err(error) => log(&format!("cannot start: {error}")),
    }
}

struct Agent {
    started: Instant,
    claim: Arc<Claim>,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    status: watch::Sender<crate::life::Status>,
    life: Life,
    /// What there is to launch, until it is.
    waiting: Option<Waiting>,
    workload: Option<Pid>,
    ingress: Option<Arc<Ingress>>,
    dials: Arc<Dials>,
    egress: Option<Arc<Egress>>,
    signals: Signals,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Waiting {
    settings: Settings,
    logs: Arc<Logs>,
    notary: Notary,
    /// Names of the pod's variables that have not come yet.
    wanted: Option<Vec<String>>,
}

struct Signals {
    child: SignalStream,
    terminate: SignalStream,
    interrupt: SignalStream,
}

impl Agent {
    fn new(started: Instant) -> io::Result<Agent> {
        let (events, inbox) = mpsc::channel(64);
        let life = Life::new(started.elapsed());
        Ok(Agent {
            started,
            claim: Arc::default(),
            events,
            inbox,
            status: watch::Sender::new(life.status().clone()),
            life,
            waiting: None,
            workload: None,
            ingress: None,
            dials: Arc::default(),
            egress: None,
            signals: Signals {
                child: signal(SignalKind::child())?,
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            },
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Ports before anything that may fail, so that it can be told.
    async fn live(mut self, booted: Booted) {
        let Booted { machine, nsm } = booted;
        let notary = nsm
            .and_then(|nsm| Notary::start(nsm).map_err(|error| error.to_string()))
            .unwrap_or_else(|cause| Notary::absent(&cause));
        let settings = machine.and_then(|()| read_settings());
        let forwards = settings.as_ref().is_ok_and(|settings| settings.logs == LogAccess::Forward);
        let wanted = settings.as_ref().map_or_else(|_| vec![], |settings| settings.pod_env.clone());
        let logs = Arc::new(Logs::new(Arc::clone(&self.claim), forwards));
        if let Err(error) = self.open_ports(&notary, &logs, wanted.clone()) {
            log(&format!("cannot listen on vsock: {error}"));
        }
        self.look_for_other_launchers(!wanted.is_empty());
        match settings {
            Err(cause) => self.take(Event::Unlaunchable { cause }),
            Ok(settings) => {
                let nothing_wanted = wanted.is_empty();
                self.waiting = Some(Waiting { settings, logs, notary, wanted: Some(wanted) });
                if nothing_wanted {
                    self.take(Event::Measured { environment: Environment::default() });
                }
            }
        }
        while !self.life.is_over() {
            let event = self.next_event().await;
            self.take(event);
        }
        self.stop.cancel();
        self.egress = None;
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn next_event(&mut self) -> Event {
        loop {
            let deadline =
                self.life.deadline().map(|after| tokio::time::Instant::from_std(self.started + after));
            tokio::select! {
                biased;
                _ = self.signals.child.recv() => {
                    if let Some(status) = children::reap(self.workload) {
                        self.workload = None;
                        return Event::Exited(status);
                    }
                }
                _ = self.signals.terminate.recv() => return Event::Stop { grace: OWN_GRACE },
                _ = self.signals.interrupt.recv() => return Event::Stop { grace: OWN_GRACE },
                // Never `None`: `self.events` is a sender too.
                Some(event) = self.inbox.recv() => return event,
                () = until(deadline) => return Event::DeadlinePassed,
            }
        }
    }

    fn take(&mut self, event: Event) {
        let event = match event {
            Event::Environment { variables } => return self.measure(variables),
            Event::Measured { environment } => match self.waiting.take() {
                Some(waiting) => match self.launch(&waiting, &environment) {
                    Ok(()) => return,
                    Err(cause) => Event::Unlaunchable { cause },
                },
                None => return,
            },
            event => event,
        };
        match &event {
            Event::LaunchFailed { cause } | Event::Unlaunchable { cause } => log(cause),
            // A launcher that failed has said more than its exit status does.
            Event::Exited(status) if self.life.status().failure.is_none() => {
                log(&format!("the workload ended: {status:?}"));
            }
            _ => {}
        }
        for action in self.life.on(self.started.elapsed(), event) {
            self.perform(action);
        }
        self.status.send_if_modified(|status| {
            let changed = status != self.life.status();
            status.clone_from(self.life.status());
            changed
        });
    }

    fn perform(&self, action: Action) {
        match action {
            Action::Terminate => self.signal_workload(Signal::SIGTERM),
            Action::Kill => self.signal_workload(Signal::SIGKILL),
            Action::Forward(number) => match Signal::try_from(i32::from(number)) {
                Ok(signal) => self.signal_workload(signal),
                Err(_) => log(&format!("signal {number} cannot be passed on")),
            },
            Action::KillLeftovers => {
                // PID 1 itself is never meant by this; ESRCH: nobody is left.
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
            }
            Action::Drain => {
                let (ingress, egress) = (self.ingress.clone(), self.egress.clone());
                self.report(async move {
                    if let Some(ingress) = ingress {
                        ingress.drain().await;
                    }
                    if let Some(egress) = egress {
                        egress.drain().await;
                    }
                    Event::Drained
                });
            }
        }
    }

    /// To the whole process group: a shell as entrypoint does not pass signals on.
    fn signal_workload(&self, signal: Signal) {
        if let Some(workload) = self.workload
            && let Err(error) = kill(Pid::from_raw(-workload.as_raw()), signal)
        {
            log(&format!("cannot send {signal} to the workload: {error}"));
        }
    }

    /// The first answer counts: what is measured is measured.
    fn measure(&mut self, variables: Vec<Variable>) {
        let Some(waiting) = &mut self.waiting else { return };
        let Some(wanted) = waiting.wanted.take() else { return };
        let notary = waiting.notary.clone();
        self.report(async move {
            let measured = async {
                let environment = Environment::accept(&wanted, variables)?;
                environment.measure(&notary).await.map(|()| environment)
            };
            match measured.await {
                Ok(environment) => Event::Measured { environment },
                Err(error) => Event::Unlaunchable { cause: chain(&error) },
            }
        });
    }

    fn launch(&mut self, waiting: &Waiting, environment: &Environment) -> Result<(), String> {
        let Waiting { settings, logs, notary, .. } = waiting;
        let rule = Rule::new(settings, Path::new(launch::NOTIFY_PATH))
            .map_err(|error| format!("cannot open {}: {error}", launch::NOTIFY_PATH))?;
        let tls = self.serve_tls(settings, notary)?;
        let carriers = Arc::new(
            Carriers::start(MAX_THREADS)
                .map_err(|error| format!("cannot start threads for connections: {error}"))?,
        );
        let ingress = Ingress::open(settings, &self.claim, tls.as_ref(), Arc::clone(&carriers))
            .map_err(|error| chain(&error))?;
        self.ingress = Some(Arc::new(ingress));
        if settings.nsm == NsmAccess::Socket {
            let local = Local::bind(Path::new(launch::LOCAL_PATH))
                .map_err(|error| format!("cannot open {}: {error}", launch::LOCAL_PATH))?;
            self.tasks.spawn(local.serve(notary.clone(), self.stop.clone()));
        }
        if !settings.egress.is_empty() {
            self.open_egress(&settings.egress, carriers)?;
        }
        let outputs = match settings.logs {
            LogAccess::Deny => None,
            LogAccess::Forward => {
                let (outputs, inputs) =
                    logs::pipes().map_err(|error| format!("cannot make the workload's output: {error}"))?;
                let logs = Arc::clone(logs);
                self.beside(async move { logs.pump(inputs).await });
                Some(outputs)
            }
        };
        let Launcher { pid, report } =
            launch::start(Path::new(SETTINGS_PATH), Path::new(ROOTFS_PATH), outputs, environment)
                .map_err(|error| format!("cannot start the launcher: {error}"))?;
        self.workload = Some(pid);
        let events = self.events.clone();
        self.report(async move {
            match report.read().await {
                Err(cause) => Event::LaunchFailed { cause },
                Ok(()) => {
                    let _ = events.send(Event::Launched).await;
                    rule.met(pid).await;
                    if let Some(tls) = tls {
                        tls.serves().await;
                    }
                    Event::Ready
                }
            }
        });
        Ok(())
    }

    /// Before the workload runs: its first connection finds everything open.
    fn open_egress(&mut self, rules: &[String], carriers: Arc<Carriers>) -> Result<(), String> {
        let egress = Egress::open(rules, Arc::clone(&self.dials), carriers);
        self.egress = Some(Arc::new(egress.map_err(|error| chain(&error))?));
        let (claim, dials) = (Arc::clone(&self.claim), Arc::clone(&self.dials));
        let opened = self.open_port(port::STREAM, "stream", move |stream| {
            let (claim, dials) = (Arc::clone(&claim), Arc::clone(&dials));
            async move { drop(egress::serve(&claim, &dials, stream).await) }
        });
        opened.map_err(|error| format!("cannot listen on vsock port {}: {error}", port::STREAM))
    }

    /// Makes the key and its certificates, where the settings end TLS here.
    fn serve_tls(&self, settings: &Settings, notary: &Notary) -> Result<Option<Arc<AttestedTls>>, String> {
        let tls = AttestedTls::new(&settings.attested_tls, notary.clone()).map_err(|error| chain(&error))?;
        if let (Some(_), Some(cause)) = (&tls, notary.absence()) {
            return Err(format!("cannot attest the ports of attested_tls: there is no NSM: {cause}"));
        }
        let tls = tls.map(Arc::new);
        if let Some(tls) = tls.clone() {
            self.beside(async move { tls.renew().await });
        }
        Ok(tls)
    }

    /// Runs `work` beside the agent and takes its event, unless the enclave ends first.
    fn report(&self, work: impl Future<Output = Event> + Send + 'static) {
        let (events, stop) = (self.events.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                event = work => drop(events.send(event).await),
                () = stop.cancelled() => {}
            }
        });
    }

    /// Another launcher has no variables of a pod to give.
    fn look_for_other_launchers(&self, environment_wanted: bool) {
        let (claim, events) = (Arc::clone(&self.claim), self.events.clone());
        let at = tokio::time::Instant::from_std(self.started + CLAIM_WINDOW);
        self.beside(async move {
            tokio::time::sleep_until(at).await;
            if claim.is_made() {
                return;
            }
            if environment_wanted {
                let _ = events.send(Event::Environment { variables: vec![] }).await;
            }
            if let Err(error) = heartbeat::send().await {
                log(&format!("no other launcher waits for a heartbeat: {error}"));
            }
        });
    }

    /// The control port last: who has been welcomed there finds all others open.
    fn open_ports(&self, notary: &Notary, logs: &Arc<Logs>, wanted: Vec<String>) -> io::Result<()> {
        let logs = Arc::clone(logs);
        self.open_port(port::LOGS, "logs", move |stream| {
            let logs = Arc::clone(&logs);
            async move { drop(logs.serve(stream).await) }
        })?;
        let (claim, notary) = (Arc::clone(&self.claim), notary.clone());
        self.open_port(port::ATTESTATION, "attestation", move |stream| {
            let (claim, notary) = (Arc::clone(&claim), notary.clone());
            async move { drop(attestation::serve(&claim, &notary, stream).await) }
        })?;
        let control = Arc::new(Control::new(
            Arc::clone(&self.claim),
            self.status.subscribe(),
            self.events.clone(),
            Arc::clone(&self.dials),
            wanted,
        ));
        self.open_port(port::CONTROL, "control", move |stream| {
            let control = Arc::clone(&control);
            async move { drop(control.serve(stream).await) }
        })
    }

    /// How a connection ended is the peer's affair; strangers must not fill the console.
    fn open_port<F: Future<Output = ()> + Send + 'static>(
        &self,
        port: u32,
        name: &'static str,
        serve: impl Fn(VsockStream) -> F + Send + Sync + 'static,
    ) -> io::Result<()> {
        let listener = VsockListener::from(listener::bind(port)?);
        let places = Arc::new(Places::new(MAX_CONNECTIONS));
        let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            listener::listen(listener, name, places, stop.clone(), |stream, place| {
                let (served, stop) = (serve(stream), stop.clone());
                tasks.spawn(async move {
                    stop.run_until_cancelled(served).await;
                    drop(place);
                });
            })
            .await;
        });
        Ok(())
    }

    fn beside(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled_owned(work).await });
    }
}

fn read_settings() -> Result<Settings, String> {
    let bytes =
        std::fs::read(SETTINGS_PATH).map_err(|error| format!("cannot read {SETTINGS_PATH}: {error}"))?;
    Settings::from_json(&bytes).map_err(|error| format!("{SETTINGS_PATH}: {}", chain(&error)))
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
