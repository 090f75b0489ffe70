//! Requests to peers: over an open session or a new one, once more when the peer lost its half, never twice under one number.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use openred_module::Body;
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::error::WireError;
use openred_proto::id::NodeId;

use super::PeerNetwork;
use super::carrier::{Held, Inflow, InflowError, SealedBody};
use super::connections::{Connections, Reach};
use super::error::NetworkError;
use super::pool::{InUse, Pool, Pooled};
use super::resume;
use super::settings::{DISPATCH_MAX, REPEATABLE_BYTES};
use crate::session::SessionError;
use crate::session::state::{AwaitedResponse, OutgoingRequest};

/// Sessions that one request tries: the pooled one, and a new one when the peer does not know that (any more), or when
/// its span of open numbers is full.
const SESSION_ATTEMPTS: usize = 3;

impl PeerNetwork {
    /// Sends a request to `peer` and gives the head of the answer and its body as a stream. Opens a session first when
    /// there is none. The deadline of the head (or the configured time) covers all up to the answer's head.
    ///
    /// # Errors
    /// [`NetworkError`]; `Interrupted` and `TimedOut` leave open whether the peer carried the request out.
    pub async fn request(
        self: &Arc<Self>,
        peer: NodeId,
        mut head: RequestHead,
        body: Body,
    ) -> Result<(ResponseHead, Body), NetworkError> {
        let wait = self.patience(&head);
        head.length = head.length.or(body.known_length());
        let asked = resume::is_resumable(&head).then(|| head.clone());
        let sending = self.send(peer, head, body, Instant::now() + wait);
        let (answer, body) = tokio::time::timeout(wait, sending).await.unwrap_or(Err(NetworkError::TimedOut))?;
        let body = match asked {
            Some(asked) => self.resumed(peer, asked, &answer, body),
            None => body,
        };
        Ok((answer, body))
    }

    pub(super) async fn send(
        self: &Arc<Self>,
        peer: NodeId,
        mut head: RequestHead,
        body: Body,
        until: Instant,
    ) -> Result<(ResponseHead, Body), NetworkError> {
        // GET changes nothing, and a key lets the peer recognise a request that it carried out already.
        let repeatable = (head.method == "GET" || !head.idempotency_key.is_empty())
            && body.known_length().is_some_and(|length| length <= REPEATABLE_BYTES);
        let (copy, body) = if repeatable {
            let bytes = body.collect(REPEATABLE_BYTES as usize).await.map_err(NetworkError::RequestBody)?;
            (Some(bytes.clone()), Body::whole(bytes))
        } else {
            (None, body)
        };
        let mut body = Some(body);
        let mut attempts = 0;
        loop {
            let pooled = self.session(peer).await?;
            if body.is_none() {
                body = copy.clone().map(Body::whole);
            }
            // What the peer has left: a handshake or a first attempt took its part.
            let left = until.saturating_duration_since(Instant::now()).as_millis();
            head.deadline_millis = u64::try_from(left).unwrap_or(u64::MAX).max(1);
            let last = match self.request_on(&pooled, &self.connections, head.clone(), &mut body).await {
                Ok(answered) => return Ok(answered),
                Err(error) => error,
            };
            match last {
                // Nothing was sent: other requests took the session's last numbers meanwhile. The next session is opened and
                // waited for; each round has one of its own, so the deadline alone bounds them.
                NetworkError::SessionLimit if body.is_some() => continue,
                // Nothing was sent: the oldest request holds the span. Another session is opened.
                NetworkError::Busy if body.is_some() && pooled.session.is_span_full() => Pool::retire(&pooled),
                // The peer restarted: it answers an unknown tag as it answers everything that it refuses.
                NetworkError::PeerRefusedSession => self.pool.remove(&pooled),
                NetworkError::Interrupted => {}
                _ => return Err(last),
            }
            attempts += 1;
            if attempts >= SESSION_ATTEMPTS || body.is_none() && copy.is_none() {
                return Err(last);
            }
        }
    }

    /// Sends one request on one session. `body` is taken once the request has a number; what remains was not sent.
    pub(super) async fn request_on(
        self: &Arc<Self>,
        pooled: &Arc<Pooled>,
        connections: &Arc<Connections>,
        head: RequestHead,
        body: &mut Option<Body>,
    ) -> Result<(ResponseHead, Body), NetworkError> {
        let reach = self.reach(pooled, connections).await?;
        let now = Instant::now();
        let ticket = pooled.session.begin_request(now)?;
        let using = Some(pooled.hold(now));
        let answered = self.exchange(ticket, using, &reach, connections, head, body).await;
        answered.inspect_err(|error| {
            if matches!(error, NetworkError::PeerOffline(_)) {
                // It may have moved: the next request looks for it.
                pooled.set_reach(None);
            }
        })
    }

    /// How long a request may wait for the head of its answer.
    fn patience(&self, head: &RequestHead) -> Duration {
        match head.deadline_millis {
            0 => self.settings.request_timeout,
            millis => Duration::from_millis(millis).min(DISPATCH_MAX),
        }
    }

    /// One request and its answer on a session of any kind; `using` holds one of the pool until the answer has come whole. A peer that
    /// takes the request and says nothing holds number, session and connection for no longer than [`PeerNetwork::patience`].
    pub(super) async fn exchange(
        &self,
        ticket: OutgoingRequest,
        using: Option<InUse>,
        reach: &Reach,
        connections: &Arc<Connections>,
        head: RequestHead,
        body: &mut Option<Body>,
    ) -> Result<(ResponseHead, Body), NetworkError> {
        let limit = self.patience(&head);
        let asking = async {
            let length = head.length;
            let (message, awaited) = ticket.start(&head, length)?;
            let body = body.take().unwrap_or_else(Body::empty);
            let sealed = SealedBody::new(message, body, length);
            let posting = connections.post(reach, super::SESSION_PATH, sealed);
            let (response, lease) = match &using {
                Some(using) => self.attention.attend(&using.0.quick, posting).await?,
                None => posting.await?,
            };
            match response.status() {
                StatusCode::OK => {}
                StatusCode::FORBIDDEN => {
                    // A refusal has no body; the connection may serve the next request.
                    lease.give_back();
                    return Err(NetworkError::PeerRefusedSession);
                }
                _ => return Err(WireError::Unsupported { what: "session answer" }.into()),
            }
            let AwaitedResponse { opener, number } = awaited;
            let held =
                Held { number: Some(number), using, lease: Some(lease), reports: Arc::clone(&self.ports.reports) };
            let limit = self.settings.chunk_timeout;
            let opened = Inflow::new(response.into_body(), opener, bytes::Bytes::new(), limit, held).open().await;
            let opened = opened.map_err(|error| match error {
                InflowError::Slow => NetworkError::TimedOut,
                InflowError::Broken | InflowError::Session(SessionError::PeerTruncated) => NetworkError::Interrupted,
                InflowError::Session(error) => error.into(),
            })?;
            let head = ResponseHead::decode(&opened.head)?;
            Ok((head, opened.into_body()))
        };
        tokio::time::timeout(limit, asking).await.unwrap_or(Err(NetworkError::TimedOut))
    }

    /// Where the peer of a session is: where it was reached last, or the first of its endpoints that answers.
    async fn reach(&self, pooled: &Pooled, connections: &Arc<Connections>) -> Result<Reach, NetworkError> {
        if let Some(reach) = pooled.reach() {
            return Ok(reach);
        }
        let peer = pooled.session.peer;
        let mut last = NetworkError::NoEndpoint;
        for reach in self.reaches(&peer).await {
            match connections.probe(&reach).await {
                Ok(()) => {
                    pooled.set_reach(Some(reach.clone()));
                    return Ok(reach);
                }
                Err(error) => last = error,
            }
        }
        self.ports.endpoints.failed(&peer);
        Err(last)
    }
}
