//! `enclavectl lint`: says what is wrong with the enclave parts of manifests.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use eif::Architecture;
use kubernetes::{
    instance::InstanceTypes,
    lint::{self, Facts, Finding, ImageFacts, Level, RULES, Rule, Source, report},
    pages::Arch,
};

use crate::{
    failure::{Blame, Failure, OrBlame},
    output::OutputFile,
    report::{print_json, print_text},
};

/// As a file's name.
const STDIN: &str = "-";

/// Says what is wrong with manifests for enclaves: node pools, boot
/// configuration, allocator files, user data, device plugins, pods.
///
/// The files are looked at together, so give all that belong together. A
/// directory stands for the YAML and JSON files in it. Exits 1 when a finding
/// is an error, 0 otherwise.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files or directories to look at; `-` is standard input
    #[arg(required_unless_present = "rules", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Image that the pods run: compares its size and architecture
    #[arg(long, value_name = "FILE")]
    eif: Option<PathBuf>,
    /// Output of `aws ec2 describe-instance-types`, the authority on which types have enclaves
    #[arg(long, value_name = "FILE")]
    instance_types: Option<PathBuf>,
    /// Repair what is safe to repair, in place; what is left is reported
    #[arg(long)]
    fix: bool,
    /// How findings are printed
    #[arg(long, value_enum, default_value_t = Format::Text, conflicts_with = "json")]
    format: Format,
    /// The same as --format json
    #[arg(long)]
    json: bool,
    /// Print every rule with its level and end
    #[arg(long, conflicts_with_all = ["files", "fix", "eif", "instance_types"])]
    rules: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    /// For code review tools (SARIF 2.1.0)
    Sarif,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    if args.rules {
        print_text(&rules())?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.fix && args.files.iter().any(|path| path.as_os_str() == STDIN) {
        return Err(Failure::new(Blame::Usage, anyhow!("standard input cannot be repaired in place")));
    }
    let facts = facts(&args)?;
    let mut sources = read_all(&args.files)?;
    let mut findings = lint::lint(&sources, &facts);
    if args.fix {
        repair(&mut sources, &mut findings, &facts)?;
    }
    match if args.json { Format::Json } else { args.format } {
        Format::Text => print_text(&report::text(&findings))?,
        Format::Json => print_json(&report::json(&findings))?,
        Format::Sarif => print_json(&report::sarif(&findings, env!("CARGO_PKG_VERSION")))?,
    }
    let failed = findings.iter().any(|finding| finding.level == Level::Error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn rules() -> String {
    let line = |rule: &&Rule| {
        let level = format!("{:?}", rule.level).to_lowercase();
        format!("{:<22} {level:<8} {}\n", rule.id, rule.summary)
    };
    RULES.iter().map(line).collect()
}

fn facts(args: &Args) -> Result<Facts, Failure> {
    let image = match &args.eif {
        Some(path) => {
            let image = eif::Image::open(path)?;
            Some(ImageFacts { bytes: image.layout().len(), arch: arch(image.layout().architecture) })
        }
        None => None,
    };
    let instance_types = match &args.instance_types {
        Some(path) => {
            let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()));
            let types = InstanceTypes::from_json(&bytes.or_blame(Blame::NoInput)?);
            let describe = || format!("{} is no output of describe-instance-types", path.display());
            Some(types.with_context(describe).or_blame(Blame::Data)?)
        }
        None => None,
    };
    Ok(Facts { image, instance_types })
}

/// The image's architecture in the words of page plans.
pub(crate) fn arch(architecture: Architecture) -> Arch {
    match architecture {
        Architecture::X86_64 => Arch::X86_64,
        Architecture::Aarch64 => Arch::Arm64,
    }
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Source>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let describe = || format!("cannot read directory {}", path.display());
            let entries = fs::read_dir(path).with_context(describe).or_blame(Blame::NoInput)?;
            let entries: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
            let mut entries = entries.with_context(describe).or_blame(Blame::NoInput)?;
            entries.retain(|entry| entry.is_file() && is_manifest(entry));
            entries.sort();
            files.extend(entries);
        } else {
            files.push(path.clone());
        }
    }
    files.iter().map(|path| read(path)).collect()
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|end| matches!(end.to_str(), Some("yaml" | "yml" | "json")))
}

fn read(path: &Path) -> Result<Source, Failure> {
    if path.as_os_str() == STDIN {
        let text = io::read_to_string(io::stdin()).context("cannot read standard input");
        return Ok(Source { name: "stdin".to_owned(), text: text.or_blame(Blame::NoInput)? });
    }
    let describe = || format!("cannot read {}", path.display());
    let text = fs::read_to_string(path).with_context(describe).or_blame(Blame::NoInput)?;
    Ok(Source { name: path.display().to_string(), text })
}

/// Applies fixes until none is left; a fix may uncover another finding.
fn repair(sources: &mut [Source], findings: &mut Vec<Finding>, facts: &Facts) -> Result<(), Failure> {
    /// More rounds than rules can uncover one another.
    const ROUNDS: usize = 10;
    for _ in 0..ROUNDS {
        let mut changed = false;
        for (index, source) in sources.iter_mut().enumerate() {
            let fixed = lint::fix(index, &source.text, findings);
            if fixed == source.text {
                continue;
            }
            replace(Path::new(&source.name), &fixed)?;
            source.text = fixed;
            changed = true;
        }
        if !changed {
            break;
        }
        *findings = lint::lint(sources, facts);
    }
    Ok(())
}

/// A file is replaced whole or not at all.
fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let describe = || format!("cannot replace {}", path.display());
    // A link is followed, so that the file it names is replaced.
    let path = fs::canonicalize(path).with_context(describe).or_blame(Blame::CannotCreate)?;
    let mode = fs::metadata(&path).with_context(describe).or_blame(Blame::CannotCreate)?.permissions();
    let output = OutputFile::create(&path).with_context(describe).or_blame(Blame::CannotCreate)?;
    let mut file = output.file().with_context(describe).or_blame(Blame::Io)?;
    file.write_all(text.as_bytes()).with_context(describe).or_blame(Blame::Io)?;
    file.set_permissions(mode).with_context(describe).or_blame(Blame::Io)?;
    output.publish().with_context(describe).or_blame(Blame::CannotCreate)
}
