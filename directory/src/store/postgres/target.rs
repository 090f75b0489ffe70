//! Where the shared database is: `store.url` and the files beside it, read before the cage closes. A name is resolved here, once: the
//! cage has no resolver. The password is in a file of its own and in no text that this program prints.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslMode};

use crate::error::{Error, Result};
use crate::secrets::{read_password, resolve, trusting};

/// PostgreSQL's port.
const PORT: u16 = 5432;
/// The settings that name the files.
const PASSWORD: &str = "store.password_file";
const CERTIFICATES: &str = "store.certificates";

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this folder, at `.s.PGSQL.` and the port.
    Folder(PathBuf),
    /// At this name or address.
    Network(String, u16),
}

/// Where the database is and how it is reached.
#[derive(Clone)]
pub struct Target {
    pub(super) config: Config,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    place: Place,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({:?})", self.place)
    }
}

/// What `store.url` says, for `check`: no file is read and nobody is called.
///
/// # Errors
/// What is wrong with it.
pub fn parse(url: &str) -> std::result::Result<(Config, Place), &'static str> {
    if !url.starts_with("postgresql://") && !url.starts_with("postgres://") {
        return Err("must be a URL, as in \"postgresql://openred@/openred?host=/run/postgresql\"");
    }
    let config: Config = url.parse().map_err(
        |_| "cannot be read as a PostgreSQL URL, as in \"postgresql://openred@database.example.org/openred\"",
    )?;
    if config.get_password().is_some() {
        return Err("holds a password, which everybody would see who sees the settings: set store.password_file");
    }
    if config.get_user().is_none() || config.get_dbname().is_none() {
        return Err("must name user and database, as in \"postgresql://openred@/openred?host=/run/postgresql\"");
    }
    if config.get_options().is_some() || !config.get_hostaddrs().is_empty() {
        return Err("takes neither options nor hostaddr");
    }
    let port = match config.get_ports() {
        [] => PORT,
        [port] => *port,
        _ => return Err("must name one port"),
    };
    let place = match config.get_hosts() {
        [Host::Unix(folder)] if folder.is_absolute() && folder.parent().is_some() => Place::Folder(folder.clone()),
        [Host::Tcp(name)] => Place::Network(name.clone(), port),
        _ => return Err("must name one host, or the folder of the server's socket by its whole path"),
    };
    Ok((config, place))
}

impl Target {
    /// From the settings. `certificates` are whom the server's certificate must come from; empty: the server is on this machine.
    ///
    /// # Errors
    /// A file that cannot be used, a name that is not known.
    pub fn open(url: &str, password_file: &Path, certificates: &Path) -> Result<Self> {
        let (mut config, place) = parse(url).map_err(Error::Misuse)?;
        if !password_file.as_os_str().is_empty() {
            config.password(read_password(password_file, PASSWORD)?);
        }
        let mut tls = None;
        config.ssl_mode(SslMode::Disable).application_name("openred-directory");
        if let Place::Network(name, port) = &place {
            for (place, address) in resolve(name, *port, "store.url")?.into_iter().enumerate() {
                // The first stands for the host of the URL; each other one is the same host at another address.
                if place > 0 {
                    config.host(name);
                }
                config.hostaddr(address);
            }
            if !certificates.as_os_str().is_empty() {
                tls = Some(Arc::new(trusting(certificates, CERTIFICATES)?));
                config.ssl_mode(SslMode::Require);
                // The password is proven to this server alone, and never by a method that shows it or a digest of it.
                if config.get_password().is_some() {
                    config.channel_binding(ChannelBinding::Require);
                }
            }
        }
        Ok(Self { config, tls, place })
    }

    /// The folder that the cage has to keep: the socket's.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match &self.place {
            Place::Folder(folder) => Some(folder),
            Place::Network(..) => None,
        }
    }

    /// The port that the cage has to let through.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self.place {
            Place::Folder(_) => None,
            Place::Network(_, port) => Some(port),
        }
    }
}

/// Whether the files beside `store.url` can be used; nobody is called.
///
/// # Errors
/// What is wrong with one.
pub fn check_files(password_file: &Path, certificates: &Path) -> Result<()> {
    if !password_file.as_os_str().is_empty() {
        read_password(password_file, PASSWORD)?;
    }
    if !certificates.as_os_str().is_empty() {
        trusting(certificates, CERTIFICATES)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_url_names_all_but_the_password() {
        for (url, place) in [
            ("postgresql://openred@/openred?host=/run/postgresql", Place::Folder("/run/postgresql".into())),
            ("postgres://openred@%2Frun%2Fpostgresql/openred", Place::Folder("/run/postgresql".into())),
            ("postgresql://openred@db.example/openred", Place::Network("db.example".into(), 5432)),
            ("postgresql://openred@192.0.2.1:6000/openred", Place::Network("192.0.2.1".into(), 6000)),
        ] {
            assert_eq!(parse(url).unwrap().1, place, "{url}");
        }
        for url in [
            "",
            "sqlite://x",
            "host=/run/postgresql user=a dbname=b",
            "postgresql://openred:secret@/openred?host=/run/postgresql",
            "postgresql://openred@/openred?host=/run/postgresql&password=secret",
            "postgresql:///openred?host=/run/postgresql",
            "postgresql://openred@db.example",
            "postgresql://openred@/openred?host=/",
            "postgresql://openred@a,b/openred",
            "postgresql://openred@a/openred?options=-c%20fsync=off",
        ] {
            let why = parse(url).unwrap_err();
            assert!(!why.contains("secret"), "{url}");
        }
    }
}
