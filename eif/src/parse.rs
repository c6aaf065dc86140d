//! Decides whether bytes are a well-formed image, and names the first rule that
//! they break and the byte where it shows.

use crate::layout::{
    Architecture, COUNT_OFFSET, CRC_OFFSET, CURRENT_VERSION, FLAG_AARCH64, HEADER_LEN, Layout, MAGIC,
    MAX_SECTIONS, OFFSETS_OFFSET, OLDEST_VERSION, SECTION_HEADER_LEN, SIZES_OFFSET, Section, SectionKind,
};

const RESERVED_OFFSET: usize = 24;
const UNUSED_OFFSET: usize = 540;
/// A kernel, a command line and a ramdisk.
const MIN_SECTIONS: u16 = 3;

/// What is wrong with an image's bytes. Where: see
/// [`ImageError::Malformed`](crate::ImageError::Malformed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum Fault {
    #[error("not an enclave image: it starts with {actual:02x?} instead of \".eif\"")]
    Magic { actual: [u8; 4] },
    #[error("the file ends here, {missing} bytes too early")]
    Truncated { missing: u64 },
    #[error("format version {version} is not supported (2 to 4 are)")]
    Version { version: u16 },
    #[error("unknown flags {flags:#06x}")]
    Flags { flags: u16 },
    #[error("a reserved field is not zero")]
    Reserved,
    #[error("{count} sections, between 3 and 32 are possible")]
    SectionCount { count: u16 },
    #[error("the table puts section {index} at {actual}, but the one before it ends at {expected}")]
    SectionOffset { index: usize, expected: u64, actual: u64 },
    #[error("section {index} has {in_section} bytes by its own header, {in_table} by the table")]
    SectionSize { index: usize, in_section: u64, in_table: u64 },
    #[error("section {index} has unknown type {code}")]
    SectionType { index: usize, code: u16 },
    #[error("section {index} has unknown flags {flags:#06x}")]
    SectionFlags { index: usize, flags: u16 },
    #[error("section {index}, a {kind}, is out of order (kernel, cmdline, metadata, ramdisks, signature)")]
    SectionOrder { index: usize, kind: SectionKind },
    #[error("section {index}, a {kind}, needs format version {needed}, the image has {version}")]
    SectionVersion { index: usize, kind: SectionKind, needed: u16, version: u16 },
    #[error("section {index}, a {kind}, has {size} bytes, at most {limit} are accepted")]
    SectionLimit { index: usize, kind: SectionKind, size: u64, limit: u64 },
    #[error("the kernel is empty")]
    EmptyKernel,
    #[error("there is no ramdisk")]
    NoRamdisk,
    #[error("an unused slot of the section table is not zero")]
    UnusedSlot,
    #[error("{count} bytes follow the last section")]
    Trailing { count: u64 },
    #[error("checksum is {actual:08x}, the header says {expected:08x}")]
    Checksum { expected: u32, actual: u32 },
}

/// A [`Fault`] and the byte offset where it shows.
pub(crate) type FaultAt = (u64, Fault);

/// The header of an image of `len` bytes, not yet compared with its sections.
pub(crate) struct Header<'a> {
    bytes: &'a [u8; HEADER_LEN],
    len: u64,
    version: u16,
    count: u16,
    architecture: Architecture,
}

impl<'a> Header<'a> {
    pub(crate) fn parse(bytes: &'a [u8; HEADER_LEN], len: u64) -> Result<Header<'a>, FaultAt> {
        let magic = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if magic != MAGIC {
            return Err((0, Fault::Magic { actual: magic }));
        }
        let version = u16_at(bytes, 4);
        if !(OLDEST_VERSION..=CURRENT_VERSION).contains(&version) {
            return Err((4, Fault::Version { version }));
        }
        let flags = u16_at(bytes, 6);
        if flags & !FLAG_AARCH64 != 0 {
            return Err((6, Fault::Flags { flags }));
        }
        if u16_at(bytes, RESERVED_OFFSET) != 0 {
            return Err((RESERVED_OFFSET as u64, Fault::Reserved));
        }
        if bytes[UNUSED_OFFSET..CRC_OFFSET] != [0; 4] {
            return Err((UNUSED_OFFSET as u64, Fault::Reserved));
        }
        let count = u16_at(bytes, COUNT_OFFSET);
        if !(MIN_SECTIONS..=MAX_SECTIONS as u16).contains(&count) {
            return Err((COUNT_OFFSET as u64, Fault::SectionCount { count }));
        }
        for slot in usize::from(count)..MAX_SECTIONS {
            for offset in [OFFSETS_OFFSET + 8 * slot, SIZES_OFFSET + 8 * slot] {
                if u64_at(bytes, offset) != 0 {
                    return Err((offset as u64, Fault::UnusedSlot));
                }
            }
        }
        let architecture =
            if flags & FLAG_AARCH64 == 0 { Architecture::X86_64 } else { Architecture::Aarch64 };
        Ok(Header { bytes, len, version, count, architecture })
    }

    /// Walks the sections; `section_header_at` reads the 12 bytes at an offset
    /// that is known to leave room for them.
    pub(crate) fn layout<E: From<FaultAt>>(
        self,
        mut section_header_at: impl FnMut(u64) -> Result<[u8; SECTION_HEADER_LEN], E>,
    ) -> Result<Layout, E> {
        let mut sections: Vec<Section> = Vec::with_capacity(usize::from(self.count));
        let mut position = HEADER_LEN as u64;
        for index in 0..usize::from(self.count) {
            let table_entry = OFFSETS_OFFSET + 8 * index;
            let actual = u64_at(self.bytes, table_entry);
            if actual != position {
                let fault = Fault::SectionOffset { index, expected: position, actual };
                return Err((table_entry as u64, fault).into());
            }
            require(self.len, position, SECTION_HEADER_LEN as u64)?;
            let header = section_header_at(position)?;
            let previous = sections.last().map(|section| section.kind);
            let section = self.section(index, position, &header, previous)?;
            position = section.payload.end;
            sections.push(section);
        }
        if !sections.iter().any(|section| section.kind == SectionKind::Ramdisk) {
            return Err((COUNT_OFFSET as u64, Fault::NoRamdisk).into());
        }
        if position != self.len {
            return Err((position, Fault::Trailing { count: self.len - position }).into());
        }
        Ok(Layout {
            version: self.version,
            architecture: self.architecture,
            default_memory: u64_at(self.bytes, 8),
            default_cpus: u64_at(self.bytes, 16),
            sections,
            len: self.len,
            crc: u32::from_be_bytes([self.bytes[544], self.bytes[545], self.bytes[546], self.bytes[547]]),
        })
    }

    fn section(
        &self,
        index: usize,
        offset: u64,
        header: &[u8; SECTION_HEADER_LEN],
        previous: Option<SectionKind>,
    ) -> Result<Section, FaultAt> {
        let (code, flags, size) = (u16_at(header, 0), u16_at(header, 2), u64_at(header, 4));
        let kind = SectionKind::from_code(code).ok_or((offset, Fault::SectionType { index, code }))?;
        if flags != 0 {
            return Err((offset + 2, Fault::SectionFlags { index, flags }));
        }
        let in_table = u64_at(self.bytes, SIZES_OFFSET + 8 * index);
        if size != in_table {
            return Err((offset + 4, Fault::SectionSize { index, in_section: size, in_table }));
        }
        if !kind.may_follow(previous) {
            return Err((offset, Fault::SectionOrder { index, kind }));
        }
        let (needed, version) = (kind.since_version(), self.version);
        if version < needed {
            return Err((offset, Fault::SectionVersion { index, kind, needed, version }));
        }
        if let Some(limit) = kind.limit().filter(|&limit| size > limit) {
            return Err((offset + 4, Fault::SectionLimit { index, kind, size, limit }));
        }
        if kind == SectionKind::Kernel && size == 0 {
            return Err((offset + 4, Fault::EmptyKernel));
        }
        let start = offset + SECTION_HEADER_LEN as u64;
        require(self.len, start, size)?;
        Ok(Section { kind, payload: start..start + size })
    }
}

/// That `needed` bytes exist from `offset` in a file of `len` bytes.
pub(crate) fn require(len: u64, offset: u64, needed: u64) -> Result<(), FaultAt> {
    let available = len.saturating_sub(offset);
    if available < needed {
        return Err((len, Fault::Truncated { missing: needed - available }));
    }
    Ok(())
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes([bytes[offset], bytes[offset + 1]])
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_be_bytes(value)
}
