//! The keystore at rest: an age file behind a passphrase, opened and made by a short-lived program of its own.
//!
//! age and scrypt live here and in `cryptod-unseal` alone; the vault, which outlives them, links neither. In: a keystore and
//! a passphrase, read to their ends and no further than their caps. Out: 64 bytes for the vault, or a new keystore. Which file
//! that is, and that it is put in place by a rename, is the caller's business.

mod keystore;

use std::io::{Read, Write};

use age::secrecy::SecretString;
use openred_proto::id::NodeId;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

pub use keystore::{Keystore, WorkFactor};

/// Longest passphrase in bytes; a page of text would be a file named by mistake.
const PASSPHRASE_BYTES: usize = 1024;
/// Longest keystore: the age header and 300 bytes of payload, with room for more stanzas.
const KEYSTORE_BYTES: usize = 16 * 1024;

/// Why the unsealer gave up; each is one line that ends with the way out.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The passphrase is another one.
    #[error(
        "keystore: the passphrase does not open it; nothing was changed; start again with the one given to `openred init`"
    )]
    WrongPassphrase,
    /// No passphrase came.
    #[error("keystore: the passphrase is empty; give one on the prompt, by file or by descriptor")]
    NoPassphrase,
    /// Over [`PASSPHRASE_BYTES`], or no text.
    #[error("keystore: the passphrase is no text of at most 1,024 bytes; is the file that was named the right one?")]
    BadPassphrase,
    /// Not an age file behind a passphrase, or cut short, or changed.
    #[error("keystore: the file is damaged or no keystore; put a copy of it back from a backup")]
    Damaged,
    /// A version of the payload that this build does not know.
    #[error("keystore: made by a newer version of OpenRed; use that version or a later one")]
    NewerVersion,
    /// The node id in the keystore is not that of its key.
    #[error("keystore: its node id is not that of its key; put a copy of it back from a backup")]
    ForeignKey,
    /// The file asks for more work than is accepted.
    #[error(
        "keystore: its scrypt work factor is {asked}, over the {most} that is accepted; make it again with a lower one"
    )]
    TooMuchWork {
        /// From the file.
        asked: u8,
        /// The cap.
        most: u8,
    },
    /// Reading or writing a descriptor failed.
    #[error("keystore: {what}: {source}")]
    LocalIo {
        /// What was read or written.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Failure {
    fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::LocalIo { what, source }
    }

    /// Exit code (OPERATIONS): 5 denied for a passphrase, 1 for all else.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::WrongPassphrase | Self::NoPassphrase | Self::BadPassphrase => 5,
            _ => 1,
        }
    }
}

/// Opens the keystore from `file` and hands its secrets to the vault's `pipe`.
///
/// # Errors
/// Any [`Failure`]; nothing has gone to the pipe then.
pub fn open(file: impl Read, passphrase: impl Read, mut pipe: impl Write) -> Result<(), Failure> {
    // The passphrase first: it is given once this process has been looked at, which must not end before.
    let passphrase = one_passphrase(&read_passphrases(passphrase)?)?;
    let sealed = read_capped(file, KEYSTORE_BYTES, "reading the file")?.ok_or(Failure::Damaged)?;
    let secrets = Keystore::open(&sealed, passphrase)?.into_secrets();
    pipe.write_all(&*secrets).map_err(Failure::io("handing the secrets to the vault"))
}

/// Makes a new identity and keystore, writes the keystore to `file` (made durable by `sync`), and its node id to `out`.
///
/// # Errors
/// Any [`Failure`]; `file` holds nothing of use then.
pub fn create<W: Write>(
    random: &mut impl CryptoRng,
    mut file: W,
    passphrase: impl Read,
    mut out: impl Write,
    sync: impl FnOnce(W) -> std::io::Result<()>,
) -> Result<NodeId, Failure> {
    let passphrase = one_passphrase(&read_passphrases(passphrase)?)?;
    let keystore = Keystore::generate(random);
    let sealed = keystore.seal(passphrase, WorkFactor::STANDARD)?;
    file.write_all(&sealed).and_then(|()| sync(file)).map_err(Failure::io("writing the new file"))?;
    out.write_all(keystore.node_id().as_bytes()).map_err(Failure::io("reporting the node id"))?;
    Ok(keystore.node_id())
}

/// Seals the same secrets under another passphrase: `passphrases` carries the old one, a line end, and the new one.
///
/// # Errors
/// Any [`Failure`]; `new_file` holds nothing of use then.
pub fn rewrap<W: Write>(
    file: impl Read,
    passphrases: impl Read,
    mut new_file: W,
    sync: impl FnOnce(W) -> std::io::Result<()>,
) -> Result<NodeId, Failure> {
    let text = read_passphrases(passphrases)?;
    let sealed = read_capped(file, KEYSTORE_BYTES, "reading the file")?.ok_or(Failure::Damaged)?;
    let (old, new) = text.split_once('\n').ok_or(Failure::NoPassphrase)?;
    let keystore = Keystore::open(&sealed, one_passphrase(old)?)?;
    let sealed = keystore.seal(one_passphrase(new)?, WorkFactor::STANDARD)?;
    new_file.write_all(&sealed).and_then(|()| sync(new_file)).map_err(Failure::io("writing the new file"))?;
    Ok(keystore.node_id())
}

fn read_passphrases(from: impl Read) -> Result<Zeroizing<String>, Failure> {
    let mut bytes =
        read_capped(from, 2 * PASSPHRASE_BYTES + 2, "reading the passphrase")?.ok_or(Failure::BadPassphrase)?;
    String::from_utf8(std::mem::take(&mut *bytes)).map(Zeroizing::new).map_err(|_| Failure::BadPassphrase)
}

/// One line's end is not part of a passphrase: editors and `echo` write it.
fn one_passphrase(text: &str) -> Result<SecretString, Failure> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match text.len() {
        0 => Err(Failure::NoPassphrase),
        length if length > PASSPHRASE_BYTES || text.contains('\n') => Err(Failure::BadPassphrase),
        _ => Ok(SecretString::from(text.to_owned())),
    }
}

/// All bytes to the end; none when there are more than `cap`. The buffer never moves, so no copy of a secret stays behind.
fn read_capped(mut from: impl Read, cap: usize, what: &'static str) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
    let mut bytes = Zeroizing::new(vec![0; cap + 1]);
    let mut length = 0;
    while length < bytes.len() {
        match from.read(&mut bytes[length..]) {
            Ok(0) => {
                bytes.truncate(length);
                return Ok(Some(bytes));
            }
            Ok(count) => length += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Failure::LocalIo { what, source }),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    fn made(passphrase: &[u8]) -> (Vec<u8>, NodeId) {
        let mut file = Vec::new();
        let mut id = Vec::new();
        let mut random = ChaCha20Rng::from_seed([3; 32]);
        let node = create(&mut random, &mut file, passphrase, &mut id, |_| Ok(())).unwrap();
        assert_eq!(id, node.as_bytes());
        (file, node)
    }

    #[test]
    fn create_open_and_rewrap() {
        let (file, node) = made(b"correct horse\n");
        let mut secrets = Vec::new();
        open(&file[..], &b"correct horse"[..], &mut secrets).unwrap();
        assert_eq!(secrets.len(), 64);
        let seed: [u8; 32] = secrets[..32].try_into().unwrap();
        let key = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
        assert_eq!(node, NodeId::from_bytes(key.to_bytes()), "bound to the node id");

        let mut wrapped = Vec::new();
        assert_eq!(rewrap(&file[..], &b"correct horse\nbattery"[..], &mut wrapped, |_| Ok(())).unwrap(), node);
        let mut again = Vec::new();
        open(&wrapped[..], &b"battery\r\n"[..], &mut again).unwrap();
        assert_eq!(secrets, again);
        let old = open(&wrapped[..], &b"correct horse"[..], &mut Vec::new());
        assert!(matches!(old, Err(Failure::WrongPassphrase)));
    }

    #[test]
    fn a_wrong_passphrase_is_one_line_with_the_way_out_and_nothing_leaves() {
        let (file, _) = made(b"right");
        let mut out = Vec::new();
        let failure = open(&file[..], &b"wrong"[..], &mut out).unwrap_err();
        assert!(matches!(failure, Failure::WrongPassphrase));
        assert_eq!((failure.exit_code(), out.len(), failure.to_string().lines().count()), (5, 0, 1));
    }

    #[test]
    fn what_is_no_passphrase() {
        let long = vec![b'a'; PASSPHRASE_BYTES + 1];
        let longer = vec![b'a'; 5 * PASSPHRASE_BYTES];
        for (text, empty) in
            [(&b""[..], true), (b"\n", true), (b"\xff\xfe", false), (&long, false), (&longer, false), (b"a\nb", false)]
        {
            let failure = read_passphrases(text).and_then(|text| one_passphrase(&text)).unwrap_err();
            assert_eq!(matches!(failure, Failure::NoPassphrase), empty);
            assert_eq!(matches!(failure, Failure::BadPassphrase), !empty);
        }
    }

    #[test]
    fn a_damaged_file_is_named_as_such() {
        let (file, _) = made(b"right");
        let last = file.len() - 1;
        let mut changed = file.clone();
        changed[last] ^= 1;
        let huge = vec![0; KEYSTORE_BYTES + 1];
        for damaged in [&changed[..], &file[..last], &file[..40], b"", &huge] {
            let failure = open(damaged, &b"right"[..], &mut Vec::new()).unwrap_err();
            assert!(matches!(failure, Failure::Damaged), "{failure}");
        }
    }
}
