//! `/nodes`: register a card, look one up, page through those that chose to be listed.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, Request, State};
use openred_proto::checked::card::Card;
use openred_proto::error::WireError;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::NAME_BYTES;
use openred_proto::method::Method;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::{Code, Problem, ProblemDocument};
use super::signed::{Peer, admit_address, authenticate};
use super::{from_base64, parse, to_base64};
use crate::limits::{CARD_BODY_BYTES, PAGE};
use crate::state::Directory;
use crate::store::{self, Held, NewCard, Registration};

/// Body of a registration.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterBody {
    /// The signed card, standard base64.
    pub card: String,
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
    /// `stored` (new or newer) or `refreshed` (the same card again).
    pub outcome: String,
    /// The node is listed and counted as present for so long.
    pub lease_seconds: u64,
    /// Announce again after this; spread by the directory so that nodes do not come all at once.
    pub announce_after_seconds: u64,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its id.
    pub node: String,
    /// Its signed card, standard base64. Verify it: this directory is not to be trusted with it.
    pub card: String,
    /// The card's sequence.
    pub sequence: u64,
    /// Whether it was heard of within its lease.
    pub fresh: bool,
}

/// What to look for.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct DiscoverQuery {
    /// Only nodes of this sector.
    pub sector: Option<String>,
    /// Only nodes that speak this method (`alpha`, `beta`, `gamma`, `delta`).
    pub capability: Option<String>,
    /// Only nodes heard of within so many seconds; at most the lease, which is the default.
    pub fresh_seconds: Option<u64>,
    /// `next` of the page before.
    pub cursor: Option<String>,
    /// Nodes a page, at most 64.
    pub limit: Option<usize>,
}

/// A page of nodes, in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page {
    /// The nodes.
    pub nodes: Vec<NodeView>,
    /// Cursor of the next page; absent after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[utoipa::path(
    post, path = "/api/v3/nodes/register", tag = "nodes", request_body = RegisterBody,
    description = "Stores a signed card; also renewal and heartbeat. Signed by the card's node (RFC 9421).",
    responses(
        (status = 200, description = "held", body = Registered),
        (status = "4XX", description = "refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "5XX", description = "not now", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn register(
    State(directory): State<Arc<Directory>>,
    request: Request,
) -> Result<Json<Registered>, Problem> {
    let signed = authenticate(&directory, request, CARD_BODY_BYTES).await?;
    let body: RegisterBody = parse(&signed.body)?;
    let bytes = from_base64(&body.card)?;
    let now = directory.now();
    let card = Card::verify(&bytes, now).map_err(refuse_card)?;
    if card.node_id != signed.node {
        return Err(Code::CardForeign.into());
    }
    let new = new_card(&card, bytes);
    let most = directory.nodes;
    let outcome = directory.store.call(move |store| store.register(now, &new, most)).await;
    directory.note_store(outcome.is_err());
    let outcome = match outcome? {
        Registration::Stored => "stored",
        Registration::Refreshed => "refreshed",
        Registration::Rollback => return Err(Code::CardRollback.into()),
        Registration::Equivocation => {
            tracing::warn!(node = %card.node_id.short(), "two cards of one sequence; both kept as evidence");
            return Err(Code::CardEquivocation.into());
        }
        Registration::Full => return Err(Problem::from(Code::DirectoryFull).retry_after(directory.lease)),
    };
    directory.metrics.registrations.add();
    Ok(Json(Registered {
        node: card.node_id.to_string(),
        directory: directory.identity.id().to_string(),
        sequence: card.sequence,
        outcome: outcome.to_owned(),
        lease_seconds: directory.lease.as_secs(),
        announce_after_seconds: announce_after(directory.lease).as_secs().max(1),
    }))
}

fn new_card(card: &Card, bytes: Vec<u8>) -> NewCard {
    NewCard {
        node: card.node_id,
        sequence: card.sequence,
        expires_at: card.expires_at,
        listed: card.fields.listed,
        sector: card.fields.sector.clone(),
        methods: card.suites.bits(),
        bytes,
    }
}

fn refuse_card(error: WireError) -> Problem {
    let code = match error {
        WireError::OutOfTime { .. } => Code::CardEnded,
        WireError::BadSignature { .. } | WireError::WrongSigner { .. } => Code::CardSignature,
        _ => Code::CardMalformed,
    };
    Problem::new(code, error.to_string())
}

/// A third of the lease, spread over ±10 % so that nodes which started together do not stay together.
fn announce_after(lease: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness everyone gets the same time: no harm beyond a peak.
    let _ = getrandom::fill(&mut random);
    let share = 0.9 + 0.2 * f64::from(u16::from_le_bytes(random)) / 65_535.0;
    lease.mul_f64(share / 3.0)
}

#[utoipa::path(
    get, path = "/api/v3/nodes/{id}", tag = "nodes",
    params(("id" = String, Path, description = "the node's did:key")),
    responses(
        (status = 200, description = "its card", body = NodeView),
        (status = "4XX", description = "no such node", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "5XX", description = "not now", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn node(
    State(directory): State<Arc<Directory>>,
    peer: Option<Extension<Peer>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<NodeView>, Problem> {
    admit_address(&directory, peer.as_deref())?;
    let Path(id) = id.map_err(|error| Problem::new(Code::RequestMalformed, error.body_text()))?;
    let id: NodeId = id.parse().map_err(|error: WireError| Problem::new(Code::RequestMalformed, error.to_string()))?;
    let held = registered(&directory, id).await?.ok_or(Code::NodeUnknown)?;
    Ok(Json(view(&directory, &held)))
}

#[utoipa::path(
    get, path = "/api/v3/nodes/discover", tag = "nodes", params(DiscoverQuery),
    responses(
        (status = 200, description = "a page", body = Page),
        (status = "4XX", description = "refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "5XX", description = "not now", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn discover(
    State(directory): State<Arc<Directory>>,
    peer: Option<Extension<Peer>>,
    query: Result<Query<DiscoverQuery>, QueryRejection>,
) -> Result<Json<Page>, Problem> {
    admit_address(&directory, peer.as_deref())?;
    let Query(query) = query.map_err(|error| Problem::new(Code::RequestMalformed, error.body_text()))?;
    let query = checked_query(&directory, &query)?;
    let limit = query.limit;
    let held = directory.store.call(move |store| store.page(&query)).await?;
    let next = held.last().filter(|_| held.len() == limit).map(|last| last.node.to_string());
    let nodes =
        held.iter().filter(|held| !directory.is_banned(&held.node)).map(|held| view(&directory, held)).collect();
    Ok(Json(Page { nodes, next }))
}

fn checked_query(directory: &Directory, query: &DiscoverQuery) -> Result<store::Query, Problem> {
    let malformed = |what: &'static str| Problem::new(Code::RequestMalformed, what);
    let now = directory.now();
    let lease = directory.lease.as_secs();
    let fresh = query.fresh_seconds.unwrap_or(lease).min(lease);
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
        seen_since: Some(now.minus(Duration::from_secs(fresh))),
        alive_at: Some(now),
        after: after.map_err(|_| malformed("cursor is not from this call"))?,
        limit,
    })
}

/// A node whose card has not ended and that is not banned.
pub(crate) async fn registered(directory: &Directory, id: NodeId) -> Result<Option<Held>, Problem> {
    if directory.is_banned(&id) {
        return Ok(None);
    }
    let now = directory.now();
    let held = directory.store.call(move |store| store.node(&id)).await?;
    Ok(held.filter(|held| held.expires_at > now))
}

fn view(directory: &Directory, held: &Held) -> NodeView {
    NodeView {
        node: held.node.to_string(),
        card: to_base64(&held.card),
        sequence: held.sequence,
        fresh: is_fresh(directory.now(), held, directory.lease),
    }
}

fn is_fresh(now: UnixMillis, held: &Held, lease: Duration) -> bool {
    held.last_seen.plus(lease) >= now
}
