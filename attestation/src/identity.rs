//! Whether a document agrees with itself about which enclave it is.
//!
//! Four places name the instance: `module_id`, the common names along the
//! chain, and PCR4, which is the SHA-384 of 48 zero bytes and the instance id.
//! AWS states the last in "Cryptographic attestation" of the Nitro Enclaves
//! user guide; the common names were read in genuine chains.

use aws_lc_rs::digest;

use crate::chain::{Chain, Position};
use crate::document::{Claims, PCR_LEN};

/// How a document contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// `module_id` is not that of an enclave.
    #[error("module_id does not have the form i-<instance>-enc<enclave>")]
    ModuleId,
    /// The leaf was issued to another module.
    #[error("the leaf's common name is not <module_id>.<region>.<partition>")]
    CommonName,
    /// The chain changes its region on the way.
    #[error("{0} is of another region than the leaf")]
    Region(Position),
    /// PCR4 is not the digest of the instance id.
    #[error("PCR4 is not the measurement of the instance id in module_id")]
    Pcr4,
}

impl IdentityError {
    /// Stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::ModuleId => "identity.module-id",
            Self::CommonName => "identity.common-name",
            Self::Region(_) => "identity.region",
            Self::Pcr4 => "identity.pcr4",
        }
    }
}

/// Which enclave a document speaks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity<'a> {
    pub(crate) instance_id: &'a str,
    pub(crate) region: &'a str,
}

const PCR4: u8 = 4;

impl<'a> Identity<'a> {
    pub(crate) fn check(claims: &Claims<'a>, chain: &Chain<'a>) -> Result<Self, IdentityError> {
        let instance_id = instance_of(claims.module_id).ok_or(IdentityError::ModuleId)?;
        let region = region_of(chain.leaf.common_name, claims.module_id).ok_or(IdentityError::CommonName)?;
        for (position, certificate) in chain.certificates() {
            let names_region = certificate.common_name.split('.').any(|label| label == region);
            if !names_region && position != Position::Issuer(0) {
                return Err(IdentityError::Region(position));
            }
        }
        let pcr4 = claims.pcrs.at(PCR4).ok_or(IdentityError::Pcr4)?;
        let mut measured = digest::Context::new(&digest::SHA384);
        measured.update(&[0; PCR_LEN]);
        measured.update(instance_id.as_bytes());
        if measured.finish().as_ref() != pcr4 {
            return Err(IdentityError::Pcr4);
        }
        Ok(Self { instance_id, region })
    }
}

/// `i-0123456789abcdef0-enc0123456789abcdef` -> `i-0123456789abcdef0`.
fn instance_of(module_id: &str) -> Option<&str> {
    let (instance, enclave) = module_id.split_once("-enc")?;
    let digits = instance.strip_prefix("i-")?;
    let known = (8..=17).contains(&digits.len()) && enclave.len() == 16 && is_hex(digits) && is_hex(enclave);
    known.then_some(instance)
}

/// `<module_id>.<region>.<partition>` -> `<region>`.
fn region_of<'a>(common_name: &'a str, module_id: &str) -> Option<&'a str> {
    let place = common_name.strip_prefix(module_id)?.strip_prefix('.')?;
    let (region, partition) = place.split_once('.')?;
    (is_label(region) && is_label(partition)).then_some(region)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_label(text: &str) -> bool {
    let allowed = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'-');
    (1..=32).contains(&text.len()) && text.bytes().all(allowed)
}
