//! What an EC2 instance type can do, as far as its name tells, or as AWS says.
//!
//! The name is enough for architecture and size. Which families carry enclaves
//! changes over time; `aws ec2 describe-instance-types` is the only authority
//! ([`InstanceTypes`]), the list here is the user guide's of 2024.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::pages::Arch;

/// When the families below were listed by AWS's user guide.
pub const LISTED: &str = "2024";

/// Families without enclaves in the user guide of [`LISTED`].
const EXCLUDED: &[&str] = &[
    "a1", "c7a", "c7gd", "c7gn", "c7i", "g4ad", "g5g", "hpc7g", "im4gn", "is4gen", "m7a", "m7g", "m7gd",
    "m7i", "m7i-flex", "r7a", "r7g", "r7gd", "r7i", "r7iz", "t3", "t3a", "t4g", "trn1", "trn1n", "vt1",
];
/// Later editions take these back, all sizes or all but the largest.
const INCLUDED_LATER: &[&str] = &["c7a", "c7i", "m7a", "m7i", "r7a", "r7i"];
/// Families on Xen: not virtualised by Nitro.
const XEN: &[&str] = &[
    "c1", "c3", "c4", "d2", "f1", "g2", "g3", "g3s", "h1", "hs1", "i2", "i3", "m1", "m2", "m3", "m4", "p2",
    "p3", "r3", "r4", "t1", "t2", "x1", "x1e",
];
/// x86 families where one vCPU is one core.
const WITHOUT_SMT: &[&str] = &["c7a", "m7a", "r7a", "hpc6a", "hpc7a", "c8a", "m8a", "r8a", "t2"];

/// A name such as `m5.xlarge`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceType<'a> {
    /// `m5`.
    pub family: &'a str,
    /// `xlarge`.
    pub size: &'a str,
}

/// Whether enclaves run on a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// AWS's data says so.
    Yes,
    /// AWS's data says that they do not.
    No,
    /// There is no data; nothing is known against it.
    Likely,
    /// There is no data; a dated list excludes the family.
    Doubtful,
    /// There is data, but not about this type.
    Absent,
}

impl<'a> InstanceType<'a> {
    /// Takes a name apart. `None` for what is no instance type.
    pub fn parse(name: &'a str) -> Option<InstanceType<'a>> {
        let (family, size) = name.split_once('.')?;
        let fits = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let first = family.bytes().next()?;
        (fits(family)
            && fits(size)
            && first.is_ascii_lowercase()
            && family.bytes().any(|b| b.is_ascii_digit()))
        .then_some(InstanceType { family, size })
    }

    /// Graviton families carry a `g` behind their generation.
    pub fn arch(&self) -> Arch {
        let attributes = self
            .family
            .trim_start_matches(|c: char| !c.is_ascii_digit())
            .trim_start_matches(|c: char| c.is_ascii_digit());
        let attributes = attributes.split('-').next().unwrap_or_default();
        if attributes.contains('g') || self.family == "a1" { Arch::Arm64 } else { Arch::X86_64 }
    }

    /// Virtual CPUs, from the size. Bare metal has no number in its name.
    pub fn vcpus(&self) -> Option<u32> {
        match self.size {
            "nano" | "micro" | "small" | "large" => Some(2),
            "medium" => Some(if self.arch() == Arch::Arm64 && self.family != "t4g" { 1 } else { 2 }),
            "xlarge" => Some(4),
            size => size.strip_suffix("xlarge")?.parse::<u32>().ok()?.checked_mul(4),
        }
    }

    /// Memory in MiB for families where it follows from the vCPUs.
    pub fn memory_mib(&self) -> Option<u64> {
        let letters = self.family.find(|c: char| c.is_ascii_digit()).map(|at| &self.family[..at])?;
        let per_vcpu = match letters {
            "c" => 2048,
            "m" => 4096,
            "r" => 8192,
            _ => return None,
        };
        // c5n has more than other c families.
        let per_vcpu = if self.family == "c5n" { 2688 } else { per_vcpu };
        Some(u64::from(self.vcpus()?) * per_vcpu)
    }

    /// Whether the instance is a whole machine.
    pub fn is_metal(&self) -> bool {
        self.size.starts_with("metal") || self.family.starts_with("mac")
    }

    /// Whether it is virtualised by Xen.
    pub fn is_xen(&self) -> bool {
        XEN.contains(&self.family)
    }

    /// vCPUs a core, by the family's default.
    pub fn threads_per_core(&self) -> u32 {
        if self.arch() == Arch::Arm64 || WITHOUT_SMT.contains(&self.family) { 1 } else { 2 }
    }

    /// Whether the dated list excludes the family, and whether a later edition
    /// took that back.
    pub fn exclusion(&self) -> Option<bool> {
        let excluded = EXCLUDED.contains(&self.family) || self.family.starts_with("u-");
        excluded.then(|| INCLUDED_LATER.contains(&self.family))
    }
}

/// The output of `aws ec2 describe-instance-types`.
#[derive(Debug, Clone, Default)]
pub struct InstanceTypes {
    types: BTreeMap<String, Described>,
}

/// One type of that output.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Described {
    instance_type: String,
    nitro_enclaves_support: Option<String>,
    #[serde(default, rename = "VCpuInfo")]
    vcpu: Vcpu,
    #[serde(default, rename = "MemoryInfo")]
    memory: Memory,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Vcpu {
    #[serde(rename = "DefaultVCpus")]
    default_vcpus: Option<u32>,
    default_threads_per_core: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Memory {
    #[serde(rename = "SizeInMiB")]
    size_mib: Option<u64>,
}

impl InstanceTypes {
    /// Reads the JSON.
    pub fn from_json(bytes: &[u8]) -> Result<InstanceTypes, serde_json::Error> {
        #[derive(Deserialize)]
        struct Output {
            #[serde(rename = "InstanceTypes")]
            types: Vec<Described>,
        }
        let output: Output = serde_json::from_slice(bytes)?;
        let types = output.types.into_iter().map(|described| (described.instance_type.clone(), described));
        Ok(InstanceTypes { types: types.collect() })
    }

    fn described(&self, name: &str) -> Option<&Described> {
        self.types.get(name)
    }
}

/// What is known of a type, from the name and from AWS's data where there is
/// any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Whether enclaves run on it.
    pub support: Support,
    /// Its architecture.
    pub arch: Arch,
    /// Virtual CPUs.
    pub vcpus: Option<u32>,
    /// vCPUs a core.
    pub threads_per_core: u32,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
}

impl Capacity {
    /// Looks a type up. `None` for what is no instance type.
    pub fn of(name: &str, data: Option<&InstanceTypes>) -> Option<Capacity> {
        let parsed = InstanceType::parse(name)?;
        let described = data.and_then(|data| data.described(name));
        let support = match (data, described.and_then(|d| d.nitro_enclaves_support.as_deref())) {
            (_, Some("supported")) => Support::Yes,
            (_, Some(_)) => Support::No,
            (Some(_), None) => Support::Absent,
            (None, None) if parsed.exclusion().is_some() => Support::Doubtful,
            (None, None) => Support::Likely,
        };
        Some(Capacity {
            support,
            arch: parsed.arch(),
            vcpus: described.and_then(|d| d.vcpu.default_vcpus).or_else(|| parsed.vcpus()),
            threads_per_core: described
                .and_then(|d| d.vcpu.default_threads_per_core)
                .unwrap_or_else(|| parsed.threads_per_core()),
            memory_mib: described.and_then(|d| d.memory.size_mib).or_else(|| parsed.memory_mib()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_architecture_and_size() {
        for (name, arch, vcpus, threads) in [
            ("m5.xlarge", Arch::X86_64, Some(4), 2),
            ("c6g.large", Arch::Arm64, Some(2), 1),
            ("c7gn.medium", Arch::Arm64, Some(1), 1),
            ("g5.xlarge", Arch::X86_64, Some(4), 2),
            ("g5g.xlarge", Arch::Arm64, Some(4), 1),
            ("m7a.2xlarge", Arch::X86_64, Some(8), 1),
            ("m7i-flex.large", Arch::X86_64, Some(2), 2),
            ("m5.metal", Arch::X86_64, None, 2),
            ("is4gen.4xlarge", Arch::Arm64, Some(16), 1),
        ] {
            let read = InstanceType::parse(name).unwrap();
            assert_eq!(
                (read.arch(), read.vcpus(), read.threads_per_core()),
                (arch, vcpus, threads),
                "{name}"
            );
        }
        for name in ["", "m5", "m5.", ".xlarge", "${TYPE}", "M5.xlarge", "m.large"] {
            assert_eq!(InstanceType::parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_data_of_aws_beats_the_list() {
        let json = br#"{"InstanceTypes": [
            {"InstanceType": "t3.xlarge", "NitroEnclavesSupport": "supported", "MemoryInfo": {"SizeInMiB": 16384},
             "VCpuInfo": {"DefaultVCpus": 4, "DefaultThreadsPerCore": 2, "ValidCores": [1, 2]}},
            {"InstanceType": "m5.xlarge", "NitroEnclavesSupport": "unsupported"}]}"#;
        let data = InstanceTypes::from_json(json).unwrap();
        let of = |name| Capacity::of(name, Some(&data)).unwrap();
        assert_eq!((of("t3.xlarge").support, of("t3.xlarge").memory_mib), (Support::Yes, Some(16384)));
        assert_eq!(of("m5.xlarge").support, Support::No);
        assert_eq!(of("m6i.xlarge").support, Support::Absent);
        assert_eq!(Capacity::of("t3.xlarge", None).unwrap().support, Support::Doubtful);
        assert_eq!(Capacity::of("m5.xlarge", None).unwrap().support, Support::Likely);
    }
}
