//! The ioctls of /dev/nitro_enclaves and of enclave descriptors.
//!
//! Order of checks and error codes follow drivers/virt/nitro_enclaves/ne_misc_dev.c.

use std::os::fd::AsFd;

use nix::sys::stat::{SFlag, fstat, major, minor};

use super::caller::{Caller, Errno, Outcome};
use super::enclave;
use super::names;
use super::ne::{self, MemoryRegion};
use super::regions;
use super::slot::{Phase, Slot};
use crate::sys::process;
use std::sync::Arc;

/// The device number that stands for our devices: /dev/full's, whose driver
/// has no ioctls and does nothing when opened.
pub(crate) const STAND_IN: (u64, u64) = (1, 7);

/// An ioctl with the type and number of a Nitro Enclaves one.
pub(super) fn ioctl(caller: &Caller<'_>) -> Result<Outcome, Errno> {
    let fd = caller.descriptor(0)?;
    let command = caller.int(1) as u32;
    if is_stand_in(&fd)? {
        return on_device(caller, command);
    }
    let stat = fstat(&fd)?;
    let Some(slot) = caller.desk.node.slot_with((stat.st_dev, stat.st_ino)) else {
        return Ok(Outcome::Native);
    };
    // Memory is looked through and images are copied: not on the desk's thread.
    Ok(Outcome::Later(Box::new(move |caller| on_slot(caller, command, &slot))))
}

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID` on /dev/vsock.
pub(super) fn local_cid(caller: &Caller<'_>, cid: u32) -> Result<Outcome, Errno> {
    if !is_stand_in(&caller.descriptor(0)?)? {
        return Ok(Outcome::Native);
    }
    caller.write(caller.call.args[2], &cid.to_ne_bytes())?;
    Ok(Outcome::Value(0))
}

fn is_stand_in(fd: &impl AsFd) -> Result<bool, Errno> {
    let stat = fstat(fd)?;
    let device = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    Ok(device && (major(stat.st_rdev), minor(stat.st_rdev)) == STAND_IN)
}

fn on_device(caller: &Caller<'_>, command: u32) -> Result<Outcome, Errno> {
    if command != ne::CREATE_VM {
        return Err(Errno(libc::ENOTTY));
    }
    let node = &caller.desk.node;
    node.faults.check("NE_CREATE_VM")?;
    let creator = process::group_of(caller.call.thread)?;
    let (slot, fd) = node.create_slot(creator)?;
    if let Err(error) = caller.write(caller.call.args[2], &slot.uid.to_ne_bytes()) {
        drop(fd);
        return Err(error);
    }
    Ok(Outcome::Descriptor { fd, close_on_exec: true })
}

fn on_slot(caller: &Caller<'_>, command: u32, slot: &Arc<Slot>) -> Result<Outcome, Errno> {
    match ne::name(command) {
        Some(name) if command != ne::CREATE_VM => caller.desk.node.faults.check(name)?,
        _ => return Err(Errno(libc::ENOTTY)),
    }
    match command {
        ne::ADD_VCPU => add_vcpu(caller, slot),
        ne::GET_IMAGE_LOAD_INFO => image_load_info(caller, slot),
        ne::SET_USER_MEMORY_REGION => set_memory(caller, slot),
        _ => start(caller, slot),
    }?;
    Ok(Outcome::Value(0))
}

fn add_vcpu(caller: &Caller<'_>, slot: &Slot) -> Result<(), Errno> {
    let wanted = u32::from_ne_bytes(caller.array(caller.call.args[2])?);
    let mut content = slot.content();
    require_init(&content.phase)?;
    let node = &caller.desk.node;
    let cpu = node.pool().add(&mut content.taken, wanted).map_err(Errno)?;
    if let Err(error) = require_creator(caller, slot) {
        content.taken.cpus.remove(&cpu);
        return Err(error);
    }
    caller.write(caller.call.args[2], &cpu.to_ne_bytes())
}

fn image_load_info(caller: &Caller<'_>, slot: &Slot) -> Result<(), Errno> {
    let (flags, _) = ne::pair(&caller.array(caller.call.args[2])?);
    require_init(&slot.content().phase)?;
    if flags == 0 || flags >= ne::IMAGE_LOAD_FLAGS_END {
        return Err(Errno(ne::INVALID_FLAG_VALUE));
    }
    caller.write(caller.call.args[2] + 8, &ne::IMAGE_OFFSET.to_ne_bytes())
}

fn set_memory(caller: &Caller<'_>, slot: &Slot) -> Result<(), Errno> {
    let region = MemoryRegion::parse(&caller.array(caller.call.args[2])?);
    if region.flags >= ne::REGION_FLAGS_END {
        return Err(Errno(ne::INVALID_FLAG_VALUE));
    }
    let mut content = slot.content();
    require_init(&content.phase)?;
    require_creator(caller, slot)?;
    regions::check_shape(region, &content.regions)?;
    let pieces = regions::check_pages(slot.creator, region)?;
    if content.pieces + pieces > caller.desk.node.config.max_regions {
        return Err(Errno(ne::MEM_MAX_REGIONS));
    }
    content.pieces += pieces;
    content.regions.push(region);
    Ok(())
}

fn start(caller: &Caller<'_>, slot: &Arc<Slot>) -> Result<(), Errno> {
    let (flags, wanted) = ne::pair(&caller.array(caller.call.args[2])?);
    if flags >= ne::START_FLAGS_END {
        return Err(Errno(ne::INVALID_FLAG_VALUE));
    }
    let reserved = [names::LOCAL, names::HOST, names::PARENT, names::ANY].map(u64::from);
    if reserved.contains(&wanted) || wanted > u64::from(u32::MAX) {
        return Err(Errno(ne::INVALID_ENCLAVE_CID));
    }
    let node = &caller.desk.node;
    let regions = {
        let mut content = slot.content();
        require_init(&content.phase)?;
        let memory: u64 = content.regions.iter().map(|region| region.size).sum();
        if content.regions.is_empty() {
            return Err(Errno(ne::NO_MEM_REGIONS_ADDED));
        }
        if memory < ne::MIN_MEMORY {
            return Err(Errno(ne::ENCLAVE_MEM_MIN_SIZE));
        }
        if content.taken.cpus.is_empty() {
            return Err(Errno(ne::NO_VCPUS_ADDED));
        }
        if !node.pool().uses_full_cores(&content.taken) {
            return Err(Errno(ne::FULL_CORES_NOT_USED));
        }
        content.phase = Phase::Running(None);
        content.regions.clone()
    };
    match enclave::start(node, slot, &regions, wanted as u32, flags == ne::DEBUG_MODE) {
        Ok(enclave) => caller.write(caller.call.args[2] + 8, &u64::from(enclave.cid).to_ne_bytes()),
        Err(error) => {
            eprintln!("slot {:x}: cannot start: {error:#}", slot.uid);
            let mut content = slot.content();
            if matches!(content.phase, Phase::Running(None)) {
                content.phase = Phase::Init;
            }
            Err(Errno(error.errno()))
        }
    }
}

fn require_init(phase: &Phase) -> Result<(), Errno> {
    match phase {
        Phase::Init => Ok(()),
        _ => Err(Errno(ne::NOT_IN_INIT_STATE)),
    }
}

/// The driver compares memory descriptors: only the creating process may donate.
fn require_creator(caller: &Caller<'_>, slot: &Slot) -> Result<(), Errno> {
    match process::group_of(caller.call.thread)? == slot.creator {
        true => Ok(()),
        false => Err(Errno(libc::EIO)),
    }
}
