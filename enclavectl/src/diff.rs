//! `enclavectl diff`: what two images do not have in common, section by
//! section and file by file.

mod metadata;
mod text;

use std::{path::PathBuf, process::ExitCode};

use eif::{
    Image, Measurements, Section, SectionKind,
    diff::{Change, DiffError, FileChange, first_difference, ramdisks},
    signature::Signature,
};
use serde::Serialize;

use crate::{
    failure::{Blame, Failure},
    report::{print_json, print_text},
};

/// Tells what differs between two images: registers, header, each section,
/// and in ramdisks each file.
///
/// Exits 0 when the images are the same bytes and 1 when they differ, as
/// diff(1) does; 64 and more mean trouble.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One image
    first: PathBuf,
    /// The other
    second: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What differs. Empty where nothing does.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    same: bool,
    /// Registers, header fields, command line, metadata and signer.
    values: Vec<Value>,
    sections: Vec<SectionReport>,
}

/// One thing that both may have; nothing where an image has none.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Value {
    name: String,
    first: Option<String>,
    second: Option<String>,
}

/// A section that is not the same in both.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SectionReport {
    /// `kernel`, `ramdisk 1` and so on.
    name: String,
    /// Bytes of payload.
    first_size: Option<u64>,
    second_size: Option<u64>,
    /// First byte of the payload that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<FileReport>,
    /// Why a ramdisk was not looked into.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_listed: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct FileReport {
    path: String,
    change: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aspects: Vec<Value>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let (first, of_first) = Image::open_measured(&args.first)?;
    let (second, of_second) = Image::open_measured(&args.second)?;
    let mut values = registers(&of_first, &of_second);
    values.extend(header(&first, &second));
    values.extend(metadata::compare(&first, &second)?);
    values.extend(signers(&first, &second)?);
    let sections = sections(&first, &second)?;
    let report = Report { same: values.is_empty() && sections.is_empty(), values, sections };
    if args.json {
        print_json(&report)?;
    } else {
        print_text(&text::of(&report))?;
    }
    Ok(if report.same { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn registers(first: &Measurements, second: &Measurements) -> Vec<Value> {
    let values = |of: &Measurements| {
        [Some(of.pcr0), Some(of.pcr1), Some(of.pcr2), of.pcr8].map(|pcr| pcr.map(|pcr| pcr.to_string()))
    };
    let names = ["PCR0", "PCR1", "PCR2", "PCR8"];
    let pairs = values(first).into_iter().zip(values(second));
    names
        .into_iter()
        .zip(pairs)
        .filter_map(|(name, (one, other))| Value::if_different(name, one, other))
        .collect()
}

fn header(first: &Image<'_>, second: &Image<'_>) -> Vec<Value> {
    let (one, other) = (first.layout(), second.layout());
    [
        ("format version", one.version.to_string(), other.version.to_string()),
        ("architecture", one.architecture.to_string(), other.architecture.to_string()),
        ("default memory", one.default_memory.to_string(), other.default_memory.to_string()),
        ("default vCPUs", one.default_cpus.to_string(), other.default_cpus.to_string()),
        ("checksum", format!("{:08x}", one.crc()), format!("{:08x}", other.crc())),
    ]
    .into_iter()
    .filter_map(|(name, one, other)| Value::if_different(name, Some(one), Some(other)))
    .collect()
}

fn signers(first: &Image<'_>, second: &Image<'_>) -> Result<Option<Value>, Failure> {
    let name = |signature: Signature| {
        let issuer = signature.summary().map(|summary| {
            let attributes = summary.issuer.iter().map(|(name, value)| format!("{name}={value}"));
            format!(
                "issued by {:?}, until {}",
                attributes.collect::<Vec<_>>().join(", "),
                crate::inspect::asn1_time(summary.not_after)
            )
        });
        issuer.unwrap_or_else(|error| format!("a certificate that cannot be read: {error}"))
    };
    Ok(Value::if_different("signer", first.signature()?.map(name), second.signature()?.map(name)))
}

fn sections(first: &Image<'_>, second: &Image<'_>) -> Result<Vec<SectionReport>, Failure> {
    let mut reports = Vec::new();
    for kind in [
        SectionKind::Kernel,
        SectionKind::Cmdline,
        SectionKind::Metadata,
        SectionKind::Ramdisk,
        SectionKind::Signature,
    ] {
        fn of<'b>(image: &'b Image<'_>, kind: SectionKind) -> Vec<&'b Section> {
            image.layout().sections().iter().filter(|section| section.kind == kind).collect()
        }
        let (ones, others) = (of(first, kind), of(second, kind));
        for index in 0..ones.len().max(others.len()) {
            let name = match kind {
                SectionKind::Ramdisk => format!("ramdisk {index}"),
                kind => kind.to_string(),
            };
            let pair = (ones.get(index).copied(), others.get(index).copied());
            reports.extend(section(name, (first, pair.0), (second, pair.1))?);
        }
    }
    Ok(reports)
}

fn section(
    name: String,
    (first, one): (&Image<'_>, Option<&Section>),
    (second, other): (&Image<'_>, Option<&Section>),
) -> Result<Option<SectionReport>, Failure> {
    let mut report = SectionReport {
        name,
        first_size: one.map(Section::len),
        second_size: other.map(Section::len),
        first_difference: None,
        files: Vec::new(),
        not_listed: None,
    };
    let (Some(one), Some(other)) = (one, other) else { return Ok(Some(report)) };
    report.first_difference = first_difference((first, one), (second, other))?;
    if report.first_difference.is_none() {
        return Ok(None);
    }
    if one.kind == SectionKind::Ramdisk {
        match ramdisks((first, one), (second, other)) {
            Ok(changes) => report.files = changes.iter().map(FileReport::of).collect(),
            Err(error @ DiffError::Read { .. }) => return Err(error.into()),
            // Compressed, or of another format: the bytes were compared.
            Err(error) => report.not_listed = Some(format!("{:#}", anyhow::Error::new(error))),
        }
    }
    Ok(Some(report))
}

impl FileReport {
    fn of(file: &FileChange) -> FileReport {
        let (change, aspects) = match &file.change {
            Change::Removed => ("removed", Vec::new()),
            Change::Added => ("added", Vec::new()),
            Change::Modified(aspects) => ("modified", aspects.iter().map(text::aspect).collect()),
        };
        FileReport { path: String::from_utf8_lossy(&file.path).into_owned(), change, aspects }
    }
}

impl Value {
    fn if_different(name: impl Into<String>, first: Option<String>, second: Option<String>) -> Option<Value> {
        (first != second).then(|| Value { name: name.into(), first, second })
    }
}

impl From<DiffError> for Failure {
    fn from(error: DiffError) -> Failure {
        Failure::new(Blame::Io, error)
    }
}
