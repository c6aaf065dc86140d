//! What an enclave is called, as scripts around nitro-cli know it: the fields
//! that `run-enclave` and `describe-enclaves` print.

use std::path::Path;

use nitro_device::Cid;
use serde::Serialize;

/// Where an instance has its id. Source: aws-nitro-enclaves-cli.
const ASSET_TAG: &str = "/sys/devices/virtual/dmi/id/board_asset_tag";
/// What nitro-cli says where there is none.
const NO_INSTANCE: &str = "i-0000000000000000";

/// The fields of `run-enclave`. Names and types are nitro-cli's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Identity {
    /// The image's file name without its extension.
    enclave_name: String,
    #[serde(rename = "EnclaveID")]
    enclave_id: String,
    #[serde(rename = "ProcessID")]
    process_id: u32,
    #[serde(rename = "EnclaveCID")]
    enclave_cid: u32,
    #[serde(rename = "NumberOfCPUs")]
    number_of_cpus: u64,
    #[serde(rename = "CPUIDs")]
    cpu_ids: Vec<u32>,
    #[serde(rename = "MemoryMiB")]
    memory_mib: u64,
}

impl Identity {
    /// Of an enclave that this process owns. `memory` is in bytes.
    pub(crate) fn new(eif: &Path, slot_uid: u64, cid: Cid, cpu_ids: Vec<u32>, memory: u64) -> Identity {
        let instance = std::fs::read_to_string(ASSET_TAG).unwrap_or_default();
        let instance = Some(instance.trim()).filter(|id| id.starts_with("i-")).unwrap_or(NO_INSTANCE);
        Identity {
            enclave_name: eif.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            enclave_id: format!("{instance}-enc{slot_uid:x}"),
            process_id: std::process::id(),
            enclave_cid: cid.get(),
            number_of_cpus: cpu_ids.len() as u64,
            cpu_ids,
            memory_mib: memory >> 20,
        }
    }

    /// As `run-enclave` prints it.
    pub(crate) fn to_json(&self) -> String {
        // Made of strings and numbers: it always has a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_those_of_run_enclave() {
        let cid = Cid::try_from(16u32).unwrap();
        let identity = Identity::new(Path::new("/srv/app.eif"), 0x1_8f0a_bcde, cid, vec![1, 3], 128 << 20);
        let json: serde_json::Value = serde_json::from_str(&identity.to_json()).unwrap();
        let names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        let expected =
            ["CPUIDs", "EnclaveCID", "EnclaveID", "EnclaveName", "MemoryMiB", "NumberOfCPUs", "ProcessID"];
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(sorted, expected);
        assert_eq!((&json["EnclaveName"], &json["MemoryMiB"]), (&"app".into(), &128.into()));
        assert!(json["EnclaveID"].as_str().unwrap().ends_with("-enc18f0abcde"), "{json}");
        assert_eq!(json["CPUIDs"], serde_json::json!([1, 3]));
    }
}
