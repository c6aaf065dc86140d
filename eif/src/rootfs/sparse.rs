//! Files with holes in tar archives: GNU's old format and the three that PAX
//! headers carry (GNU tar manual, "Storing Sparse Files").

use std::io::{self, Read};

use super::{
    pax::decimal,
    tar::{BLOCK, number},
};

/// Of one file. Bounds memory at 1 MiB a file.
const MAX_SEGMENTS: usize = 1 << 16;

/// Bytes that are stored, and where they belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Why a sparse file cannot be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum SparseError {
    #[error("its map cannot be read")]
    Read(#[from] io::Error),
    #[error("its map is not made of numbers")]
    Number,
    #[error("its map has more than {MAX_SEGMENTS} segments")]
    TooMany,
    #[error("its segments overlap, descend, or end after the file")]
    Order,
    #[error("its segments have {segments} bytes, {stored} are stored")]
    Stored { segments: u64, stored: u64 },
    #[error("its format is unknown")]
    Format,
}

/// Where a file's stored bytes belong.
pub(crate) struct Map {
    /// Of the file, holes filled.
    pub(crate) size: u64,
    pub(crate) segments: Vec<Segment>,
}

impl Map {
    fn add(&mut self, offset: u64, len: u64) -> Result<(), SparseError> {
        if self.segments.len() == MAX_SEGMENTS {
            return Err(SparseError::TooMany);
        }
        self.segments.push(Segment { offset, len });
        Ok(())
    }

    /// That the segments ascend within the file and are what is stored.
    pub(crate) fn check(&self, stored: u64) -> Result<(), SparseError> {
        let (mut end, mut segments) = (0, 0);
        for segment in &self.segments {
            if segment.offset < end {
                return Err(SparseError::Order);
            }
            end = segment.offset.checked_add(segment.len).ok_or(SparseError::Order)?;
            // Segments lie one after the other below u64::MAX: so does their sum.
            segments += segment.len;
        }
        if end > self.size {
            return Err(SparseError::Order);
        }
        if segments != stored {
            return Err(SparseError::Stored { segments, stored });
        }
        Ok(())
    }
}

/// What `GNU.sparse.*` records say.
#[derive(Default)]
pub(crate) struct Described {
    major: Option<u64>,
    minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// `realsize`, or `size` in the older formats.
    size: Option<u64>,
    map: Option<Vec<u64>>,
    /// `offset` and `numbytes`, alternating.
    pairs: Vec<u64>,
}

impl Described {
    /// Nothing when `value` is not possible there.
    pub(crate) fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"realsize" | b"size" => {
                let earlier = self.size.replace(decimal(value)?);
                return earlier.is_none().then_some(());
            }
            b"map" => {
                let numbers = if value.is_empty() {
                    Vec::new()
                } else {
                    value.split(|&byte| byte == b',').map(decimal).collect::<Option<_>>()?
                };
                self.map = Some(numbers);
            }
            b"offset" | b"numbytes" => {
                let is_offset = self.pairs.len().is_multiple_of(2);
                if is_offset != (key == b"offset") {
                    return None;
                }
                self.pairs.push(decimal(value)?);
            }
            // numblocks says again how many pairs there are.
            _ => {}
        }
        Some(())
    }
}

/// Formats 0.0 and 0.1 have the map in the header, 1.0 before the data, which
/// is then read from `content`.
pub(crate) fn pax(described: Described, content: &mut impl Read) -> Result<Map, SparseError> {
    let mut map = Map { size: described.size.ok_or(SparseError::Format)?, segments: Vec::new() };
    match (described.major, described.minor) {
        (Some(1), Some(0)) => {
            let mut lines = Lines { content, block: [0; BLOCK as usize], at: BLOCK as usize };
            let count = lines.number()?;
            if count > MAX_SEGMENTS as u64 {
                return Err(SparseError::TooMany);
            }
            for _ in 0..count {
                let (offset, len) = (lines.number()?, lines.number()?);
                map.add(offset, len)?;
            }
        }
        (None | Some(0), None | Some(0 | 1)) => {
            let numbers = described.map.unwrap_or(described.pairs);
            if !numbers.len().is_multiple_of(2) {
                return Err(SparseError::Number);
            }
            for pair in numbers.chunks_exact(2) {
                map.add(pair[0], pair[1])?;
            }
        }
        _ => return Err(SparseError::Format),
    }
    Ok(map)
}

/// Numbers on lines of their own, in whole blocks.
struct Lines<'a, R> {
    content: &'a mut R,
    block: [u8; BLOCK as usize],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, SparseError> {
        let mut value = None;
        loop {
            if self.at == self.block.len() {
                self.content.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return value.ok_or(SparseError::Number),
                b'0'..=b'9' => {
                    let shifted = value.unwrap_or(0u64).checked_mul(10).ok_or(SparseError::Number)?;
                    value = Some(shifted.checked_add(u64::from(byte - b'0')).ok_or(SparseError::Number)?);
                }
                _ => return Err(SparseError::Number),
            }
        }
    }
}

/// Four segments in the header and 21 in each block that follows it.
pub(crate) fn old_gnu(
    header: &[u8; BLOCK as usize],
    mut next: impl FnMut() -> io::Result<[u8; BLOCK as usize]>,
) -> Result<Map, SparseError> {
    let size = number(&header[483..495]).ok_or(SparseError::Number)?;
    let mut map = Map { size, segments: Vec::new() };
    pairs(&header[386..482], &mut map)?;
    let mut more = header[482] != 0;
    while more {
        let block = next()?;
        pairs(&block[..504], &mut map)?;
        more = block[504] != 0;
    }
    Ok(map)
}

fn pairs(field: &[u8], map: &mut Map) -> Result<(), SparseError> {
    for pair in field.chunks_exact(24).take_while(|pair| pair[0] != 0) {
        let offset = number(&pair[..12]).ok_or(SparseError::Number)?;
        map.add(offset, number(&pair[12..]).ok_or(SparseError::Number)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(size: u64, segments: &[(u64, u64)]) -> Map {
        let segments = segments.iter().map(|&(offset, len)| Segment { offset, len }).collect();
        Map { size, segments }
    }

    #[test]
    fn segments_ascend_within_the_file_and_are_all_that_is_stored() {
        assert!(map(100, &[(0, 10), (10, 5), (90, 10), (100, 0)]).check(25).is_ok());
        for (size, segments) in [
            (100, &[(10, 5), (0, 10)][..]),
            (100, &[(0, 10), (9, 6)]),
            (14, &[(0, 10), (10, 5)]),
            (100, &[(10, u64::MAX)]),
            (100, &[(0, 14)]),
        ] {
            assert!(map(size, segments).check(15).is_err(), "{size} {segments:?}");
        }
    }
}
