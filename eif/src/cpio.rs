//! The "newc" cpio archive, as the kernel unpacks it into its first file
//! system (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! ```text
//! "070701" ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor
//! rdevminor namesize check     13 fields of 8 hex digits, 110 bytes in all
//! name NUL, padded to 4 | data, padded to 4 | next ... | "TRAILER!!!"
//! ```
//!
//! [`Writer`] makes the same bytes from the same entries: times and device
//! numbers are fixed, names must come sorted. [`Reader`] lists archives that
//! nobody vouches for.

use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};

/// Set in a mode: a regular file.
pub const S_IFREG: u32 = 0o100000;
/// Set in a mode: a directory.
pub const S_IFDIR: u32 = 0o040000;
/// Set in a mode: a symbolic link.
pub const S_IFLNK: u32 = 0o120000;
/// The bits of a mode that tell the type.
pub const S_IFMT: u32 = 0o170000;

const MAGIC: &[u8; 6] = b"070701";
const HEADER_LEN: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
/// PATH_MAX with the NUL: Linux skips entries with longer names.
const MAX_NAME: usize = 4096;
/// Archives are padded to whole blocks, so that they can follow each other.
const BLOCK: u64 = 512;

/// One entry of an archive, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Path without a leading slash, not NUL-terminated.
    pub name: &'a [u8],
    /// Type and permissions as in stat(2).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Which file this is: names with one number and more than one link are one file.
    pub inode: u32,
    /// How many names in this archive the file has.
    pub links: u32,
    /// Major and minor number of a device node; else zeros.
    pub device: (u32, u32),
    /// Bytes of data that follow: a file's content, a symbolic link's target.
    pub size: u32,
}

/// Why an archive cannot be written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum CpioError {
    #[error("cannot write the archive")]
    Output(#[source] io::Error),
    #[error("cannot read the data of an entry")]
    Data(#[source] io::Error),
    #[error("data ended {missing} bytes before the entry's size")]
    ShortData { missing: u64 },
    #[error("name has {len} bytes, Linux unpacks names of up to {}", MAX_NAME - 1)]
    LongName { len: usize },
    #[error("name is empty, absolute, or the archive's end mark")]
    Name,
    #[error("entries are not in order")]
    Order,
}

/// Writes an archive.
pub struct Writer<W> {
    output: W,
    position: u64,
    last: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// An empty archive.
    pub fn new(output: W) -> Writer<W> {
        Writer { output, position: 0, last: Vec::new() }
    }

    /// Adds an entry and its `entry.size` bytes of data. Names must ascend
    /// bytewise, which also puts every directory before what is in it.
    pub fn append(&mut self, entry: &Entry<'_>, data: &mut impl Read) -> Result<(), CpioError> {
        if entry.name.is_empty() || entry.name.starts_with(b"/") || entry.name == TRAILER {
            return Err(CpioError::Name);
        }
        if entry.name.len() >= MAX_NAME {
            return Err(CpioError::LongName { len: entry.name.len() });
        }
        if entry.name <= self.last.as_slice() {
            return Err(CpioError::Order);
        }
        self.last.clear();
        self.last.extend_from_slice(entry.name);
        self.header(entry)?;
        self.data(u64::from(entry.size), data)?;
        self.pad(4)
    }

    /// Ends the archive and gives the output back.
    pub fn finish(mut self) -> Result<W, CpioError> {
        let end =
            Entry { name: TRAILER, mode: 0, uid: 0, gid: 0, inode: 0, links: 1, device: (0, 0), size: 0 };
        self.header(&end)?;
        self.pad(BLOCK)?;
        Ok(self.output)
    }

    fn header(&mut self, entry: &Entry<'_>) -> Result<(), CpioError> {
        let Entry { name, mode, uid, gid, inode, links, device, size } = *entry;
        let fields =
            [inode, mode, uid, gid, links, 0, size, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        let mut bytes = Vec::with_capacity(HEADER_LEN + name.len() + 1);
        bytes.extend_from_slice(MAGIC);
        for field in fields {
            for shift in (0..8).rev() {
                bytes.push(b"0123456789abcdef"[(field >> (4 * shift)) as usize & 15]);
            }
        }
        bytes.extend_from_slice(name);
        bytes.push(0);
        self.put(&bytes)?;
        self.pad(4)
    }

    fn data(&mut self, size: u64, data: &mut impl Read) -> Result<(), CpioError> {
        /// Below this, a copy through memory is cheaper than asking the kernel.
        const SMALL: u64 = 64 << 10;
        let copied = if size <= SMALL {
            let mut bytes = [0; SMALL as usize];
            let bytes = &mut bytes[..size as usize];
            let copied = fill(data, bytes).map_err(CpioError::Data)?;
            self.output.write_all(&bytes[..copied]).map_err(CpioError::Output)?;
            copied as u64
        } else {
            io::copy(&mut data.take(size), &mut self.output).map_err(copy_error)?
        };
        self.position += copied;
        if copied < size {
            return Err(CpioError::ShortData { missing: size - copied });
        }
        Ok(())
    }

    fn pad(&mut self, to: u64) -> Result<(), CpioError> {
        let missing = self.position.next_multiple_of(to) - self.position;
        self.put(&[0; BLOCK as usize][..missing as usize])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CpioError> {
        self.output.write_all(bytes).map_err(CpioError::Output)?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

/// A copy that fails for want of room is the output's fault.
fn copy_error(error: io::Error) -> CpioError {
    use io::ErrorKind::{BrokenPipe, FileTooLarge, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge | BrokenPipe => CpioError::Output(error),
        _ => CpioError::Data(error),
    }
}

fn fill(data: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match data.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Why an archive cannot be listed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum ListError {
    #[error("cannot read the archive at byte {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("byte {offset} does not start an uncompressed newc entry")]
    NotNewc { offset: u64 },
    #[error("the entry at byte {offset} has a name of {len} bytes")]
    NameLength { offset: u64, len: u32 },
    #[error("the entry at byte {offset} has a name that is not NUL-terminated")]
    Name { offset: u64 },
    #[error("the entry at byte {offset} has data that ends after the archive")]
    Data { offset: u64 },
}

/// What [`Reader`] tells of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Byte offset of the entry's header in the archive.
    pub offset: u64,
    /// Path as stored, without the NUL.
    pub name: Vec<u8>,
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names the file has.
    pub links: u32,
    /// Time of the last change, in seconds since 1970.
    pub mtime: u32,
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    /// Bytes of data.
    pub size: u32,
    /// Byte offset of the data in the archive.
    pub data_offset: u64,
}

/// Lists an archive, or several that follow each other, as Linux unpacks
/// them: zeros between archives are skipped.
pub struct Reader<R> {
    input: R,
    position: u64,
    len: u64,
}

impl<R: BufRead + Seek> Reader<R> {
    /// Lists `input` from its start.
    pub fn new(mut input: R) -> io::Result<Reader<R>> {
        let len = input.seek(SeekFrom::End(0))?;
        input.rewind()?;
        Ok(Reader { input, position: 0, len })
    }

    /// The next entry; nothing at the end. End marks are not reported.
    pub fn next_entry(&mut self) -> Result<Option<Listed>, ListError> {
        loop {
            self.skip_zeros()?;
            if self.position == self.len {
                return Ok(None);
            }
            let entry = self.entry()?;
            if entry.name != TRAILER {
                return Ok(Some(entry));
            }
        }
    }

    fn entry(&mut self) -> Result<Listed, ListError> {
        let offset = self.position;
        let mut header = [0; HEADER_LEN];
        if self.len - offset < HEADER_LEN as u64 {
            return Err(ListError::NotNewc { offset });
        }
        self.read(&mut header)?;
        // 070702 is the same with a checksum, which Linux accepts too.
        if !matches!(&header[..6], b"070701" | b"070702") {
            return Err(ListError::NotNewc { offset });
        }
        let field = |index: usize| {
            hex_field(&header[6 + 8 * index..14 + 8 * index]).ok_or(ListError::NotNewc { offset })
        };
        let (mode, uid, gid, links, mtime) = (field(1)?, field(2)?, field(3)?, field(4)?, field(5)?);
        let (size, device, name_len) = (field(6)?, (field(9)?, field(10)?), field(11)?);
        if name_len == 0 || name_len as usize > MAX_NAME {
            return Err(ListError::NameLength { offset, len: name_len });
        }
        let mut name = vec![0; name_len as usize];
        if self.len - self.position < name.len() as u64 {
            return Err(ListError::Name { offset });
        }
        self.read(&mut name)?;
        if name.pop() != Some(0) {
            return Err(ListError::Name { offset });
        }
        let data_offset = self.position.next_multiple_of(4);
        let end = (data_offset + u64::from(size)).next_multiple_of(4);
        if data_offset + u64::from(size) > self.len {
            return Err(ListError::Data { offset });
        }
        self.skip(end.min(self.len) - self.position)?;
        Ok(Listed { offset, name, mode, uid, gid, links, mtime, device, size, data_offset })
    }

    fn skip_zeros(&mut self) -> Result<(), ListError> {
        loop {
            let offset = self.position;
            let buffer = self.input.fill_buf().map_err(|source| ListError::Read { offset, source })?;
            let zeros = buffer.iter().take_while(|&&byte| byte == 0).count();
            let more = zeros == buffer.len() && zeros > 0;
            self.input.consume(zeros);
            self.position += zeros as u64;
            if !more {
                return Ok(());
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), ListError> {
        let offset = self.position;
        self.input.read_exact(buffer).map_err(|source| ListError::Read { offset, source })?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn skip(&mut self, count: u64) -> Result<(), ListError> {
        let offset = self.position;
        // At most a name's padding and 4 GiB of data: it fits.
        self.input.seek_relative(count as i64).map_err(|source| ListError::Read { offset, source })?;
        self.position += count;
        Ok(())
    }
}

fn hex_field(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value: u32, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}
