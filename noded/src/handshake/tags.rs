//! The responder's tag table: for each live link the tags of counters last accepted − 16 … + 31, so that a REQUEST finds
//! its link in one look-up and a stranger's finds none (PROTOCOL 5).

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openred_proto::id::{LinkId, NodeId};
use openred_proto::limits::{LINKS, REQUEST_REPEAT, REQUESTS_REMEMBERED, TAG_AHEAD, TAG_BEHIND};

use super::request::{self, Mark};
use crate::p2p::ports::LinkHandle;

/// What is known of a link as the responder.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Expected {
    pub(super) handle: Arc<LinkHandle>,
    accepted: u64,
    remembered: VecDeque<Remembered>,
}

/// One REQUEST that came: by its mac1, which covers all that cannot be changed without the link's keys.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Remembered {
    mac1: Mark,
    at: Instant,
    outcome: Outcome,
}

/// What became of a REQUEST.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
enum Outcome {
    Asked,
    Answered(Bytes),
    /// Refused, or answered so long ago that it is not answered again.
    Spent,
}

impl Remembered {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < REQUEST_REPEAT
    }
}

impl Expected {
    /// Lets go of answers that nobody gets any more. A VERIFY is a kilobyte and more: kept for as long as its REQUEST is remembered, a link
    /// would in time hold tens of them.
    fn drop_answers(&mut self, now: Instant) {
        for known in self.remembered.iter_mut().filter(|known| !known.is_recent(now)) {
            if matches!(known.outcome, Outcome::Answered(_)) {
                known.outcome = Outcome::Spent;
            }
        }
    }
}

/// What was seen before of a REQUEST.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Never.
    Fresh,
    /// Within the last 10 s, and answered with this.
    Answered(Bytes),
    /// The key process is looking at it right now.
    Asked,
    /// Too long ago, or refused.
    Spent,
}

/// Links that are expected: two of each peer for which the key process has a place, for a renewed link serves beside the one in its
/// place.
const EXPECTED: usize = 2 * LINKS;

/// Tags of all live links. Bounded: [`EXPECTED`] links of 48 tags and [`REQUESTS_REMEMBERED`] REQUESTs each.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct TagTable {
    me: NodeId,
    links: HashMap<LinkId, Expected>,
    tags: HashMap<Mark, (LinkId, u64)>,
}

impl TagTable {
    /// An empty table of node `me`.
    pub(crate) fn new(me: NodeId) -> Self {
        Self { me, links: HashMap::new(), tags: HashMap::new() }
    }

    /// Expects REQUESTs over `handle`; refreshes it when the link is known. False when the table is full.
    pub(crate) fn insert(&mut self, handle: Arc<LinkHandle>) -> bool {
        let link = handle.link;
        if let Some(expected) = self.links.get_mut(&link) {
            let accepted = handle.incoming_counter;
            expected.handle = handle;
            self.advance(&link, accepted);
            return true;
        }
        if self.links.len() >= EXPECTED {
            return false;
        }
        let accepted = handle.incoming_counter;
        self.add_tags(&handle, window(accepted));
        self.links.insert(link, Expected { handle, accepted, remembered: VecDeque::new() });
        true
    }

    /// Expects nothing over `link` any more.
    pub(crate) fn remove(&mut self, link: &LinkId) {
        if let Some(expected) = self.links.remove(link) {
            for counter in window(expected.accepted) {
                self.tags.remove(&self.tag(&expected.handle, counter));
            }
        }
    }

    /// Whether REQUESTs over `link` are expected: it is live, and nobody has ended it.
    pub(crate) fn expects(&self, link: &LinkId) -> bool {
        self.links.contains_key(link)
    }

    /// The other party of a link that is expected.
    pub(super) fn peer(&self, link: &LinkId) -> Option<NodeId> {
        self.links.get(link).map(|expected| expected.handle.peer)
    }

    /// The link and counter that `tag` stands for.
    pub(super) fn find(&self, tag: &Mark) -> Option<(&Expected, u64)> {
        let (link, counter) = self.tags.get(tag)?;
        Some((self.links.get(link)?, *counter))
    }

    /// A REQUEST with `counter` led to a session: moves the window.
    pub(crate) fn advance(&mut self, link: &LinkId, counter: u64) {
        let Some(expected) = self.links.get_mut(link) else { return };
        if counter <= expected.accepted {
            return;
        }
        let (before, handle) = (std::mem::replace(&mut expected.accepted, counter), Arc::clone(&expected.handle));
        let (old, new) = (window(before), window(counter));
        for leaving in old.clone().filter(|counter| !new.contains(counter)) {
            self.tags.remove(&self.tag(&handle, leaving));
        }
        self.add_tags(&handle, new.filter(|counter| !old.contains(counter)));
    }

    /// What is remembered of the REQUEST with `mac1`.
    pub(super) fn seen(&self, link: &LinkId, mac1: &Mark, now: Instant) -> Seen {
        let Some(expected) = self.links.get(link) else { return Seen::Spent };
        let Some(known) = expected.remembered.iter().find(|known| known.mac1 == *mac1) else { return Seen::Fresh };
        match &known.outcome {
            Outcome::Asked if known.is_recent(now) => Seen::Asked,
            Outcome::Answered(verify) if known.is_recent(now) => Seen::Answered(verify.clone()),
            _ => Seen::Spent,
        }
    }

    /// Remembers the REQUEST with `mac1`, which the key process is asked about now.
    pub(super) fn remember(&mut self, link: &LinkId, mac1: &Mark, now: Instant) {
        let Some(expected) = self.links.get_mut(link) else { return };
        expected.drop_answers(now);
        if expected.remembered.len() >= REQUESTS_REMEMBERED {
            expected.remembered.pop_front();
        }
        expected.remembered.push_back(Remembered { mac1: *mac1, at: now, outcome: Outcome::Asked });
    }

    /// The REQUEST with `mac1` was answered with `verify`.
    pub(super) fn answered(&mut self, link: &LinkId, mac1: &Mark, verify: &Bytes) {
        self.settle(link, mac1, Outcome::Answered(verify.clone()));
    }

    /// The key process refused the REQUEST with `mac1`.
    pub(super) fn refused(&mut self, link: &LinkId, mac1: &Mark) {
        self.settle(link, mac1, Outcome::Spent);
    }

    fn settle(&mut self, link: &LinkId, mac1: &Mark, outcome: Outcome) {
        let Some(expected) = self.links.get_mut(link) else { return };
        if let Some(known) = expected.remembered.iter_mut().find(|known| known.mac1 == *mac1) {
            known.outcome = outcome;
        }
    }

    /// The REQUEST with `mac1` was never looked at by the key process (it was away): it may come again.
    pub(super) fn forget(&mut self, link: &LinkId, mac1: &Mark) {
        if let Some(expected) = self.links.get_mut(link) {
            expected.remembered.retain(|known| known.mac1 != *mac1);
        }
    }

    /// Lets go of what time has made useless.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.links.values_mut().for_each(|expected| expected.drop_answers(now));
    }

    /// Answers that are kept to be given again.
    #[cfg(test)]
    pub(super) fn answers(&self) -> usize {
        let remembered = self.links.values().flat_map(|expected| &expected.remembered);
        remembered.filter(|known| matches!(known.outcome, Outcome::Answered(_))).count()
    }

    /// All that it will go by, in one order.
    #[cfg(test)]
    pub(super) fn sketch(&self, base: Instant) -> String {
        let mut links: Vec<String> = self.links.iter().map(|(link, expected)| expected.sketch(link, base)).collect();
        links.sort();
        links.join(" ")
    }

    /// Links that are expected.
    #[cfg(test)]
    pub(super) fn links(&self) -> std::collections::HashSet<LinkId> {
        self.links.keys().copied().collect()
    }

    fn add_tags(&mut self, handle: &LinkHandle, counters: impl Iterator<Item = u64>) {
        for counter in counters {
            let tag = self.tag(handle, counter);
            self.tags.insert(tag, (handle.link, counter));
        }
    }

    /// The tag of the peer's REQUEST number `counter`.
    fn tag(&self, handle: &LinkHandle, counter: u64) -> Mark {
        request::tag(&handle.keys.incoming, &handle.peer, &self.me, counter)
    }
}

#[cfg(test)]
impl Expected {
    fn sketch(&self, link: &LinkId, base: Instant) -> String {
        let known = |known: &Remembered| {
            (u128::from_be_bytes(known.mac1), known.at - base, std::mem::discriminant(&known.outcome))
        };
        format!("{link} {} {:?}", self.accepted, self.remembered.iter().map(known).collect::<Vec<_>>())
    }
}

/// Counters that are expected after `accepted`.
fn window(accepted: u64) -> RangeInclusive<u64> {
    accepted.saturating_sub(TAG_BEHIND).max(1)..=accepted.saturating_add(TAG_AHEAD)
}
