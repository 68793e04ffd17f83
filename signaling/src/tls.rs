//! A server's certificate and its key, from their files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum_server::tls_rustls::RustlsConfig;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::server::ServeError;

/// The files for TLS, both in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate, then those between it and a known authority.
    pub certificate: PathBuf,
    /// The key of the server's certificate, without a passphrase.
    pub key: PathBuf,
}

impl Files {
    /// Reads both files and makes the settings of TLS from them.
    pub(crate) fn load(&self) -> Result<RustlsConfig, ServeError> {
        let Files { certificate, key } = self;
        let chain = CertificateDer::pem_slice_iter(&read("certificate", certificate)?)
            .collect::<Result<Vec<_>, pem::Error>>()
            .ok()
            .filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| {
            ServeError(format!("{} holds no certificate; it must be a PEM file", certificate.display()))
        })?;
        let secret = PrivateKeyDer::from_pem_slice(&read("key", key)?).map_err(|_| {
            ServeError(format!("{} holds no key; it must be a PEM file without a passphrase", key.display()))
        })?;
        // Another library of the process may have chosen a default provider; ours is ring.
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has what TLS 1.2 and 1.3 need")
            .with_no_client_auth()
            .with_single_cert(chain, secret);
        let mut config = config.map_err(|error| self.unusable(&error))?;
        // A WebSocket begins as a request of HTTP/1.1 (RFC 6455, section 4.1).
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(RustlsConfig::from_config(Arc::new(config)))
    }

    fn unusable(&self, error: &rustls::Error) -> ServeError {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        ServeError(match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("the key {key} does not fit the certificate {certificate}; give the key that belongs to it")
            }
            rustls::Error::InvalidCertificate(_) => {
                format!("the certificate {certificate} is damaged ({error}); get a new one")
            }
            _ => format!("the key {key} cannot be used ({error}); give one of RSA, ECDSA or Ed25519"),
        })
    }
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>, ServeError> {
    let failed = |error| ServeError(format!("cannot read the {what} {}: {error}", path.display()));
    std::fs::read(path).map_err(failed)
}
