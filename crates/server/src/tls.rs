//! TLS from a certificate and a key in PEM files.

use crate::config::{ConfigError, TlsFiles};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Reads both files.
///
/// # Errors
/// A file that cannot be read or holds something else, or a key of another certificate.
pub fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ConfigError> {
    let certs = CertificateDer::pem_file_iter(&files.cert).and_then(Iterator::collect);
    let certs: Vec<_> = certs.map_err(|e| unreadable(&files.cert, "a certificate", &e))?;
    if certs.is_empty() {
        return Err(unreadable(&files.cert, "a certificate", &pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key);
    let key = key.map_err(|e| unreadable(&files.key, "a private key", &e))?;
    let refused = |error: tokio_rustls::rustls::Error| ConfigError::Tls {
        path: files.cert.display().to_string(),
        message: format!("not usable with {}: {error}", files.key.display()),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn unreadable(path: &Path, what: &str, error: &pem::Error) -> ConfigError {
    let message = match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => format!("expected {what} in PEM, found none"),
        error => format!("expected {what} in PEM: {error}"),
    };
    ConfigError::Tls { path: path.display().to_string(), message }
}
