//! The reader and the page plan against what AWS's own script was observed to
//! do.

mod testdata;

use std::collections::BTreeMap;

use kubernetes::{
    allocator::{self, AllocatorError, Setting, WarningKind},
    pages::{PagePlan, PageSize},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    input: String,
    observed: BTreeMap<String, String>,
}

#[test]
fn files_are_read_as_the_script_was_observed_to_read_them() {
    let Some(text) = testdata::read("k8s/allocator/observed_parser_cases.json") else { return };
    let own = include_str!("parser_cases.json");
    for case in [text.as_str(), own].iter().flat_map(|text| serde_json::from_str::<Vec<Case>>(text).unwrap())
    {
        let outcome = allocator::read(&case.input).outcome;
        match case.observed.get("error") {
            Some(expected) => assert_eq!(&script_text(&outcome.unwrap_err()), expected, "{}", case.name),
            None => {
                let request = outcome.unwrap_or_else(|error| panic!("{}: {error}", case.name));
                for (key, setting) in [
                    ("memory_mib", request.memory_mib),
                    ("cpu_count", request.cpu_count),
                    ("cpu_pool", request.cpu_pool),
                ] {
                    let read = setting.map(|Setting { text, .. }| text);
                    assert_eq!(read.as_ref(), case.observed.get(key), "{}: {key}", case.name);
                }
            }
        }
    }
}

#[test]
fn what_the_script_drops_silently_is_warned_of() {
    for (file, line, kind) in [
        ("---\nmemory_mib: 512\ncpu_count: 2", 3, WarningKind::NoFinalNewline),
        ("memory_mib: 512\ncpu_count: 2\n", 1, WarningKind::BeforeDashes),
        ("---\r\nmemory_mib: 512\r\n", 1, WarningKind::CarriageReturn),
        ("---\nmemory_mib: 512\ncpu_count: 2 # two\n", 3, WarningKind::TrailingComment),
        ("---\nmemory_mib: 512\ncpu_count: 2\nmemory_mib: 1\n", 4, WarningKind::Repeated),
    ] {
        let warnings = allocator::read(file).warnings;
        assert!(warnings.iter().any(|warning| warning.line == line && warning.kind == kind), "{file:?}");
    }
    let shipped = testdata::read("k8s/allocator/allocator.yaml");
    let clean = shipped.unwrap_or("---\n# one\nmemory_mib: 512\ncpu_count: 2\n".to_owned());
    assert_eq!(allocator::read(&clean).warnings, []);
}

#[derive(Deserialize)]
struct Plans {
    page_sizes_offered: BTreeMap<String, Vec<String>>,
    observed: Vec<Plan>,
}

#[derive(Deserialize)]
struct Plan {
    arch: String,
    memory_mib: u64,
    pages: BTreeMap<String, u64>,
}

#[test]
fn pages_are_planned_as_the_script_was_observed_to_plan_them() {
    let Some(text) = testdata::read("k8s/allocator/observed_page_plan.json") else { return };
    let plans: Plans = serde_json::from_str(&text).unwrap();
    let size = |name: &String| PageSize::from_sysfs(name).unwrap();
    for plan in &plans.observed {
        let offered: Vec<PageSize> = plans.page_sizes_offered[&plan.arch].iter().map(size).collect();
        let ours = PagePlan::new(plan.memory_mib, &offered).unwrap();
        let ours: BTreeMap<PageSize, u64> = ours.pages().iter().copied().collect();
        let observed: BTreeMap<PageSize, u64> =
            plan.pages.iter().map(|(name, count)| (size(name), *count)).collect();
        assert_eq!(ours, observed, "{} {}", plan.arch, plan.memory_mib);
    }
}

/// The script's words for an error.
fn script_text(error: &AllocatorError) -> String {
    match error {
        AllocatorError::Unexpected { line, key } => {
            format!("{line} - unexpected: {key}").trim_end().to_owned()
        }
        AllocatorError::NoValue { line, key } => format!("{line} - missing value for {key}"),
        AllocatorError::NoMemory => "missing memory reservation".to_owned(),
        AllocatorError::NoCpus => "missing CPU reservation".to_owned(),
        AllocatorError::BothCpus { .. } => "`cpu_count` conflicts with `cpu_pool`".to_owned(),
        AllocatorError::Number { .. } => unreachable!("the reader does not look at numbers"),
    }
}
