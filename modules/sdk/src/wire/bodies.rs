//! Bodies of requests to peers, and of connections, as frames of the second connection, both ways. How fast they go is HTTP/2's own matter: each
//! has a stream of its own.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use openred_proto::module::{DialFrame, DialedFrame, End, PeerReplyFrame, PeerSendFrame};
use tonic::Streaming;

use super::PIECE_BYTES;
use super::flow::{ended, ending};
use crate::body::{Body, BodyError};

/// A frame that carries a piece of a body.
pub(crate) trait BodyFrame: Default + Send + 'static {
    /// Sets the piece, how the body ends with it, and the limit that goes with that.
    fn set(&mut self, body: Bytes, end: End, limit: u64);
    /// The same back.
    fn parts(self) -> (Bytes, i32, u64);
}

macro_rules! body_frames {
    ($($frame:ident)*) => {
        $(impl BodyFrame for $frame {
            fn set(&mut self, body: Bytes, end: End, limit: u64) {
                (self.body, self.end, self.limit) = (body, end.into(), limit);
            }

            fn parts(self) -> (Bytes, i32, u64) {
                (self.body, self.end, self.limit)
            }
        })*
    };
}

body_frames! { PeerSendFrame PeerReplyFrame DialFrame DialedFrame }

/// The frame that has the head, with a short body in it, or with the body in frames behind it; the last one says how it ended.
pub(crate) fn frames<F: BodyFrame>(mut head: F, mut body: Body) -> impl Stream<Item = F> + Send + 'static {
    let short = body.short(PIECE_BYTES);
    let rest = short.is_none().then_some(body);
    let end = if rest.is_none() { End::Done } else { End::More };
    head.set(short.unwrap_or_default(), end, 0);
    let pieces = stream::iter(rest).flat_map(|body| {
        let last = stream::once(std::future::ready(None));
        body.map(Some).chain(last).flat_map(|item| stream::iter(cut(item)))
    });
    stream::once(std::future::ready(head)).chain(pieces)
}

/// `None` is the body's end.
fn cut<F: BodyFrame>(item: Option<Result<Bytes, BodyError>>) -> Vec<F> {
    let frame = |body: Bytes, end: End, limit: u64| {
        let mut frame = F::default();
        frame.set(body, end, limit);
        frame
    };
    match item {
        Some(Ok(bytes)) => {
            let starts = (0..bytes.len()).step_by(PIECE_BYTES);
            let piece = |start: usize| bytes.slice(start..bytes.len().min(start + PIECE_BYTES));
            starts.map(|start| frame(piece(start), End::More, 0)).collect()
        }
        Some(Err(error)) => {
            let (end, limit) = ending(error);
            vec![frame(Bytes::new(), end, limit)]
        }
        None => vec![frame(Bytes::new(), End::Done, 0)],
    }
}

/// The body whose first piece is in `first`. Frames behind its end are not looked at.
pub(crate) fn body<F: BodyFrame>(first: F, rest: Streaming<F>) -> Body {
    let (bytes, end, limit) = first.parts();
    if end == i32::from(End::Done) {
        return Body::whole(bytes);
    }
    let state = Some((Some((bytes, end, limit)), rest));
    Body::stream(stream::unfold(state, |state| async move {
        let (waiting, mut rest) = state?;
        let parts = match waiting {
            Some(parts) => parts,
            None => match rest.message().await {
                Ok(Some(frame)) => frame.parts(),
                Ok(None) => return Some((Err(BodyError::Truncated), None)),
                // Who sent it has gone, or what it sent is no frame.
                Err(_) => return Some((Err(BodyError::Failed), None)),
            },
        };
        let (bytes, end, limit) = parts;
        match ended(end, limit) {
            Ok(None) => Some((Ok(bytes), Some((None, rest)))),
            Ok(Some(Ok(()))) if bytes.is_empty() => None,
            Ok(Some(Ok(()))) => Some((Ok(bytes), None)),
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Err(_) => Some((Err(BodyError::Failed), None)),
        }
    }))
}
