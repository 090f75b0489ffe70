//! The host's own module, `openred`: an echo for `ping`, and a stream of zero bytes for throughput measurements.

use bytes::Bytes;
use futures_util::stream;
use openred_module::{Body, BodyError, ModuleError, Response, Status};
use openred_proto::checked::session::RequestHead;

/// Its name in a request's head.
pub(super) const ID: &str = "openred";
/// Longest echo: `ping` asks for less.
const ECHO_BYTES: u64 = 1 << 20;
/// Most bytes that one source request gives.
const SOURCE_BYTES: u64 = 64 << 30;
/// One block of the source; shared, so a stream of any length costs one of them.
static ZEROS: [u8; 256 * 1024] = [0; 256 * 1024];

/// Answers a call of the operator or a peer.
pub(super) fn dispatch(throughput: bool, head: &RequestHead, body: Body) -> Response {
    let (path, query) = head.path.split_once('?').unwrap_or((&head.path, ""));
    match (head.method.as_str(), path) {
        ("POST", "/echo") => Response::new(Status::Ok, &head.content_type, body.limited(ECHO_BYTES)),
        ("GET", "/source") if throughput => match query.strip_prefix("bytes=").and_then(|text| text.parse().ok()) {
            Some(bytes) if bytes <= SOURCE_BYTES => Response::new(Status::Ok, "", zeros(bytes)).with_length(bytes),
            _ => ModuleError::bad_request("bad-length", "expected /source?bytes=N, up to 64 GiB").into(),
        },
        _ => ModuleError::not_found("no-such-route", "the node has no such route").into(),
    }
}

fn zeros(bytes: u64) -> Body {
    Body::stream(stream::unfold(bytes, |left| async move {
        let block = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        (block > 0).then(|| (Ok::<_, BodyError>(Bytes::from_static(&ZEROS[..block])), left - block as u64))
    }))
}
