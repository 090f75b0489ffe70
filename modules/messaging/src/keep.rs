//! How much of what peers send is kept: bounds for one peer and for all, the counts they are held against, deletion.
//!
//! What a peer sends is its own choice, and it shares a database with everything else of the node. So beyond its bound it is
//! refused, and its messages wait where they came from. The counts change in the transactions that store and delete, and
//! the operator is told whose messages wait for room.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use openred_module::{Committed, Context, HostError, NodeId, Scan};
use serde::{Deserialize, Serialize};

use crate::error::MessagingError;
use crate::record::{Envelope, MessageId};
use crate::store::{self, Change, Conversation, Ids, Sequence, Stored, Writers};

type Result<T> = std::result::Result<T, MessagingError>;

/// Messages kept of one peer: more than anybody reads, and few enough that listing them stays quick.
pub const PEER_MESSAGES: u64 = 10_000;
/// Bytes kept of one peer: a sixteenth of the default database, 254 of the longest messages.
pub const PEER_BYTES: u64 = 64 << 20;
/// Bytes kept of all peers: half of the default database. Their number is bounded by it, each costing at least
/// [`MESSAGE_COST`].
pub const INBOX_BYTES: u64 = 512 << 20;
/// What a message takes beside its content, in bytes: its rows with their keys, seals and places in the index.
pub const MESSAGE_COST: u64 = 1024;
/// What a file that it names adds, in bytes.
const ATTACHMENT_COST: u64 = 512;
/// Ids of deleted messages that are remembered of one peer, so that none comes back by a repeated delivery. A sender repeats only
/// the last message that it had no receipt for; the rest is for what travels slowly.
pub const DELETED_IDS: u64 = 1000;
/// Messages deleted in one transaction.
pub(crate) const TOGETHER: usize = 64;
/// Peers whose messages wait for room that are kept track of; the condition names three.
const FULL_PEERS: usize = 64;
/// Peers that the condition names.
const NAMED: usize = 3;

/// How many messages, and their cost in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Kept {
    pub(crate) fn add(&mut self, cost: u64) {
        self.messages += 1;
        self.bytes += cost;
    }

    fn remove(&mut self, gone: Kept) {
        self.messages = self.messages.saturating_sub(gone.messages);
        self.bytes = self.bytes.saturating_sub(gone.bytes);
    }
}

/// What a message counts for.
pub(crate) fn cost(envelope: &Envelope) -> u64 {
    envelope.content.len() as u64 + MESSAGE_COST + envelope.attachments.len() as u64 * ATTACHMENT_COST
}

/// Whether a message of this cost fits beside what is kept of its peer and of all.
pub(crate) fn has_room(peer: Kept, all: Kept, cost: u64) -> bool {
    peer.messages < PEER_MESSAGES && peer.bytes + cost <= PEER_BYTES && all.bytes + cost <= INBOX_BYTES
}

async fn has_room_for(context: &Context, peer: &NodeId, cost: u64) -> Result<bool> {
    let kept = store::conversation_of(context, peer).await?.kept;
    Ok(has_room(kept, store::kept_in_all(context).await?, cost))
}

/// A message that is to go.
struct Doomed {
    sequence: Sequence,
    id: MessageId,
    cost: u64,
    unread: bool,
}

impl Writers {
    /// Deletes those of these received messages that are there (and of `only`, if given), in one transaction. How many.
    ///
    /// Their ids are remembered for a while.
    pub(crate) async fn delete(&self, context: &Context, only: Option<&Ids>, which: &[Sequence]) -> Result<u64> {
        let _turn = self.turn().await;
        for _ in 0..store::ATTEMPTS {
            let doomed = doomed(context, only, which).await?;
            let mut change = Change::new(context);
            let mut gone = Kept::default();
            for (peer, messages) in &doomed {
                gone.messages += messages.len() as u64;
                gone.bytes += messages.iter().map(|message| message.cost).sum::<u64>();
                erase(&mut change, peer, messages).await?;
            }
            if gone.messages == 0 {
                return Ok(0);
            }
            change.count_in_all(|kept| kept.remove(gone)).await?;
            if change.commit().await? == Committed::Yes {
                return Ok(gone.messages);
            }
        }
        Err(HostError::Storage.into())
    }

    /// Deletes all that was received under one id of a peer before now. How many.
    pub(crate) async fn delete_all(&self, context: &Context, peer: &NodeId) -> Result<u64> {
        // A peer that goes on sending must not keep this going.
        let last = store::last_sequence(context).await?;
        let (mut deleted, mut after) = (0, None);
        loop {
            let scan = Scan::prefix(store::conversation(peer, None)).after(after).limit(TOGETHER);
            let page = context.scan(scan).await?;
            let received = page.rows.iter().filter(|(_, direction)| direction.as_ref() == b"i");
            let which = received.map(|(key, _)| store::sequence_of(key)).collect::<Result<Vec<_>>>()?;
            deleted += self.delete(context, None, &which).await?;
            let Some((key, _)) = page.rows.last() else { return Ok(deleted) };
            if !page.more || store::sequence_of(key)? >= last {
                return Ok(deleted);
            }
            after = Some(key.clone());
        }
    }
}

async fn doomed(context: &Context, only: Option<&Ids>, which: &[Sequence]) -> Result<BTreeMap<NodeId, Vec<Doomed>>> {
    let mut doomed: BTreeMap<NodeId, Vec<Doomed>> = BTreeMap::new();
    for sequence in which {
        let stored = Stored::load(context, store::incoming(*sequence), *sequence).await?;
        let Some(Stored { peer, envelope, .. }) = stored else { continue };
        if only.is_some_and(|only| !only.all().contains(&peer)) {
            continue;
        }
        let unread = context.get(store::unread(*sequence)).await?.is_some();
        let message = Doomed { sequence: *sequence, id: envelope.id, cost: cost(&envelope), unread };
        doomed.entry(peer).or_default().push(message);
    }
    Ok(doomed)
}

/// Takes one peer's messages out of every table, and the oldest remembered ids that are too many now.
async fn erase(change: &mut Change<'_>, peer: &NodeId, messages: &[Doomed]) -> Result<()> {
    let mut gone = Kept::default();
    for message in messages {
        change.delete(store::incoming(message.sequence));
        change.delete(store::attached(message.sequence));
        change.delete(store::unread(message.sequence));
        change.delete(store::had_id(message.sequence));
        change.delete(store::conversation(peer, Some(message.sequence)));
        change.put(store::deleted(peer, Some(message.sequence)), message.id.to_vec());
        gone.add(message.cost);
    }
    let remembered = store::conversation_of(change.context, peer).await?.deleted + gone.messages;
    let too_many = remembered.saturating_sub(DELETED_IDS);
    if too_many > 0 {
        let most = usize::try_from(too_many).unwrap_or(usize::MAX);
        let oldest = change.context.scan(Scan::prefix(store::deleted(peer, None)).limit(most)).await?;
        for (key, id) in oldest.rows {
            let id: MessageId = id.as_ref().try_into().map_err(|_| MessagingError::BadRow)?;
            change.delete(key);
            change.delete(store::seen(peer, &id));
        }
    }
    let unread = messages.iter().filter(|message| message.unread).count() as u64;
    let count = |conversation: &mut Conversation| {
        conversation.kept.remove(gone);
        conversation.unread = conversation.unread.saturating_sub(unread);
        conversation.deleted = remembered - too_many;
    };
    change.summarise(peer, count).await
}

/// Peers whose messages were refused for want of room, with what the refused message costs. Memory only: a sender that
/// still has something tries again, and is refused again.
#[derive(Default)]
pub(crate) struct FullPeers(Mutex<BTreeMap<NodeId, u64>>);

impl FullPeers {
    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeId, u64>> {
        self.0.lock().expect("no panic happens under this lock")
    }

    /// A message of this cost was refused.
    pub(crate) fn refused(&self, context: &Context, peer: NodeId, cost: u64) {
        {
            let mut peers = self.peers();
            if peers.len() < FULL_PEERS || peers.contains_key(&peer) {
                peers.insert(peer, cost);
            }
        }
        self.tell(context);
    }

    /// A message was taken. Messages of one peer come in order, so none of it waits for room any more.
    pub(crate) fn taken(&self, context: &Context, peer: NodeId) {
        let waited = self.peers().remove(&peer).is_some();
        if waited {
            self.tell(context);
        }
    }

    /// A peer that has no link any more sends nothing.
    pub(crate) fn forgotten(&self, context: &Context, peers: &[NodeId]) {
        let waited = peers.iter().filter(|peer| self.peers().remove(*peer).is_some()).count();
        if waited > 0 {
            self.tell(context);
        }
    }

    /// Room was made: whose messages would fit now?
    pub(crate) async fn look_again(&self, context: &Context) -> Result<()> {
        let waiting: Vec<(NodeId, u64)> = self.peers().iter().map(|(peer, cost)| (*peer, *cost)).collect();
        for (peer, cost) in waiting {
            if has_room_for(context, &peer, cost).await? {
                self.peers().remove(&peer);
            }
        }
        self.tell(context);
        Ok(())
    }

    fn tell(&self, context: &Context) {
        let peers = self.peers();
        let names: Vec<String> = peers.keys().take(NAMED).map(NodeId::short).collect();
        let others = peers.len().saturating_sub(NAMED);
        let others = if others == 0 { String::new() } else { format!(" and {others} more") };
        context.set_full((!names.is_empty()).then(|| format!("no room for messages of {}{others}", names.join(", "))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_for_one_and_for_all() {
        let (none, cost) = (Kept::default(), 2 * MESSAGE_COST);
        assert!(has_room(none, none, cost));
        assert!(has_room(Kept { messages: PEER_MESSAGES - 1, bytes: 0 }, none, cost));
        assert!(!has_room(Kept { messages: PEER_MESSAGES, bytes: 0 }, none, cost));
        assert!(has_room(Kept { messages: 1, bytes: PEER_BYTES - cost }, none, cost));
        assert!(!has_room(Kept { messages: 1, bytes: PEER_BYTES - cost + 1 }, none, cost));
        assert!(has_room(none, Kept { messages: 1, bytes: INBOX_BYTES - cost }, cost));
        assert!(!has_room(none, Kept { messages: 1, bytes: INBOX_BYTES - cost + 1 }, cost));
    }
}
