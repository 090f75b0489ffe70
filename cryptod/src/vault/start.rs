//! What the vault needs before it can serve: the secrets from the unsealer's pipe, its state and its trail from their files.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;

use rand_chacha::ChaCha20Rng;
use zeroize::Zeroizing;

use super::Vault;
use super::quota::Rates;
use super::serve::{Files, clock};
use crate::audit::Trail;
use crate::audit::open::Opening;
use crate::error::{Error, Result};
use crate::keyring::{Keyring, SECRETS_BYTES};
use crate::state::State;

/// Reads the secrets to the pipe's end: exactly as many bytes as there are secrets.
///
/// # Errors
/// When fewer or more come; the unsealer says why on its own.
pub fn read_secrets(mut pipe: File) -> std::io::Result<Zeroizing<[u8; SECRETS_BYTES]>> {
    let mut secrets = Zeroizing::new([0; SECRETS_BYTES]);
    pipe.read_exact(&mut *secrets)?;
    if pipe.read(&mut [0])? != 0 {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(secrets)
}

/// Opens the vault on its secrets, the state and the audit trail in `files`; empty files are a new node's. `anew`: the operator has
/// given the trail up that was there.
///
/// # Errors
/// As [`State::load`], [`Trail::open`] and [`Vault::open`].
pub fn open(secrets: &mut [u8; SECRETS_BYTES], files: &Files, anew: bool, random: &mut ChaCha20Rng) -> Result<Vault> {
    let (keyring, now) = (Keyring::from_secrets(secrets), clock());
    let state = State::load(&keyring.state, &mut |offset, buffer| {
        read_at(&files.state, offset, buffer).map_err(|_| Error::LocalStateUnreadable)
    })?;
    let opening = Opening { identity: &keyring.identity, head: state.audit_head(), anew, now };
    let trail = Trail::open(opening, &mut |file, offset, buffer| {
        read_at(&files.trail[file], offset, buffer).map_err(|_| Error::LocalAuditUnreadable)
    })?;
    Vault::open(keyring, state, trail, &Rates::default(), now, random)
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
