//! Images put together by hand from the format's table, not by the crate.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses its part")]

pub const KERNEL: u16 = 1;
pub const CMDLINE: u16 = 2;
pub const RAMDISK: u16 = 3;
pub const SIGNATURE: u16 = 4;
pub const METADATA: u16 = 5;

pub const METADATA_JSON: &[u8] = br#"{"ImageName":"sample","ImageVersion":"1","BuildMetadata":{"BuildTime":"1970-01-01T00:00:00Z","BuildTool":"hand","BuildToolVersion":"0","OperatingSystem":"Linux","KernelVersion":"6.1"},"DockerInfo":null,"CustomMetadata":null}"#;

/// 5,000 bytes of kernel, "console=ttyS0", metadata, ramdisks of 3,000 and
/// 9,000 bytes.
pub fn sections() -> Vec<(u16, Vec<u8>)> {
    vec![
        (KERNEL, pattern(5000, 1)),
        (CMDLINE, b"console=ttyS0".to_vec()),
        (METADATA, METADATA_JSON.to_vec()),
        (RAMDISK, pattern(3000, 2)),
        (RAMDISK, pattern(9000, 3)),
    ]
}

pub fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251 + seed) as u8).collect()
}

/// A whole image with a right checksum.
pub fn assemble(sections: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut image = vec![0; 548];
    image[..4].copy_from_slice(b".eif");
    put(&mut image, 4, &4_u16.to_be_bytes());
    put(&mut image, 8, &0x4000_0000_u64.to_be_bytes());
    put(&mut image, 16, &2_u64.to_be_bytes());
    put(&mut image, 26, &(sections.len() as u16).to_be_bytes());
    for (index, (kind, payload)) in sections.iter().enumerate() {
        let offset = image.len() as u64;
        put(&mut image, 28 + 8 * index, &offset.to_be_bytes());
        put(&mut image, 284 + 8 * index, &(payload.len() as u64).to_be_bytes());
        image.extend(kind.to_be_bytes());
        image.extend([0, 0]);
        image.extend((payload.len() as u64).to_be_bytes());
        image.extend(payload);
    }
    seal(&mut image);
    image
}

pub fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Makes the checksum right: so that what a test broke is found by its own
/// rule, not by the checksum.
pub fn seal(image: &mut [u8]) {
    let crc = !image[..544].iter().chain(&image[548..]).fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    put(image, 544, &crc.to_be_bytes());
}
