//! Writes an image front to back, then measures what was written.
//!
//! Ramdisks may be generated straight into the file; ready ones are copied by
//! the kernel (`copy_file_range`). The measurements come from the finished
//! file, so they hold whatever happened to the inputs meanwhile. The signature
//! and the header come last: a file that could not be signed is no image.

use std::{
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
};

use crate::{
    image::{Image, ImageError},
    layout::{
        Architecture, CURRENT_VERSION, HEADER_LEN, Layout, MAX_METADATA, MAX_SECTIONS, SECTION_HEADER_LEN,
        Section, SectionKind,
    },
    measure::{self, Measured},
    metadata::{Metadata, MetadataError},
    pcr::{Measurements, Pcr},
    signature::{ImageSigner, SignError},
    source::Source,
};

/// What Linux keeps of a command line, without the NUL (COMMAND_LINE_SIZE is
/// 2048): a longer one would boot cut short.
pub const MAX_WRITTEN_CMDLINE: usize = 2047;
/// What AWS's builder suggests, and so does this one: 1 GiB and 2 vCPUs.
const DEFAULT_MEMORY: u64 = 1 << 30;
const DEFAULT_CPUS: u64 = 2;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum WriteError {
    #[error("cannot copy the kernel into the image")]
    Kernel(#[source] io::Error),
    #[error("the kernel is empty")]
    EmptyKernel,
    #[error("cannot copy ramdisk {index} into the image")]
    Ramdisk { index: usize, source: io::Error },
    #[error("the image has no ramdisk")]
    NoRamdisk,
    #[error("the image is full: a format of {MAX_SECTIONS} sections has no room for another ramdisk")]
    TooManyRamdisks,
    #[error("the command line has {len} bytes, Linux keeps {MAX_WRITTEN_CMDLINE}")]
    LongCmdline { len: usize },
    #[error("the command line holds a NUL byte: Linux would stop reading there")]
    NulInCmdline,
    #[error("the metadata has {len} bytes, at most {MAX_METADATA} are accepted")]
    LongMetadata { len: usize },
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("an image of format version {version} cannot be signed, version {needed} is the first")]
    OldVersion { version: u16, needed: u16 },
    #[error("cannot sign the image")]
    Sign(#[from] SignError),
    #[error("cannot read the image that is to be signed")]
    Input(#[source] ImageError),
    #[error("cannot write the image")]
    Output(#[source] io::Error),
    #[error("cannot read the written image back")]
    ReadBack(#[source] ImageError),
}

/// An image being written. Created with everything but ramdisks; add at least
/// one, then [`finish`](ImageWriter::finish).
pub struct ImageWriter {
    output: BufWriter<File>,
    layout: Layout,
}

impl ImageWriter {
    /// Starts an image in `output`, an empty file open for reading and
    /// writing. `kernel` is read from its position to its end.
    pub fn create(
        output: File,
        architecture: Architecture,
        kernel: &mut File,
        cmdline: &str,
        metadata: &Metadata,
    ) -> Result<ImageWriter, WriteError> {
        check_cmdline(cmdline)?;
        let metadata = metadata.to_json()?;
        if metadata.len() as u64 > MAX_METADATA {
            return Err(WriteError::LongMetadata { len: metadata.len() });
        }
        let layout = Layout {
            version: CURRENT_VERSION,
            architecture,
            default_memory: DEFAULT_MEMORY,
            default_cpus: DEFAULT_CPUS,
            sections: Vec::new(),
            len: HEADER_LEN as u64,
            crc: 0,
        };
        output.set_len(0).map_err(WriteError::Output)?;
        let mut writer = ImageWriter { output: BufWriter::with_capacity(256 << 10, output), layout };
        writer.output.seek(SeekFrom::Start(HEADER_LEN as u64)).map_err(WriteError::Output)?;
        writer
            .section(SectionKind::Kernel, WriteError::Kernel, |output| io::copy(kernel, output).map(drop))?;
        if writer.layout.kernel().is_empty() {
            return Err(WriteError::EmptyKernel);
        }
        writer.section(SectionKind::Cmdline, WriteError::Output, |output| {
            output.write_all(cmdline.as_bytes())
        })?;
        writer.section(SectionKind::Metadata, WriteError::Output, |output| output.write_all(&metadata))?;
        Ok(writer)
    }

    /// Adds a ramdisk that is ready, from its position to its end.
    pub fn copy_ramdisk(&mut self, ramdisk: &mut File) -> Result<(), WriteError> {
        let index = self.layout.ramdisks().count();
        self.ramdisk(
            |error| WriteError::Ramdisk { index, source: error },
            |output| io::copy(ramdisk, output).map(drop),
        )
    }

    /// Adds the ramdisk that `generate` writes. Its error is given back as it
    /// is; the image is then of no use.
    pub fn generate_ramdisk<E: From<WriteError>>(
        &mut self,
        generate: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.ramdisk(|error| error, generate)
    }

    /// Completes the header. Gives the file back with what it measures to.
    pub fn finish(self) -> Result<(File, Measurements), WriteError> {
        self.finish_with(None, |_| (), &|_| ())
    }

    /// As [`ImageWriter::finish`], signed if there is a `signer`; `announce` is
    /// told once how many bytes will be hashed, `progress` how many were (from
    /// several threads).
    pub fn finish_with(
        self,
        signer: Option<&ImageSigner<'_>>,
        announce: impl FnOnce(u64),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(File, Measurements), WriteError> {
        if self.layout.ramdisks().next().is_none() {
            return Err(WriteError::NoRamdisk);
        }
        let file = self.output.into_inner().map_err(|error| WriteError::Output(error.into_error()))?;
        let mut unsealed = Unsealed { file, layout: self.layout };
        announce(measure::total(&unsealed.layout));
        let measurements = unsealed.seal(signer, progress)?;
        Ok((unsealed.file, measurements))
    }

    fn ramdisk<E, F: From<WriteError>>(
        &mut self,
        blame: impl FnOnce(E) -> F,
        fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
    ) -> Result<(), F> {
        // One slot stays free for a signature.
        if self.layout.sections.len() == MAX_SECTIONS - 1 {
            return Err(WriteError::TooManyRamdisks.into());
        }
        self.section(SectionKind::Ramdisk, blame, fill)
    }

    fn section<E, F: From<WriteError>>(
        &mut self,
        kind: SectionKind,
        blame: impl FnOnce(E) -> F,
        fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
    ) -> Result<(), F> {
        let start = self.layout.len + SECTION_HEADER_LEN as u64;
        self.output.write_all(&[0; SECTION_HEADER_LEN]).map_err(WriteError::Output)?;
        fill(&mut self.output).map_err(blame)?;
        // The placeholder must be in the file before it is overwritten there.
        self.output.flush().map_err(WriteError::Output)?;
        let end = self.output.stream_position().map_err(WriteError::Output)?;
        let section = Section { kind, payload: start..end };
        self.output
            .get_ref()
            .write_all_at(&section.header(), section.header_offset())
            .map_err(WriteError::Output)?;
        self.layout.sections.push(section);
        self.layout.len = end;
        Ok(())
    }
}

/// Writes `image` into `output`, an empty file open for reading and writing,
/// with a signature in place of the one it may have. What is signed is what
/// the copy measures to.
pub fn write_signed(
    image: &Image<'_>,
    mut output: File,
    signer: &ImageSigner<'_>,
) -> Result<Measurements, WriteError> {
    let mut layout = image.layout().clone();
    let needed = SectionKind::Signature.since_version();
    if layout.version < needed {
        return Err(WriteError::OldVersion { version: layout.version, needed });
    }
    if layout.signature().is_some() {
        layout.sections.pop();
    } else if layout.sections.len() == MAX_SECTIONS {
        return Err(WriteError::TooManyRamdisks);
    }
    layout.len = layout.sections.last().map_or(layout.len, |last| last.payload.end);
    output.set_len(0).and_then(|()| output.rewind()).map_err(WriteError::Output)?;
    let mut written = Ok(());
    let fed = image.feed(0..layout.len, |piece| {
        if written.is_ok() {
            written = output.write_all(piece);
        }
    });
    fed.map_err(WriteError::Input)?;
    written.map_err(WriteError::Output)?;
    Unsealed { file: output, layout }.seal(Some(signer), &|_| ())
}

/// All sections but the signature are in place; the header is not.
struct Unsealed {
    file: File,
    layout: Layout,
}

impl Unsealed {
    /// Measures and checksums the file side by side, then writes signature and
    /// header. The checksum of what the header is before is continued, so that
    /// nothing is read twice for it.
    fn seal(
        &mut self,
        signer: Option<&ImageSigner<'_>>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Measurements, WriteError> {
        let reading = self.file.try_clone().map_err(WriteError::Output)?;
        let source = Source::of_file(reading).map_err(WriteError::ReadBack)?;
        let measured = measure::measure(&source, &self.layout, progress);
        let Measured { pcr0, pcr1, pcr2, mut body } =
            measured.map_err(|error| WriteError::ReadBack(error.into()))?;
        let mut measurements = Measurements { pcr0, pcr1, pcr2, pcr8: None };
        if let Some(signer) = signer {
            body.update(&self.sign(signer, &pcr0)?);
            measurements.pcr8 = Some(signer.certificate.pcr8());
        }
        self.layout.crc = measure::checksum(&self.layout, &body);
        self.file.write_all_at(&self.layout.header(), 0).map_err(WriteError::Output)?;
        Ok(measurements)
    }

    /// Gives the bytes that were appended.
    fn sign(&mut self, signer: &ImageSigner<'_>, pcr0: &Pcr) -> Result<Vec<u8>, WriteError> {
        let payload = signer.section(pcr0)?;
        let start = self.layout.len + SECTION_HEADER_LEN as u64;
        let section = Section { kind: SectionKind::Signature, payload: start..start + payload.len() as u64 };
        let bytes = [&section.header()[..], &payload].concat();
        self.file.write_all_at(&bytes, section.header_offset()).map_err(WriteError::Output)?;
        self.layout.len = section.payload.end;
        self.layout.sections.push(section);
        Ok(bytes)
    }
}

fn check_cmdline(cmdline: &str) -> Result<(), WriteError> {
    if cmdline.len() > MAX_WRITTEN_CMDLINE {
        return Err(WriteError::LongCmdline { len: cmdline.len() });
    }
    if cmdline.contains('\0') {
        return Err(WriteError::NulInCmdline);
    }
    Ok(())
}
