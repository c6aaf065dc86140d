//! What is not a sound image is refused at the byte where it shows.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod sample;

use eif::{Fault, Image, ImageError, SectionKind, layout};
use sample::{CMDLINE, KERNEL, METADATA, RAMDISK, SIGNATURE, assemble, put, seal, sections};

/// Where an image is malformed, and how. Any other outcome fails the test.
#[track_caller]
fn fault(bytes: &[u8]) -> (u64, Fault) {
    match Image::parse(bytes).map(|image| image.layout().clone()) {
        Err(ImageError::Malformed { offset, fault }) => (offset, fault),
        other => panic!("expected a malformed image, got {other:?}"),
    }
}

/// The sample with `change` made to it and the checksum made right again.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut image = assemble(&sections());
    change(&mut image);
    seal(&mut image);
    image
}

#[test]
fn an_image_cut_short_is_refused_wherever_it_is_cut() {
    let image = assemble(&sections());
    let in_header_region = 0..600;
    let every_page = (0..image.len()).step_by(4096);
    let near_the_end = image.len() - 64..image.len();
    for end in in_header_region.chain(every_page).chain(near_the_end) {
        let (offset, fault) = fault(&image[..end]);
        assert_eq!(offset, end as u64);
        assert!(matches!(fault, Fault::Truncated { missing } if missing > 0), "cut at {end}: {fault}");
    }
}

#[test]
fn any_changed_byte_of_the_header_is_refused() {
    let image = assemble(&sections());
    for offset in 0..560 {
        for flip in [1, 0x80, 0xff] {
            let mut image = image.clone();
            image[offset] ^= flip;
            fault(&image);
        }
    }
}

#[test]
fn any_changed_byte_of_a_payload_is_refused_by_the_checksum() {
    let image = assemble(&sections());
    let layout = Image::parse(&image).unwrap().layout().clone();
    for section in layout.sections() {
        for offset in section.payload.clone().step_by(13).chain([section.payload.end - 1]) {
            let mut image = image.clone();
            image[offset as usize] ^= 4;
            let (at, fault) = fault(&image);
            assert!(at == 544 && matches!(fault, Fault::Checksum { .. }), "{offset}: {fault} at {at}");
        }
    }
}

/// With a right checksum, every field is still held to its own rule. Only
/// `default_mem` and `default_cpus` may be anything: they are hints.
#[test]
fn every_header_field_is_held_to_its_own_rule() {
    use Fault::*;
    type Case = (usize, &'static [u8], u64, fn(Fault) -> bool);
    let cases: &[Case] = &[
        (0, b".EIF", 0, |fault| matches!(fault, Magic { .. })),
        (4, &[0, 0], 4, |fault| fault == Version { version: 0 }),
        (4, &[0, 1], 4, |fault| fault == Version { version: 1 }),
        (4, &[0, 5], 4, |fault| fault == Version { version: 5 }),
        (6, &[0, 2], 6, |fault| fault == Flags { flags: 2 }),
        (6, &[0x80, 0], 6, |fault| fault == Flags { flags: 0x8000 }),
        (24, &[0, 1], 24, |fault| fault == Reserved),
        (26, &[0, 0], 26, |fault| fault == SectionCount { count: 0 }),
        (26, &[0, 2], 26, |fault| fault == SectionCount { count: 2 }),
        (26, &[0, 33], 26, |fault| fault == SectionCount { count: 33 }),
        (26, &[0, 4], 60, |fault| fault == UnusedSlot),
        (26, &[0, 6], 68, |fault| matches!(fault, SectionOffset { index: 5, actual: 0, .. })),
        (35, &[0x25], 28, |fault| fault == SectionOffset { index: 0, expected: 548, actual: 549 }),
        (36, &[0xff; 8], 36, |fault| matches!(fault, SectionOffset { index: 1, .. })),
        (68, &[1], 68, |fault| fault == UnusedSlot),
        (291, &[0], 552, |fault| fault == SectionSize { index: 0, in_section: 5000, in_table: 4864 }),
        (324, &[1], 324, |fault| fault == UnusedSlot),
        (539, &[1], 532, |fault| fault == UnusedSlot),
        (540, &[0, 0, 0, 1], 540, |fault| fault == Reserved),
    ];
    for (offset, bytes, expected_at, expected) in cases {
        let (at, fault) = fault(&changed(|image| put(image, *offset, bytes)));
        assert!(expected(fault), "{bytes:02x?} at {offset}: {fault}");
        assert_eq!(at, *expected_at, "{fault}");
    }
}

#[test]
fn every_section_header_field_is_held_to_its_own_rule() {
    let kernel = 548;
    assert_eq!(
        fault(&changed(|image| put(image, kernel, &[0, 0]))),
        (548, Fault::SectionType { index: 0, code: 0 })
    );
    assert_eq!(
        fault(&changed(|image| put(image, kernel, &[0, 6]))),
        (548, Fault::SectionType { index: 0, code: 6 })
    );
    assert_eq!(
        fault(&changed(|image| put(image, kernel + 2, &[0, 1]))),
        (550, Fault::SectionFlags { index: 0, flags: 1 })
    );
    assert_eq!(
        fault(&changed(|image| put(image, kernel + 11, &[0]))),
        (552, Fault::SectionSize { index: 0, in_section: 4864, in_table: 5000 })
    );
}

/// AWS's reader allocates what the file states: these abort it.
#[test]
fn a_size_that_no_file_has_is_refused_without_allocating_it() {
    for size in [u64::MAX, u64::MAX - 560, 1 << 63, 1 << 50] {
        let image = changed(|image| {
            put(image, 284, &size.to_be_bytes());
            put(image, 552, &size.to_be_bytes());
        });
        let (offset, fault) = fault(&image);
        assert_eq!(offset, image.len() as u64);
        assert!(matches!(fault, Fault::Truncated { .. }), "{size}: {fault}");
    }
}

#[test]
fn sections_that_should_be_small_are_bounded() {
    for (index, kind, named, limit) in [
        (1, CMDLINE, SectionKind::Cmdline, layout::MAX_CMDLINE),
        (2, METADATA, SectionKind::Metadata, layout::MAX_METADATA),
        (5, SIGNATURE, SectionKind::Signature, layout::MAX_SIGNATURE),
    ] {
        let with = |len: u64| {
            let mut sections = sections();
            if index == 5 {
                sections.push((kind, Vec::new()));
            }
            sections[index] = (kind, vec![b' '; len as usize]);
            assemble(&sections)
        };
        assert!(Image::parse(&with(limit)).is_ok());
        let (_, fault) = fault(&with(limit + 1));
        assert_eq!(fault, Fault::SectionLimit { index, kind: named, size: limit + 1, limit });
    }
}

#[test]
fn bytes_after_the_last_section_are_refused() {
    for count in [1, 11, 12, 4096] {
        let image = changed(|image| image.extend(vec![0; count]));
        let end = image.len() - count;
        assert_eq!(fault(&image), (end as u64, Fault::Trailing { count: count as u64 }));
    }
}

#[test]
fn gaps_between_sections_are_refused() {
    let image = changed(|image| {
        let at = 548 + 12 + 5000;
        image.splice(at..at, [0; 4]);
        for index in 1..5 {
            let entry = 28 + 8 * index;
            let offset = u64::from_be_bytes(image[entry..entry + 8].try_into().unwrap()) + 4;
            put(image, entry, &offset.to_be_bytes());
        }
    });
    assert_eq!(fault(&image), (36, Fault::SectionOffset { index: 1, expected: 5560, actual: 5564 }));
}

#[test]
fn only_one_order_of_sections_is_accepted() {
    let payload =
        |kind| (kind, sections().into_iter().find(|section| section.0 == kind).map_or(vec![0x80], |s| s.1));
    let verdict = |kinds: &[u16]| {
        let sections: Vec<_> = kinds.iter().map(|&kind| payload(kind)).collect();
        Image::parse(&assemble(&sections)).is_ok()
    };
    use sample::{CMDLINE as C, KERNEL as K, METADATA as M, RAMDISK as R, SIGNATURE as S};
    for good in [&[K, C, M, R][..], &[K, C, R], &[K, C, M, R, R, R], &[K, C, M, R, S], &[K, C, R, R, S]] {
        assert!(verdict(good), "{good:?}");
    }
    for bad in [
        &[C, K, M, R][..],
        &[K, M, C, R],
        &[K, C, R, M],
        &[K, C, M],
        &[K, C, M, M, R],
        &[K, C, C, R],
        &[K, K, C, R],
        &[K, C, M, S, R],
        &[K, C, M, R, S, S],
        &[K, C, M, R, S, R],
        &[K, C, M, S],
        &[R, R, R],
        &[K, R, R],
    ] {
        assert!(!verdict(bad), "{bad:?}");
    }
}

#[test]
fn sections_newer_than_the_version_are_refused() {
    let (_, found) = fault(&changed(|image| put(image, 4, &[0, 3])));
    let kind = SectionKind::Metadata;
    assert_eq!(found, Fault::SectionVersion { index: 2, kind, needed: 4, version: 3 });
    let mut older = sections();
    older.remove(2);
    older.push((SIGNATURE, vec![0x80]));
    let mut image = assemble(&older);
    put(&mut image, 4, &[0, 3]);
    seal(&mut image);
    assert!(Image::parse(&image).is_ok());
    put(&mut image, 4, &[0, 2]);
    seal(&mut image);
    let kind = SectionKind::Signature;
    assert_eq!(fault(&image).1, Fault::SectionVersion { index: 4, kind, needed: 3, version: 2 });
}

#[test]
fn an_empty_kernel_is_refused_and_a_full_table_is_not() {
    let mut empty = sections();
    empty[0].1.clear();
    assert_eq!(fault(&assemble(&empty)).1, Fault::EmptyKernel);
    let mut full = sections();
    full.resize(32, (RAMDISK, b"r".to_vec()));
    assert_eq!(Image::parse(&assemble(&full)).unwrap().layout().ramdisks().count(), 29);
    assert_eq!(full[0].0, KERNEL);
}

#[test]
fn bad_metadata_and_signatures_are_errors_with_their_place() {
    let mut sections = sections();
    sections[2].1 = b"not json".to_vec();
    sections.push((SIGNATURE, vec![0x80]));
    let image = assemble(&sections);
    let image = Image::parse(&image).unwrap();
    let error = image.metadata().unwrap_err();
    assert!(error.blames_image() && matches!(error, ImageError::Metadata { offset: 5597, .. }), "{error:?}");
    let error = image.measure().unwrap_err();
    assert!(matches!(error, ImageError::Signature { .. }), "an empty array panics AWS's reader: {error:?}");
}

#[test]
fn what_is_no_regular_file_is_refused() {
    assert!(matches!(Image::open("/dev/null".as_ref()), Err(ImageError::NotAFile)));
    assert!(matches!(Image::open("/".as_ref()), Err(ImageError::NotAFile)));
    assert!(matches!(Image::open("/nonexistent".as_ref()), Err(ImageError::Open { .. })));
}

#[test]
fn a_file_is_held_to_the_same_rules_as_bytes() {
    let image = assemble(&sections());
    let file = tempfile::NamedTempFile::new().unwrap();
    for end in (0..image.len()).step_by(4096) {
        std::fs::write(file.path(), &image[..end]).unwrap();
        let error = Image::open(file.path()).map(drop).unwrap_err();
        assert!(matches!(error, ImageError::Malformed { fault: Fault::Truncated { .. }, .. }), "{error:?}");
        assert!(Image::open_measured(file.path()).is_err());
    }
}
