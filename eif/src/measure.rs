//! Hashes an image as the hypervisor does, and checksums it.
//!
//! PCR0 covers kernel, command line and all ramdisks; PCR1 is the same chain
//! stopped after the first ramdisk; PCR2 covers the other ramdisks. PCR0 and
//! PCR2 share most bytes but no state, so each has a thread; the checksum goes
//! along with PCR2. Only payloads count: headers, metadata and signature are
//! in no register.

use std::{io, panic, thread};

use aws_lc_rs::digest::{Context, SHA384};
use crc32fast::Hasher;

use crate::{
    layout::{CRC_OFFSET, HEADER_LEN, Layout, SectionKind},
    pcr::Pcr,
    source::Source,
};

/// What an image measures to, and the checksum of everything after its header.
pub(crate) struct Measured {
    pub(crate) pcr0: Pcr,
    pub(crate) pcr1: Pcr,
    pub(crate) pcr2: Pcr,
    pub(crate) body: Hasher,
}

pub(crate) fn measure(
    source: &Source<'_>,
    layout: &Layout,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Measured, (u64, io::Error)> {
    let (application, whole) = both(
        "eif-pcr2",
        || application_and_checksum(source, layout, progress),
        || boot_and_whole(source, layout, progress),
    );
    let (pcr0, pcr1) = whole?;
    let (pcr2, body) = application?;
    Ok(Measured { pcr0, pcr1, pcr2, body })
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

/// The checksum costs next to nothing beside hashing the same bytes.
fn application_and_checksum(
    source: &Source<'_>,
    layout: &Layout,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Pcr, Hasher), (u64, io::Error)> {
    let (mut context, mut crc) = (Context::new(&SHA384), Hasher::new());
    let mut ramdisks = 0;
    for section in layout.sections() {
        source.feed(section.header_offset()..section.payload.start, |piece| crc.update(piece))?;
        ramdisks += usize::from(section.kind == SectionKind::Ramdisk);
        let measured = section.kind == SectionKind::Ramdisk && ramdisks > 1;
        source.feed(section.payload.clone(), |piece| {
            crc.update(piece);
            if measured {
                context.update(piece);
                progress(piece.len() as u64);
            }
        })?;
    }
    Ok((Pcr::extended_by(context), crc))
}

fn hash_into(context: &mut Context, progress: &(dyn Fn(u64) + Sync)) -> impl FnMut(&[u8]) {
    move |piece| {
        context.update(piece);
        progress(piece.len() as u64);
    }
}

/// CRC-32 (ISO-HDLC, as in zlib) of everything after the header.
pub(crate) fn checksum_body(source: &Source<'_>, layout: &Layout) -> Result<Hasher, (u64, io::Error)> {
    let mut crc = Hasher::new();
    source.feed(HEADER_LEN as u64..layout.len(), |piece| crc.update(piece))?;
    Ok(crc)
}

/// The image's checksum: that of the header up to its own field, the header
/// being made of `layout`, continued by that of everything after it.
pub(crate) fn checksum(layout: &Layout, body: &Hasher) -> u32 {
    let mut crc = Hasher::new();
    crc.update(&layout.header()[..CRC_OFFSET]);
    crc.combine(body);
    crc.finalize()
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
