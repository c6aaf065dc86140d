//! TLS of the listener, by a certificate that the operator supplies. It says who
//! the pod is and keeps nonces from the network's eyes; who the *enclave* is,
//! only a document says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};

use crate::config;
use crate::exit::{Blame, Exit};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read the {what} of http.tls, {}", .path.display())]
    Unreadable { what: &'static str, path: PathBuf, source: pem::Error },
    #[error("{} of http.tls holds no certificate", .path.display())]
    NoCertificate { path: PathBuf },
    #[error("certificate and key of http.tls cannot be used")]
    Unusable(#[source] rustls::Error),
}

impl Blame for TlsError {
    fn exit(&self) -> Exit {
        Exit::Usage
    }

    fn fix(&self) -> String {
        "give http.tls.certificate (PEM, leaf first) and http.tls.key (PEM, unencrypted) of one pair".into()
    }
}

/// Reads the files of `tls`. Has to be done while files can be read.
pub(crate) fn server(tls: &config::HttpTls) -> Result<Arc<ServerConfig>, TlsError> {
    let unreadable = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Unreadable { what, path, source }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect)
        .map_err(unreadable("certificate", &tls.certificate))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: tls.certificate.clone() });
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(unreadable("key", &tls.key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // The generator is seeded here: later no file can be opened.
    let _ = provider.secure_random.fill(&mut [0; 32]);
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    Ok(Arc::new(config.map_err(TlsError::Unusable)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of a pair that is none, by what they hold.
    fn refused(certificate: &str, key: &str) -> TlsError {
        let directory = tempfile::TempDir::new().unwrap();
        let [certificate, key] = [("certificate.pem", certificate), ("key.pem", key)].map(|(name, text)| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        });
        server(&config::HttpTls { certificate, key }).unwrap_err()
    }

    fn pem(kind: &str) -> String {
        format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n")
    }

    #[test]
    fn what_is_no_pair_of_certificate_and_key_is_a_mistake_of_the_configuration() {
        let (no_key, none) = (refused(&pem("CERTIFICATE"), ""), refused("", &pem("PRIVATE KEY")));
        let unusable = refused(&pem("CERTIFICATE"), &pem("PRIVATE KEY"));
        assert!(matches!(no_key, TlsError::Unreadable { what: "key", .. }), "{no_key:?}");
        assert!(matches!(none, TlsError::NoCertificate { .. }), "{none:?}");
        assert!(matches!(unusable, TlsError::Unusable(_)), "{unusable:?}");
        for error in [no_key, none, unusable] {
            assert!(error.to_string().contains("http.tls"), "{error}");
            assert_eq!(error.exit().code(), 64, "{error}");
            assert!(error.fix().contains("http.tls.certificate"), "{error}");
        }
    }
}
