//! Differences as a person reads them.

use std::fmt::Write;

use eif::diff::Aspect;

use super::{FileReport, Report, SectionReport, Value};

/// What stands for a value that an image does not have.
const NONE: &str = "none";

pub(super) fn of(report: &Report) -> String {
    if report.same {
        return "the images are the same\n".to_owned();
    }
    let mut text = String::new();
    for value in &report.values {
        line(&mut text, &value.name);
        for (mark, value) in [('-', &value.first), ('+', &value.second)] {
            line(&mut text, &format!("  {mark} {}", value.as_deref().unwrap_or(NONE)));
        }
    }
    for section in &report.sections {
        line(&mut text, &heading(section));
        for file in &section.files {
            line(&mut text, &self::file(file));
        }
        if let Some(why) = &section.not_listed {
            line(&mut text, &format!("  not looked into: {why}"));
        }
    }
    text
}

fn heading(section: &SectionReport) -> String {
    let name = &section.name;
    match (section.first_size, section.second_size, section.first_difference) {
        (Some(_), None, _) => format!("{name}: only in the first image"),
        (None, Some(_), _) => format!("{name}: only in the second image"),
        (Some(one), Some(other), Some(at)) if one == other => {
            format!("{name}: {one} bytes, different from byte {at}")
        }
        (one, other, at) => format!(
            "{name}: {} and {} bytes, different from byte {}",
            one.unwrap_or(0),
            other.unwrap_or(0),
            at.unwrap_or(0)
        ),
    }
}

fn file(file: &FileReport) -> String {
    let path = file.path.escape_debug();
    match file.change {
        "removed" => format!("  - {path}"),
        "added" => format!("  + {path}"),
        _ => {
            let aspects = file.aspects.iter().map(|aspect| match (&aspect.first, &aspect.second) {
                (Some(one), Some(other)) => format!("{} {one} | {other}", aspect.name),
                _ => aspect.name.clone(),
            });
            format!("  ~ {path}: {}", aspects.collect::<Vec<_>>().join(", "))
        }
    }
}

pub(super) fn aspect(aspect: &Aspect) -> Value {
    let pair = |(one, other): (u32, u32)| format!("{one}:{other}");
    let (name, first, second) = match *aspect {
        Aspect::Mode(one, other) => ("mode".to_owned(), format!("{one:o}"), format!("{other:o}")),
        Aspect::Owner(one, other) => ("owner".to_owned(), pair(one), pair(other)),
        Aspect::Links(one, other) => ("links".to_owned(), one.to_string(), other.to_string()),
        Aspect::Time(one, other) => ("time".to_owned(), one.to_string(), other.to_string()),
        Aspect::Device(one, other) => ("device".to_owned(), pair(one), pair(other)),
        Aspect::Size(one, other) => ("size".to_owned(), one.to_string(), other.to_string()),
        Aspect::Content { offset } => {
            return Value { name: format!("content from byte {offset}"), first: None, second: None };
        }
    };
    Value { name, first: Some(first), second: Some(second) }
}

fn line(text: &mut String, line: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}
