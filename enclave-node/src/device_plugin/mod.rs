//! Offers a node's enclaves and enclave CPUs to kubelet (device plugin API v1beta1).
//!
//! ```text
//! sysfs, /dev ─inotify─▶ NodeWatch ─▶ Offer ─┬─▶ Plugin "enclaves" ─┐
//!                                            └─▶ Plugin "CPUs" ─────┼─▶ kubelet
//! kubelet.sock ─inotify─▶ DirectoryWatch ───── starts ──────────────┘
//! ```
//! [`offer`] says what is counted, [`choice`] what a container gets, [`plugin`]
//! how a resource lives through kubelet's restarts. Read [`plugin`] first.

mod api;
mod choice;
mod http;
mod inotify;
mod metrics;
mod node;
mod offer;
mod plugin;
mod registration;
mod service;
mod settings;
mod socket;
mod watch;

use std::env;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::http::{BindError, Pages};
use self::metrics::Metrics;
use self::node::Roots;
use self::offer::Kind;
use self::plugin::Plugin;
pub(crate) use self::settings::Args;
use self::settings::ResourceName;
use self::watch::{DirectoryWatch, NodeWatch, WatchError};
use crate::exit::{Blame, Failure};

/// Why the plugin cannot do its work.
#[derive(Debug, thiserror::Error)]
enum PluginError {
    #[error("cannot start")]
    Start(#[source] io::Error),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("a task failed: report this with the lines above it")]
    Task(#[from] tokio::task::JoinError),
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let environment = |name: &str| env::var(name).ok();
    let resources = args.resources(environment).map_err(|error| Failure::new(Blame::Usage, error))?;
    let max = args.max_enclaves(environment);
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(args.log_level)
        .with_target(false)
        .with_ansi(false)
        .compact()
        .init();
    let names: Vec<&str> = resources.iter().map(|(_, name)| name.as_str()).collect();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?names, max_enclaves = max, ?args, "starting");
    // One thread: a handful of calls a minute, within some MiB of memory.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(PluginError::Start)
        .and_then(|runtime| runtime.block_on(serve(args, resources, max)))
        .map_err(|error| Failure::new(Blame::Node, error))
}

async fn serve(args: &Args, resources: Vec<(Kind, ResourceName)>, max: u32) -> Result<(), PluginError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(PluginError::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(PluginError::Start)?;
    let metrics = Metrics::default();
    let roots = Roots { sysfs: args.sysfs.clone(), dev: args.dev.clone() };
    let kinds: Vec<Kind> = resources.iter().map(|(kind, _)| *kind).collect();
    let node = NodeWatch::new(roots, max, Duration::from_secs(args.recheck), &kinds, metrics.clone());
    let directory = DirectoryWatch::new(&args.plugin_dir, metrics.clone())?;
    let plugins = plugins(args, resources, &node, &directory, &metrics);

    let stop = CancellationToken::new();
    let mut tasks: JoinSet<Result<(), PluginError>> = JoinSet::new();
    if let Some(listen) = args.metrics_listen {
        let watchers = plugins.iter().map(|plugin| plugin.watchers.subscribe()).collect();
        let pages = Pages { registry: Arc::new(metrics.registry()), watchers };
        let http = http::serve(http::bind(listen).await?, pages, stop.clone());
        tasks.spawn(async {
            http.await;
            Ok(())
        });
    }
    for plugin in plugins {
        let life = plugin.run(stop.clone());
        tasks.spawn(async {
            life.await;
            Ok(())
        });
    }
    let (node, directory) = (node.run(stop.clone()), directory.run(stop.clone()));
    tasks.spawn(async { Ok(node.await?) });
    tasks.spawn(async { Ok(directory.await?) });

    let mut outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(ended) = tasks.join_next() => ended.unwrap_or_else(|error| Err(error.into())),
    };
    tracing::info!("stopping");
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(ended.unwrap_or_else(|error| Err(error.into())));
    }
    outcome
}

fn plugins(
    args: &Args,
    resources: Vec<(Kind, ResourceName)>,
    node: &NodeWatch,
    directory: &DirectoryWatch,
    metrics: &Metrics,
) -> Vec<Plugin> {
    let device: Arc<str> = args.device.as_str().into();
    let plugin = |((kind, resource), (_, offers))| Plugin {
        kind,
        resource,
        plugins: args.plugin_dir.clone(),
        device: Arc::clone(&device),
        offers,
        directory: directory.seen(),
        watchers: channel::channel(0).0,
        metrics: metrics.clone(),
    };
    resources.into_iter().zip(node.offers()).map(plugin).collect()
}
