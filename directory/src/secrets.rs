//! What settings name and the cage will hide: files with a password or with certificates, and hosts' addresses. Read and looked up at the
//! start. Errors say which setting named it.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};

/// A password file holds a line.
const PASSWORD_BYTES: u64 = 1024;
/// Addresses of one host that are tried, one after the other.
const ADDRESSES: usize = 4;

/// The password in a file that nobody else may read.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn read_password(path: &Path, setting: &'static str) -> Result<Vec<u8>> {
    let wrong = |why| Error::LocalNamed { path: path.to_owned(), why, setting };
    let about = std::fs::metadata(path).map_err(Error::file("read", path))?;
    if about.mode() & 0o077 != 0 {
        return Err(wrong("others may read the password; chmod it to 0600"));
    }
    if about.len() > PASSWORD_BYTES {
        return Err(wrong("is too long for a password"));
    }
    let mut password = std::fs::read(path).map_err(Error::file("read", path))?;
    if password.ends_with(b"\n") {
        password.pop();
    }
    if password.is_empty() { Err(wrong("holds no password")) } else { Ok(password) }
}

/// A host's addresses, in the resolver's order.
///
/// # Errors
/// It has none.
pub(crate) fn resolve(name: &str, port: u16, setting: &'static str) -> Result<Vec<IpAddr>> {
    let unknown = |source| Error::LocalHost { host: name.to_owned(), setting, source };
    let found = (name, port).to_socket_addrs().map_err(unknown)?;
    let addresses: Vec<_> = found.map(|address| address.ip()).take(ADDRESSES).collect();
    if addresses.is_empty() { Err(unknown(std::io::ErrorKind::NotFound.into())) } else { Ok(addresses) }
}

/// TLS that trusts the certificates of a file and no others.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn trusting(path: &Path, setting: &'static str) -> Result<rustls::ClientConfig> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let wrong = |why| Error::LocalNamed { path: path.to_owned(), why, setting };
    let unreadable = "cannot be read as PEM certificates";
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|_| wrong(unreadable))? {
        roots.add(certificate.map_err(|_| wrong(unreadable))?).map_err(|_| wrong(unreadable))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|_| wrong("would need a TLS version that this build does not speak"))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
