//! What a mirror takes from the directory that it mirrors, proven before it comes here ([`crate::mirror::follow`]), and what a directory reads for
//! its mirrors.

use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::log::Hash;

use super::{Logged, NewCard};

/// What goes into a mirror's store together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The directory that is mirrored.
    pub directory: NodeId,
    /// Hashes of the leaves that the log goes on with.
    pub leaves: Vec<Hash>,
    /// Cards, where they stand in the log, and when their nodes were heard of.
    pub cards: Vec<(NewCard, Logged, UnixMillis)>,
    /// The head that the log leads to by now, if nothing up to it is missing.
    pub head: Option<String>,
}

/// Whose log a mirror's store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Following {
    /// The directory that is mirrored.
    pub directory: NodeId,
    /// Its last head that was reached.
    pub head: Option<String>,
}

/// A card that is held, by its place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresentRow {
    /// Whose.
    pub node: NodeId,
    /// Entries before it.
    pub index: u64,
    /// When its node was heard of.
    pub last_seen: UnixMillis,
    /// When it ends.
    pub expires_at: UnixMillis,
}
