//! The verdict, as text for people and JSON for programs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::SystemTime;

use attestation::environment::REGISTER;
use attestation::{Class, Clock, Pcr, Verified};
use serde::{Serialize, Serializer};

use super::expect::Expected;

/// Everything that a verified document says. Byte strings are hexadecimal,
/// times RFC 3339 in UTC.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    verified: bool,
    module_id: String,
    instance_id: String,
    region: String,
    timestamp: String,
    not_after: String,
    judged_at: &'static str,
    checked: Checked,
    /// Name of the accepted build, where a policy file lists it.
    build: Option<String>,
    /// The pod's variables that PCR16 holds, where they were given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pod_env: Vec<String>,
    /// PCR16 holds something and nothing was compared with it.
    #[serde(skip)]
    pod_env_unchecked: bool,
    debug: bool,
    root_fingerprint: String,
    pcrs: Registers,
    nonce: Option<String>,
    user_data: Option<String>,
    public_key: Option<String>,
}

/// What the flags had compared. The rest is checked always.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Checked {
    pub(crate) measurements: bool,
    pub(crate) nonce: bool,
    /// The key that the document speaks for signed a TLS handshake.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) handshake: bool,
}

/// A refusal, without a word of what the document says.
#[derive(Debug, Serialize)]
struct Refusal<'a> {
    verified: bool,
    code: &'a str,
    class: &'a str,
    error: String,
}

/// The registers of a document in hexadecimal, by rising index.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Registers(BTreeMap<Register, String>);

impl Registers {
    /// Name and value of those that hold anything.
    pub(crate) fn nonzero(&self) -> impl Iterator<Item = (String, &str)> {
        let used = self.0.iter().filter(|(_, value)| value.bytes().any(|digit| digit != b'0'));
        used.map(|(Register(index), value)| (format!("PCR{index}"), value.as_str()))
    }
}

impl<'a> FromIterator<(u8, &'a Pcr)> for Registers {
    fn from_iter<I: IntoIterator<Item = (u8, &'a Pcr)>>(registers: I) -> Registers {
        Registers(registers.into_iter().map(|(index, pcr)| (Register(index), hex::encode(pcr))).collect())
    }
}

/// Index of a PCR, shown as `PCR0`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Register(u8);

impl Report {
    /// What was expected by name is told by name.
    pub(crate) fn new(verified: &Verified<'_>, clock: Clock, checked: Checked, expected: &Expected) -> Self {
        Self {
            verified: true,
            module_id: verified.module_id().to_owned(),
            instance_id: verified.instance_id().to_owned(),
            region: verified.region().to_owned(),
            timestamp: rfc3339(verified.timestamp()),
            not_after: rfc3339(verified.not_after()),
            judged_at: match clock {
                Clock::System => "now",
                Clock::At(_) => "given-time",
                Clock::DocumentTime => "document-time",
            },
            checked,
            build: expected.build_name(verified.build()).map(str::to_owned),
            pod_env: expected.pod_env.iter().map(ToString::to_string).collect(),
            pod_env_unchecked: verified.pcr(REGISTER).is_some_and(|pcr| pcr.iter().any(|byte| *byte != 0))
                && !expected.policy.compares(verified.build(), REGISTER),
            debug: verified.is_debug(),
            root_fingerprint: hex::encode(verified.root_fingerprint()),
            pcrs: verified.pcrs().collect(),
            nonce: verified.nonce().map(hex::encode),
            user_data: verified.user_data().map(hex::encode),
            public_key: verified.public_key().map(hex::encode),
        }
    }

    pub(crate) fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            serde_json::to_writer_pretty(&mut out, self)?;
            return writeln!(out);
        }
        self.write_text(&mut out)
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        match self.judged_at {
            "now" => writeln!(out, "VERIFIED")?,
            audit => writeln!(out, "VERIFIED as of {audit}, which says nothing about the present")?,
        }
        if !self.checked.measurements {
            writeln!(out, "NOT CHECKED: measurements, so this may be any application")?;
        }
        if self.checked.handshake {
            writeln!(out, "handshake signed by the enclave's key")?;
        } else if !self.checked.nonce {
            writeln!(out, "NOT CHECKED: nonce, so this may be a replay")?;
        }
        if self.pod_env_unchecked {
            writeln!(
                out,
                "NOT CHECKED: PCR16, so where the image lets it the pod may have set any variables"
            )?;
        }
        if self.debug {
            writeln!(out, "DEBUG MODE: the application is not measured")?;
        }
        if let Some(build) = &self.build {
            writeln!(out, "build     {build}")?;
        }
        for variable in &self.pod_env {
            writeln!(out, "pod env   {}", variable.escape_debug())?;
        }
        writeln!(out, "module    {}", self.module_id)?;
        writeln!(out, "region    {}", self.region)?;
        writeln!(out, "signed    {}", self.timestamp)?;
        writeln!(out, "chain     valid until {}", self.not_after)?;
        writeln!(out, "root      sha256 {}", self.root_fingerprint)?;
        for (register, value) in self.pcrs.nonzero() {
            writeln!(out, "{register:<9} {value}")?;
        }
        for (name, value) in
            [("nonce", &self.nonce), ("user_data", &self.user_data), ("public_key", &self.public_key)]
        {
            if let Some(value) = value {
                writeln!(out, "{name:<9} {value}")?;
            }
        }
        Ok(())
    }
}

/// JSON goes to standard output, text to standard error.
pub(crate) fn print_refusal(
    code: &str,
    class: Class,
    refusal: &dyn std::error::Error,
    json: bool,
) -> io::Result<()> {
    let mut error = refusal.to_string();
    let mut cause = refusal.source();
    while let Some(source) = cause {
        error = format!("{error}: {source}");
        cause = source.source();
    }
    if json {
        let refusal = Refusal { verified: false, code, class: class.name(), error };
        let mut out = io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, &refusal)?;
        return writeln!(out);
    }
    writeln!(io::stderr(), "REFUSED ({}): {error}\ncode {code}", class.name())
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "out of range".to_owned(), |time| time.to_string())
}

impl Serialize for Register {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("PCR{}", self.0))
    }
}
