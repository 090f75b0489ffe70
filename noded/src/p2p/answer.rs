//! `POST /p2p/handshake`: the responder's driver (PROTOCOL 5). What memory can refuse or answer never reaches the key process.
//!
//! Every refusal is the same on the wire; its reason goes to the local log.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeRequest, HandshakeVerify, Inbound};
use openred_proto::error::WireError;
use openred_proto::id::NodeId;
use openred_proto::limits::{COOKIE_NONCE_BYTES, HANDSHAKE_BYTES};
use openred_proto::secret::Secret;
use zeroize::Zeroizing;

use super::open::opened;
use super::pool::Pooled;
use super::ports::LinkHandle;
use super::{NotAdopted, PeerNetwork, refused};
use crate::handshake::cookie::{Fresh, Source};
use crate::handshake::half_open::Finalize;
use crate::handshake::responder::{Answering, Arrival, Request as Look};
use crate::handshake::{HandshakeRefusal, keeps_initiators_role};
use crate::keys::KeysError;
use crate::reports::Seen;
use crate::session::{Session, SessionError};

mod direct;

/// Why a handshake message got no answer; for the local log.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("the body did not come in time or broke off")]
    Cut,
    #[error(transparent)]
    Malformed(#[from] WireError),
    #[error(transparent)]
    Refused(#[from] HandshakeRefusal),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("internal defect: the answering task ended early")]
    Bug,
}

/// The route.
pub(super) async fn handle(State(network): State<Arc<PeerNetwork>>, request: Request) -> Response {
    // The listener says where a connection comes from; what another carrier brings comes from nowhere that it could show.
    let source = request.extensions().get().copied().unwrap_or(Source::Hidden);
    match network.answer(request.into_body(), source).await {
        Ok(answer) => Response::builder().status(StatusCode::OK).body(Body::from(answer)).unwrap_or_else(|_| refused()),
        Err(reason) => {
            match &reason {
                // The sender holds a link, or our own key process is in trouble: worth the operator's eye.
                Unanswered::Keys(_)
                | Unanswered::Session(_)
                | Unanswered::Refused(HandshakeRefusal::DirectDowngrade)
                | Unanswered::Bug => {
                    tracing::warn!(%reason, "handshake refused");
                }
                Unanswered::Refused(HandshakeRefusal::TooManyHalfOpen) => {
                    tracing::debug!(%reason, "handshake refused");
                    network.ports.reports.note(Seen::Flooded);
                }
                _ => tracing::debug!(%reason, "handshake refused"),
            }
            refused()
        }
    }
}

impl From<NotAdopted> for HandshakeRefusal {
    fn from(why: NotAdopted) -> Self {
        match why {
            NotAdopted::LinkEnded => Self::LinkEnded,
            NotAdopted::PoolFull => Self::PoolFull,
        }
    }
}

impl PeerNetwork {
    async fn answer(self: &Arc<Self>, body: Body, source: Source) -> Result<Bytes, Unanswered> {
        let reading = Limited::new(body, HANDSHAKE_BYTES).collect();
        let read = tokio::time::timeout(self.settings.handshake_timeout, reading).await;
        let bytes = read.map_err(|_| Unanswered::Cut)?.map_err(|_| Unanswered::Cut)?.to_bytes();
        match Inbound::decode(&bytes)? {
            Inbound::Request(request) => self.answer_request(&request, source).await,
            Inbound::Direct(inbound) => self.answer_direct(inbound, source).await,
            Inbound::Finalize(finalize) if self.direct().take(&finalize.handshake) => {
                self.complete_direct(finalize, source).await
            }
            Inbound::Finalize(finalize) => self.answer_finalize(finalize).await,
        }
    }

    async fn answer_request(self: &Arc<Self>, request: &HandshakeRequest, source: Source) -> Result<Bytes, Unanswered> {
        let answering = loop {
            let settled = self.settled.notified();
            let asked = self.responder().handle_request(request, Arrival { source, now: Instant::now(), fresh })?;
            match asked {
                Look::Repeat(verify) => return Ok(verify),
                Look::Cookie(cookie) => {
                    tracing::debug!("under load: a REQUEST is answered with a cookie");
                    return Ok(cookie);
                }
                Look::Wait => settled.await,
                Look::Ask(answering) => break answering,
            }
        };
        if self.keeps_role(&answering.handle.peer) {
            self.responder().refused(&answering, false);
            return Err(HandshakeRefusal::SimultaneousOpen.into());
        }
        if !self.pool.has_room(&answering.handle.peer) {
            self.responder().refused(&answering, false);
            return Err(HandshakeRefusal::PoolFull.into());
        }
        // On a task of its own: a connection that breaks off does not leave the handshake half counted.
        let (network, noise) = (Arc::clone(self), Bytes::copy_from_slice(&request.noise));
        let asking = tokio::spawn(async move {
            let asked = network.ask_for_verify(answering, noise).await;
            network.settled.notify_waiters();
            asked
        });
        asking.await.map_err(|_| Unanswered::Bug)?
    }

    /// Simultaneous open: a REQUEST of ours to `peer` is on its way, and of the two the lower id keeps the initiator's role.
    fn keeps_role(&self, peer: &NodeId) -> bool {
        keeps_initiators_role(&self.me, peer, self.pool.is_opening(peer))
    }

    async fn ask_for_verify(&self, answering: Answering, noise: Bytes) -> Result<Bytes, Unanswered> {
        let head = Bytes::from(self.ports.endpoints.directory_head());
        match self.keys.answer_handshake(answering.handle.row.clone(), noise, head).await {
            Ok(half_open) => {
                let verify = HandshakeVerify { handshake: half_open.handshake, noise: half_open.noise.to_vec() };
                let verify = Bytes::from(verify.encode());
                self.responder().answered(answering, half_open.handshake, &verify, Instant::now());
                Ok(verify)
            }
            Err(error) => {
                let looked_at = !matches!(error, KeysError::Away | KeysError::Slow);
                self.responder().refused(&answering, looked_at);
                Err(error.into())
            }
        }
    }

    async fn answer_finalize(self: &Arc<Self>, finalize: HandshakeFinalize) -> Result<Bytes, Unanswered> {
        let (handle, counter) = loop {
            let settled = self.settled.notified();
            let asked = self.responder().handle_finalize(&finalize, Instant::now())?;
            match asked {
                Finalize::Repeat(accept) => return Ok(accept),
                Finalize::Wait => settled.await,
                Finalize::Ask(handle, counter) => break (handle, counter),
            }
        };
        if self.keeps_role(&handle.peer) {
            // Its REQUEST came before ours left; of two handshakes one is enough.
            self.responder().failed(&finalize.handshake);
            self.abandon(finalize.handshake);
            return Err(HandshakeRefusal::SimultaneousOpen.into());
        }
        let network = Arc::clone(self);
        let asking = tokio::spawn(async move {
            let handshake = finalize.handshake;
            let asked = network.ask_for_accept(finalize, handle, counter).await;
            if asked.is_err() {
                network.responder().failed(&handshake);
            }
            network.settled.notify_waiters();
            asked
        });
        asking.await.map_err(|_| Unanswered::Bug)?
    }

    async fn ask_for_accept(
        self: &Arc<Self>,
        finalize: HandshakeFinalize,
        handle: Arc<LinkHandle>,
        counter: u64,
    ) -> Result<Bytes, Unanswered> {
        let HandshakeFinalize { handshake, noise } = finalize;
        let grant = self.keys.complete_handshake(handshake, noise.into()).await?;
        let now = Instant::now();
        let demanded = self.demands_signatures();
        let (session, accept) = Session::as_demanding_responder(&grant, demanded, now)?;
        let link = handle.link;
        let pooled = Pooled::new(session.with_limits(self.settings.limits), handle, None);
        pooled.set_handshake(handshake, demanded);
        self.adopt_session(&pooled, now).map_err(HandshakeRefusal::from)?;
        self.responder().completed(&handshake, &link, counter, &accept);
        let (network, opened) = (Arc::clone(self), opened(&grant, link, false, counter));
        tokio::spawn(async move { network.ports.links.session_opened(opened).await });
        Ok(accept)
    }
}

/// Draws what an answer with a cookie needs.
fn fresh() -> Fresh {
    let (mut secret, mut nonce) = (Zeroizing::new([0; 32]), [0; COOKIE_NONCE_BYTES]);
    for bytes in [&mut secret[..], &mut nonce] {
        getrandom::fill(bytes).expect("the kernel's generator answers since the probe at start");
    }
    Fresh { secret: Secret::new(*secret), nonce }
}
