//! What the kernel expects: ioctl numbers and structs, asserted at compile time.
//!
//! Source: Linux `include/uapi/linux/nitro_enclaves.h` and `include/uapi/linux/nsm.h`.

/// An ioctl number by the kernel's `_IOC` rule: direction, size, type, number.
const fn ioc(direction: u32, kind: u32, number: u32, size: usize) -> u32 {
    assert!(size < 1 << 14, "the size field has 14 bits");
    direction << 30 | (size as u32) << 16 | kind << 8 | number
}

const WRITE: u32 = 1;
const READ: u32 = 2;
const NITRO_ENCLAVES: u32 = 0xAE;

pub(crate) const NE_CREATE_VM: u32 = ioc(READ, NITRO_ENCLAVES, 0x20, size_of::<u64>());
pub(crate) const NE_ADD_VCPU: u32 = ioc(READ | WRITE, NITRO_ENCLAVES, 0x21, size_of::<u32>());
pub(crate) const NE_GET_IMAGE_LOAD_INFO: u32 =
    ioc(READ | WRITE, NITRO_ENCLAVES, 0x22, size_of::<ImageLoadInfo>());
pub(crate) const NE_SET_USER_MEMORY_REGION: u32 =
    ioc(WRITE, NITRO_ENCLAVES, 0x23, size_of::<UserMemoryRegion>());
pub(crate) const NE_START_ENCLAVE: u32 =
    ioc(READ | WRITE, NITRO_ENCLAVES, 0x24, size_of::<EnclaveStartInfo>());
pub(crate) const NSM_IOCTL_RAW: u32 = ioc(READ | WRITE, 0x0A, 0, size_of::<NsmRaw>());

/// `NE_EIF_IMAGE`: the image is an Enclave Image Format file.
pub(crate) const NE_EIF_IMAGE: u64 = 1;
/// `NE_DEFAULT_MEMORY_REGION`: the only kind of memory region.
pub(crate) const NE_DEFAULT_MEMORY_REGION: u64 = 0;
/// `NE_ENCLAVE_PRODUCTION_MODE`.
pub(crate) const NE_ENCLAVE_PRODUCTION_MODE: u64 = 0;
/// `NE_ENCLAVE_DEBUG_MODE`: console readable from the parent, PCRs zero.
pub(crate) const NE_ENCLAVE_DEBUG_MODE: u64 = 1;

/// `struct ne_image_load_info`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct ImageLoadInfo {
    pub(crate) flags: u64,
    pub(crate) memory_offset: u64,
}

/// `struct ne_user_memory_region`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct UserMemoryRegion {
    pub(crate) flags: u64,
    pub(crate) memory_size: u64,
    pub(crate) userspace_addr: u64,
}

/// `struct ne_enclave_start_info`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct EnclaveStartInfo {
    pub(crate) flags: u64,
    pub(crate) enclave_cid: u64,
}

/// `struct nsm_iovec`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct NsmIovec {
    pub(crate) addr: u64,
    pub(crate) len: u64,
}

/// `struct nsm_raw`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct NsmRaw {
    pub(crate) request: NsmIovec,
    pub(crate) response: NsmIovec,
}

const _: () = {
    assert!(NE_CREATE_VM == 0x8008_AE20);
    assert!(NE_ADD_VCPU == 0xC004_AE21);
    assert!(NE_GET_IMAGE_LOAD_INFO == 0xC010_AE22);
    assert!(NE_SET_USER_MEMORY_REGION == 0x4018_AE23);
    assert!(NE_START_ENCLAVE == 0xC010_AE24);
    assert!(NSM_IOCTL_RAW == 0xC020_0A00);
    assert!(size_of::<ImageLoadInfo>() == 16 && align_of::<ImageLoadInfo>() == 8);
    assert!(size_of::<UserMemoryRegion>() == 24 && align_of::<UserMemoryRegion>() == 8);
    assert!(size_of::<EnclaveStartInfo>() == 16 && align_of::<EnclaveStartInfo>() == 8);
    assert!(size_of::<NsmRaw>() == 32 && align_of::<NsmRaw>() == 8);
    assert!(std::mem::offset_of!(ImageLoadInfo, memory_offset) == 8);
    assert!(std::mem::offset_of!(UserMemoryRegion, memory_size) == 8);
    assert!(std::mem::offset_of!(UserMemoryRegion, userspace_addr) == 16);
    assert!(std::mem::offset_of!(EnclaveStartInfo, enclave_cid) == 8);
    assert!(std::mem::offset_of!(NsmRaw, response) == 16);
};
