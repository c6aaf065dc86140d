//! The image of an enclave: taken out of donated memory, checked, measured.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::enclave::StartError;
use super::ne::{self, MemoryRegion};
use super::slot::Slot;
use super::{Node, regions};
use crate::engine::Ramdisk;
use crate::nsm;
use crate::vm::BootFiles;

/// `sizeof` the EIF header and of a section header.
const EIF_HEADER: usize = 548;
/// See [`EIF_HEADER`].
const EIF_SECTION_HEADER: u64 = 12;
/// The image is copied in pieces of this many bytes.
const COPY_CHUNK: usize = 4 << 20;

/// An image that was copied out of donated memory.
pub(crate) struct BootImage {
    file: File,
    image: eif::Image<'static>,
}

impl BootImage {
    /// Copies the image out of the memory of process `pid` and checks it.
    pub(crate) fn copy(pid: i32, regions: &[MemoryRegion]) -> Result<BootImage, StartError> {
        let file = image_file(pid, regions)?;
        let copy = file.try_clone().map_err(|error| StartError::State("keep the image", error))?;
        Ok(BootImage { image: eif::Image::read(copy)?, file })
    }

    /// The image's bytes.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where its ramdisks lie, in boot order.
    pub(crate) fn ramdisks(&self) -> Vec<Ramdisk> {
        let sections = self.image.layout().ramdisks();
        sections.map(|section| Ramdisk { start: section.payload.start, end: section.payload.end }).collect()
    }

    /// What a machine boots.
    pub(crate) fn boot_files(&self) -> Result<BootFiles, StartError> {
        BootFiles::from_image(&self.image).map_err(|error| StartError::State("take the image apart", error))
    }

    /// The module that the image finds. Hashing takes as long as unpacking, and
    /// runs beside it.
    pub(crate) fn module(&self, node: &Node, slot: &Slot, debug: bool) -> Result<nsm::Module, StartError> {
        let measured = self.image.measure()?;
        let measured = nsm::Measurements {
            pcr0: *measured.pcr0.as_bytes(),
            pcr1: *measured.pcr1.as_bytes(),
            pcr2: *measured.pcr2.as_bytes(),
            pcr8: measured.pcr8.map(|pcr| *pcr.as_bytes()),
            role_arn: node.config.role_arn.clone(),
        };
        let identity = nsm::ModuleId::new(node.instance.clone(), slot.uid);
        let mut module =
            nsm::Module::new(node.authority.clone(), identity, &measured, debug, nsm::Clock::system());
        let delay = Duration::from_millis(node.config.nsm_delay_ms);
        module.set_faults(nsm::Faults { delay, ..nsm::Faults::default() });
        Ok(module)
    }
}

/// The image as it lies in donated memory, cut where its own header says it ends.
fn image_file(pid: i32, regions: &[MemoryRegion]) -> Result<File, StartError> {
    let memory: u64 = regions.iter().map(|region| region.size).sum();
    let mut header = vec![0; EIF_HEADER];
    regions::read_at(pid, regions, ne::IMAGE_OFFSET, &mut header).map_err(StartError::Memory)?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    let sections = usize::from(u16::from_be_bytes([header[26], header[27]])).min(32);
    let end = |n| number(28 + n * 8).saturating_add(EIF_SECTION_HEADER).saturating_add(number(284 + n * 8));
    let length = (0..sections).map(end).max().unwrap_or(0).max(EIF_HEADER as u64);
    // A size that memory cannot hold is left to the image check to refuse.
    let length = length.min(memory.saturating_sub(ne::IMAGE_OFFSET));
    let keep = |error| StartError::State("keep the image", error);
    let file = memfd_create(c"enclave image", MFdFlags::MFD_CLOEXEC).map_err(|error| keep(error.into()))?;
    let mut file = File::from(file);
    let mut chunk = vec![0; COPY_CHUNK];
    let mut done = 0;
    while done < length {
        let take = (length - done).min(COPY_CHUNK as u64) as usize;
        regions::read_at(pid, regions, ne::IMAGE_OFFSET + done, &mut chunk[..take])
            .map_err(StartError::Memory)?;
        file.write_all(&chunk[..take]).map_err(keep)?;
        done += take as u64;
    }
    Ok(file)
}
