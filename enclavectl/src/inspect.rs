//! `enclavectl inspect`: checks an image and tells what it is.

use std::{fmt::Write, path::PathBuf, process::ExitCode, time::SystemTime};

use eif::{Image, Measurements, Metadata, shadow};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    failure::Failure,
    report::{MeasurementsReport, print_json, print_text},
};

/// Checks an enclave image and shows what it measures to.
///
/// Exits 65 when the image breaks a rule of its format, naming the byte.
/// A signature is checked: the certificate's validity now, its key, and that
/// PCR0 is what is signed. Whose certificate it is, only PCR8 tells.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image to inspect
    file: PathBuf,
    /// Print JSON with the field names of `nitro-cli describe-eif`
    #[arg(long)]
    json: bool,
}

/// As `nitro-cli describe-eif` names it; `Warnings` is our own.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    eif_version: u16,
    measurements: MeasurementsReport,
    is_signed: bool,
    #[serde(rename = "CheckCRC")]
    check_crc: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature_check: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let (image, measurements) = Image::open_measured(&args.file)?;
    let metadata = image.metadata()?;
    let mut warnings: Vec<String> = shadow::find(&image).iter().map(describe).collect();
    let signature = image.signature()?.map(|found| found.check(&measurements.pcr0, SystemTime::now()));
    warnings.extend(signature.iter().filter_map(|checked| checked.as_ref().err()).map(ToString::to_string));
    for warning in &warnings {
        eprintln!("warning: {warning}");
    }
    if args.json {
        print_json(&report(
            &image,
            measurements,
            metadata,
            signature.map(|checked| checked.is_ok()),
            warnings,
        ))?;
    } else {
        print_text(&text(
            &image,
            measurements,
            metadata.as_ref(),
            signature.map(|checked| checked.is_ok()),
        )?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A finding with its causes.
fn describe(error: &shadow::Shadow) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        // Writing to a string does not fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

fn report(
    image: &Image<'_>,
    measurements: Measurements,
    metadata: Option<Metadata>,
    signature_check: Option<bool>,
    warnings: Vec<String>,
) -> Report {
    Report {
        eif_version: image.layout().version,
        measurements: measurements.into(),
        is_signed: image.layout().signature().is_some(),
        // An image with another checksum is refused before it gets here.
        check_crc: true,
        signature_check,
        image_name: metadata.as_ref().map(|metadata| metadata.image_name.clone()),
        image_version: metadata.as_ref().map(|metadata| metadata.image_version.clone()),
        metadata: metadata.map(flattened),
        warnings,
    }
}

/// The build's own fields, `DockerInfo` if there is any, and the custom keys
/// beside them, as describe-eif shows them.
fn flattened(metadata: Metadata) -> Map<String, Value> {
    let build = metadata.build;
    let mut fields = Map::new();
    for (name, value) in [
        ("BuildTime", build.build_time),
        ("BuildTool", build.build_tool),
        ("BuildToolVersion", build.build_tool_version),
        ("OperatingSystem", build.operating_system),
        ("KernelVersion", build.kernel_version),
    ] {
        fields.insert(name.to_owned(), Value::String(value));
    }
    if !metadata.docker_info.is_null() {
        fields.insert("DockerInfo".to_owned(), metadata.docker_info);
    }
    if let Value::Object(custom) = metadata.custom {
        for (name, value) in custom {
            fields.entry(name).or_insert(value);
        }
    }
    fields
}

fn text(
    image: &Image<'_>,
    measurements: Measurements,
    metadata: Option<&Metadata>,
    signature: Option<bool>,
) -> Result<String, Failure> {
    let layout = image.layout();
    let cmdline = image.cmdline()?;
    let mut lines = vec![
        (
            "format",
            format!("EIF version {}, {}, {} bytes", layout.version, layout.architecture, layout.len()),
        ),
        ("checksum", format!("{:08x}, correct", layout.crc())),
    ];
    if let Some(metadata) = metadata {
        let build = &metadata.build;
        lines.push(("name", format!("{:?} {:?}", metadata.image_name, metadata.image_version)));
        lines.push((
            "built",
            format!("{:?} by {:?} {:?}", build.build_time, build.build_tool, build.build_tool_version),
        ));
        lines.push(("kernel", format!("{:?} {:?}", build.operating_system, build.kernel_version)));
    }
    lines.push(("cmdline", cmdline.escape_ascii().to_string()));
    for section in layout.sections() {
        lines.push((
            "section",
            format!("{:<9} {:>12} bytes at {}", section.kind, section.len(), section.payload.start),
        ));
    }
    let signed = match signature {
        Some(true) => "yes, correctly over PCR0",
        Some(false) => "yes, but the signature is not good (see the warning)",
        None => "no",
    };
    lines.push(("signed", signed.to_owned()));
    lines.push(("PCR0", measurements.pcr0.to_string()));
    lines.push(("PCR1", measurements.pcr1.to_string()));
    lines.push(("PCR2", measurements.pcr2.to_string()));
    lines.extend(measurements.pcr8.map(|pcr8| ("PCR8", pcr8.to_string())));
    Ok(lines.iter().map(|(name, value)| format!("{name:<9} {value}\n")).collect())
}
