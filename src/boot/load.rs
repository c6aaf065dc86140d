//! Fills the enclave's memory before it is given away: one mapping a page
//! size, pages made present and the image read into them at the same time, on
//! all cores, without a copy in between.

use std::num::NonZero;
use std::thread;

use nitro_device::{FillError, HugeRegion};
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use super::{BootError, CheckedImage};

/// The plan's memory, every page present, with the image `offset` bytes from
/// its start; it may cross from one region into the next.
pub(super) fn fill(
    plan: &Plan,
    image: &CheckedImage,
    offset: u64,
    stop: &CancellationToken,
) -> Result<Vec<HugeRegion>, BootError> {
    let end = offset.checked_add(image.needs.file).filter(|end| *end <= plan.memory());
    let end = end.ok_or(BootError::LoadOffset { offset, memory: plan.memory() })?;
    let mut regions = Vec::new();
    let mut start = 0;
    for region in &plan.regions {
        if stop.is_cancelled() {
            return Err(BootError::Stopped);
        }
        let mut memory = HugeRegion::map(region.page, region.bytes() as usize)?;
        bind(plan.node, &mut memory);
        // The image's part that lies in this region; maybe nothing.
        let from = offset.clamp(start, start + region.bytes());
        let to = end.clamp(from, start + region.bytes());
        memory
            .fill(
                &image.file,
                from.saturating_sub(offset),
                (from - start) as usize,
                (to - from) as usize,
                threads(),
            )
            .map_err(|error| match error {
                FillError::Region(error) => BootError::Memory(error),
                FillError::Read(source) => BootError::Load { path: image.path.clone(), source },
            })?;
        start += region.bytes();
        regions.push(memory);
    }
    Ok(regions)
}

/// The driver refuses memory of another node than the CPU pool's. Where the
/// sandbox forbids binding, the kernel's own choice may still be right.
fn bind(node: Option<u32>, memory: &mut HugeRegion) {
    let Some(node) = node else { return };
    if let Err(error) = memory.bind_to_node(node) {
        tracing::warn!(node, %error, "memory is not bound to the CPU pool's NUMA node (allow mbind in the seccomp profile); the kernel chooses");
    }
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}
