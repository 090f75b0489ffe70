//! Where the passphrase of a keystore comes from: the terminal, a file, an open descriptor, a service manager's credential.
//!
//! From a file it is read again each time it is needed and never kept. From a descriptor or the terminal it cannot be had
//! twice, so it stays in this process's memory (wiped at the end) for as long as the vault may have to be restarted.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::arguments::PassphraseSource;
use super::{Exit, Failure};

/// Longest passphrase; anything longer is the wrong file.
pub(crate) const PASSPHRASE_BYTES: usize = 1024;

/// Name of the credential that holds it (systemd: `LoadCredentialEncrypted=openred.passphrase`).
pub(crate) const CREDENTIAL: &str = "openred.passphrase";

/// A passphrase, or the way to it.
pub(crate) enum Passphrase {
    /// Read again at each use.
    File(PathBuf),
    /// Kept until the end.
    Kept(Zeroizing<Vec<u8>>),
}

impl Passphrase {
    /// From the named source, or the terminal.
    pub(crate) fn new(source: &PassphraseSource) -> Result<Self, Failure> {
        match source {
            PassphraseSource { passphrase_file: Some(path), .. } => {
                let path = std::path::absolute(path).map_err(|error| Failure::local(path.display(), &error))?;
                read_file(&path)?;
                Ok(Self::File(path))
            }
            PassphraseSource { passphrase_fd: Some(number), .. } => {
                let place = PathBuf::from(format!("/proc/self/fd/{number}"));
                let file =
                    File::open(&place).map_err(|error| Failure::local(format!("descriptor {number}"), &error))?;
                Ok(Self::Kept(read_bounded(file, &format!("descriptor {number}"))?))
            }
            // What the unit loads is this unit's, and a start without anybody at a terminal has nothing else.
            _ => match openred_policy::notify::credential(CREDENTIAL) {
                Some(path) => read_file(&path).map(|_| Self::File(path)),
                None => Ok(Self::Kept(ask("Passphrase: ")?)),
            },
        }
    }

    /// As [`new`](Self::new), but what is typed for a new keystore is typed twice.
    pub(crate) fn new_for_creation(source: &PassphraseSource) -> Result<Self, Failure> {
        if source.passphrase_file.is_some() || source.passphrase_fd.is_some() {
            return Self::new(source);
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
    let mut bytes = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES + 2));
    file.take(PASSPHRASE_BYTES as u64 + 2).read_to_end(&mut bytes).map_err(|error| Failure::local(name, &error))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.len() > PASSPHRASE_BYTES {
        return Err(Failure::usage(
            format!("{name}: longer than {PASSPHRASE_BYTES} bytes"),
            "name the passphrase's file",
        ));
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
        let source = PassphraseSource { passphrase_file: Some(path.clone()), passphrase_fd: None };
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
