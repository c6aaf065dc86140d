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

pub(crate) const MAGIC: [u8; 4] = *b".eif";
/// Version 1 has no checksum.
pub(crate) const OLDEST_VERSION: u16 = 2;
pub(crate) const FLAG_AARCH64: u16 = 1;
pub(crate) const COUNT_OFFSET: usize = 26;
pub(crate) const OFFSETS_OFFSET: usize = 28;
pub(crate) const SIZES_OFFSET: usize = 284;

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
    pub(crate) fn from_code(code: u16) -> Option<SectionKind> {
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

    pub(crate) fn since_version(self) -> u16 {
        match self {
            SectionKind::Metadata => 4,
            SectionKind::Signature => 3,
            _ => OLDEST_VERSION,
        }
    }

    /// Whether a section of kind `self` may follow `previous`. The whole order:
    /// kernel, cmdline, metadata if there is one, ramdisk, more ramdisks, signature if there is one.
    pub(crate) fn may_follow(self, previous: Option<SectionKind>) -> bool {
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
