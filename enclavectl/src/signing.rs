//! Who signs an image: `--signing-certificate` and `--private-key`, for every
//! command that signs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context;
use eif::signature::{ImageSigner, PrivateKey, SigningCertificate, SigningKey};

use crate::failure::{Blame, Failure, OrBlame};

/// The flags of nitro-cli.
#[derive(Debug, clap::Args)]
pub(crate) struct SigningArgs {
    /// Certificate of the signer in PEM, with those of its issuers if wanted
    #[arg(long, value_name = "FILE", requires = "private_key")]
    signing_certificate: Option<PathBuf>,
    /// Key of the certificate: a PEM file (PKCS#8 or SEC1 on P-256, P-384 or
    /// P-521), or the ARN of a KMS key or alias (arn:aws:kms:REGION:ACCOUNT:key/ID)
    #[arg(long, value_name = "FILE|ARN", requires = "signing_certificate")]
    private_key: Option<String>,
}

/// A certificate and its key, which fit each other as far as that can be told
/// without signing.
pub(crate) struct Signing {
    certificate: SigningCertificate,
    key: Box<dyn SigningKey>,
}

impl SigningArgs {
    /// Opens both; nothing when no signature is wanted.
    pub(crate) fn open(&self) -> Result<Option<Signing>, Failure> {
        let (Some(certificate), Some(key)) = (&self.signing_certificate, &self.private_key) else {
            return Ok(None);
        };
        let describe = || format!("cannot use the signing certificate {}", certificate.display());
        let pem = read(certificate, "the signing certificate")?;
        let certificate = SigningCertificate::from_pem(pem).with_context(describe).or_blame(Blame::Data)?;
        let key = if key.starts_with("arn:") {
            kms_key(key)?
        } else {
            let describe = || format!("cannot use the private key {key}");
            let pem = read(Path::new(key), "the private key")?;
            let key = PrivateKey::from_pem(&pem, &certificate).with_context(describe);
            Box::new(key.or_blame(Blame::Data)?) as Box<dyn SigningKey>
        };
        Ok(Some(Signing { certificate, key }))
    }
}

impl Signing {
    pub(crate) fn signer(&self) -> ImageSigner<'_> {
        ImageSigner { certificate: &self.certificate, key: self.key.as_ref(), now: SystemTime::now() }
    }
}

#[cfg(feature = "kms")]
fn kms_key(arn: &str) -> Result<Box<dyn SigningKey>, Failure> {
    Ok(Box::new(crate::kms::KmsKey::open(arn).or_blame(Blame::Usage)?))
}

#[cfg(not(feature = "kms"))]
fn kms_key(arn: &str) -> Result<Box<dyn SigningKey>, Failure> {
    let missing =
        anyhow::anyhow!("{arn} is a KMS key, and this enclavectl was built without the feature \"kms\"");
    Err(Failure::new(Blame::Usage, missing))
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    fs::read(path).with_context(|| format!("cannot read {what} {}", path.display())).or_blame(Blame::NoInput)
}
