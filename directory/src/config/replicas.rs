//! `[replicas]`: the NATS server over which directories of one identity speak, and what this one is called among them.

use std::path::{Path, PathBuf};

use openred_proto::config::{ConfigError, Source, Spanned};
use serde::{Deserialize, Serialize};

use super::{Config, is_here, plain, without_line};
use crate::limits::REPLICA_NAME_BYTES;
use crate::replicas::target;

/// Directories that share this one's identity and database, and what waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replicas {
    /// The NATS server that they speak over, without its password; empty: this directory is alone.
    pub url: Spanned<String>,
    /// This replica's name; no other has it.
    pub name: Spanned<String>,
    /// File with NATS's password, for nobody else to read.
    pub password_file: PathBuf,
    /// PEM file with the certificates that the server's own must come from; empty: plain TCP, with sealed letters on it.
    pub certificates: PathBuf,
}

impl Default for Replicas {
    fn default() -> Self {
        Self {
            url: plain(String::new()),
            name: plain(String::new()),
            password_file: PathBuf::new(),
            certificates: PathBuf::new(),
        }
    }
}

impl Config {
    /// What makes a replica.
    pub(super) fn check_replicas(&self, source: &Source) -> Result<(), ConfigError> {
        let Replicas { url, name, password_file, certificates } = &self.replicas;
        let given = |path: &Path| !path.as_os_str().is_empty();
        if url.get_ref().is_empty() {
            if !name.get_ref().is_empty() || given(password_file) || given(certificates) {
                let why = "name, password_file and certificates are those of a replica: set replicas.url";
                return Err(source.refuse(name.span(), why));
            }
            return Ok(());
        }
        let letters = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !(1..=REPLICA_NAME_BYTES).contains(&name.get_ref().len()) || !letters(name.get_ref()) {
            let why = "each replica has a name of its own, of letters, digits and hyphens, at most 32: set replicas.name, as in \"a\"";
            let at = if name.get_ref().is_empty() { url.span() } else { name.span() };
            let error = source.refuse(at, why);
            return Err(if name.get_ref().is_empty() { without_line(error) } else { error });
        }
        let why = match target::parse(url.get_ref()) {
            Err(why) => why,
            Ok(_) if !self.mirror.of.get_ref().is_empty() => {
                "a mirror is no replica: leave out mirror.of or replicas.url"
            }
            Ok(_) if self.store.url.get_ref().is_empty() => {
                "replicas share their cards: set store.url to the PostgreSQL database of all of them"
            }
            Ok(place) if given(password_file) && place.user.is_empty() => {
                "a password belongs to a user: name it, as in \"nats://openred@nats.example.org\""
            }
            Ok(place) if given(password_file) && !given(certificates) && !is_here(&place.host) => {
                "a password goes to another machine by TLS alone: set replicas.certificates"
            }
            Ok(_) => return Ok(()),
        };
        Err(without_line(source.refuse(url.span(), why)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check(text: &str) -> Result<Config, String> {
        Config::parse(&Source::new("directory.toml", text)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_replica_is_named_and_has_a_database_to_share() {
        let store = "[store]\nurl = \"postgresql://a@/b?host=/run/postgresql\"\n[replicas]\n";
        for (text, expected) in [
            ("[replicas]\nname = \"a\"", "set replicas.url"),
            ("[replicas]\nurl = \"nats://127.0.0.1\"", "set replicas.name"),
            ("[replicas]\nurl = \"nats://127.0.0.1\"\nname = \"a b\"", "each replica has a name of its own"),
            ("[replicas]\nurl = \"nats://127.0.0.1\"\nname = \"a\"", "set store.url"),
            ("[replicas]\nurl = \"nats://a:secret@127.0.0.1\"\nname = \"a\"", "holds a password"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{text}\n{error}");
        }
        for (text, expected) in [
            ("url = \"nats://127.0.0.1\"\nname = \"a\"\npassword_file = \"x\"", "a password belongs to a user"),
            ("url = \"nats://u@a.example\"\nname = \"a\"\npassword_file = \"x\"", "set replicas.certificates"),
        ] {
            let error = check(&[store, text].concat()).unwrap_err();
            assert!(error.contains(expected), "{text}\n{error}");
        }
        check(
            &[store, "url = \"nats://u@a.example\"\nname = \"a\"\npassword_file = \"x\"\ncertificates = \"y\""]
                .concat(),
        )
        .unwrap();
        check(&[store, "url = \"nats://a.example\"\nname = \"a-1\""].concat()).unwrap();
    }
}
