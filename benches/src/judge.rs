//! What is promised of the relay, and whether figures show it.
//!
//! Throughput, CPU and round trips are compared with `raw` in the same round,
//! whose contenders run one after the other on the same sockets; the median of
//! those ratios is what counts. A figure beyond its gate fails: gates are where
//! a change of the engine shows through the noise of a shared machine.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::run::{Figures, median};

/// What a figure of ours is held against.
#[derive(Debug, Clone, Copy)]
enum Against {
    /// The same round's figure of this contender.
    Contender(&'static str),
    /// Itself.
    Nothing,
}

/// One line of the table of promises.
struct Promise {
    figure: &'static str,
    /// Rows whose names contain all of these.
    rows: &'static [&'static str],
    text: &'static str,
    against: Against,
    /// Whether the figure must be as large as `promised`, not as small.
    at_least: bool,
    promised: f64,
    gate: f64,
}

const PROMISES: [Promise; 14] = [
    against_raw("mib_per_s", &["vsock-1"], "throughput, one stream", true, 1.1, 0.85),
    against_raw("mib_per_s", &["vsock-8"], "throughput, eight streams", true, 1.0, 0.85),
    against("socat", "mib_per_s", &["vsock-"], "throughput, against socat", 1.0, 1.0),
    against("vsock-proxy", "mib_per_s", &["vsock-1"], "throughput, against vsock-proxy", 1.0, 1.0),
    against_raw("cpu_s_per_gib", &["from-vsock"], "CPU per GiB from vsock", false, 0.7, 1.25),
    against_raw("cpu_s_per_gib", &["to-vsock"], "CPU per GiB into vsock", false, 0.85, 1.25),
    alone("calls_per_mib", &["from-vsock"], "system calls per MiB from vsock", 10.0, 20.0),
    alone("calls_per_mib", &["to-vsock"], "system calls per MiB into vsock", 40.0, 40.0),
    against_raw("p50_us", &["ping-pong"], "ping-pong, median", false, 1.1, f64::INFINITY),
    against_raw("p99_us", &["ping-pong"], "ping-pong, 99th percentile", false, 1.1, f64::INFINITY),
    alone("cpu_us_each", &["connections"], "CPU per connection, us", 120.0, 240.0),
    alone("bytes_each", &["idle"], "memory per idle connection, bytes", 4096.0, 4096.0),
    against("socat", "cpu_us_each", &["connections"], "CPU per connection, against socat", 1.0, 1.0)
        .at_most(),
    // It serves one after the other: nothing to compare with where several come at once.
    against(
        "vsock-proxy",
        "cpu_us_each",
        &["connections-1"],
        "CPU per connection, against vsock-proxy",
        1.0,
        2.0,
    )
    .at_most(),
];

const fn against(
    contender: &'static str,
    figure: &'static str,
    rows: &'static [&'static str],
    text: &'static str,
    promised: f64,
    gate: f64,
) -> Promise {
    Promise { figure, rows, text, against: Against::Contender(contender), at_least: true, promised, gate }
}

const fn against_raw(
    figure: &'static str,
    rows: &'static [&'static str],
    text: &'static str,
    at_least: bool,
    promised: f64,
    gate: f64,
) -> Promise {
    Promise { figure, rows, text, against: Against::Contender("raw"), at_least, promised, gate }
}

const fn alone(
    figure: &'static str,
    rows: &'static [&'static str],
    text: &'static str,
    promised: f64,
    gate: f64,
) -> Promise {
    Promise { figure, rows, text, against: Against::Nothing, at_least: false, promised, gate }
}

/// The table as Markdown, and a line for each figure beyond its gate.
pub(crate) fn judge(figures: &Figures) -> (String, Vec<String>) {
    let mut table = String::from("\n| promise | promised | measured, by row | kept |\n|---|---|---|---|\n");
    let mut beyond = Vec::new();
    for promise in &PROMISES {
        let measured: BTreeMap<&str, f64> = figures
            .0
            .iter()
            .filter(|(row, _)| promise.rows.iter().all(|part| row.contains(part)))
            .filter_map(|(row, figures)| Some((row.as_str(), promise.measure(figures.get(promise.figure)?)?)))
            .collect();
        if measured.is_empty() {
            continue;
        }
        let kept = measured.values().filter(|value| promise.holds(**value, promise.promised)).count();
        let rows: Vec<String> =
            measured.iter().map(|(row, value)| format!("{row} {}", promise.shown(*value))).collect();
        let word = if promise.at_least { "at least" } else { "at most" };
        let verdict = match kept {
            kept if kept == measured.len() => "yes".to_owned(),
            0 => "**no**".to_owned(),
            kept => format!("**in {kept} of {}**", measured.len()),
        };
        let promised = promise.shown(promise.promised);
        let _ = writeln!(table, "| {} | {word} {promised} | {} | {verdict} |", promise.text, rows.join(", "));
        let missed = measured.iter().filter(|(_, value)| !promise.holds(**value, promise.gate));
        beyond.extend(missed.map(|(row, value)| {
            format!(
                "{}: {row} {}, the gate is {word} {}",
                promise.text,
                promise.shown(*value),
                promise.shown(promise.gate)
            )
        }));
    }
    (table, beyond)
}

impl Promise {
    const fn at_most(mut self) -> Promise {
        self.at_least = false;
        self
    }

    /// The median of our figures, or of their ratios round by round; none where either is missing.
    fn measure(&self, contenders: &BTreeMap<String, Vec<f64>>) -> Option<f64> {
        let ours = contenders.get("ours").filter(|ours| !ours.is_empty())?;
        match self.against {
            Against::Nothing => Some(median(ours)),
            Against::Contender(name) => {
                let theirs = contenders.get(name).filter(|theirs| theirs.len() == ours.len())?;
                Some(median(&ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>()))
            }
        }
    }

    fn holds(&self, value: f64, limit: f64) -> bool {
        if self.at_least { value >= limit } else { value <= limit }
    }

    fn shown(&self, value: f64) -> String {
        match self.against {
            Against::Contender(_) => format!("{value:.2} x"),
            Against::Nothing if value < 100.0 => format!("{value:.1}"),
            Against::Nothing => format!("{value:.0}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failure here is the test's

    use super::*;

    fn figures(ours: [f64; 3], raw: [f64; 3], calls: f64) -> Figures {
        let text = serde_json::json!({"ingress-from-vsock-1": {
            "mib_per_s": {"raw": raw, "ours": ours},
            "calls_per_mib": {"ours": [calls]},
        }});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn the_median_of_the_rounds_ratios_decides() {
        // Slower in one round only, in which the machine was slow for it.
        let (table, beyond) = judge(&figures([120.0, 20.0, 60.0], [100.0, 100.0, 50.0], 9.0));
        assert!(table.contains("at least 1.10 x | ingress-from-vsock-1 1.20 x | yes |"), "{table}");
        assert!(table.contains("at most 10.0 | ingress-from-vsock-1 9.0 | yes |"), "{table}");
        assert!(beyond.is_empty(), "{beyond:?}");
    }

    #[test]
    fn a_missed_promise_is_said_and_one_beyond_its_gate_fails() {
        let (table, beyond) = judge(&figures([90.0; 3], [100.0; 3], 12.0));
        assert_eq!(table.matches("**no**").count(), 2, "{table}");
        assert!(beyond.is_empty(), "{beyond:?}");
        let (_, beyond) = judge(&figures([80.0; 3], [100.0; 3], 21.0));
        assert_eq!(beyond.len(), 2, "{beyond:?}");
        assert!(beyond[0].contains("0.80 x") && beyond[0].contains("at least 0.85 x"), "{beyond:?}");
    }

    #[test]
    fn connections_are_compared_with_a_serial_proxy_where_they_come_one_by_one() {
        let judged = |ours: f64| {
            let row =
                |ours: f64| serde_json::json!({"cpu_us_each": {"ours": [ours], "vsock-proxy": [100.0]}});
            let rows =
                serde_json::json!({"ingress-connections-1": row(ours), "ingress-connections-32": row(150.0)});
            judge(&serde_json::from_value(rows).unwrap())
        };
        let line = "CPU per connection, against vsock-proxy | at most 1.00 x | ingress-connections-1";
        let (table, beyond) = judged(90.0);
        assert!(table.contains(&format!("{line} 0.90 x | yes |")), "{table}");
        assert!(beyond.is_empty(), "{beyond:?}");
        let (table, beyond) = judged(110.0);
        assert!(table.contains(&format!("{line} 1.10 x | **no** |")), "{table}");
        assert!(beyond.is_empty(), "{beyond:?}");
        let (_, beyond) = judged(210.0);
        assert!(beyond.len() == 1 && beyond[0].contains("at most 2.00 x"), "{beyond:?}");
    }

    #[test]
    fn nothing_measured_is_no_line() {
        assert_eq!(judge(&Figures::default()).0.lines().count(), 3);
    }
}
