//! Reads newc archives, as the kernel's initramfs code does.
//!
//! Written apart from the `eif` crate's writer, so that each tests the other.
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst.

use std::io::{self, Read};

const HEADER: usize = 110;
/// `PATH_MAX`; also bounds a symbolic link's target.
pub(super) const MAX_NAME: u64 = 4096;

/// One entry; its data follows in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Path as it is in the archive, without the terminating NUL.
    pub(super) name: Vec<u8>,
    /// `st_mode`.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: u32,
    pub(super) links: u32,
    /// What tells hard links of one file: inode and device numbers.
    pub(super) identity: (u32, u32, u32),
    /// Bytes of data.
    pub(super) size: u64,
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub(super) enum CpioError {
    #[error("cannot read the archive")]
    Read(#[from] io::Error),
    #[error("no newc header at byte {0}")]
    Magic(u64),
    #[error("a field that is no hexadecimal number at byte {0}")]
    Number(u64),
    #[error("a name of {0} bytes")]
    Name(u64),
    #[error("the data at byte {0} was not read to its end")]
    Data(u64),
}

/// Reads entries one after the other.
pub(super) struct Reader<R> {
    input: R,
    position: u64,
    /// Data and padding before the next header.
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(input: R) -> Reader<R> {
        Reader { input, position: 0, left: 0, padding: 0 }
    }

    /// The next entry. Archives may follow each other, with zeros between
    /// them; the end of input ends the last one.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, CpioError> {
        loop {
            if self.left > 0 {
                return Err(CpioError::Data(self.position));
            }
            self.skip(self.padding)?;
            self.padding = 0;
            if !self.seek_header()? {
                return Ok(None);
            }
            let entry = self.header()?;
            if entry.name != b"TRAILER!!!" {
                self.left = entry.size;
                self.padding = pad(entry.size);
                return Ok(Some(entry));
            }
        }
    }

    /// The data of the entry that was returned last.
    pub(super) fn data(&mut self) -> Data<'_, R> {
        Data { reader: self }
    }

    /// Skips zeros up to the next header's first byte; false at the end.
    fn seek_header(&mut self) -> Result<bool, CpioError> {
        let mut first = [0];
        loop {
            match self.input.read(&mut first)? {
                0 => return Ok(false),
                _ if first[0] == b'0' => return Ok(true),
                _ if first[0] != 0 => return Err(CpioError::Magic(self.position)),
                _ => self.position += 1,
            }
        }
    }

    fn header(&mut self) -> Result<Entry, CpioError> {
        let start = self.position;
        let mut raw = [b'0'; HEADER];
        self.input.read_exact(&mut raw[1..])?;
        if &raw[..6] != b"070701" {
            return Err(CpioError::Magic(start));
        }
        let mut fields = [0; 13];
        for (field, digits) in fields.iter_mut().zip(raw[6..].chunks_exact(8)) {
            let text = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'));
            let number = text.and_then(|text| u32::from_str_radix(text, 16).ok());
            *field = number.ok_or(CpioError::Number(start))?;
        }
        let [ino, mode, uid, gid, links, mtime, size, major, minor, _, _, name_size, _] = fields;
        let name_size = u64::from(name_size);
        if name_size == 0 || name_size > MAX_NAME {
            return Err(CpioError::Name(name_size));
        }
        let mut name = vec![0; name_size as usize];
        self.input.read_exact(&mut name)?;
        self.position = start + HEADER as u64 + name_size;
        self.skip(pad(HEADER as u64 + name_size))?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        let identity = (ino, major, minor);
        Ok(Entry { name, mode, uid, gid, mtime, links, identity, size: size.into() })
    }

    fn skip(&mut self, count: u64) -> Result<(), CpioError> {
        // Padding is at most 3 bytes; the last one may be missing at the end.
        let mut bytes = [0; 4];
        let read = self.input.read(&mut bytes[..count as usize])?;
        self.position += read as u64;
        if (read as u64) < count && read > 0 {
            return self.skip(count - read as u64);
        }
        Ok(())
    }
}

/// The data of one entry.
pub(super) struct Data<'a, R> {
    reader: &'a mut Reader<R>,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = self.reader.left.min(into.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        let count = self.reader.input.read(&mut into[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.reader.left -= count as u64;
        self.reader.position += count as u64;
        Ok(count)
    }
}

fn pad(length: u64) -> u64 {
    length.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, mode: u32, data: &[u8]) -> Vec<u8> {
        let fields = [7, mode, 1, 2, 1, 3, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        let mut bytes = b"070701".to_vec();
        fields.iter().for_each(|field| bytes.extend(format!("{field:08X}").bytes()));
        bytes.extend(name.bytes().chain([0]));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn names_and_data(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>, CpioError> {
        let mut reader = Reader::new(archive);
        let mut seen = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut data = Vec::new();
            reader.data().read_to_end(&mut data)?;
            seen.push((String::from_utf8(entry.name).unwrap(), data));
        }
        Ok(seen)
    }

    #[test]
    fn archives_that_follow_each_other_are_one() {
        let trailer = entry("TRAILER!!!", 0, b"");
        let first = [entry("a", 0o100644, b"12345"), trailer.clone(), vec![0; 512]].concat();
        let both = [first, entry("b", 0o100644, b""), trailer].concat();
        let expected = [("a".to_owned(), b"12345".to_vec()), ("b".to_owned(), vec![])];
        assert_eq!(names_and_data(&both).unwrap(), expected);
    }

    #[test]
    fn damage_is_an_error_at_every_byte_and_never_a_panic() {
        let archive = [entry("file", 0o100644, b"0123456789"), entry("TRAILER!!!", 0, b"")].concat();
        for length in 1..110 {
            assert!(names_and_data(&archive[..length]).is_err(), "cut at {length}");
        }
        for at in 0..archive.len() {
            let mut damaged = archive.clone();
            damaged[at] ^= 0x55;
            let _ = names_and_data(&damaged);
        }
    }

    #[test]
    fn a_huge_name_is_refused_before_it_is_allocated() {
        let mut archive = entry("x", 0o100644, b"");
        archive[94..102].copy_from_slice(b"FFFFFFFF");
        assert!(matches!(names_and_data(&archive), Err(CpioError::Name(0xFFFF_FFFF))));
    }
}
