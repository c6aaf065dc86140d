//! `allocator.yaml`, read as AWS's allocator script reads it.
//!
//! That script (aws-nitro-enclaves-cli, bootstrap/nitro-enclaves-allocator,
//! 2950b36) is no YAML parser: it reads lines. Some of what it does is silent,
//! so [`read`] gives both its outcome and [`Warning`]s about what its author
//! surely did not mean. The list form (`- memory_mib: ...`), which no released
//! script reads, is read by [`read_list`].

use std::fmt;

/// What the file asks for, as text: the script checks numbers later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Memory to set aside, in MiB.
    pub memory_mib: Option<Setting>,
    /// Number of CPUs, or
    pub cpu_count: Option<Setting>,
    /// CPUs by id.
    pub cpu_pool: Option<Setting>,
}

/// One value and the line that set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// After the script's trimming.
    pub text: String,
    /// Line, from 1.
    pub line: usize,
}

/// A request that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Which CPUs.
    pub cpus: Cpus,
}

/// Which CPUs to set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cpus {
    /// So many, on whichever NUMA node has them.
    Count(u32),
    /// These, sorted, each once.
    Ids(Vec<u32>),
}

/// Why the script stops, or will stop when it gets to the numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocatorError {
    /// A line that is no setting; an empty line counts.
    #[error("line {line}: unexpected {key:?}")]
    Unexpected {
        /// From 1.
        line: usize,
        /// What stands where a key should; empty for an empty line.
        key: String,
    },
    /// A key without a value.
    #[error("line {line}: no value for {key}")]
    NoValue {
        /// From 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// `memory_mib` was never seen.
    #[error("no memory reservation (memory_mib)")]
    NoMemory,
    /// Neither `cpu_count` nor `cpu_pool` was seen.
    #[error("no CPU reservation (cpu_count or cpu_pool)")]
    NoCpus,
    /// Both were.
    #[error("line {line}: cpu_count and cpu_pool exclude each other")]
    BothCpus {
        /// The line of the later one.
        line: usize,
    },
    /// Not a number above zero in decimal.
    #[error("line {line}: {key} is {text:?}, {why}")]
    Number {
        /// From 1.
        line: usize,
        /// Which key.
        key: &'static str,
        /// As the script sees it.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What the script passes over without a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Line, from 1.
    pub line: usize,
    /// What it does.
    pub kind: WarningKind,
}

/// What the script passes over without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarningKind {
    /// The last line has no newline: it is not read.
    NoFinalNewline,
    /// Before the `---` line, nothing is read.
    BeforeDashes,
    /// CRLF line ends: `---` is not recognised.
    CarriageReturn,
    /// A comment behind a value becomes part of it.
    TrailingComment,
    /// A key that was set before: the later one counts.
    Repeated,
}

impl fmt::Display for WarningKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WarningKind::NoFinalNewline => {
                "the last line does not end with a newline, so the allocator drops it"
            }
            WarningKind::BeforeDashes => "the allocator reads nothing before a line `---`",
            WarningKind::CarriageReturn => "CRLF line ends: the allocator does not see the `---`",
            WarningKind::TrailingComment => "the allocator takes the comment as part of the value",
            WarningKind::Repeated => "the key is set twice; the later one counts",
        })
    }
}

/// What came of reading a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What the script would go on with, or its complaint.
    pub outcome: Result<Request, AllocatorError>,
    /// In the order of lines.
    pub warnings: Vec<Warning>,
}

/// Reads a file as the script does.
pub fn read(text: &str) -> Reading {
    let mut warnings = Vec::new();
    let outcome = read_lines(text, &mut warnings).and_then(check);
    warnings.sort_by_key(|warning| warning.line);
    Reading { outcome, warnings }
}

/// Reads the list form that no released script reads: one entry an enclave.
/// `None` when the file is not in that form. Entries add up.
pub fn read_list(text: &str) -> Option<Request> {
    let documents = crate::yaml::documents(text).ok()?;
    let entries = documents.first()?.items();
    let (mut memory, mut count, mut ids, mut line) = (0_u64, 0_u32, Vec::new(), 0);
    for entry in entries {
        line = entry.place.line;
        memory = memory.checked_add(entry.field("memory_mib")?.number()?)?;
        match (entry.field("cpu_count"), entry.field("cpu_pool")) {
            (Some(cpus), None) => count = count.checked_add(u32::try_from(cpus.number()?).ok()?)?,
            (None, Some(pool)) => ids.extend(cpu_list(pool.text()?)?),
            _ => return None,
        }
    }
    let setting = |text: String| Some(Setting { text, line });
    let mut request = Request { memory_mib: setting(memory.to_string()), ..Request::default() };
    match (count, ids.is_empty()) {
        (0, false) => request.cpu_pool = setting(list_text(&ids)),
        (1.., true) => request.cpu_count = setting(count.to_string()),
        _ => return None,
    }
    Some(request)
}

impl Request {
    /// Makes numbers of the text, as far as the file alone can tell.
    pub fn reservation(&self) -> Result<Reservation, AllocatorError> {
        let memory = self.memory_mib.as_ref().ok_or(AllocatorError::NoMemory)?;
        let memory_mib = number("memory_mib", memory)?;
        let cpus = match (&self.cpu_count, &self.cpu_pool) {
            (Some(count), None) => Cpus::Count(
                u32::try_from(number("cpu_count", count)?)
                    .map_err(|_| bad("cpu_count", count, "more than any machine has"))?,
            ),
            (None, Some(pool)) => Cpus::Ids(
                cpu_list(&pool.text).ok_or_else(|| bad("cpu_pool", pool, "not a list such as 2,3,6-9"))?,
            ),
            (Some(a), Some(b)) => return Err(AllocatorError::BothCpus { line: a.line.max(b.line) }),
            (None, None) => return Err(AllocatorError::NoCpus),
        };
        Ok(Reservation { memory_mib, cpus })
    }
}

/// CPU ids of a kernel list such as `2,3,6-9`: sorted, each once.
pub fn cpu_list(text: &str) -> Option<Vec<u32>> {
    /// More than Linux can count (CONFIG_NR_CPUS).
    const MOST: u32 = 8192;
    let mut ids = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        ids.extend(first..=last);
    }
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

/// CPU ids as a list, each by itself.
pub fn list_text(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn read_lines(text: &str, warnings: &mut Vec<Warning>) -> Result<Request, AllocatorError> {
    let mut request = Request::default();
    let mut started = false;
    let mut dropped_before = None;
    let (lines, unfinished) = lines(text);
    if let Some(line) = unfinished {
        warnings.push(Warning { line, kind: WarningKind::NoFinalNewline });
    }
    for (index, line) in lines.iter().enumerate() {
        let number = index + 1;
        let mut warn = |kind| warnings.push(Warning { line: number, kind });
        if line.trim_start().starts_with('#') {
            continue;
        }
        if line == "---" {
            started = true;
            continue;
        }
        if !started {
            if line == "---\r" {
                warn(WarningKind::CarriageReturn);
            } else if dropped_before.is_none() && !line.is_empty() {
                dropped_before = Some(number);
                warn(WarningKind::BeforeDashes);
            }
            continue;
        }
        let key = key(line);
        let slot = match key {
            "memory_mib" => &mut request.memory_mib,
            "cpu_count" => &mut request.cpu_count,
            "cpu_pool" => &mut request.cpu_pool,
            _ => return Err(AllocatorError::Unexpected { line: number, key: key.to_owned() }),
        };
        let value = value(line);
        if value.is_empty() {
            return Err(AllocatorError::NoValue { line: number, key: key.to_owned() });
        }
        if value.contains('#') {
            warn(WarningKind::TrailingComment);
        }
        if slot.is_some() {
            warn(WarningKind::Repeated);
        }
        *slot = Some(Setting { text: value, line: number });
    }
    Ok(request)
}

fn check(request: Request) -> Result<Request, AllocatorError> {
    match (&request.memory_mib, &request.cpu_count, &request.cpu_pool) {
        (None, ..) => Err(AllocatorError::NoMemory),
        (_, None, None) => Err(AllocatorError::NoCpus),
        (_, Some(a), Some(b)) => Err(AllocatorError::BothCpus { line: a.line.max(b.line) }),
        _ => Ok(request),
    }
}

/// Lines as bash's `read` gives them: surrounding blanks gone, a backslash
/// takes the next character as it is, and joins lines. Second: the number of a
/// last line that has no newline, and is not read.
fn lines(text: &str) -> (Vec<String>, Option<usize>) {
    let mut lines = Vec::new();
    let mut line = Line::default();
    let mut characters = text.chars().filter(|c| *c != '\0');
    let mut pending = false;
    while let Some(character) = characters.next() {
        pending = true;
        match character {
            '\n' => {
                lines.push(std::mem::take(&mut line).finish());
                pending = false;
            }
            '\\' => match characters.next() {
                Some('\n') | None => {}
                Some(escaped) => line.push(escaped, true),
            },
            _ => line.push(character, false),
        }
    }
    let unfinished = pending.then_some(lines.len() + 1);
    (lines, unfinished)
}

#[derive(Default)]
struct Line {
    text: String,
    /// Bytes up to the last character that may not be trimmed.
    keep: usize,
}

impl Line {
    fn push(&mut self, character: char, escaped: bool) {
        let blank = matches!(character, ' ' | '\t') && !escaped;
        if blank && self.text.is_empty() {
            return;
        }
        self.text.push(character);
        if !blank {
            self.keep = self.text.len();
        }
    }

    fn finish(mut self) -> String {
        self.text.truncate(self.keep);
        self.text
    }
}

/// What the script takes for the key: the word before the first colon.
fn key(line: &str) -> &str {
    // `echo` takes a line such as `-n` as its own option and prints nothing.
    if line.len() > 1 && line.starts_with('-') && line[1..].bytes().all(|b| b"neE".contains(&b)) {
        return "";
    }
    let head = line.split(':').next().unwrap_or_default();
    let end =
        head.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))).unwrap_or(head.len());
    &head[..end]
}

/// What the script takes for the value: behind the last colon, without the
/// first run of blanks and one quote at each end.
fn value(line: &str) -> String {
    let behind = match line.char_indices().skip(1).filter(|(_, c)| *c == ':').last() {
        Some((at, _)) => &line[at + 1..],
        None => line,
    };
    let mut value = behind.to_owned();
    if let Some(start) = behind.find(|c: char| c.is_ascii_whitespace()) {
        let rest = behind[start..].trim_start_matches(|c: char| c.is_ascii_whitespace());
        value = format!("{}{}", &behind[..start], rest.strip_prefix('"').unwrap_or(rest));
    }
    value.strip_suffix('"').map(str::to_owned).unwrap_or(value)
}

fn number(key: &'static str, setting: &Setting) -> Result<u64, AllocatorError> {
    let text = &setting.text;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad(key, setting, "not a whole number"));
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err(bad(key, setting, "which the shell reads as octal"));
    }
    match text.parse() {
        Ok(0) => Err(bad(key, setting, "which reserves nothing")),
        Ok(number) => Ok(number),
        Err(_) => Err(bad(key, setting, "more than any machine has")),
    }
}

fn bad(key: &'static str, setting: &Setting, why: &'static str) -> AllocatorError {
    AllocatorError::Number { line: setting.line, key, text: setting.text.clone(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reservation(text: &str) -> Result<Reservation, AllocatorError> {
        read(text).outcome.and_then(|request| request.reservation())
    }

    #[test]
    fn numbers_that_the_shell_reads_differently_are_refused() {
        for (text, why) in [("0512", "octal"), ("0", "nothing"), ("512 # x", "whole"), ("-1", "whole")] {
            let file = format!("---\nmemory_mib: {text}\ncpu_count: 2\n");
            assert!(reservation(&file).unwrap_err().to_string().contains(why), "{text}");
        }
    }

    #[test]
    fn cpus_are_a_count_or_a_list() {
        let pool = reservation("---\nmemory_mib: 512\ncpu_pool: 2,3,6-9,3\n").unwrap();
        assert_eq!(pool.cpus, Cpus::Ids(vec![2, 3, 6, 7, 8, 9]));
        for list in ["", "3-2", "1,", "a", "1-99999"] {
            assert_eq!(cpu_list(list), None, "{list}");
        }
    }

    #[test]
    fn the_unreleased_list_form_adds_up() {
        let list = read_list("---\n- memory_mib: 1024\n  cpu_count: 2\n- memory_mib: 512\n  cpu_count: 4\n")
            .unwrap();
        let sum = list.reservation().unwrap();
        assert_eq!((sum.memory_mib, sum.cpus), (1536, Cpus::Count(6)));
        assert_eq!(read_list("---\nmemory_mib: 512\ncpu_count: 2\n"), None);
        assert_eq!(read_list("- memory_mib: 512\n  cpu_count: 2\n- memory_mib: 1\n  cpu_pool: 3\n"), None);
    }
}
