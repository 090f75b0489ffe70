//! What directories are caught at. A lie contradicts something signed: it is raised as `directory.dishonest`, counted for the audit
//! trail, and both signed statements are kept. A doubt is something that was left out, which nothing signed proves: `directory.doubtful`
//! says so and claims no more.
//!
//! In: what the look-ups ([`super`]) and the checks of the log ([`super::log`]) find. Out: two conditions, and evidence in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use openred_proto::admin::DirectoryEvidence;
use openred_proto::error::WireError;
use openred_proto::id::{NodeId, UnixMillis};

use super::{DirectoryError, lock};
use crate::clock;
use crate::config::DirectoryAddress;
use crate::health::{Condition, Health};
use crate::reports::{Reports, Seen};
use crate::store::{Evidence, Store};

/// Contradictions, and doubts, that are remembered; the conditions name the first few.
const REMEMBERED: usize = 64;
/// Those that a condition names.
const NAMED: usize = 4;
/// Pieces of evidence kept: the first ones, of 8 KiB at most.
pub(crate) const EVIDENCE: usize = 64;

/// A lie that something signed contradicts. The numbers are in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Lie {
    Replayed = 1,
    Swapped = 2,
    BadReceipt = 3,
    BadHead = 4,
    Rewritten = 5,
    RolledBack = 6,
    TwoFaces = 7,
    ForgedInclusion = 8,
}

impl Lie {
    const ALL: [Self; 8] = [
        Self::Replayed,
        Self::Swapped,
        Self::BadReceipt,
        Self::BadHead,
        Self::Rewritten,
        Self::RolledBack,
        Self::TwoFaces,
        Self::ForgedInclusion,
    ];

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|lie| *lie as u8 == number)
    }

    /// Stable name, for programs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Replayed => "replay",
            Self::Swapped => "swapped-card",
            Self::BadReceipt => "bad-receipt",
            Self::BadHead => "bad-head",
            Self::Rewritten => "rewritten-log",
            Self::RolledBack => "rolled-back-log",
            Self::TwoFaces => "two-faces",
            Self::ForgedInclusion => "forged-inclusion",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Replayed => "it gave an older card than was given before",
            Self::Swapped => "it gave a card that its node did not sign so, as with a swapped prekey",
            Self::BadReceipt => "it answered for an offer with a receipt that is not its own",
            Self::BadHead => "what it gives as its log's head does not carry its signature",
            Self::Rewritten => "it signed two heads of its log that cannot both be true",
            Self::RolledBack => "it signed a longer log before, and shows a shorter one since",
            Self::TwoFaces => "a peer was shown a log that is not the one shown here; both are signed",
            Self::ForgedInclusion => "its proof that a card is in its log does not lead to the head that it signed",
        }
    }

    /// Of an answer that contradicts something signed.
    pub(super) fn of(error: &DirectoryError) -> Self {
        match error {
            DirectoryError::Rollback => Self::Replayed,
            DirectoryError::BadAnswer(
                WireError::BadSignature { what: "receipt" } | WireError::WrongSigner { what: "receipt" },
            ) => Self::BadReceipt,
            _ => Self::Swapped,
        }
    }
}

/// Something that is noticed and not proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    /// No head, or no proof.
    Withheld,
    /// A card does not come into the log.
    Unlogged,
    /// An older card than another directory has.
    Behind,
    /// Offers that it signed for bring no answer.
    Unanswered,
}

impl Doubt {
    const fn text(self) -> &'static str {
        match self {
            Self::Withheld => "withheld: it gives no head of its log, or no proof to it",
            Self::Unlogged => "unlogged: it gave a card that does not come into its log",
            Self::Behind => "behind: it gave an older card than another directory has",
            Self::Unanswered => {
                "unanswered: it signed for offers again and again and says that the peer is there, yet no answer came; it drops \
                 them, or the peer has not decided"
            }
        }
    }
}

/// What is held against the directories now.
pub(super) struct Honesty {
    store: Store,
    health: Arc<Health>,
    reports: Arc<Reports>,
    /// By directory and by whom it was about, until it gives an honest answer about the same node. Of its log: about itself, and for good.
    lies: Mutex<BTreeMap<(NodeId, NodeId), String>>,
    /// By address, for as long as the node runs: what a mirror says proves nothing against its directory.
    mirrors: Mutex<BTreeMap<String, String>>,
    doubts: Mutex<BTreeMap<(NodeId, Doubt, NodeId), String>>,
    kept: Mutex<Vec<Evidence>>,
}

impl Honesty {
    pub(super) fn new(store: Store, health: Arc<Health>, reports: Arc<Reports>) -> Self {
        let mirrors = Mutex::default();
        Self {
            store,
            health,
            reports,
            mirrors,
            lies: Mutex::default(),
            doubts: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// Takes up what earlier runs kept: a log that was caught stays so for as long as its directory is configured.
    pub(super) async fn load(&self, addresses: impl Iterator<Item = &DirectoryAddress>) {
        let Ok(kept) = self.store.evidence().await else { return };
        for address in addresses {
            let of_log = |lie: &Lie| *lie as u8 >= Lie::Rewritten as u8;
            let caught = kept.iter().filter(|evidence| evidence.directory == address.id);
            let mut lies = caught.filter_map(|evidence| Lie::from_number(evidence.lie)).filter(of_log);
            if let Some(lie) = lies.next_back() {
                self.say(address, &address.id, lie, "");
            }
        }
        *lock(&self.kept) = kept;
        self.report();
    }

    /// What is kept against a directory.
    pub(super) fn evidence(&self, directory: &NodeId) -> Vec<Evidence> {
        lock(&self.kept).iter().filter(|evidence| evidence.directory == *directory).cloned().collect()
    }

    /// Keeps the condition in step with an answer about `subject`. Silence and refusals say nothing either way.
    pub(super) fn judge(&self, address: &DirectoryAddress, subject: NodeId, error: Option<&DirectoryError>) {
        match error {
            Some(error) if error.is_dishonest() => {
                self.reports.note(Seen::DirectoryLied);
                self.say(address, &subject, Lie::of(error), &format!(" ({error})"));
            }
            None => {
                lock(&self.lies).remove(&(address.id, subject));
            }
            Some(_) => {}
        }
        self.report();
    }

    /// A directory was caught: raised, and both statements kept.
    pub(super) async fn prove(&self, address: &DirectoryAddress, lie: Lie, first: &[u8], second: &[u8]) {
        self.reports.note(Seen::DirectoryLied);
        self.say(address, &address.id, lie, "");
        self.report();
        self.keep(address.id, lie, first, second).await;
    }

    /// A mirror was caught. Each look-up goes past it all the same: whatever it gives is verified.
    pub(super) fn mirror_lied(&self, address: &DirectoryAddress, lie: Lie) {
        self.reports.note(Seen::DirectoryLied);
        let text = format!("{address}, a mirror: {}: {}", lie.name(), lie.text());
        lock(&self.mirrors).insert(address.origin.clone(), text);
        self.report();
    }

    /// Keeps both statements of a lie about a card.
    pub(super) async fn keep_cards(
        &self,
        address: &DirectoryAddress,
        error: &DirectoryError,
        known: &[u8],
        given: &[u8],
    ) {
        self.keep(address.id, Lie::of(error), known, given).await;
    }

    async fn keep(&self, directory: NodeId, lie: Lie, first: &[u8], second: &[u8]) {
        let evidence =
            Evidence { directory, lie: lie as u8, first: first.to_vec(), second: second.to_vec(), at: clock::now() };
        {
            let mut kept = lock(&self.kept);
            let same = |known: &Evidence| Evidence { at: evidence.at, ..known.clone() } == evidence;
            if kept.len() >= EVIDENCE || kept.iter().any(same) {
                return;
            }
            kept.push(evidence.clone());
        }
        if let Err(error) = self.store.keep_evidence(evidence).await {
            tracing::warn!(%error, "evidence against a directory was not stored");
        }
    }

    fn say(&self, address: &DirectoryAddress, subject: &NodeId, lie: Lie, more: &str) {
        let mut lies = lock(&self.lies);
        if lies.len() >= REMEMBERED {
            lies.pop_first();
        }
        let about = if *subject == address.id { String::new() } else { format!(", about {}", subject.short()) };
        let text = format!("{address}{about}: {}: {}{more}", lie.name(), lie.text());
        lies.insert((address.id, *subject), text);
    }

    /// Something was left out.
    pub(super) fn doubt(&self, address: &DirectoryAddress, doubt: Doubt, subject: NodeId, more: &str) {
        {
            let mut doubts = lock(&self.doubts);
            if doubts.len() >= REMEMBERED {
                doubts.pop_first();
            }
            let about = if subject == address.id { String::new() } else { format!(", about {}", subject.short()) };
            doubts.insert((address.id, doubt, subject), format!("{address}{about}: {}{more}", doubt.text()));
        }
        self.report();
    }

    /// It was done after all.
    pub(super) fn settle(&self, directory: NodeId, doubt: Doubt, subject: NodeId) {
        let settled = lock(&self.doubts).remove(&(directory, doubt, subject)).is_some();
        if settled {
            self.report();
        }
    }

    /// No offer waits any more but for these.
    pub(super) fn answered_but(&self, waiting: &BTreeSet<NodeId>) {
        let settled = {
            let mut doubts = lock(&self.doubts);
            let before = doubts.len();
            doubts.retain(|(_, doubt, peer), _| *doubt != Doubt::Unanswered || waiting.contains(peer));
            doubts.len() != before
        };
        if settled {
            self.report();
        }
    }

    fn report(&self) {
        let now = clock::now();
        let mirrors = lock(&self.mirrors).clone();
        let lies: Vec<String> = lock(&self.lies).values().chain(mirrors.values()).cloned().collect();
        self.raise(Condition::DirectoryDishonest, now, lies.iter());
        self.raise(Condition::DirectoryDoubtful, now, lock(&self.doubts).values());
    }

    fn raise<'a>(&self, condition: Condition, now: UnixMillis, texts: impl ExactSizeIterator<Item = &'a String>) {
        let count = texts.len();
        let named: Vec<&str> = texts.take(NAMED).map(String::as_str).collect();
        match count.checked_sub(named.len()) {
            _ if count == 0 => self.health.clear(condition),
            Some(more) if more > 0 => {
                self.health.raise(condition, now, format!("{}; and {more} more", named.join("; ")));
            }
            _ => self.health.raise(condition, now, named.join("; ")),
        }
    }
}

/// A piece of evidence as the admin contract shows it: heads are texts, cards bytes.
pub(super) fn shown(evidence: &Evidence) -> DirectoryEvidence {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => super::wire::encode(bytes),
    };
    DirectoryEvidence {
        lie: Lie::from_number(evidence.lie).map_or("unknown", Lie::name).to_owned(),
        first: text(&evidence.first),
        second: text(&evidence.second),
        at: evidence.at.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lies_are_kept_by_number_and_named_apart() {
        for lie in Lie::ALL {
            assert_eq!(Lie::from_number(lie as u8), Some(lie));
            assert_eq!(Lie::ALL.iter().filter(|other| other.name() == lie.name()).count(), 1);
        }
        assert_eq!(Lie::from_number(0), None);
        assert_eq!(Lie::of(&DirectoryError::Rollback), Lie::Replayed);
        let receipt = DirectoryError::BadAnswer(WireError::WrongSigner { what: "receipt" });
        assert_eq!(Lie::of(&receipt), Lie::BadReceipt);
        assert_eq!(Lie::of(&DirectoryError::BadAnswer(WireError::BadSignature { what: "card" })), Lie::Swapped);
    }
}
