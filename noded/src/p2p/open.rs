//! The initiator's driver (PROTOCOL 5): asks the key process, posts REQUEST and FINALIZE, opens the session on ACCEPT, and
//! then cross-validates the two tokens on it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use openred_module::Body;
use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeRequest, HandshakeVerify, RequestAnswer};
use openred_proto::checked::session::{Accept, RequestHead};
use openred_proto::error::WireError;
use openred_proto::id::{HandshakeId, LinkId, NodeId};
use openred_proto::limits::HANDSHAKE_BYTES;
use openred_proto::secret::Secret;
use openred_proto::vault::SessionGrant;

use super::carrier::SealedBody;
use super::connections::{Connections, Reach};
use super::error::NetworkError;
use super::pool::Pooled;
use super::ports::{LinkHandle, SessionOpened};
use super::settings::{HANDSHAKE_ATTEMPTS, OPENING_WAITS};
use super::{HANDSHAKE_PATH, PeerNetwork, Turn, internal, unix_now};
use crate::handshake::cookie::Cookie;
use crate::handshake::request::{self, Mark};
use crate::session::Session;

/// Times that one REQUEST is posted: without the cookie that the peer may want, and with it.
const COOKIE_TRIES: usize = 2;

/// Attempts over the newest link: as many are left for the one before, and REQUESTs that overtake each other need more than one.
const OVER_NEWEST: usize = HANDSHAKE_ATTEMPTS / 2;

/// A REQUEST of either mode, as its cookie sees it.
pub(super) struct Sent<'a> {
    /// Whom it is for.
    pub(super) peer: NodeId,
    pub(super) mac1_key: &'a Secret<32>,
    pub(super) mac1: Mark,
    /// The message without its cookie.
    pub(super) covered: Vec<u8>,
}

/// How long the node with the higher id waits for the session of the other, whose REQUEST may have crossed its own.
/// Once, after the first refusal: crossed messages meet within a round trip.
const CROSSED_WAIT: Duration = Duration::from_millis(250);

impl PeerNetwork {
    /// Opens a new session over `connections`, in whatever it does within [`OPENING_WAITS`].
    pub(super) async fn open(
        self: &Arc<Self>,
        peer: NodeId,
        connections: &Arc<Connections>,
        sent: Option<&AtomicBool>,
    ) -> Result<Arc<Pooled>, NetworkError> {
        let limit = self.settings.request_timeout * OPENING_WAITS;
        let opening = self.try_endpoints(peer, connections, sent);
        tokio::time::timeout(limit, opening).await.unwrap_or(Err(NetworkError::TimedOut))
    }

    /// Tries each endpoint, and a refused REQUEST again with a fresh one.
    async fn try_endpoints(
        self: &Arc<Self>,
        peer: NodeId,
        connections: &Arc<Connections>,
        sent: Option<&AtomicBool>,
    ) -> Result<Arc<Pooled>, NetworkError> {
        let turn = self.turn(peer);
        let _running = turn.running.acquire().await.map_err(|_| NetworkError::Stopping)?;
        let begun = Instant::now();
        self.ports.links.for_peer(&peer).ok_or(NetworkError::NotLinked)?;
        let mut last = NetworkError::NoEndpoint;
        for reach in self.reaches(&peer).await {
            for attempt in 0..HANDSHAKE_ATTEMPTS {
                if sent.is_none() && matches!(last, NetworkError::PeerRefusedHandshake) {
                    self.wait_for_theirs(&peer).await;
                }
                let handle = self.link_for(&peer, attempt).ok_or(NetworkError::NotLinked)?;
                let opened = self.try_open(&turn, handle, &reach, connections, sent).await;
                // While it runs, its REQUEST is in the way of the peer's; one that came to nothing is not.
                if let (Err(_), Some(sent)) = (&opened, sent) {
                    sent.store(false, Ordering::Relaxed);
                }
                last = match opened {
                    Ok(opened) => return Ok(opened),
                    Err(refused @ NetworkError::PeerRefusedHandshake) => refused,
                    Err(away @ (NetworkError::PeerOffline(_) | NetworkError::Interrupted | NetworkError::TimedOut)) => {
                        last = away;
                        break;
                    }
                    Err(error) => return Err(error),
                };
                if sent.is_some()
                    && attempt == 0
                    && let Some(theirs) = self.wait_for_crossed(peer, begun).await
                {
                    return Ok(theirs);
                }
            }
        }
        if !matches!(last, NetworkError::PeerRefusedHandshake) {
            // Nobody was there: perhaps the peer has moved.
            self.ports.endpoints.failed(&peer);
        }
        Err(last)
    }

    /// The newest link with a peer; after [`OVER_NEWEST`] refusals the one before, if there is one: each may have taken a renewal of which
    /// the other knows nothing.
    fn link_for(&self, peer: &NodeId, attempt: usize) -> Option<Arc<LinkHandle>> {
        let newest = self.ports.links.for_peer(peer)?;
        let before = if attempt < OVER_NEWEST { None } else { self.ports.links.fallback_for_peer(peer) };
        Some(before.unwrap_or(newest))
    }

    /// After a refusal: the peer may have opened a session to us at the same time, and its lower id kept the role.
    /// One that was there before is no answer: this one is to take over from it.
    async fn wait_for_crossed(&self, peer: NodeId, begun: Instant) -> Option<Arc<Pooled>> {
        if self.me < peer {
            return None;
        }
        let mut waiting = pin!(async {
            loop {
                let changed = self.pool.changed.notified();
                let found = self.pool.find(&peer, Instant::now());
                if let Some(theirs) = found.filter(|found| found.session.opened_at() >= begun) {
                    return theirs;
                }
                changed.await;
            }
        });
        if let Ok(found) = tokio::time::timeout(CROSSED_WAIT, waiting.as_mut()).await {
            return Some(found);
        }
        // Its REQUEST is here, or its session, but it has not used it yet: that is worth as long as a handshake may take.
        let has_come = self.responder().is_answering(&peer) || self.has_session(&peer);
        if has_come { tokio::time::timeout(self.settings.handshake_timeout, waiting).await.ok() } else { None }
    }

    /// Before the attempt after a refusal, for who wants a session of its own: a handshake that a peer with a lower id began keeps all of ours out for as
    /// long as it is under way, and under load that is longer than all attempts.
    pub(super) async fn wait_for_theirs(&self, peer: &NodeId) {
        if self.me < *peer {
            return;
        }
        let over = async {
            loop {
                let settled = self.settled.notified();
                if !self.responder().is_answering(peer) {
                    return;
                }
                settled.await;
            }
        };
        if tokio::time::timeout(self.settings.handshake_timeout, over).await.is_err() {
            tracing::debug!("a peer's handshake that keeps ours out does not come to its end");
        }
    }

    /// One handshake.
    async fn try_open(
        self: &Arc<Self>,
        turn: &Turn,
        handle: Arc<LinkHandle>,
        reach: &Reach,
        connections: &Arc<Connections>,
        sent: Option<&AtomicBool>,
    ) -> Result<Arc<Pooled>, NetworkError> {
        if !self.pool.has_room(&handle.peer) {
            return Err(NetworkError::Busy);
        }
        connections.probe(reach).await?;
        let making = turn.making.lock().await;
        let half_open = self.keys.start_handshake(handle.row.clone()).await?;
        let sending = turn.sending.lock().await;
        drop(making);
        let counter = self.attempts().next(handle.link, handle.outgoing_counter);
        let request = request::build(&handle.keys.outgoing, &self.me, &handle.peer, counter, &half_open.noise);
        if let Some(sent) = sent {
            sent.store(true, Ordering::Relaxed);
        }
        let sent = Sent {
            peer: handle.peer,
            mac1_key: &handle.keys.outgoing.mac1,
            mac1: request.mac1,
            covered: request.without_cookie(),
        };
        let encode = |cookie| HandshakeRequest { cookie, ..request.clone() }.encode();
        let verify = self.post_request(&sent, reach, connections, encode).await;
        drop(sending);
        let meant = (handle.peer, Some(handle.link));
        let (grant, record) = self.finalize(half_open.handshake, verify, meant, reach, connections).await?;
        let (session, accept) = Session::as_initiator(&grant, &record, Instant::now())?;
        let pooled = Pooled::new(session.with_limits(self.settings.limits), handle, Some(reach.clone()));
        self.sign_opened(&pooled, connections, half_open.handshake, accept.audited).await?;
        self.adopt(&grant, pooled, accept, counter)
    }

    /// Posts REQUEST, with the cookie that the peer asked for lately; when it asks now, once again with that one.
    pub(super) async fn post_request(
        &self,
        sent: &Sent<'_>,
        reach: &Reach,
        connections: &Arc<Connections>,
        encode: impl Fn(Option<Mark>) -> Vec<u8>,
    ) -> Result<HandshakeVerify, NetworkError> {
        let address = reach.address();
        let mut cookie = self.cookies().proof(sent.peer, address, &sent.covered, Instant::now());
        for _ in 0..COOKIE_TRIES {
            let answer = self.post_handshake(reach, connections, encode(cookie).into()).await?;
            let asked = match RequestAnswer::decode(&answer)? {
                RequestAnswer::Verify(verify) => return Ok(verify),
                RequestAnswer::Cookie(asked) => asked,
            };
            let given = Cookie::open(&asked, sent.mac1_key, &sent.mac1);
            let given = given.ok_or(WireError::Malformed { what: "cookie", why: "it does not open" })?;
            cookie = Some(given.proof(&sent.covered));
            self.cookies().keep(sent.peer, address, given, Instant::now());
        }
        // It does not take what it has given just now: as good as a refusal.
        Err(NetworkError::PeerRefusedHandshake)
    }

    /// ACCEPT is here, and signed is what is to be: the session is open.
    fn adopt(
        self: &Arc<Self>,
        grant: &SessionGrant,
        pooled: Arc<Pooled>,
        accept: Accept,
        counter: u64,
    ) -> Result<Arc<Pooled>, NetworkError> {
        self.adopt_session(&pooled, Instant::now())?;
        let link = pooled.handle.link;
        self.attempts().accepted(link, counter);
        let opened = opened(grant, link, true, counter);
        let (network, session) = (Arc::clone(self), Arc::clone(&pooled));
        tokio::spawn(async move {
            network.ports.links.session_opened(opened).await;
            network.cross_validate(&session, &accept.match_proof).await;
        });
        Ok(pooled)
    }

    /// PROTOCOL 4.5, the initiator's half: checks the responder's proof and sends its own. Once a link and process: what the
    /// two compare, their tokens, stays as it is, and each session proves anew that both hold theirs.
    async fn cross_validate(self: &Arc<Self>, pooled: &Arc<Pooled>, proof: &[u8]) {
        let link = pooled.handle.link;
        if self.validated().contains(&link) {
            return pooled.set_matched(true);
        }
        let matched = self.check_match(pooled, proof).await;
        let head = RequestHead {
            module: internal::MODULE.into(),
            method: "POST".into(),
            path: internal::MATCH.into(),
            length: Some(pooled.session.match_proof.len() as u64),
            ..RequestHead::default()
        };
        let proof = Body::whole(pooled.session.match_proof.to_vec());
        let mut proof = Some(proof);
        let sending = self.request_on(pooled, &self.connections, head, &mut proof);
        // A peer that refuses a session has no answer to this on it, either.
        let Some(answered) = pooled.while_held(sending).await else { return };
        match answered {
            Ok((head, _)) if matched == Some(true) && head.status == StatusCode::NO_CONTENT.as_u16() => {
                // An end of the link comes before this, and then it is not expected, or after, and takes it out.
                let responder = self.responder();
                if responder.tags.expects(&link) {
                    self.validated().insert(link);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(?error, "the match proof could not be sent"),
        }
    }

    /// Checks the peer's proof by the key process and records the result; a proof of another length is no match.
    pub(super) async fn check_match(&self, pooled: &Pooled, proof: &[u8]) -> Option<bool> {
        let matched = match proof.try_into() {
            Ok(proof) => {
                let checked = self.keys.validate_match(pooled.handle.row.clone(), pooled.session.hash, proof).await;
                match checked {
                    Ok(matched) => matched,
                    Err(error) => {
                        tracing::warn!(%error, "the match proof of a session could not be checked");
                        return None;
                    }
                }
            }
            Err(_) => false,
        };
        pooled.set_matched(matched);
        if !matched {
            tracing::error!(link = %pooled.handle.link, "the link tokens of the two sides do not match");
        }
        self.ports.links.match_checked(pooled.handle.link, matched, unix_now()).await;
        Some(matched)
    }

    /// Posts a handshake message; repeats the same bytes once when the connection broke or half of the time is over, for the peer
    /// answers them alike.
    pub(super) async fn post_handshake(
        &self,
        reach: &Reach,
        connections: &Arc<Connections>,
        message: Bytes,
    ) -> Result<Bytes, NetworkError> {
        let posted = self.post_once(reach, connections, message.clone()).await;
        match posted {
            Err(NetworkError::Interrupted | NetworkError::TimedOut) => {
                self.post_once(reach, connections, message).await
            }
            other => other,
        }
    }

    async fn post_once(
        &self,
        reach: &Reach,
        connections: &Arc<Connections>,
        message: Bytes,
    ) -> Result<Bytes, NetworkError> {
        let exchange = async {
            let (response, lease) = connections.post(reach, HANDSHAKE_PATH, SealedBody::plain(message)).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), HANDSHAKE_BYTES).collect().await;
            let too_long = WireError::TooLong { what: "handshake answer", limit: HANDSHAKE_BYTES };
            let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(_) => NetworkError::Interrupted,
                Err(_) => too_long.into(),
            })?;
            lease.give_back();
            match status {
                StatusCode::OK => Ok(body.to_bytes()),
                StatusCode::FORBIDDEN => Err(NetworkError::PeerRefusedHandshake),
                _ => Err(WireError::Unsupported { what: "handshake answer" }.into()),
            }
        };
        let exchanged = tokio::time::timeout(self.settings.handshake_timeout / 2, exchange).await;
        exchanged.unwrap_or(Err(NetworkError::TimedOut))
    }

    /// From what came of REQUEST to ACCEPT's record, with or without a link; `meant` is whom and over which. A handshake without VERIFY is given up.
    pub(super) async fn finalize(
        &self,
        begun: HandshakeId,
        verify: Result<HandshakeVerify, NetworkError>,
        meant: (NodeId, Option<LinkId>),
        reach: &Reach,
        connections: &Arc<Connections>,
    ) -> Result<(SessionGrant, Bytes), NetworkError> {
        let verify = verify.inspect_err(|_| self.abandon(begun))?;
        let head = Bytes::from(self.ports.endpoints.directory_head());
        let (noise, grant) = self.keys.finish_handshake(begun, verify.noise.into(), head).await?;
        if (grant.peer, grant.link) != meant {
            return Err(NetworkError::Bug);
        }
        let finalize = HandshakeFinalize { handshake: verify.handshake, noise: noise.to_vec() };
        let record = self.post_handshake(reach, connections, finalize.encode().into()).await?;
        Ok((grant, record))
    }

    /// Lets the key process forget a handshake that came to nothing; it would by itself after 10 s.
    pub(super) fn abandon(&self, handshake: HandshakeId) {
        let keys = Arc::clone(&self.keys);
        tokio::spawn(async move {
            if let Err(error) = keys.abandon_handshake(handshake).await {
                tracing::debug!(%error, "a handshake could not be abandoned");
            }
        });
    }

    /// Where to try: the directory client's order, what this node cannot use left out.
    pub(super) async fn reaches(&self, peer: &NodeId) -> Vec<Reach> {
        self.ports.endpoints.endpoints(peer).await.iter().filter_map(|endpoint| Reach::parse(endpoint)).collect()
    }

    /// Bounds and orders the handshakes that run at once with one peer.
    fn turn(&self, peer: NodeId) -> Arc<Turn> {
        let mut turns = self.turns.lock().expect("nothing panics while it holds the turns");
        // One that nobody uses has all its permits and one owner: this table.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(peer).or_insert_with(|| Arc::new(Turn::new())))
    }
}

/// What the link store is told of a session.
pub(super) fn opened(grant: &SessionGrant, link: LinkId, initiator: bool, counter: u64) -> SessionOpened {
    SessionOpened {
        link,
        peer: grant.peer,
        initiator,
        counter,
        mutual_link: grant.mutual_link,
        peer_card_sequence: grant.peer_card_sequence,
        peer_directory_head: grant.peer_directory_head.clone(),
        at: unix_now(),
    }
}
