//! Compares what will boot with what was promised. The measurements are taken
//! over the loaded memory, after which nobody but the enclave touches it; a dry
//! run loads nothing and measures the file.

use eif::{Image, ImageError, Measurements, Pcr};
use nitro_device::HugeRegion;

use super::{BootError, CheckedImage};
use crate::config::{Config, Expect};

/// Whether anything was promised; if not, nothing is done and nothing costs.
pub(super) fn check(
    config: &Config,
    image: &CheckedImage,
    memory: &[HugeRegion],
    offset: u64,
) -> Result<bool, BootError> {
    // What was signed must also be what was loaded: the file may have changed since.
    if config.expect == Expect::default() && image.signed.is_none() {
        return Ok(false);
    }
    let blamed = |source| BootError::Image { path: image.path.clone(), source };
    let (_, measured) =
        Image::parse_pieces_measured(loaded(memory, offset, image.needs.file)).map_err(blamed)?;
    compare(config, image, &measured).map(|()| true)
}

/// For a dry run, which loads nothing: compares the file.
pub(crate) fn compare_pins(config: &Config, image: &CheckedImage) -> Result<(), BootError> {
    if config.expect == Expect::default() {
        return Ok(());
    }
    let blamed = |source| BootError::Image { path: image.path.clone(), source };
    let opened = image.file.try_clone();
    let file = opened.map_err(|source| blamed(ImageError::Open { path: image.path.clone(), source }))?;
    let measured = Image::read(file).and_then(|image| image.measure()).map_err(blamed)?;
    compare(config, image, &measured)
}

fn compare(config: &Config, image: &CheckedImage, measured: &Measurements) -> Result<(), BootError> {
    match mismatch(&config.expect, image.signed, measured) {
        Some(source) => Err(BootError::WrongImage { path: image.path.clone(), source: Box::new(source) }),
        None => Ok(()),
    }
}

/// A register that is not what was promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{register} measures {}, expected {expected}", shown(.actual))]
pub(crate) struct Mismatch {
    pub(super) register: &'static str,
    pub(super) expected: Pcr,
    /// Nothing for PCR8 of an image that is not signed.
    pub(super) actual: Option<Pcr>,
}

fn shown(pcr: &Option<Pcr>) -> String {
    pcr.map_or_else(|| "nothing (it is not signed)".to_owned(), |pcr| pcr.to_string())
}

fn mismatch(expect: &Expect, signed: Option<Pcr>, measured: &Measurements) -> Option<Mismatch> {
    [
        ("PCR0", expect.pcr0, Some(measured.pcr0)),
        ("PCR1", expect.pcr1, Some(measured.pcr1)),
        ("PCR2", expect.pcr2, Some(measured.pcr2)),
        ("PCR8", expect.pcr8, measured.pcr8),
        ("PCR0", signed, Some(measured.pcr0)),
    ]
    .into_iter()
    .find_map(|(register, expected, actual)| {
        let expected = expected.filter(|expected| actual != Some(*expected))?;
        Some(Mismatch { register, expected, actual })
    })
}

/// The image's bytes where they lie in memory.
fn loaded(memory: &[HugeRegion], offset: u64, len: u64) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for region in memory {
        let end = start + region.len() as u64;
        let (from, to) = (offset.max(start), (offset + len).min(end));
        if from < to {
            pieces.push(&region.bytes()[(from - start) as usize..(to - start) as usize]);
        }
        start = end;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_register_is_compared_and_an_unsigned_image_has_no_pcr8() {
        let pcr = |text: &str| Pcr::of(text.as_bytes());
        let measured = Measurements { pcr0: pcr("0"), pcr1: pcr("1"), pcr2: pcr("2"), pcr8: None };
        let all = Expect { pcr0: Some(pcr("0")), pcr1: Some(pcr("1")), pcr2: Some(pcr("2")), pcr8: None };
        assert_eq!(mismatch(&all, Some(pcr("0")), &measured), None);
        for (expect, register) in [
            (Expect { pcr0: Some(pcr("x")), ..all.clone() }, "PCR0"),
            (Expect { pcr1: Some(pcr("x")), ..all.clone() }, "PCR1"),
            (Expect { pcr2: Some(pcr("x")), ..all.clone() }, "PCR2"),
            (Expect { pcr8: Some(pcr("x")), ..all.clone() }, "PCR8"),
        ] {
            let Mismatch { register: found, expected, actual } = mismatch(&expect, None, &measured).unwrap();
            assert_eq!((found, expected), (register, pcr("x")));
            assert_eq!(actual.is_none(), register == "PCR8");
        }
        assert!(mismatch(&Expect::default(), Some(pcr("other")), &measured).is_some());
    }
}
