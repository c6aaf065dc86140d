//! Whatever goes into an image comes out of it, and nothing else is accepted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod sample;

use std::io::{Read, Seek, Write};

use eif::{Architecture, Image, ImageWriter, Metadata};
use proptest::prelude::*;

fn file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back(
        kernel in prop::collection::vec(any::<u8>(), 1..4096),
        cmdline in "[ -~]{0,200}",
        name in "\\PC{0,40}",
        ramdisks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4096), 1..6),
        arm in any::<bool>(),
    ) {
        let mut metadata = Metadata::from_json(sample::METADATA_JSON).unwrap();
        metadata.image_name = name;
        let architecture = if arm { Architecture::Aarch64 } else { Architecture::X86_64 };
        let mut writer = ImageWriter::create(
            tempfile::tempfile().unwrap(), architecture, &mut file(&kernel), &cmdline, &metadata,
        ).unwrap();
        for (index, ramdisk) in ramdisks.iter().enumerate() {
            if index % 2 == 0 {
                writer.copy_ramdisk(&mut file(ramdisk)).unwrap();
            } else {
                writer.generate_ramdisk(|output| {
                    output.write_all(ramdisk).map_err(eif::WriteError::Output)
                }).unwrap();
            }
        }
        let (output, measurements) = writer.finish().unwrap();
        let image = Image::read(output).unwrap();
        let layout = image.layout().clone();
        prop_assert_eq!(layout.architecture, architecture);
        prop_assert_eq!(image.cmdline().unwrap(), cmdline.as_bytes());
        prop_assert_eq!(image.metadata().unwrap(), Some(metadata));
        prop_assert_eq!(image.measure().unwrap(), measurements);
        let content = |section| {
            let mut bytes = Vec::new();
            image.reader(section).read_to_end(&mut bytes).unwrap();
            bytes
        };
        prop_assert_eq!(content(layout.kernel()), kernel);
        prop_assert_eq!(layout.ramdisks().map(content).collect::<Vec<_>>(), ramdisks);
    }

    #[test]
    fn arbitrary_bytes_are_never_an_image(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(Image::parse(&bytes).is_err());
    }

    #[test]
    fn a_sound_image_with_some_bytes_replaced_is_refused(
        at in 0_usize..18_000, new in prop::collection::vec(any::<u8>(), 1..16),
    ) {
        let original = sample::assemble(&sample::sections());
        let mut bytes = original.clone();
        let at = at % (bytes.len() - new.len());
        sample::put(&mut bytes, at, &new);
        prop_assume!(bytes != original);
        prop_assert!(Image::parse(&bytes).is_err());
    }

    #[test]
    fn structure_is_checked_even_under_a_right_checksum_without_panic(
        at in 0_usize..6_000, new in prop::collection::vec(any::<u8>(), 1..16),
    ) {
        let mut bytes = sample::assemble(&sample::sections());
        sample::put(&mut bytes, at, &new);
        sample::seal(&mut bytes);
        if let Ok(image) = Image::parse(&bytes) {
            prop_assert_eq!(image.layout().len(), bytes.len() as u64);
            prop_assert!(image.measure().is_ok());
            let _ = (image.metadata(), eif::shadow::find(&image));
        }
    }
}
