//! Calls of modules through the admin socket: frames to a head and a body, and back.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use openred_module::{Body, BodyError};
use openred_proto::admin::{ModuleCost, ModuleRequestFrame, ModuleResponseFrame, ModuleResponseHead};
use openred_proto::checked::session::{
    CONTENT_TYPE_BYTES, IDEMPOTENCY_BYTES, MODULE_BYTES, PATH_BYTES, RequestHead, ResponseHead,
};
use tonic::{Status, Streaming};

use super::{Frames, reply};
use crate::hooks::Costs;

/// Bytes of one response frame: gRPC's own frames are smaller, its default limit is 4 MiB.
const FRAME_BYTES: usize = 256 * 1024;

/// The head of the first frame, and a body fed by it and the rest.
pub(super) async fn take_request(mut frames: Streaming<ModuleRequestFrame>) -> Result<(RequestHead, Body), Status> {
    let malformed = |what: &str| reply::invalid("request.malformed", what);
    let first = frames.message().await?.ok_or_else(|| malformed("no frame"))?;
    let head = first.head.ok_or_else(|| malformed("the first frame has no head"))?;
    let fits = head.module.len() <= MODULE_BYTES
        && head.path.len() <= PATH_BYTES
        && head.content_type.len() <= CONTENT_TYPE_BYTES
        && head.idempotency_key.len() <= IDEMPOTENCY_BYTES;
    if !fits {
        return Err(malformed("a part of the head is too long"));
    }
    let (sender, body) = Body::channel();
    let start = first.body;
    tokio::spawn(async move {
        if !start.is_empty() && sender.send(start).await.is_err() {
            return;
        }
        loop {
            match frames.message().await {
                Ok(Some(frame)) if frame.body.is_empty() => {}
                // The module reads no further; it has answered or will.
                Ok(Some(frame)) => {
                    if sender.send(frame.body).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return sender.finish().await,
                Err(_) => return sender.abort(BodyError::Truncated).await,
            }
        }
    });
    let head = RequestHead {
        module: head.module,
        method: head.method,
        path: head.path,
        content_type: head.content_type,
        length: None,
        deadline_millis: 0,
        idempotency_key: head.idempotency_key.to_vec(),
        from: 0,
    };
    Ok((head, body))
}

/// The head in the first frame, with what the answer has cost, the body in the following ones; a body that fails ends the call with a status.
pub(super) fn give_response((head, body): (ResponseHead, Body), costs: Costs) -> Frames<ModuleResponseFrame> {
    let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let costs = costs.into_iter().map(|(name, took)| ModuleCost { name, micros: micros(took) }).collect();
    let ResponseHead { status, content_type, length } = head;
    let head = ModuleResponseHead { status: u32::from(status), content_type, length, costs };
    let first = ModuleResponseFrame { head: Some(head), body: Bytes::new() };
    let rest = body.flat_map(|piece| {
        stream::iter(match piece {
            Ok(bytes) => split(bytes).map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(reply::lost("body.failed", &error.to_string()))],
        })
    });
    Box::pin(stream::once(std::future::ready(Ok(first))).chain(rest))
}

fn split(bytes: Bytes) -> impl Iterator<Item = ModuleResponseFrame> {
    let starts = (0..bytes.len()).step_by(FRAME_BYTES);
    starts.map(move |start| {
        let end = bytes.len().min(start + FRAME_BYTES);
        ModuleResponseFrame { head: None, body: bytes.slice(start..end) }
    })
}
