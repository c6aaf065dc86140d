//! Errors of the device: plain errnos, and the driver's own codes 256 to 275.

use std::fmt;
use std::io;

/// A call on the device that failed.
///
/// The text says what was tried; `source` holds the errno as the kernel gave
/// it, [`DeviceError::code`] the driver's own code when it is one.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt}{}", .code.map(|code| format!(": {code}")).unwrap_or_default())]
pub struct DeviceError {
    /// What was tried, e.g. `donate 64 MiB of memory`.
    pub attempt: String,
    /// The driver's own code, if the errno is one.
    pub code: Option<DriverCode>,
    /// The raw errno.
    #[source]
    pub source: io::Error,
}

impl DeviceError {
    /// The error of the call that has just failed. Reads the raw errno: typed
    /// errno enums map 256 to 275 to "unknown".
    pub(crate) fn last(attempt: impl Into<String>) -> DeviceError {
        DeviceError::from_io(attempt, io::Error::last_os_error())
    }

    pub(crate) fn from_io(attempt: impl Into<String>, source: io::Error) -> DeviceError {
        let code = source.raw_os_error().and_then(DriverCode::from_errno);
        DeviceError { attempt: attempt.into(), code, source }
    }

    /// Whether the same call may succeed a moment later with nothing changed:
    /// it was interrupted, or an enclave that has just ended is still being
    /// cleared away by the driver and the hypervisor.
    pub fn is_transient(&self) -> bool {
        match (self.code, self.source.raw_os_error()) {
            (Some(code), _) => code == DriverCode::NoCpusAvailInPool,
            (None, errno) => matches!(errno, Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOSPC)),
        }
    }

    /// What the operator can change, in one line.
    pub fn fix(&self) -> &'static str {
        match (self.code, self.source.raw_os_error()) {
            (Some(code), _) => code.fix(),
            (None, Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)) => {
                "launch the instance with enclaves enabled, load the nitro_enclaves module, and give the pod the device (resource aws.ec2.nitro/nitro_enclaves)"
            }
            (None, Some(libc::EACCES)) => {
                "run with the device's group (supplementalGroups: the gid of /dev/nitro_enclaves)"
            }
            // Mode and group have passed: it is the container's list of devices that refuses.
            (None, Some(libc::EPERM)) => {
                "have the container granted the device (resource aws.ec2.nitro/nitro_enclaves): mounted as a hostPath alone it cannot be opened"
            }
            (None, Some(libc::EISDIR | libc::ENOTTY)) => {
                "give the pod the device itself: what is at its place is another file, or a directory that was made for a hostPath on a node without it"
            }
            (None, Some(libc::ENOSPC)) => {
                "all enclave slots of the instance are taken (four at most): wait for one to end or use another node"
            }
            (None, Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                "the driver is still busy with another enclave, or all enclave slots of the instance are taken: wait for one to end, then start again"
            }
            (None, Some(libc::ENOMEM)) => "free or reserve more memory on the instance",
            (None, Some(libc::EIO)) => {
                "use the process that created the enclave for every call (no fork in between)"
            }
            (None, Some(libc::ETIMEDOUT)) => {
                "the hypervisor did not answer: retry, and report it to AWS if it stays"
            }
            _ => "see the errno; dmesg on the instance may say more",
        }
    }
}

macro_rules! driver_codes {
    ($($errno:literal $variant:ident $name:literal $meaning:literal $fix:literal)*) => {
        /// A code of the Nitro Enclaves driver, returned as an errno above the
        /// kernel's own. Source: `NE_ERR_*` in `nitro_enclaves.h`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DriverCode {
            $(#[doc = concat!("`", $name, "` (", $errno, "): ", $meaning, ".")] $variant = $errno,)*
        }

        impl DriverCode {
            /// Every code, by rising number.
            pub const ALL: [DriverCode; 20] = [$(DriverCode::$variant),*];

            /// The code with this errno.
            pub fn from_errno(errno: i32) -> Option<DriverCode> {
                match errno {
                    $($errno => Some(DriverCode::$variant),)*
                    _ => None,
                }
            }

            /// The errno.
            pub fn errno(self) -> i32 {
                self as i32
            }

            /// The header's name.
            pub fn name(self) -> &'static str {
                match self { $(DriverCode::$variant => $name,)* }
            }

            /// What it means, in a few words.
            pub fn meaning(self) -> &'static str {
                match self { $(DriverCode::$variant => $meaning,)* }
            }

            /// What the operator can change.
            pub fn fix(self) -> &'static str {
                match self { $(DriverCode::$variant => $fix,)* }
            }
        }
    };
}

driver_codes! {
    256 VcpuAlreadyUsed "NE_ERR_VCPU_ALREADY_USED" "the CPU is already in this enclave" "list every CPU id once"
    257 VcpuNotInCpuPool "NE_ERR_VCPU_NOT_IN_CPU_POOL" "the CPU is not in the pool, or another enclave has it" "choose CPU ids from /sys/module/nitro_enclaves/parameters/ne_cpus that no other enclave uses, or let the driver choose (cpus: a count)"
    258 VcpuInvalidCpuCore "NE_ERR_VCPU_INVALID_CPU_CORE" "the core of this CPU is not one of the pool" "choose CPU ids whose whole core is in the pool"
    259 InvalidMemRegionSize "NE_ERR_INVALID_MEM_REGION_SIZE" "the memory region is not a multiple of 2 MiB" "ask for a multiple of the huge page size"
    260 InvalidMemRegionAddr "NE_ERR_INVALID_MEM_REGION_ADDR" "the memory region is not mapped for this process" "this is a bug in the launcher: report it"
    261 UnalignedMemRegionAddr "NE_ERR_UNALIGNED_MEM_REGION_ADDR" "the memory region does not start on a 2 MiB boundary" "this is a bug in the launcher: report it"
    262 MemRegionAlreadyUsed "NE_ERR_MEM_REGION_ALREADY_USED" "the memory region was donated before" "this is a bug in the launcher: report it"
    263 MemNotHugePage "NE_ERR_MEM_NOT_HUGE_PAGE" "the memory is not made of huge pages" "give the pod a hugepages-2Mi or hugepages-1Gi limit"
    264 MemDifferentNumaNode "NE_ERR_MEM_DIFFERENT_NUMA_NODE" "the memory is on another NUMA node than the CPU pool" "reserve the huge pages on the node of the CPU pool (the allocator service does)"
    265 MemMaxRegions "NE_ERR_MEM_MAX_REGIONS" "the memory is in more pieces than an enclave may have" "use 1 GiB pages, or reserve the pages early after boot while memory is contiguous"
    266 NoMemRegionsAdded "NE_ERR_NO_MEM_REGIONS_ADDED" "the enclave has no memory" "this is a bug in the launcher: report it"
    267 NoVcpusAdded "NE_ERR_NO_VCPUS_ADDED" "the enclave has no CPU" "ask for at least one core (cpus: 2)"
    268 EnclaveMemMinSize "NE_ERR_ENCLAVE_MEM_MIN_SIZE" "the enclave has less than 64 MiB" "ask for at least memory_mib: 64"
    269 FullCoresNotUsed "NE_ERR_FULL_CORES_NOT_USED" "a core is used in part" "ask for an even number of CPUs, or list both threads of each core"
    270 NotInInitState "NE_ERR_NOT_IN_INIT_STATE" "the enclave runs already, or has ended" "this is a bug in the launcher: report it"
    271 InvalidVcpu "NE_ERR_INVALID_VCPU" "the CPU id is higher than any of the instance" "choose CPU ids of this instance"
    272 NoCpusAvailInPool "NE_ERR_NO_CPUS_AVAIL_IN_POOL" "no CPU of the pool is free" "enlarge the pool (cpu_count in allocator.yaml), or wait for another enclave to end"
    273 InvalidPageSize "NE_ERR_INVALID_PAGE_SIZE" "the page size is none that the driver takes" "use 2 MiB or 1 GiB pages"
    274 InvalidFlagValue "NE_ERR_INVALID_FLAG_VALUE" "a flag has a value that this driver does not know" "update the instance's kernel"
    275 InvalidEnclaveCid "NE_ERR_INVALID_ENCLAVE_CID" "the CID is reserved or taken by another enclave" "leave the CID out, so that the driver chooses a free one"
}

impl fmt::Display for DriverCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.meaning(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_driver_code_keeps_its_number_name_and_fix() {
        for (code, errno) in DriverCode::ALL.into_iter().zip(256..) {
            assert_eq!(code.errno(), errno);
            assert_eq!(DriverCode::from_errno(errno), Some(code));
            assert!(code.name().starts_with("NE_ERR_"), "{code:?}");
            assert!(!code.meaning().is_empty() && !code.fix().is_empty(), "{code:?}");
        }
        assert_eq!(DriverCode::ALL.map(DriverCode::errno).last(), Some(&275));
        assert_eq!(DriverCode::from_errno(255), None);
        assert_eq!(DriverCode::from_errno(276), None);
    }

    #[test]
    fn only_what_time_may_mend_is_transient() {
        let transient = |errno| DeviceError::from_io("x", io::Error::from_raw_os_error(errno)).is_transient();
        assert!([libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ENOSPC, 272].into_iter().all(transient));
        let final_ones = [libc::EACCES, libc::ENOENT, libc::ENOTTY, libc::EIO, libc::ENOMEM, libc::ETIMEDOUT];
        assert!(!final_ones.into_iter().any(transient));
        assert!(
            !DriverCode::ALL.iter().filter(|code| code.errno() != 272).any(|code| transient(code.errno()))
        );
    }

    #[test]
    fn raw_errnos_above_255_survive() {
        let error = DeviceError::from_io("donate 2 MiB", io::Error::from_raw_os_error(263));
        assert_eq!(error.code, Some(DriverCode::MemNotHugePage));
        assert_eq!(
            error.to_string(),
            "cannot donate 2 MiB: the memory is not made of huge pages (NE_ERR_MEM_NOT_HUGE_PAGE)"
        );
        assert!(error.fix().contains("hugepages-2Mi"));
    }
}
