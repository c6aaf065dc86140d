//! Owns the enclave's life from launch to exit code.
//!
//! ```text
//! Launching ─▶ Booting ──ready──▶ Serving ──stop──▶ Draining ──time──▶ Stopping ──time──▶ Ended
//!     │           │                  │                 └──stop──▶ Hurrying ◀──stop──┘        ▲
//!     │           ├──────────────────┴──── the workload exited ──▶ Finishing ──idle──▶ Parting
//!     │           └─ the enclave hung up ──▶ LastWords ───────────────────────────────▶ Ended
//!     └─ failed, stop; Booting also by time ──────────────────────────────────────────▶ Ended
//! ```
//! Only [`Supervisor`] holds a [`Phase`]; everyone else sends it an [`Event`].
//! The policy is [`Phase::after`], what each phase does on entry is
//! [`Supervisor::enter`]. Every task ends on one token and is waited for.

mod phase;
mod status;

use std::future::{Future, pending};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nitro_device::{Cid, RunningEnclave};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use phase::{Circumstances, Ending, Event, Origin, Phase};
pub(crate) use status::Status;

use crate::admin::{self, Room};
use crate::attestation::{self, Requests};
use crate::boot::plan::Plan;
use crate::boot::{self, Heartbeat, Started};
use crate::config::Config;
use crate::confine::{self, Confinement};
use crate::egress::{self, BoundTunnel, Egress};
use crate::enclave::console::Console;
use crate::enclave::control::{Control, Order};
use crate::enclave::foreign::Foreign;
use crate::enclave::pulse::Pulse;
use crate::enclave::session::Session;
use crate::enclave::workload_log::{self, WorkloadLog};
use crate::exit::Failure;
use crate::http::{self, Pages};
use crate::identity::Identity;
use crate::proxy::{self, Bound, Traffic};
use crate::signals::Signals;
use crate::tail::Tail;
use crate::timeline::Timeline;
use status::StatusBoard;

/// Events on their way; senders wait when it is full.
const EVENTS: usize = 64;
const FORWARDED_SIGNALS: usize = 16;
/// For tasks to end once they are told. Part of the drain's whole.
const TASKS_WITHIN: Duration = Duration::from_millis(500);
/// For a launch to notice that it is not wanted any more: faulting in a large
/// memory cannot be interrupted.
const LAUNCH_WITHIN: Duration = Duration::from_secs(10);

/// What the process has made before it had threads, and what was asked of it.
#[derive(Debug)]
pub(crate) struct Wiring {
    pub(crate) admin: Option<UnixListener>,
    /// TLS of the HTTP server, whose files cannot be read later.
    pub(crate) http_tls: Option<Arc<rustls::ServerConfig>>,
    pub(crate) confinement: Confinement,
    /// Print the enclave's identity on stdout once the workload is ready.
    pub(crate) print_identity: bool,
}

/// What is left when all is over.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ending: Ending,
    pub(crate) on_the_way: Circumstances,
    pub(crate) plan: Option<String>,
    pub(crate) cid: Option<Cid>,
    pub(crate) console: Console,
    /// The last lines of the workload's output.
    pub(crate) output: Tail,
}

/// The life of the enclave. Returns when nothing of it is left.
pub(crate) async fn run(config: Arc<Config>, timeline: Arc<Timeline>, wiring: Wiring) -> Outcome {
    match Supervisor::prepare(Arc::clone(&config), timeline, wiring).await {
        Ok(mut supervisor) => {
            supervisor.live().await;
            supervisor.end().await
        }
        Err(failure) => Outcome {
            ending: Ending::Failed(failure),
            on_the_way: Circumstances::default(),
            plan: None,
            cid: None,
            console: Console::default(),
            output: Tail::default(),
        },
    }
}

#[derive(Debug)]
struct Supervisor {
    config: Arc<Config>,
    timeline: Arc<Timeline>,
    phase: Phase,
    deadline: Option<Instant>,
    /// Once asked to stop: no phase lasts longer.
    last: Option<Instant>,
    on_the_way: Circumstances,
    board: StatusBoard,
    pulse: Pulse,
    events: mpsc::Receiver<Event>,
    launch: Option<JoinHandle<Result<Started, Failure>>>,
    plan: Arc<OnceLock<Plan>>,
    enclave: Option<RunningEnclave>,
    cid: Option<Cid>,
    hung_up: bool,
    orders: watch::Sender<Order>,
    identity: Arc<OnceLock<Identity>>,
    print_identity: bool,
    console: Console,
    output: Tail,
    /// Cancelled when the workload has ended.
    exited: CancellationToken,
    /// Cancelled when nothing of the workload's output is still to come.
    output_over: CancellationToken,
    session: Option<Session>,
    traffic: Traffic,
    egress: Egress,
    /// Ends accept loops.
    closing: CancellationToken,
    /// Ends every task.
    stop: CancellationToken,
    tasks: TaskTracker,
    waiting: Waiting,
}

/// What is handed to tasks when their phase comes.
#[derive(Debug)]
struct Waiting {
    events: mpsc::Sender<Event>,
    signals: Option<mpsc::Receiver<u8>>,
    requests: Option<Requests>,
    log_metrics: Option<workload_log::Metrics>,
    /// Of a foreign image, which has no agent.
    heartbeat: Option<Heartbeat>,
    listeners: Vec<Bound>,
    tunnels: Vec<BoundTunnel>,
}

impl Supervisor {
    /// Takes signals and addresses, starts the HTTP server and the launch.
    async fn prepare(
        config: Arc<Config>,
        timeline: Arc<Timeline>,
        wiring: Wiring,
    ) -> Result<Supervisor, Failure> {
        let signals = Signals::install()?;
        let listeners = proxy::bind(&config.ingress, config.limits.keep_alive.duration())?;
        let tunnels = egress::bind_tunnels(&config.tunnels)?;
        let http = http::bind(config.http.listen).await?;

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let mut registry = prometheus_client::registry::Registry::with_prefix("enclave_shim");
        let board = StatusBoard::register(&mut registry, Arc::clone(&timeline), &config);
        let traffic = Traffic::start(&config, &mut registry, stop.child_token())
            .map_err(|error| crate::no_threads(&error))?;
        let egress = Egress::new(&config, egress::Metrics::register(&mut registry), stop.child_token())?;
        let pulse = Pulse::register(&mut registry);
        let (attestation, requests) = attestation::queue(attestation::Metrics::register(&mut registry));
        let log_metrics = workload_log::Metrics::register(&mut registry);
        let (event_sender, events) = mpsc::channel(EVENTS);
        let (signal_sender, forwarded) = mpsc::channel(FORWARDED_SIGNALS);

        tasks.spawn(signals.pass_on(event_sender.clone(), signal_sender, stop.clone()));
        let pages = Pages {
            status: board.subscribe(),
            pulse: pulse.subscribe(),
            registry: Arc::new(registry),
            attestation,
            timeline: Arc::clone(&timeline),
            debug: config.debug,
        };
        tasks.spawn(http::serve(http, wiring.http_tls, pages, stop.clone()));
        let (console, identity) = (Console::default(), Arc::new(OnceLock::new()));
        if let Some(listener) = wiring.admin {
            let room = Room {
                status: board.subscribe(),
                identity: Arc::clone(&identity),
                timeline: Arc::clone(&timeline),
                console: console.clone(),
                debug: config.debug,
                slot: config.slots.first().copied(),
                confinement: wiring.confinement,
            };
            tasks.spawn(admin::serve(listener, room, stop.clone()));
        }
        let plan = Arc::new(OnceLock::new());
        let launch = start_launch(&config, &timeline, &plan, &stop);
        Ok(Supervisor {
            config,
            timeline,
            phase: Phase::Launching,
            deadline: None,
            last: None,
            on_the_way: Circumstances::default(),
            board,
            pulse,
            events,
            launch: Some(launch),
            plan,
            enclave: None,
            cid: None,
            hung_up: false,
            orders: watch::Sender::new(Order::Run),
            identity,
            print_identity: wiring.print_identity,
            console,
            output: Tail::default(),
            exited: CancellationToken::new(),
            output_over: CancellationToken::new(),
            session: None,
            traffic,
            egress,
            closing: stop.child_token(),
            stop,
            tasks,
            waiting: Waiting {
                events: event_sender,
                signals: Some(forwarded),
                requests: Some(requests),
                log_metrics: Some(log_metrics),
                heartbeat: None,
                listeners,
                tunnels,
            },
        })
    }

    async fn live(&mut self) {
        while !matches!(self.phase, Phase::Ended(_)) {
            let event = self.next_event().await;
            self.take(event);
        }
    }

    async fn next_event(&mut self) -> Event {
        let finishing = matches!(self.phase, Phase::Finishing(_));
        // A foreign image's workload was told nothing and goes on: its tunnels end with the enclave.
        let own_egress = (!self.on_the_way.foreign).then_some(&self.egress);
        tokio::select! {
            Some(event) = self.events.recv() => event,
            launched = present(self.launch.as_mut()) => {
                self.launch = None;
                self.adopt(launched)
            }
            () = hang_up(self.enclave.as_ref()), if !self.hung_up => {
                self.hung_up = true;
                Event::HungUp
            }
            () = all_said(&self.traffic, own_egress, &self.output_over), if finishing => Event::Idle,
            () = until(self.deadline) => Event::TimeOver,
        }
    }

    /// Takes over what the launch has made.
    fn adopt(&mut self, launched: Result<Result<Started, Failure>, JoinError>) -> Event {
        let started = match launched {
            Ok(Ok(mut started)) => {
                self.waiting.heartbeat = started.heartbeat.take();
                started
            }
            Ok(Err(failure)) => return Event::Failed(failure),
            Err(error) => return Event::Failed(Failure::bug(format!("the launch broke off: {error}"))),
        };
        let (slot_uid, cpus, memory) = (started.enclave.slot_uid(), started.cpus, started.memory);
        match started.enclave.watch(started.cid) {
            Ok(enclave) => {
                let cid = enclave.cid();
                self.identity.get_or_init(|| Identity::new(&self.config.eif, slot_uid, cid, cpus, memory));
                self.enclave = Some(enclave);
                self.cid = Some(cid);
                self.on_the_way.boot_timeout =
                    self.plan.get().map(|plan| plan.boot_timeout).unwrap_or_default();
                Event::Launched(cid)
            }
            Err(error) => Event::Failed(boot::BootError::from(error).into()),
        }
    }

    fn take(&mut self, event: Event) {
        self.on_the_way.note(&event);
        match &event {
            Event::Contact => self.timeline.reached("kernel up"),
            Event::Stop { .. } if self.last.is_none() => {
                self.last = Some(Instant::now() + self.config.drain.whole() - TASKS_WITHIN);
            }
            Event::Reached(phase) => {
                self.fetch_output();
                self.timeline.reached(match phase {
                    wire::Phase::AgentUp => "agent up",
                    wire::Phase::WorkloadStarted => "workload started",
                    wire::Phase::Ready => "workload ready",
                });
            }
            Event::Exited(status) => tracing::info!(?status, "the workload has ended"),
            _ => {}
        }
        let next = self.phase.clone().after(event);
        if next == self.phase {
            return;
        }
        self.phase = next;
        let boot_timeout = self.on_the_way.boot_timeout;
        let limit = self.phase.limit(&self.config, boot_timeout).map(|limit| Instant::now() + limit);
        self.deadline = limit.map(|limit| self.last.map_or(limit, |last| limit.min(last)));
        self.timeline.reached(self.phase.name());
        // Leaving is told before anything closes, readiness when the listeners listen.
        let opens = self.phase == Phase::Serving;
        if !opens {
            self.board.show(&self.phase);
        }
        tracing::info!(phase = self.phase.name(), after = ?self.timeline.elapsed(), "phase");
        match self.enter() {
            Ok(()) if opens => self.board.show(&self.phase),
            Ok(()) => {}
            Err(failure) => self.take(Event::Failed(failure)),
        }
    }

    /// What a phase does when it begins.
    fn enter(&mut self) -> Result<(), Failure> {
        match self.phase {
            Phase::Booting => {
                self.meet_agent()?;
                // The token was the last thing that may have needed a file.
                confine::seal(&self.config);
            }
            Phase::Serving => self.open_doors()?,
            Phase::Stopping => {
                self.closing.cancel();
                let until = Instant::now() + self.config.drain.grace.duration();
                self.orders.send_replace(Order::Stop { until });
            }
            Phase::Hurrying => {
                self.closing.cancel();
                self.orders.send_replace(Order::Hurry);
            }
            Phase::Finishing(_) => {
                self.closing.cancel();
                self.exited.cancel();
                self.fetch_output();
            }
            Phase::Parting(_) if self.on_the_way.foreign => {
                // Nobody in it can power it off: to close it is its end.
                self.enclave = None;
                self.take(Event::HungUp);
            }
            Phase::Parting(_) => {
                self.orders.send_replace(Order::Goodbye);
            }
            Phase::Launching | Phase::Draining | Phase::LastWords | Phase::Ended(_) => {}
        }
        Ok(())
    }

    /// The enclave runs: claim it, serve attestation, read the console.
    fn meet_agent(&mut self) -> Result<(), Failure> {
        let Some(cid) = self.cid else { return Err(Failure::bug("an enclave without a cid")) };
        if self.config.debug {
            let (events, stop) = (self.waiting.events.clone(), self.stop.clone());
            self.tasks.spawn(self.console.clone().follow(cid, events, stop));
        }
        for tunnel in self.waiting.tunnels.drain(..) {
            self.tasks.spawn(tunnel.serve(self.egress.clone(), self.traffic.carriers(), cid));
        }
        if let Some(heartbeat) = self.waiting.heartbeat.take() {
            let (events, stop) = (self.waiting.events.clone(), self.stop.clone());
            let foreign = Foreign { cid, orders: self.orders.subscribe(), events, stop };
            self.tasks.spawn(foreign.run(heartbeat));
            // No agent, no documents: who asks is told so at once.
            self.waiting.requests = None;
            self.on_the_way.foreign = true;
            self.output_over.cancel();
            return Ok(());
        }
        let session = Session::new(cid).map_err(|error| Failure::bug(format!("no random token: {error}")))?;
        if let Some(signals) = self.waiting.signals.take() {
            let (line, carrying) = self.egress.open(session.clone(), self.traffic.carriers());
            self.tasks.spawn(carrying);
            let control = Control {
                session: session.clone(),
                orders: self.orders.subscribe(),
                signals,
                events: self.waiting.events.clone(),
                egress: line,
                pulse: self.pulse.clone(),
                stop: self.stop.clone(),
            };
            self.tasks.spawn(control.run());
        }
        if let Some(requests) = self.waiting.requests.take() {
            self.tasks.spawn(requests.serve(session.clone(), self.stop.clone()));
        }
        self.session = Some(session);
        Ok(())
    }

    /// The agent has been heard: it may have output of the workload. Once only.
    fn fetch_output(&mut self) {
        let Some(metrics) = self.waiting.log_metrics.take() else { return };
        let over = self.output_over.clone().drop_guard();
        if let (Some(session), rate @ 1..) = (self.session.clone(), self.config.log.workload_lines) {
            let log =
                WorkloadLog { session, rate, tail: self.output.clone(), last: self.exited.clone(), metrics };
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                log.follow(stop).await;
                drop(over);
            });
        }
    }

    /// The workload is ready: take clients.
    fn open_doors(&mut self) -> Result<(), Failure> {
        let Some(cid) = self.cid else { return Err(Failure::bug("an enclave without a cid")) };
        let session = self.session.clone().map(Arc::new);
        for bound in self.waiting.listeners.drain(..) {
            self.traffic.open(bound, (cid, session.clone()), &self.tasks, self.closing.clone())?;
        }
        if let (true, Some(identity)) = (self.print_identity, self.identity.get()) {
            // A reader that has gone does not end the enclave.
            let _ = writeln!(std::io::stdout(), "{}", identity.to_json());
        }
        Ok(())
    }

    /// Closes the enclave, then waits for every task.
    async fn end(mut self) -> Outcome {
        // Closing the descriptor ends the enclave, if it runs still.
        self.enclave = None;
        self.stop.cancel();
        // Who was asked to stop ends in the time that was promised for it.
        let left = self.last.map(|last| last.saturating_duration_since(Instant::now()));
        let within = left.map_or(LAUNCH_WITHIN, |left| left.min(LAUNCH_WITHIN));
        if let Some(launch) = self.launch.take()
            && timeout(within, launch).await.is_err()
        {
            tracing::warn!("the launch did not stop in time; the kernel closes it with this process");
        }
        self.tasks.close();
        let all = async {
            self.tasks.wait().await;
            self.traffic.idle().await;
            self.egress.idle().await;
        };
        if timeout(TASKS_WITHIN, all).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "tasks did not end in time");
        }
        let ending = match self.phase {
            Phase::Ended(ending) => ending,
            phase => Ending::Failed(Failure::bug(format!("ended while {}", phase.name()))),
        };
        Outcome {
            ending,
            on_the_way: self.on_the_way,
            plan: self.plan.get().map(Plan::to_string),
            cid: self.cid,
            console: self.console,
            output: self.output,
        }
    }
}

/// The launch blocks, so it has a thread of its own; one for all of it, because
/// the driver wants one caller.
fn start_launch(
    config: &Arc<Config>,
    timeline: &Arc<Timeline>,
    planned: &Arc<OnceLock<Plan>>,
    stop: &CancellationToken,
) -> JoinHandle<Result<Started, Failure>> {
    let (config, timeline) = (Arc::clone(config), Arc::clone(timeline));
    let (planned, stop) = (Arc::clone(planned), stop.clone());
    tokio::task::spawn_blocking(move || {
        let (image, plan) = boot::prepare(&config, &timeline)?;
        let plan = planned.get_or_init(|| plan);
        tracing::info!(%plan, "planned");
        Ok(boot::launch(&config, &image, plan, &timeline, &stop)?)
    })
}

async fn all_said(traffic: &Traffic, egress: Option<&Egress>, output_over: &CancellationToken) {
    traffic.idle().await;
    if let Some(egress) = egress {
        egress.idle().await;
    }
    output_over.cancelled().await;
}

async fn present<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn hang_up(enclave: Option<&RunningEnclave>) {
    match enclave {
        Some(enclave) => enclave.hung_up().await,
        None => pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
