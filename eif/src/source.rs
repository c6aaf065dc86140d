//! Where an image's bytes come from: a file that is never loaded whole, or
//! memory. Both are handed out piece by piece.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::FileExt,
};

use crate::image::ImageError;

/// Large enough that system calls do not show beside hashing, small enough to
/// stay in a core's second-level cache.
const PIECE: usize = 256 << 10;

pub(crate) enum Source<'a> {
    /// A regular file and its size when it was opened.
    File(File, u64),
    Bytes(&'a [u8]),
    /// Memory in pieces that follow each other.
    Pieces(Vec<&'a [u8]>),
}

impl Source<'_> {
    pub(crate) fn of_file(file: File) -> Result<Source<'static>, ImageError> {
        let metadata = file.metadata().map_err(|error| (0, error))?;
        if !metadata.is_file() {
            return Err(ImageError::NotAFile);
        }
        Ok(Source::File(file, metadata.len()))
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Source::File(_, len) => *len,
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::Pieces(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
        }
    }

    /// Fills `buffer` from `offset`.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Source::File(file, _) => file.read_exact_at(buffer, offset),
            Source::Bytes(bytes) => {
                buffer.copy_from_slice(slice(bytes, &(offset..offset.saturating_add(buffer.len() as u64)))?);
                Ok(())
            }
            Source::Pieces(pieces) => {
                let mut filled = 0;
                for part in parts(pieces, offset..offset.saturating_add(buffer.len() as u64))? {
                    buffer[filled..filled + part.len()].copy_from_slice(part);
                    filled += part.len();
                }
                Ok(())
            }
        }
    }

    /// Hands every byte of `range` to `take`, in order. The error carries the
    /// offset of the piece that could not be read.
    pub(crate) fn feed(
        &self,
        range: Range<u64>,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), (u64, io::Error)> {
        match self {
            Source::Bytes(bytes) => {
                let bytes = slice(bytes, &range).map_err(|error| (range.start, error))?;
                bytes.chunks(PIECE).for_each(take);
            }
            Source::Pieces(pieces) => {
                let found = parts(pieces, range.clone()).map_err(|error| (range.start, error))?;
                found.iter().flat_map(|part| part.chunks(PIECE)).for_each(take);
            }
            Source::File(file, _) => {
                let mut buffer = vec![0; PIECE.min((range.end - range.start) as usize)];
                let mut offset = range.start;
                while offset < range.end {
                    let wanted = (range.end - offset).min(PIECE as u64) as usize;
                    let piece = &mut buffer[..wanted];
                    file.read_exact_at(piece, offset).map_err(|error| (offset, error))?;
                    take(piece);
                    offset += wanted as u64;
                }
            }
        }
        Ok(())
    }
}

fn slice<'a>(bytes: &'a [u8], range: &Range<u64>) -> io::Result<&'a [u8]> {
    usize::try_from(range.start)
        .ok()
        .zip(usize::try_from(range.end).ok())
        .and_then(|(start, end)| bytes.get(start..end))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Where `range` of the pieces' whole lies, in order.
fn parts<'a>(pieces: &[&'a [u8]], range: Range<u64>) -> io::Result<Vec<&'a [u8]>> {
    let mut found = Vec::new();
    let mut start = 0;
    for piece in pieces {
        let end = start + piece.len() as u64;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            found.push(slice(piece, &(from - start..to - start))?);
        }
        start = end;
    }
    if range.end > start { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(found) }
}

/// Part of a [`Source`] as a stream.
pub(crate) struct Window<'a> {
    source: &'a Source<'a>,
    range: Range<u64>,
    position: u64,
}

impl<'a> Window<'a> {
    pub(crate) fn new(source: &'a Source<'a>, range: Range<u64>) -> Window<'a> {
        Window { source, range, position: 0 }
    }

    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.len().saturating_sub(self.position);
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.source.read_at(self.range.start + self.position.min(self.len()), &mut buffer[..count])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.len().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_read_as_their_whole_at_every_range() {
        let whole = b"abcdefghij";
        let pieces = Source::Pieces(vec![&whole[..3], &whole[3..3], &whole[3..9], &whole[9..]]);
        assert_eq!(pieces.len(), 10);
        for start in 0..=10u64 {
            for end in start..=10 {
                let expected = &whole[start as usize..end as usize];
                let mut buffer = vec![0; expected.len()];
                pieces.read_at(start, &mut buffer).unwrap();
                assert_eq!(buffer, expected);
                let mut fed = Vec::new();
                pieces.feed(start..end, |part| fed.extend_from_slice(part)).unwrap();
                assert_eq!(fed, expected);
            }
            assert!(pieces.read_at(start, &mut [0; 11]).is_err());
        }
    }
}
