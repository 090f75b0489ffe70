//! `/nodes`: register a card, look one up, page through those that chose to be listed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, header};
use openred_proto::admission::{Invite, Work};
use openred_proto::checked::card::Card;
use openred_proto::error::WireError;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::NAME_BYTES;
use openred_proto::method::Method;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::log::LogPlace;
use super::problem::{Code, Problem};
use super::signed::{Anonymous, Signed};
use super::{Base64Bytes, to_base64};
use crate::config::Mode;
use crate::limits::{CARD_BODY_BYTES, EXAMINE, PAGE};
use crate::state::{Directory, NotSeen};
use crate::store::{self, Held, Lack, NewCard, Registration, Terms};

/// The outcome of a card that is held already: no entry of the log.
const REFRESHED: &str = "refreshed";

/// Body of a registration.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterBody {
    /// The signed card, standard base64.
    #[schema(value_type = String, max_length = 5464, pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$")]
    pub card: Base64Bytes,
    /// What a new node has worked, where the directory asks for it (`admission.work`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<WorkBody>,
    /// The operator's invite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 64, pattern = "^invite-[1-9A-HJ-NP-Za-km-z]+$")]
    pub invite: Option<String>,
}

/// Proof of work: the SHA-256 over `openred/1/work`, a zero byte, the directory's and the node's 32 raw bytes, time and nonce as
/// eight bytes each, the greatest first, begins with as many zero bits as `admission.work` named.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkBody {
    /// Seconds since the epoch; good for ten minutes.
    pub time: u64,
    /// What was found.
    pub nonce: u64,
}

/// Answer to a registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// The node.
    pub node: String,
    /// The directory's id.
    pub directory: String,
    /// Sequence of the card that is held now.
    pub sequence: u64,
    /// `stored` (new or newer), `refreshed` (the same card again) or `quarantined` (neither shown nor routed to until the operator
    /// approves).
    pub outcome: String,
    /// The node is listed and counted as present for so long.
    pub lease_seconds: u64,
    /// Announce again after this; spread by the directory so that nodes do not come all at once.
    pub announce_after_seconds: u64,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its id; another than was asked for when that one has named this one its successor.
    pub node: String,
    /// Its signed card, standard base64. Verify it: this directory is not to be trusted with it.
    pub card: String,
    /// The card's sequence.
    pub sequence: u64,
    /// Whether it was heard of within its lease.
    pub fresh: bool,
    /// Where the card stands in this directory's log.
    pub log: LogPlace,
}

/// What to look for.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct DiscoverQuery {
    /// Only nodes of this sector; at most 63 bytes.
    #[param(max_length = 63)]
    pub sector: Option<String>,
    /// Only nodes that speak this method (`alpha`, `beta`, `gamma`, `delta`).
    #[param(pattern = "^(alpha|beta|gamma|delta)$")]
    pub capability: Option<String>,
    /// Only nodes heard of within so many seconds; more than the lease, which is the default, means the lease.
    #[param(minimum = 0, maximum = 31_536_000)]
    pub fresh_seconds: Option<u64>,
    /// `next` of the page before.
    #[param(pattern = "^did:key:z6Mk[1-9A-HJ-NP-Za-km-z]{44}$")]
    pub cursor: Option<String>,
    /// Nodes a page, at most 64.
    #[param(minimum = 1, maximum = 64)]
    pub limit: Option<usize>,
}

/// A page of nodes, in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page {
    /// The nodes.
    pub nodes: Vec<NodeView>,
    /// Cursor of the next page; absent after the last. A page may be short, even empty, and still not be the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[utoipa::path(
    post, path = "/api/v3/nodes/register", tag = "nodes", request_body = RegisterBody,
    description = "Stores a signed card; also renewal and heartbeat. Signed by the card's node (RFC 9421).",
    responses(
        (status = 200, description = "held", body = Registered, headers(
            ("retry-after" = u64, description = "announce again after so many seconds; the same as in the body")
        )),
        Problem,
    )
)]
pub(crate) async fn register(
    State(directory): State<Arc<Directory>>,
    signed: Signed<RegisterBody, CARD_BODY_BYTES>,
) -> Result<([(HeaderName, u64); 1], Json<Registered>), Problem> {
    let RegisterBody { card: Base64Bytes(bytes), work, invite } = signed.body;
    let now = directory.now();
    let card = directory.verify_card(&bytes, now, signed.node).map_err(refuse_card)?;
    if card.node_id != signed.node {
        return Err(Code::CardForeign.into());
    }
    let terms = terms(&directory, card.node_id, now, work, invite.as_deref())?;
    admit_new(&directory, &card, &terms, signed.address).await?;
    let new = NewCard::new(&card, bytes);
    let registration = directory.store.call(move |store| store.register(now, &new, &terms)).await;
    directory.note_store(registration.is_err());
    let outcome = outcome(&directory, card.node_id, registration?)?;
    directory.metrics.registrations.add();
    if outcome != REFRESHED {
        directory.log_grew.notify_waiters();
    }
    let again = spread(directory.announce_every()).as_secs().max(1);
    let registered = Registered {
        node: card.node_id.to_string(),
        directory: directory.identity.id().to_string(),
        sequence: card.sequence,
        outcome: outcome.to_owned(),
        lease_seconds: directory.lease.as_secs(),
        announce_after_seconds: again,
    };
    Ok(([(header::RETRY_AFTER, again)], Json(registered)))
}

/// On which terms a caller comes that may be new: what it brings is looked at before the store is asked.
fn terms(
    directory: &Directory,
    node: NodeId,
    now: UnixMillis,
    work: Option<WorkBody>,
    invite: Option<&str>,
) -> Result<Terms, Problem> {
    let (mine, bits) = (directory.identity.id(), directory.work_bits);
    let verify = |work: WorkBody| Work { time: work.time, nonce: work.nonce }.verify(&mine, &node, now, bits);
    let worked = work.map(verify).transpose();
    let worked =
        worked.map_err(|error| Problem::new(Code::AdmissionWork, error.to_string()).work(bits).at(now.seconds()))?;
    let refuse = |error: WireError| Problem::new(Code::AdmissionInvite, error.to_string());
    let invite = invite.map(str::parse::<Invite>).transpose().map_err(refuse)?;
    if invite.as_ref().is_some_and(|invite| !invite.is_for(&mine)) {
        return Err(Problem::new(Code::AdmissionInvite, "this invite is another directory's"));
    }
    let invite = invite.map(|invite| invite.hash());
    Ok(Terms { most: directory.nodes, mode: directory.mode, worked: worked.is_some(), invite })
}

/// The word for a card that was taken, or why it was not.
fn outcome(directory: &Directory, node: NodeId, registration: Registration) -> Result<&'static str, Problem> {
    Err(match registration {
        Registration::Stored => return Ok("stored"),
        Registration::Refreshed => return Ok(REFRESHED),
        Registration::Quarantined => return Ok("quarantined"),
        Registration::Rollback => Code::CardRollback.into(),
        Registration::Equivocation { kept } => {
            if directory.may_remark(node) {
                tracing::warn!(node = %node.short(), kept, "two cards of one sequence");
            }
            let gone = "they are not kept as evidence: there is no room, or the held card has ended";
            let detail = if kept { "both are kept as evidence" } else { gone };
            Problem::new(Code::CardEquivocation, detail)
        }
        Registration::Succeeded(successor) => {
            Problem::new(Code::NodeSucceeded, format!("its successor is {successor}"))
        }
        Registration::Contradiction(contradiction) => {
            if directory.may_remark(node) {
                tracing::warn!(node = %node.short(), %contradiction, "a card's lineage is refused");
            }
            Problem::new(Code::CardSuccession, contradiction.to_string())
        }
        Registration::Full => Problem::from(Code::DirectoryFull).retry_after(directory.lease),
        Registration::NotAdmitted(Lack::Work) => must_work(directory),
        Registration::NotAdmitted(Lack::Invite) => Code::AdmissionInvite.into(),
        Registration::NotAdmitted(Lack::InviteUnknown) => {
            Problem::new(Code::AdmissionInvite, "this invite is not known here, or revoked")
        }
        Registration::NotAdmitted(Lack::InviteEnded) => Problem::new(Code::AdmissionInvite, "this invite has ended"),
        Registration::NotAdmitted(Lack::InviteSpent) => {
            Problem::new(Code::AdmissionInvite, "as many nodes as it was for have used this invite")
        }
    })
}

/// A node that has no card here counts against its address: among those who ask what to bring, or among those who bring it, so that asking first
/// costs no place among these; who comes with a lineage or an invite counts as bringing, whatever the store says of it. Of who asks too often
/// the store is not asked; it is told to work, which it would be told there unless an operator has let it in by name.
async fn admit_new(directory: &Directory, card: &Card, terms: &Terms, address: Option<IpAddr>) -> Result<(), Problem> {
    let (Some(address), node) = (address, card.node_id) else { return Ok(()) };
    if directory.store.read(move |store| store.node(&node)).await?.is_some() {
        return Ok(());
    }
    let brings = terms.worked || terms.invite.is_some() || !card.lineage.is_empty();
    if terms.mode == Mode::Work && !brings {
        return directory.take_asking(address).map_err(|_| must_work(directory));
    }
    let detail = "too many new nodes from this address";
    let refuse = |wait| Problem::new(Code::RateLimited, detail).retry_after(wait);
    directory.take_new_node(address).map_err(refuse)
}

fn must_work(directory: &Directory) -> Problem {
    Problem::from(Code::AdmissionWork).work(directory.work_bits).at(directory.now().seconds())
}

fn refuse_card(why: NotSeen) -> Problem {
    let error = match why {
        NotSeen::TooMany(wait) => return too_many_cards(wait),
        NotSeen::Wrong(error) => error,
    };
    let code = match error {
        WireError::OutOfTime { .. } => Code::CardEnded,
        WireError::BadSignature { .. } | WireError::WrongSigner { .. } => Code::CardSignature,
        _ => Code::CardMalformed,
    };
    Problem::new(code, error.to_string())
}

fn too_many_cards(wait: Duration) -> Problem {
    Problem::new(Code::RateLimited, "this node has changed its card too often").retry_after(wait)
}

/// Spread over ±10 %, so that nodes which started together do not stay together.
fn spread(time: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness everyone gets the same time: no harm beyond a peak.
    let _ = getrandom::fill(&mut random);
    let share = 0.9 + 0.2 * f64::from(u16::from_le_bytes(random)) / 65_535.0;
    time.mul_f64(share)
}

/// Answer to a withdrawal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Withdrawn {
    /// The node.
    pub node: String,
    /// Whether a card was held.
    pub withdrawn: bool,
}

#[utoipa::path(
    delete, path = "/api/v3/nodes/{id}", tag = "nodes",
    description = "Drops the calling node's card: it is not found, listed or routed to any more. Its sequence stays as a tombstone for \
                   as long as an older card could live, so that none comes back; a newer card registers it again. Signed by the node.",
    params(("id" = String, Path, description = "the node's did:key", pattern = "^did:key:z6Mk[1-9A-HJ-NP-Za-km-z]{44}$")),
    responses(
        (status = 200, description = "not held any more", body = Withdrawn),
        Problem,
    )
)]
pub(crate) async fn withdraw(
    State(directory): State<Arc<Directory>>,
    id: Result<Path<String>, PathRejection>,
    signed: Signed<(), 0>,
) -> Result<Json<Withdrawn>, Problem> {
    let node = node_id(&id?.0)?;
    if node != signed.node {
        return Err(Code::CardForeign.into());
    }
    // The same card would be an entry again.
    directory.take_card(node).map_err(too_many_cards)?;
    let withdrawn = directory.store.call(move |store| store.withdraw(&node)).await;
    directory.note_store(withdrawn.is_err());
    let withdrawn = withdrawn?;
    directory.mailboxes().evict(&node);
    Ok(Json(Withdrawn { node: node.to_string(), withdrawn }))
}

fn node_id(text: &str) -> Result<NodeId, Problem> {
    text.parse().map_err(|error: WireError| Problem::new(Code::RequestMalformed, error.to_string()))
}

#[utoipa::path(
    get, path = "/api/v3/nodes/{id}", tag = "nodes",
    description = "One card. For a node that has named a successor it is the successor's, whose card carries the signed word.",
    params(("id" = String, Path, description = "the node's did:key", pattern = "^did:key:z6Mk[1-9A-HJ-NP-Za-km-z]{44}$")),
    responses(
        (status = 200, description = "its card", body = NodeView),
        Problem,
    )
)]
pub(crate) async fn node(
    State(directory): State<Arc<Directory>>,
    _: Anonymous,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<NodeView>, Problem> {
    let id = node_id(&id?.0)?;
    let held = match directory.registered(id).await? {
        Some(held) => held,
        None => directory.successor(id).await?.ok_or(Code::NodeUnknown)?,
    };
    Ok(Json(view(&directory, &held)))
}

#[utoipa::path(
    get, path = "/api/v3/nodes/discover", tag = "nodes", params(DiscoverQuery),
    responses(
        (status = 200, description = "a page", body = Page),
        Problem,
    )
)]
pub(crate) async fn discover(
    State(directory): State<Arc<Directory>>,
    _: Anonymous,
    query: Result<Query<DiscoverQuery>, QueryRejection>,
) -> Result<Json<Page>, Problem> {
    let Query(query) = query?;
    let query = checked_query(&directory, &query)?;
    let found = directory.store.read(move |store| store.page(&query)).await?;
    let shown = found.held.iter().filter(|held| !directory.is_banned(&held.node));
    let nodes = shown.map(|held| view(&directory, held)).collect();
    Ok(Json(Page { nodes, next: found.next.map(|next| next.to_string()) }))
}

fn checked_query(directory: &Directory, query: &DiscoverQuery) -> Result<store::Query, Problem> {
    let malformed = |what: &'static str| Problem::new(Code::RequestMalformed, what);
    let now = directory.now();
    let lease = directory.lease.as_secs();
    let fresh = query.fresh_seconds.unwrap_or(lease).min(lease);
    if query.fresh_seconds.is_some_and(|seconds| seconds > 31_536_000) {
        return Err(malformed("fresh_seconds is more than a year"));
    }
    if query.sector.as_ref().is_some_and(|sector| sector.len() > NAME_BYTES) {
        return Err(malformed("sector is longer than 63 bytes"));
    }
    let method = query.capability.as_deref().map(str::parse::<Method>).transpose();
    let after = query.cursor.as_deref().map(str::parse::<NodeId>).transpose();
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=PAGE).contains(&limit) {
        return Err(malformed("limit is not between 1 and 64"));
    }
    Ok(store::Query {
        listed_only: true,
        sector: query.sector.clone(),
        method: method.map_err(|_| malformed("capability is not a method"))?,
        seen_since: Some(directory.presence_now().minus(Duration::from_secs(fresh))),
        alive_at: Some(now),
        after: after.map_err(|_| malformed("cursor is not from this call"))?,
        limit,
        examine: Some(EXAMINE),
        ..store::Query::default()
    })
}

pub(super) fn view(directory: &Directory, held: &Held) -> NodeView {
    NodeView {
        node: held.node.to_string(),
        card: to_base64(&held.card),
        sequence: held.sequence,
        fresh: is_fresh(directory.presence_now(), held, directory.lease),
        log: LogPlace { index: held.logged.index, salt: held.logged.salt.map(hex::encode) },
    }
}

fn is_fresh(now: UnixMillis, held: &Held, lease: Duration) -> bool {
    held.last_seen.plus(lease) >= now
}
