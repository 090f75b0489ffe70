//! `openred ping`: echo requests, fresh connections and bulk answers, timed where they are made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use openred_module::{Body, IdempotencyKey};
use openred_proto::checked::session::RequestHead;
use openred_proto::error::WireError;
use openred_proto::id::NodeId;

use super::connections::Connections;
use super::error::NetworkError;
use super::{PeerNetwork, internal};

/// Most requests of one run: their times are kept.
const COUNT: u32 = 1_000_000;
/// Most of them at once.
const CONCURRENCY: u32 = 256;
/// Longest body of an echo.
const SIZE: u32 = 1024 * 1024;

/// What to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingPlan {
    /// To whom.
    pub peer: NodeId,
    /// How many requests; at least one.
    pub count: u32,
    /// How many at once; at least one.
    pub concurrency: u32,
    /// Bytes of each request's body.
    pub size: u32,
    /// Each over a new connection and session: connect, handshake and first answer.
    pub fresh: bool,
    /// When not zero: answers of this many bytes instead of echoes.
    pub bulk_bytes: u64,
    /// When not empty: `GET /` of this module instead; any status counts as an answer.
    pub module: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PingOutcome {
    /// Requests made.
    pub sent: u32,
    /// Of those, without an answer.
    pub failed: u32,
    /// The time of each answered one, in microseconds, in the order of their ends.
    pub micros: Vec<u64>,
    /// The whole run, in microseconds.
    pub total_micros: u64,
    /// Body bytes that came back.
    pub bytes: u64,
    /// The last failure.
    pub error: Option<NetworkError>,
    /// Of a session with that peer after the run.
    pub mutual_link: Option<[u8; 16]>,
}

impl PeerNetwork {
    /// Runs a plan; what is out of bounds in it is brought within them.
    pub async fn ping(self: &Arc<Self>, plan: PingPlan) -> PingOutcome {
        let count = plan.count.clamp(1, COUNT);
        let concurrency = plan.concurrency.clamp(1, CONCURRENCY) as usize;
        let payload = Bytes::from(vec![0; plan.size.min(SIZE) as usize]);
        let begun = Instant::now();
        let mut outcome = PingOutcome { sent: count, ..PingOutcome::default() };
        let mut answers = stream::iter(0..count)
            .map(|_| async {
                let begun = Instant::now();
                (self.ping_once(&plan, payload.clone()).await, begun.elapsed())
            })
            .buffer_unordered(concurrency);
        while let Some((answered, took)) = answers.next().await {
            match answered {
                Ok(bytes) => {
                    outcome.micros.push(micros(took));
                    outcome.bytes += bytes;
                }
                Err(error) => {
                    outcome.failed += 1;
                    outcome.error = Some(error);
                }
            }
        }
        drop(answers);
        outcome.total_micros = micros(begun.elapsed());
        outcome.mutual_link = self.pool.find(&plan.peer, Instant::now()).map(|pooled| pooled.session.mutual_link);
        outcome
    }

    async fn ping_once(self: &Arc<Self>, plan: &PingPlan, payload: Bytes) -> Result<u64, NetworkError> {
        let (head, body) = request_of(plan, payload);
        let (head, mut answer) = if plan.fresh {
            self.request_afresh(plan.peer, head, body).await?
        } else {
            self.request(plan.peer, head, body).await?
        };
        if plan.module.is_empty() && head.status != StatusCode::OK.as_u16() {
            return Err(
                WireError::Unsupported { what: "a measurement (the peer's `diagnostics.throughput` is off)" }.into()
            );
        }
        let mut bytes = 0;
        while let Some(piece) = answer.next().await {
            bytes += piece.map_err(|_| NetworkError::Interrupted)?.len() as u64;
        }
        Ok(bytes)
    }

    /// Over a connection and session that nobody used before, and nobody will again.
    async fn request_afresh(
        self: &Arc<Self>,
        peer: NodeId,
        mut head: RequestHead,
        body: Body,
    ) -> Result<(openred_proto::checked::session::ResponseHead, Body), NetworkError> {
        head.length = body.known_length();
        let wait = self.settings.request_timeout;
        let fresh = Connections::new(self.settings.connect_timeout, self.settings.chunk_timeout);
        let answering = async {
            let pooled = self.open(peer, &fresh, None).await?;
            self.request_on(&pooled, &fresh, head, &mut Some(body)).await
        };
        tokio::time::timeout(wait, answering).await.unwrap_or(Err(NetworkError::TimedOut))
    }
}

fn request_of(plan: &PingPlan, payload: Bytes) -> (RequestHead, Body) {
    let head = |module: &str, method: &str, path: String| RequestHead {
        module: module.into(),
        method: method.into(),
        path,
        ..RequestHead::default()
    };
    if !plan.module.is_empty() {
        return (head(&plan.module, "GET", "/".into()), Body::empty());
    }
    if plan.bulk_bytes > 0 {
        let path = format!("{}{}", internal::SOURCE, plan.bulk_bytes);
        return (head(internal::MODULE, "GET", path), Body::empty());
    }
    let mut echo = head(internal::MODULE, "POST", internal::ECHO.into());
    // An echo changes nothing: with a key, whichever, it is sent again when the peer has restarted.
    echo.idempotency_key = IdempotencyKey::default().to_vec();
    (echo, Body::whole(payload))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
