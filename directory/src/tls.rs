//! The certificate that the directory shows, and its key: read from the files that `[tls]` names, checked against each other, and changed
//! while it serves ([`crate::reload`]). The key is wiped wherever it was on its way; what signs with it has the only copy that stays.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::InconsistentKeys;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use crate::config;
use crate::error::{Error, Result};

/// Longest file with a chain or a key: a long chain has 16 KiB.
pub(crate) const PEM_BYTES: usize = 256 * 1024;

const CERTIFICATE: &str = "cannot be read as PEM certificates (tls.certificate)";
const KEY: &str = "cannot be read as a PEM private key (tls.key)";

/// The contents of both files.
#[derive(Serialize, Deserialize)]
pub(crate) struct Pem {
    /// What errors name.
    files: [PathBuf; 2],
    certificate: Vec<u8>,
    /// Not part of a text that is made of the rest: what writes and reads that leaves copies behind.
    #[serde(skip)]
    pub(crate) key: Zeroizing<Vec<u8>>,
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
        let certificate = certificates(&content(certificate, "tls.certificate")?);
        Ok(Some(Self { files, certificate, key: content(&settings.key, "tls.key")? }))
    }

    /// What speaks TLS with them.
    ///
    /// # Errors
    /// They do not hold what they should.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor> {
        let [certificate, key] = &self.files;
        let wrong = |path: &Path, why: &str| Error::LocalTls { path: path.to_owned(), why: why.to_owned() };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| wrong(certificate, CERTIFICATE))?;
        if chain.is_empty() {
            return Err(wrong(certificate, "holds no certificate (tls.certificate)"));
        }
        let private = private_key(&self.key).ok_or_else(|| wrong(key, KEY))?;
        let certified = CertifiedKey::new(chain, any_supported_type(&private).map_err(|_| wrong(key, KEY))?);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(wrong(key, "is not the key of the certificate (tls.key)")),
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| wrong(certificate, "this build speaks no TLS version"))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(tls)))
    }
}

fn content(path: &Path, setting: &str) -> Result<Zeroizing<Vec<u8>>> {
    let wrong = |why| Error::LocalTls { path: path.to_owned(), why };
    // More room than will be read: what grows leaves a copy behind.
    let mut content = Zeroizing::new(Vec::with_capacity(2 * PEM_BYTES));
    let most = PEM_BYTES as u64 + 1;
    let read = std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut content));
    read.map_err(|error| wrong(format!("cannot be read ({setting}): {error}")))?;
    if content.len() > PEM_BYTES {
        return Err(wrong(format!("is longer than {} KiB, so not what is looked for ({setting})", PEM_BYTES / 1024)));
    }
    Ok(content)
}

/// The certificates in a PEM text, and nothing else of it: the key may stand in the same file.
fn certificates(pem: &[u8]) -> Vec<u8> {
    let (mut kept, mut inside) = (Vec::with_capacity(pem.len()), false);
    for line in pem.split(|byte| matches!(byte, b'\n' | b'\r')) {
        match line.trim_ascii() {
            b"-----BEGIN CERTIFICATE-----" => inside = true,
            b"-----END CERTIFICATE-----" if inside => {
                kept.extend_from_slice(b"-----END CERTIFICATE-----\n");
                inside = false;
            }
            // One that does not end says so when it is parsed.
            other if other.starts_with(b"-----") => inside = false,
            _ => {}
        }
        if inside {
            kept.extend_from_slice(line);
            kept.push(b'\n');
        }
    }
    kept
}

/// The first private key in a PEM text. Of what the parser for certificates makes on its way, not all would be wiped.
fn private_key(pem: &[u8]) -> Option<Zeroizing<PrivateKeyDer<'static>>> {
    let mut lines = pem.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii);
    let make = lines.find_map(|line| {
        let make: fn(Vec<u8>) -> PrivateKeyDer<'static> =
            match line.strip_prefix(b"-----BEGIN ")?.strip_suffix(b"-----")? {
                b"PRIVATE KEY" => |der| PrivatePkcs8KeyDer::from(der).into(),
                b"RSA PRIVATE KEY" => |der| PrivatePkcs1KeyDer::from(der).into(),
                b"EC PRIVATE KEY" => |der| PrivateSec1KeyDer::from(der).into(),
                _ => return None,
            };
        Some(make)
    })?;
    let mut text = Zeroizing::new(Vec::with_capacity(pem.len()));
    loop {
        let line = lines.next()?;
        if line.starts_with(b"-----END ") {
            break;
        }
        text.extend_from_slice(line);
    }
    let mut der = Zeroizing::new(vec![0; text.len()]);
    let length = STANDARD.decode_slice(&*text, &mut der).ok()?;
    der.truncate(length);
    Some(Zeroizing::new(make(std::mem::take(&mut *der))))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_private_key_is_found_whatever_stands_before_it() {
        let body = STANDARD.encode([7; 60]);
        let (first, second) = body.split_at(64);
        let section = |label: &str, end: &str| {
            format!("-----BEGIN {label}-----{end}{first}{end}{second}{end}-----END {label}-----{end}")
        };
        let found = |text: &[u8]| private_key(text).map(|key| (key.secret_der().to_vec(), key.clone_key()));
        let attributes = b"Bag Attributes\n    friendlyName: \xe9\n";
        for (label, end) in [("PRIVATE KEY", "\n"), ("RSA PRIVATE KEY", "\r\n"), ("EC PRIVATE KEY", " \n")] {
            let before = section("EC PARAMETERS", end) + &section("CERTIFICATE", end);
            let text = [&attributes[..], before.as_bytes(), section(label, end).as_bytes()].concat();
            let (der, key) = found(&text).unwrap();
            assert_eq!(der, [7; 60], "{label}");
            let of_its_kind = match label {
                "PRIVATE KEY" => matches!(key, PrivateKeyDer::Pkcs8(_)),
                "RSA PRIVATE KEY" => matches!(key, PrivateKeyDer::Pkcs1(_)),
                _ => matches!(key, PrivateKeyDer::Sec1(_)),
            };
            assert!(of_its_kind, "{label}");
        }
        let whole = section("PRIVATE KEY", "\n");
        let sealed = whole.replace("-----\nBw", "-----\nProc-Type: 4,ENCRYPTED\nBw");
        for wrong in ["", &section("ENCRYPTED PRIVATE KEY", "\n"), &whole[..whole.len() - 30], &sealed] {
            assert!(found(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn of_a_file_with_both_the_key_does_not_go_with_the_certificates() {
        let section =
            |label: &str, body: &str| format!("-----BEGIN {label}-----\r\n{body}\r\n-----END {label}-----\r\n");
        let (one, two) = (section("CERTIFICATE", "b25l"), section("CERTIFICATE", "dHdv"));
        let key = section("PRIVATE KEY", "c2VjcmV0");
        let kept = |text: String| {
            let kept = certificates(text.as_bytes());
            assert!(!kept.windows(8).any(|part| part == b"c2VjcmV0"), "{text}");
            CertificateDer::pem_slice_iter(&kept).map(|der| der.ok().map(|der| der.to_vec())).collect::<Vec<_>>()
        };
        let both = [Some(b"one".to_vec()), Some(b"two".to_vec())];
        assert_eq!(kept(format!("{key}{one}{two}")), both);
        assert_eq!(kept(format!("subject=x\n{one}{key}{two}{key}")), both);
        assert_eq!(kept(format!("-----BEGIN CERTIFICATE-----\nb25l\n{key}")), [None]);
        assert_eq!(kept(key.clone()), []);
    }

    #[test]
    fn a_file_that_is_too_long_or_not_there_is_named_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tls.key");
        let why = || content(&path, "tls.key").unwrap_err().to_string();
        assert!(why().contains("tls.key: cannot be read (tls.key): No such file"), "{}", why());
        std::fs::write(&path, vec![b'x'; PEM_BYTES]).unwrap();
        assert_eq!(content(&path, "tls.key").unwrap().len(), PEM_BYTES);
        std::fs::write(&path, vec![b'x'; PEM_BYTES + 1]).unwrap();
        assert!(why().contains("is longer than 256 KiB"), "{}", why());
    }
}
