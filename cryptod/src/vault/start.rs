//! What the vault needs before it can serve: the secrets from the unsealer's pipe, and its state from the file.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;

use rand_chacha::ChaCha20Rng;
use zeroize::Zeroizing;

use super::Vault;
use super::quota::Rates;
use super::serve::clock;
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

/// Opens the vault on its secrets and the state in `file`; an empty file is a new node's.
///
/// # Errors
/// As [`State::load`] and [`Vault::open`].
pub fn open(secrets: &mut [u8; SECRETS_BYTES], file: &File, random: &mut ChaCha20Rng) -> Result<Vault> {
    let keyring = Keyring::from_secrets(secrets);
    let state = State::load(&keyring.state, &mut |offset, buffer| read_at(file, offset, buffer))?;
    Vault::open(keyring, state, &Rates::default(), clock(), random)
}

/// Fills `buffer`; past the end of the file it is zeros, as the state's loader wants.
fn read_at(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
    buffer.fill(0);
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                offset += count as u64;
                buffer = &mut buffer[count..];
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Error::LocalStateUnreadable),
        }
    }
    Ok(())
}
