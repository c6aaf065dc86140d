//! `enclavectl policy`: writes and checks the file that says which builds a
//! client accepts.
//!
//! ```text
//! app.eif, measurements.json, provenance.json ─▶ registers ─▶ policy.yaml
//! ```
//!
//! The file holds values, not the paths that they came from: it can be
//! reviewed, signed and shipped on its own.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, ensure};
use attestation::{Fingerprint, Pcr, PolicyFile};
use serde_json::{Map, Value};

use crate::failure::{Blame, Failure, OrBlame};
use crate::output::OutputFile;
use crate::report::print_text;
use crate::verify::expect::{Variable, digits, pod_register, read_policy, register, variable};
use crate::verify::input;

/// Write or check a policy file, which says what documents must prove
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a policy that accepts each of these builds
    From(FromArgs),
    /// Check a policy file and say what it accepts
    Check {
        /// The policy
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct FromArgs {
    /// Enclave images, measurements as `enclavectl build` or nitro-cli print them, or provenance files
    #[arg(required = true, value_name = "BUILD")]
    builds: Vec<PathBuf>,
    /// Registers to take from each build, where it has them
    #[arg(long, value_name = "INDEX", value_delimiter = ',', default_values_t = [0, 1, 2, 8])]
    registers: Vec<u8>,
    /// Demand this of every build: PCR3 is the IAM role, PCR4 the instance (repeatable)
    #[arg(long, value_name = "INDEX=HEX", value_parser = register)]
    pcr: Vec<(u8, Pcr)>,
    /// Demand that the pod set this variable, and no other than those so named: PCR16 (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pod_env: Vec<Variable>,
    /// How old a document may be, in seconds
    #[arg(long, value_name = "S", default_value_t = 300)]
    max_age: u64,
    /// Do without a nonce: documents may be replays for as long as --max-age
    #[arg(long)]
    no_nonce: bool,
    /// Trust this root instead of AWS's: SHA-256 of its DER (repeatable)
    #[arg(long, value_name = "SHA256", value_parser = digits::<32>)]
    root_fingerprint: Vec<Fingerprint>,
    /// Where to write the policy [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Longest measurement or provenance file read, in bytes.
const LONGEST_JSON: u64 = 4 * 1024 * 1024;

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    match args.action {
        Action::From(args) => from(&args)?,
        Action::Check { file } => check(&file)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn from(args: &FromArgs) -> Result<(), Failure> {
    let yaml = args.yaml()?;
    // The one judge of a policy is its reader: nothing is written that it refuses.
    PolicyFile::parse(&yaml).or_blame(Blame::Usage)?;
    let Some(path) = &args.output else { return print_text(&yaml) };
    let cannot = || format!("cannot write {}", path.display());
    let output = OutputFile::create(path).with_context(cannot).or_blame(Blame::CannotCreate)?;
    let written = output.file().and_then(|mut file| file.write_all(yaml.as_bytes()));
    written.and_then(|()| output.publish()).with_context(cannot).or_blame(Blame::Io)
}

fn check(path: &Path) -> Result<(), Failure> {
    let file = read_policy(path)?;
    let builds: Vec<_> = (0..).map_while(|index| file.build_name(index)).collect();
    let nonce = if file.demands_nonce() { "a fresh nonce is demanded" } else { "NO NONCE is demanded" };
    print_text(&format!("{}: accepts {}; {nonce}\n", path.display(), builds.join(", ")))
}

impl FromArgs {
    fn yaml(&self) -> Result<String, Failure> {
        let mut yaml = String::from("version: 1\nbuilds:\n");
        for path in &self.builds {
            let registers = registers(path)?.into_iter().filter(|(index, _)| self.registers.contains(index));
            // A JSON string is a YAML string.
            let _ = writeln!(yaml, "  - name: {}\n    pcrs:", Value::from(name(path)));
            for (index, pcr) in registers {
                let _ = writeln!(yaml, "      {}", entry(index, &pcr));
            }
        }
        let mut demanded = self.pcr.clone();
        if !self.pod_env.is_empty() {
            demanded.push(pod_register(&self.pod_env)?);
        }
        if !demanded.is_empty() {
            yaml.push_str("pcrs:\n");
        }
        for (index, pcr) in &demanded {
            let _ = writeln!(yaml, "  {}", entry(*index, pcr));
        }
        let nonce = if self.no_nonce { "waived" } else { "required" };
        let _ = writeln!(yaml, "max_age_s: {}\nnonce: {nonce}", self.max_age);
        if !self.root_fingerprint.is_empty() {
            yaml.push_str("roots:\n");
        }
        for root in &self.root_fingerprint {
            let _ = writeln!(yaml, "  - '{}'", hex::encode(root));
        }
        Ok(yaml)
    }
}

/// Quoted, so that digits alone are no number to any reader of YAML.
fn entry(index: u8, pcr: &Pcr) -> String {
    format!("PCR{index}: '{}'", hex::encode(pcr))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The registers of one build, by rising index.
fn registers(path: &Path) -> Result<Vec<(u8, Pcr)>, Failure> {
    let json = read_json(path)?;
    let mut registers = match json {
        Some(json) => from_json(&json).with_context(|| path.display().to_string()).or_blame(Blame::Data)?,
        None => input::measure(path)?,
    };
    registers.sort_unstable_by_key(|(index, _)| *index);
    Ok(registers)
}

/// The file as JSON; `None` when it does not begin like an object.
fn read_json(path: &Path) -> Result<Option<Value>, Failure> {
    use std::io::Read;
    let mut text = Vec::new();
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let mut file = file.or_blame(Blame::NoInput)?.take(1);
    let cannot = || format!("cannot read {}", path.display());
    file.read_to_end(&mut text).with_context(cannot).or_blame(Blame::Io)?;
    if text != b"{" {
        return Ok(None);
    }
    file.set_limit(LONGEST_JSON);
    file.read_to_end(&mut text).with_context(cannot).or_blame(Blame::Io)?;
    serde_json::from_slice(&text).map(Some).with_context(|| path.display().to_string()).or_blame(Blame::Data)
}

/// `{"Measurements": {"PCR0": HEX, ...}}` of nitro-cli and of ours, with any
/// other members, or the inner object by itself; or our provenance, an in-toto
/// statement with the measurements among its by-products.
fn from_json(json: &Value) -> anyhow::Result<Vec<(u8, Pcr)>> {
    let object = json.as_object().ok_or_else(|| anyhow!("not a JSON object"))?;
    let inner = ["Measurements", "measurements"].iter().find_map(|key| object.get(*key));
    let inner = inner.or_else(|| {
        let products = json.pointer("/predicate/runDetails/byproducts")?.as_array()?;
        products.iter().find(|product| product["name"] == "measurements")?.get("annotations")
    });
    let measurements: &Map<String, Value> = inner.and_then(Value::as_object).unwrap_or(object);
    let mut registers = Vec::new();
    for (key, value) in measurements {
        let index = key.strip_prefix("PCR").or_else(|| key.strip_prefix("pcr"));
        let Some(index) = index.and_then(|digits| digits.parse().ok()) else { continue };
        let text = value.as_str().ok_or_else(|| anyhow!("{key} is not text"))?;
        let pcr = digits(text).map_err(|reason| anyhow!("{key}: {reason}"))?;
        registers.push((index, pcr));
    }
    ensure!(!registers.is_empty(), "no measurements are in it");
    Ok(registers)
}
