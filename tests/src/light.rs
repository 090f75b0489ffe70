//! Keystores that open at once. scrypt is meant to be slow, and nearly every start of a test's node would wait for it. No program seals so
//! weakly, so it is done here with the `age` library alone: a file that was sealed to a recipient is opened and sealed to a passphrase.

use std::io::{Read as _, Write as _};

use age::{scrypt, x25519};
use anyhow::{Context as _, Result};

/// Base-2 logarithm of scrypt's cost: next to nothing.
const WORK: u8 = 2;

/// A keystore that was sealed to this identity alone, sealed to a passphrase.
///
/// # Errors
/// It does not open, or does not name the identity's recipient.
pub fn to_passphrase(sealed: &[u8], identity: &x25519::Identity, passphrase: &str) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    age::Decryptor::new(sealed)?.decrypt(std::iter::once(identity as _))?.read_to_end(&mut content)?;
    // The recipient stands in it as the sixth field, which is one of texts. Behind a passphrase there is none.
    let recipient = identity.to_public().to_string();
    let head = [(6 << 3) | 2, u8::try_from(recipient.len())?];
    let entry = [&head[..], recipient.as_bytes()].concat();
    let at = content.windows(entry.len()).position(|piece| piece == entry).context("its recipient is not in it")?;
    content.drain(at..at + entry.len());

    let mut recipient = scrypt::Recipient::new(passphrase.to_owned().into());
    recipient.set_work_factor(WORK);
    let mut sealed = Vec::new();
    let mut writer = age::Encryptor::with_recipients(std::iter::once(&recipient as _))?.wrap_output(&mut sealed)?;
    writer.write_all(&content)?;
    writer.finish()?;
    Ok(sealed)
}
