//! Pieces and hashes. A file is its content's BLAKE3 hash; BLAKE3 is a tree, so the hashes of aligned pieces (its subtrees'
//! chaining values) prove each piece alone, and combine to the file's hash without the content.
//!
//! Pure arithmetic: no I/O. Soundness rests on BLAKE3's own tree mode (`blake3::hazmat`): a list of piece hashes that
//! combines to the id under the right length is the only one there is, and so is a piece with its hash.

use std::fmt;
use std::str::FromStr;

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

/// Bytes in a piece: a power of two, so that a piece is a subtree. One request moves one piece: large enough that its
/// fixed cost vanishes, small enough that what a broken connection loses is little.
pub const PIECE: u64 = 4 * 1024 * 1024;
/// Longest file: 1 TiB, whose 262,144 piece hashes are 8 MiB.
pub const FILE_LIMIT: u64 = 1 << 40;
/// Bytes of a hash.
pub(crate) const HASH: usize = 32;

/// The hash of one piece.
pub(crate) type PieceHash = [u8; HASH];

/// A file's name for machines: the BLAKE3 hash of its content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileId([u8; HASH]);

/// Text that is no file id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a file id: 64 hexadecimal digits in lower case")]
pub struct BadFileId;

impl FileId {
    /// From the hash.
    #[must_use]
    pub fn from_bytes(bytes: [u8; HASH]) -> Self {
        Self(bytes)
    }

    /// The hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; HASH] {
        &self.0
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileId({}…)", &hex::encode(self.0)[..8])
    }
}

impl FromStr for FileId {
    type Err = BadFileId;

    /// One spelling only, so that an id is one row and one blob.
    fn from_str(text: &str) -> Result<Self, BadFileId> {
        let mut bytes = [0; HASH];
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(BadFileId);
        }
        hex::decode_to_slice(text, &mut bytes).map_err(|_| BadFileId)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for FileId {
    type Error = BadFileId;

    fn try_from(text: String) -> Result<Self, BadFileId> {
        text.parse()
    }
}

impl From<FileId> for String {
    fn from(id: FileId) -> Self {
        id.to_string()
    }
}

/// How a length is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    length: u64,
}

impl Layout {
    /// `None` beyond [`FILE_LIMIT`].
    pub(crate) fn new(length: u64) -> Option<Self> {
        (length <= FILE_LIMIT).then_some(Self { length })
    }

    pub(crate) fn length(self) -> u64 {
        self.length
    }

    /// At least one: an empty file is one empty piece.
    pub(crate) fn count(self) -> usize {
        usize::try_from(self.length.div_ceil(PIECE).max(1)).expect("at most FILE_LIMIT / PIECE")
    }

    /// Where a piece begins, and how long it is.
    pub(crate) fn piece(self, index: usize) -> (u64, u64) {
        let from = index as u64 * PIECE;
        (from, PIECE.min(self.length.saturating_sub(from)))
    }

    /// A hasher for one piece.
    pub(crate) fn hasher(self, index: usize) -> PieceHasher {
        PieceHasher::new(index as u64 * PIECE, self.count() == 1)
    }

    /// Whether these hashes are those of the file.
    pub(crate) fn proves(self, pieces: &[PieceHash], id: &FileId) -> bool {
        pieces.len() == self.count() && root(pieces) == id.0
    }
}

/// Hashes one piece as it arrives.
pub(crate) struct PieceHasher {
    hasher: Hasher,
    whole_file: bool,
}

impl PieceHasher {
    fn new(offset: u64, whole_file: bool) -> Self {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(offset);
        Self { hasher, whole_file }
    }

    /// The caller must not pass more than the piece: BLAKE3 panics on a subtree that is too long.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    pub(crate) fn finish(self) -> PieceHash {
        // The hash of a whole file is finished differently from that of a part of one.
        if self.whole_file { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() }
    }
}

/// The file's hash out of its pieces'. A list of one holds the file's hash itself.
fn root(pieces: &[PieceHash]) -> PieceHash {
    match split(pieces) {
        None => pieces.first().copied().unwrap_or_default(),
        Some((left, right)) => *merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes(),
    }
}

fn merge(pieces: &[PieceHash]) -> PieceHash {
    match split(pieces) {
        None => pieces.first().copied().unwrap_or_default(),
        Some((left, right)) => merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash),
    }
}

/// The left subtree is the largest power of two that leaves something for the right (BLAKE3 paper §2.1).
fn split(pieces: &[PieceHash]) -> Option<(&[PieceHash], &[PieceHash])> {
    (pieces.len() > 1).then(|| pieces.split_at(pieces.len().next_power_of_two() / 2))
}

/// Hashes a file of unknown length as it arrives, and keeps its pieces' hashes.
pub(crate) struct FileHasher {
    pieces: Vec<PieceHash>,
    current: Hasher,
    in_current: u64,
}

impl FileHasher {
    pub(crate) fn new() -> Self {
        Self { pieces: Vec::new(), current: Hasher::new(), in_current: 0 }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.in_current == PIECE {
                // Only now is it sure that this piece is not the whole file.
                self.pieces.push(self.current.finalize_non_root());
                self.current = Hasher::new();
                self.current.set_input_offset(self.pieces.len() as u64 * PIECE);
                self.in_current = 0;
            }
            let room = usize::try_from(PIECE - self.in_current).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.current.update(now);
            self.in_current += now.len() as u64;
            bytes = later;
        }
    }

    /// The file's id and its pieces' hashes.
    pub(crate) fn finish(mut self) -> (FileId, Vec<PieceHash>) {
        let whole_file = self.pieces.is_empty();
        let last = PieceHasher { hasher: self.current, whole_file }.finish();
        self.pieces.push(last);
        (FileId(root(&self.pieces)), self.pieces)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 256).unwrap()).collect()
    }

    fn hashed(bytes: &[u8], step: usize) -> (FileId, Vec<PieceHash>) {
        let mut hasher = FileHasher::new();
        bytes.chunks(step.max(1)).for_each(|chunk| hasher.update(chunk));
        hasher.finish()
    }

    #[test]
    fn the_id_is_the_blake3_hash_and_each_piece_proves_itself() {
        let piece = usize::try_from(PIECE).unwrap();
        for length in [0, 1, 1024, piece - 1, piece, piece + 1, 2 * piece, 3 * piece + 7, 5 * piece] {
            let bytes = content(length);
            let (id, pieces) = hashed(&bytes, 1_000_003);
            assert_eq!(id.as_bytes(), blake3::hash(&bytes).as_bytes(), "{length} bytes");
            let layout = Layout::new(length as u64).unwrap();
            assert!(layout.proves(&pieces, &id));
            for (index, hash) in pieces.iter().enumerate() {
                let (from, size) = layout.piece(index);
                let (from, size) = (usize::try_from(from).unwrap(), usize::try_from(size).unwrap());
                let mut hasher = layout.hasher(index);
                hasher.update(&bytes[from..from + size]);
                assert_eq!(hasher.finish(), *hash, "piece {index} of {length} bytes");
            }
        }
    }

    #[test]
    fn wrong_lists_prove_nothing() {
        let bytes = content(usize::try_from(3 * PIECE).unwrap());
        let (id, pieces) = hashed(&bytes, 65_536);
        let layout = Layout::new(3 * PIECE).unwrap();
        for index in 0..3 {
            let mut wrong = pieces.clone();
            wrong[index][7] ^= 1;
            assert!(!layout.proves(&wrong, &id));
        }
        let mut swapped = pieces.clone();
        swapped.swap(0, 1);
        assert!(!layout.proves(&swapped, &id));
        assert!(!layout.proves(&pieces[..2], &id));
        assert!(!layout.proves(&[], &id));
        // The inner node (pieces 0 and 1 merged) is no piece: a list of two that combines to the same root has the wrong count.
        let merged = [merge(&pieces[..2]), pieces[2]];
        assert_eq!(root(&merged), *id.as_bytes());
        assert!(!layout.proves(&merged, &id));
        // Under a length that fits the count, the list proves; the pieces themselves then fail. See the transfer tests.
        assert!(Layout::new(2 * PIECE).unwrap().proves(&merged, &id));
    }

    #[test]
    fn a_length_beyond_the_limit_has_no_layout() {
        assert!(Layout::new(FILE_LIMIT).is_some());
        assert!(Layout::new(FILE_LIMIT + 1).is_none());
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(length in 0_usize..200_000, step in 1_usize..70_000) {
            let bytes = content(length);
            prop_assert_eq!(hashed(&bytes, step).0, FileId(*blake3::hash(&bytes).as_bytes()));
        }

        #[test]
        fn ids_are_read_as_written_and_in_one_spelling(bytes in any::<[u8; 32]>()) {
            let id = FileId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().parse::<FileId>().unwrap(), id);
            let upper = id.to_string().to_uppercase();
            prop_assert_eq!(upper.parse::<FileId>().is_ok(), upper.bytes().all(|byte| byte.is_ascii_digit()));
        }

        #[test]
        fn other_text_is_no_id(text in ".{0,80}") {
            prop_assume!(!(text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())));
            prop_assert!(text.parse::<FileId>().is_err());
        }
    }
}
