//! Keystores and backups at rest: age files behind a passphrase or recipients, opened and made by a short-lived program of
//! its own.
//!
//! age and scrypt live here and in `cryptod-unseal` alone; the vault, which outlives them, links neither. In: an order with the
//! secret, and a file, read to their ends and no further than their caps. Out: 64 bytes for the vault, a keystore, the
//! vault's state of a restored node, or a backup's stream. Which files those are, and that they are put in place whole, is the
//! caller's business.

pub mod envelope;
mod keystore;
mod renew;

use std::io::{Read, Write};

use openred_proto::unseal::{About, ORDER_BYTES, Order, Refused};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::error::Error;
use envelope::Seal;
pub use keystore::Keystore;
pub use renew::renew;

/// Longest keystore: the age header with its stanzas and a payload of under 2 KiB.
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
    /// Over its bound, or no text.
    #[error("keystore: the passphrase is no text of at most 1,024 bytes; is the file that was named the right one?")]
    BadPassphrase,
    /// None of the identities is one of its recipients'.
    #[error("keystore: the identity does not open it; name that of one of its recipients (`openred key show`)")]
    WrongIdentity,
    /// Sealed to recipients, and no identity came.
    #[error("keystore: it is sealed to age recipients; give an identity with --identity-file or --identity-fd")]
    NeedsIdentity,
    /// A recipient that is none.
    #[error("keystore: a recipient is no X25519 recipient of age; name what `age-keygen` printed, age1…")]
    BadRecipient,
    /// Not an order of this build.
    #[error("keystore: the order is not one of this version; are all programs of one build?")]
    BadOrder,
    /// Not an age file, or cut short, or changed.
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
    /// The vault's state does not open under this keystore.
    #[error("vault state: {0}; take keystore and state from the same backup")]
    State(Error),
    /// The two keystores are not of one lineage, or it is too late.
    #[error("keystore: {0}; nothing was changed; `openred key show` says which identity goes on for which")]
    Succession(&'static str),
    /// The same of the older of two keystores.
    #[error("the older keystore: {0}")]
    Older(Box<Failure>),
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
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::LocalIo { what, source }
    }

    /// Exit code (OPERATIONS): 5 denied for a secret, 1 for all else.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self.word() {
            Refused::Secret | Refused::OlderSecret => 5,
            _ => 1,
        }
    }

    /// What the one who has to name it is told.
    #[must_use]
    pub fn word(&self) -> Refused {
        match self {
            Self::WrongPassphrase
            | Self::NoPassphrase
            | Self::BadPassphrase
            | Self::WrongIdentity
            | Self::NeedsIdentity => Refused::Secret,
            Self::BadRecipient => Refused::Recipient,
            Self::Damaged => Refused::Damaged,
            Self::NewerVersion => Refused::Newer,
            Self::ForeignKey => Refused::Mismatched,
            Self::TooMuchWork { .. } => Refused::Work,
            Self::State(_) => Refused::State,
            Self::Succession(_) => Refused::Succession,
            Self::Older(failure) if failure.word() == Refused::Secret => Refused::OlderSecret,
            Self::Older(_) => Refused::OlderKeystore,
            Self::LocalIo { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Refused::Full,
            Self::BadOrder | Self::LocalIo { .. } => Refused::Local,
        }
    }
}

/// Reads the order to its end. It is given once this process has been looked at, which must not end before.
///
/// # Errors
/// [`Failure::BadOrder`], or of reading.
pub fn read_order(from: impl Read) -> Result<Order, Failure> {
    let bytes = read_capped(from, ORDER_BYTES, "reading the order")?.ok_or(Failure::BadOrder)?;
    Order::decode(&bytes).map_err(|_| Failure::BadOrder)
}

/// Opens the keystore from `file` and hands its secrets to the vault's `pipe`.
///
/// # Errors
/// Any [`Failure`]; nothing has gone to the pipe then.
pub fn open(order: &Order, file: impl Read, mut pipe: impl Write) -> Result<About, Failure> {
    let (keystore, about, _) = read_keystore(order, file)?;
    let descent = keystore.descent().encode();
    let secrets = keystore.into_secrets();
    let given = pipe.write_all(&*secrets).and_then(|()| pipe.write_all(&descent));
    given.map_err(Failure::io("handing the secrets to the vault"))?;
    Ok(about)
}

/// Makes a new identity and writes its keystore to `out`.
///
/// # Errors
/// Any [`Failure`]; what went to `out` is of no use then.
pub fn create(random: &mut impl CryptoRng, order: &Order, mut out: impl Write) -> Result<About, Failure> {
    let seal = Seal::ordered(order)?;
    let (sealed, about) = Keystore::generate(random, order.now).seal(&seal)?;
    out.write_all(&sealed).map_err(Failure::io("writing the new keystore"))?;
    Ok(about)
}

/// Seals the same secrets anew: to the order's recipients, or without any as they were sealed.
///
/// # Errors
/// Any [`Failure`]; what went to `out` is of no use then.
pub fn rewrap(order: &Order, file: impl Read, out: impl Write) -> Result<About, Failure> {
    let (keystore, _, as_opened) = read_keystore(order, file)?;
    sealed_again(order, &keystore, as_opened, out)
}

/// Draws a new identity for the same node, which the old one signs its word for; sealed as [`rewrap`] does.
///
/// # Errors
/// Any [`Failure`]; what went to `out` is of no use then.
pub fn succeed(random: &mut impl CryptoRng, order: &Order, file: impl Read, out: impl Write) -> Result<About, Failure> {
    let (keystore, _, as_opened) = read_keystore(order, file)?;
    sealed_again(order, &keystore.succeeded(random, order.now)?, as_opened, out)
}

/// The older keystore's identity takes its word for a successor back and goes on itself: for the one whose keystore is `here`,
/// or, where the keystore here is the older one's own, for the one that the order names.
///
/// # Errors
/// Any [`Failure`]; what went to `out` is of no use then.
pub fn take_back(order: &Order, older: impl Read, here: impl Read, out: impl Write) -> Result<About, Failure> {
    let Some(named) = order.named else {
        let (here, ..) = read_keystore(order, here)?;
        let secret = if order.older.is_empty() { &order.secret } else { &order.older };
        let older = read_with(secret, older).map_err(|failure| Failure::Older(Box::new(failure)));
        let (older, _, as_opened) = older?;
        let taken_back = older.taken_back(here.node_id(), Some(&here), order.now)?;
        return sealed_again(order, &taken_back, as_opened, out);
    };
    let (older, _, as_opened) = read_keystore(order, older)?;
    sealed_again(order, &older.taken_back(named, None, order.now)?, as_opened, out)
}

fn sealed_again(order: &Order, keystore: &Keystore, as_opened: Seal, mut out: impl Write) -> Result<About, Failure> {
    let seal = match (order.recipients.as_slice(), keystore.recipients(), as_opened) {
        ([], _, seal @ Seal::Passphrase(..)) => seal,
        // Made by hand, with a stock `age`: only who opened it is known.
        ([], [], seal) => seal,
        ([], made_for, _) => Seal::to(made_for)?,
        (named, ..) => Seal::to(named)?,
    };
    let (sealed, about) = keystore.seal(&seal)?;
    out.write_all(&sealed).map_err(Failure::io("writing the new keystore"))?;
    Ok(about)
}

/// Seals a stream of any length as the order says.
///
/// # Errors
/// Any [`Failure`]; what went to `out` is cut short then, and does not open.
pub fn encrypt(order: &Order, mut plain: impl Read, out: impl Write) -> Result<(), Failure> {
    let mut writer = Seal::ordered(order)?.writer(out)?;
    std::io::copy(&mut plain, &mut writer).map_err(Failure::io("sealing the stream"))?;
    writer.finish().map_err(Failure::io("sealing the stream"))?;
    Ok(())
}

/// Opens a sealed stream of any length. What went to `out` before a failure was authentic, and is not all.
///
/// # Errors
/// Any [`Failure`].
pub fn decrypt(order: &Order, sealed: impl Read, mut out: impl Write) -> Result<(), Failure> {
    let mut content = envelope::open(sealed, &order.secret)?.content;
    std::io::copy(&mut content, &mut out).map_err(|source| match source.kind() {
        // What age says of a chunk that does not authenticate, or that is missing.
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => Failure::Damaged,
        _ => Failure::LocalIo { what: "opening the stream", source },
    })?;
    Ok(())
}

fn read_keystore(order: &Order, file: impl Read) -> Result<(Keystore, About, Seal), Failure> {
    read_with(&order.secret, file)
}

fn read_with(secret: &[u8], file: impl Read) -> Result<(Keystore, About, Seal), Failure> {
    let sealed = read_capped(file, KEYSTORE_BYTES, "reading the file")?.ok_or(Failure::Damaged)?;
    Keystore::open(&sealed, secret)
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
#[path = "unseal/tests.rs"]
mod tests;
