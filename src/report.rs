//! What is left behind when the shim ends: two lines and a JSON report on
//! stderr, and the same in the pod's termination log.

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::config::{Config, LogFormat};
use crate::exit::{Explanation, Failure};
use crate::supervisor::{Origin, Outcome};
use crate::timeline::{Step, Timeline};

/// Kubelet mounts it into containers; never made by us.
const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";
/// Kubelet shows the last 4096 bytes.
const TERMINATION_LOG_BYTES: usize = 4096;
/// Lines of the console, and of the workload's output, in a report.
const LAST_LINES: usize = 20;

/// The JSON report. Fields are only ever added.
#[derive(Debug, Serialize)]
struct Report<'a> {
    report: u32,
    build: &'a str,
    exit_code: u8,
    origin: Origin,
    kind: &'a str,
    #[serde(flatten)]
    explanation: &'a Explanation,
    #[serde(skip_serializing_if = "Option::is_none")]
    cid: Option<u32>,
    /// The node's slot, where a device plugin granted one.
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'a str>,
    timeline: &'a [Step],
    console: &'a [String],
    /// The end of the workload's output, when its image forwards it.
    output: &'a [String],
}

/// Where and how to leave a report.
#[derive(Debug)]
pub(crate) struct Place {
    format: LogFormat,
    termination_log: Option<File>,
}

impl Place {
    /// On stderr alone: for what another process's termination log is no place.
    pub(crate) fn without_termination_log(format: LogFormat) -> Place {
        Place { format, termination_log: None }
    }

    /// Opens the termination log: `named`, which is made if need be, or kubelet's
    /// if it is there. Without it a warning is all that is lost.
    pub(crate) fn open(format: LogFormat, named: Option<&Path>) -> Place {
        let path = named.unwrap_or(Path::new(DEFAULT_TERMINATION_LOG));
        let termination_log = match open_termination_log(path, named.is_some()) {
            Ok(file) => file,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "warning: cannot open {}: {error}", path.display());
                None
            }
        };
        Place { format, termination_log }
    }
}

/// Reports how a run ended, and returns the exit code.
pub(crate) fn run_ended(outcome: &Outcome, config: &Config, timeline: &Timeline, place: &Place) -> u8 {
    let (ending, steps) = (&outcome.ending, timeline.steps());
    let code = ending.code();
    tracing::info!(code, origin = ?ending.origin(), after = ?timeline.elapsed(), "ended");
    if let Some(explanation) = ending.explanation(config, &outcome.on_the_way) {
        let report = Report {
            report: 1,
            build: crate::log::BUILD,
            exit_code: code,
            origin: ending.origin(),
            kind: ending.kind(),
            explanation: &explanation,
            cid: outcome.cid.map(|cid| cid.get()),
            slot: config.slots.first().copied(),
            plan: outcome.plan.as_deref(),
            timeline: &steps,
            console: &outcome.console.last(LAST_LINES),
            output: &outcome.output.last(LAST_LINES),
        };
        leave(&report, place);
    }
    code
}

/// Reports a failure before anything ran, and returns the exit code.
pub(crate) fn not_begun(failure: &Failure, place: &Place) -> u8 {
    let report = Report {
        report: 1,
        build: crate::log::BUILD,
        exit_code: failure.exit.code(),
        origin: Origin::Shim,
        kind: failure.exit.name(),
        explanation: &failure.explanation,
        cid: None,
        slot: None,
        plan: None,
        timeline: &[],
        console: &[],
        output: &[],
    };
    leave(&report, place);
    failure.exit.code()
}

/// Tells why a running shim could not be asked, and returns the exit code.
pub(crate) fn refused(failure: &Failure) -> u8 {
    let Explanation { cause, fix } = &failure.explanation;
    let _ = writeln!(std::io::stderr(), "error: {cause}\nfix: {fix}");
    failure.exit.code()
}

/// Makes every panic the documented exit: a task that is gone must not leave an
/// enclave that nobody looks after. The kernel closes the enclave.
pub(crate) fn end_on_panic(place: Arc<Place>) {
    std::panic::set_hook(Box::new(move |panic| {
        let failure = Failure::bug(panic.to_string());
        std::process::exit(not_begun(&failure, &place).into());
    }));
}

fn leave(report: &Report<'_>, place: &Place) {
    // A report is made of strings and numbers: it always has a JSON form.
    let json = serde_json::to_string(report).unwrap_or_default();
    let short = serde_json::to_string(&Report { console: &[], output: &[], ..*report }).unwrap_or_default();
    let lines = format!("error: {}\nfix: {}\n", report.explanation.cause, report.explanation.fix);
    let mut stderr = std::io::stderr().lock();
    // Nothing can be done about a closed stderr.
    let _ = match place.format {
        LogFormat::Json => writeln!(stderr, "{json}"),
        LogFormat::Text => {
            let console: String = report.console.iter().map(|line| format!("console: {line}\n")).collect();
            writeln!(stderr, "{lines}{console}report: {json}")
        }
    };
    if let Some(file) = &place.termination_log
        && let Err(error) = write_termination_log(file, &lines, &[&json, &short])
    {
        let _ = writeln!(stderr, "warning: cannot write the termination log: {error}");
    }
}

/// What an earlier container left there is gone from here on.
fn open_termination_log(path: &Path, named: bool) -> std::io::Result<Option<File>> {
    if !named && !path.exists() {
        return Ok(None);
    }
    OpenOptions::new().write(true).create(named).truncate(true).open(path).map(Some)
}

/// The two lines always, and the longest of the reports that fits.
fn write_termination_log(mut file: &File, lines: &str, reports: &[&str]) -> std::io::Result<()> {
    let mut text = lines.to_owned();
    if let Some(json) = reports.iter().find(|json| text.len() + json.len() < TERMINATION_LOG_BYTES) {
        text.push_str(json);
        text.push('\n');
    }
    text.truncate(text.floor_char_boundary(TERMINATION_LOG_BYTES));
    // A panic while a report is written makes a second one.
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_termination_log_never_outgrows_what_kubelet_shows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("why");
        let read = || std::fs::read_to_string(&path).unwrap();
        let file = open_termination_log(&path, true).unwrap().unwrap();
        write_termination_log(&file, "error: c\nfix: f\n", &["{}"]).unwrap();
        assert_eq!(read(), "error: c\nfix: f\n{}\n");
        write_termination_log(&file, "error: c\nfix: f\n", &[&"x".repeat(5000), "{}"]).unwrap();
        assert_eq!(read(), "error: c\nfix: f\n{}\n", "the shorter report");
        write_termination_log(&file, "error: c\nfix: f\n", &[&"x".repeat(5000)]).unwrap();
        assert_eq!(read(), "error: c\nfix: f\n");
        write_termination_log(&file, &"ü".repeat(5000), &["{}"]).unwrap();
        assert_eq!(read().len(), 4096);
    }

    #[test]
    fn a_termination_log_that_nobody_named_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("why");
        assert!(open_termination_log(&path, false).unwrap().is_none());
        assert!(!path.exists());
    }

    #[test]
    fn a_report_says_whose_code_it_is() {
        let explanation = Explanation::new("bad", "build");
        let report = Report {
            report: 1,
            build: "b",
            exit_code: 65,
            origin: Origin::Shim,
            kind: Exit::Image.name(),
            explanation: &explanation,
            cid: Some(16),
            slot: Some(2),
            plan: None,
            timeline: &[Step { step: "planned", at_ms: 3 }],
            console: &[],
            output: &[],
        };
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        assert_eq!(json["origin"], "shim");
        assert_eq!(json["kind"], "image");
        assert_eq!(json["cause"], "bad");
        assert_eq!(json["timeline"][0]["at_ms"], 3);
    }
}
