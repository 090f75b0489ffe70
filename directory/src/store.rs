//! What the directory keeps on disk: cards, their log, evidence of lies, and operators' decisions ([`decision`]). [`CardStore`] is the
//! seam: a file of this directory's own ([`sqlite`]), or a database that several share ([`postgres`]). [`StoreHandle`] is how the
//! asynchronous side asks: bounded queues to two threads that were started before the system-call filter, one that writes and one that looks up.

pub mod decision;
pub mod followed;
pub mod postgres;
mod rules;
pub mod sqlite;
mod thread;
pub mod walk;

use openred_proto::checked::card::Card;
use openred_proto::checked::succession::{Contradiction, Lineage};
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::log::{Hash, Salt, tree};
use openred_proto::method::Method;
use serde::{Deserialize, Serialize};

use crate::config::Mode;
use crate::error::{Error, Result};
use decision::{Author, Bans, Change, Entry, InviteLine, Kept};
use followed::{Following, PresentRow};

pub use followed::Step;
pub use thread::StoreHandle;

/// A verified card on its way into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCard {
    /// Whose.
    pub node: NodeId,
    /// Its sequence.
    pub sequence: u64,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// Whether discovery may show it.
    pub listed: bool,
    /// Its sector.
    pub sector: String,
    /// Its methods, as bits.
    pub methods: u16,
    /// The signed bytes.
    pub bytes: Vec<u8>,
    /// Which identities its node goes on for.
    pub lineage: Lineage,
}

impl NewCard {
    /// From a verified card and its bytes.
    #[must_use]
    pub fn new(card: &Card, bytes: Vec<u8>) -> Self {
        Self {
            node: card.node_id,
            sequence: card.sequence,
            expires_at: card.expires_at,
            listed: card.fields.listed,
            sector: card.fields.sector.clone(),
            methods: card.suites.bits(),
            bytes,
            lineage: card.lineage.clone(),
        }
    }
}

/// On which terms a node that is not here yet is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Nodes that are not banned and may have a card.
    pub most: u64,
    /// What the operator asks for.
    pub mode: Mode,
    /// The node has worked for it.
    pub worked: bool,
    /// Hash of the invite that the node shows.
    pub invite: Option<[u8; 32]>,
}

impl Terms {
    /// So many, and whoever comes.
    #[must_use]
    pub const fn open(most: u64) -> Self {
        Self { most, mode: Mode::Open, worked: false, invite: None }
    }
}

/// What a node that was not let in lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Proof of work.
    Work,
    /// An invite.
    Invite,
    /// An invite that is known here and not revoked.
    InviteUnknown,
    /// An invite that has not ended.
    InviteEnded,
    /// An invite that fewer nodes have used.
    InviteSpent,
}

/// What became of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// A new node, or a newer card.
    Stored,
    /// The same card again: the lease starts anew.
    Refreshed,
    /// A lower sequence than the one held; refused.
    Rollback,
    /// Another card of the same sequence; refused.
    Equivocation {
        /// Whether both are kept as evidence; not when there is no more room for it, or the held one was dropped at its end.
        kept: bool,
    },
    /// Held, and neither shown nor routed to until the operator approves.
    Quarantined,
    /// As many nodes as the operator allows.
    Full,
    /// Not let in.
    NotAdmitted(Lack),
    /// The node has named this successor; refused.
    Succeeded(NodeId),
    /// Its lineage contradicts what was heard before; refused.
    Contradiction(Contradiction),
}

/// One node as it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub node: NodeId,
    /// Sequence of its card.
    pub sequence: u64,
    /// The signed card.
    pub card: Vec<u8>,
    /// Whether it chose to be listed.
    pub listed: bool,
    /// Its sector.
    pub sector: String,
    /// When the card ends.
    pub expires_at: UnixMillis,
    /// First registration.
    pub first_seen: UnixMillis,
    /// Last registration.
    pub last_seen: UnixMillis,
    /// Conflicting cards of it that were kept.
    pub evidence: u64,
    /// Where its card stands in the log.
    pub logged: Logged,
    /// Whether it waits for the operator's approval.
    pub quarantined: bool,
}

/// A card's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Entries before it.
    pub index: u64,
    /// What its entry is salted with, where the card is not listed.
    pub salt: Option<Salt>,
}

/// How far the log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// Entries.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

/// Which nodes a page shows. Order is by id, so a cursor stays right whatever comes and goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Only listed ones that are not quarantined.
    pub listed_only: bool,
    /// Only those that chose to be listed, quarantined ones too.
    pub wants_listing: bool,
    /// Only quarantined ones.
    pub quarantined_only: bool,
    /// Only this sector.
    pub sector: Option<String>,
    /// Only nodes that speak this method.
    pub method: Option<Method>,
    /// Only nodes heard of since then.
    pub seen_since: Option<UnixMillis>,
    /// Only nodes not heard of since then.
    pub seen_before: Option<UnixMillis>,
    /// Only cards that end after this.
    pub alive_at: Option<UnixMillis>,
    /// From this id on.
    pub from: Option<NodeId>,
    /// Up to this id, itself too.
    pub to: Option<NodeId>,
    /// After this id.
    pub after: Option<NodeId>,
    /// At most so many.
    pub limit: usize,
    /// Look at most at so many, rows that stand without a card too; then the page is short and goes on.
    pub examine: Option<usize>,
}

impl Query {
    /// The key after which the page begins: a cursor's id, or what sorts right before the first id that is asked for.
    fn begins_after(&self) -> Vec<u8> {
        let before = |id: &NodeId| {
            let mut key = id.as_bytes().to_vec();
            match key.iter().rposition(|byte| *byte != 0) {
                None => key.clear(),
                Some(last) => {
                    key[last] -= 1;
                    key[last + 1..].fill(0xff);
                }
            }
            key
        };
        let after = self.after.as_ref().map(|id| id.as_bytes().to_vec());
        after.max(self.from.as_ref().map(before)).unwrap_or_default()
    }
}

/// A page of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Those that fit.
    pub held: Vec<Held>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<NodeId>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Nodes with a card.
    pub nodes: u64,
    /// Of them, heard of within the lease.
    pub fresh: u64,
    /// Of them, waiting for the operator's approval.
    pub quarantined: u64,
    /// Conflicts kept.
    pub evidence: u64,
    /// Bans.
    pub bans: u64,
    /// Bytes of the database.
    pub bytes: u64,
}

/// How far operators' changes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The number of the last.
    pub changes: u64,
    /// Bans of nodes.
    pub bans: u64,
    /// Bans of prefixes.
    pub prefix_bans: u64,
}

/// Figures about everything that is kept. They are counted when they are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// As in `status`.
    pub counts: Counts,
    /// Nodes that chose to be listed.
    pub listed: u64,
    /// Nodes that registered first within the last day.
    pub new_today: u64,
    /// Sequences that are kept without a card, so that no older one comes back.
    pub tombstones: u64,
    /// Words of successions.
    pub successions: u64,
    /// Nodes that came by invite or approval.
    pub admitted: u64,
    /// Invites that can be used.
    pub invites_open: u64,
    /// Changes in the history.
    pub changes: u64,
    /// The largest sectors, at most twenty.
    pub sectors: Vec<(String, u64)>,
    /// Nodes by method.
    pub methods: Vec<(String, u64)>,
}

/// What is known of the run before, for [`crate::replay`]. Times are seconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviousRun {
    /// There was none.
    Never,
    /// It ended in order.
    Ended {
        /// The greatest `created` of a request that may have been taken.
        latest: u64,
    },
    /// It did not say how it ended.
    CutOff,
}

/// What can be looked up without waiting for those who write.
pub trait CardReader {
    /// That what it reads from still stands at its place.
    ///
    /// # Errors
    /// [`Error::LocalStoreGone`].
    fn check(&mut self) -> Result<()> {
        Ok(())
    }
    /// Looks up in one view of the data until [`CardReader::end_view`], where that is cheaper than one for each look-up.
    ///
    /// # Errors
    /// The storage's.
    fn begin_view(&mut self) -> Result<()> {
        Ok(())
    }
    /// Ends the view.
    fn end_view(&mut self) {}
    /// One node.
    ///
    /// # Errors
    /// The storage's.
    fn node(&mut self, node: &NodeId) -> Result<Option<Held>>;
    /// The successor that a node has named and not taken back.
    ///
    /// # Errors
    /// The storage's.
    fn successor(&mut self, node: &NodeId) -> Result<Option<NodeId>>;
    /// A page of nodes.
    ///
    /// # Errors
    /// The storage's.
    fn page(&mut self, query: &Query) -> Result<Page>;
    /// How much there is; fresh are those seen since then.
    ///
    /// # Errors
    /// The storage's.
    fn counts(&mut self, seen_since: UnixMillis) -> Result<Counts>;
    /// Figures; fresh are those seen since then.
    ///
    /// # Errors
    /// The storage's.
    fn stats(&mut self, now: UnixMillis, seen_since: UnixMillis) -> Result<Stats>;
    /// All bans.
    ///
    /// # Errors
    /// The storage's.
    fn bans(&mut self) -> Result<Bans>;
    /// All invites, the oldest first.
    ///
    /// # Errors
    /// The storage's.
    fn invites(&mut self) -> Result<Vec<InviteLine>>;
    /// What operators changed, the newest first: at most `limit` entries before that number.
    ///
    /// # Errors
    /// The storage's.
    fn history(&mut self, before: Option<u64>, limit: usize) -> Result<Vec<Entry>>;
    /// Everything that can be taken elsewhere, in pieces: what comes after `after` (what the last piece ended with), at most
    /// `limit` records; none when nothing is left.
    ///
    /// # Errors
    /// The storage's.
    fn kept(&mut self, after: Option<&Kept>, limit: usize) -> Result<Vec<Kept>>;
    /// What shows that somebody else has changed bans or let nodes go; always the same where nobody else can.
    ///
    /// # Errors
    /// The storage's.
    fn mark(&mut self) -> Result<Mark> {
        Ok(Mark::default())
    }
    /// How far the log goes.
    ///
    /// # Errors
    /// The storage's.
    fn log_end(&mut self) -> Result<LogEnd>;
    /// The hash of a complete subtree of the log, by its [`tree::position`].
    ///
    /// # Errors
    /// The storage's; there is none beyond the log's end.
    fn log_hash(&mut self, position: u64) -> Result<Hash>;
    /// Cards that are not quarantined, from one place in the log to before another, in its order.
    ///
    /// # Errors
    /// The storage's.
    fn logged(&mut self, from: u64, to: u64) -> Result<Vec<Held>>;
    /// The same from one place on by their places alone, at most `limit`.
    ///
    /// # Errors
    /// The storage's.
    fn present(&mut self, from: u64, limit: usize) -> Result<Vec<PresentRow>>;
    /// Of a mirror: whose log this is.
    ///
    /// # Errors
    /// The storage's.
    fn following(&mut self) -> Result<Option<Following>> {
        Ok(None)
    }
}

/// Proof that an entry is one of the log's first `size`; none when the log does not go so far.
///
/// # Errors
/// The storage's.
pub fn prove_inclusion(reader: &mut dyn CardReader, index: u64, size: u64) -> Result<Option<Vec<Hash>>> {
    if index >= size || size > reader.log_end()?.size {
        return Ok(None);
    }
    tree::prove_inclusion(index, size, |position| reader.log_hash(position)).map(Some)
}

/// Proof that the log's first `old` entries are the beginning of its first `new`; none when it does not go so far.
///
/// # Errors
/// The storage's.
pub fn prove_consistency(reader: &mut dyn CardReader, old: u64, new: u64) -> Result<Option<Vec<Hash>>> {
    if old > new || new > reader.log_end()?.size {
        return Ok(None);
    }
    tree::prove_consistency(old, new, |position| reader.log_hash(position)).map(Some)
}

/// Of a store that holds no mirror; the configuration refuses it before.
const NO_MIRROR: Error =
    Error::LocalStoreUnfit { why: "a mirror keeps its cards in a file of its own: leave store.url empty" };

/// A place for cards. Calls come from one thread at a time; between [`CardStore::begin`] and [`CardStore::commit`] they
/// hold together.
pub trait CardStore: CardReader {
    /// Starts a group of calls.
    ///
    /// # Errors
    /// The storage's.
    fn begin(&mut self) -> Result<()>;
    /// Makes the group durable.
    ///
    /// # Errors
    /// The storage's; then nothing of the group holds.
    fn commit(&mut self) -> Result<()>;
    /// Forgets the group.
    fn roll_back(&mut self);
    /// Takes a card by the sequence rules (PROTOCOL 1), of a node that is here or is let in on these terms.
    ///
    /// # Errors
    /// The storage's.
    fn register(&mut self, now: UnixMillis, card: &NewCard, terms: &Terms) -> Result<Registration>;
    /// Drops a node's card at its own word; its sequence stays. False when there was none.
    ///
    /// # Errors
    /// The storage's.
    fn withdraw(&mut self, node: &NodeId) -> Result<bool>;
    /// Makes an operator's change and writes it down with its author, both or neither; false (and nothing written) when there was
    /// nothing to change.
    ///
    /// # Errors
    /// The storage's.
    fn change(&mut self, author: &Author, change: &Change) -> Result<bool>;
    /// Takes one record over that is not here; false when there is one. Cards go by [`CardStore::register`].
    ///
    /// # Errors
    /// The storage's.
    fn restore(&mut self, kept: &Kept) -> Result<bool>;
    /// Drops some of the cards that ended before then, and some of the rows that have stood without one for as long as a
    /// card can live: until then their sequences keep older cards out. How many; none when nothing is left to drop.
    ///
    /// # Errors
    /// The storage's.
    fn purge(&mut self, ended_before: UnixMillis) -> Result<u64>;
    /// Of a mirror: takes what was proven over. The first node of which an older or another card was here, whose card is not taken.
    ///
    /// # Errors
    /// The storage's; a store that holds no mirror.
    fn follow(&mut self, _now: UnixMillis, _step: &Step) -> Result<Option<NodeId>> {
        Err(NO_MIRROR)
    }
    /// Of a mirror: between these two places in the log no cards are held but these, whose nodes were heard of then; the places of
    /// those that are not here.
    ///
    /// # Errors
    /// As [`CardStore::follow`].
    fn keep_present(&mut self, _from: u64, _to: u64, _present: &[(u64, UnixMillis)]) -> Result<Vec<u64>> {
        Err(NO_MIRROR)
    }
    /// Says what the run before left behind; from now on this one runs, and is cut off unless it ends in order.
    ///
    /// # Errors
    /// The storage's.
    fn begin_run(&mut self, now: UnixMillis) -> Result<PreviousRun>;
    /// The number of this replica among those that share the database, once its run has begun; 0 for a directory that is alone.
    fn number(&self) -> u16 {
        0
    }
    /// This run ends in order and took no request signed after `latest`.
    ///
    /// # Errors
    /// The storage's.
    fn end_run(&mut self, latest: u64) -> Result<()>;
}
