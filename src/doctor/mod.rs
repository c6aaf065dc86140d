//! `enclave-shim doctor`: what on this node, or in this pod, would keep an
//! enclave from running, each with its evidence and its fix.
//!
//! ```text
//! probe (reads the machine) ──▶ Evidence ──▶ judge (pure) ──▶ findings ──▶ text or JSON, exit code
//! ```

mod judge;
mod probe;

use serde::Serialize;

use crate::cli::Doctor;
use crate::config::Config;
use judge::judge;
use probe::Evidence;

/// How bad a finding is, rising.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Fine,
    Warning,
    Error,
}

/// What was looked at and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// A stable word.
    check: &'static str,
    severity: Severity,
    /// What `run` would end with; 0 unless an error.
    exit_code: u8,
    /// What is wrong, or that nothing is.
    cause: String,
    /// What was seen.
    evidence: String,
    /// What to change; nothing when all is fine.
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

/// Looks, prints, and returns the exit code: the worst error's, else 0.
pub(crate) fn run(args: &Doctor) -> u8 {
    let default = Config::default().eif;
    let eif = args.eif.as_deref().or_else(|| default.exists().then_some(&*default));
    let findings = judge(&Evidence::gather(&args.device, eif));
    if args.json {
        // Strings and numbers always have a JSON form.
        println!("{}", serde_json::to_string(&findings).unwrap_or_default());
    } else {
        findings.iter().for_each(print);
    }
    exit_code(&findings)
}

fn print(finding: &Finding) {
    let mark = match finding.severity {
        Severity::Fine => "ok",
        Severity::Warning => "WARNING",
        Severity::Error => "ERROR",
    };
    println!("{mark:<8}{:<8}{}", finding.check, finding.cause);
    println!("{:16}evidence: {}", "", finding.evidence);
    if !finding.fix.is_empty() {
        println!("{:16}fix: {}", "", finding.fix);
    }
}

/// What outranks the others is whatever a launch would meet first: the image
/// (65), the device (69), then too little of something (71).
fn exit_code(findings: &[Finding]) -> u8 {
    findings.iter().map(|finding| finding.exit_code).filter(|code| *code != 0).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_the_worst_finding() {
        let finding = |exit_code| Finding {
            check: "device",
            severity: Severity::Error,
            exit_code,
            cause: String::new(),
            evidence: String::new(),
            fix: String::new(),
        };
        assert_eq!(exit_code(&[]), 0);
        assert_eq!(exit_code(&[finding(0), finding(71)]), 71);
        assert_eq!(exit_code(&[finding(71), finding(69), finding(0)]), 69);
    }
}
