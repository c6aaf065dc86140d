//! What an image needs, by the sizes of its sections: memory to be unpacked
//! in, and time to be up.

use std::time::Duration;

use nitro_device::PageSize;

use super::{MIB, mib};
use crate::config::Timespan;

/// The driver's minimum (NE_ERR_ENCLAVE_MEM_MIN_SIZE), in bytes.
const LEAST_MEMORY: u64 = 64 * MIB;
/// Where the drivers seen so far load the image (NE_EIF_LOAD_OFFSET), in bytes.
/// The driver's own answer is checked again at launch.
const LOAD_OFFSET: u64 = 8 * MIB;
/// What a kernel takes for itself before it unpacks anything, in bytes. Measured
/// with a 6.1 kernel of 10 MiB, rounded up.
const KERNEL_NEEDS: u64 = 40 * MIB;
/// The part of that which it never gives to anyone, in bytes. Measured: 20 MiB
/// with a kernel of 5 MiB, rounded up for larger ones.
const KERNEL_KEEPS: u64 = 24 * MIB;
/// For an image of no size: a kernel's own start and the workload's.
const LEAST_TIME: Duration = Duration::from_secs(60);
/// What is measured, read and unpacked in a second at the least, in bytes. A
/// single slow core unpacks gzip at twice this rate.
const SLOWEST_RATE: u64 = 32 * MIB;

/// Sizes of an image, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The file.
    pub(crate) file: u64,
    /// Its ramdisks once unpacked.
    pub(crate) unpacked: u64,
}

impl Needs {
    /// Bytes without which it cannot even be loaded.
    pub(super) fn least(self) -> u64 {
        LEAST_MEMORY.max((LOAD_OFFSET + self.file).next_multiple_of(PageSize::MIB2.bytes()))
    }

    /// Bytes with which the kernel can unpack the image: the image lies in
    /// memory while its ramdisks are unpacked beside it, and Linux lets a
    /// root file system in memory fill half of what is free before that
    /// (Documentation/filesystems/tmpfs.rst, `size`; mm/shmem.c,
    /// `shmem_default_max_blocks`).
    fn comfort(self) -> u64 {
        (self.file + self.unpacked + KERNEL_NEEDS)
            .max(self.file + 2 * self.unpacked + KERNEL_KEEPS)
            .next_multiple_of(PageSize::MIB2.bytes())
    }

    /// How long it may take from its start until it is ready, unless the
    /// configuration says: a minute, and a second for each 32 MiB.
    pub(crate) fn boot_timeout(self) -> Timespan {
        let seconds = self.file.saturating_add(self.unpacked).div_ceil(SLOWEST_RATE);
        Timespan::at_most_a_day(LEAST_TIME + Duration::from_secs(seconds))
    }

    /// What may go wrong with so many bytes of memory.
    pub(super) fn warnings(self, memory: u64) -> Vec<String> {
        let (comfort, by_rule) = (self.comfort(), 4 * self.file);
        let (has, needs) = (mib(&memory), mib(&comfort));
        if memory < comfort {
            vec![format!(
                "{has} MiB may be too little to unpack this image (\"Failed to unpack initramfs\"): \
                 it needs about {needs} MiB; set `memory_mib: {needs}`"
            )]
        } else if memory < by_rule {
            vec![format!(
                "nitro-cli would refuse {has} MiB for this image (its rule: four times the file, {} MiB), \
                 though about {needs} MiB suffice",
                mib(&by_rule)
            )]
        } else {
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(memory: u64, file: u64, unpacked: u64) -> Vec<String> {
        Needs { file: file * MIB, unpacked: unpacked * MIB }.warnings(memory * MIB)
    }

    #[test]
    fn four_times_the_image_is_no_rule_but_the_real_need_is_a_warning() {
        assert!(warnings(1000, 100, 100).is_empty());
        assert!(warnings(350, 100, 100)[0].contains("400 MiB"), "nitro-cli's rule");
        let tight = warnings(20, 10, 10);
        assert!(tight[0].contains("`memory_mib: 60`"), "{tight:?}");
        // With 192 MiB such an image lost its last files; with 200 it was whole.
        let half = warnings(192, 64, 60);
        assert!(half[0].contains("`memory_mib: 208`"), "half of what is left: {half:?}");
        let packed = warnings(500, 100, 300);
        assert!(packed[0].contains("`memory_mib: 724`"), "{packed:?}");
    }

    #[test]
    fn the_time_to_boot_grows_with_the_image_and_is_never_more_than_a_day() {
        let seconds = |file, unpacked| Needs { file, unpacked }.boot_timeout().duration().as_secs();
        assert_eq!(seconds(0, 0), 60);
        assert_eq!(seconds(1, 0), 61);
        assert_eq!(seconds(32 * MIB, 20 * MIB), 62);
        assert_eq!(seconds(1024 * MIB, 3072 * MIB), 60 + 128);
        assert_eq!(seconds(u64::MAX, u64::MAX), 24 * 60 * 60);
    }
}
