//! What a rule found, and how to repair it.

use std::ops::Range;

use serde::Serialize;

use super::{Level, Rule, Source};
use crate::yaml::{Node, Place};

/// Names rules whose findings about an object are known.
const ALLOW: &str = "enclave-shim/lint-allow";

/// A value in a file.
#[derive(Debug, Clone, Default)]
pub struct Spot {
    /// Index into the sources.
    pub(super) file: usize,
    pub(super) place: Place,
    /// As it is written, shortened.
    pub(super) value: String,
}

/// What one rule found at one place.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The rule's stable id.
    pub id: &'static str,
    /// How bad it is.
    pub level: Level,
    /// The file's name.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The value found there, shortened.
    pub value: String,
    /// Why it is a finding.
    pub reason: String,
    /// What to write instead.
    pub replacement: String,
    /// An edit that makes the replacement, when that is safe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<Fix>,
    /// Index into the sources.
    #[serde(skip)]
    pub source: usize,
    /// Where the value starts, in bytes.
    #[serde(skip)]
    pub offset: usize,
}

/// An edit of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fix {
    /// Bytes to replace.
    pub bytes: Range<usize>,
    /// What to put there.
    pub text: String,
}

/// Applies the fixes of one file's findings. Where two overlap, the first one
/// wins; another run finds the rest.
pub fn fix(source: usize, text: &str, findings: &[Finding]) -> String {
    let mut fixes: Vec<&Fix> =
        findings.iter().filter(|f| f.source == source).filter_map(|f| f.fix.as_ref()).collect();
    fixes.sort_by_key(|fix| (fix.bytes.start, fix.bytes.end));
    let (mut fixed, mut done) = (String::with_capacity(text.len()), 0);
    for fix in fixes {
        let (Some(before), true) = (text.get(done..fix.bytes.start), fix.bytes.end <= text.len()) else {
            continue;
        };
        fixed.push_str(before);
        fixed.push_str(&fix.text);
        done = fix.bytes.end;
    }
    fixed.push_str(text.get(done..).unwrap_or_default());
    fixed
}

/// Findings as they come.
pub(super) struct Findings<'a> {
    sources: &'a [Source],
    list: Vec<Finding>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(sources: &'a [Source]) -> Findings<'a> {
        Findings { sources, list: Vec::new() }
    }

    /// Adds a finding, and gives it back for a fix.
    pub(super) fn add(
        &mut self,
        rule: &Rule,
        spot: &Spot,
        reason: impl Into<String>,
        replacement: impl Into<String>,
    ) -> &mut Finding {
        self.list.push(Finding {
            id: rule.id,
            level: rule.level,
            file: self.sources.get(spot.file).map(|source| source.name.clone()).unwrap_or_default(),
            line: spot.place.line.max(1),
            column: spot.place.column.max(1),
            value: spot.value.clone(),
            reason: reason.into(),
            replacement: replacement.into(),
            fix: None,
            source: spot.file,
            offset: spot.place.bytes.start,
        });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// The text that a spot covers in its file.
    pub(super) fn raw(&self, spot: &Spot) -> &'a str {
        self.sources[spot.file].text.get(spot.place.bytes.clone()).unwrap_or_default()
    }

    /// Leaves out what an object's annotation says is known, unless it is an
    /// error: `enclave-shim/lint-allow: RULE RULE`.
    pub(super) fn leave_out(&mut self, file: usize, root: &Node) {
        let Some(allowed) = root.at(&["metadata", "annotations", ALLOW]).and_then(Node::text) else { return };
        let object = &root.place.bytes;
        self.list.retain(|finding| {
            let within = finding.source == file && object.contains(&finding.offset);
            let known = finding.level < Level::Error && allowed.split_whitespace().any(|id| id == finding.id);
            !(within && known)
        });
    }

    pub(super) fn sorted(mut self) -> Vec<Finding> {
        self.list.sort_by(|a, b| {
            (a.source, a.line, a.column, a.id, &a.reason).cmp(&(b.source, b.line, b.column, b.id, &b.reason))
        });
        self.list.dedup_by(|a, b| {
            (a.source, a.line, a.column, a.id, &a.reason) == (b.source, b.line, b.column, b.id, &b.reason)
        });
        self.list
    }
}

impl Finding {
    /// Marks the finding as safe to repair: `text` instead of `spot`.
    pub(super) fn fix_with(&mut self, spot: &Spot, text: impl Into<String>) {
        self.fix = Some(Fix { bytes: spot.place.bytes.clone(), text: text.into() });
    }
}

impl Spot {
    /// A value's own place.
    pub(super) fn of(file: usize, node: &Node) -> Spot {
        let value = match node.text() {
            Some(text) => shortened(text),
            None if !node.items().is_empty() => format!("[{} items]", node.items().len()),
            None => {
                let keys: Vec<&str> = node.entries().iter().filter_map(|entry| entry.key.text()).collect();
                format!("{{{}}}", shortened(&keys.join(", ")))
            }
        };
        Spot { file, place: node.place.clone(), value }
    }

    /// A line of a file's text, which is a part of it.
    pub(super) fn of_line(file: usize, text: &str, line: &str, number: usize) -> Spot {
        let start = line.as_ptr() as usize - text.as_ptr() as usize;
        let place = Place { line: number, column: 1, bytes: start..start + line.len() };
        Spot { file, place, value: shortened(line) }
    }

    /// A whole line of a file.
    pub(super) fn line(file: usize, source: &Source, line: usize) -> Spot {
        let mut start = 0;
        for (index, text) in source.text.split_inclusive('\n').enumerate() {
            if index + 1 == line {
                let value = text.trim_end_matches(['\n', '\r']);
                let bytes = start..start + value.len();
                return Spot { file, place: Place { line, column: 1, bytes }, value: shortened(value) };
            }
            start += text.len();
        }
        let end = source.text.len();
        Spot { file, place: Place { line, column: 1, bytes: end..end }, value: String::new() }
    }
}

/// The first line, and no more of it than a report can show.
fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    let line = text.lines().next().unwrap_or_default();
    let short: String = line.chars().take(MOST).collect();
    if short.len() < text.trim_end().len() { format!("{short}...") } else { short }
}
