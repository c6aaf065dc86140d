//! Recognises what goes into an image before it is measured and shipped: a
//! kernel that a boot loader would take, an agent that runs with nothing
//! else in the ramdisk, modules that a kernel could load.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::layout::Architecture;

/// Why a kernel, an agent or a module cannot go into an image.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum BootFileError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a kernel: neither a bzImage (x86_64) nor an uncompressed Image (aarch64)", .path.display())]
    NotAKernel { path: PathBuf },
    #[error("{} is not a 64-bit little-endian ELF program", .path.display())]
    NotAProgram { path: PathBuf },
    #[error("{} is an ELF file but not a program (type {kind}, expected 2 or 3)", .path.display())]
    NotExecutable { path: PathBuf, kind: u16 },
    #[error("{} has a broken ELF header", .path.display())]
    BrokenProgram { path: PathBuf },
    #[error("{} is linked dynamically (it asks for an interpreter): the ramdisk holds no libraries, link it statically", .path.display())]
    Dynamic { path: PathBuf },
    #[error("{} is no kernel module: not a 64-bit little-endian ELF object (a compressed one must be unpacked first)", .path.display())]
    NotAModule { path: PathBuf },
    #[error("the name of module {} does not end in .ko or has characters other than letters, digits, '-', '_' and '.'", .path.display())]
    ModuleName { path: PathBuf },
    #[error("{} is for {actual}, the kernel is for {expected}", .path.display())]
    Architecture { path: PathBuf, expected: Architecture, actual: String },
}

/// A file that looks like a kernel.
pub struct Kernel {
    /// Open for reading, at its start.
    pub file: File,
    /// What it boots on.
    pub architecture: Architecture,
    /// Version as the kernel's header states it, such as `6.1.0-28-amd64`;
    /// `unknown` where the format has none (aarch64).
    pub version: String,
}

/// Opens a kernel. Recognised by Documentation/arch/x86/boot.rst (0xAA55 at
/// 0x1FE, `HdrS` at 0x202) and Documentation/arch/arm64/booting.rst (`ARM\x64`
/// at 0x38).
pub fn open_kernel(path: &Path) -> Result<Kernel, BootFileError> {
    let (file, head) = open_with_head(path, BZIMAGE_HEAD)?;
    if is_bzimage(&head) {
        let version = bzimage_version(&head).unwrap_or_else(|| "unknown".to_owned());
        return Ok(Kernel { file, architecture: Architecture::X86_64, version });
    }
    if head.get(0x38..0x3C) == Some(b"ARM\x64") {
        return Ok(Kernel { file, architecture: Architecture::Aarch64, version: "unknown".to_owned() });
    }
    Err(BootFileError::NotAKernel { path: path.to_owned() })
}

/// Bytes from the start within which a bzImage states its version.
pub(crate) const BZIMAGE_HEAD: u64 = 0x8200;

fn is_bzimage(head: &[u8]) -> bool {
    head.get(0x1FE..0x200) == Some(&[0x55, 0xAA]) && head.get(0x202..0x206) == Some(b"HdrS")
}

/// First word of the text that a bzImage's `kernel_version` (0x20E, less
/// 0x200) points to.
pub(crate) fn bzimage_version(head: &[u8]) -> Option<String> {
    if !is_bzimage(head) {
        return None;
    }
    let pointer = u16::from_le_bytes([*head.get(0x20E)?, *head.get(0x20F)?]);
    if pointer == 0 {
        return None;
    }
    let text = head.get(usize::from(pointer) + 0x200..)?;
    let end = text.iter().position(|byte| matches!(byte, 0 | b' '))?;
    let version = std::str::from_utf8(&text[..end]).ok()?;
    (!version.is_empty() && version.len() <= 64 && version.is_ascii()).then(|| version.to_owned())
}

const PT_INTERP: u32 = 3;
const PROGRAM_HEADER_LEN: u16 = 56;

/// Opens an agent: a statically linked ELF program for `architecture`.
pub fn open_agent(path: &Path, architecture: Architecture) -> Result<File, BootFileError> {
    let (file, head) = open_with_head(path, ELF_HEAD)?;
    let Some(elf) = Elf::read(&head) else {
        return Err(BootFileError::NotAProgram { path: path.to_owned() });
    };
    let Elf { kind, machine, program_headers: (table, size, count) } = elf;
    if !matches!(kind, ET_EXEC | ET_DYN) {
        return Err(BootFileError::NotExecutable { path: path.to_owned(), kind });
    }
    check_machine(path, machine, architecture)?;
    if wants_interpreter(&file, path, table, size, count)? {
        return Err(BootFileError::Dynamic { path: path.to_owned() });
    }
    Ok(file)
}

/// A file that looks like a kernel module.
pub struct Module {
    /// Open for reading, at its start.
    pub file: File,
    /// As given.
    pub path: PathBuf,
    /// Its file's, such as `nsm.ko`.
    pub name: String,
}

/// Opens a module: an ELF object for `architecture`, not compressed, because
/// the agent hands it to the kernel as it is.
pub fn open_module(path: &Path, architecture: Architecture) -> Result<Module, BootFileError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(".ko").unwrap_or_default();
    if stem.is_empty() || !name.bytes().all(plain) {
        return Err(BootFileError::ModuleName { path: path.to_owned() });
    }
    let (file, head) = open_with_head(path, ELF_HEAD)?;
    let Some(Elf { kind: ET_REL, machine, .. }) = Elf::read(&head) else {
        return Err(BootFileError::NotAModule { path: path.to_owned() });
    };
    check_machine(path, machine, architecture)?;
    Ok(Module { file, path: path.to_owned(), name: name.to_owned() })
}

/// Length of an ELF header of 64 bits, and what of it counts here (elf.h).
const ELF_HEAD: u64 = 64;
const ET_REL: u16 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;

struct Elf {
    kind: u16,
    machine: u16,
    /// Offset of the table, size and number of its entries.
    program_headers: (u64, u16, u16),
}

impl Elf {
    /// Nothing when `head` is not that of a 64-bit little-endian file.
    fn read(head: &[u8]) -> Option<Elf> {
        if head.len() < ELF_HEAD as usize || head[..6] != *b"\x7fELF\x02\x01" {
            return None;
        }
        let half = |offset: usize| u16::from_le_bytes([head[offset], head[offset + 1]]);
        let mut table = [0; 8];
        table.copy_from_slice(&head[32..40]);
        let program_headers = (u64::from_le_bytes(table), half(54), half(56));
        Some(Elf { kind: half(16), machine: half(18), program_headers })
    }
}

fn check_machine(path: &Path, machine: u16, expected: Architecture) -> Result<(), BootFileError> {
    let actual = match machine {
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        other => format!("ELF machine {other}"),
    };
    if actual != expected.to_string() {
        return Err(BootFileError::Architecture { path: path.to_owned(), expected, actual });
    }
    Ok(())
}

fn wants_interpreter(
    file: &File,
    path: &Path,
    table: u64,
    size: u16,
    count: u16,
) -> Result<bool, BootFileError> {
    let broken = || BootFileError::BrokenProgram { path: path.to_owned() };
    if size != PROGRAM_HEADER_LEN || count == 0 {
        return Err(broken());
    }
    for index in 0..u64::from(count) {
        let offset = table.checked_add(index * u64::from(size)).ok_or_else(broken)?;
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => broken(),
            _ => BootFileError::Read { path: path.to_owned(), source: error },
        })?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The file, at its start, and up to `len` first bytes of it.
fn open_with_head(path: &Path, len: u64) -> Result<(File, Vec<u8>), BootFileError> {
    let read = || -> io::Result<(File, Vec<u8>)> {
        let mut file = File::open(path)?;
        let mut head = Vec::new();
        (&mut file).take(len).read_to_end(&mut head)?;
        io::Seek::rewind(&mut file)?;
        Ok((file, head))
    };
    read().map_err(|source| BootFileError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 0x1000];
        bytes[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20E..0x210].copy_from_slice(&0x600_u16.to_le_bytes());
        bytes[0x800..0x80E].copy_from_slice(b"6.1.0-1 (x@y) ");
        bytes
    }

    fn program(machine: u16, segment: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16] = 3;
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&segment.to_le_bytes());
        bytes
    }

    #[test]
    fn kernels_are_recognised_with_their_version() {
        let kernel = open_kernel(file(&bzimage()).path()).unwrap();
        assert_eq!((kernel.architecture, kernel.version.as_str()), (Architecture::X86_64, "6.1.0-1"));
        let mut arm = vec![0; 0x40];
        arm[0x38..].copy_from_slice(b"ARM\x64\0\0\0\0");
        assert_eq!(open_kernel(file(&arm).path()).unwrap().architecture, Architecture::Aarch64);
    }

    #[test]
    fn other_files_are_no_kernels() {
        for bytes in [&b""[..], b"\x7fELF", &[0; 0x1000], &bzimage()[..0x204]] {
            assert!(matches!(open_kernel(file(bytes).path()), Err(BootFileError::NotAKernel { .. })));
        }
    }

    #[test]
    fn an_agent_is_static_and_of_the_kernels_machine() {
        let open = |bytes: &[u8]| open_agent(file(bytes).path(), Architecture::X86_64);
        assert!(open(&program(62, 1)).is_ok());
        assert!(matches!(open(&program(62, PT_INTERP)), Err(BootFileError::Dynamic { .. })));
        assert!(matches!(open(&program(183, 1)), Err(BootFileError::Architecture { .. })));
        assert!(matches!(open(&program(62, 1)[..90][..64]), Err(BootFileError::BrokenProgram { .. })));
        assert!(matches!(open(b"#!/bin/sh\n"), Err(BootFileError::NotAProgram { .. })));
        let mut object = program(62, 1);
        object[16] = 1;
        assert!(matches!(open(&object), Err(BootFileError::NotExecutable { kind: 1, .. })));
    }

    #[test]
    fn a_module_is_an_object_of_the_kernels_machine_with_a_plain_name() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            open_module(&path, Architecture::X86_64)
        };
        let object = |machine: u16| {
            let mut bytes = program(machine, 1);
            bytes[16] = 1;
            bytes
        };
        assert_eq!(open("nsm.ko", &object(62)).unwrap().name, "nsm.ko");
        assert!(matches!(open("arm.ko", &object(183)), Err(BootFileError::Architecture { .. })));
        for bytes in [&program(62, 1)[..], b"\xfd7zXZ\0 and so on", b""] {
            assert!(matches!(open("other.ko", bytes), Err(BootFileError::NotAModule { .. })));
        }
        for name in [".ko", "nsm", "nsm.ko.xz", "a b.ko", "\u{e9}.ko"] {
            assert!(matches!(open(name, &object(62)), Err(BootFileError::ModuleName { .. })), "{name}");
        }
    }
}
