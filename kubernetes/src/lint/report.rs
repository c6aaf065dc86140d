//! Findings as text, as JSON, and as SARIF 2.1.0 for code review tools.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Finding, Level, RULES};

/// One finding a paragraph, then a line that counts.
pub fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let level = name(finding.level);
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{}:{}:{}: {level}[{}]: {}",
            finding.file, finding.line, finding.column, finding.id, finding.reason
        );
        if !finding.value.is_empty() {
            let _ = writeln!(out, "    found: {}", finding.value);
        }
        let fixable = if finding.fix.is_some() { " (--fix does it)" } else { "" };
        let _ = writeln!(out, "    write: {}{fixable}", finding.replacement);
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let _ = writeln!(
        out,
        "{} error(s), {} warning(s), {} advice",
        count(Level::Error),
        count(Level::Warning),
        count(Level::Advice)
    );
    out
}

/// `{"findings": [...]}`; a finding's fields are those of [`Finding`].
pub fn json(findings: &[Finding]) -> Value {
    json!({ "findings": findings })
}

/// The Static Analysis Results Interchange Format (OASIS, SARIF 2.1.0).
pub fn sarif(findings: &[Finding], version: &str) -> Value {
    let rules: Vec<Value> = RULES
        .iter()
        .map(|rule| {
            json!({
                "id": rule.id,
                "shortDescription": { "text": rule.summary },
                "defaultConfiguration": { "level": sarif_level(rule.level) },
            })
        })
        .collect();
    let results: Vec<Value> = findings.iter().map(result).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "enclavectl lint", "version": version, "rules": rules } },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn result(finding: &Finding) -> Value {
    let location = json!({ "uri": uri(&finding.file) });
    let mut result = json!({
        "ruleId": finding.id,
        "ruleIndex": RULES.iter().position(|rule| rule.id == finding.id),
        "level": sarif_level(finding.level),
        "message": { "text": format!("{}. Write: {}", finding.reason, finding.replacement) },
        "locations": [{
            "physicalLocation": {
                "artifactLocation": location,
                "region": { "startLine": finding.line, "startColumn": finding.column },
            },
        }],
    });
    if let Some(fix) = &finding.fix {
        result["fixes"] = json!([{
            "description": { "text": finding.replacement },
            "artifactChanges": [{
                "artifactLocation": location,
                "replacements": [{
                    "deletedRegion": {
                        "byteOffset": fix.bytes.start,
                        "byteLength": fix.bytes.end - fix.bytes.start,
                    },
                    "insertedContent": { "text": fix.text },
                }],
            }],
        }]);
    }
    result
}

/// A path as a relative reference (RFC 3986).
fn uri(path: &str) -> String {
    let mut uri = String::new();
    for byte in path.replace('\\', "/").bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Advice => "advice",
        Level::Warning => "warning",
        Level::Error => "error",
    }
}

fn sarif_level(level: Level) -> &'static str {
    match level {
        Level::Advice => "note",
        Level::Warning => "warning",
        Level::Error => "error",
    }
}
