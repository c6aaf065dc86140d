//! The log on stderr, as text or as one JSON object a line.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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
        .with_max_level(LevelFilter::TRACE)
        .with_target(false)
        .with_ansi(false);
    // An error means that a log runs already.
    let _ = match log.format {
        LogFormat::Text => builder.compact().finish().with(filter(log.level)).try_init(),
        LogFormat::Json => builder.json().finish().with(filter(log.level)).try_init(),
    };
}

/// What a resolver makes of a stray datagram is for who looks for it: below debug the
/// shim tells what came of the question.
fn filter(level: LogLevel) -> Targets {
    let level = max_level(level);
    let of_resolver = if level < LevelFilter::DEBUG { LevelFilter::OFF } else { level };
    Targets::new()
        .with_default(level)
        .with_target("hickory_net", of_resolver)
        .with_target("hickory_proto", of_resolver)
        .with_target("hickory_resolver", of_resolver)
}

fn max_level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_resolver_speaks_from_debug_on_and_everybody_else_as_told() {
        let quiet = filter(LogLevel::Info);
        assert!(!quiet.would_enable("hickory_net::udp", &Level::ERROR));
        assert!(quiet.would_enable("enclave_shim::egress", &Level::INFO));
        assert!(!quiet.would_enable("enclave_shim::egress", &Level::DEBUG));
        assert!(filter(LogLevel::Debug).would_enable("hickory_net::udp", &Level::DEBUG));
        assert!(!filter(LogLevel::Error).would_enable("enclave_shim::egress", &Level::WARN));
    }
}
