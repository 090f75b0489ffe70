//! Look-ups that need not say whom one seeks: many nodes in one call, some of them decoys; or all whose ids begin alike, each card
//! sealed with a key that is made of its node's id. Who knows the id opens that card; to everybody else, the caller who tries all
//! prefixes included, an unlisted node stays a number (decision 0043).

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _};
use openred_proto::crowd::{InCrowd, PREFIX_DIGITS, key};
use openred_proto::id::NodeId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::nodes::{NodeView, view};
use super::problem::{Code, Problem};
use super::signed::{Anonymous, Asked};
use super::to_base64;
use crate::limits::{EXAMINE_PREFIX, LOOK_UP_BODY_BYTES, PAGE};
use crate::state::Directory;
use crate::store::{self, Held};

/// Body of a look-up of many.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LookUpBody {
    /// Their did:keys, at most 64.
    #[schema(max_items = 64, min_items = 1)]
    pub nodes: Vec<String>,
}

/// Answer to a look-up of many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Found {
    /// Those that are here, in the order asked for. No successors: they are looked up alone.
    pub nodes: Vec<NodeView>,
}

/// Answer to a look-up by prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sealed {
    /// One for each node whose id begins so: standard base64 of twelve bytes of nonce and what is sealed with ChaCha20-Poly1305: the
    /// card's place in the log (eight bytes, the greatest first), its salt behind its length (one byte, 0 or 16), the signed card. Key:
    /// SHA-256 over `openred/1/prefix`, a zero byte and the 32 raw bytes of the id. Associated data: the prefix as it was asked for.
    pub sealed: Vec<String>,
}

#[utoipa::path(
    post, path = "/api/v3/nodes/lookup", tag = "nodes", request_body = LookUpBody,
    description = "Many cards at once. A caller that mixes in ids that it does not seek does not say which it does.",
    responses(
        (status = 200, description = "those that are here", body = Found),
        Problem,
    )
)]
pub(crate) async fn look_up(
    State(directory): State<Arc<Directory>>,
    Asked(body): Asked<LookUpBody, LOOK_UP_BODY_BYTES>,
) -> Result<Json<Found>, Problem> {
    if !(1..=PAGE).contains(&body.nodes.len()) {
        return Err(Problem::new(Code::RequestMalformed, "name 1 to 64 nodes"));
    }
    let ids = body.nodes.iter().map(|text| text.parse::<NodeId>()).collect::<Result<Vec<_>, _>>();
    let ids = ids.map_err(|error| Problem::new(Code::RequestMalformed, error.to_string()))?;
    let now = directory.now();
    let held = directory.store.read(move |store| {
        let found = ids.iter().filter_map(|id| store.node(id).transpose());
        found.collect::<crate::error::Result<Vec<_>>>()
    });
    let shown = held.await?.into_iter().filter(|held| directory.shows(held, now));
    Ok(Json(Found { nodes: shown.map(|held| view(&directory, &held)).collect() }))
}

#[utoipa::path(
    get, path = "/api/v3/nodes/prefix/{prefix}", tag = "nodes",
    description = "The cards of all nodes whose ids (the 32 raw bytes, as lower-case hex) begin so, unlisted ones too, each sealed \
                   for those who know its node's id. A caller begins with one digit and adds one while `prefix.wide` says that \
                   there are too many; the directory learns only that it seeks one of these.",
    params(("prefix" = String, Path, description = "1 to 16 lower-case hex digits", pattern = "^[0-9a-f]{1,16}$")),
    responses(
        (status = 200, description = "at most 64 sealed cards", body = Sealed),
        Problem,
    )
)]
pub(crate) async fn by_prefix(
    State(directory): State<Arc<Directory>>,
    _: Anonymous,
    prefix: Result<Path<String>, PathRejection>,
) -> Result<Json<Sealed>, Problem> {
    let Path(prefix) = prefix?;
    let (first, last) =
        range(&prefix).ok_or(Problem::new(Code::RequestMalformed, "not 1 to 16 lower-case hex digits"))?;
    let now = directory.now();
    let query = store::Query {
        from: Some(first),
        to: Some(last),
        alive_at: Some(now),
        limit: PAGE + 1,
        examine: Some(EXAMINE_PREFIX),
        ..store::Query::default()
    };
    let page = directory.store.read(move |store| store.page(&query)).await?;
    // More rows than are looked at: who adds a digit comes to what stands behind them.
    if page.held.len() > PAGE || page.next.is_some() {
        return Err(Code::PrefixWide.into());
    }
    let shown = page.held.iter().filter(|held| directory.shows(held, now));
    let sealed = shown.map(|held| seal(&prefix, held)).collect::<Result<_, _>>()?;
    Ok(Json(Sealed { sealed }))
}

/// The first and the last id that begin so.
fn range(prefix: &str) -> Option<(NodeId, NodeId)> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !(1..=PREFIX_DIGITS).contains(&prefix.len()) || !prefix.bytes().all(is_digit) {
        return None;
    }
    let filled = |with: &str| {
        let mut id = [0; 32];
        hex::decode_to_slice(format!("{prefix}{}", with.repeat(64 - prefix.len())), &mut id).ok()?;
        Some(NodeId::from_bytes(id))
    };
    Some((filled("0")?, filled("f")?))
}

fn cipher(node: &NodeId) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(&key(node).into())
}

fn seal(prefix: &str, held: &Held) -> Result<String, Problem> {
    // Random, because one node's cards are all sealed with one key; 2^32 of them are never made.
    let mut nonce = [0; 12];
    getrandom::fill(&mut nonce).map_err(|_| Code::DirectoryFailing)?;
    let shown = InCrowd { index: held.logged.index, salt: held.logged.salt, card: held.card.clone() };
    let payload = Payload { msg: &shown.encode(), aad: prefix.as_bytes() };
    let sealed = cipher(&held.node).encrypt(&nonce.into(), payload).map_err(|_| Code::DirectoryFailing)?;
    Ok(to_base64(&[&nonce[..], &sealed].concat()))
}

/// Opens one of [`Sealed`] as who knows the id does; none when it is another node's.
#[must_use]
pub fn open(prefix: &str, node: &NodeId, sealed: &[u8]) -> Option<InCrowd> {
    let (nonce, sealed) = sealed.split_first_chunk::<12>()?;
    let opened = cipher(node).decrypt(&(*nonce).into(), Payload { msg: sealed, aad: prefix.as_bytes() }).ok()?;
    InCrowd::decode(&opened).ok()
}
