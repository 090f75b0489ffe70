//! The directory's Ed25519 key: made once, kept in a file that only its owner may read, loaded before the cage closes. It
//! signs receipts and the log's heads (PROTOCOL 4, 7), or, of a mirror, its requests and neither of them; replicas
//! have the keys for their letters from it; its did:key is the directory's id.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use ed25519_dalek::{Signer as _, SigningKey};
use openred_proto::checked::receipt::Receipt;
use openred_proto::checked::statement;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::NodeId;
use openred_proto::label::{Label, signed_bytes};
use openred_proto::log::head::Head;

use crate::error::{Error, Result};
use crate::replicas::seal::Keys;
use crate::store::LogEnd;

/// First line of the key file.
const HEADER: &str = "openred directory key 1";
/// The file: header, 64 hex digits, two line ends. Anything longer is something else.
const FILE_BYTES: u64 = 128;

/// The key. Prints only its public half.
pub struct Identity {
    key: SigningKey,
    id: NodeId,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}

impl Identity {
    /// From a seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let id = NodeId::from_bytes(key.verifying_key().to_bytes());
        Self { key, id }
    }

    /// The directory's id.
    #[must_use]
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// The keys that replicas of this identity share.
    #[must_use]
    pub fn replica_keys(&self) -> Keys {
        let mut seed = self.key.to_bytes();
        let keys = Keys::derive(&seed);
        wipe(&mut seed);
        keys
    }

    /// Signs a receipt.
    #[must_use]
    pub fn sign_receipt(&self, receipt: &Receipt) -> Vec<u8> {
        let payload = receipt.encode();
        let signature = self.key.sign(&signed_bytes(Label::Receipt, &payload)).to_bytes();
        statement::encode(&payload, &self.id, &signature)
    }

    /// Signs how far the log goes.
    #[must_use]
    pub fn sign_head(&self, end: &LogEnd) -> String {
        let head = Head { directory: self.id, size: end.size, root: end.root };
        head.note(&self.key.sign(head.text().as_bytes()).to_bytes())
    }

    /// The `Signature` header of a request that a mirror makes.
    #[must_use]
    pub fn sign_http(&self, input: &SignatureInput) -> String {
        SignatureInput::signature_header(&self.key.sign(&input.base()).to_bytes())
    }

    /// Loads the key, or makes one when there is no file yet; true when it was made.
    ///
    /// # Errors
    /// The file cannot be read or written, is not a key, or can be read by others.
    pub fn load_or_create(path: &Path) -> Result<(Self, bool)> {
        match Self::load(path) {
            Err(Error::LocalFile { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Self::create(path)?;
                Ok((Self::load(path)?, true))
            }
            other => other.map(|identity| (identity, false)),
        }
    }

    /// Loads the key.
    ///
    /// # Errors
    /// As [`Identity::load_or_create`], and when there is no file.
    pub fn load(path: &Path) -> Result<Self> {
        let wrong = |why| Error::LocalKeyFile { path: path.to_owned(), why };
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(nix::libc::O_NOFOLLOW);
        let file = options.open(path).map_err(Error::file("open the key", path))?;
        let found = file.metadata().map_err(Error::file("read the mode of", path))?;
        if found.mode() & 0o077 != 0 {
            return Err(wrong("others may read this key; `chmod 600` it, and replace it if they may have"));
        }
        if found.uid() != nix::unistd::geteuid().as_raw() {
            return Err(wrong("this key belongs to another user; run as its owner"));
        }
        let mut text = String::new();
        let read = file.take(FILE_BYTES).read_to_string(&mut text);
        let mut seed = [0; 32];
        let lines = read.ok().and_then(|_| text.split_once('\n')).filter(|(header, _)| *header == HEADER);
        let decoded = lines.is_some_and(|(_, digits)| hex::decode_to_slice(digits.trim_end(), &mut seed).is_ok());
        let identity = decoded.then(|| Self::from_seed(&seed));
        wipe(&mut seed);
        identity.ok_or_else(|| {
            wrong("not a directory key; restore it from a backup, or move it away to start as a new directory")
        })
    }

    /// Temp + fsync + rename + fsync of the directory: after a crash there is the whole key or none.
    fn create(path: &Path) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let temporary = path.with_extension("key.new");
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|_| Error::LocalRuntime(std::io::ErrorKind::Unsupported.into()))?;
        let _ = std::fs::remove_file(&temporary);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&temporary).map_err(Error::file("create", &temporary))?;
        let text = format!("{HEADER}\n{}\n", hex::encode(seed));
        wipe(&mut seed);
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::file("write", &temporary))?;
        std::fs::rename(&temporary, path).map_err(Error::file("rename to", path))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file("make durable", folder))
    }
}

/// Overwrites a seed; `black_box` keeps the store from being optimised away.
fn wipe(seed: &mut [u8; 32]) {
    seed.fill(0);
    std::hint::black_box(seed);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory.key");
        let (made, new) = Identity::load_or_create(&path).unwrap();
        let (again, new_again) = Identity::load_or_create(&path).unwrap();
        assert_eq!((made.id(), new, new_again), (again.id(), true, false));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_readable_or_damaged_or_linked_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory.key");
        Identity::load_or_create(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for damaged in ["", "x", &text[..40], &text.replace('1', "2"), &text[1..]] {
            std::fs::write(&path, damaged).unwrap();
            assert!(matches!(Identity::load(&path), Err(Error::LocalKeyFile { .. })), "{damaged:?}");
        }
        std::fs::write(&path, &text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(&path), Err(Error::LocalKeyFile { .. })));
        let link = folder.path().join("link.key");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Identity::load(&link), Err(Error::LocalFile { .. })));
    }
}
