//! What tests share: a seeded generator, a fixed time, and a generator that plays back given bytes.
#![allow(clippy::unwrap_used, reason = "tests")]

use openred_proto::id::UnixMillis;
use rand_chacha::ChaCha20Rng;
use rand_core::{SeedableRng, TryCryptoRng, TryRng};

/// A time in 2026.
pub(crate) const NOW: UnixMillis = UnixMillis(1_780_000_000_000);

/// The same numbers for the same `seed`.
pub(crate) fn random(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// Plays back the bytes that a vector's author drew.
pub(crate) struct Playback(pub(crate) Vec<u8>);

impl TryRng for Playback {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        out.copy_from_slice(&self.0.drain(..out.len()).collect::<Vec<_>>());
        Ok(())
    }
}

impl TryCryptoRng for Playback {}
