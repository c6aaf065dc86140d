//! From a configuration to a started enclave. [`launch`] is the boot order.
//!
//! ```text
//! image checks ─▶ plan ─▶ preflight ─▶ create ─▶ map, prefault, load ─▶ pins ─▶ donate ─▶ CPUs ─▶ start
//!     65          64, 71     69          71              71              65                       71
//! ```
//! Everything here blocks and runs on one thread: the driver wants one process
//! from create to start, and no fork in between. An error or a drop on the way
//! closes the enclave, which frees its slot, CPUs and memory.

mod advice;
mod error;
mod heartbeat;
mod image;
mod load;
mod pins;
pub(crate) mod plan;
mod retry;

use std::path::Path;
use std::time::Instant;

use nitro_device::{Cid, Device, Enclave, HugeRegion, Mode, NotDonated};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Readiness};
use crate::timeline::Timeline;
pub(crate) use error::BootError;
pub(crate) use heartbeat::Heartbeat;
pub(crate) use image::CheckedImage;
pub(crate) use pins::compare_pins;
use plan::{Cpus, Plan, Snapshot, Wish};
use retry::patiently;

/// An enclave that runs, not yet watched.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) enclave: Enclave,
    pub(crate) cid: Cid,
    /// Ids of its CPUs, as the driver chose them.
    pub(crate) cpus: Vec<u32>,
    /// Bytes of its memory.
    pub(crate) memory: u64,
    /// Where a foreign image reports; held until it has.
    pub(crate) heartbeat: Option<Heartbeat>,
}

/// The first half, which touches no device: image and plan.
pub(crate) fn prepare(config: &Config, timeline: &Timeline) -> Result<(CheckedImage, Plan), BootError> {
    let image = CheckedImage::open(&config.eif, config.require_signature)?;
    timeline.reached("image checked");
    let wish = Wish {
        memory: config.memory_mib.map(|mib| mib << 20),
        cpus: match config.cpu_ids.as_slice() {
            [] => Cpus::Count(config.cpus),
            ids => Cpus::Ids(ids.to_vec()),
        },
        image: image.needs,
        boot_timeout: config.boot.timeout,
    };
    let mut plan = plan::plan(&wish, &Snapshot::take(Path::new("/")))?;
    plan.warnings.extend(image.advice());
    timeline.reached("planned");
    Ok((image, plan))
}

/// The second half: from the device to a running enclave. Must be called on a
/// thread of a tokio runtime that may block.
pub(crate) fn launch(
    config: &Config,
    image: &CheckedImage,
    plan: &Plan,
    timeline: &Timeline,
    stop: &CancellationToken,
) -> Result<Started, BootError> {
    let cid = config.cid.map(Cid::try_from).transpose()?;
    let mode = if config.debug { Mode::Debug } else { Mode::Production };
    let begun = Instant::now();
    plan.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));

    let device = Device::open(&config.device).map_err(BootError::NoDevice)?;
    probe_vsock()?;
    timeline.reached("preflight passed");
    let mut enclave = patiently(stop, || device.create_enclave())?;
    timeline.reached("enclave created");
    let offset = patiently(stop, || enclave.image_load_offset())?;
    let memory = load::fill(plan, image, offset, stop)?;
    timeline.reached("image loaded");
    if pins::check(config, image, &memory, offset)? {
        timeline.reached("pins compared");
    }
    for region in memory {
        donate(&mut enclave, region, stop)?;
    }
    timeline.reached("memory donated");
    let add = |cpu| patiently(stop, || enclave.add_vcpu(cpu));
    let cpus = plan.cpus.each().into_iter().map(add).collect::<Result<Vec<u32>, _>>()?;
    let heartbeat = match is_foreign(config.readiness, image) {
        true => Some(Heartbeat::take(plan.boot_timeout.duration(), stop)?),
        false => None,
    };
    let cid = patiently(stop, || enclave.start(mode, cid))?;
    timeline.reached("enclave started");
    tracing::info!(%cid, slot = config.slots.first(), slot_uid = enclave.slot_uid(), took = ?begun.elapsed(), "enclave started");
    Ok(Started { enclave, cid, cpus, memory: plan.memory(), heartbeat })
}

/// Gives one region away; it is kept until the driver has it.
fn donate(enclave: &mut Enclave, region: HugeRegion, stop: &CancellationToken) -> Result<(), BootError> {
    let mut kept = Some(region);
    patiently(stop, || {
        let Some(region) = kept.take() else { return Ok(()) };
        enclave.donate(region).map_err(|NotDonated { region, error }| {
            kept = Some(region);
            error
        })
    })
}

fn is_foreign(readiness: Readiness, image: &CheckedImage) -> bool {
    match readiness {
        Readiness::Auto => !image.has_agent,
        Readiness::Agent => false,
        Readiness::Heartbeat => true,
    }
}

/// Runtimes' default seccomp profiles block AF_VSOCK; better known before the
/// enclave's memory is filled than after.
fn probe_vsock() -> Result<(), BootError> {
    vsock_allowed().map_err(BootError::NoVsock)
}

/// Whether this process may make vsock sockets.
pub(crate) fn vsock_allowed() -> Result<(), Errno> {
    socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map(drop)
}
