//! Where the passphrase or the age identity of a keystore comes from: an option, a service manager's credential, the terminal,
//! in this order.
//!
//! From a file it is read again each time it is needed and never kept. From a descriptor or the terminal it cannot be had
//! twice, so it stays in this process's memory (wiped at the end) for as long as the vault may have to be restarted.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use openred_proto::unseal::SECRET_BYTES;

use super::arguments::{PassphraseSource, SecretSource};
use super::{Exit, Failure};

/// Names of the credentials that a service manager may lay down (systemd: `LoadCredentialEncrypted=openred.passphrase`), in
/// order.
const CREDENTIALS: [&str; 2] = ["openred.passphrase", "openred.identity"];

/// A passphrase, or the way to it.
pub(crate) enum Passphrase {
    /// Read again at each use.
    File(PathBuf),
    /// Kept until the end.
    Kept(Zeroizing<Vec<u8>>),
}

impl Passphrase {
    /// From the named source, a credential, or the terminal.
    pub(crate) fn new(source: &SecretSource) -> Result<Self, Failure> {
        match Self::named(source)? {
            Some(named) => Ok(named),
            None => Ok(Self::Kept(ask("Passphrase: ")?)),
        }
    }

    /// The same without a credential: that of the service is for its start, not for what an operator does by hand.
    pub(crate) fn by_hand(source: &SecretSource) -> Result<Self, Failure> {
        match Self::option(source)? {
            Some(named) => Ok(named),
            None => Ok(Self::Kept(ask("Passphrase: ")?)),
        }
    }

    /// From the named source, if one is named.
    pub(crate) fn given(source: &SecretSource) -> Result<Option<Self>, Failure> {
        Self::option(source)
    }

    /// From the terminal, where there is one; what for is said in the prompt.
    pub(crate) fn asked(what: &Path) -> Result<Option<Self>, Failure> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        ask(&format!("Passphrase of {}: ", what.display())).map(|typed| Some(Self::Kept(typed)))
    }

    fn option(source: &SecretSource) -> Result<Option<Self>, Failure> {
        let passphrase = &source.passphrase;
        if let Some(path) = passphrase.passphrase_file.as_ref().or(source.identity_file.as_ref()) {
            let path = std::path::absolute(path).map_err(|error| Failure::local(path.display(), &error))?;
            read_file(&path)?;
            return Ok(Some(Self::File(path)));
        }
        let Some(number) = passphrase.passphrase_fd.or(source.identity_fd) else { return Ok(None) };
        let name = format!("descriptor {number}");
        let file = File::open(format!("/proc/self/fd/{number}")).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Failure::usage(format!("{name} is not open"), format!("open it for this command: `{number}< FILE`"))
            }
            _ => Failure::local(&name, &error),
        })?;
        Ok(Some(Self::Kept(read_bounded(file, &name)?)))
    }

    fn named(source: &SecretSource) -> Result<Option<Self>, Failure> {
        if let Some(named) = Self::option(source)? {
            return Ok(Some(named));
        }
        // What the unit loads is this unit's, and a start without anybody at a terminal has nothing else.
        let Some(path) = CREDENTIALS.into_iter().find_map(openred_policy::notify::credential) else { return Ok(None) };
        read_file(&path)?;
        Ok(Some(Self::File(path)))
    }

    /// As [`by_hand`](Self::by_hand), but what is typed for a new keystore is typed twice.
    pub(crate) fn new_for_creation(source: &PassphraseSource) -> Result<Self, Failure> {
        let source = SecretSource { passphrase: source.clone(), ..SecretSource::default() };
        if let Some(named) = Self::option(&source)? {
            return Ok(named);
        }
        let first = ask("New passphrase: ")?;
        if first != ask("The same again: ")? {
            return Err(Failure::usage("the two passphrases differ", "try again"));
        }
        Ok(Self::Kept(first))
    }

    /// The bytes, for the one pipe they go into.
    pub(crate) fn bytes(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        match self {
            Self::File(path) => read_file(path),
            Self::Kept(bytes) => Ok(Zeroizing::new(bytes.to_vec())),
        }
    }
}

fn ask(prompt: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "no passphrase was given and there is no terminal to ask on",
            "use --passphrase-file or --passphrase-fd",
        ));
    }
    let text = rpassword::prompt_password(prompt).map_err(|error| Failure::local("the terminal", &error))?;
    not_empty(Zeroizing::new(text.into_bytes()), "the passphrase")
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: std::io::Error| Failure::local(path.display(), &error);
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let mode = meta.permissions().mode();
    if meta.is_file() && mode & 0o077 != 0 {
        let what = format!("{}: other users may read this passphrase (mode {:03o})", path.display(), mode & 0o777);
        return Err(Failure::new(Exit::Denied, "passphrase.exposed", what, "chmod 600 it and choose a new passphrase"));
    }
    let own = nix::unistd::geteuid().as_raw();
    if meta.is_file() && meta.uid() != own && meta.uid() != 0 {
        let what = format!("{}: belongs to another user", path.display());
        return Err(Failure::new(Exit::Denied, "passphrase.foreign", what, "use a file of your own"));
    }
    read_bounded(file, &path.display().to_string())
}

fn read_bounded(file: File, name: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Reserved whole, so that growing leaves no copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES + 2));
    file.take(SECRET_BYTES as u64 + 2).read_to_end(&mut bytes).map_err(|error| Failure::local(name, &error))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.len() > SECRET_BYTES {
        return Err(Failure::usage(format!("{name}: longer than {SECRET_BYTES} bytes"), "name the passphrase's file"));
    }
    not_empty(bytes, name)
}

fn not_empty(bytes: Zeroizing<Vec<u8>>, name: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if bytes.is_empty() {
        return Err(Failure::usage(format!("{name}: empty"), "a passphrase has at least one character"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn one_line_end_is_not_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        std::fs::write(&path, "two words\n\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let passphrase = PassphraseSource { passphrase_file: Some(path.clone()), passphrase_fd: None };
        let source = SecretSource { passphrase, ..SecretSource::default() };
        assert_eq!(&**Passphrase::new(&source).unwrap().bytes().unwrap(), b"two words\n");
        for (content, mode, exit) in [
            ("x\n".to_owned(), 0o640, Exit::Denied),
            ("\n".to_owned(), 0o600, Exit::Usage),
            ("x".repeat(1026), 0o600, Exit::Usage),
        ] {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(Passphrase::new(&source).err().map(|failure| failure.exit), Some(exit));
        }
    }
}
