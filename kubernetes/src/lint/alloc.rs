//! The allocator's file: refused, partly dropped, or read.

use super::{
    Source, Spot,
    finding::{Finding, Findings},
    model::Allocation,
    rule::{ALLOC_DROPPED, ALLOC_READ, ALLOC_REPEATED},
};
use crate::allocator::{self, AllocatorError, Cpus, WarningKind};

/// Checks a file of its own; what is certain to be meant is repaired there.
pub(super) fn check_file(file: usize, source: &Source, findings: &mut Findings<'_>) -> Option<Allocation> {
    let at = |line| Spot::line(file, source, line);
    check(&source.text, &at, true, findings)
}

/// Checks text within a manifest.
pub(super) fn check_text(text: &str, spot: &Spot, findings: &mut Findings<'_>) -> Option<Allocation> {
    check(text, &|_| spot.clone(), false, findings)
}

fn check(
    text: &str,
    at: &dyn Fn(usize) -> Spot,
    is_file: bool,
    findings: &mut Findings<'_>,
) -> Option<Allocation> {
    let reading = allocator::read(text);
    for warning in &reading.warnings {
        let rule = if warning.kind == WarningKind::Repeated { &ALLOC_REPEATED } else { &ALLOC_DROPPED };
        let spot = at(warning.line);
        let reason = format!("line {}: {}", warning.line, warning.kind);
        let finding = findings.add(rule, &spot, reason, advice(warning.kind));
        if is_file {
            repair(finding, warning.kind, &spot, text);
        }
    }
    let outcome = reading.outcome.and_then(|request| Ok((request.reservation()?, request)));
    let (reservation, request) = match outcome {
        Ok(read) => read,
        // Said already by the warning that explains it.
        Err(AllocatorError::NoMemory | AllocatorError::NoCpus | AllocatorError::Number { .. })
            if !reading.warnings.is_empty() =>
        {
            return None;
        }
        Err(error) => {
            refused(&error, at, is_file, findings);
            return None;
        }
    };
    let cpus = match &reservation.cpus {
        Cpus::Count(count) => *count,
        Cpus::Ids(ids) => u32::try_from(ids.len()).unwrap_or(u32::MAX),
    };
    let line = |setting: &Option<allocator::Setting>| setting.as_ref().map_or(1, |setting| setting.line);
    Some(Allocation {
        memory_mib: reservation.memory_mib,
        cpus,
        memory_spot: at(line(&request.memory_mib)),
        cpu_spot: at(line(&request.cpu_count).max(line(&request.cpu_pool))),
    })
}

fn refused(error: &AllocatorError, at: &dyn Fn(usize) -> Spot, is_file: bool, findings: &mut Findings<'_>) {
    let (line, replacement) = match error {
        AllocatorError::Unexpected { line, key } if key.is_empty() => (*line, "no empty line".to_owned()),
        AllocatorError::Unexpected { line, key } if key == "-" => {
            (*line, "one mapping; no released allocator reads a list".to_owned())
        }
        AllocatorError::Unexpected { line, .. } => (*line, "memory_mib, cpu_count or cpu_pool".to_owned()),
        AllocatorError::NoValue { line, key } => (*line, format!("{key}: NUMBER")),
        AllocatorError::NoMemory => (1, "memory_mib: NUMBER".to_owned()),
        AllocatorError::NoCpus => (1, "cpu_count: NUMBER".to_owned()),
        AllocatorError::BothCpus { line } => (*line, "one of cpu_count and cpu_pool".to_owned()),
        AllocatorError::Number { line, key, .. } => (*line, format!("{key}: a decimal number above zero")),
    };
    let spot = at(line);
    let finding = findings.add(&ALLOC_READ, &spot, error.to_string(), replacement);
    let empty = matches!(error, AllocatorError::Unexpected { key, .. } if key.is_empty());
    if is_file && empty && spot.value.trim().is_empty() {
        let mut whole_line = spot.clone();
        whole_line.place.bytes.end += 1;
        finding.fix_with(&whole_line, "");
    }
}

fn advice(kind: WarningKind) -> &'static str {
    match kind {
        WarningKind::NoFinalNewline => "a newline at the end of the file",
        WarningKind::BeforeDashes => "--- as the first line",
        WarningKind::CarriageReturn => "LF line ends",
        WarningKind::TrailingComment => "the comment on a line of its own",
        WarningKind::Repeated => "the key once",
    }
}

fn repair(finding: &mut Finding, kind: WarningKind, spot: &Spot, text: &str) {
    let mut range = spot.clone();
    match kind {
        WarningKind::NoFinalNewline => {
            range.place.bytes = text.len()..text.len();
            finding.fix_with(&range, "\n");
        }
        WarningKind::BeforeDashes if !text.lines().any(|line| line.trim() == "---") => {
            range.place.bytes.end = range.place.bytes.start;
            finding.fix_with(&range, "---\n");
        }
        WarningKind::CarriageReturn => {
            range.place.bytes = 0..text.len();
            finding.fix_with(&range, text.replace("\r\n", "\n"));
        }
        WarningKind::TrailingComment => {
            if let Some((kept, _)) = spot.value.split_once('#') {
                finding.fix_with(spot, kept.trim_end());
            }
        }
        _ => {}
    }
}
