//! The five certificates of a chain, in the shape that hardware gives them.
//!
//! ```text
//! root            CA                 30 years   dev.nitro-enclaves
//!  └ regional     CA, pathLen 2      20 d       <hex>.<region>.dev.nitro-enclaves
//!     └ zonal     CA, pathLen 1      135 h      <hex>.zonal.<region>.dev.nitro-enclaves
//!        └ instance  CA, pathLen 0   24 h       <instance>.<region>.dev.nitro-enclaves
//!           └ leaf   end entity      3 h        <module>.<region>.aws
//! ```
//!
//! Sizes, extensions and their order, serial lengths and lifetimes are those of
//! genuine chains of 2026. Names are not: nothing but the leaf's CN, which has to
//! match the module, could be taken for AWS's. The CRL addresses lead nowhere
//! (`.invalid`, RFC 2606); they are there because verifiers meet them in real chains.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;

use super::certificate::{Certificate, Extension, KeyUsage, Validity, name};
use super::der::{self, oid};
use super::identity::{InstanceId, ModuleId};
use super::key::{KeyError, SigningKey};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How far ahead each certificate is valid when it is made.
pub mod lifetime {
    use super::{DAY, Duration, HOUR};

    /// The development root: long, so that a directory can be kept.
    pub const ROOT: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    /// Regional authority.
    pub const REGIONAL: Duration = Duration::from_secs(20 * DAY.as_secs());
    /// Zonal authority; 131 to 144 hours were seen.
    pub const ZONAL: Duration = Duration::from_secs(135 * HOUR.as_secs());
    /// Instance authority.
    pub const INSTANCE: Duration = DAY;
    /// The leaf, one per enclave.
    pub const LEAF: Duration = Duration::from_secs(3 * HOUR.as_secs());
}

/// Authorities are dated back by an hour, the leaf by three seconds, as seen.
const AUTHORITY_BACKDATE: Duration = HOUR;
const LEAF_BACKDATE: Duration = Duration::from_secs(3);

const ORGANIZATION: &str = "enclave-shim DEVELOPMENT";
const UNIT: &str = "NOT AWS";
/// ZZ is assigned to no country (ISO 3166-1, user-assigned codes).
const COUNTRY: &str = "ZZ";

/// An authority that can issue: its name and the key that signs.
pub struct Issuer<'a> {
    /// Name, DER.
    pub name: Vec<u8>,
    /// The key of that name.
    pub key: &'a SigningKey,
}

/// Validity of an authority's certificate made at `now`.
pub fn authority_validity(now: SystemTime, ahead: Duration) -> Validity {
    Validity::around(now, AUTHORITY_BACKDATE, ahead)
}

/// Validity of an instance's certificate made at `now`: exactly a day.
pub fn instance_validity(now: SystemTime) -> Validity {
    Validity::around(now, Duration::ZERO, lifetime::INSTANCE)
}

/// Validity of a leaf made at `now`.
pub fn leaf_validity(now: SystemTime) -> Validity {
    Validity::around(now, LEAF_BACKDATE, lifetime::LEAF)
}

/// Name of the development root: `C=ZZ, O=enclave-shim DEVELOPMENT, OU=NOT AWS,
/// CN=dev.nitro-enclaves`.
pub fn root_name() -> Vec<u8> {
    authority_name("dev.nitro-enclaves")
}

/// The self-signed root of `key`.
pub fn root(key: &SigningKey, validity: Validity) -> Result<Certificate, KeyError> {
    let mut root = Certificate::new(root_name(), root_name(), key.public_key_info(), validity);
    root.serial = serial()?;
    root.extensions = vec![
        Extension::authority(None),
        Extension::subject_key(&key.identifier()),
        Extension::key_usage(authority_usage(), true),
    ];
    Ok(root)
}

/// A regional authority of `region`.
pub fn regional(
    issuer: &Issuer<'_>,
    key: &SigningKey,
    region: &str,
    validity: Validity,
) -> Result<Certificate, KeyError> {
    let subject = authority_name(&format!("{}.{region}.dev.nitro-enclaves", tag()?));
    let mut regional = Certificate::new(issuer.name.clone(), subject, key.public_key_info(), validity);
    regional.serial = serial()?;
    regional.extensions = authority_extensions(issuer, key, 2, "crl", "/crl/")?;
    Ok(regional)
}

/// A zonal authority of `region`. Its name runs from the general to the special
/// backwards, as genuine ones do: a verifier may not assume one order.
pub fn zonal(
    issuer: &Issuer<'_>,
    key: &SigningKey,
    region: &str,
    validity: Validity,
) -> Result<Certificate, KeyError> {
    let subject = name(&[
        (oid::COMMON_NAME, &format!("{}.zonal.{region}.dev.nitro-enclaves", tag()?)),
        (oid::ORGANIZATIONAL_UNIT, UNIT),
        (oid::ORGANIZATION, ORGANIZATION),
        (oid::COUNTRY, COUNTRY),
        (oid::STATE, "DE"),
        (oid::LOCALITY, "Desk"),
    ]);
    let mut zonal = Certificate::new(issuer.name.clone(), subject, key.public_key_info(), validity);
    zonal.serial = serial()?;
    zonal.extensions = authority_extensions(issuer, key, 1, &format!("crl-{region}"), "/crl/")?;
    Ok(zonal)
}

/// The authority of one instance: it may sign certificates and nothing else.
pub fn instance(
    issuer: &Issuer<'_>,
    key: &SigningKey,
    region: &str,
    instance: &InstanceId,
    validity: Validity,
) -> Result<Certificate, KeyError> {
    let subject = machine_name(&format!("{instance}.{region}.dev.nitro-enclaves"));
    let mut certificate = Certificate::new(issuer.name.clone(), subject, key.public_key_info(), validity);
    certificate.serial = serial()?;
    certificate.extensions = vec![
        Extension::authority(Some(0)),
        Extension::key_usage(KeyUsage::CERTIFICATE_SIGN, true),
        Extension::subject_key(&key.identifier()),
        Extension::authority_key(&issuer.key.identifier()),
    ];
    Ok(certificate)
}

/// The leaf of one module. Its serial is the module's slot, four zeros, and the
/// second of its birth, as in genuine leaves.
pub fn leaf(
    issuer: &Issuer<'_>,
    key: &SigningKey,
    region: &str,
    module: &ModuleId,
    validity: Validity,
) -> Certificate {
    let subject = machine_name(&format!("{module}.{region}.aws"));
    let born = validity.not_before.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or(0);
    let mut leaf = Certificate::new(issuer.name.clone(), subject, key.public_key_info(), validity);
    let serial = [&module.slot().to_be_bytes()[..], &[0; 4], &(born as u32).to_be_bytes()].concat();
    leaf.serial = der::unsigned(&serial);
    leaf.extensions = vec![
        Extension::end_entity(),
        Extension::key_usage(KeyUsage::DIGITAL_SIGNATURE.and(KeyUsage::NON_REPUDIATION), false),
    ];
    leaf
}

fn authority_usage() -> KeyUsage {
    KeyUsage::DIGITAL_SIGNATURE.and(KeyUsage::CERTIFICATE_SIGN).and(KeyUsage::CRL_SIGN)
}

fn authority_extensions(
    issuer: &Issuer<'_>,
    key: &SigningKey,
    path_len: u8,
    host: &str,
    path: &str,
) -> Result<Vec<Extension>, KeyError> {
    let uri = format!("http://{host}.dev.nitro-enclaves.invalid{path}{}.crl", tag()?);
    Ok(vec![
        Extension::authority(Some(path_len)),
        Extension::authority_key(&issuer.key.identifier()),
        Extension::subject_key(&key.identifier()),
        Extension::key_usage(authority_usage(), true),
        Extension::crl_at(&uri),
    ])
}

fn authority_name(common: &str) -> Vec<u8> {
    name(&[
        (oid::COUNTRY, COUNTRY),
        (oid::ORGANIZATION, ORGANIZATION),
        (oid::ORGANIZATIONAL_UNIT, UNIT),
        (oid::COMMON_NAME, common),
    ])
}

fn machine_name(common: &str) -> Vec<u8> {
    name(&[
        (oid::COUNTRY, COUNTRY),
        (oid::STATE, "Development"),
        (oid::LOCALITY, "Desk"),
        (oid::ORGANIZATION, ORGANIZATION),
        (oid::ORGANIZATIONAL_UNIT, UNIT),
        (oid::COMMON_NAME, common),
    ])
}

/// Sixteen random octets, positive.
fn serial() -> Result<Vec<u8>, KeyError> {
    let mut random = [0; 16];
    rand::fill(&mut random).map_err(|_| KeyError::Generate)?;
    Ok(der::unsigned(&random))
}

/// The sixteen hexadecimal digits that tell authorities of one kind apart.
fn tag() -> Result<String, KeyError> {
    let mut random = [0; 8];
    rand::fill(&mut random).map_err(|_| KeyError::Generate)?;
    Ok(hex::encode(random))
}
