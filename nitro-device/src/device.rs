//! /dev/nitro_enclaves: from an open device to a running enclave.
//!
//! ```text
//! Device::open ─▶ create_enclave ─▶ Enclave ── donate, add_vcpu, start ──▶ watch ─▶ RunningEnclave
//!                                     └─────────────── drop: the driver frees everything ─────┘
//! ```
//!
//! The driver compares the calling process with the creator at every call: no
//! fork between `create_enclave` and the end; threads are fine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::abi::{
    EnclaveStartInfo, ImageLoadInfo, NE_ADD_VCPU, NE_CREATE_VM, NE_DEFAULT_MEMORY_REGION, NE_EIF_IMAGE,
    NE_ENCLAVE_DEBUG_MODE, NE_ENCLAVE_PRODUCTION_MODE, NE_GET_IMAGE_LOAD_INFO, NE_SET_USER_MEMORY_REGION,
    NE_START_ENCLAVE, UserMemoryRegion,
};
use crate::{Cid, DeviceError, HugeRegion};

/// Where the driver's device lies.
pub const DEVICE_PATH: &str = "/dev/nitro_enclaves";

/// The open device.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
}

impl Device {
    /// Opens the device for reading and writing.
    pub fn open(path: &Path) -> Result<Device, DeviceError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| DeviceError::from_io(format!("open {}", path.display()), error))?;
        Ok(Device { file, path: path.to_owned() })
    }

    /// Takes an enclave slot of the instance (NE_CREATE_VM).
    pub fn create_enclave(&self) -> Result<Enclave, DeviceError> {
        let mut slot_uid: u64 = 0;
        // SAFETY:
        // - `self.file` is an open descriptor, alive for the call.
        // - the kernel writes one u64 through the pointer: `slot_uid` is one and outlives the call.
        let fd = unsafe {
            libc::ioctl(self.file.as_raw_fd(), NE_CREATE_VM as libc::Ioctl, std::ptr::from_mut(&mut slot_uid))
        };
        if fd < 0 {
            return Err(DeviceError::last(format!("create an enclave on {}", self.path.display())));
        }
        // SAFETY: the driver has just made this descriptor for us; nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Enclave { fd, slot_uid, donated: Vec::new() })
    }
}

/// How much of the enclave the parent may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Production,
    /// The console. All PCRs are zero in attestation documents.
    Debug,
}

/// Memory that the driver did not take, and why.
#[derive(Debug, thiserror::Error)]
#[error("the driver did not take {} MiB", .region.len() >> 20)]
pub struct NotDonated {
    /// Still mapped, still filled.
    pub region: HugeRegion,
    /// The driver's answer.
    #[source]
    pub error: DeviceError,
}

/// An enclave that takes memory and CPUs, and can be started once.
#[derive(Debug)]
pub struct Enclave {
    // Declared before `donated`: fields drop in order, and the enclave must be
    // gone before its memory is unmapped.
    fd: OwnedFd,
    slot_uid: u64,
    donated: Vec<HugeRegion>,
}

impl Enclave {
    /// The slot's unique id, of which nitro-cli makes the enclave's id.
    pub fn slot_uid(&self) -> u64 {
        self.slot_uid
    }

    /// Byte offset in the enclave's memory at which the image must lie
    /// (NE_GET_IMAGE_LOAD_INFO; 8 MiB with the drivers seen so far).
    pub fn image_load_offset(&self) -> Result<u64, DeviceError> {
        let mut info = ImageLoadInfo { flags: NE_EIF_IMAGE, memory_offset: 0 };
        self.call("learn where the image is loaded", NE_GET_IMAGE_LOAD_INFO, &mut info)?;
        Ok(info.memory_offset)
    }

    /// Gives `region` to the enclave (NE_SET_USER_MEMORY_REGION). Regions make
    /// up the enclave's memory in the order in which they are given.
    ///
    /// Taking it by value is the rule of the hardware: the host may not touch
    /// donated memory until the enclave ends. What the driver did not take
    /// comes back, to be donated again or unmapped.
    pub fn donate(&mut self, region: HugeRegion) -> Result<(), NotDonated> {
        let mut request = UserMemoryRegion {
            flags: NE_DEFAULT_MEMORY_REGION,
            memory_size: region.len() as u64,
            userspace_addr: region.addr() as u64,
        };
        let attempt = format!("donate {} MiB of {} pages", region.len() >> 20, region.page_size());
        match self.call(&attempt, NE_SET_USER_MEMORY_REGION, &mut request) {
            Ok(()) => self.donated.push(region),
            Err(error) => return Err(NotDonated { region, error }),
        }
        Ok(())
    }

    /// Adds a CPU of the pool (NE_ADD_VCPU): `cpu`, or the driver's choice.
    /// Returns the id that was taken.
    pub fn add_vcpu(&mut self, cpu: Option<u32>) -> Result<u32, DeviceError> {
        let mut id = cpu.unwrap_or(0);
        let attempt = match cpu {
            Some(cpu) => format!("add CPU {cpu}"),
            None => "add a CPU of the driver's choice".to_owned(),
        };
        self.call(&attempt, NE_ADD_VCPU, &mut id)?;
        Ok(id)
    }

    /// Starts the enclave (NE_START_ENCLAVE) with this CID, or one that the
    /// driver chooses. Returns the CID.
    pub fn start(&mut self, mode: Mode, cid: Option<Cid>) -> Result<Cid, DeviceError> {
        let flags = match mode {
            Mode::Production => NE_ENCLAVE_PRODUCTION_MODE,
            Mode::Debug => NE_ENCLAVE_DEBUG_MODE,
        };
        let mut info = EnclaveStartInfo { flags, enclave_cid: cid.map_or(0, |cid| u64::from(cid.get())) };
        self.call("start the enclave", NE_START_ENCLAVE, &mut info)?;
        Cid::try_from(info.enclave_cid).map_err(|error| {
            DeviceError::from_io("start the enclave", io::Error::new(io::ErrorKind::InvalidData, error))
        })
    }

    /// Turns a started enclave into one whose end can be awaited.
    /// Must be called within a tokio runtime with I/O enabled.
    pub fn watch(self, cid: Cid) -> Result<RunningEnclave, DeviceError> {
        let Enclave { fd, slot_uid, donated } = self;
        // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, and `AsyncFd` owns it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(|error| DeviceError::from_io("watch the enclave", error.into_parts().1))?;
        Ok(RunningEnclave { fd, cid, slot_uid, _donated: donated })
    }

    /// One ioctl whose argument is a struct of [`crate::abi`], or a u32 for NE_ADD_VCPU.
    fn call<T>(&self, attempt: &str, request: u32, argument: &mut T) -> Result<(), DeviceError> {
        assert_eq!(size_of::<T>(), (request >> 16 & 0x3FFF) as usize, "argument does not fit {request:#x}");
        // SAFETY:
        // - `self.fd` is an enclave descriptor: only `Device::create_enclave` makes an `Enclave`.
        // - the kernel reads and writes as many bytes as the request's size field says; asserted above.
        // - memory that a request names stays mapped: donated regions are kept until the descriptor is closed.
        let rc =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), request as libc::Ioctl, std::ptr::from_mut(argument)) };
        if rc < 0 { Err(DeviceError::last(attempt)) } else { Ok(()) }
    }
}

impl AsFd for Enclave {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A started enclave. Dropping it ends the enclave and frees its slot, CPUs and memory.
#[derive(Debug)]
pub struct RunningEnclave {
    fd: AsyncFd<OwnedFd>,
    cid: Cid,
    slot_uid: u64,
    _donated: Vec<HugeRegion>,
}

impl RunningEnclave {
    /// The enclave's context id.
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// The slot's unique id.
    pub fn slot_uid(&self) -> u64 {
        self.slot_uid
    }

    /// Returns when the enclave has ended by itself: the driver raises POLLHUP
    /// (`ne_enclave_poll`). Cancel-safe.
    pub async fn hung_up(&self) {
        loop {
            match self.fd.readable().await {
                Ok(guard) if guard.ready().is_read_closed() || has_hung_up(self.fd.get_ref()) => return,
                Ok(mut guard) => guard.clear_ready(),
                // The runtime's I/O driver is gone: the process is ending.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

impl AsFd for RunningEnclave {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

fn has_hung_up(fd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one pollfd, alive for the call, and a timeout of zero.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_missing_device_is_named_with_its_fix() {
        let error = Device::open(Path::new("/nonexistent/nitro_enclaves")).unwrap_err();
        assert_eq!(error.to_string(), "cannot open /nonexistent/nitro_enclaves");
        assert!(error.fix().contains("enclaves enabled"), "{}", error.fix());
    }

    #[test]
    fn calls_on_a_file_that_is_no_device_fail_with_the_errno() {
        let device = Device::open(Path::new("/dev/null")).unwrap();
        let error = device.create_enclave().unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(error.code, None);
    }

    #[test]
    fn memory_that_was_not_taken_comes_back_to_be_given_again() {
        let fd = OwnedFd::from(std::io::pipe().unwrap().0);
        let mut enclave = Enclave { fd, slot_uid: 1, donated: Vec::new() };
        let region = HugeRegion::map(crate::PageSize::MIB2, 4 << 20).unwrap();
        let addr = region.addr();
        let NotDonated { region, error } = enclave.donate(region).unwrap_err();
        assert_eq!((region.addr(), error.source.raw_os_error()), (addr, Some(libc::ENOTTY)));
        assert!(enclave.donated.is_empty());
        assert!(enclave.donate(region).is_err());
    }

    #[tokio::test]
    async fn the_end_of_the_enclave_is_seen_at_once() {
        let (reader, writer) = std::io::pipe().unwrap();
        // SAFETY: `into_raw_fd` gives up the only owner of the descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(reader.into_raw_fd()) };
        let enclave = Enclave { fd, slot_uid: 1, donated: Vec::new() };
        let running = enclave.watch(Cid::try_from(16u32).unwrap()).unwrap();
        let before = tokio::time::timeout(std::time::Duration::from_millis(20), running.hung_up()).await;
        assert!(before.is_err(), "hang-up was reported before the end");
        drop(writer);
        tokio::time::timeout(std::time::Duration::from_secs(1), running.hung_up()).await.unwrap();
    }
}
