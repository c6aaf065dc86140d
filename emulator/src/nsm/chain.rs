//! A whole chain as templates, in memory: for tests that need one link wrong.
//!
//! Change any [`Link`], then [`Chain::sign`]: each link is signed by the key of the
//! one above it, whatever its template says, so that only the change is at fault.

use std::time::SystemTime;

use super::certificate::Certificate;
use super::identity::ModuleId;
use super::key::{KeyError, SigningKey};
use super::profile::{self, Issuer, lifetime};

/// One certificate before it is signed, and the key that it names.
pub struct Link {
    /// What will be signed.
    pub template: Certificate,
    /// The private key of this link; replacing it does not change the template.
    pub key: SigningKey,
}

/// Root, regional, zonal, instance, leaf: index 0 to 4. Links may be added or removed.
pub struct Chain {
    /// Root first.
    pub links: Vec<Link>,
}

impl Chain {
    /// A well-formed chain for `module`, under a root of its own.
    pub fn new(module: &ModuleId, region: &str, now: SystemTime) -> Result<Self, KeyError> {
        let ahead = |span| profile::authority_validity(now, span);
        let key = SigningKey::generate()?;
        let template = profile::root(&key, ahead(lifetime::ROOT))?;
        let root = Link { template, key };
        let regional =
            root.below(|issuer, key| profile::regional(issuer, key, region, ahead(lifetime::REGIONAL)))?;
        let zonal =
            regional.below(|issuer, key| profile::zonal(issuer, key, region, ahead(lifetime::ZONAL)))?;
        let instance = zonal.below(|issuer, key| {
            profile::instance(issuer, key, region, module.instance(), profile::instance_validity(now))
        })?;
        let leaf = instance.below(|issuer, key| {
            Ok(profile::leaf(issuer, key, region, module, profile::leaf_validity(now)))
        })?;
        Ok(Self { links: vec![root, regional, zonal, instance, leaf] })
    }

    /// The certificates, DER, in the order of the links. The first signs itself.
    pub fn sign(&self) -> Result<Vec<Vec<u8>>, KeyError> {
        let issuers = self.links.first().into_iter().chain(&self.links);
        self.links.iter().zip(issuers).map(|(link, issuer)| link.template.sign(&issuer.key)).collect()
    }
}

impl Link {
    fn below(
        &self,
        shape: impl FnOnce(&Issuer<'_>, &SigningKey) -> Result<Certificate, KeyError>,
    ) -> Result<Self, KeyError> {
        let key = SigningKey::generate()?;
        let issuer = Issuer { name: self.template.subject.clone(), key: &self.key };
        Ok(Self { template: shape(&issuer, &key)?, key })
    }
}
