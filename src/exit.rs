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
}
