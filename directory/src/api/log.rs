//! `/log`: the signed head of the log of cards, and proofs against it (docs/protocol.md section 7). A head is signed when it is asked
//! for, of what is durable by then: one size has one root, and so one text.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use openred_proto::log::Hash;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::{Code, Problem};
use super::signed::Anonymous;
use super::to_base64;
use crate::state::Directory;
use crate::store;

/// Where a card stands in the log. Its entry is SHA-256 of the card, or of salt and card, each behind its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogPlace {
    /// Entries before it.
    pub index: u64,
    /// 16 bytes, hex; of a card that is not listed, and of no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
}

/// The log's signed head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogHead {
    /// A checkpoint (c2sp.org/tlog-checkpoint) as a note that this directory signed.
    pub head: String,
}

/// A proof against a head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogProof {
    /// Hashes in the order of RFC 6962, standard base64.
    pub proof: Vec<String>,
}

/// Which entry, in a log of which size.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct InclusionQuery {
    /// Entries before it.
    #[param(minimum = 0)]
    pub index: u64,
    /// Size of the head that the proof is to lead to.
    #[param(minimum = 0)]
    pub size: u64,
}

/// Between which two sizes.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsistencyQuery {
    /// Size of the older head.
    #[param(minimum = 0)]
    pub from: u64,
    /// Size of the newer head.
    #[param(minimum = 0)]
    pub to: u64,
}

#[utoipa::path(
    get, path = "/api/v3/log/head", tag = "log",
    description = "How far the log of cards goes, signed by this directory; by a mirror, the last head that it was handed by the directory.",
    responses((status = 200, description = "the head", body = LogHead), Problem)
)]
pub(crate) async fn head(State(directory): State<Arc<Directory>>, _: Anonymous) -> Result<Json<LogHead>, Problem> {
    let (_, head) = directory.signed_head().await?;
    Ok(Json(LogHead { head }))
}

#[utoipa::path(
    get, path = "/api/v3/log/inclusion", tag = "log", params(InclusionQuery),
    description = "Proof that an entry is in the log (RFC 6962 section 2.1.1).",
    responses((status = 200, description = "the proof", body = LogProof), Problem)
)]
pub(crate) async fn inclusion(
    State(directory): State<Arc<Directory>>,
    _: Anonymous,
    query: Result<Query<InclusionQuery>, QueryRejection>,
) -> Result<Json<LogProof>, Problem> {
    let Query(InclusionQuery { index, size }) = query?;
    answer(directory.store.read(move |reader| store::prove_inclusion(reader, index, size)).await?)
}

#[utoipa::path(
    get, path = "/api/v3/log/consistency", tag = "log", params(ConsistencyQuery),
    description = "Proof that the log of the older head is the beginning of the newer one's (RFC 6962 section 2.1.2).",
    responses((status = 200, description = "the proof", body = LogProof), Problem)
)]
pub(crate) async fn consistency(
    State(directory): State<Arc<Directory>>,
    _: Anonymous,
    query: Result<Query<ConsistencyQuery>, QueryRejection>,
) -> Result<Json<LogProof>, Problem> {
    let Query(ConsistencyQuery { from, to }) = query?;
    answer(directory.store.read(move |reader| store::prove_consistency(reader, from, to)).await?)
}

fn answer(proof: Option<Vec<Hash>>) -> Result<Json<LogProof>, Problem> {
    let proof = proof.ok_or(Code::LogRange)?;
    Ok(Json(LogProof { proof: proof.iter().map(|hash| to_base64(hash)).collect() }))
}
