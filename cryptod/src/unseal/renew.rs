//! A restored node's state: what was sealed before the restore opens no more, and its short-term keys are drawn anew.
//!
//! The whole image is read, changed in memory and written out as a new one; the caller puts it in place.

use std::io::{Read, Write};

use openred_proto::secret::Secret;
use openred_proto::unseal::{About, Order};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::{Failure, read_capped, read_keystore};
use crate::error::Result as StateResult;
use crate::keyring::Keyring;
use crate::state::State;
use crate::state::image::{FILE_BYTES, StateWrite};

/// Writes the state of `state` with a later sealing epoch, without prekeys and static keys: the vault makes new ones. An
/// empty state stays empty.
///
/// # Errors
/// Any [`Failure`]; [`Failure::State`] for a state that this keystore does not open.
pub fn renew(
    random: &mut impl CryptoRng,
    order: &Order,
    keystore: impl Read,
    state: impl Read,
    mut out: impl Write,
) -> Result<About, Failure> {
    let (keystore, about, _) = read_keystore(order, keystore)?;
    let cap = usize::try_from(FILE_BYTES).expect("a few MiB");
    let image = read_capped(state, cap, "reading the vault's state")?.ok_or(Failure::Damaged)?;
    let descent = keystore.descent();
    let keyring = Keyring::descended(&mut keystore.into_secrets(), &descent).map_err(|_| Failure::Damaged)?;
    if image.iter().all(|byte| *byte == 0) {
        return Ok(about);
    }
    let mut state = load(&keyring.state, &image).map_err(Failure::State)?;
    state.begin_epoch(order.now);
    let mut image = Zeroizing::new(image.to_vec());
    let writes = state.commit(&keyring.state, random).map_err(Failure::State)?;
    apply(&mut image, &writes);
    // The header of the earlier commit, with the keys that were dropped, goes too.
    state.touch_node();
    let writes = state.commit(&keyring.state, random).map_err(Failure::State)?;
    apply(&mut image, &writes);
    out.write_all(&image).map_err(Failure::io("writing the vault's state"))?;
    Ok(about)
}

pub(super) fn load(key: &Secret<32>, image: &[u8]) -> StateResult<State> {
    State::load(key, &mut |offset, buffer| {
        buffer.fill(0);
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(image.len());
        let count = buffer.len().min(image.len() - from);
        buffer[..count].copy_from_slice(&image[from..from + count]);
        Ok(())
    })
}

pub(super) fn apply(image: &mut Vec<u8>, writes: &[StateWrite]) {
    for write in writes {
        let from = usize::try_from(write.offset).expect("within a file of a few MiB");
        let end = from + write.bytes.len();
        if image.len() < end {
            image.resize(end, 0);
        }
        image[from..end].copy_from_slice(&write.bytes);
    }
}
