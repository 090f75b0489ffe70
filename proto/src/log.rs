//! A directory's log of cards (docs/protocol.md section 7): what its entries are, the Merkle tree over them (`tree`), its signed heads
//! (`head`), and the list of heads that nodes hand each other (`heads`). Directory and nodes use the same code, the directory to prove
//! and the nodes to check. Sans-IO: hashes are read through a function that the caller passes.

pub mod head;
pub mod heads;
pub mod tree;

use sha2::{Digest as _, Sha256};

use crate::concat::concat;

/// A hash of the tree, a root or an entry.
pub type Hash = [u8; 32];
/// The salt of an unlisted node's entry.
pub type Salt = [u8; 16];

/// Hashes of one proof: a tree of 2^62 entries has no longer one.
pub const PROOF_HASHES: usize = 64;
/// Entries of one log: their number fits every integer that it meets.
pub const LOG_ENTRIES: u64 = 1 << 62;

/// What the log says of a card. A listed node's is the card's hash. An unlisted node's is salted: whoever reads the log and has seen the
/// card elsewhere does not find it there, unless the directory hands him the salt beside the card. The two cannot be taken for each
/// other: a card begins with 0x0a, a concatenation with the length of its first part.
#[must_use]
pub fn entry(card: &[u8], salt: Option<&Salt>) -> Hash {
    match salt {
        None => Sha256::digest(card).into(),
        Some(salt) => Sha256::digest(concat(&[salt, card])).into(),
    }
}
