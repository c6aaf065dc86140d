//! Fills the enclave's memory before it is given away.

use std::num::NonZero;
use std::thread;

use nitro_device::HugeRegion;
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use super::{BootError, CheckedImage};

/// Maps the plan's regions and makes every page present, on all cores.
pub(super) fn map(plan: &Plan, stop: &CancellationToken) -> Result<Vec<HugeRegion>, BootError> {
    let mut regions = Vec::new();
    for region in &plan.regions {
        if stop.is_cancelled() {
            return Err(BootError::Stopped);
        }
        let bytes = region.bytes() as usize;
        let mut region = HugeRegion::map(region.page, bytes)?;
        region.prefault(threads())?;
        regions.push(region);
    }
    Ok(regions)
}

/// Reads the image straight into the memory, `offset` bytes from its start;
/// it may cross from one region into the next.
pub(super) fn image(
    image: &CheckedImage,
    memory: &mut [HugeRegion],
    offset: u64,
    stop: &CancellationToken,
) -> Result<(), BootError> {
    let total: u64 = memory.iter().map(|region| region.len() as u64).sum();
    if offset.checked_add(image.len).is_none_or(|end| end > total) {
        return Err(BootError::LoadOffset { offset, memory: total });
    }
    let mut region_start = 0;
    for region in memory {
        if stop.is_cancelled() {
            return Err(BootError::Stopped);
        }
        let region_end = region_start + region.len() as u64;
        let (from, to) = (offset.max(region_start), (offset + image.len).min(region_end));
        if from < to {
            region
                .read_file_at_parallel(
                    &image.file,
                    from - offset,
                    (from - region_start) as usize,
                    (to - from) as usize,
                    threads(),
                )
                .map_err(|source| BootError::Load { path: image.path.clone(), source })?;
        }
        region_start = region_end;
    }
    Ok(())
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}
