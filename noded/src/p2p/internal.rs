//! The module `openred` that every node answers itself: the match proof, what peers say about links, an echo, and a source of bytes for measurements.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::StatusCode;
use openred_module::Body;
use openred_proto::checked::session::{RequestHead, ResponseHead};

use super::PeerNetwork;
use super::pool::Pooled;
use crate::link::inside as link;

/// The module's name.
pub(crate) const MODULE: &str = "openred";
/// The initiator's match proof (PROTOCOL 4.5).
pub(super) const MATCH: &str = "/match";
/// Gives the body back.
pub(super) const ECHO: &str = "/echo";
/// Gives as many bytes as the query asks; only where the operator allows measurements.
pub(super) const SOURCE: &str = "/source?bytes=";

/// Longest body that is echoed: an echo is for small requests, and held in memory while it is answered.
const ECHO_BYTES: u64 = 1024 * 1024;
/// Most bytes that one call of the source gives.
const SOURCE_BYTES: u64 = 16 << 30;
/// One piece of the source's zeros: shared, so that the source itself costs nothing.
static ZEROS: [u8; 256 * 1024] = [0; 256 * 1024];

/// Answers one request of a peer.
pub(super) async fn dispatch(
    network: &Arc<PeerNetwork>,
    pooled: &Arc<Pooled>,
    head: RequestHead,
    body: Body,
) -> (ResponseHead, Body) {
    match (head.method.as_str(), head.path.as_str()) {
        ("POST", MATCH) => (check_match(network, pooled, body).await, Body::empty()),
        ("POST", path) if path.starts_with(link::PREFIX) => about_links(network, pooled, &head, body).await,
        ("POST", ECHO) => (ResponseHead { length: head.length, ..status(StatusCode::OK) }, body.limited(ECHO_BYTES)),
        ("GET", path) if network.settings.throughput => match path.strip_prefix(SOURCE).map(str::parse) {
            Some(Ok(bytes)) if bytes <= SOURCE_BYTES => {
                (ResponseHead { length: Some(bytes), ..status(StatusCode::OK) }, source(bytes))
            }
            Some(_) => (status(StatusCode::BAD_REQUEST), Body::empty()),
            None => (status(StatusCode::NOT_FOUND), Body::empty()),
        },
        _ => (status(StatusCode::NOT_FOUND), Body::empty()),
    }
}

async fn check_match(network: &Arc<PeerNetwork>, pooled: &Arc<Pooled>, body: Body) -> ResponseHead {
    let Ok(proof) = body.collect(32).await else { return status(StatusCode::BAD_REQUEST) };
    status(match network.check_match(pooled, &proof).await {
        Some(true) => StatusCode::NO_CONTENT,
        Some(false) => StatusCode::CONFLICT,
        None => StatusCode::SERVICE_UNAVAILABLE,
    })
}

async fn about_links(
    network: &Arc<PeerNetwork>,
    pooled: &Arc<Pooled>,
    head: &RequestHead,
    body: Body,
) -> (ResponseHead, Body) {
    let Ok(body) = body.collect(link::BODY_BYTES).await else {
        return (status(StatusCode::PAYLOAD_TOO_LARGE), Body::empty());
    };
    let (status, body) = network.ports.links.answer(pooled.session.peer, &head.path, body).await;
    (ResponseHead { status, content_type: String::new(), length: None }, Body::whole(body))
}

fn source(bytes: u64) -> Body {
    let pieces = bytes.div_ceil(ZEROS.len() as u64);
    Body::stream(futures_util::stream::iter(0..pieces).map(move |piece| {
        let left = bytes - piece * ZEROS.len() as u64;
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        Ok(Bytes::from_static(&ZEROS[..length]))
    }))
}

/// A head without a body.
pub(super) fn status(status: StatusCode) -> ResponseHead {
    ResponseHead { status: status.as_u16(), content_type: String::new(), length: None }
}
