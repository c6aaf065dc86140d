//! The driver's interface: ioctl numbers, structures, errors.
//!
//! Written from `include/uapi/linux/nitro_enclaves.h`, on purpose apart from
//! the production crate's copy: each tests the other.

/// `NE_CREATE_VM`: _IOR(0xAE, 0x20, u64).
pub(crate) const CREATE_VM: u32 = 0x8008_AE20;
/// `NE_ADD_VCPU`: _IOWR(0xAE, 0x21, u32).
pub(crate) const ADD_VCPU: u32 = 0xC004_AE21;
/// `NE_GET_IMAGE_LOAD_INFO`: _IOWR(0xAE, 0x22, 16 bytes).
pub(crate) const GET_IMAGE_LOAD_INFO: u32 = 0xC010_AE22;
/// `NE_SET_USER_MEMORY_REGION`: _IOW(0xAE, 0x23, 24 bytes).
pub(crate) const SET_USER_MEMORY_REGION: u32 = 0x4018_AE23;
/// `NE_START_ENCLAVE`: _IOWR(0xAE, 0x24, 16 bytes).
pub(crate) const START_ENCLAVE: u32 = 0xC010_AE24;

/// Where the image begins in donated memory, in bytes: `NE_EIF_LOAD_OFFSET`.
pub(crate) const IMAGE_OFFSET: u64 = 8 << 20;
/// `NE_MIN_MEM_REGION_SIZE`.
pub(crate) const MIN_REGION: u64 = 2 << 20;
/// `NE_MIN_ENCLAVE_MEM_SIZE`.
pub(crate) const MIN_MEMORY: u64 = 64 << 20;

/// First value that is no flag, by ioctl: `NE_IMAGE_LOAD_MAX_FLAG_VAL`,
/// `NE_MEMORY_REGION_MAX_FLAG_VAL`, `NE_ENCLAVE_START_MAX_FLAG_VAL`.
pub(crate) const IMAGE_LOAD_FLAGS_END: u64 = 2;
/// See [`IMAGE_LOAD_FLAGS_END`].
pub(crate) const REGION_FLAGS_END: u64 = 1;
/// See [`IMAGE_LOAD_FLAGS_END`].
pub(crate) const START_FLAGS_END: u64 = 2;
/// `NE_ENCLAVE_DEBUG_MODE`.
pub(crate) const DEBUG_MODE: u64 = 1;

/// `NE_ERR_VCPU_ALREADY_USED`.
pub(crate) const VCPU_ALREADY_USED: i32 = 256;
/// `NE_ERR_VCPU_NOT_IN_CPU_POOL`.
pub(crate) const VCPU_NOT_IN_CPU_POOL: i32 = 257;
/// `NE_ERR_INVALID_MEM_REGION_SIZE`.
pub(crate) const INVALID_MEM_REGION_SIZE: i32 = 259;
/// `NE_ERR_INVALID_MEM_REGION_ADDR`.
pub(crate) const INVALID_MEM_REGION_ADDR: i32 = 260;
/// `NE_ERR_UNALIGNED_MEM_REGION_ADDR`.
pub(crate) const UNALIGNED_MEM_REGION_ADDR: i32 = 261;
/// `NE_ERR_MEM_REGION_ALREADY_USED`.
pub(crate) const MEM_REGION_ALREADY_USED: i32 = 262;
/// `NE_ERR_MEM_NOT_HUGE_PAGE`.
pub(crate) const MEM_NOT_HUGE_PAGE: i32 = 263;
/// `NE_ERR_MEM_MAX_REGIONS`.
pub(crate) const MEM_MAX_REGIONS: i32 = 265;
/// `NE_ERR_NO_MEM_REGIONS_ADDED`.
pub(crate) const NO_MEM_REGIONS_ADDED: i32 = 266;
/// `NE_ERR_NO_VCPUS_ADDED`.
pub(crate) const NO_VCPUS_ADDED: i32 = 267;
/// `NE_ERR_ENCLAVE_MEM_MIN_SIZE`.
pub(crate) const ENCLAVE_MEM_MIN_SIZE: i32 = 268;
/// `NE_ERR_FULL_CORES_NOT_USED`.
pub(crate) const FULL_CORES_NOT_USED: i32 = 269;
/// `NE_ERR_NOT_IN_INIT_STATE`.
pub(crate) const NOT_IN_INIT_STATE: i32 = 270;
/// `NE_ERR_INVALID_VCPU`.
pub(crate) const INVALID_VCPU: i32 = 271;
/// `NE_ERR_NO_CPUS_AVAIL_IN_POOL`.
pub(crate) const NO_CPUS_AVAIL_IN_POOL: i32 = 272;
/// `NE_ERR_INVALID_PAGE_SIZE`.
pub(crate) const INVALID_PAGE_SIZE: i32 = 273;
/// `NE_ERR_INVALID_FLAG_VALUE`.
pub(crate) const INVALID_FLAG_VALUE: i32 = 274;
/// `NE_ERR_INVALID_ENCLAVE_CID`.
pub(crate) const INVALID_ENCLAVE_CID: i32 = 275;

/// The name of an ioctl, as faults.json writes it.
pub(crate) fn name(command: u32) -> Option<&'static str> {
    Some(match command {
        CREATE_VM => "NE_CREATE_VM",
        ADD_VCPU => "NE_ADD_VCPU",
        GET_IMAGE_LOAD_INFO => "NE_GET_IMAGE_LOAD_INFO",
        SET_USER_MEMORY_REGION => "NE_SET_USER_MEMORY_REGION",
        START_ENCLAVE => "NE_START_ENCLAVE",
        _ => return None,
    })
}

/// `struct ne_user_memory_region`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryRegion {
    /// Must be 0.
    pub(crate) flags: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Where it is in the donor's memory.
    pub(crate) address: u64,
}

impl MemoryRegion {
    /// Reads the structure.
    pub(crate) fn parse(raw: &[u8; 24]) -> MemoryRegion {
        let [flags, size, address] = words(raw);
        MemoryRegion { flags, size, address }
    }
}

/// Two u64: `struct ne_image_load_info` and `struct ne_enclave_start_info`.
pub(crate) fn pair(raw: &[u8; 16]) -> (u64, u64) {
    let [first, second] = words(raw);
    (first, second)
}

fn words<const N: usize>(raw: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(raw.chunks_exact(8)) {
        let mut copy = [0; 8];
        copy.copy_from_slice(bytes);
        *word = u64::from_ne_bytes(copy);
    }
    words
}
