//! What the vault needs before it can serve: the secrets from the unsealer's pipe, its state and its trail from their files.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;

use rand_chacha::ChaCha20Rng;
use zeroize::Zeroizing;

use super::Vault;
use super::quota::Rates;
use super::serve::{Files, clock};
use crate::audit::open::Opening;
use crate::audit::{Trail, subject};
use crate::error::{Error, Result};
use crate::keyring::{DESCENT_BYTES, Descent, Keyring, SECRETS_BYTES};
use crate::state::State;

/// Reads the secrets, and the identity's descent behind them, to the pipe's end.
///
/// # Errors
/// When fewer or more come; the unsealer says why on its own.
pub fn read_secrets(mut pipe: impl Read) -> std::io::Result<(Zeroizing<[u8; SECRETS_BYTES]>, Descent)> {
    let mut secrets = Zeroizing::new([0; SECRETS_BYTES]);
    pipe.read_exact(&mut *secrets)?;
    let mut descent = Vec::with_capacity(DESCENT_BYTES + 1);
    pipe.take(DESCENT_BYTES as u64 + 1).read_to_end(&mut descent)?;
    let descent = Some(descent).filter(|bytes| bytes.len() <= DESCENT_BYTES);
    let descent = descent.and_then(|bytes| Descent::decode(&bytes).ok());
    Ok((secrets, descent.ok_or(ErrorKind::InvalidData)?))
}

/// What the operator says to the vault through the supervisor, one argument a word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// He has given the trail up that was there.
    pub anew: bool,
    /// The quotas.
    pub rates: Rates,
}

impl Orders {
    /// From the program's arguments; none for a word that is not known.
    pub fn from_arguments(arguments: impl IntoIterator<Item = String>) -> Option<Self> {
        arguments.into_iter().try_fold(Self::default(), |orders, word| match word.split_once('=') {
            Some(("signatures", number)) => {
                Some(Self { rates: orders.rates.with_signatures(number.parse().ok()?)?, ..orders })
            }
            None if word == "audit-anew" => Some(Self { anew: true, ..orders }),
            _ => None,
        })
    }
}

/// Opens the vault on its secrets, the state and the audit trail in `files`; empty files are a new node's.
///
/// # Errors
/// As [`State::load`], [`Trail::open`] and [`Vault::open`].
pub fn open(
    secrets: &mut [u8; SECRETS_BYTES],
    descent: &Descent,
    files: &Files,
    orders: &Orders,
    random: &mut ChaCha20Rng,
) -> Result<Vault> {
    let (keyring, now) = (Keyring::descended(secrets, descent)?, clock());
    let state = State::load(&keyring.state, &mut |offset, buffer| {
        read_at(&files.state, offset, buffer).map_err(|_| Error::LocalStateUnreadable)
    })?;
    // A trail belongs to one identity: the beginning of a new one's says whom it goes on for, or whose succession it took back.
    let earlier = keyring.lineage.earlier();
    let taken = earlier.last().map(|other| subject(&keyring.audit, other));
    let opening = Opening {
        identity: &keyring.identity,
        head: state.audit_head(),
        anew: orders.anew,
        earlier: &earlier,
        taken,
        now,
    };
    let trail = Trail::open(opening, &mut |file, offset, buffer| {
        read_at(&files.trail[file], offset, buffer).map_err(|_| Error::LocalAuditUnreadable)
    })?;
    Vault::open(keyring, state, trail, &orders.rates, now, random)
}

/// Fills `buffer`; past the end of the file it is zeros, as the state's loader wants.
fn read_at(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> std::io::Result<()> {
    buffer.fill(0);
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                offset += count as u64;
                buffer = &mut buffer[count..];
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn orders_are_words_that_are_known() {
        let orders = |words: &[&str]| Orders::from_arguments(words.iter().map(|word| (*word).to_owned()));
        assert_eq!(orders(&[]), Some(Orders::default()));
        let given = orders(&["signatures=500", "audit-anew"]).unwrap();
        assert!(given.anew);
        assert_eq!(Some(given.rates), Rates::default().with_signatures(500));
        for unknown in ["audit-anew=1", "signatures", "signatures=", "signatures=-1", "signatures=0", "offers=9", ""] {
            assert_eq!(orders(&[unknown]), None, "{unknown}");
        }
    }
}
