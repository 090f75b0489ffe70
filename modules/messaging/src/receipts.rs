//! Read receipts: that a message was read is told to its sender, where the operator lets it be told.
//!
//! The way of one: marking a message as read and putting its receipt on the queue is one transaction. From there it goes to the
//! sender's `POST /receipts`, which notes it at the message that it names and may be told so twice; then it is taken off the
//! queue. What the settings forbid is not queued, and what was queued before they forbade it goes nowhere. A peer of a
//! version without that route is told nothing, and its receipts are dropped.

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openred_module::{Body, Committed, Context, HostError, ModuleError, NodeId, PeerRequest, Scan, Status, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::error::MessagingError;
use crate::queue::{self, Delay};
use crate::record::{MessageId, VERSION};
use crate::settings::Settings;
use crate::store::{self, ATTEMPTS, Change, Conversation, Ended, Ids, Stored, Writers};
use crate::{Messaging, queue::Kind};

type Result<T> = std::result::Result<T, MessagingError>;

/// Most receipts in one request.
pub(crate) const TOGETHER: usize = 100;
/// Most receipts that wait for one peer: as many as messages are kept of it. Beyond that none is said.
const WAITING: u64 = crate::keep::PEER_MESSAGES;
/// Longest body of `POST /receipts`, in bytes: so many of about 80, and room for a later version's fields.
pub(crate) const BODY_LIMIT: usize = 16 * 1024;

/// The body of `POST /receipts`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Receipts {
    v: u32,
    read: Vec<Read>,
}

/// That one message was read.
#[derive(Debug, Serialize, Deserialize)]
struct Read {
    id: String,
    /// By the reader's clock.
    at: UnixMillis,
}

/// Whom the operator lets be told.
#[derive(Debug)]
pub(crate) struct Tells {
    /// Those who are not among the others.
    all: bool,
    others: BTreeSet<NodeId>,
    /// A setting that cannot be read forbids all.
    readable: bool,
}

impl Tells {
    pub(crate) fn of(settings: &Settings) -> Self {
        let named = settings.read_receipts_except.iter();
        let others = named.map(|peer| peer.parse::<NodeId>()).collect::<std::result::Result<BTreeSet<_>, _>>();
        if others.is_err() {
            tracing::warn!(
                "module.messaging.read_receipts_except names what is no node id; nobody is told of readings"
            );
        }
        Self { all: settings.read_receipts, readable: others.is_ok(), others: others.unwrap_or_default() }
    }

    pub(crate) async fn to(&self, context: &Context, peer: NodeId) -> Result<bool> {
        if !self.readable || self.others.is_empty() {
            return Ok(self.readable && self.all);
        }
        let ids = Ids::of(context, peer).await?;
        Ok(self.all != ids.all().iter().any(|id| self.others.contains(id)))
    }
}

/// A receipt that waits: which message, and when it was read.
fn encode(id: &MessageId, at: UnixMillis) -> Bytes {
    let mut row = BytesMut::with_capacity(24);
    row.put_slice(id);
    row.put_u64(at);
    row.freeze()
}

fn decode(row: &Bytes) -> Result<Read> {
    let (id, mut at) = row.split_first_chunk::<16>().ok_or(MessagingError::BadRow)?;
    let at = at.try_get_u64().map_err(|_| MessagingError::BadRow)?;
    Ok(Read { id: hex::encode(id), at })
}

/// Queues the receipt of a message that is marked as read, in the same transaction.
pub(crate) async fn queue_receipt(change: &mut Change<'_>, stored: &Stored, key: Bytes) -> Result<bool> {
    if store::conversation_of(change.context, &stored.peer).await?.receipts >= WAITING {
        return Ok(false);
    }
    change.put(key, encode(&stored.envelope.id, change.context.now()));
    Ok(true)
}

impl Writers {
    /// Notes that a peer has read a message of this node. Told again, or of what is not known any more, it changes nothing.
    async fn note_read(&self, context: &Context, ids: &Ids, id: &MessageId, at: UnixMillis) -> Result<()> {
        let _turn = self.turn().await;
        for _ in 0..ATTEMPTS {
            let Some(sequence) = store::sent_as(context, ids, id).await? else { return Ok(()) };
            let Some(message) = context.get(store::outgoing(sequence)).await? else { return Ok(()) };
            let Stored { peer, at: stored_at, .. } = Stored::decode(&message)?;
            let now = context.now();
            // The reader's clock is its own affair: nothing is read before it was sent, or after it is heard of.
            let read = Some(at.min(now).max(stored_at));
            let (key, row) = (store::ended(sequence), context.get(store::ended(sequence)).await?);
            let mut change = Change::new(context);
            change.expect(key.clone(), row.clone());
            let end = match row {
                Some(row) => {
                    let end: Ended = serde_json::from_slice(&row).map_err(|_| MessagingError::BadRow)?;
                    if end.refused.is_some() || end.read.is_some() {
                        return Ok(());
                    }
                    Ended { read, ..end }
                }
                // Overtook the receipt of the delivery, and says as much.
                None => {
                    let waiting = store::queued(&peer, Some(sequence));
                    let Some(row) = context.get(waiting.clone()).await? else { return Ok(()) };
                    change.expect(waiting.clone(), Some(row));
                    change.delete(waiting);
                    let count = |line: &mut Conversation| line.waiting = line.waiting.saturating_sub(1);
                    change.summarise(&peer, count).await?;
                    Ended { at: now, refused: None, read }
                }
            };
            change.put(key, serde_json::to_vec(&end).map_err(|_| MessagingError::BadRow)?);
            if change.commit().await? == Committed::Yes {
                return Ok(());
            }
        }
        Err(HostError::Storage.into())
    }

    /// Takes receipts off the queue.
    async fn told(&self, context: &Context, peer: &NodeId, keys: &[Bytes]) -> Result<()> {
        let _turn = self.turn().await;
        for _ in 0..ATTEMPTS {
            let (mut change, mut gone) = (Change::new(context), 0);
            for key in keys {
                if let Some(row) = context.get(key.clone()).await? {
                    change.expect(key.clone(), Some(row));
                    change.delete(key.clone());
                    gone += 1;
                }
            }
            let count = |line: &mut Conversation| line.receipts = line.receipts.saturating_sub(gone);
            change.summarise(peer, count).await?;
            if change.commit().await? == Committed::Yes {
                return Ok(());
            }
        }
        Err(HostError::Storage.into())
    }
}

/// What became of one request.
enum Told {
    /// Noted there, or never will be.
    Done,
    Later(Delay),
}

impl Messaging {
    /// Takes a peer's receipts.
    pub(crate) async fn note_receipts(
        &self,
        context: &Context,
        peer: NodeId,
        body: Body,
    ) -> std::result::Result<(), ModuleError> {
        let body = body.collect(BODY_LIMIT).await?;
        let read = parse(&body)?;
        let ids = Ids::of(context, peer).await?;
        for (id, at) in read {
            self.store.note_read(context, &ids, &id, at).await?;
        }
        Ok(())
    }

    /// Empties the queue of receipts for one peer, until it is empty or something does not go. Its turn is the caller's.
    pub(crate) async fn tell_waiting(&self, context: &Context, peer: NodeId) {
        let queue = self.queue(Kind::Receipts);
        while !queue.resting(peer, context.now()) {
            match self.tell_page(context, peer).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "read receipts could not be noted; trying again");
                    queue.failed(context, peer, Delay::Local);
                }
            }
        }
    }

    /// Whether there may be more.
    async fn tell_page(&self, context: &Context, peer: NodeId) -> Result<bool> {
        let page = context.scan(Scan::prefix(store::receipt(&peer, None)).limit(TOGETHER)).await?;
        if page.rows.is_empty() {
            return Ok(false);
        }
        // As they are now: the operator may have changed his mind.
        let is_told = match Settings::now(context) {
            Ok(settings) => Tells::of(&settings).to(context, peer).await?,
            Err(_) => false,
        };
        if is_told {
            let read = page.rows.iter().map(|(_, row)| decode(row)).collect::<Result<Vec<_>>>()?;
            if let Told::Later(delay) = tell(context, peer, read).await {
                self.queue(Kind::Receipts).failed(context, peer, delay);
                return Ok(false);
            }
        }
        let keys: Vec<Bytes> = page.rows.into_iter().map(|(key, _)| key).collect();
        self.store.told(context, &peer, &keys).await?;
        self.queue(Kind::Receipts).succeeded(peer, context.now());
        Ok(page.more)
    }
}

fn parse(body: &[u8]) -> Result<Vec<(MessageId, UnixMillis)>> {
    let receipts: Receipts = serde_json::from_slice(body).map_err(|_| MessagingError::PeerReceipts)?;
    if receipts.v != VERSION || receipts.read.len() > TOGETHER {
        return Err(MessagingError::PeerReceipts);
    }
    let one = |read: Read| {
        let mut id = MessageId::default();
        hex::decode_to_slice(&read.id, &mut id).map_err(|_| MessagingError::PeerReceipts)?;
        Ok((id, read.at))
    };
    receipts.read.into_iter().map(one).collect()
}

async fn tell(context: &Context, peer: NodeId, read: Vec<Read>) -> Told {
    let body = serde_json::to_vec(&Receipts { v: VERSION, read }).expect("strings and numbers always serialise");
    let mut request = PeerRequest::post("/receipts", "application/json", Body::whole(body));
    request.deadline = Some(context.now() + queue::DELIVERY_TIMEOUT);
    let response = match context.peer_request(peer, request).await {
        Ok(response) => response,
        Err(error) => return Told::Later(error.into()),
    };
    let status = response.status;
    if status.is_success() {
        return Told::Done;
    }
    let code = queue::refusal(response).await.unwrap_or_default();
    match status {
        // A version before read receipts; and what it will not take today it will not take tomorrow.
        Status::NotFound if code == queue::NO_SUCH_ROUTE => Told::Done,
        Status::BadRequest if !code.is_empty() && !code.starts_with("body-") => Told::Done,
        Status::TooLarge => Told::Done,
        _ => Told::Later(Delay::Troubled { status: status.code() }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_told_is_understood(read in proptest::collection::vec((any::<[u8; 16]>(), any::<u64>()), 0..=TOGETHER)) {
            let rows: Vec<Read> = read.iter().map(|(id, at)| decode(&encode(id, *at)).unwrap()).collect();
            let body = serde_json::to_vec(&Receipts { v: VERSION, read: rows }).unwrap();
            prop_assert!(body.len() <= BODY_LIMIT);
            prop_assert_eq!(parse(&body).unwrap(), read);
        }

        #[test]
        fn garbage_is_refused_without_a_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&body).is_err());
            let _ = decode(&body.into());
        }
    }

    #[test]
    fn each_rule_of_the_form_is_kept() {
        let id = "00".repeat(16);
        let one = format!(r#"{{"id":"{id}","at":1}}"#);
        assert!(parse(format!(r#"{{"v":1,"read":[{one}],"later":true}}"#).as_bytes()).is_ok());
        let many = vec![one.as_str(); TOGETHER + 1].join(",");
        for bad in [
            format!(r#"{{"v":2,"read":[{one}]}}"#),
            format!(r#"{{"v":1,"read":[{many}]}}"#),
            r#"{"v":1,"read":[{"id":"00","at":1}]}"#.to_owned(),
            format!(r#"{{"v":1,"read":[{{"id":"{id}","at":-1}}]}}"#),
            r#"{"v":1}"#.to_owned(),
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
