//! What the vault remembers across restarts: prekeys, static keys, sequences, and per peer its links, sequence window and
//! greatest timestamps. The model; `state/codec` gives its bytes and `state/image` its place in the file.
//!
//! No secret of a link is here: tokens rest in `noded`'s rows, sealed, and this file holds what makes an old or foreign
//! row, offer or REQUEST worthless. Sans-IO: time is an argument, and nothing is written here. Every change marks the
//! peer's record; [`State::commit`](image) turns the marks into a few small writes.
//!
//! One record a peer, not one a link: sequences belong to the peer and outlive its links.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::{CLOCK_GRACE, LINKS, SEQUENCE_AHEAD, SEQUENCE_WINDOW};
use openred_proto::method::{Method, Place};
use openred_proto::secret::Secret;
use openred_proto::vault::Capacity;

use crate::audit;
use crate::error::{Error, Result};
use crate::link::transform::Side;
use crate::prekey::Prekeys;
use crate::registered::Methods;

mod codec;
pub mod image;

/// Links of one peer at a time: the one in use, and the one that replaces it.
pub const LINKS_PER_PEER: usize = 2;
/// Records that one commit can touch; the loop commits before there are more.
pub const TOUCHED: usize = 64;
/// How far ahead of its use a REQUEST timestamp is reserved, in milliseconds: one write for all handshakes of that time over a link. After a crash
/// the next one is later than any that was reserved; receivers hold them against the one before and no clock.
const RESERVED_AHEAD: u64 = 10_000;
/// How long a sequence window outlives the last offer it has seen: both sides' clock grace.
const WINDOW_KEPT: Duration = Duration::from_secs(2 * CLOCK_GRACE.as_secs());

/// What one node's vault remembers.
pub struct State {
    /// Everything that belongs to no peer.
    pub(crate) node: NodeState,
    peers: HashMap<u16, PeerRecord>,
    by_peer: HashMap<NodeId, u16>,
    by_link: HashMap<LinkId, u16>,
    capacity: usize,
    touched: BTreeSet<u16>,
    /// Changed in what may be lost with a crash: written with the next commit, and asks for none itself.
    touched_lazily: BTreeSet<u16>,
    node_touched: bool,
    slots: image::Slots,
}

/// The part of the state that belongs to no peer.
#[derive(Default)]
pub(crate) struct NodeState {
    /// Rows sealed in another epoch do not open; a restored backup raises it.
    pub(crate) sealing_epoch: u64,
    /// Last sequence given to anything (cards, offers).
    pub(crate) last_sequence: u64,
    /// Sequence of the latest card.
    pub(crate) card_sequence: u64,
    /// X-Wing prekeys.
    pub(crate) prekeys: Prekeys,
    /// X25519 static keys, one a method.
    pub(crate) statics: Vec<StaticRecord>,
    /// Where the audit trail stood with this commit.
    pub(crate) audit: audit::Head,
    /// Sequence of the last word of the identity's lineage that the trail has a record of, where it needs one; zero before.
    pub(crate) told: u64,
    /// Methods that modules registered.
    pub(crate) methods: Methods,
}

/// One suite's static key and its latest certificate.
#[derive(Debug, PartialEq, Eq)]
pub struct StaticRecord {
    /// The suite.
    pub method: Method,
    /// X25519 private key.
    pub secret: Secret<32>,
    /// Start of the certificate's window.
    pub not_before: UnixMillis,
    /// End of the certificate's window.
    pub not_after: UnixMillis,
}

/// What is remembered of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Who.
    pub peer: NodeId,
    /// Sequences of the peer's offers that were taken.
    pub heard: Window,
    /// The record may be given to another peer after this.
    pub keep_until: UnixMillis,
    /// Its links.
    pub links: [Option<LinkRecord>; LINKS_PER_PEER],
}

/// What is remembered of one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRecord {
    /// Which link.
    pub link: LinkId,
    /// This node's side.
    pub side: Side,
    /// Its method; of a registered one, its suite.
    pub method: Method,
    /// Where its method stands, if a module registered it.
    pub registered: Option<Place>,
    /// The schedule's epoch at issue.
    pub epoch: u64,
    /// Start of its life.
    pub not_before: UnixMillis,
    /// End of its life.
    pub not_after: UnixMillis,
    /// The only version of the sealed row that opens.
    pub row_version: u64,
    /// Ended by the operator, or replaced.
    pub revoked: bool,
    /// A handshake over it has completed.
    pub proven: bool,
    /// Greatest REQUEST timestamp accepted from the peer.
    pub timestamp_in: u64,
    /// Nothing later was sent as a REQUEST timestamp: they are reserved ahead of use, so that few need a write ([`State::take_timestamp`]).
    pub timestamp_out: u64,
    /// Last REQUEST timestamp sent. Not stored: after a start it is all that was reserved.
    pub timestamp_sent: u64,
    /// Handshakes completed over it.
    pub operations: u64,
    /// SHA-256 of its offer.
    pub token_id: [u8; 32],
    /// When this node issued or accepted it.
    pub decided_at: UnixMillis,
}

impl LinkRecord {
    /// Whether its life is over at `now`, grace included.
    #[must_use]
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        now > self.not_after.plus(CLOCK_GRACE)
    }
}

/// The last 64 sequences of one issuer (PROTOCOL 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Highest sequence taken; zero before the first.
    pub top: u64,
    /// Bit n: `top - n` was taken.
    pub seen: u64,
}

impl Window {
    /// Whether `sequence` may still be taken at `now`; marks nothing.
    ///
    /// # Errors
    /// [`Error::PeerReplay`] when it was taken or is older than the window; a malformed statement over 2 h ahead.
    pub fn check(&self, sequence: u64, now: UnixMillis) -> Result<()> {
        if sequence > now.plus(SEQUENCE_AHEAD).0 {
            let why = "its sequence is over 2 h ahead";
            return Err(openred_proto::error::WireError::Malformed { what: "link offer", why }.into());
        }
        let behind = self.top.checked_sub(sequence);
        let taken = behind.is_some_and(|behind| behind >= SEQUENCE_WINDOW || self.seen >> behind & 1 == 1);
        if sequence == 0 || taken { Err(Error::PeerReplay) } else { Ok(()) }
    }

    /// Marks `sequence` as taken.
    ///
    /// # Errors
    /// As [`Window::check`].
    pub fn take(&mut self, sequence: u64, now: UnixMillis) -> Result<()> {
        self.check(sequence, now)?;
        match sequence.checked_sub(self.top) {
            Some(ahead) => {
                let moved = u32::try_from(ahead).ok().and_then(|ahead| self.seen.checked_shl(ahead)).unwrap_or(0);
                self.seen = moved | 1;
                self.top = sequence;
            }
            None => self.seen |= 1 << (self.top - sequence),
        }
        Ok(())
    }
}

impl State {
    /// The state of a node that has none yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(LINKS)
    }

    fn with_capacity(capacity: usize) -> Self {
        Self {
            node: NodeState::default(),
            peers: HashMap::new(),
            by_peer: HashMap::new(),
            by_link: HashMap::new(),
            capacity,
            touched: BTreeSet::new(),
            touched_lazily: BTreeSet::new(),
            node_touched: true,
            slots: image::Slots::default(),
        }
    }

    /// Links that are held and neither revoked nor expired.
    #[must_use]
    pub fn live_links(&self, now: UnixMillis) -> usize {
        let links = self.peers.values().flat_map(|record| record.links.iter().flatten());
        links.filter(|link| !link.revoked && !link.is_expired(now)).count()
    }

    /// The next sequence: `max(last + 1, unix milliseconds)` (PROTOCOL 1); durable once committed.
    pub(crate) fn next_sequence(&mut self, now: UnixMillis) -> u64 {
        self.node.last_sequence = now.0.max(self.node.last_sequence.saturating_add(1));
        self.node_touched = true;
        self.node.last_sequence
    }

    /// Whether the next sequence would be one that receivers take, whose clocks are right.
    ///
    /// # Errors
    /// Out of time when this node's clock ran ahead before and was set back since: its sequences are over 2 h ahead, and
    /// every receiver would refuse them as malformed without a word about a clock.
    pub(crate) fn check_clock(&self, now: UnixMillis) -> Result<()> {
        if self.node.last_sequence >= now.plus(SEQUENCE_AHEAD).0 {
            return Err(openred_proto::error::WireError::OutOfTime { what: "this node's clock", early: true }.into());
        }
        Ok(())
    }

    /// After a restore: rows sealed before open no more, and prekeys and static keys are drawn anew with the next start. The
    /// epoch is a time, so that two restores of one backup never share one.
    pub(crate) fn begin_epoch(&mut self, now: UnixMillis) {
        self.node.sealing_epoch = now.0.max(self.node.sealing_epoch.saturating_add(1));
        self.node.prekeys = Prekeys::default();
        self.node.statics.clear();
        self.node_touched = true;
    }

    /// Marks the part that belongs to no peer as changed.
    pub(crate) const fn touch_node(&mut self) {
        self.node_touched = true;
    }

    /// Whether as many records are marked as one commit can write, less one: time to commit.
    #[must_use]
    pub fn must_commit(&self) -> bool {
        self.touched.len() + 2 >= TOUCHED
    }

    /// Whether not even one more record can change before a commit.
    pub(crate) fn is_full_of_changes(&self) -> bool {
        self.touched.len() >= TOUCHED
    }

    /// Whether a link that was not ended needs the method at `place`.
    pub(crate) fn uses(&self, place: Place) -> bool {
        let mut links = self.peers.values().flat_map(|record| record.links.iter().flatten());
        links.any(|link| link.registered == Some(place) && !link.revoked)
    }

    /// Whether anything changed since the last commit.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.node_touched || !self.touched.is_empty()
    }

    /// What is remembered of `peer`.
    #[must_use]
    pub fn peer(&self, peer: &NodeId) -> Option<&PeerRecord> {
        self.peers.get(self.by_peer.get(peer)?)
    }

    /// Where the audit trail stood with the last commit.
    #[must_use]
    pub const fn audit_head(&self) -> audit::Head {
        self.node.audit
    }

    /// Whose link it is, live or not.
    #[must_use]
    pub(crate) fn peer_of(&self, link: &LinkId) -> Option<NodeId> {
        self.by_link.get(link).and_then(|index| self.peers.get(index)).map(|record| record.peer)
    }

    /// A live link and its peer.
    ///
    /// # Errors
    /// [`Error::LocalLinkGone`] when unknown or revoked, [`Error::LocalLinkExpired`] past its life.
    pub fn link(&self, link: &LinkId, now: UnixMillis) -> Result<(NodeId, &LinkRecord)> {
        let index = self.by_link.get(link).ok_or(Error::LocalLinkGone)?;
        let record = self.peers.get(index).ok_or(Error::Bug("a link's peer is not in the table"))?;
        let found = record.links.iter().flatten().find(|held| held.link == *link);
        let found = found.ok_or(Error::Bug("a link is not in its peer's record"))?;
        if found.revoked {
            return Err(Error::LocalLinkGone);
        }
        if found.is_expired(now) {
            return Err(Error::LocalLinkExpired);
        }
        Ok((record.peer, found))
    }

    /// Links that this node issued, that are held and not revoked, in rising order of their ids, from the first above `after`; at
    /// most `most`.
    #[must_use]
    pub(crate) fn issued_after(&self, after: &LinkId, most: usize) -> Vec<LinkId> {
        let links = self.peers.values().flat_map(|record| record.links.iter().flatten());
        let mut lowest = BTreeSet::new();
        for link in links.filter(|link| link.side == Side::Issuer && !link.revoked && link.link > *after) {
            lowest.insert(link.link);
            if lowest.len() > most {
                lowest.pop_last();
            }
        }
        lowest.into_iter().collect()
    }

    /// All links that are held and not revoked, in rising order of their ids.
    #[cfg(test)]
    pub(crate) fn held(&self) -> Vec<LinkId> {
        let links = self.peers.values().flat_map(|record| record.links.iter().flatten());
        let held: BTreeSet<LinkId> = links.filter(|link| !link.revoked).map(|link| link.link).collect();
        held.into_iter().collect()
    }

    /// Changes a live link in what has to be durable before anybody hears of it.
    ///
    /// # Errors
    /// As [`State::link`].
    pub(crate) fn change_link(
        &mut self,
        link: &LinkId,
        now: UnixMillis,
        change: impl FnOnce(&mut LinkRecord),
    ) -> Result<()> {
        let index = self.apply(link, now, change)?;
        self.touched.insert(index);
        Ok(())
    }

    /// Ends a link for good, whatever the clock says: one that is past its life would be live again after the clock was set
    /// back. A record that guards nothing else, neither a live link nor sequences that were heard, may be given to another
    /// peer from now on; or links that were only issued and revoked would fill the table.
    ///
    /// # Errors
    /// [`Error::LocalLinkGone`] when unknown or revoked before.
    pub(crate) fn revoke_link(&mut self, link: &LinkId, now: UnixMillis) -> Result<()> {
        let index = *self.by_link.get(link).ok_or(Error::LocalLinkGone)?;
        let record = self.peers.get_mut(&index).ok_or(Error::Bug("a link's peer is not in the table"))?;
        let found = record.links.iter_mut().flatten().find(|held| held.link == *link);
        let found = found.ok_or(Error::Bug("a link is not in its peer's record"))?;
        if found.revoked {
            return Err(Error::LocalLinkGone);
        }
        found.revoked = true;
        if record.heard == Window::default() {
            let live = record.links.iter().flatten().filter(|held| !held.revoked);
            let until = live.map(|held| held.not_after.plus(WINDOW_KEPT)).max().unwrap_or(now);
            record.keep_until = record.keep_until.min(until);
        }
        self.touched.insert(index);
        Ok(())
    }

    /// Changes a live link in what may be lost with a crash, such as a count: no fdatasync waits for it.
    ///
    /// # Errors
    /// As [`State::link`].
    pub(crate) fn note_link(
        &mut self,
        link: &LinkId,
        now: UnixMillis,
        change: impl FnOnce(&mut LinkRecord),
    ) -> Result<()> {
        let index = self.apply(link, now, change)?;
        self.touched_lazily.insert(index);
        Ok(())
    }

    /// Marks a REQUEST timestamp as sent; durable, with those behind it, when nobody reserved it before.
    ///
    /// # Errors
    /// As [`State::link`].
    pub(crate) fn take_timestamp(&mut self, link: &LinkId, now: UnixMillis, timestamp: UnixMillis) -> Result<()> {
        let mut is_reserved = true;
        let index = self.apply(link, now, |record| {
            record.timestamp_sent = timestamp.0;
            if timestamp.0 > record.timestamp_out {
                record.timestamp_out = timestamp.0.saturating_add(RESERVED_AHEAD);
                is_reserved = false;
            }
        })?;
        if !is_reserved {
            self.touched.insert(index);
        }
        Ok(())
    }

    /// Makes what may be lost with a crash wait no longer; for the timer.
    pub(crate) fn settle(&mut self) {
        while self.touched.len() < TOUCHED
            && let Some(index) = self.touched_lazily.pop_first()
        {
            self.touched.insert(index);
        }
    }

    fn apply(&mut self, link: &LinkId, now: UnixMillis, change: impl FnOnce(&mut LinkRecord)) -> Result<u16> {
        self.link(link, now)?;
        let index = *self.by_link.get(link).ok_or(Error::LocalLinkGone)?;
        let record = self.peers.get_mut(&index).ok_or(Error::Bug("a link's peer is not in the table"))?;
        let found = record.links.iter_mut().flatten().find(|held| held.link == *link);
        change(found.ok_or(Error::Bug("a link is not in its peer's record"))?);
        Ok(index)
    }

    /// Adds a link with `peer`, making room as [`PeerRecord::make_room`] says; `sequence` is the peer's, for an offer that
    /// was accepted.
    ///
    /// # Errors
    /// [`Error::LocalFull`] when every record belongs to another peer, [`Error::PeerReplay`] as [`Window::take`] and
    /// for a link id that is held.
    pub(crate) fn add_link(
        &mut self,
        peer: &NodeId,
        link: LinkRecord,
        sequence: Option<u64>,
        now: UnixMillis,
    ) -> Result<()> {
        self.add(peer, link, sequence, None, now)
    }

    /// The same for a link that renews `renewed`, which is held and lives on beside it; whatever else is held of the peer makes
    /// room.
    ///
    /// # Errors
    /// As [`State::add_link`].
    pub(crate) fn add_renewal(
        &mut self,
        peer: &NodeId,
        link: LinkRecord,
        sequence: Option<u64>,
        renewed: &LinkId,
        now: UnixMillis,
    ) -> Result<()> {
        self.add(peer, link, sequence, Some(renewed), now)
    }

    fn add(
        &mut self,
        peer: &NodeId,
        link: LinkRecord,
        sequence: Option<u64>,
        renewed: Option<&LinkId>,
        now: UnixMillis,
    ) -> Result<()> {
        let mut record = self.peer(peer).cloned().unwrap_or_else(|| PeerRecord::new(*peer));
        let id = link.link;
        let dropped = record.take(link, sequence, renewed, now)?;
        // The link id is its issuer's choice: one that is taken would lead to another peer's record.
        if self.by_link.contains_key(&id) {
            return Err(Error::PeerReplay);
        }
        let index = self.index_for(peer, now)?;
        self.peers.insert(index, record);
        if let Some(dropped) = dropped {
            self.by_link.remove(&dropped.link);
        }
        self.by_peer.insert(*peer, index);
        self.by_link.insert(id, index);
        self.touched.insert(index);
        Ok(())
    }

    /// The record of `peer`, or one that may be given to it.
    fn index_for(&mut self, peer: &NodeId, now: UnixMillis) -> Result<u16> {
        if let Some(index) = self.by_peer.get(peer) {
            return Ok(*index);
        }
        if self.peers.len() < self.capacity {
            let free = (0..u16::MAX).take(self.capacity).find(|index| !self.peers.contains_key(index));
            return free.ok_or(Error::Bug("a table that is not full has no free place"));
        }
        let stale = self.peers.iter().filter(|(_, record)| record.keep_until < now);
        let index = stale.min_by_key(|(_, record)| record.keep_until).map(|(index, _)| *index);
        let index = index.ok_or(Error::LocalFull(Capacity::Links))?;
        if let Some(record) = self.peers.remove(&index) {
            self.by_peer.remove(&record.peer);
            self.by_link.retain(|_, at| *at != index);
        }
        Ok(index)
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl PeerRecord {
    /// Of one of whom nothing is known yet.
    #[must_use]
    pub fn new(peer: NodeId) -> Self {
        Self { peer, heard: Window::default(), keep_until: UnixMillis(0), links: [None, None] }
    }

    /// Takes a link in, and marks the `sequence` of one that the peer offered; `renewed` is the link that it renews. Gives back the
    /// one that made room. Nothing has changed after an error.
    ///
    /// # Errors
    /// As [`Window::take`].
    pub fn take(
        &mut self,
        link: LinkRecord,
        sequence: Option<u64>,
        renewed: Option<&LinkId>,
        now: UnixMillis,
    ) -> Result<Option<LinkRecord>> {
        if let Some(sequence) = sequence {
            self.heard.take(sequence, now)?;
            if renewed.is_none() {
                self.retire(|held| held.side == Side::Acceptor || held.proven);
            }
        }
        self.keep_until = self.keep_until.max(link.not_after.plus(WINDOW_KEPT));
        let place = self.make_room(renewed, now);
        Ok(self.links[place].replace(link))
    }

    /// Ends links that an accepted offer replaces. This node's own offers that were never used stay: when two cross,
    /// `noded` decides by the lower node id (PROTOCOL 4).
    fn retire(&mut self, replaced: impl Fn(&LinkRecord) -> bool) {
        for link in self.links.iter_mut().flatten().filter(|link| replaced(link)) {
            link.revoked = true;
        }
    }

    /// The place for another link: a free one, else that of a link which is over, else of one never used, else the older; never
    /// that of a link which is renewed by it.
    fn make_room(&self, renewed: Option<&LinkId>, now: UnixMillis) -> usize {
        let rank = |place: &usize| {
            self.links[*place].as_ref().map_or((0, UnixMillis(0)), |link| {
                let rank = match link {
                    link if renewed == Some(&link.link) => 4,
                    link if link.revoked || link.is_expired(now) => 1,
                    link => 2 + u8::from(link.proven),
                };
                (rank, link.decided_at)
            })
        };
        (0..LINKS_PER_PEER).min_by_key(rank).unwrap_or(0)
    }
}

#[cfg(test)]
#[path = "state/tests.rs"]
mod tests;
