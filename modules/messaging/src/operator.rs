//! The operator's routes: sending, reading, deleting, conversations.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openred_module::{Context, ModuleError, NodeId, Request, Response, SCAN_LIMIT, Scan, Status};

use crate::Messaging;
use crate::attachment::{self, Attachment};
use crate::document::{
    ConversationsQuery, Delete, Deleted, InboxQuery, MarkRead, MessageView, Page, Peers, QueuedView, Sent, Summary,
};
use crate::error::MessagingError;
use crate::keep::TOGETHER;
use crate::receipts::Tells;
use crate::record::{Envelope, TEXT_LIMIT, VERSION, is_content_type};
use crate::settings::Settings;
use crate::store::{self, Conversation, Ended, Ids, Sequence, Stored};

/// Messages on one page if the operator names no number, and at most.
const PAGE: usize = 100;
/// Most messages marked as read, or deleted, by one order.
const ORDER_LIMIT: usize = 1000;
/// A page ends once its contents pass this, so that an answer stays a document.
const PAGE_BYTES: usize = 512 * 1024;
/// Rows looked at for one page; a filter that matches little ends the page with a cursor instead of reading all.
const PAGE_ROWS: usize = 2000;
/// What a message is if nobody says: text.
const DEFAULT_CONTENT_TYPE: &str = "text/plain; charset=utf-8";

fn parse_peer(text: &str) -> Result<NodeId, ModuleError> {
    text.parse().map_err(|_| MessagingError::BadPeer.into())
}

impl Messaging {
    pub(crate) async fn send(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let peer = parse_peer(request.params.get("peer"))?;
        if !context.is_linked(peer).await? {
            return Err(MessagingError::NotLinked.into());
        }
        let content_type = match request.content_type.as_str() {
            "" => DEFAULT_CONTENT_TYPE.to_owned(),
            given if is_content_type(given) => given.to_owned(),
            _ => return Err(MessagingError::BadContentType.into()),
        };
        let files = attachment::parse_ids(request.params.get("files"))?;
        let content = request.body.collect(TEXT_LIMIT).await?;
        if content.is_empty() && files.is_empty() {
            return Err(MessagingError::Empty.into());
        }
        // The caller's key, if it has one, makes a retried `send` one message at the peer.
        let id = request.idempotency_key.unwrap_or_else(|| context.unique_id());
        let ids = Ids::of(&context, peer).await?;
        let named = files.iter().copied().map(Attachment::unknown).collect();
        let mut envelope = Envelope { id, sent_at: context.now(), content_type, content, attachments: named };
        // Before the row: the caller may go away at any moment after it.
        self.messages.wake_for_safety(&context);
        let sequence = match store::stored_before(&context, &ids, &envelope).await? {
            Some(sequence) => sequence,
            None => {
                // Only what will be sent lets anybody in.
                envelope.attachments = attachment::shared(&context, peer, &files).await?;
                self.store.enqueue(&context, &ids, envelope).await?
            }
        };
        let attachments = context.get_json(store::attached(sequence)).await?.unwrap_or_default();
        let peer = ids.first();
        if self.may_try(&context, peer) {
            self.deliver_waiting(&context, peer).await;
        }
        let end: Option<Ended> = context.get_json(store::ended(sequence)).await?;
        let state = sent_state(end.as_ref()).to_owned();
        let delay = if end.is_none() { self.messages.delay(peer, context.now()) } else { None };
        let refused = end.and_then(|end| end.refused);
        let (waiting, detail) = delay.map(|delay| (delay.code().to_owned(), delay.to_string())).unzip();
        let sent = Sent { v: VERSION, id: hex::encode(id), sequence, state, attachments, refused, waiting, detail };
        Response::json(Status::Ok, &sent)
    }

    pub(crate) async fn inbox(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        Response::json(Status::Ok, &page(&context, &InboxQuery::default(), &Source::Inbox).await?)
    }

    pub(crate) async fn query_inbox(
        self: Arc<Self>,
        context: Context,
        request: Request,
    ) -> Result<Response, ModuleError> {
        let query: InboxQuery = request.json().await?;
        check_version(query.v)?;
        let source = if query.unread { Source::Unread } else { Source::Inbox };
        Response::json(Status::Ok, &page(&context, &query, &source).await?)
    }

    pub(crate) async fn query_sent(
        self: Arc<Self>,
        context: Context,
        request: Request,
    ) -> Result<Response, ModuleError> {
        let query: InboxQuery = request.json().await?;
        check_version(query.v)?;
        Response::json(Status::Ok, &page(&context, &query, &Source::Sent).await?)
    }

    pub(crate) async fn conversation(
        self: Arc<Self>,
        context: Context,
        request: Request,
    ) -> Result<Response, ModuleError> {
        let peer = parse_peer(request.params.get("peer"))?;
        let query: InboxQuery = request.json().await?;
        check_version(query.v)?;
        Response::json(
            Status::Ok,
            &page(&context, &query, &Source::Conversation(Ids::of(&context, peer).await?)).await?,
        )
    }

    pub(crate) async fn mark_read(
        self: Arc<Self>,
        context: Context,
        request: Request,
    ) -> Result<Response, ModuleError> {
        let order: MarkRead = request.json().await?;
        check_version(order.v)?;
        check_count(&order.sequences)?;
        let tells = Tells::of(&Settings::now(&context)?);
        // Before the rows: the caller may go away at any moment after them.
        self.receipts.wake_for_safety(&context);
        let mut marked = 0_usize;
        for sequence in order.sequences {
            marked += usize::from(self.store.mark_read(&context, sequence, &tells).await?.is_some());
        }
        if marked > 0 {
            self.receipts.wake(&context, context.now());
        }
        Response::json(Status::Ok, &serde_json::json!({ "v": VERSION, "marked": marked }))
    }

    pub(crate) async fn delete(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let mut order: Delete = request.json().await?;
        check_version(order.v)?;
        check_count(&order.sequences)?;
        let peer = order.peer.as_deref().map(parse_peer).transpose()?;
        let mut deleted = 0;
        let peer = match peer {
            Some(peer) => Some(Ids::of(&context, peer).await?),
            None => None,
        };
        match (peer, order.sequences.is_empty()) {
            (None, true) => return Err(ModuleError::bad_request("nothing-named", "name messages or a peer")),
            (Some(peer), true) => {
                for id in peer.all() {
                    deleted += self.store.delete_all(&context, id).await?;
                }
            }
            (only, false) => {
                // Twice named is still one message.
                order.sequences.sort_unstable();
                order.sequences.dedup();
                for some in order.sequences.chunks(TOGETHER) {
                    deleted += self.store.delete(&context, only.as_ref(), some).await?;
                }
            }
        }
        self.full.look_again(&context).await?;
        Response::json(Status::Ok, &Deleted { v: VERSION, deleted })
    }

    pub(crate) async fn outbox(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        let rows = context.scan(Scan::prefix("q/")).await?;
        let (mut known, mut queued) = (Known::default(), Vec::with_capacity(rows.rows.len()));
        for (key, _) in &rows.rows {
            let peer = store::peer_of(key)?;
            let waiting = self.messages.delay(peer, context.now()).map(|delay| delay.code().to_owned());
            let peer = known.of(&context, peer).await?.present().to_string();
            queued.push(QueuedView { sequence: store::sequence_of(key)?, peer, waiting });
        }
        Response::json(Status::Ok, &serde_json::json!({ "v": VERSION, "queued": queued, "more": rows.more }))
    }

    pub(crate) async fn conversations(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        Response::json(Status::Ok, &conversations(&context, &ConversationsQuery::default()).await?)
    }

    pub(crate) async fn query_conversations(
        self: Arc<Self>,
        context: Context,
        request: Request,
    ) -> Result<Response, ModuleError> {
        let query: ConversationsQuery = request.json().await?;
        check_version(query.v)?;
        Response::json(Status::Ok, &conversations(&context, &query).await?)
    }
}

async fn conversations(context: &Context, query: &ConversationsQuery) -> Result<Peers, ModuleError> {
    let after = query.after.as_deref().map(parse_peer).transpose()?.map(|peer| store::summary(&peer));
    let limit = query.limit.unwrap_or(SCAN_LIMIT).clamp(1, SCAN_LIMIT);
    let rows = context.scan(Scan::prefix("c/").after(after).limit(limit)).await?;
    let (mut conversations, mut last) = (Vec::with_capacity(rows.rows.len()), None);
    for (key, row) in &rows.rows {
        let peer = store::peer_of(key)?;
        last = Some(peer);
        let mut whole: Conversation = serde_json::from_slice(row).map_err(|_| MessagingError::BadRow)?;
        let ids = Ids::of(context, peer).await?;
        let mut is_first = true;
        for id in ids.all() {
            if *id == peer {
                break;
            }
            is_first &= context.get(store::summary(id)).await?.is_none();
        }
        // One line a peer: with the first of its ids that there is anything under.
        if !is_first {
            continue;
        }
        for id in ids.all().iter().skip_while(|id| **id != peer).skip(1) {
            whole.join(&store::conversation_of(context, id).await?);
        }
        let Conversation { received, sent, unread, waiting, last_at, kept, .. } = whole;
        let (peer, kept, kept_bytes) = (ids.present().to_string(), kept.messages, kept.bytes);
        conversations.push(Summary { peer, received, sent, kept, kept_bytes, unread, waiting, last_at });
    }
    // By the row that was looked at last, which need not be called so.
    let next = last.filter(|_| rows.more).map(|last| last.to_string());
    Ok(Peers { v: VERSION, conversations, next, more: rows.more })
}

/// The ids of the peers of one answer, each asked for once.
#[derive(Default)]
struct Known(HashMap<NodeId, Ids>);

impl Known {
    async fn of(&mut self, context: &Context, peer: NodeId) -> Result<&Ids, MessagingError> {
        match self.0.entry(peer) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => Ok(unknown.insert(Ids::of(context, peer).await?)),
        }
    }
}

fn check_count(sequences: &[Sequence]) -> Result<(), ModuleError> {
    if sequences.len() <= ORDER_LIMIT {
        return Ok(());
    }
    Err(ModuleError::bad_request("too-many", format!("at most {ORDER_LIMIT} at once")))
}

fn check_version(version: u32) -> Result<(), ModuleError> {
    if version == 0 || version == VERSION {
        return Ok(());
    }
    Err(ModuleError::bad_request("unknown-version", format!("this node speaks version {VERSION}")))
}

fn sent_state(end: Option<&Ended>) -> &'static str {
    match end {
        None => "queued",
        Some(Ended { refused: None, read: Some(_), .. }) => "read",
        Some(Ended { refused: None, .. }) => "delivered",
        Some(Ended { refused: Some(_), .. }) => "refused",
    }
}

/// Which rows a page is read from. All of them end in the sequence, in order.
enum Source {
    Inbox,
    Unread,
    Sent,
    Conversation(Ids),
}

impl Source {
    /// One key for each place that has some of it.
    fn keys(&self, sequence: Option<Sequence>) -> Vec<bytes::Bytes> {
        match self {
            Self::Inbox => vec![sequence.map_or("i/".into(), store::incoming)],
            Self::Sent => vec![sequence.map_or("o/".into(), store::outgoing)],
            Self::Unread => vec![sequence.map_or("u/".into(), store::unread)],
            Self::Conversation(ids) => ids.all().iter().map(|id| store::conversation(id, sequence)).collect(),
        }
    }

    /// Its rows behind a sequence, in order, and whether there may be more behind the last of them.
    async fn rows(
        &self,
        context: &Context,
        after: Sequence,
        limit: usize,
    ) -> Result<(Vec<(Sequence, bytes::Bytes)>, bool), ModuleError> {
        let (mut rows, mut more, mut whole_up_to) = (Vec::new(), false, Sequence::MAX);
        for (prefix, after) in self.keys(None).into_iter().zip(self.keys(Some(after))) {
            let page = context.scan(Scan::prefix(prefix).after(Some(after)).limit(limit)).await?;
            for (key, row) in page.rows {
                rows.push((store::sequence_of(&key)?, row));
            }
            if page.more {
                more = true;
                whole_up_to = whole_up_to.min(rows.last().map_or(0, |(sequence, _)| *sequence));
            }
        }
        // What another place still has may come before what this one has beyond there.
        rows.retain(|(sequence, _)| *sequence <= whole_up_to);
        rows.sort_unstable_by_key(|(sequence, _)| *sequence);
        Ok((rows, more))
    }
}

async fn page(context: &Context, query: &InboxQuery, source: &Source) -> Result<Page, ModuleError> {
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE);
    let mut known = Known::default();
    let only = match query.peer.as_deref().map(parse_peer).transpose()? {
        Some(peer) => Some(Ids::of(context, peer).await?),
        None => None,
    };
    let mut page = Page { v: VERSION, messages: Vec::new(), next: query.after, more: true };
    let (mut bytes, mut looked) = (0, 0);
    while page.more && looked < PAGE_ROWS {
        let (rows, more) = source.rows(context, page.next, limit).await?;
        page.more = more;
        for (sequence, row) in &rows {
            if page.messages.len() >= limit || bytes >= PAGE_BYTES {
                page.more = true;
                return Ok(page);
            }
            page.next = *sequence;
            looked += 1;
            let outgoing = match source {
                Source::Conversation(_) => row.as_ref() == b"o",
                Source::Sent => true,
                Source::Inbox | Source::Unread => false,
            };
            // Deleted since the keys were read.
            let Some(stored) = load(context, page.next, outgoing).await? else { continue };
            if only.as_ref().is_some_and(|only| !only.all().contains(&stored.peer)) || stored.at < query.since {
                continue;
            }
            if query.unread && context.get(store::unread(page.next)).await?.is_none() {
                continue;
            }
            bytes += stored.envelope.content.len();
            let present = known.of(context, stored.peer).await?.present();
            page.messages.push(view(context, page.next, outgoing, stored, present).await?);
        }
    }
    Ok(page)
}

async fn load(context: &Context, sequence: Sequence, outgoing: bool) -> Result<Option<Stored>, ModuleError> {
    let key = if outgoing { store::outgoing(sequence) } else { store::incoming(sequence) };
    Ok(Stored::load(context, key, sequence).await?)
}

async fn view(
    context: &Context,
    sequence: Sequence,
    outgoing: bool,
    stored: Stored,
    present: NodeId,
) -> Result<MessageView, ModuleError> {
    let then = store::id_then(context, sequence, &stored).await?;
    let Stored { at, envelope, .. } = stored;
    let end: Option<Ended> = if outgoing { context.get_json(store::ended(sequence)).await? } else { None };
    let state = if outgoing {
        sent_state(end.as_ref())
    } else if context.get(store::unread(sequence)).await?.is_some() {
        "unread"
    } else {
        "read"
    };
    let is_text = envelope.content_type.starts_with("text/");
    let text = std::str::from_utf8(&envelope.content).ok().filter(|_| is_text).map(str::to_owned);
    let data = text.is_none().then(|| STANDARD.encode(&envelope.content));
    Ok(MessageView {
        sequence,
        direction: if outgoing { "out" } else { "in" }.to_owned(),
        id: hex::encode(envelope.id),
        peer: present.to_string(),
        identity: (then != present).then(|| then.to_string()),
        at,
        sent_at: envelope.sent_at,
        content_type: envelope.content_type,
        text,
        data,
        attachments: envelope.attachments,
        state: state.to_owned(),
        delivered_at: end.as_ref().filter(|end| end.refused.is_none()).map(|end| end.at),
        read_at: end.as_ref().and_then(|end| end.read),
        refused: end.and_then(|end| end.refused),
    })
}
