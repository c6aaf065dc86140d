//! Any bytes: refused, or a layout that is true of them.
//!
//! The first byte decides whether the checksum is made right first, so that
//! the rules behind it are reached.
#![no_main]

use eif::Image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, image)) = data.split_first() else { return };
    let mut image = image.to_vec();
    if mode & 1 == 1 {
        seal(&mut image);
    }
    let Ok(parsed) = Image::parse(&image) else { return };
    let layout = parsed.layout();
    assert_eq!(layout.len(), image.len() as u64);
    let mut end = 548;
    for section in layout.sections() {
        assert_eq!(section.payload.start, end + 12);
        end = section.payload.end;
    }
    assert_eq!(end, layout.len());
    let _ = (parsed.cmdline(), parsed.metadata(), parsed.measure());
    let _ = eif::shadow::find(&parsed);
    if let Ok(Some(signature)) = parsed.signature() {
        let _ = signature.summary();
        assert!(signature.check(&eif::Pcr::ZERO, std::time::UNIX_EPOCH).is_err());
    }
    // An image differs from itself in nothing, whatever its ramdisks hold.
    for section in layout.sections() {
        let part = (&parsed, section);
        assert!(matches!(eif::diff::first_difference(part, part), Ok(None)));
        if let Ok(changes) = eif::diff::ramdisks(part, part) {
            assert!(changes.is_empty());
        }
    }
});

fn seal(image: &mut [u8]) {
    if image.len() >= 548 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&image[..544]);
        crc.update(&image[548..]);
        image[544..548].copy_from_slice(&crc.finalize().to_be_bytes());
    }
}
