//! How the shim ends when it ends for a reason of its own: one table of exit
//! codes, and the two lines that every operator gets, a cause and a fix.
//!
//! A workload that ends by itself gives its own code instead, and may well give
//! one of these numbers; the crash report's `origin` tells the two apart.

use std::error::Error;

use serde::Serialize;

macro_rules! exits {
    ($($variant:ident = $code:literal, $name:literal, $meaning:literal;)*) => {
        /// Why the shim ended. The numbers follow sysexits.h where it has one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Exit {
            $(#[doc = concat!($code, ": ", $meaning, ".")] $variant,)*
        }

        impl Exit {
            /// Every one, by rising code.
            pub(crate) const ALL: [Exit; [$($code),*].len()] = [$(Exit::$variant),*];

            /// The process's exit code.
            pub(crate) fn code(self) -> u8 {
                match self { $(Exit::$variant => $code,)* }
            }

            /// A stable word for reports.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Exit::$variant => $name,)* }
            }

            /// What it means, for `--help`.
            pub(crate) fn meaning(self) -> &'static str {
                match self { $(Exit::$variant => $meaning,)* }
            }
        }
    };
}

exits! {
    Usage = 64, "usage", "wrong command line or configuration";
    Image = 65, "image", "the enclave image cannot be used, or its workload cannot be run";
    Unavailable = 69, "unavailable", "no enclave device, or no vsock";
    Bug = 70, "bug", "a mistake in this program";
    Resources = 71, "resources", "the host lacks memory, CPUs, slots or ports";
    BootTimeout = 75, "boot_timeout", "the enclave was not ready in time";
    EnclaveDied = 76, "enclave_died", "the enclave ended without saying why, or belongs to another shim";
}

/// What an error of this program must know beside its text.
pub(crate) trait Blame: Error + Sized {
    /// Whose fault it is.
    fn exit(&self) -> Exit;
    /// What the operator can change, in one line.
    fn fix(&self) -> String;
}

/// What the operator reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Explanation {
    /// One line: what was tried on which object, and why it failed.
    pub(crate) cause: String,
    /// One line: what to change.
    pub(crate) fix: String,
}

impl Explanation {
    /// Both are made one line each.
    pub(crate) fn new(cause: impl Into<String>, fix: impl Into<String>) -> Explanation {
        Explanation { cause: one_line(&cause.into()), fix: one_line(&fix.into()) }
    }
}

/// A reason of the shim's own to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The row of the table.
    pub(crate) exit: Exit,
    pub(crate) explanation: Explanation,
}

impl Failure {
    /// A failure that is found by looking, not by an error.
    pub(crate) fn new(exit: Exit, cause: impl Into<String>, fix: impl Into<String>) -> Failure {
        Failure { exit, explanation: Explanation::new(cause, fix) }
    }

    /// A mistake in this program.
    pub(crate) fn bug(cause: impl Into<String>) -> Failure {
        Failure::new(Exit::Bug, cause, "report this with the lines above it")
    }
}

impl<E: Blame> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::new(error.exit(), chain(&error), error.fix())
    }
}

/// An error and its sources on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    one_line(&text)
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn the_table_is_the_documented_one_and_says_something_in_every_cell() {
        assert_eq!(Exit::ALL.map(Exit::code), [64, 65, 69, 70, 71, 75, 76]);
        let names: HashSet<_> = Exit::ALL.iter().map(|exit| exit.name()).collect();
        assert_eq!(names.len(), Exit::ALL.len());
        assert!(Exit::ALL.iter().all(|exit| !exit.meaning().is_empty()));
    }

    #[test]
    fn a_chain_of_errors_is_one_line_and_names_the_root() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read\n the file")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "cannot read; the file: disk on fire");
    }

    /// A variant's name and its text.
    type Variant = (String, String);

    /// Every error type that an operator can meet, as the sources have it: its
    /// file, its name, and its variants (a struct has one, without a name).
    fn blamed() -> Vec<(PathBuf, String, Vec<Variant>)> {
        let mut found = Vec::new();
        for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            let text = std::fs::read_to_string(&path).unwrap();
            for rest in text.split("\nimpl Blame for ").skip(1) {
                let name = rest.split([' ', '<']).next().unwrap().to_owned();
                let variants = variants(&text, &name);
                assert!(!variants.is_empty(), "no variants of {name} found");
                found.push((path.clone(), name, variants));
            }
        }
        found
    }

    fn sources(directory: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
        directories.iter().flat_map(|directory| sources(directory)).chain(files).collect()
    }

    fn variants(source: &str, name: &str) -> Vec<Variant> {
        if let Some((before, _)) = source.split_once(&format!("struct {name}")) {
            let attribute = before.rsplit("#[error(").next().unwrap();
            return vec![(String::new(), literal(attribute))];
        }
        let (_, body) = source.split_once(&format!("enum {name} {{")).unwrap();
        let body = body.split("\n}\n").next().unwrap();
        let attributes = body.split("#[error(").skip(1);
        attributes
            .map(|attribute| {
                let variant = attribute.split(")]\n").nth(1).unwrap().trim_start();
                let end = variant.find(|char: char| !char.is_alphanumeric()).unwrap();
                (variant[..end].to_owned(), literal(attribute))
            })
            .collect()
    }

    /// The first string of an attribute, `…` for what differs; empty if there is none.
    fn literal(attribute: &str) -> String {
        first_string(attribute.split(")]").next().unwrap())
    }

    /// The first string of a piece of code, as the manual writes it.
    fn first_string(code: &str) -> String {
        let code = code.replace("\\\"", "\u{1}");
        let Some((_, text)) = code.split_once('"') else { return String::new() };
        let text = text.split_once('"').map_or(text, |(text, _)| text).replace('\u{1}', "\"");
        // A string may go on in the next line.
        let text = text.split("\\\n").map(str::trim_start).collect::<String>();
        let mut shown = String::new();
        for (index, piece) in text.split(['{', '}']).enumerate() {
            match index % 2 {
                0 => shown.push_str(piece),
                _ if shown.ends_with('…') => {}
                _ => shown.push('…'),
            }
        }
        shown
    }

    /// The text of every call of `function` outside tests: from its bracket on.
    fn calls(function: &str) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]").next().unwrap();
            if path.ends_with("tests.rs") || path.ends_with("exit.rs") {
                continue;
            }
            found.extend(
                code.split(&format!("{function}(")).skip(1).map(|call| (path.clone(), call.to_owned())),
            );
        }
        found
    }

    fn operations() -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn every_error_variant_is_tried_in_a_test_of_its_code_cause_and_fix() {
        let all = blamed();
        assert!(all.len() >= 8, "{all:?}");
        for (path, name, variants) in all {
            let text = std::fs::read_to_string(&path).unwrap();
            let (_, tests) = text.split_once("#[cfg(test)]").unwrap_or_default();
            let tests = [tests, include_str!("exit.rs")].concat();
            for (variant, _) in variants.iter().filter(|(variant, _)| !variant.is_empty()) {
                let sample = format!("{name}::{variant}");
                assert!(tests.contains(&sample), "{} tries no {sample}", path.display());
            }
        }
    }

    #[test]
    fn every_shortfall_has_its_exit_code_a_cause_and_a_fix() {
        use crate::boot::plan::{CpuShortfall, Shortfall};
        use nitro_device::PageSize;
        let (page, needed) = (PageSize::MIB2, 64 << 20);
        let cpus = |shortfall: CpuShortfall| Shortfall::Cpus(shortfall);
        for (shortfall, code, cause, fix) in [
            (Shortfall::Granted { page, needed, left: 0, used: 0 }, 71, "64 MiB", "hugepages-2Mi: 64Mi`"),
            (
                Shortfall::Granted { page, needed, left: 0, used: needed },
                71,
                "64 MiB",
                "hugepages-2Mi: 128Mi`",
            ),
            (Shortfall::Free { page, needed, free: 2 << 20 }, 71, "2 MiB are free", "hugepages"),
            (
                Shortfall::Node { page, node: 1, needed, free: 0, elsewhere: needed },
                71,
                "NUMA node 1",
                "32 more 2 MiB pages",
            ),
            (Shortfall::Pieces { needed, pieces: 70_000 }, 71, "70000 pieces", "1 GiB"),
            (Shortfall::None { needed }, 71, "no free huge pages", "hugepages-2Mi: 64Mi"),
            (Shortfall::Small { page, memory: 2 << 20, needed, chosen: true }, 64, "at least 64 MiB", "64"),
            (Shortfall::Small { page, memory: 2 << 20, needed, chosen: false }, 71, "at least 64 MiB", "64"),
            (cpus(CpuShortfall::Empty), 71, "no CPUs", "cpu_count"),
            (cpus(CpuShortfall::Few { needed: 4, pool: 2 }), 71, "need 4 CPUs", "cpus: 2"),
            (cpus(CpuShortfall::NotPooled { id: 7, pool: vec![1, 3] }), 64, "CPU 7", "ne_cpus"),
            (cpus(CpuShortfall::PartOfCore { count: 3, threads: 2 }), 64, "3 CPUs", "cpus: 4"),
            (cpus(CpuShortfall::Sibling { id: 1, sibling: 5 }), 64, "CPU 1 without 5", "5"),
        ] {
            let failure = Failure::from(shortfall);
            assert_eq!(failure.exit.code(), code, "{failure:?}");
            assert!(failure.explanation.cause.contains(cause), "{failure:?}");
            assert!(failure.explanation.fix.contains(fix), "{failure:?}");
        }
    }

    #[test]
    fn every_failure_without_an_error_type_and_every_warning_is_in_the_operators_manual() {
        let manual = operations();
        let mut seen = 0;
        let makers = ["Failure::new", "Failure::bug", "Explanation::new"];
        let warnings = ["tracing::warn!", "tracing::error!", "vec![format!", "advice.push(format!"];
        for function in makers.into_iter().chain(warnings) {
            for (path, call) in calls(function) {
                let message = first_string(call.split(");\n").next().unwrap());
                // Text of an argument's, which is looked at where it is made.
                if message.replace('…', "").trim().is_empty() {
                    continue;
                }
                assert!(
                    manual.contains(&format!("`{message}`")),
                    "{}: docs/operations.md does not tell `{message}`",
                    path.display()
                );
                seen += 1;
            }
        }
        assert!(seen > 30, "only {seen} messages were found");
    }

    /// Whose messages follow after the colon of one of ours.
    const CAUSES: [&str; 17] = [
        "egress/src/allowlist.rs",
        "eif/src/image.rs",
        "eif/src/metadata.rs",
        "eif/src/parse.rs",
        "eif/src/signature.rs",
        "eif/src/signature/certificate.rs",
        "eif/src/signature/check.rs",
        "enclave-app/src/launch/identity.rs",
        "enclave-app/src/launch/mod.rs",
        "enclave-app/src/launch/program.rs",
        "enclave-app/src/launch/rights.rs",
        "enclave-app/src/launch/root.rs",
        "nitro-device/src/cid.rs",
        "src/boot/pins.rs",
        "src/config/timespan.rs",
        "src/enclave/session.rs",
        "wire/src/settings.rs",
    ];

    #[test]
    fn every_cause_that_may_follow_a_message_is_in_the_operators_manual() {
        let manual = operations();
        for file in CAUSES {
            let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
            let messages: Vec<_> = text.split("#[error(").skip(1).map(literal).collect();
            assert!(!messages.is_empty(), "{file} has no messages any more");
            for message in messages.iter().filter(|message| !message.is_empty()) {
                assert!(
                    manual.contains(&format!("`{message}`")),
                    "{file}: docs/operations.md does not tell `{message}`"
                );
            }
        }
    }

    #[test]
    fn every_message_and_every_code_is_in_the_operators_manual() {
        let manual = operations();
        let messages = blamed().into_iter().flat_map(|(_, _, variants)| variants);
        for (variant, message) in messages.filter(|(_, message)| !message.is_empty()) {
            assert!(manual.contains(&format!("| `{message}` |")), "{variant}: `{message}` is not told");
        }
        for exit in Exit::ALL {
            let row = format!("| {} | `{}` | {} |", exit.code(), exit.name(), exit.meaning());
            assert!(manual.contains(&row), "{row}");
        }
        for code in nitro_device::DriverCode::ALL {
            let row =
                format!("| {} | `{}` | {} | {} |", code.errno(), code.name(), code.meaning(), code.fix());
            assert!(manual.contains(&row), "{row}");
        }
    }
}
