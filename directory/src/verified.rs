//! Cards whose signatures were verified here, by the hashes of their bytes: a node announces the same card for days, and a signature that
//! held once holds again. Bounded: two generations, of which the older is forgotten when the younger is full; then a card is verified anew.
//!
//! Only the signature is known by this. Time, sequence, lineage and admission are judged each time.

use std::collections::HashSet;

use openred_proto::checked::card::Card;
use openred_proto::error::WireError;
use openred_proto::id::UnixMillis;
use sha2::{Digest as _, Sha256};

/// Half of the hash: whoever finds two cards that share it has made both, and has signed neither for somebody else.
type Name = [u8; 16];

/// Cards of a generation: with 17 bytes each, and room to grow, 36 MB for both when a million nodes announce themselves.
const GENERATION: usize = 524_288;

/// Cards that were verified.
#[derive(Debug, Default)]
pub struct Verified {
    young: HashSet<Name>,
    old: HashSet<Name>,
}

/// What a card is known by.
#[must_use]
pub fn name(card: &[u8]) -> Name {
    let mut name = [0; 16];
    name.copy_from_slice(&Sha256::digest(card)[..16]);
    name
}

impl Verified {
    /// Whether it is known.
    #[must_use]
    pub fn has(&self, name: &Name) -> bool {
        self.young.contains(name) || self.old.contains(name)
    }

    /// It was verified now.
    pub fn add(&mut self, name: Name) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name);
    }
}

/// A card of these bytes; `known` says whether their signature was verified before.
///
/// # Errors
/// As [`Card::verify`].
pub fn verify(bytes: &[u8], now: UnixMillis, known: bool) -> Result<Card, WireError> {
    if known { Card::dangerously_verified_before(bytes, now) } else { Card::verify(bytes, now) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_verified_is_known_until_a_generation_came_after_it() {
        let mut verified = Verified::default();
        let card = |number: usize| name(&number.to_be_bytes());
        assert!(!verified.has(&card(0)));
        for number in 0..=GENERATION {
            verified.add(card(number));
        }
        assert!(verified.has(&card(0)) && verified.has(&card(GENERATION)));
        for number in 1..=GENERATION {
            verified.add(card(GENERATION + number));
        }
        assert!(!verified.has(&card(0)) && verified.has(&card(GENERATION)));
        assert!(verified.young.len() + verified.old.len() <= 2 * GENERATION);
    }
}
