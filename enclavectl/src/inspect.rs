//! `enclavectl inspect`: checks an image and tells what it is; shows what a document claims.

mod document;

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use eif::{Image, Measurements, Metadata, shadow, signature::CertificateSummary};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    failure::Failure,
    report::{MeasurementsReport, print_json, print_text},
};

/// Checks an enclave image and shows what it measures to, or shows what an attestation document claims.
///
/// Of a document nothing is verified: see `enclavectl verify`. Exits 65 when the image breaks a rule of its format, naming the byte.
/// A signature is checked: the certificate's validity now, its key, and that
/// PCR0 is what is signed. Whose certificate it is, only PCR8 tells.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image, or document in CBOR, base64 or hex (`-` reads one from standard input)
    file: PathBuf,
    /// Print JSON, for an image with the field names of `nitro-cli describe-eif`
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
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_certificate: Option<CertificateReport>,
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

/// The signer's certificate, as OpenSSL shows one.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CertificateReport {
    issuer_name: BTreeMap<String, String>,
    algorithm: String,
    not_before: String,
    not_after: String,
    signature: String,
}

/// What is known of a signature.
struct Signed {
    good: bool,
    /// Nothing when it cannot be read.
    certificate: Option<CertificateSummary>,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    if !is_image(&args.file) {
        document::run(&args.file, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (image, measurements) = Image::open_measured(&args.file)?;
    let metadata = image.metadata()?;
    let mut warnings: Vec<String> = shadow::find(&image).iter().map(describe).collect();
    let signed = image.signature()?.map(|signature| {
        let checked = signature.check(&measurements.pcr0, SystemTime::now());
        warnings.extend(checked.as_ref().err().map(ToString::to_string));
        Signed { good: checked.is_ok(), certificate: signature.summary().ok() }
    });
    for warning in &warnings {
        eprintln!("warning: {warning}");
    }
    if args.json {
        print_json(&report(&image, measurements, metadata, signed, warnings))?;
    } else {
        print_text(&text(&image, measurements, metadata.as_ref(), signed.as_ref())?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a file begins as images do. One that cannot be read is left to the reader of images,
/// and so is an empty one.
fn is_image(path: &Path) -> bool {
    let mut begin = [0; 4];
    path != Path::new("-")
        && File::open(path)
            .and_then(|mut file| file.read_exact(&mut begin))
            .map_or(true, |()| &begin == b".eif")
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
    signed: Option<Signed>,
    warnings: Vec<String>,
) -> Report {
    Report {
        eif_version: image.layout().version,
        measurements: measurements.into(),
        is_signed: signed.is_some(),
        // An image with another checksum is refused before it gets here.
        check_crc: true,
        signature_check: signed.as_ref().map(|signed| signed.good),
        signing_certificate: signed.and_then(|signed| signed.certificate).map(CertificateReport::from),
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

impl From<CertificateSummary> for CertificateReport {
    fn from(certificate: CertificateSummary) -> CertificateReport {
        let signature: Vec<_> = certificate.signature.iter().map(|byte| format!("{byte:02X}")).collect();
        CertificateReport {
            issuer_name: certificate.issuer.into_iter().collect(),
            algorithm: certificate.algorithm,
            not_before: asn1_time(certificate.not_before),
            not_after: asn1_time(certificate.not_after),
            signature: signature.join(":"),
        }
    }
}

/// `Nov 24 00:00:00 2026 GMT`, as OpenSSL prints times; the number where there
/// is no such date.
pub(crate) fn asn1_time(seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(seconds);
    time.map_or_else(|_| seconds.to_string(), |time| time.strftime("%b %e %H:%M:%S %Y GMT").to_string())
}

fn text(
    image: &Image<'_>,
    measurements: Measurements,
    metadata: Option<&Metadata>,
    signed: Option<&Signed>,
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
    let word = match signed {
        Some(Signed { good: true, .. }) => "yes, correctly over PCR0",
        Some(Signed { good: false, .. }) => "yes, but the signature is not good (see the warning)",
        None => "no",
    };
    lines.push(("signed", word.to_owned()));
    if let Some(certificate) = signed.and_then(|signed| signed.certificate.as_ref()) {
        let issuer = certificate.issuer.iter().map(|(name, value)| format!("{name}={value}"));
        lines.push(("issuer", format!("{:?}", issuer.collect::<Vec<_>>().join(", "))));
        let (from, until) = (asn1_time(certificate.not_before), asn1_time(certificate.not_after));
        lines.push(("validity", format!("{from} to {until}")));
    }
    lines.push(("PCR0", measurements.pcr0.to_string()));
    lines.push(("PCR1", measurements.pcr1.to_string()));
    lines.push(("PCR2", measurements.pcr2.to_string()));
    lines.extend(measurements.pcr8.map(|pcr8| ("PCR8", pcr8.to_string())));
    Ok(lines.iter().map(|(name, value)| format!("{name:<9} {value}\n")).collect())
}
