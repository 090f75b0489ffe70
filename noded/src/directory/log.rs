//! Checks of a directory's log (docs/protocol.md section 7), in the background: that it only grows, that this node's own card and those that
//! it looked up are in it, that peers were shown the same one, and that another directory has no newer card.
//!
//! In: the directory's answers, heads that peers hand over inside sessions. Out: the last head that was checked, in the store;
//! lies and doubts ([`super::honesty`]). Nothing waits for these checks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openred_proto::checked::card::Card;
use openred_proto::error::WireError;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::log::head::Head;
use openred_proto::log::heads::Heads;
use openred_proto::log::{Salt, entry, tree};

use super::announce::BackOff;
use super::client::Client;
use super::honesty::{Doubt, Lie};
use super::{Directories, DirectoryError, Keep, lock};
use crate::clock;
use crate::sensitive::Sensitive;

/// A log is looked at this often when nothing asks for it, spread over its second half.
const CHECK_EVERY: Duration = Duration::from_secs(600);
/// Shortest time between two looks.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// Cards, heads and cross-checks that wait for a look: of more, the oldest go.
const WAITING: usize = 64;
/// Looks in which a card may be missing from the log: it is taken and logged at once, but answers pass each other.
const LOOKS: u8 = 3;
/// What a directory answers to who asks for more than its log has: where it signed for as much, a contradiction.
const NOT_SO_FAR: u16 = 422;

/// Where a directory says that a card stands in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) index: u64,
    pub(super) salt: Option<Salt>,
}

/// A card that a directory gave, to be found in its log.
#[derive(Clone, Debug)]
struct Given {
    node: NodeId,
    card: Bytes,
    listed: bool,
    place: Option<Place>,
    looks: u8,
}

/// A head that a peer was shown, verified; and its note.
type Shown = (NodeId, Head, Bytes);

/// What waits for the next look at one directory's log.
#[derive(Default)]
pub(super) struct Watch {
    wanted: tokio::sync::Notify,
    given: Mutex<VecDeque<Given>>,
    /// Heads that peers were shown, verified.
    shown: Mutex<VecDeque<Shown>>,
    /// Nodes whose cards another directory gave.
    cross: Mutex<VecDeque<NodeId>>,
    /// This node's card as the directory took it last.
    registered: Mutex<Option<Bytes>>,
    /// The log was shorter at the last look than before.
    set_back: AtomicBool,
    /// Entries of the last head that was checked, and when.
    checked: Mutex<Option<(u64, UnixMillis)>>,
}

impl Watch {
    /// The directory took this card of this node.
    pub(super) fn took(&self, card: Bytes) {
        *lock(&self.registered) = Some(card);
        self.wanted.notify_one();
    }

    /// The directory was asked for something: its log is looked at.
    pub(super) fn look(&self) {
        self.wanted.notify_one();
    }

    /// The directory gave a verified card.
    pub(super) fn gave(&self, card: &Card, bytes: Bytes, place: Option<Place>) {
        let given = Given { node: card.node_id, card: bytes, listed: card.fields.listed, place, looks: 0 };
        push(&self.given, given);
        self.wanted.notify_one();
    }

    /// Another directory gave a card of this node.
    pub(super) fn cross(&self, node: NodeId) {
        let mut cross = lock(&self.cross);
        if !cross.contains(&node) {
            cross.push_back(node);
            cross.truncate(WAITING);
        }
        drop(cross);
        self.wanted.notify_one();
    }

    pub(super) fn was_shown(&self, peer: NodeId, head: Head, note: Bytes) {
        if lock(&self.shown).iter().any(|(_, _, waiting)| *waiting == note) {
            return;
        }
        push(&self.shown, (peer, head, note));
        self.wanted.notify_one();
    }

    /// Until something asks for a look, or so long and half as long again.
    pub(super) async fn wait(&self, every: Duration) {
        let mut spread = [0];
        getrandom::fill(&mut spread).expect("the kernel's generator answers since the probe at start");
        let pause = every / 2 + every / 512 * u32::from(spread[0]);
        let _ = tokio::time::timeout(pause, self.wanted.notified()).await;
    }

    /// Entries of the last head that was checked, and when; zero: none yet.
    pub(super) fn checked(&self) -> (u64, UnixMillis) {
        lock(&self.checked).unwrap_or((0, UnixMillis(0)))
    }
}

fn push<T>(queue: &Mutex<VecDeque<T>>, item: T) {
    let mut queue = lock(queue);
    if queue.len() >= WAITING {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// What a look found out of order.
enum Fault {
    /// Proven, by these two.
    Lie(Lie, Bytes, Bytes),
    /// Noticed.
    Withheld(DirectoryError),
    /// To be looked at again soon.
    Again,
    /// Nothing about the log.
    Passing(DirectoryError),
}

impl From<DirectoryError> for Fault {
    fn from(error: DirectoryError) -> Self {
        match error {
            DirectoryError::Refused(429 | 503) => Self::Passing(error),
            DirectoryError::Refused(_) | DirectoryError::BadAnswer(_) => Self::Withheld(error),
            _ => Self::Passing(error),
        }
    }
}

impl Directories {
    /// Watches one directory's log, forever.
    pub(super) async fn watch(self: Arc<Self>, client: Arc<Client>) {
        loop {
            client.watch.wait(CHECK_EVERY).await;
            let mut back_off = BackOff::default();
            while !self.look(&client).await {
                tokio::time::sleep(back_off.next()).await;
            }
            tokio::time::sleep(CHECK_PAUSE).await;
        }
    }

    /// One look at a directory's log; false when it is to be repeated soon.
    pub(super) async fn look(&self, client: &Client) -> bool {
        if client.may_be_a_mirror() {
            return true;
        }
        let cross: Vec<NodeId> = lock(&client.watch.cross).drain(..).collect();
        for node in cross {
            self.cross_check(client, node).await;
        }
        let own = self.own_shown(client).await;
        match own.err() {
            None => {}
            Some(Fault::Lie(lie, first, second)) => self.honesty.prove(client.address(), lie, &first, &second).await,
            Some(Fault::Withheld(error) | Fault::Passing(error)) => {
                tracing::debug!(directory = %client.address(), %error, "own card not seen there");
            }
            Some(Fault::Again) => return false,
        }
        // Taken before the head is asked for: only then were they signed before it.
        let shown: Vec<Shown> = lock(&client.watch.shown).drain(..).collect();
        let looked = match self.grown(client).await {
            Ok((head, note)) => match self.compare_shown(client, &shown, &head, &note).await {
                Ok(()) => self.find_given(client, &head, &note).await,
                Err(fault) => Err(fault),
            },
            Err(fault) => Err(fault),
        };
        if matches!(looked, Err(Fault::Passing(_) | Fault::Again)) {
            shown.into_iter().for_each(|shown| push(&client.watch.shown, shown));
        }
        let id = client.address().id;
        match looked {
            Ok(again) => {
                self.honesty.settle(id, Doubt::Withheld, id);
                return !again;
            }
            Err(Fault::Again) => return false,
            Err(Fault::Lie(lie, first, second)) => {
                tracing::warn!(directory = %client.address(), lie = lie.name(), "a directory was caught");
                self.honesty.prove(client.address(), lie, &first, &second).await;
            }
            Err(Fault::Withheld(error)) => {
                self.honesty.doubt(client.address(), Doubt::Withheld, id, &format!(" ({error})"));
            }
            Err(Fault::Passing(error)) => {
                tracing::debug!(directory = %client.address(), %error, "log not looked at");
            }
        }
        true
    }

    /// The directory's head now, which goes on from the last one.
    async fn grown(&self, client: &Client) -> Result<(Head, Bytes), Fault> {
        let id = client.address().id;
        let note = client.log_head().await?;
        let head = Head::verify(&note, &id).map_err(|_| Fault::Lie(Lie::BadHead, note.clone(), Bytes::new()))?;
        let kept = self.store.directory_head(id).await.map_err(DirectoryError::from)?;
        // One that does not verify was changed in the store: nothing to hold anybody to.
        if let Some((kept, before)) =
            kept.and_then(|kept| Some((Head::verify(&kept, &id).ok()?, kept))).map(|(head, kept)| (kept, head))
        {
            let lie = |lie| Err(Fault::Lie(lie, kept.clone(), note.clone()));
            if head.size == before.size && head.root != before.root {
                return lie(Lie::Rewritten);
            }
            if head.size < before.size {
                // Twice, so that two answers that passed each other prove nothing.
                return if client.watch.set_back.swap(true, Ordering::Relaxed) {
                    lie(Lie::RolledBack)
                } else {
                    Err(Fault::Again)
                };
            }
            self.goes_on(client, (&before, &kept), (&head, &note), Lie::Rewritten).await?;
        }
        client.watch.set_back.store(false, Ordering::Relaxed);
        let now = clock::now();
        self.store.keep_directory_head(id, note.clone(), now).await.map_err(DirectoryError::from)?;
        *lock(&client.watch.checked) = Some((head.size, now));
        Ok((head, note))
    }

    /// Has it proven that one head's log is the beginning of another's.
    async fn goes_on(
        &self,
        client: &Client,
        (old, old_note): (&Head, &Bytes),
        (new, new_note): (&Head, &Bytes),
        lie: Lie,
    ) -> Result<(), Fault> {
        let proof = if old.size == 0 || old.size == new.size {
            Vec::new()
        } else {
            match client.consistency(old.size, new.size).await {
                Err(DirectoryError::Refused(NOT_SO_FAR)) => {
                    return Err(Fault::Lie(lie, old_note.clone(), new_note.clone()));
                }
                proof => proof?,
            }
        };
        tree::verify_consistency(old.size, new.size, &old.root, &new.root, &proof)
            .map_err(|_| Fault::Lie(lie, old_note.clone(), new_note.clone()))
    }

    /// Holds what peers were shown against what is shown here. A head of theirs was signed before the one here was asked for: it cannot
    /// be of a longer log.
    async fn compare_shown(&self, client: &Client, shown: &[Shown], head: &Head, note: &Bytes) -> Result<(), Fault> {
        for (peer, theirs, their_note) in shown {
            tracing::debug!(directory = %client.address(), peer = %Sensitive(peer.short()), size = theirs.size, "head of a peer");
            if theirs.size > head.size {
                return Err(Fault::Lie(Lie::TwoFaces, note.clone(), their_note.clone()));
            }
            self.goes_on(client, (theirs, their_note), (head, note), Lie::TwoFaces).await?;
        }
        Ok(())
    }

    /// Has it proven that the cards that it gave are in its log. Whether some are to be looked for again.
    async fn find_given(&self, client: &Client, head: &Head, note: &Bytes) -> Result<bool, Fault> {
        let given: Vec<Given> = lock(&client.watch.given).drain(..).collect();
        let mut again = false;
        for mut given in given {
            // A listed card stands there by its own hash, and no other does.
            let place = given.place.filter(|place| place.salt.is_none() == given.listed);
            let Some(place) = place else {
                self.honesty.doubt(client.address(), Doubt::Unlogged, given.node, "");
                continue;
            };
            if place.index >= head.size {
                given.looks += 1;
                if given.looks < LOOKS {
                    again = true;
                    push(&client.watch.given, given);
                } else {
                    self.honesty.doubt(client.address(), Doubt::Unlogged, given.node, "");
                }
                continue;
            }
            let proof = client.inclusion(place.index, head.size).await?;
            let leaf = tree::leaf_hash(&entry(&given.card, place.salt.as_ref()));
            tree::verify_inclusion(place.index, head.size, &leaf, &proof, &head.root)
                .map_err(|_| Fault::Lie(Lie::ForgedInclusion, note.clone(), given.card.clone()))?;
            self.honesty.settle(client.address().id, Doubt::Unlogged, given.node);
        }
        Ok(again)
    }

    /// The same of a mirror's cards and proofs, by the directory's head.
    pub(super) async fn find_given_by_mirror(
        &self,
        mirror: &Client,
        head: &Head,
        note: &Bytes,
    ) -> Result<(), DirectoryError> {
        match self.find_given(mirror, head, note).await {
            Ok(_) => Ok(()),
            Err(Fault::Lie(lie, ..)) => {
                self.honesty.mirror_lied(mirror.address(), lie);
                Ok(())
            }
            Err(Fault::Withheld(error) | Fault::Passing(error)) => Err(error),
            Err(Fault::Again) => Ok(()),
        }
    }

    /// This node's own card as others are given it.
    async fn own_shown(&self, client: &Client) -> Result<(), Fault> {
        let Some(own) = lock(&client.watch.registered).clone() else { return Ok(()) };
        let shown = client.node(self.me).await?;
        if shown.card == own {
            let card = Card::verify(&own, clock::now()).map_err(DirectoryError::from)?;
            client.watch.gave(&card, own, shown.place);
            // That was for this look itself.
            let _ = tokio::time::timeout(Duration::ZERO, client.watch.wanted.notified()).await;
            return Ok(());
        }
        let lie = |lie| Err(Fault::Lie(lie, own.clone(), shown.card.clone()));
        match (Card::verify(&own, clock::now()), Card::verify(&shown.card, clock::now())) {
            (Ok(own), Ok(shown)) if shown.node_id == own.node_id && shown.sequence < own.sequence => lie(Lie::Replayed),
            (_, Err(WireError::BadSignature { .. } | WireError::WrongSigner { .. })) => lie(Lie::Swapped),
            // A newer one of this node is on its way there, or a successor's was given.
            _ => Ok(()),
        }
    }

    /// Asks this directory as well for a card that another one gave.
    async fn cross_check(&self, client: &Client, node: NodeId) {
        let Ok(shown) = client.seek(node).await else { return };
        let address = client.address();
        let card = match Card::verify(&shown.card, clock::now()) {
            Ok(card) if card.node_id == node => card,
            Ok(_) => return,
            Err(error) => {
                let error = DirectoryError::from(error);
                self.honesty.judge(address, node, Some(&error));
                if error.is_dishonest() {
                    self.keep_lie(client, node, &error, &shown.card).await;
                }
                return;
            }
        };
        let Ok(Some(known)) = self.store.peer(node).await else { return };
        if card.sequence < known.listed {
            return self.honesty.doubt(address, Doubt::Behind, node, "");
        }
        self.honesty.settle(address.id, Doubt::Behind, node);
        client.gave(&card, shown.clone());
        if card.sequence <= known.listed {
            return;
        }
        // The one that was asked first has an older card.
        let first = self.cached(&node).map(|cached| cached.directory).filter(|first| *first != address.id);
        let first = first.and_then(|first| self.clients.iter().find(|client| client.address().id == first));
        if let Some(first) = first {
            self.honesty.doubt(first.address(), Doubt::Behind, node, "");
        }
        let sequence = card.sequence;
        if self.take_in(card, shown.card, address.id, Vec::new(), Keep::Card).await.is_ok() {
            let _ = self.store.list_card(node, sequence).await;
        }
    }

    /// Keeps what proves a lie about a card: the one that is known, and the one that was given.
    pub(super) async fn keep_lie(&self, client: &Client, node: NodeId, error: &DirectoryError, given: &[u8]) {
        let known = self.store.peer(node).await.ok().flatten().map(|known| known.card).unwrap_or_default();
        self.honesty.keep_cards(client.address(), error, &known, given).await;
    }

    /// The heads that were checked here, to hand to a peer; none before there are any.
    pub(super) async fn own_heads(&self) -> Option<Bytes> {
        let mut notes = Vec::new();
        for client in &self.clients {
            notes.extend(self.store.directory_head(client.address().id).await.ok().flatten().map(|note| note.to_vec()));
        }
        (!notes.is_empty()).then(|| Heads { notes }.encode().into())
    }

    /// A peer hands over heads that it was shown. Of directories that are not used here nothing is kept.
    pub(super) fn take_heads(&self, peer: NodeId, bytes: &[u8]) {
        let Ok(heads) = Heads::decode(bytes) else { return };
        for note in heads.notes {
            let claimed = Head::claimed(&note).ok();
            let used = |client: &&Arc<Client>| claimed == Some(client.address().id) && !client.is_a_mirror();
            let Some(client) = self.clients.iter().find(used) else { continue };
            // One that does not verify is the peer's doing or a directory's: it proves nothing.
            if let Ok(head) = Head::verify(&note, &client.address().id) {
                client.watch.was_shown(peer, head, note.into());
            }
        }
    }

    /// A directory signed for an offer so often, and no word of its recipient came.
    pub(super) async fn unanswered(&self, directory: NodeId, peer: NodeId) {
        let Some(client) = self.clients.iter().find(|client| client.address().id == directory) else { return };
        if client.node(peer).await.is_ok_and(|shown| shown.fresh) {
            self.honesty.doubt(client.address(), Doubt::Unanswered, peer, "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_waits_once() {
        let (watch, id) = (Watch::default(), NodeId::from_bytes([1; 32]));
        let head = Head { directory: id, size: 3, root: [7; 32] };
        for note in ["one", "one", "another", "one"] {
            watch.was_shown(id, head, note.into());
        }
        assert_eq!(lock(&watch.shown).len(), 2);
    }
}
