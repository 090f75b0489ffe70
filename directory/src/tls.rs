//! The certificate that the directory shows, and its key: read from the files that `[tls]` names, checked against each other, and changed
//! while it serves ([`crate::reload`]).

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

use crate::config;
use crate::error::{Error, Result};

/// Longest file with a chain or a key: a long chain has 16 KiB.
const PEM_BYTES: u64 = 256 * 1024;

const CERTIFICATE: &str = "cannot be read as PEM certificates (tls.certificate)";
const KEY: &str = "cannot be read as a PEM private key (tls.key)";

/// The contents of both files.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pem {
    /// What errors name.
    files: [PathBuf; 2],
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pem")
    }
}

impl Pem {
    /// What the settings name; none where they name no certificate.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn read(settings: &config::Tls) -> Result<Option<Self>> {
        let certificate = settings.certificate.get_ref();
        if certificate.as_os_str().is_empty() {
            return Ok(None);
        }
        let files = [certificate.clone(), settings.key.clone()];
        let certificate = content(certificate, CERTIFICATE)?;
        Ok(Some(Self { files, certificate, key: content(&settings.key, KEY)? }))
    }

    /// What speaks TLS with them.
    ///
    /// # Errors
    /// They do not hold what they should.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor> {
        let [certificate, key] = &self.files;
        let wrong = |path: &Path, why| Error::LocalTls { path: path.to_owned(), why };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| wrong(certificate, CERTIFICATE))?;
        if chain.is_empty() {
            return Err(wrong(certificate, "holds no certificate (tls.certificate)"));
        }
        let private = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| wrong(key, KEY))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| wrong(certificate, "this build speaks no TLS version"))?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|_| wrong(key, "is not the key of the certificate (tls.key)"))?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(tls)))
    }
}

fn content(path: &Path, why: &'static str) -> Result<Vec<u8>> {
    let wrong = |_| Error::LocalTls { path: path.to_owned(), why };
    let mut content = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(PEM_BYTES).read_to_end(&mut content)).map_err(wrong)?;
    Ok(content)
}

/// Loads certificate and key; none where no certificate is configured.
///
/// # Errors
/// A file that cannot be read or does not hold what it should.
pub fn open(settings: &config::Tls) -> Result<Option<Tls>> {
    let pem = Pem::read(settings)?;
    pem.map(|pem| Ok(Tls(Arc::new(RwLock::new(pem.acceptor()?))))).transpose()
}

/// What speaks TLS with each new connection.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<TlsAcceptor>>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// With the certificate of now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Later connections are shown another certificate.
    pub(crate) fn replace(&self, acceptor: TlsAcceptor) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
    }
}
