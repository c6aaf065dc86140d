//! Finds what is wrong with the enclave parts of manifests of any origin.
//!
//! ```text
//! files ─▶ documents ─▶ objects ─▶ Model: pools ─ bootstraps ─ pods ─ plugins
//!                                    │  (linked by name, label and selector)
//!                                    └─▶ rules ─▶ findings ─▶ report, fixes
//! ```
//! A rule sees only what is written: what is not among the files is not
//! guessed at, and a value that a template fills in later (`${...}`) matches
//! every rule. An object's annotation `enclave-shim/lint-allow: RULE RULE`
//! leaves out its warnings and advice of these rules; errors stay.

mod alloc;
mod boot;
mod collect;
mod finding;
mod karpenter;
mod memory;
mod model;
mod node;
mod pod;
mod pool;
pub mod report;
mod rule;
mod script;
mod sed;
mod shell;

pub use finding::{Finding, Fix, Spot, fix};
pub use rule::{Level, RULES, Rule};

use crate::{instance::InstanceTypes, pages::Arch};
use finding::Findings;

/// A file to look at.
#[derive(Debug, Clone)]
pub struct Source {
    /// As findings will name it.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What is known besides the files.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The enclave image that the pods run.
    pub image: Option<ImageFacts>,
    /// AWS's own data on instance types.
    pub instance_types: Option<InstanceTypes>,
}

/// What matters of an enclave image.
#[derive(Debug, Clone, Copy)]
pub struct ImageFacts {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// What it boots on.
    pub arch: Arch,
}

/// Applies every rule. Findings are in the order of files and lines.
pub fn lint(sources: &[Source], facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings::new(sources);
    let documents = collect::documents(sources, &mut findings);
    let model = model::Model::new(sources, &documents, facts, &mut findings);
    collect::duplicate_keys(&documents, &mut findings);
    node::check(&model, &mut findings);
    pool::check(&model, &mut findings);
    boot::check(&model, &mut findings);
    memory::check(&model, &mut findings);
    pod::check(&model, &mut findings);
    karpenter::check(&model, &mut findings);
    for object in &model.objects {
        findings.leave_out(object.file, object.root);
    }
    findings.sorted()
}
