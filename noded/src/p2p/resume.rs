//! Answers that go on where they broke off (PROTOCOL 6): the same question with the same idempotency key, under a new number, from
//! the byte on that came last. What came is authentic chunk by chunk, and an answer that was cut never restarts.
//!
//! Only for what is the same each time: a `GET` with a key, answered with 200 and a length. A process that ends loses this; what
//! is to survive that is the modules' (`files` keeps verified pieces).

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use http::StatusCode;
use openred_module::{Body, BodyError};
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::NodeId;
use openred_proto::limits::CHUNK_BYTES;

use super::{PeerNetwork, internal};

/// Pauses before each attempt to go on, while these bring less than a chunk together: a broken connection is mended at once, a peer's program
/// is started again within seconds.
const PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// Whether the answer may be asked for in parts.
pub(super) fn is_resumable(head: &RequestHead) -> bool {
    head.method == "GET" && !head.idempotency_key.is_empty()
}

/// The answer from byte `from` on, as a peer asked for it.
pub(super) fn skip(from: u64, head: ResponseHead, body: Body) -> (ResponseHead, Body) {
    if from == 0 || head.status != StatusCode::OK.as_u16() {
        return (head, body);
    }
    match head.length.or(body.known_length()).and_then(|length| length.checked_sub(from)) {
        Some(left) => (ResponseHead { length: Some(left), ..head }, body.after(from)),
        None => (internal::status(StatusCode::RANGE_NOT_SATISFIABLE), Body::empty()),
    }
}

/// An answer under way.
struct Resumed {
    network: Arc<PeerNetwork>,
    peer: NodeId,
    asked: RequestHead,
    content_type: String,
    length: u64,
    /// Bytes that came.
    at: u64,
    body: Body,
    breaks: Breaks,
}

/// How often an answer has broken off, and what came of going on. The peer decides where it breaks: one that gives a byte each time
/// would have this node ask for ever, without a pause.
#[derive(Debug)]
pub(super) struct Breaks {
    /// Attempts since the last whole chunk.
    attempts: usize,
    /// Bytes that came since then.
    bytes: u64,
    /// Attempts that are left in all.
    left: u64,
}

impl Breaks {
    /// Of an answer so long: once for each of its chunks, and for a while where none comes.
    pub(super) const fn of(length: u64) -> Self {
        Self { attempts: 0, bytes: 0, left: length / CHUNK_BYTES as u64 + PAUSES.len() as u64 }
    }

    pub(super) const fn came(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes >= CHUNK_BYTES as u64 {
            (self.attempts, self.bytes) = (0, 0);
        }
    }

    /// It broke off, or could not go on: how long to wait before the next attempt; none when it is given up.
    pub(super) fn next_pause(&mut self) -> Option<Duration> {
        let pause = PAUSES.get(self.attempts)?;
        self.left = self.left.checked_sub(1)?;
        self.attempts += 1;
        Some(*pause)
    }
}

impl PeerNetwork {
    /// `body`, which goes on over breaks if the answer allows it.
    pub(super) fn resumed(
        self: &Arc<Self>,
        peer: NodeId,
        asked: RequestHead,
        answer: &ResponseHead,
        body: Body,
    ) -> Body {
        let Some(length) = answer.length.filter(|_| answer.status == StatusCode::OK.as_u16()) else { return body };
        if body.known_length().is_some() {
            return body;
        }
        let content_type = answer.content_type.clone();
        let network = Arc::clone(self);
        let begun = Resumed { network, peer, asked, content_type, length, at: 0, body, breaks: Breaks::of(length) };
        Body::stream(futures_util::stream::unfold(Some(begun), |resumed| async {
            let mut resumed = resumed?;
            match resumed.next().await? {
                Ok(bytes) => Some((Ok(bytes), Some(resumed))),
                Err(error) => Some((Err(error), None)),
            }
        }))
    }
}

impl Resumed {
    /// The next bytes, from this answer or one that goes on for it.
    async fn next(&mut self) -> Option<Result<bytes::Bytes, BodyError>> {
        loop {
            let broken = match self.body.next().await {
                Some(Ok(bytes)) => {
                    self.at += bytes.len() as u64;
                    self.breaks.came(bytes.len());
                    return Some(Ok(bytes));
                }
                // The length was promised, and the carrier checks that the stream ends with its last chunk.
                None if self.at >= self.length => return None,
                None => BodyError::Truncated,
                Some(Err(error)) => error,
            };
            if !self.mended().await {
                return Some(Err(broken));
            }
        }
    }

    /// Whether the rest comes from somewhere; tried until it does, for a while.
    async fn mended(&mut self) -> bool {
        while let Some(pause) = self.breaks.next_pause() {
            tokio::time::sleep(pause).await;
            match self.go_on().await {
                GoneOn::Body(body) => {
                    self.body = body;
                    return true;
                }
                GoneOn::Later => {}
                GoneOn::Never => return false,
            }
        }
        false
    }

    /// Asks for the rest.
    async fn go_on(&mut self) -> GoneOn {
        let head = RequestHead { from: self.at, ..self.asked.clone() };
        let wait = self.network.settings.request_timeout;
        let asking = self.network.send(self.peer, head, Body::empty(), Instant::now() + wait);
        let Ok(Ok((answer, body))) = tokio::time::timeout(wait, asking).await else { return GoneOn::Later };
        let is_the_same = answer.status == StatusCode::OK.as_u16()
            && answer.length == self.length.checked_sub(self.at)
            && answer.content_type == self.content_type;
        if is_the_same { GoneOn::Body(body) } else { GoneOn::Never }
    }
}

/// How an attempt to go on ended.
enum GoneOn {
    Body(Body),
    /// The peer was not reached.
    Later,
    /// It has another answer now.
    Never,
}
