//! One unnamed file that takes what no archive holds as plain bytes: content
//! of compressed layers, of sparse files, and targets of symbolic links.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
};

use super::sparse::Segment;

pub(crate) struct Spool {
    file: BufWriter<File>,
    end: u64,
}

/// Which side of a copy failed.
pub(crate) enum CopyError {
    Input(io::Error),
    Spool(io::Error),
}

impl Spool {
    pub(crate) fn new(file: File) -> Spool {
        Spool { file: BufWriter::with_capacity(256 << 10, file), end: 0 }
    }

    /// Takes `len` bytes. Gives the offset where they lie.
    pub(crate) fn append(&mut self, input: &mut impl Read, len: u64) -> Result<u64, CopyError> {
        let start = self.end;
        self.copy(input, len)?;
        self.end += len;
        Ok(start)
    }

    /// Takes a file's segments; the holes between them take no room.
    pub(crate) fn append_sparse(
        &mut self,
        input: &mut impl Read,
        size: u64,
        segments: &[Segment],
    ) -> Result<u64, CopyError> {
        let start = self.end;
        for segment in segments {
            self.file.seek(SeekFrom::Start(start + segment.offset)).map_err(CopyError::Spool)?;
            self.copy(input, segment.len)?;
        }
        self.end = start + size;
        self.file.seek(SeekFrom::Start(self.end)).map_err(CopyError::Spool)?;
        Ok(start)
    }

    /// The file, with everything in it.
    pub(crate) fn finish(self) -> io::Result<File> {
        let end = self.end;
        let file = self.file.into_inner().map_err(|error| error.into_error())?;
        // The last thing may have been a hole.
        file.set_len(end)?;
        Ok(file)
    }

    fn copy(&mut self, input: &mut impl Read, mut left: u64) -> Result<(), CopyError> {
        let mut buffer = [0; 32 << 10];
        while left > 0 {
            let wanted = left.min(buffer.len() as u64) as usize;
            match input.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(CopyError::Input(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.file.write_all(&buffer[..count]).map_err(CopyError::Spool)?;
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CopyError::Input(error)),
            }
        }
        Ok(())
    }
}
