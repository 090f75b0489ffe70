//! The rows of this module and the transactions that change them.
//!
//! | key | value |
//! |---|---|
//! | `n` | the last sequence given, 8 bytes |
//! | `i/` seq | a received message: peer, time of arrival, envelope |
//! | `o/` seq | a sent message: peer, time, envelope |
//! | `v/` peer seq | the conversation: `i` or `o` |
//! | `u/` seq | unread: nothing |
//! | `q/` peer seq | waits for delivery: nothing |
//! | `e/` seq | how a sent message ended: JSON [`Ended`] |
//! | `k/` peer id | a sent message's id: its sequence |
//! | `s/` peer id | a received message's id: its sequence |
//! | `d/` peer seq | a received message that was deleted: its id, remembered for a while |
//! | `c/` peer | summary of the conversation: JSON [`Conversation`] |
//! | `a/` seq | the files that a message names: JSON, a list of [`Attachment`] |
//! | `r/` peer seq | a read receipt that waits: the message's id, when it was read |
//! | `w/` seq | the id that the peer had at the time, where it is not the one in the rows |
//! | `t` | what is kept of all peers together: JSON [`Kept`] |
//!
//! `seq` is 8 bytes big-endian, given inside the transaction that stores the message: so a reader that has seen sequence
//! n never finds a lower one appear later, and a cursor misses nothing.
//!
//! `peer` in a row is the first id of the peer that was known when the row was written; who is who is the host's to say
//! (`Context::identities`). So a peer that takes a new id, or takes it back, keeps its rows where they are. What came under a later id
//! before the node knew is found under that one: rows are looked up under every id, and written under the first.

use bytes::{BufMut, Bytes, BytesMut};
use openred_module::{Batch, Committed, Context, HostError, NodeId, Scan, UnixMillis};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::attachment::Attachment;
use crate::error::MessagingError;
use crate::keep::{self, Kept};
use crate::receipts::{self, Tells};
use crate::record::{Envelope, MessageId, VERSION};

type Result<T> = std::result::Result<T, MessagingError>;

/// Most messages that wait for one peer: at 256 KiB each no more than 256 MiB.
pub(crate) const QUEUE_LIMIT: usize = 1000;
/// How often a transaction is tried again after another writer came first. Writers queue on one lock, so once is the rule.
pub(crate) const ATTEMPTS: usize = 8;

/// Key of what is kept of all peers together.
const ALL_KEPT: &str = "t";

/// Position of a message in this node's log of messages.
pub(crate) type Sequence = u64;

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) peer: NodeId,
    pub(crate) at: UnixMillis,
    pub(crate) envelope: Envelope,
}

/// How a sent message ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) at: UnixMillis,
    /// The peer's refusal code; absent when it was delivered.
    pub(crate) refused: Option<String>,
    /// When the peer read it, as the peer says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) read: Option<UnixMillis>,
}

/// One line of the list of conversations, of one id of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Conversation {
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) unread: u64,
    pub(crate) waiting: u64,
    pub(crate) last_at: UnixMillis,
    /// Received messages that are still here.
    #[serde(default)]
    pub(crate) kept: Kept,
    /// Ids of deleted ones that are remembered.
    #[serde(default)]
    pub(crate) deleted: u64,
    /// Read receipts that wait for it.
    #[serde(default)]
    pub(crate) receipts: u64,
}

impl Conversation {
    /// The two together, as a reader sees them.
    pub(crate) fn join(&mut self, other: &Self) {
        self.received += other.received;
        self.sent += other.sent;
        self.unread += other.unread;
        self.waiting += other.waiting;
        self.last_at = self.last_at.max(other.last_at);
        self.kept.messages += other.kept.messages;
        self.kept.bytes += other.kept.bytes;
    }
}

/// What the receiver tells the sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) v: u32,
    pub(crate) id: String,
    /// Whether it had been received before.
    pub(crate) duplicate: bool,
}

/// Serialises the writers. Correctness is the transactions' (each states what it expects); the lock spares them from losing to each
/// other again and again, and is held across the host's call on purpose.
#[derive(Default)]
pub(crate) struct Writers(Mutex<()>);

fn numbered(prefix: &[u8], peer: Option<&NodeId>, sequence: Option<Sequence>) -> Bytes {
    let mut key = BytesMut::with_capacity(prefix.len() + 40);
    key.put_slice(prefix);
    if let Some(peer) = peer {
        key.put_slice(peer.as_bytes());
    }
    if let Some(sequence) = sequence {
        key.put_u64(sequence);
    }
    key.freeze()
}

pub(crate) fn incoming(sequence: Sequence) -> Bytes {
    numbered(b"i/", None, Some(sequence))
}
pub(crate) fn outgoing(sequence: Sequence) -> Bytes {
    numbered(b"o/", None, Some(sequence))
}
pub(crate) fn unread(sequence: Sequence) -> Bytes {
    numbered(b"u/", None, Some(sequence))
}
pub(crate) fn had_id(sequence: Sequence) -> Bytes {
    numbered(b"w/", None, Some(sequence))
}
pub(crate) fn attached(sequence: Sequence) -> Bytes {
    numbered(b"a/", None, Some(sequence))
}
pub(crate) fn ended(sequence: Sequence) -> Bytes {
    numbered(b"e/", None, Some(sequence))
}
pub(crate) fn conversation(peer: &NodeId, sequence: Option<Sequence>) -> Bytes {
    numbered(b"v/", Some(peer), sequence)
}
pub(crate) fn queued(peer: &NodeId, sequence: Option<Sequence>) -> Bytes {
    numbered(b"q/", Some(peer), sequence)
}
pub(crate) fn receipt(peer: &NodeId, sequence: Option<Sequence>) -> Bytes {
    numbered(b"r/", Some(peer), sequence)
}
pub(crate) fn summary(peer: &NodeId) -> Bytes {
    numbered(b"c/", Some(peer), None)
}
pub(crate) fn deleted(peer: &NodeId, sequence: Option<Sequence>) -> Bytes {
    numbered(b"d/", Some(peer), sequence)
}
fn named(prefix: &[u8], peer: &NodeId, id: &MessageId) -> Bytes {
    let mut key = BytesMut::from(&numbered(prefix, Some(peer), None)[..]);
    key.put_slice(id);
    key.freeze()
}
pub(crate) fn seen(peer: &NodeId, id: &MessageId) -> Bytes {
    named(b"s/", peer, id)
}
pub(crate) fn given(peer: &NodeId, id: &MessageId) -> Bytes {
    named(b"k/", peer, id)
}

/// The sequence at the end of a key.
pub(crate) fn sequence_of(key: &[u8]) -> Result<Sequence> {
    key.last_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes)).ok_or(MessagingError::BadRow)
}

/// The peer after a prefix of two bytes.
pub(crate) fn peer_of(key: &[u8]) -> Result<NodeId> {
    let bytes = key.get(2..34).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes.map(NodeId::from_bytes).ok_or(MessagingError::BadRow)
}

impl Stored {
    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_slice(self.peer.as_bytes());
        bytes.put_u64(self.at);
        bytes.put(self.envelope.encode_at_rest());
        bytes.freeze()
    }

    /// A row with what belongs to it in another.
    pub(crate) async fn load(context: &Context, key: Bytes, sequence: Sequence) -> Result<Option<Self>> {
        let Some(row) = context.get(key).await? else { return Ok(None) };
        let mut stored = Self::decode(&row)?;
        stored.envelope.attachments = context.get_json(attached(sequence)).await?.unwrap_or_default();
        Ok(Some(stored))
    }

    fn put(&self, change: &mut Change<'_>, key: Bytes, sequence: Sequence) -> Result<()> {
        change.put(key, self.encode());
        if !self.envelope.attachments.is_empty() {
            let names = serde_json::to_vec(&self.envelope.attachments).map_err(|_| MessagingError::BadRow)?;
            change.put(attached(sequence), names);
        }
        Ok(())
    }

    pub(crate) fn decode(row: &Bytes) -> Result<Self> {
        let (peer, rest) = row.split_first_chunk::<32>().ok_or(MessagingError::BadRow)?;
        let at = rest.first_chunk::<8>().ok_or(MessagingError::BadRow)?;
        let envelope = Envelope::decode(&row.slice(40..)).map_err(|_| MessagingError::BadRow)?;
        Ok(Self { peer: NodeId::from_bytes(*peer), at: u64::from_be_bytes(*at), envelope })
    }
}

/// A change under construction: what was read, and must still be so when it is written.
pub(crate) struct Change<'a> {
    pub(crate) context: &'a Context,
    batch: Batch,
}

impl<'a> Change<'a> {
    pub(crate) fn new(context: &'a Context) -> Self {
        Self { context, batch: Batch::new() }
    }

    async fn next_sequence(&mut self) -> Result<Sequence> {
        let row = self.context.get("n").await?;
        let last = row.as_deref().map_or(Ok(0), sequence_of)?;
        let next = last + 1;
        let batch = std::mem::take(&mut self.batch);
        self.batch = batch.expect("n", row).put("n", next.to_be_bytes().to_vec());
        Ok(next)
    }

    pub(crate) async fn summarise(&mut self, peer: &NodeId, change: impl FnOnce(&mut Conversation)) -> Result<()> {
        let key = summary(peer);
        let row = self.context.get(key.clone()).await?;
        let mut conversation = match &row {
            Some(row) => serde_json::from_slice(row).map_err(|_| MessagingError::BadRow)?,
            None => Conversation::default(),
        };
        change(&mut conversation);
        let value = serde_json::to_vec(&conversation).map_err(|_| MessagingError::BadRow)?;
        let batch = std::mem::take(&mut self.batch);
        self.batch = batch.expect(key.clone(), row).put(key, value);
        Ok(())
    }

    pub(crate) async fn count_in_all(&mut self, change: impl FnOnce(&mut Kept)) -> Result<()> {
        let row = self.context.get(ALL_KEPT).await?;
        let mut kept = match &row {
            Some(row) => serde_json::from_slice(row).map_err(|_| MessagingError::BadRow)?,
            None => Kept::default(),
        };
        change(&mut kept);
        let value = serde_json::to_vec(&kept).map_err(|_| MessagingError::BadRow)?;
        let batch = std::mem::take(&mut self.batch);
        self.batch = batch.expect(ALL_KEPT, row).put(ALL_KEPT, value);
        Ok(())
    }

    pub(crate) fn expect(&mut self, key: Bytes, row: Option<Bytes>) {
        self.batch.expect.push((key, row));
    }

    pub(crate) fn put(&mut self, key: Bytes, value: impl Into<Bytes>) {
        self.batch.put.push((key, value.into()));
    }

    pub(crate) fn delete(&mut self, key: Bytes) {
        self.batch.delete.push(key);
    }

    pub(crate) async fn commit(self) -> Result<Committed> {
        Ok(self.context.apply(self.batch).await?)
    }
}

impl Writers {
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.lock().await
    }

    /// Stores a message to be sent: durable, in the conversation and on the queue when this returns. An id that was stored
    /// before is the same message, whatever became of it since; with other content it is a mistake of the caller.
    pub(crate) async fn enqueue(&self, context: &Context, ids: &Ids, envelope: Envelope) -> Result<Sequence> {
        let _turn = self.0.lock().await;
        let peer = ids.first();
        let stored = Stored { peer, at: context.now(), envelope };
        let name = given(&peer, &stored.envelope.id);
        for _ in 0..ATTEMPTS {
            if let Some(sequence) = stored_before(context, ids, &stored.envelope).await? {
                return Ok(sequence);
            }
            let mut change = Change::new(context);
            change.batch = Batch::new().expect(name.clone(), None);
            let sequence = change.next_sequence().await?;
            change.put(name.clone(), sequence.to_be_bytes().to_vec());
            stored.put(&mut change, outgoing(sequence), sequence)?;
            change.put(conversation(&peer, Some(sequence)), "o");
            ids.note(&mut change, ids.present(), sequence);
            change.put(queued(&peer, Some(sequence)), "");
            let count = |conversation: &mut Conversation| {
                conversation.sent += 1;
                conversation.waiting += 1;
                conversation.last_at = stored.at;
            };
            change.summarise(&peer, count).await?;
            if change.commit().await? == Committed::Yes {
                return Ok(sequence);
            }
        }
        Err(HostError::Storage.into())
    }

    /// Takes a message off the queue, because the peer has it or will never take it.
    pub(crate) async fn settle(
        &self,
        context: &Context,
        peer: &NodeId,
        sequence: Sequence,
        refused: Option<String>,
    ) -> Result<()> {
        let _turn = self.0.lock().await;
        let key = queued(peer, Some(sequence));
        let end = serde_json::to_vec(&Ended { at: context.now(), refused, read: None })
            .map_err(|_| MessagingError::BadRow)?;
        for _ in 0..ATTEMPTS {
            let Some(row) = context.get(key.clone()).await? else { return Ok(()) };
            let mut change = Change::new(context);
            change.batch = Batch::new().expect(key.clone(), Some(row)).delete(key.clone());
            change.put(ended(sequence), end.clone());
            let count = |conversation: &mut Conversation| conversation.waiting = conversation.waiting.saturating_sub(1);
            change.summarise(peer, count).await?;
            if change.commit().await? == Committed::Yes {
                return Ok(());
            }
        }
        Err(HostError::Storage.into())
    }

    /// Stores a received message and its id together, if there is room. The receipt exists only once both are durable.
    /// `sender` is the id that it came from, one of `ids`.
    pub(crate) async fn receive(
        &self,
        context: &Context,
        (sender, ids): (NodeId, &Ids),
        envelope: Envelope,
    ) -> Result<Receipt> {
        let _turn = self.0.lock().await;
        let (id, peer) = (envelope.id, ids.first());
        let receipt = |duplicate| Receipt { v: VERSION, id: hex::encode(id), duplicate };
        let stored = Stored { peer, at: context.now(), envelope };
        let cost = keep::cost(&stored.envelope);
        for _ in 0..ATTEMPTS {
            if let Some(row) = ids.find(context, |known| seen(known, &id)).await? {
                // Deleted since: its sender has to hear that it came, or would try for ever.
                let sequence = sequence_of(&row)?;
                let earlier = Stored::load(context, incoming(sequence), sequence).await?;
                let Some(earlier) = earlier else { return Ok(receipt(true)) };
                // An id names one message for good: other content under it is the peer's fault, not a retry.
                if earlier.envelope != stored.envelope {
                    return Err(MessagingError::PeerIdReused);
                }
                return Ok(receipt(true));
            }
            let kept = conversation_of(context, &peer).await?.kept;
            if !keep::has_room(kept, kept_in_all(context).await?, cost) {
                return Err(MessagingError::InboxFull);
            }
            let mut change = Change::new(context);
            change.batch = Batch::new().expect(seen(&peer, &id), None);
            let sequence = change.next_sequence().await?;
            change.put(seen(&peer, &id), sequence.to_be_bytes().to_vec());
            stored.put(&mut change, incoming(sequence), sequence)?;
            change.put(conversation(&peer, Some(sequence)), "i");
            ids.note(&mut change, sender, sequence);
            change.put(unread(sequence), "");
            let count = |conversation: &mut Conversation| {
                conversation.received += 1;
                conversation.unread += 1;
                conversation.last_at = stored.at;
                conversation.kept.add(cost);
            };
            change.summarise(&peer, count).await?;
            change.count_in_all(|kept| kept.add(cost)).await?;
            if change.commit().await? == Committed::Yes {
                return Ok(receipt(false));
            }
        }
        Err(HostError::Storage.into())
    }

    /// Marks one received message as read, and queues the receipt if its sender may be told. Of whom it was, if it was unread.
    pub(crate) async fn mark_read(
        &self,
        context: &Context,
        sequence: Sequence,
        tells: &Tells,
    ) -> Result<Option<NodeId>> {
        let _turn = self.0.lock().await;
        for _ in 0..ATTEMPTS {
            let key = unread(sequence);
            let Some(row) = context.get(key.clone()).await? else { return Ok(None) };
            let message = context.get(incoming(sequence)).await?.ok_or(MessagingError::BadRow)?;
            let stored = Stored::decode(&message)?;
            let peer = stored.peer;
            let mut change = Change::new(context);
            change.batch = Batch::new().expect(key.clone(), Some(row)).delete(key);
            let is_told = tells.to(context, peer).await?
                && receipts::queue_receipt(&mut change, &stored, receipt(&peer, Some(sequence))).await?;
            let count = |conversation: &mut Conversation| {
                conversation.unread = conversation.unread.saturating_sub(1);
                conversation.receipts += u64::from(is_told);
            };
            change.summarise(&peer, count).await?;
            if change.commit().await? == Committed::Yes {
                return Ok(Some(peer));
            }
        }
        Err(HostError::Storage.into())
    }
}

/// Where a message that is to be sent was stored before, if it was: whatever became of it since, an id is one message. Refused where its id
/// is another's, or where it is new and too many wait.
pub(crate) async fn stored_before(context: &Context, ids: &Ids, envelope: &Envelope) -> Result<Option<Sequence>> {
    let Some(sequence) = sent_as(context, ids, &envelope.id).await? else {
        if conversation_of(context, &ids.first()).await?.waiting >= QUEUE_LIMIT as u64 {
            return Err(MessagingError::QueueFull { limit: QUEUE_LIMIT });
        }
        return Ok(None);
    };
    let earlier = Stored::load(context, outgoing(sequence), sequence).await?;
    let earlier = earlier.ok_or(MessagingError::BadRow)?.envelope;
    let files = |of: &Envelope| of.attachments.iter().map(|one: &Attachment| one.id.clone()).collect::<Vec<_>>();
    // The times differ: each attempt has its own. So may a file's name, which is the operator's to change.
    let same = earlier.content_type == envelope.content_type
        && earlier.content == envelope.content
        && files(&earlier) == files(envelope);
    if same { Ok(Some(sequence)) } else { Err(MessagingError::KeyReused) }
}

/// Every id of one peer, as the host knows them: the oldest first, today's last.
#[derive(Debug, Clone)]
pub(crate) struct Ids(Vec<NodeId>);

impl Ids {
    pub(crate) async fn of(context: &Context, peer: NodeId) -> Result<Self> {
        Ok(Self(context.identities(peer).await?))
    }

    pub(crate) fn all(&self) -> &[NodeId] {
        &self.0
    }

    /// What rows are written under.
    pub(crate) fn first(&self) -> NodeId {
        // The context gives at least one.
        self.0[0]
    }

    /// What the peer is called today.
    pub(crate) fn present(&self) -> NodeId {
        self.0[self.0.len() - 1]
    }

    /// The row that there is under one of them.
    async fn find(&self, context: &Context, key: impl Fn(&NodeId) -> Bytes) -> Result<Option<Bytes>> {
        for id in &self.0 {
            if let Some(row) = context.get(key(id)).await? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Notes the id that the peer had with a message, where its rows do not say so.
    fn note(&self, change: &mut Change<'_>, had: NodeId, sequence: Sequence) {
        if had != self.first() {
            change.put(had_id(sequence), had.as_bytes().to_vec());
        }
    }
}

/// The id that the peer of a stored message had at the time.
pub(crate) async fn id_then(context: &Context, sequence: Sequence, stored: &Stored) -> Result<NodeId> {
    let Some(row) = context.get(had_id(sequence)).await? else { return Ok(stored.peer) };
    row.as_ref().try_into().map(NodeId::from_bytes).map_err(|_| MessagingError::BadRow)
}

/// The summary of a conversation; an empty one if there is none.
pub(crate) async fn conversation_of(context: &Context, peer: &NodeId) -> Result<Conversation> {
    Ok(context.get_json(summary(peer)).await?.unwrap_or_default())
}

/// What is kept of all peers together.
pub(crate) async fn kept_in_all(context: &Context) -> Result<Kept> {
    Ok(context.get_json(ALL_KEPT).await?.unwrap_or_default())
}

/// The last sequence given.
pub(crate) async fn last_sequence(context: &Context) -> Result<Sequence> {
    context.get("n").await?.as_deref().map_or(Ok(0), sequence_of)
}

/// The oldest messages that wait for a peer.
pub(crate) async fn oldest_waiting(context: &Context, peer: &NodeId, limit: usize) -> Result<Vec<Sequence>> {
    let page = context.scan(Scan::prefix(queued(peer, None)).limit(limit)).await?;
    page.rows.iter().map(|(key, _)| sequence_of(key)).collect()
}

/// The sent message that has this id, if it is still known.
pub(crate) async fn sent_as(context: &Context, ids: &Ids, id: &MessageId) -> Result<Option<Sequence>> {
    ids.find(context, |known| given(known, id)).await?.as_deref().map(sequence_of).transpose()
}

/// Peers for which something of a queue waits, found by skipping from one to the next. `queue` makes the keys.
pub(crate) async fn peers_waiting(
    context: &Context,
    prefix: &'static str,
    queue: fn(&NodeId, Option<Sequence>) -> Bytes,
) -> Result<Vec<NodeId>> {
    let mut peers = Vec::new();
    let mut after = None;
    loop {
        let page = context.scan(Scan::prefix(prefix).after(after).limit(1)).await?;
        let Some((key, _)) = page.rows.first() else { return Ok(peers) };
        let peer = peer_of(key)?;
        peers.push(peer);
        after = Some(queue(&peer, Some(Sequence::MAX)));
    }
}
