//! Where the NATS server is that replicas speak over: `replicas.url` and the files beside it, read before the cage closes. A name is
//! resolved here, once: the cage has no resolver.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::secrets::{read_password, resolve, trusting};

/// NATS's port.
const PORT: u16 = 4222;

/// What `replicas.url` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Who we are there; empty: it asks nobody.
    pub user: String,
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Where the server is and how it is reached.
#[derive(Clone)]
pub struct Target {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) login: Option<(String, String)>,
    port: u16,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({:?})", self.addresses)
    }
}

/// Takes `replicas.url` apart.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> std::result::Result<Place, &'static str> {
    let wrong = "must be a URL of scheme, host and port, as in \"nats://127.0.0.1:4222\" or \"nats://openred@nats.example.org\"";
    let url = url::Url::parse(text).map_err(|_| wrong)?;
    if url.password().is_some() {
        return Err("holds a password, which everybody would see who sees the settings: set replicas.password_file");
    }
    let whole =
        url.scheme() == "nats" && matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    let host = url.host_str().filter(|host| whole && !host.is_empty() && !host.contains([',', '%'])).ok_or(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let plain = |text: &str| text.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter));
    if !plain(url.username()) {
        return Err("names a user of other characters than letters, digits, hyphens, dots and underscores");
    }
    Ok(Place { user: url.username().to_owned(), host, port: url.port().unwrap_or(PORT) })
}

impl Target {
    /// From the settings; none where this directory is no replica.
    ///
    /// # Errors
    /// A file that cannot be used, a name that is not known.
    pub fn open(config: &Config) -> Result<Option<Self>> {
        let replicas = &config.replicas;
        if replicas.url.get_ref().is_empty() {
            return Ok(None);
        }
        let Place { user, host, port } = parse(replicas.url.get_ref()).map_err(Error::Misuse)?;
        let (login, connector) = files(config, user)?;
        let addresses = resolve(&host, port, "replicas.url")?.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        let name = ServerName::try_from(host)
            .map_err(|_| Error::Misuse("replicas.url names no host that a certificate can name"));
        let tls = connector.map(|connector| name.map(|name| (connector, name))).transpose()?;
        Ok(Some(Self { addresses, tls, login, port }))
    }

    /// The port that the cage has to let through.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

/// Whether the files beside `replicas.url` can be used; nobody is called.
///
/// # Errors
/// What is wrong with one.
pub fn check_files(config: &Config) -> Result<()> {
    files(config, String::new()).map(drop)
}

type Files = (Option<(String, String)>, Option<TlsConnector>);

fn files(config: &Config, user: String) -> Result<Files> {
    let replicas = &config.replicas;
    let given = |path: &Path| !path.as_os_str().is_empty();
    let mut login = None;
    if given(&replicas.password_file) {
        let password = read_password(&replicas.password_file, "replicas.password_file")?;
        let password = String::from_utf8(password).map_err(|_| Error::LocalNamed {
            path: replicas.password_file.clone(),
            why: "holds no text",
            setting: "replicas.password_file",
        })?;
        login = Some((user, password));
    }
    let tls = if given(&replicas.certificates) {
        Some(TlsConnector::from(Arc::new(trusting(&replicas.certificates, "replicas.certificates")?)))
    } else {
        None
    };
    Ok((login, tls))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_url_names_all_but_the_password() {
        let place = |user: &str, host: &str, port| Place { user: user.into(), host: host.into(), port };
        for (url, expected) in [
            ("nats://127.0.0.1:4222", place("", "127.0.0.1", 4222)),
            ("nats://openred@nats.example.org", place("openred", "nats.example.org", 4222)),
            ("nats://[::1]:5000/", place("", "::1", 5000)),
        ] {
            assert_eq!(parse(url).unwrap(), expected, "{url}");
        }
        for url in [
            "",
            "127.0.0.1:4222",
            "http://a",
            "nats://a,b",
            "nats://u:secret@a",
            "nats://a/path",
            "nats://a?x=1",
            "nats:///",
            "nats://a%20b@c",
        ] {
            let why = parse(url).unwrap_err();
            assert!(!why.contains("secret"), "{url}");
        }
    }
}
