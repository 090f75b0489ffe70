//! The Merkle tree of RFC 6962 (the same as RFC 9162): hashing, growth, proofs and their verification.
//!
//! What grows it keeps the hash of each complete subtree, at a [`position`] that never changes, so that a proof can be made for
//! any earlier size as well; whoever verifies needs the proof and the heads alone.

use sha2::{Digest as _, Sha256};

use super::{Hash, LOG_ENTRIES, PROOF_HASHES};
use crate::error::{Result, WireError};

const INCLUSION: &str = "inclusion proof";
const CONSISTENCY: &str = "consistency proof";

/// Hash of the leaf that holds an entry (RFC 6962 §2.1).
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

/// Hash of an inner node.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Root of the tree without entries.
#[must_use]
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// Where the hash of a complete subtree is kept: of the one of 2^`level` leaves that has `index` of its size to its left. Hashes stand
/// in the order in which they become known, so what is kept only grows at its end.
#[must_use]
pub const fn position(level: u32, index: u64) -> u64 {
    // The subtree's last leaf, and the hashes that were known before that one.
    let last = ((index + 1) << level) - 1;
    2 * last - last.count_ones() as u64 + level as u64
}

/// Hashes that a log of `size` entries keeps.
#[must_use]
pub const fn kept(size: u64) -> u64 {
    2 * size - size.count_ones() as u64
}

/// The complete subtrees that a log consists of, largest first: all that growing it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    hashes: Vec<Hash>,
}

impl Frontier {
    /// Of a log of `size` entries, whose kept hashes `read` gives by their position.
    ///
    /// # Errors
    /// What `read` fails with.
    pub fn load<E>(
        size: u64,
        mut read: impl FnMut(u64) -> std::result::Result<Hash, E>,
    ) -> std::result::Result<Self, E> {
        let levels = (0..u64::BITS).rev().filter(|level| size >> level & 1 == 1);
        let hashes =
            levels.map(|level| read(position(level, (size >> level) - 1))).collect::<std::result::Result<_, E>>()?;
        Ok(Self { size, hashes })
    }

    /// Entries.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds an entry; gives the hashes to keep, from position [`kept`] of the size before on.
    pub fn append(&mut self, entry: &[u8]) -> Vec<Hash> {
        self.append_leaf(leaf_hash(entry))
    }

    /// The same for an entry of which the leaf's hash is known.
    pub fn append_leaf(&mut self, mut hash: Hash) -> Vec<Hash> {
        let mut new = vec![hash];
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.hashes.pop() {
                hash = node_hash(&left, &hash);
                new.push(hash);
            }
        }
        self.hashes.push(hash);
        self.size += 1;
        new
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> Hash {
        let root = self.hashes.iter().rev().copied().reduce(|right, left| node_hash(&left, &right));
        root.unwrap_or_else(empty_root)
    }
}

/// The largest power of two below `size`, which is at least 2.
const fn split(size: u64) -> u64 {
    1 << (u64::BITS - 1 - (size - 1).leading_zeros())
}

/// Hash of the leaves from `from` to below `to`, a subtree as the definition of the root splits them.
fn subtree<E>(
    from: u64,
    to: u64,
    read: &mut impl FnMut(u64) -> std::result::Result<Hash, E>,
) -> std::result::Result<Hash, E> {
    let size = to - from;
    if size.is_power_of_two() {
        let level = size.trailing_zeros();
        return read(position(level, from >> level));
    }
    let middle = from + split(size);
    Ok(node_hash(&subtree(from, middle, read)?, &subtree(middle, to, read)?))
}

/// The root of the first `size` entries.
///
/// # Errors
/// What `read` fails with.
pub fn root<E>(size: u64, mut read: impl FnMut(u64) -> std::result::Result<Hash, E>) -> std::result::Result<Hash, E> {
    if size == 0 { Ok(empty_root()) } else { subtree(0, size, &mut read) }
}

/// Proof that entry `index` is one of the first `size` (RFC 6962 §2.1.1); `index` is below `size`.
///
/// # Errors
/// What `read` fails with.
pub fn prove_inclusion<E>(
    index: u64,
    size: u64,
    mut read: impl FnMut(u64) -> std::result::Result<Hash, E>,
) -> std::result::Result<Vec<Hash>, E> {
    let (mut from, mut to) = (0, size);
    let mut proof = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            proof.push(subtree(middle, to, &mut read)?);
            to = middle;
        } else {
            proof.push(subtree(from, middle, &mut read)?);
            from = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Proof that the first `old` entries are the beginning of the first `new` (RFC 6962 §2.1.2); `old` is at most `new`. Empty where there is
/// nothing to prove: nothing before, or the same size.
///
/// # Errors
/// What `read` fails with.
pub fn prove_consistency<E>(
    old: u64,
    new: u64,
    mut read: impl FnMut(u64) -> std::result::Result<Hash, E>,
) -> std::result::Result<Vec<Hash>, E> {
    if old == 0 || old == new {
        return Ok(Vec::new());
    }
    let (mut from, mut to) = (0, new);
    let mut proof = Vec::new();
    // Down to the subtree that ends where the old tree ends.
    while old != to {
        let middle = from + split(to - from);
        if old <= middle {
            proof.push(subtree(middle, to, &mut read)?);
            to = middle;
        } else {
            proof.push(subtree(from, middle, &mut read)?);
            from = middle;
        }
    }
    // Whoever has the old root knows this one already when it is the whole old tree.
    if from > 0 {
        proof.push(subtree(from, to, &mut read)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Checks that `leaf` is entry `index` of the tree of `size` entries with this `root` (RFC 9162 §2.1.3.2).
///
/// # Errors
/// [`WireError::TooLong`], or malformed: out of the tree, of the wrong length, or leading elsewhere.
pub fn verify_inclusion(index: u64, size: u64, leaf: &Hash, proof: &[Hash], root: &Hash) -> Result<()> {
    bounded(INCLUSION, size, proof)?;
    if index >= size {
        return Err(malformed(INCLUSION, "beyond the end of the log"));
    }
    let (mut place, mut last, mut hash) = (index, size - 1, *leaf);
    for step in proof {
        if last == 0 {
            return Err(malformed(INCLUSION, "too many hashes"));
        }
        if place & 1 == 1 || place == last {
            hash = node_hash(step, &hash);
            // A right edge that stands alone has no sibling on these levels.
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, step);
        }
        place >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(malformed(INCLUSION, "too few hashes"));
    }
    if hash == *root { Ok(()) } else { Err(malformed(INCLUSION, "leads to another root")) }
}

/// Checks that the tree of `old` entries with `old_root` is the beginning of that of `new` entries with `new_root` (RFC 9162 §2.1.4.2).
///
/// # Errors
/// As [`verify_inclusion`].
pub fn verify_consistency(old: u64, new: u64, old_root: &Hash, new_root: &Hash, proof: &[Hash]) -> Result<()> {
    bounded(CONSISTENCY, new, proof)?;
    if old > new {
        return Err(malformed(CONSISTENCY, "the older tree is the larger one"));
    }
    if old == 0 || old == new {
        // Nothing before a log says nothing of what came.
        let same = (old != 0 || *old_root == empty_root()) && (old != new || old_root == new_root);
        return match (proof.is_empty(), same) {
            (false, _) => Err(malformed(CONSISTENCY, "too many hashes")),
            (true, false) => Err(malformed(CONSISTENCY, "leads to another root")),
            (true, true) => Ok(()),
        };
    }
    // A whole subtree is its own first hash, which the proof then leaves out.
    let (first, steps) = if old.is_power_of_two() {
        (old_root, proof)
    } else {
        proof.split_first().ok_or_else(|| malformed(CONSISTENCY, "too few hashes"))?
    };
    let (mut place, mut last) = (old - 1, new - 1);
    let shift = place.trailing_ones();
    (place, last) = (place >> shift, last >> shift);
    let (mut before, mut after) = (*first, *first);
    for step in steps {
        if last == 0 {
            return Err(malformed(CONSISTENCY, "too many hashes"));
        }
        if place & 1 == 1 || place == last {
            before = node_hash(step, &before);
            after = node_hash(step, &after);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            after = node_hash(&after, step);
        }
        place >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(malformed(CONSISTENCY, "too few hashes"));
    }
    if before == *old_root && after == *new_root {
        Ok(())
    } else {
        Err(malformed(CONSISTENCY, "leads to another root"))
    }
}

fn bounded(what: &'static str, size: u64, proof: &[Hash]) -> Result<()> {
    if proof.len() > PROOF_HASHES {
        return Err(WireError::TooLong { what, limit: PROOF_HASHES });
    }
    if size > LOG_ENTRIES { Err(malformed(what, "of a log that is too long")) } else { Ok(()) }
}

const fn malformed(what: &'static str, why: &'static str) -> WireError {
    WireError::Malformed { what, why }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
