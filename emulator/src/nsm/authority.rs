//! The development authority: issues the chain under which a module signs.
//!
//! Only the root is kept in the directory. The three authorities below it live in
//! memory and are renewed so early that whatever they sign fits into their own
//! validity; a chain that was handed out therefore stays consistent to its end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;

use super::certificate::Validity;
use super::identity::{InstanceId, ModuleId};
use super::key::{KeyError, SigningKey};
use super::profile::{self, lifetime};
use super::store::{self, StoreError};

/// The region in certificate names unless another is asked for. No AWS region has it.
pub const DEFAULT_REGION: &str = "dev-local-1";

/// Issues chains under one root. Shared by all modules of a node.
pub struct Authority {
    root: Arc<Signer>,
    root_path: PathBuf,
    region: String,
    issued: Mutex<Issued>,
}

/// A leaf with its private key and the chain above it.
pub struct Leaf {
    /// DER
    pub certificate: Vec<u8>,
    /// Root first, DER: `cabundle` of a document.
    pub cabundle: Vec<Vec<u8>>,
    /// The key that `certificate` names.
    pub key: SigningKey,
    /// The leaf's own window; all issuers are valid throughout it.
    pub validity: Validity,
}

#[derive(Default)]
struct Issued {
    regional: Option<Arc<Signer>>,
    zonal: Option<Arc<Signer>>,
    instances: HashMap<InstanceId, Arc<Signer>>,
}

struct Signer {
    key: SigningKey,
    name: Vec<u8>,
    certificate: Vec<u8>,
    validity: Validity,
    above: Option<Arc<Signer>>,
}

impl Authority {
    /// Opens the authority in `directory`, making directory, key and root at the first
    /// use. `region` goes into the names of certificates; see [`DEFAULT_REGION`].
    ///
    /// # Errors
    /// The files cannot be made or read, others can read the key, key and certificate
    /// are not a pair, or the root is not valid at `now`.
    pub fn open(directory: &Path, region: &str, now: SystemTime) -> Result<Self, StoreError> {
        let root = store::open(directory, now)?;
        let signer = Signer {
            key: root.key,
            name: profile::root_name(),
            certificate: root.certificate,
            validity: root.validity,
            above: None,
        };
        Ok(Self {
            root: Arc::new(signer),
            root_path: directory.join(store::ROOT_FILE),
            region: region.to_owned(),
            issued: Mutex::default(),
        })
    }

    /// The root's certificate, DER.
    pub fn root_certificate(&self) -> &[u8] {
        &self.root.certificate
    }

    /// Where the root's certificate stands as PEM.
    pub fn root_path(&self) -> &Path {
        &self.root_path
    }

    /// SHA-256 over the root's certificate: what a verifier pins.
    pub fn root_fingerprint(&self) -> [u8; 32] {
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest::digest(&digest::SHA256, &self.root.certificate).as_ref());
        fingerprint
    }

    /// The region in certificate names.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// A new key and leaf for `module`, valid from now on for [`lifetime::LEAF`].
    pub fn issue(&self, module: &ModuleId, now: SystemTime) -> Result<Leaf, KeyError> {
        self.issue_for(module, now, profile::leaf_validity(now))
    }

    /// The same with a window of the caller's choice, as a stale leaf needs.
    pub fn issue_for(
        &self,
        module: &ModuleId,
        now: SystemTime,
        validity: Validity,
    ) -> Result<Leaf, KeyError> {
        let instance = self.instance(module.instance(), now)?;
        let key = SigningKey::generate()?;
        let certificate =
            profile::leaf(&instance.issuer(), &key, &self.region, module, validity).sign(&instance.key)?;
        Ok(Leaf { certificate, cabundle: instance.bundle(), key, validity })
    }

    fn instance(&self, id: &InstanceId, now: SystemTime) -> Result<Arc<Signer>, KeyError> {
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signer) = issued.instances.get(id).filter(|signer| signer.lasts(now, lifetime::LEAF)) {
            return Ok(Arc::clone(signer));
        }
        let zonal = self.zonal(&mut issued, now)?;
        let signer = zonal.certify(profile::instance_validity(now), |issuer, key, validity| {
            profile::instance(issuer, key, &self.region, id, validity)
        })?;
        issued.instances.retain(|_, signer| signer.lasts(now, Duration::ZERO));
        issued.instances.insert(id.clone(), Arc::clone(&signer));
        Ok(signer)
    }

    fn zonal(&self, issued: &mut Issued, now: SystemTime) -> Result<Arc<Signer>, KeyError> {
        if let Some(signer) = issued.zonal.as_ref().filter(|signer| signer.lasts(now, lifetime::INSTANCE)) {
            return Ok(Arc::clone(signer));
        }
        let regional = self.regional(issued, now)?;
        let validity = profile::authority_validity(now, lifetime::ZONAL);
        let signer = regional
            .certify(validity, |issuer, key, validity| profile::zonal(issuer, key, &self.region, validity))?;
        issued.zonal = Some(Arc::clone(&signer));
        Ok(signer)
    }

    fn regional(&self, issued: &mut Issued, now: SystemTime) -> Result<Arc<Signer>, KeyError> {
        if let Some(signer) = issued.regional.as_ref().filter(|signer| signer.lasts(now, lifetime::ZONAL)) {
            return Ok(Arc::clone(signer));
        }
        let validity = profile::authority_validity(now, lifetime::REGIONAL);
        let signer = self.root.certify(validity, |issuer, key, validity| {
            profile::regional(issuer, key, &self.region, validity)
        })?;
        issued.regional = Some(Arc::clone(&signer));
        Ok(signer)
    }
}

impl Signer {
    fn issuer(&self) -> profile::Issuer<'_> {
        profile::Issuer { name: self.name.clone(), key: &self.key }
    }

    fn lasts(&self, now: SystemTime, span: Duration) -> bool {
        self.validity.covers(now, span)
    }

    /// A new authority below this one.
    fn certify(
        self: &Arc<Self>,
        validity: Validity,
        shape: impl FnOnce(
            &profile::Issuer<'_>,
            &SigningKey,
            Validity,
        ) -> Result<super::certificate::Certificate, KeyError>,
    ) -> Result<Arc<Self>, KeyError> {
        let key = SigningKey::generate()?;
        let template = shape(&self.issuer(), &key, validity)?;
        let certificate = template.sign(&self.key)?;
        let above = Some(Arc::clone(self));
        Ok(Arc::new(Self { key, name: template.subject, certificate, validity, above }))
    }

    /// All certificates down to this one, root first.
    fn bundle(&self) -> Vec<Vec<u8>> {
        let mut bundle = self.above.as_ref().map(|above| above.bundle()).unwrap_or_default();
        bundle.push(self.certificate.clone());
        bundle
    }
}
