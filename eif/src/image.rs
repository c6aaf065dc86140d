//! Checks and reads an image that nobody vouches for.
//!
//! An [`Image`] exists only when its header, its section table, its sections
//! and its checksum agree. Reading never allocates by a size that the file
//! states, unless that size is bounded by the format's own limits.

use std::{
    fs::File,
    io::{self, Read, Seek},
    ops::Range,
    path::{Path, PathBuf},
};

use crate::{
    boot_files::{BZIMAGE_HEAD, bzimage_version},
    layout::{CRC_OFFSET, HEADER_LEN, Layout, SECTION_HEADER_LEN, Section},
    measure::{self, Measured},
    metadata::{Metadata, MetadataError},
    parse::{self, Fault, FaultAt, Header},
    pcr::Measurements,
    signature::{Signature, SignatureError},
    source::{Source, Window},
};

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file is missing, or may not be read.
    #[error("cannot open image {}", .path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A pipe or a directory: its size is not known beforehand.
    #[error("the image is not a regular file")]
    NotAFile,
    /// The disk failed, or the file shrank while it was read.
    #[error("cannot read the image at byte {offset}")]
    Read {
        /// Byte offset in the file.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes break a rule of the format.
    #[error("bad image at byte {offset}")]
    Malformed {
        /// Byte offset in the file.
        offset: u64,
        /// Which rule.
        #[source]
        fault: Fault,
    },
    /// The metadata section is not what its format says.
    #[error("bad metadata at byte {offset}")]
    Metadata {
        /// Byte offset of the section's payload in the file.
        offset: u64,
        /// What is wrong.
        source: MetadataError,
    },
    /// The signature section is not what its format says.
    #[error("bad signature section at byte {offset}")]
    Signature {
        /// Byte offset of the section's payload in the file.
        offset: u64,
        /// What is wrong.
        source: SignatureError,
    },
}

impl ImageError {
    /// Whether the image itself is at fault, not the machine that reads it.
    pub fn blames_image(&self) -> bool {
        match self {
            ImageError::Open { .. } | ImageError::Read { .. } => false,
            ImageError::NotAFile
            | ImageError::Malformed { .. }
            | ImageError::Metadata { .. }
            | ImageError::Signature { .. } => true,
        }
    }
}

impl From<FaultAt> for ImageError {
    fn from((offset, fault): FaultAt) -> ImageError {
        ImageError::Malformed { offset, fault }
    }
}

impl From<(u64, io::Error)> for ImageError {
    fn from((offset, source): (u64, io::Error)) -> ImageError {
        ImageError::Read { offset, source }
    }
}

/// A well-formed image, checksum included.
pub struct Image<'a> {
    source: Source<'a>,
    layout: Layout,
}

impl Image<'static> {
    /// Opens and checks the file at `path`. Reads all of it once, for the
    /// checksum, through a small buffer.
    pub fn open(path: &Path) -> Result<Image<'static>, ImageError> {
        Image::read(open(path)?)
    }

    /// As [`Image::open`], for a file that is already open. Only positioned
    /// reads are used: the file's own position stays.
    pub fn read(file: File) -> Result<Image<'static>, ImageError> {
        Image::check(Source::of_file(file)?, true)
    }

    /// As [`Image::open`], and measures it at the same time.
    pub fn open_measured(path: &Path) -> Result<(Image<'static>, Measurements), ImageError> {
        Image::check_and_measure(Source::of_file(open(path)?)?)
    }
}

impl<'a> Image<'a> {
    /// Checks an image that is in memory whole; `bytes` must end where it ends.
    pub fn parse(bytes: &'a [u8]) -> Result<Image<'a>, ImageError> {
        Image::check(Source::Bytes(bytes), true)
    }

    /// As [`Image::parse`], and measures it at the same time: for an image
    /// that was copied to where it boots from, so that what is measured is
    /// what boots, whatever happened to the file since.
    pub fn parse_measured(bytes: &'a [u8]) -> Result<(Image<'a>, Measurements), ImageError> {
        Image::check_and_measure(Source::Bytes(bytes))
    }

    /// As [`Image::parse_measured`], for an image that lies in pieces of
    /// memory, one after the other.
    pub fn parse_pieces_measured(pieces: Vec<&'a [u8]>) -> Result<(Image<'a>, Measurements), ImageError> {
        Image::check_and_measure(Source::Pieces(pieces))
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// PCR0, 1 and 2, and 8 when it is signed. Two threads, a small buffer each.
    pub fn measure(&self) -> Result<Measurements, ImageError> {
        self.measure_with(&|_| ())
    }

    /// As [`Image::measure`]; `progress` is told of bytes as they are hashed
    /// (from both threads), [`Image::measured_bytes`] in all.
    pub fn measure_with(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<Measurements, ImageError> {
        let measured = measure::measure(&self.source, &self.layout, progress)?;
        self.registers(&measured)
    }

    /// Bytes that [`Image::measure_with`] reports in all.
    pub fn measured_bytes(&self) -> u64 {
        measure::total(&self.layout)
    }

    /// The kernel's command line as it is in the file.
    pub fn cmdline(&self) -> Result<Vec<u8>, ImageError> {
        self.payload(self.layout.cmdline())
    }

    /// The kernel's version as the kernel itself states it, such as
    /// `6.1.0-28-amd64`. Nothing where the format has none (aarch64).
    pub fn kernel_version(&self) -> Option<String> {
        let mut head = Vec::new();
        self.reader(self.layout.kernel()).take(BZIMAGE_HEAD).read_to_end(&mut head).ok()?;
        bzimage_version(&head)
    }

    /// The metadata, if there is any.
    pub fn metadata(&self) -> Result<Option<Metadata>, ImageError> {
        let Some(section) = self.layout.metadata() else { return Ok(None) };
        let offset = section.payload.start;
        let metadata = Metadata::from_json(&self.payload(section)?)
            .map_err(|source| ImageError::Metadata { offset, source })?;
        Ok(Some(metadata))
    }

    /// The signature section decoded, if the image is signed. It is *not*
    /// verified, which [`Signature::check`] does: that it decodes says nothing.
    pub fn signature(&self) -> Result<Option<Signature>, ImageError> {
        let Some(section) = self.layout.signature() else { return Ok(None) };
        let offset = section.payload.start;
        let signature = Signature::from_cbor(&self.payload(section)?)
            .map_err(|source| ImageError::Signature { offset, source })?;
        Ok(Some(signature))
    }

    /// A section's payload as a stream.
    pub fn reader(&self, section: &Section) -> impl Read + Seek + '_ {
        Window::new(&self.source, section.payload.clone())
    }

    /// Hands every byte of the file's `range` to `take`, in order.
    pub(crate) fn feed(&self, range: Range<u64>, take: impl FnMut(&[u8])) -> Result<(), ImageError> {
        Ok(self.source.feed(range, take)?)
    }

    fn check(source: Source<'a>, checksum: bool) -> Result<Image<'a>, ImageError> {
        let mut header = [0; HEADER_LEN];
        let len = source.len();
        parse::require(len, 0, HEADER_LEN as u64)?;
        source.read_at(0, &mut header).map_err(|error| (0, error))?;
        let layout = Header::parse(&header, len)?.layout(|offset| {
            let mut section = [0; SECTION_HEADER_LEN];
            source.read_at(offset, &mut section).map_err(|error| (offset, error))?;
            Ok::<_, ImageError>(section)
        })?;
        let image = Image { source, layout };
        if checksum {
            image.check_crc(&measure::checksum_body(&image.source, &image.layout)?)?;
        }
        Ok(image)
    }

    fn check_and_measure(source: Source<'a>) -> Result<(Image<'a>, Measurements), ImageError> {
        let image = Image::check(source, false)?;
        let measured = measure::measure(&image.source, &image.layout, &|_| ())?;
        image.check_crc(&measured.body)?;
        let measurements = image.registers(&measured)?;
        Ok((image, measurements))
    }

    fn registers(&self, measured: &Measured) -> Result<Measurements, ImageError> {
        let &Measured { pcr0, pcr1, pcr2, .. } = measured;
        let pcr8 = self.signature()?.map(|signature| signature.pcr8());
        Ok(Measurements { pcr0, pcr1, pcr2, pcr8 })
    }

    fn check_crc(&self, body: &crc32fast::Hasher) -> Result<(), ImageError> {
        let expected = self.layout.crc;
        let actual = measure::checksum(&self.layout, body);
        if actual != expected {
            return Err((CRC_OFFSET as u64, Fault::Checksum { expected, actual }).into());
        }
        Ok(())
    }

    /// Only for sections that the format bounds: never a kernel or a ramdisk.
    fn payload(&self, section: &Section) -> Result<Vec<u8>, ImageError> {
        debug_assert!(section.kind.limit().is_some_and(|limit| section.len() <= limit));
        let mut bytes = vec![0; section.len() as usize];
        self.source
            .read_at(section.payload.start, &mut bytes)
            .map_err(|error| (section.payload.start, error))?;
        Ok(bytes)
    }
}

fn open(path: &Path) -> Result<File, ImageError> {
    File::open(path).map_err(|source| ImageError::Open { path: path.to_owned(), source })
}
