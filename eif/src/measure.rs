//! Hashes an image as the hypervisor does, and checksums it.
//!
//! PCR0 covers kernel, command line and all ramdisks; PCR1 is the same chain
//! stopped after the first ramdisk; PCR2 covers the other ramdisks. PCR0 and
//! PCR2 share most bytes but no state, so each has a thread. Only payloads
//! count: headers, metadata and signature are in no register.

use std::{io, panic, thread};

use aws_lc_rs::digest::{Context, SHA384};

use crate::{
    layout::{CRC_OFFSET, Layout},
    pcr::Pcr,
    source::Source,
};

pub(crate) fn measure(
    source: &Source<'_>,
    layout: &Layout,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Pcr, Pcr, Pcr), (u64, io::Error)> {
    let (application, whole) = both(
        "eif-pcr2",
        || application(source, layout, progress),
        || boot_and_whole(source, layout, progress),
    );
    let (pcr0, pcr1) = whole?;
    Ok((pcr0, pcr1, application?))
}

/// Bytes that [`measure`] reports as progress.
pub(crate) fn total(layout: &Layout) -> u64 {
    let ramdisks: u64 = layout.ramdisks().map(|section| section.len()).sum();
    let first = layout.ramdisks().next().map_or(0, |section| section.len());
    layout.kernel().len() + layout.cmdline().len() + ramdisks + (ramdisks - first)
}

fn boot_and_whole(
    source: &Source<'_>,
    layout: &Layout,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Pcr, Pcr), (u64, io::Error)> {
    let mut context = Context::new(&SHA384);
    let mut ramdisks = layout.ramdisks();
    for section in [layout.kernel(), layout.cmdline()].into_iter().chain(ramdisks.next()) {
        source.feed(section.payload.clone(), hash_into(&mut context, progress))?;
    }
    let pcr1 = Pcr::extended_by(context.clone());
    for section in ramdisks {
        source.feed(section.payload.clone(), hash_into(&mut context, progress))?;
    }
    Ok((Pcr::extended_by(context), pcr1))
}

fn application(
    source: &Source<'_>,
    layout: &Layout,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Pcr, (u64, io::Error)> {
    let mut context = Context::new(&SHA384);
    for section in layout.ramdisks().skip(1) {
        source.feed(section.payload.clone(), hash_into(&mut context, progress))?;
    }
    Ok(Pcr::extended_by(context))
}

fn hash_into(context: &mut Context, progress: &(dyn Fn(u64) + Sync)) -> impl FnMut(&[u8]) {
    move |piece| {
        context.update(piece);
        progress(piece.len() as u64);
    }
}

/// CRC-32 (ISO-HDLC, as in zlib) of the header up to its checksum field and of
/// everything after the header. The header's bytes are taken from `layout`.
pub(crate) fn checksum(source: &Source<'_>, layout: &Layout) -> Result<u32, (u64, io::Error)> {
    let header = layout.header();
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..CRC_OFFSET]);
    source.feed(header.len() as u64..layout.len(), |piece| crc.update(piece))?;
    Ok(crc.finalize())
}

/// Runs `aside` on a thread of its own while `here` runs on this one; both on
/// this one where no thread can be had.
pub(crate) fn both<A: Send, B>(name: &str, aside: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| match thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, &aside) {
        Ok(thread) => {
            let here = here();
            (thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload)), here)
        }
        Err(_) => (aside(), here()),
    })
}
