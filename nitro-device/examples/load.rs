//! How long it takes to have an image in an enclave's memory, three ways in
//! turn in one run:
//!
//! - `page`: one mapping a page, filled one after the other by pread(2) into
//!   memory that is not present yet. nitro-cli's method.
//! - `bare`: one mapping, first made present, then read by pread(2); both
//!   shared out evenly among one thread a core, with no step in between.
//! - `fill`: [`HugeRegion::fill`].
//!
//! Usage: `load [IMAGE_MIB] [ROUNDS]`, with IMAGE_MIB of free 2 MiB pages; the
//! file lies in memory (/dev/shm), so that no disk is measured.
#![allow(clippy::unwrap_used)] // a measurement that fails is none

use std::fs::File;
use std::io::Write;
use std::num::NonZero;
use std::time::{Duration, Instant};

use nitro_device::{HugeRegion, PageSize};

const MIB: usize = 1 << 20;
const PAGE: usize = 2 * MIB;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().unwrap());
    let (mib, rounds) = (arguments.next().unwrap_or(1024), arguments.next().unwrap_or(5));
    let len = mib * MIB;
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let file = image(len);
    let ways: [(&str, &dyn Fn() -> Duration); 3] = [
        ("page", &|| page_by_page(&file, len)),
        ("bare", &|| bare(&file, len, threads)),
        ("fill", &|| fill(&file, len, threads)),
    ];
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for (times, (_, way)) in times.iter_mut().zip(&ways) {
            times.push(way());
        }
    }
    times.iter_mut().for_each(|times| times.sort());
    for (times, (name, _)) in times.iter().zip(&ways) {
        println!("{name}: best {:?}, median {:?}, {mib} MiB, {threads} threads", times[0], times[rounds / 2]);
    }
    for (name, index) in [("best", 0), ("median", rounds / 2)] {
        let [page, bare, fill] = times.each_ref().map(|times| times[index].as_secs_f64());
        println!("{name}: fill is {:.2} x page, {:.0} % of bare", page / fill, 100.0 * bare / fill);
    }
}

/// A file without holes, already deleted.
fn image(len: usize) -> File {
    let path = format!("/dev/shm/load-{}", std::process::id());
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let block: Vec<u8> = (0..MIB).map(|index| ((index * 31) >> 3) as u8).collect();
    for _ in 0..len / MIB {
        file.write_all(&block).unwrap();
    }
    file
}

fn page_by_page(file: &File, len: usize) -> Duration {
    let begun = Instant::now();
    let mut pages = Vec::new();
    for _ in 0..len / PAGE {
        pages.push(HugeRegion::map(PageSize::MIB2, PAGE).unwrap());
    }
    for (index, page) in pages.iter_mut().enumerate() {
        page.read_file_at(file, (index * PAGE) as u64, 0, PAGE).unwrap();
    }
    begun.elapsed()
}

fn bare(file: &File, len: usize, threads: usize) -> Duration {
    let begun = Instant::now();
    let mut region = HugeRegion::map(PageSize::MIB2, len).unwrap();
    region.prefault(threads).unwrap();
    region.read_file_at_parallel(file, 0, 0, len, threads).unwrap();
    begun.elapsed()
}

fn fill(file: &File, len: usize, threads: usize) -> Duration {
    let begun = Instant::now();
    let mut region = HugeRegion::map(PageSize::MIB2, len).unwrap();
    region.fill(file, 0, 0, len, threads).unwrap();
    begun.elapsed()
}
