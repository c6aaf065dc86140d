//! The bytes of an EIF (version 4 and the two before it), and the rules that
//! make one well formed. All integers are big-endian.
//!
//! ```text
//! 0    magic ".eif" | version u16 | flags u16 | default_mem u64 | default_cpus u64
//! 24   reserved u16 | section count u16
//! 28   32 x u64  file offset of each section's header
//! 284  32 x u64  size of each section's payload
//! 540  unused u32 | crc32 u32
//! 548  section: type u16 | flags u16 | payload size u64 | payload, then the next
//! ```
//!
//! The hypervisor boots by the table, other readers walk the sections: here
//! the two must agree, so that what is measured is what boots.

use std::{fmt, ops::Range};

pub(crate) const HEADER_LEN: usize = 548;
pub(crate) const SECTION_HEADER_LEN: usize = 12;
pub(crate) const MAX_SECTIONS: usize = 32;
pub(crate) const CRC_OFFSET: usize = 544;
pub(crate) const CURRENT_VERSION: u16 = 4;

const MAGIC: [u8; 4] = *b".eif";
/// Version 1 has no checksum.
const OLDEST_VERSION: u16 = 2;
const FLAG_AARCH64: u16 = 1;
const RESERVED_OFFSET: usize = 24;
const COUNT_OFFSET: usize = 26;
const OFFSETS_OFFSET: usize = 28;
const SIZES_OFFSET: usize = 284;
const UNUSED_OFFSET: usize = 540;

/// Twice what Linux keeps of a command line (COMMAND_LINE_SIZE, 2048 on
/// x86_64 and aarch64).
pub const MAX_CMDLINE: u64 = 4096;
/// Room for the description of a container image with many layers and labels.
pub const MAX_METADATA: u64 = 1 << 20;
/// Room for a chain of certificates as PEM in a CBOR array of integers.
pub const MAX_SIGNATURE: u64 = 64 << 10;

/// The machine that an image boots on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// 64-bit x86; flag bit 0 clear.
    X86_64,
    /// 64-bit Arm; flag bit 0 set.
    Aarch64,
}

impl Architecture {
    /// The machine that this program was built for.
    pub const HOST: Architecture =
        if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 };
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
        })
    }
}

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum SectionKind {
    /// The kernel: bzImage on x86_64, Image on aarch64.
    Kernel = 1,
    /// The kernel's command line, without a terminating NUL.
    Cmdline = 2,
    /// A cpio archive. There may be several.
    Ramdisk = 3,
    /// CBOR with a certificate and a COSE_Sign1 over PCR0. Since version 3.
    Signature = 4,
    /// JSON about the build; checksummed but not measured. Since version 4.
    Metadata = 5,
}

impl SectionKind {
    fn from_code(code: u16) -> Option<SectionKind> {
        Some(match code {
            1 => SectionKind::Kernel,
            2 => SectionKind::Cmdline,
            3 => SectionKind::Ramdisk,
            4 => SectionKind::Signature,
            5 => SectionKind::Metadata,
            _ => return None,
        })
    }

    /// Largest payload in bytes; `None` when only the file bounds it.
    pub(crate) fn limit(self) -> Option<u64> {
        match self {
            SectionKind::Kernel | SectionKind::Ramdisk => None,
            SectionKind::Cmdline => Some(MAX_CMDLINE),
            SectionKind::Metadata => Some(MAX_METADATA),
            SectionKind::Signature => Some(MAX_SIGNATURE),
        }
    }

    fn since_version(self) -> u16 {
        match self {
            SectionKind::Metadata => 4,
            SectionKind::Signature => 3,
            _ => OLDEST_VERSION,
        }
    }

    /// Whether a section of kind `self` may follow `previous`. The whole order:
    /// kernel, cmdline, [metadata], ramdisk, [ramdisk...], [signature].
    fn may_follow(self, previous: Option<SectionKind>) -> bool {
        use SectionKind::*;
        match previous {
            None => self == Kernel,
            Some(Kernel) => self == Cmdline,
            Some(Cmdline) => matches!(self, Metadata | Ramdisk),
            Some(Metadata) => self == Ramdisk,
            Some(Ramdisk) => matches!(self, Ramdisk | Signature),
            Some(Signature) => false,
        }
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SectionKind::Kernel => "kernel",
            SectionKind::Cmdline => "cmdline",
            SectionKind::Ramdisk => "ramdisk",
            SectionKind::Signature => "signature",
            SectionKind::Metadata => "metadata",
        })
    }
}

/// One section of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Where its payload lies in the file, in bytes; its 12-byte header is
    /// just before.
    pub payload: Range<u64>,
}

impl Section {
    /// Bytes of payload.
    pub fn len(&self) -> u64 {
        self.payload.end - self.payload.start
    }

    /// Whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.payload.is_empty()
    }

    pub(crate) fn header_offset(&self) -> u64 {
        self.payload.start - SECTION_HEADER_LEN as u64
    }

    pub(crate) fn header(&self) -> [u8; SECTION_HEADER_LEN] {
        let mut bytes = [0; SECTION_HEADER_LEN];
        bytes[..2].copy_from_slice(&(self.kind as u16).to_be_bytes());
        bytes[4..].copy_from_slice(&self.len().to_be_bytes());
        bytes
    }
}

/// Where everything lies in a well-formed image. Only a reader or a writer of
/// this crate makes one, so the sections are in order, contiguous, and end
/// where the file ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Format version, 2 to 4.
    pub version: u16,
    /// The machine it boots on.
    pub architecture: Architecture,
    /// Memory that the builder suggests, in bytes. Nothing relies on it.
    pub default_memory: u64,
    /// vCPUs that the builder suggests. Nothing relies on it.
    pub default_cpus: u64,
    /// The sections in file order.
    pub(crate) sections: Vec<Section>,
    /// Bytes of the whole file.
    pub(crate) len: u64,
    /// CRC-32 as the header states it.
    pub(crate) crc: u32,
}

impl Layout {
    /// Bytes of the whole file, header included.
    #[allow(clippy::len_without_is_empty, reason = "an image is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// CRC-32 (ISO-HDLC) of everything but the checksum field itself.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// All sections in file order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The kernel.
    pub fn kernel(&self) -> &Section {
        &self.sections[0]
    }

    /// The kernel's command line.
    pub fn cmdline(&self) -> &Section {
        &self.sections[1]
    }

    /// The metadata, if there is any.
    pub fn metadata(&self) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == SectionKind::Metadata)
    }

    /// The ramdisks in order; at least one.
    pub fn ramdisks(&self) -> impl Iterator<Item = &Section> + Clone {
        self.sections.iter().filter(|section| section.kind == SectionKind::Ramdisk)
    }

    /// The signature, if the image is signed.
    pub fn signature(&self) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == SectionKind::Signature)
    }

    /// The header's bytes, checksum included.
    pub(crate) fn header(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.version.to_be_bytes());
        let flags = if self.architecture == Architecture::Aarch64 { FLAG_AARCH64 } else { 0 };
        bytes[6..8].copy_from_slice(&flags.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.default_memory.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.default_cpus.to_be_bytes());
        bytes[COUNT_OFFSET..COUNT_OFFSET + 2].copy_from_slice(&(self.sections.len() as u16).to_be_bytes());
        for (index, section) in self.sections.iter().enumerate() {
            let (offset, size) = (OFFSETS_OFFSET + 8 * index, SIZES_OFFSET + 8 * index);
            bytes[offset..offset + 8].copy_from_slice(&section.header_offset().to_be_bytes());
            bytes[size..size + 8].copy_from_slice(&section.len().to_be_bytes());
        }
        bytes[CRC_OFFSET..].copy_from_slice(&self.crc.to_be_bytes());
        bytes
    }
}

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
        if !(3..=MAX_SECTIONS as u16).contains(&count) {
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
