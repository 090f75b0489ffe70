//! `/tokens`: sealed offers on their way to a recipient, receipts on their way back. The directory reads the routing header
//! of an offer and nothing else; what waits here is in memory alone.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use openred_proto::checked::check_window;
use openred_proto::checked::offer::Offer;
use openred_proto::checked::receipt::{Receipt, ReceiptKind};
use openred_proto::error::WireError;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::OFFER_IN_DIRECTORY;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::problem::{Code, Problem};
use super::signed::Signed;
use super::{Base64Bytes, to_base64};
use crate::limits::{OFFER_BODY_BYTES, RECEIPT_BODY_BYTES, STREAM_KEEP_ALIVE, STREAM_LIFE, WAIT};
use crate::replicas::message::Word;
use crate::replicas::{NotTaken, To};
use crate::route::{Fresh, Item, Kind, Reader, Refused};
use crate::state::Directory;

/// Body of a request for connection.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OfferBody {
    /// The sealed offer, standard base64.
    #[schema(value_type = String, max_length = 16000, pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$")]
    pub offer: Base64Bytes,
}

/// Answer to a request for connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Routed {
    /// The directory's signed receipt (kind: routed), standard base64.
    pub receipt: String,
    /// SHA-256 of the offer, hex.
    pub token: String,
    /// The offer waits at most so long; send it again until its recipient's receipt comes.
    pub held_seconds: u64,
}

/// Body of an acknowledgement.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReceiptBody {
    /// The recipient's signed receipt (kind: accepted), standard base64.
    #[schema(value_type = String, max_length = 4000, pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$")]
    pub receipt: Base64Bytes,
}

/// Answer to an acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Acknowledged {
    /// Whether it waits for the issuer now; false when the issuer is not registered here any more.
    pub delivered: bool,
}

/// How to receive.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ReceiveQuery {
    /// Long poll: answer with JSON as soon as something is there, after so many seconds (at most 60) at the latest. Without
    /// it the answer is a stream (SSE).
    #[param(minimum = 0)]
    pub wait: Option<u64>,
    /// The last id that the caller has; receipts up to it are dropped, items up to it are not shown again.
    #[param(minimum = 0)]
    pub after: Option<u64>,
}

/// One offer or receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    /// Grows from item to item of one directory; several that are one give their own.
    pub id: u64,
    /// Offer or receipt.
    pub kind: Kind,
    /// Who sent it.
    pub from: String,
    /// SHA-256 of the offer that it is or is about, hex.
    pub token: String,
    /// The bytes, standard base64.
    pub payload: String,
    /// Gone from here after so many seconds.
    pub expires_in_seconds: u64,
}

/// Answer to a long poll.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Received {
    /// What came; empty when the time was over.
    pub items: Vec<Delivery>,
    /// `after` of the next call.
    pub cursor: u64,
}

#[utoipa::path(
    post, path = "/api/v3/tokens/request-connection", tag = "tokens", request_body = OfferBody,
    description = "Routes a sealed offer to its recipient. Signed by the issuer that the offer names.",
    responses(
        (status = 200, description = "it waits for its recipient", body = Routed),
        Problem,
    )
)]
pub(crate) async fn request_connection(
    State(directory): State<Arc<Directory>>,
    signed: Signed<OfferBody, OFFER_BODY_BYTES>,
) -> Result<Json<Routed>, Problem> {
    let Base64Bytes(bytes) = &signed.body.offer;
    let refuse = |error: WireError| Problem::new(Code::OfferMalformed, error.to_string());
    let routing = Offer::decode(bytes).map_err(refuse)?.routing;
    if routing.issuer != signed.node {
        return Err(Code::OfferForeign.into());
    }
    if routing.recipient == routing.issuer {
        return Err(Problem::new(Code::OfferMalformed, "issuer and recipient are the same"));
    }
    let now = directory.now();
    check_window("offer", now, UnixMillis(0), routing.expiry).map_err(|_| Code::OfferEnded)?;
    signed.registered(&directory).await?;
    directory.registered(routing.recipient).await?.ok_or(Code::RecipientUnregistered)?;
    let token_id = Offer::token_id(bytes);
    let (recipient, issuer) = (routing.recipient, routing.issuer);
    deposit(&directory, now, recipient, fresh(now, Kind::Offer, issuer, token_id, bytes)).await?;
    directory.metrics.offers.add();
    let receipt = Receipt { kind: ReceiptKind::Routed, token_id, issuer, recipient, at: now };
    Ok(Json(Routed {
        receipt: to_base64(&directory.identity.sign_receipt(&receipt)),
        token: hex::encode(token_id),
        held_seconds: OFFER_IN_DIRECTORY.as_secs(),
    }))
}

#[utoipa::path(
    post, path = "/api/v3/tokens/acknowledge", tag = "tokens", request_body = ReceiptBody,
    description = "Takes the recipient's receipt for an offer back to its issuer. Signed by the recipient.",
    responses(
        (status = 200, description = "taken", body = Acknowledged),
        Problem,
    )
)]
pub(crate) async fn acknowledge(
    State(directory): State<Arc<Directory>>,
    signed: Signed<ReceiptBody, RECEIPT_BODY_BYTES>,
) -> Result<Json<Acknowledged>, Problem> {
    let Base64Bytes(bytes) = &signed.body.receipt;
    let receipt = Receipt::verify(bytes, &signed.node).map_err(|error| match error {
        WireError::WrongSigner { .. } => Problem::from(Code::ReceiptForeign),
        error => Problem::new(Code::ReceiptMalformed, error.to_string()),
    })?;
    if receipt.kind != ReceiptKind::Accepted {
        return Err(Code::ReceiptForeign.into());
    }
    signed.registered(&directory).await?;
    let delivered = directory.registered(receipt.issuer).await?.is_some();
    if delivered {
        let now = directory.now();
        let answer = fresh(now, Kind::Receipt, signed.node, receipt.token_id, bytes);
        deposit(&directory, now, receipt.issuer, answer).await?;
        directory.metrics.receipts.add();
    }
    directory.mailboxes().acknowledge(&signed.node, &receipt.issuer, &receipt.token_id);
    Ok(Json(Acknowledged { delivered }))
}

fn fresh(now: UnixMillis, kind: Kind, from: NodeId, token_id: [u8; 32], bytes: &[u8]) -> Fresh {
    Fresh { kind, from, token_id, payload: Bytes::copy_from_slice(bytes), until: now.plus(OFFER_IN_DIRECTORY) }
}

/// Puts an item into its recipient's mailbox: here, and at all other replicas if there are any.
async fn deposit(directory: &Directory, now: UnixMillis, recipient: NodeId, fresh: Fresh) -> Result<(), Problem> {
    let Some(replicas) = directory.replicas() else {
        let Fresh { kind, from, token_id, payload, .. } = fresh;
        return directory.mailboxes().deposit(now, recipient, kind, from, token_id, payload).map_err(refuse_deposit);
    };
    replicas.deposit(directory, now, recipient, fresh).await.map_err(|error| match error {
        NotTaken::Full(refused) => refuse_deposit(refused),
        NotTaken::CutOff => {
            let detail = "This replica does not reach the others, and the recipient does not wait at it.";
            Problem::new(Code::DirectoryCutOff, detail).retry_after(Duration::from_secs(2))
        }
    })
}

fn refuse_deposit(refused: Refused) -> Problem {
    let problem = match refused {
        Refused::MailboxFull => Problem::from(Code::RecipientFull),
        Refused::SenderFull => Problem::new(Code::RateLimited, "as much of this node waits for others as may of one"),
        Refused::DirectoryFull => Problem::from(Code::DirectoryBusy),
    };
    problem.retry_after(Duration::from_secs(30))
}

#[utoipa::path(
    get, path = "/api/v3/tokens/receive", tag = "tokens", params(ReceiveQuery),
    description = "Offers and receipts for the calling node, as a stream (SSE: events `offer` and `receipt`, data as in \
                   Delivery, Last-Event-ID honoured) or as a long poll with `wait`. Signed by the node. One reader a node: \
                   a new one ends the old.",
    responses(
        (status = 200, description = "a stream, or what came", body = Received),
        Problem,
    )
)]
pub(crate) async fn receive(
    State(directory): State<Arc<Directory>>,
    query: Result<Query<ReceiveQuery>, QueryRejection>,
    headers: HeaderMap,
    signed: Signed<(), 0>,
) -> Result<Response, Problem> {
    let last_event = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let Query(query) = query?;
    signed.registered(&directory).await?;
    let open = OpenStream::count(&directory, signed.address)?;
    let after = query.after.or(last_event).unwrap_or(0);
    let reader = read(&directory, signed.node, after);
    let draining = directory.draining();
    let moved = directory.replicas().map(|replicas| replicas.moved());
    let mut inbox =
        Inbox { reader, after, draining, moved, ends: Instant::now() + STREAM_LIFE, directory, _open: open };
    if let Some(wait) = query.wait {
        inbox.ends = Instant::now() + Duration::from_secs(wait).min(WAIT);
        return inbox.long_poll().await.map(|received| Json(received).into_response());
    }
    let events = futures_util::stream::unfold((inbox, VecDeque::new()), next_event);
    let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(STREAM_KEEP_ALIVE));
    Ok(stream.into_response())
}

/// Takes the node's mailbox over, here and from a reader at another replica.
fn read(directory: &Directory, node: NodeId, after: u64) -> Reader {
    let reader = {
        let mut mailboxes = directory.mailboxes();
        let reader = mailboxes.read(node, after);
        mailboxes.reads_since(&node, directory.now());
        reader
    };
    if let Some(replicas) = directory.replicas() {
        // Where it is not heard, two read for a while.
        let _ = replicas.say(To::All, Word::Reads { node, at: directory.now().0 });
    }
    reader
}

/// Counts an open stream for as long as it lives, against all and against its address.
pub(super) struct OpenStream {
    directory: Arc<Directory>,
    address: Option<IpAddr>,
}

impl OpenStream {
    pub(super) fn count(directory: &Arc<Directory>, address: Option<IpAddr>) -> Result<Self, Problem> {
        if directory.metrics.streams_open.get() >= directory.streams || !directory.stream_opens(address) {
            return Err(Problem::from(Code::DirectoryBusy).retry_after(WAIT));
        }
        directory.metrics.streams_open.add();
        Ok(Self { directory: Arc::clone(directory), address })
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.directory.metrics.streams_open.subtract();
        self.directory.stream_closed(self.address);
    }
}

/// One reader of one mailbox.
struct Inbox {
    directory: Arc<Directory>,
    reader: Reader,
    after: u64,
    draining: watch::Receiver<bool>,
    /// Changes when this replica has been cut off for long: the node had better come again.
    moved: Option<watch::Receiver<u64>>,
    ends: Instant,
    _open: OpenStream,
}

/// Why nothing more comes.
#[derive(PartialEq, Eq)]
enum End {
    Time,
    Replaced,
}

impl Inbox {
    /// Whether a stream's time is over, whatever still waits: a reader that is fed all the time must end as well.
    fn is_over(&self) -> bool {
        let moved = self.moved.as_ref().is_some_and(|moved| moved.has_changed().unwrap_or(false));
        *self.draining.borrow() || moved || Instant::now() >= self.ends
    }

    /// Waits for items after the cursor.
    async fn wait(&mut self) -> Result<Vec<Item>, End> {
        loop {
            let wake = Arc::clone(&self.reader.wake);
            let mut woken = std::pin::pin!(wake.notified());
            // Registered before the look, so that nothing falls between look and wait.
            woken.as_mut().enable();
            let items = self.directory.mailboxes().poll(self.directory.now(), &self.reader, self.after);
            let items = items.ok_or(End::Replaced)?;
            if let Some(last) = items.last() {
                self.after = last.id;
                return Ok(items);
            }
            if *self.draining.borrow_and_update() {
                return Err(End::Time);
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(self.ends) => return Err(End::Time),
                _ = self.draining.changed() => {}
                () = changes(&mut self.moved) => return Err(End::Time),
            }
        }
    }

    async fn long_poll(mut self) -> Result<Received, Problem> {
        let items = match self.wait().await {
            Ok(items) => items,
            Err(End::Time) => Vec::new(),
            Err(End::Replaced) => return Err(Code::StreamReplaced.into()),
        };
        let now = self.directory.now();
        Ok(Received { items: items.iter().map(|item| delivery(now, item)).collect(), cursor: self.after })
    }
}

/// Returns when the value changes; never where there is none.
async fn changes(watched: &mut Option<watch::Receiver<u64>>) {
    if let Some(watched) = watched
        && watched.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

type Stream = (Inbox, VecDeque<Item>);

async fn next_event((mut inbox, mut waiting): Stream) -> Option<(Result<Event, Infallible>, Stream)> {
    if inbox.is_over() {
        return None;
    }
    if waiting.is_empty() {
        waiting.extend(inbox.wait().await.ok()?);
    }
    let item = waiting.pop_front()?;
    let delivery = delivery(inbox.directory.now(), &item);
    let name = if item.kind == Kind::Offer { "offer" } else { "receipt" };
    let event = Event::default().event(name).id(item.id.to_string()).json_data(&delivery).ok()?;
    Some((Ok(event), (inbox, waiting)))
}

fn delivery(now: UnixMillis, item: &Item) -> Delivery {
    Delivery {
        id: item.id,
        kind: item.kind,
        from: item.from.to_string(),
        token: hex::encode(item.token_id),
        payload: to_base64(&item.payload),
        expires_in_seconds: item.until.0.saturating_sub(now.0) / 1000,
    }
}
