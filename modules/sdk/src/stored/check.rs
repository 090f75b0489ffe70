//! The hash of a body while it comes.

use blake3::Hasher;
use blake3::hazmat::HasherExt as _;

use super::{Blake3, StoreError, StoreInto};

/// Hashes a body as it comes, and says in the end whether it is the one that was named.
#[derive(Debug)]
pub struct Check {
    hasher: Hasher,
    expected: Blake3,
    left: u64,
}

impl Check {
    /// # Errors
    /// [`StoreError::BadRange`] for what no body can be.
    pub fn new(into: &StoreInto) -> Result<Self, StoreError> {
        into.check()?;
        let mut hasher = Hasher::new();
        if let Blake3::Subtree { at, .. } = into.hash {
            // A multiple of a chunk, as it was found above.
            hasher.set_input_offset(at);
        }
        Ok(Self { hasher, expected: into.hash, left: into.length })
    }

    /// Takes the next bytes. What is beyond the length that was named is not looked at: whoever reads the body has to.
    pub fn update(&mut self, bytes: &[u8]) {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        // BLAKE3 panics on a subtree that is too long; this is at most the length that was found to fit.
        self.hasher.update(&bytes[..most]);
        self.left -= most as u64;
    }

    /// Whether all of it came, with its hash.
    pub(super) fn holds(&self) -> bool {
        self.left == 0
            && match self.expected {
                Blake3::Whole(hash) => self.hasher.finalize() == hash,
                Blake3::Subtree { value, .. } => self.hasher.finalize_non_root() == value,
            }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::host::BlobName;

    fn into(length: u64, hash: Blake3) -> StoreInto {
        StoreInto { blob: BlobName::new("a").unwrap(), offset: 0, length, hash }
    }

    fn holds(into: &StoreInto, bytes: &[u8]) -> bool {
        let mut check = Check::new(into).unwrap();
        bytes.chunks(777).for_each(|part| check.update(part));
        check.holds()
    }

    #[test]
    fn a_whole_input_and_each_subtree_prove_themselves_and_nothing_else() {
        let bytes: Vec<u8> = (0..5000_u32).flat_map(u32::to_le_bytes).collect();
        let whole = into(bytes.len() as u64, Blake3::Whole(*blake3::hash(&bytes).as_bytes()));
        assert!(holds(&whole, &bytes));
        assert!(!holds(&whole, &bytes[1..]) && !holds(&whole, &[]));
        let mut wrong = bytes.clone();
        wrong[4999] ^= 1;
        assert!(!holds(&whole, &wrong));
        let part = &bytes[4096..8192];
        let value = Hasher::new().set_input_offset(4096).update(part).finalize_non_root();
        assert!(holds(&into(4096, Blake3::Subtree { value, at: 4096 }), part));
        assert!(!holds(&into(4096, Blake3::Subtree { value, at: 8192 }), part), "at another place");
        assert!(!holds(&into(4096, Blake3::Whole(value)), part));
        assert!(holds(&into(0, Blake3::Whole(*blake3::hash(b"").as_bytes())), b""));
    }

    #[test]
    fn what_no_subtree_is_is_refused_before_a_byte() {
        let subtree = |length, at| into(length, Blake3::Subtree { value: [0; 32], at }).check();
        for (length, at) in [(0, 0), (0, 1024), (1, 1), (1, 1023), (1025, 1024), (2049, 2048), (1 << 40, 1 << 39)] {
            assert_eq!(subtree(length, at), Err(StoreError::BadRange), "{length} at {at}");
        }
        for (length, at) in [(1, 0), (u64::MAX, 0), (1024, 1024), (1, 3072), (2048, 2048), (1 << 39, 1 << 39)] {
            assert_eq!(subtree(length, at), Ok(()), "{length} at {at}");
            assert!(!Check::new(&into(length, Blake3::Subtree { value: [0; 32], at })).unwrap().holds());
        }
        let far = StoreInto { offset: u64::MAX, ..into(1, Blake3::Whole([0; 32])) };
        assert_eq!(far.check(), Err(StoreError::BadRange));
    }
}
