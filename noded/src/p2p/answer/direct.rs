//! The responder's driver of direct contact (PROTOCOL 5, "Direct mode"). A stranger is asked for a cookie always, and for a mac1 that
//! shows whom he means, before the key process hears of him.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openred_proto::checked::direct::{DirectGreeting, DirectInbound, DirectRequest};
use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeVerify};

use super::{Unanswered, fresh};
use crate::config::DirectPolicy;
use crate::handshake::cookie::{Shown, Source};
use crate::handshake::{HandshakeRefusal, direct};
use crate::p2p::direct::contacts::{Came, Contact};
use crate::p2p::{PeerNetwork, unix_now};
use crate::session::Session;

impl PeerNetwork {
    pub(super) async fn answer_direct(
        self: &Arc<Self>,
        inbound: DirectInbound,
        source: Source,
    ) -> Result<Bytes, Unanswered> {
        if self.settings.direct == DirectPolicy::Off {
            return Err(HandshakeRefusal::DirectOff.into());
        }
        // Where a carrier has no addresses a cookie would show nothing, and nothing else is asked for yet.
        let Source::Network(address) = source else { return Err(HandshakeRefusal::NoAddress.into()) };
        match inbound {
            DirectInbound::Hello => {
                Ok(DirectGreeting { node: self.me, suites: self.ports.links.allowed_methods() }.encode().into())
            }
            DirectInbound::Request(request) => {
                if let Some(cookie) = self.admit_direct(&request, address)? {
                    return Ok(cookie);
                }
                // On a task of its own: a connection that breaks off does not leave the place taken.
                let network = Arc::clone(self);
                let asking = tokio::spawn(async move { network.ask_for_direct_verify(request, address).await });
                asking.await.map_err(|_| Unanswered::Bug)?
            }
        }
    }

    /// mac1, cookie, method, bounds, in this order: each cheaper than what it protects. What is to be answered instead, if the sender
    /// has not shown yet where he is: he is asked always, not under load alone.
    fn admit_direct(&self, request: &DirectRequest, address: IpAddr) -> Result<Option<Bytes>, HandshakeRefusal> {
        let (now, mac1_key) = (Instant::now(), direct::mac1_key(&self.me));
        if !direct::verify_mac1(&mac1_key, request) {
            return Err(HandshakeRefusal::WrongMac);
        }
        let (covered, mac1, proof) = (request.without_cookie(), &request.mac1, request.cookie.as_ref());
        let shown = Shown { covered: &covered, mac1, mac1_key: &mac1_key, proof };
        if let Err(cookie) = self.responder().cookies().check(&shown, Source::Network(address), now, fresh) {
            return Ok(Some(cookie.encode().into()));
        }
        if !self.ports.links.allowed_methods().contains(request.method) {
            return Err(HandshakeRefusal::MethodNotAllowed);
        }
        if !self.has_room_for(address) {
            return Err(HandshakeRefusal::TooManyHalfOpen);
        }
        self.direct().admit(address, now).map(|()| None)
    }

    async fn ask_for_direct_verify(&self, request: DirectRequest, address: IpAddr) -> Result<Bytes, Unanswered> {
        let head = Bytes::from(self.ports.endpoints.directory_head());
        match self.keys.answer_direct(request.method, request.noise.into(), head).await {
            Ok(half_open) => {
                self.direct().answered(address, half_open.handshake, Instant::now());
                let verify = HandshakeVerify { handshake: half_open.handshake, noise: half_open.noise.to_vec() };
                Ok(verify.encode().into())
            }
            Err(error) => {
                self.direct().refused(address);
                Err(error.into())
            }
        }
    }

    /// FINALIZE of a handshake that was one of these: who it is shows now.
    pub(super) async fn complete_direct(
        self: &Arc<Self>,
        finalize: HandshakeFinalize,
        source: Source,
    ) -> Result<Bytes, Unanswered> {
        let Source::Network(address) = source else { return Err(HandshakeRefusal::NoAddress.into()) };
        let network = Arc::clone(self);
        let completing = tokio::spawn(async move { network.meet_stranger(finalize, address).await });
        completing.await.map_err(|_| Unanswered::Bug)?
    }

    async fn meet_stranger(&self, finalize: HandshakeFinalize, address: IpAddr) -> Result<Bytes, Unanswered> {
        let HandshakeFinalize { handshake, noise } = finalize;
        // With a live link the key process refuses, and its trail says so.
        let grant = self.keys.complete_handshake(handshake, noise.into()).await?;
        if self.ports.links.for_peer(&grant.peer).is_some() {
            return Err(HandshakeRefusal::DirectDowngrade.into());
        }
        if self.ports.links.is_denied(grant.peer).await {
            return Err(HandshakeRefusal::DirectDenied.into());
        }
        let now = Instant::now();
        let (session, accept) = Session::as_responder(&grant, now)?;
        let session = session.with_limits(self.settings.limits);
        let contact = Contact::new(session, Came::From(address), unix_now());
        if !self.contacts.insert(&contact, now) {
            return Err(HandshakeRefusal::TooManyHalfOpen.into());
        }
        tracing::info!("direct contact: `openred link list` shows the words to compare");
        Ok(accept)
    }
}
