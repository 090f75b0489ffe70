//! The walk over the whole log (`directory log verify`, `db check`), whatever keeps it: every hash in the order of its position, then every card.

use openred_proto::id::NodeId;
use openred_proto::log::tree::{self, Frontier, kept, position};
use openred_proto::log::{Hash, Salt, entry};

use super::LogEnd;
use crate::error::Result;

/// What the walk over a log found in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// How far the log goes.
    pub end: LogEnd,
    /// Cards that were found in it.
    pub cards: u64,
}

/// The first thing that is not as it has to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A hash is not there.
    #[error("entry {index}: the hash at position {position} is missing")]
    Missing {
        /// With which entry it became known.
        index: u64,
        /// Its position.
        position: u64,
    },
    /// A hash is not that of the subtree below it.
    #[error("entry {index}: the hash of the 2^{level} entries that end with it is another than theirs")]
    Changed {
        /// The subtree's last entry.
        index: u64,
        /// Its level.
        level: u32,
    },
    /// There are hashes behind the last entry.
    #[error("the log says that it has {size} entries, and hashes go on behind them")]
    Beyond {
        /// Entries, by the row that says so.
        size: u64,
    },
    /// The root is not that of the entries.
    #[error("the root of the {size} entries is another than the one that is kept")]
    Root {
        /// Entries.
        size: u64,
    },
    /// A card has no entry, or an entry that is not its own.
    #[error("the card of {node} (sequence {sequence}) is not the entry that it should be")]
    Card {
        /// Whose.
        node: NodeId,
        /// Which.
        sequence: u64,
    },
}

/// A card's row.
pub(super) struct Row<'a> {
    pub(super) node: NodeId,
    pub(super) sequence: u64,
    pub(super) card: &'a [u8],
    pub(super) listed: bool,
    pub(super) index: Option<u64>,
    pub(super) salt: Option<Salt>,
}

/// Walks the hashes, which `next` gives in the order of their positions.
pub(super) fn hashes(end: LogEnd, mut next: impl FnMut() -> Result<Option<(u64, Hash)>>) -> Result<Option<Fault>> {
    let mut log = Frontier::default();
    while log.size() < end.size {
        let (index, first) = (log.size(), kept(log.size()));
        let mut expected: Option<Vec<Hash>> = None;
        for level in 0..=index.trailing_ones() {
            let position = first + u64::from(level);
            let Some((_, hash)) = next()?.filter(|(found, _)| *found == position) else {
                return Ok(Some(Fault::Missing { index, position }));
            };
            // A leaf is what the others are held against; the root and the cards say whether it is right.
            let expected = expected.get_or_insert_with(|| log.append_leaf(hash));
            if expected.get(level as usize) != Some(&hash) {
                return Ok(Some(Fault::Changed { index, level }));
            }
        }
    }
    if next()?.is_some() {
        return Ok(Some(Fault::Beyond { size: end.size }));
    }
    Ok((log.root() != end.root).then_some(Fault::Root { size: end.size }))
}

/// What is wrong with a card in a log of so many entries, whose hashes `hash` gives by position.
pub(super) fn card(row: &Row<'_>, size: u64, hash: impl FnOnce(u64) -> Result<Hash>) -> Result<Option<Fault>> {
    let index = row.index.filter(|index| *index < size && row.listed == row.salt.is_none());
    let leaf = tree::leaf_hash(&entry(row.card, row.salt.as_ref()));
    let is_there = match index {
        Some(index) => hash(position(0, index))? == leaf,
        None => false,
    };
    Ok((!is_there).then_some(Fault::Card { node: row.node, sequence: row.sequence }))
}
