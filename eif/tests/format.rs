//! The format and the formulas, against values that the crate did not make.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod sample;

use std::{
    fs::File,
    io::{Read, Write},
    process::{Command, Stdio},
};

use eif::{Architecture, Image, ImageWriter, Metadata, Pcr, SectionKind};
use sample::{CMDLINE, KERNEL, METADATA, RAMDISK, SIGNATURE, assemble, pattern, sections};

/// Writes the sections of `image` with the crate's writer.
fn written(architecture: Architecture, sections: &[(u16, Vec<u8>)]) -> (Vec<u8>, eif::Measurements) {
    let as_file = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    };
    let payload = |kind: u16| &sections.iter().find(|section| section.0 == kind).unwrap().1;
    let cmdline = std::str::from_utf8(payload(CMDLINE)).unwrap();
    let metadata = Metadata::from_json(payload(METADATA)).unwrap();
    let output = tempfile::tempfile().unwrap();
    let mut writer =
        ImageWriter::create(output, architecture, &mut as_file(payload(KERNEL)), cmdline, &metadata).unwrap();
    for (_, ramdisk) in sections.iter().filter(|section| section.0 == RAMDISK) {
        writer.copy_ramdisk(&mut as_file(ramdisk)).unwrap();
    }
    let (mut file, measurements) = writer.finish().unwrap();
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    (bytes, measurements)
}

#[test]
fn the_writer_makes_what_the_format_says() {
    let by_hand = assemble(&sections());
    let (bytes, measurements) = written(Architecture::X86_64, &sections());
    assert!(bytes == by_hand, "the written image differs from the one put together by hand");
    assert_eq!(measurements, Image::parse(&by_hand).unwrap().measure().unwrap());
}

#[test]
fn the_architecture_is_flag_bit_0() {
    let (bytes, _) = written(Architecture::Aarch64, &sections());
    assert_eq!(bytes[6..8], [0, 1]);
    assert_eq!(Image::parse(&bytes).unwrap().layout().architecture, Architecture::Aarch64);
}

#[test]
fn sections_lie_where_the_table_says() {
    let bytes = assemble(&sections());
    let image = Image::parse(&bytes).unwrap();
    let layout = image.layout();
    let found: Vec<_> = layout
        .sections()
        .iter()
        .map(|section| (section.kind, section.payload.start, section.len()))
        .collect();
    let metadata = sample::METADATA_JSON.len() as u64;
    let expected = [
        (SectionKind::Kernel, 560, 5000),
        (SectionKind::Cmdline, 5572, 13),
        (SectionKind::Metadata, 5597, metadata),
        (SectionKind::Ramdisk, 5609 + metadata, 3000),
        (SectionKind::Ramdisk, 8621 + metadata, 9000),
    ];
    assert_eq!(found, expected);
    assert_eq!((layout.version, layout.default_memory, layout.default_cpus), (4, 1 << 30, 2));
    assert_eq!(layout.len(), bytes.len() as u64);
    assert_eq!(image.cmdline().unwrap(), b"console=ttyS0");
    assert_eq!(image.metadata().unwrap().unwrap().image_name, "sample");
    assert!(image.signature().unwrap().is_none());
}

/// From Python's hashlib over the sample's sections.
#[test]
fn registers_have_the_values_that_another_implementation_computes() {
    let bytes = assemble(&sections());
    let measurements = Image::parse(&bytes).unwrap().measure().unwrap();
    assert_eq!(
        measurements.pcr0.to_string(),
        "5c01054311e383407af00b11c989b4f5d58b4e3cb2eac7f09317141964acdf109040cfd1915667dcb5f9f7955bb46dc0"
    );
    assert_eq!(
        measurements.pcr1.to_string(),
        "8eb82ebe7b1cbdaf6b98898dc5bab3df3309550a882ce1c836e28257d94ace527ca3e8ff932054694d12da0eab3316f4"
    );
    assert_eq!(
        measurements.pcr2.to_string(),
        "7fea26b734923a29824cfcb85a1a0717cf1db4843fcec016f92d3f1109adb3ea3ad69a2b9b8d8d4e1ecee0324a6972cf"
    );
    assert_eq!(measurements.pcr8, None);
}

#[test]
fn registers_follow_the_formulas_by_sha384sum() {
    let sections = sections();
    let join =
        |indices: &[usize]| indices.iter().flat_map(|&index| sections[index].1.clone()).collect::<Vec<u8>>();
    let measurements = Image::parse(&assemble(&sections)).unwrap().measure().unwrap();
    for (register, covered) in
        [(measurements.pcr0, &[0, 1, 3, 4][..]), (measurements.pcr1, &[0, 1, 3]), (measurements.pcr2, &[4])]
    {
        let Some(inner) = sha384sum(&join(covered)) else {
            eprintln!("SKIPPED: sha384sum is not installed");
            return;
        };
        let outer = sha384sum(&[vec![0; 48], inner].concat()).unwrap();
        assert_eq!(register.to_string(), hex::encode(outer));
    }
}

fn sha384sum(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut program = Command::new("sha384sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    program.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = program.wait_with_output().unwrap();
    Some(hex::decode(&output.stdout[..96]).unwrap())
}

#[test]
fn with_one_ramdisk_pcr2_covers_nothing() {
    let mut one = sections();
    one.pop();
    let measurements = Image::parse(&assemble(&one)).unwrap().measure().unwrap();
    assert_eq!(
        measurements.pcr2.to_string(),
        "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a"
    );
    assert_eq!(measurements.pcr0, measurements.pcr1);
}

#[test]
fn metadata_is_in_no_register() {
    let mut other = sections();
    other[2].1 = String::from_utf8(other[2].1.clone()).unwrap().replace("sample", "another").into_bytes();
    let measure = |sections: &[_]| Image::parse(&assemble(sections)).unwrap().measure().unwrap();
    assert_eq!(measure(&other), measure(&sections()));
}

#[test]
fn a_signed_image_has_pcr8_of_its_certificate() {
    let pem = b"-----BEGIN CERTIFICATE-----\nAQIDBA==\n-----END CERTIFICATE-----\n";
    let mut cbor = minicbor::Encoder::new(Vec::new());
    cbor.array(1).unwrap().map(2).unwrap();
    for (name, value) in [("signing_certificate", &pem[..]), ("signature", &[0x84])] {
        cbor.str(name).unwrap().array(value.len() as u64).unwrap();
        for byte in value {
            cbor.u8(*byte).unwrap();
        }
    }
    let mut signed = sections();
    signed.push((SIGNATURE, cbor.into_writer()));
    let bytes = assemble(&signed);
    let image = Image::parse(&bytes).unwrap();
    let unsigned = Image::parse(&assemble(&sections())).unwrap().measure().unwrap();
    let measurements = image.measure().unwrap();
    assert_eq!(measurements, eif::Measurements { pcr8: Some(Pcr::of(&[1, 2, 3, 4])), ..unsigned });
}

#[test]
fn a_file_and_its_bytes_read_alike() {
    let bytes = assemble(&sections());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let (image, measurements) = Image::open_measured(file.path()).unwrap();
    let (parsed, parsed_measurements) = Image::parse_measured(&bytes).unwrap();
    assert_eq!(image.layout(), parsed.layout());
    assert_eq!(measurements, parsed_measurements);
    assert_eq!(Image::read(File::open(file.path()).unwrap()).unwrap().measure().unwrap(), measurements);
    let mut ramdisk = Vec::new();
    image.reader(image.layout().ramdisks().nth(1).unwrap()).read_to_end(&mut ramdisk).unwrap();
    assert!(ramdisk == pattern(9000, 3));
}

#[test]
fn progress_reaches_the_announced_total() {
    let bytes = assemble(&sections());
    let image = Image::parse(&bytes).unwrap();
    let hashed = std::sync::atomic::AtomicU64::new(0);
    image
        .measure_with(&|count| {
            hashed.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
        })
        .unwrap();
    assert_eq!(hashed.into_inner(), image.measured_bytes());
}
