//! The log on stderr, as text or as one JSON object a line.

use tracing::level_filters::LevelFilter;

use crate::config::{Log, LogFormat, LogLevel};

/// What was built: the release, or what the builder named with `ENCLAVE_SHIM_BUILD`.
pub(crate) const BUILD: &str = match option_env!("ENCLAVE_SHIM_BUILD") {
    Some(build) => build,
    None => env!("CARGO_PKG_VERSION"),
};

/// Starts the log. A second call changes nothing.
pub(crate) fn start(log: &Log) {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(filter(log.level))
        .with_target(false)
        .with_ansi(false);
    // An error means that a log runs already.
    let _ = match log.format {
        LogFormat::Text => builder.compact().try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
