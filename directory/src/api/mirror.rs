//! `/mirror`: what a mirror follows. The log's entries in their order with the cards that are held among them, each page with a proof that it
//! leads to the head that comes with it; and who is present. For those alone whom the operator named (`mirror.allow`): the cards of nodes that
//! are not listed are among them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use openred_proto::log::tree::{self, position};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::problem::{Code, Problem};
use super::signed::Signed;
use super::to_base64;
use super::tokens::OpenStream;
use crate::error::Result as Outcome;
use crate::limits::{MIRROR_PAGE, WAIT};
use crate::state::Directory;
use crate::store::{CardReader, Held};

/// Cards on one page of who is present: about 200 KiB of JSON.
pub const PRESENT_PAGE: usize = 4096;
/// Where several directories write to one log, another's entry is seen this late.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// From where on, and whether to wait.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ChangesQuery {
    /// Entries that the mirror has.
    #[param(minimum = 0)]
    pub from: u64,
    /// Entries of this page, at most 256, which is the default.
    #[param(minimum = 1, maximum = 256)]
    pub limit: Option<u64>,
    /// Where there are none: seconds to wait for one, at most 60.
    #[param(minimum = 0, maximum = 60)]
    pub wait: Option<u64>,
}

/// A page of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Changes {
    /// The signed head of the log now (as `/log/head` gives it).
    pub head: String,
    /// The leaves' hashes (RFC 6962) from `from` on, standard base64.
    pub leaves: Vec<String>,
    /// Proof that the log up to the last of them is the beginning of the head's (RFC 6962 section 2.1.2).
    pub proof: Vec<String>,
    /// The cards that are held among them, in the order of the log; of the other entries newer ones came, or nothing is held.
    pub cards: Vec<MirrorCard>,
}

/// A card in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MirrorCard {
    /// Entries before it.
    pub index: u64,
    /// 16 bytes, hex; of a card that is not listed, and of no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// The signed card, standard base64.
    pub card: String,
    /// Seconds since its node was heard of.
    pub seen_seconds_ago: u64,
}

/// From where on.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PresentQuery {
    /// Entries before the first that is told; `next` of the page before.
    #[param(minimum = 0)]
    pub from: u64,
}

/// A page of who is present, in the order of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Present {
    /// The cards that are held; what lies between them is held no more.
    pub cards: Vec<PresentCard>,
    /// Where the next page begins; absent after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A card that is held, by its place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresentCard {
    /// Entries before it.
    pub index: u64,
    /// Seconds since its node was heard of.
    pub seen_seconds_ago: u64,
}

#[utoipa::path(
    get, path = "/api/v3/mirror/changes", tag = "mirror", params(ChangesQuery),
    description = "A page of the log for a mirror: entries, the cards that are held among them, a head, and a proof that the page leads to it. \
                   Signed by a mirror that the operator named (`mirror.allow`).",
    responses((status = 200, description = "a page", body = Changes), Problem)
)]
pub(crate) async fn changes(
    State(directory): State<Arc<Directory>>,
    query: Result<Query<ChangesQuery>, QueryRejection>,
    signed: Signed<(), 0>,
) -> Result<Json<Changes>, Problem> {
    allowed(&directory, &signed)?;
    let Query(ChangesQuery { from, limit, wait }) = query?;
    let malformed = |what: &'static str| Problem::new(Code::RequestMalformed, what);
    let limit = limit.unwrap_or(MIRROR_PAGE);
    if !(1..=MIRROR_PAGE).contains(&limit) {
        return Err(malformed("limit is not between 1 and 256"));
    }
    let wait = Duration::from_secs(wait.unwrap_or(0));
    if wait > WAIT {
        return Err(malformed("wait is more than 60"));
    }
    let _open = OpenStream::count(&directory, signed.address)?;
    let ends = Instant::now() + wait;
    let mut draining = directory.draining();
    let (size, head) = loop {
        let grown = directory.log_grew.notified();
        let mut grown = std::pin::pin!(grown);
        // Registered before the look, so that nothing falls between look and wait.
        grown.as_mut().enable();
        let (size, head) = directory.signed_head().await?;
        if size != from || Instant::now() >= ends || *draining.borrow_and_update() {
            break (size, head);
        }
        tokio::select! {
            () = grown => {}
            () = tokio::time::sleep_until(ends.min(Instant::now() + LOOK_AGAIN)) => {}
            _ = draining.changed() => {}
        }
    };
    // A mirror that has more than there is sees so by the head.
    let from = from.min(size);
    let to = size.min(from + limit);
    let (leaves, proof, held) = directory.store.read(move |store| page(store, from, to, size)).await?;
    let now = directory.now();
    let shown = held.iter().filter(|held| directory.shows(held, now));
    let cards = shown.map(|held| MirrorCard {
        index: held.logged.index,
        salt: held.logged.salt.map(hex::encode),
        card: to_base64(&held.card),
        seen_seconds_ago: now.0.saturating_sub(held.last_seen.0) / 1000,
    });
    Ok(Json(Changes { head, leaves, proof, cards: cards.collect() }))
}

/// Hashes of the leaves, the proof from their end to the head, and the cards among them.
fn page(store: &mut dyn CardReader, from: u64, to: u64, size: u64) -> Outcome<(Vec<String>, Vec<String>, Vec<Held>)> {
    let leaves = (from..to).map(|index| store.log_hash(position(0, index)).map(|leaf| to_base64(&leaf)));
    let leaves = leaves.collect::<Outcome<_>>()?;
    let proof = tree::prove_consistency(to, size, |position| store.log_hash(position))?;
    let held = if to > from { store.logged(from, to)? } else { Vec::new() };
    Ok((leaves, proof.iter().map(|hash| to_base64(hash)).collect(), held))
}

#[utoipa::path(
    get, path = "/api/v3/mirror/present", tag = "mirror", params(PresentQuery),
    description = "Which cards are held, by their places in the log, and when their nodes were heard of. Signed by a mirror that the operator \
                   named (`mirror.allow`).",
    responses((status = 200, description = "a page", body = Present), Problem)
)]
pub(crate) async fn present(
    State(directory): State<Arc<Directory>>,
    query: Result<Query<PresentQuery>, QueryRejection>,
    signed: Signed<(), 0>,
) -> Result<Json<Present>, Problem> {
    allowed(&directory, &signed)?;
    let Query(PresentQuery { from }) = query?;
    let rows = directory.store.read(move |store| store.present(from, PRESENT_PAGE)).await?;
    let now = directory.now();
    let next = rows.last().filter(|_| rows.len() == PRESENT_PAGE).map(|last| last.index + 1);
    let shown = rows.iter().filter(|row| row.expires_at > now && !directory.is_banned(&row.node));
    let cards = shown
        .map(|row| PresentCard { index: row.index, seen_seconds_ago: now.0.saturating_sub(row.last_seen.0) / 1000 });
    Ok(Json(Present { cards: cards.collect(), next }))
}

fn allowed(directory: &Directory, signed: &Signed<(), 0>) -> Result<(), Problem> {
    if directory.lets_in(&signed.node) { Ok(()) } else { Err(Code::MirrorUnknown.into()) }
}
