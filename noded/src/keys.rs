//! The key process as this node sees it: one typed call per operation over its AF_UNIX socket, nothing kept between calls.
//!
//! Two connections, each reconnecting by itself when the front was restarted; handshakes go over one stream on the first (`handshakes`); every call has a deadline, and a key process
//! that is away is a named error. What comes back is checked before it leaves this file. Secrets of sessions pass through
//! here once, on their way into the session layer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openred_proto::checked::card::CardFields;
use openred_proto::cryptod as wire;
use openred_proto::cryptod::cryptod_client::CryptodClient as Generated;
use openred_proto::cryptod::handshake_answer::Outcome;
use openred_proto::cryptod::handshake_call::Phase;
use openred_proto::error::WireError;
use openred_proto::id::{HandshakeId, LinkId, NodeId, PrekeyId, UnixMillis};
use openred_proto::method::{Method, MethodSet, Place, Schedule};
use openred_proto::refusal::REFUSAL_HEADER;
use openred_proto::secret::Secret;
use openred_proto::vault::{LinkKeys, LinkSummary, ReceivedOffer, Refusal, RequestKeys, SessionGrant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::reports::Seen;

mod handshakes;
mod listener;
mod methods;
#[cfg(test)]
pub(crate) mod tests;

use handshakes::Handshakes;
use listener::Listener;

/// Connections to the front; two carry twice what one does, a third brings nothing (docs/budgets.md).
const CONNECTIONS: usize = 2;
/// An operation of the vault takes milliseconds and one write to disk; a front that restarts is back in less than this.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why the key process did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// Its socket is not there, or its front went away during the call.
    #[error("cryptod is away; the supervisor restarts it (see `openred status`)")]
    Away,
    /// It did not answer within the deadline.
    #[error("cryptod did not answer in time")]
    Slow,
    /// It refused.
    #[error("cryptod refused: {0}")]
    Refused(Refusal),
    /// It refused for a reason that this build does not know.
    #[error("cryptod refused with an unknown reason ({0:?})")]
    RefusedOtherwise(Code),
    /// Its answer is not what the contract says.
    #[error("cryptod answered out of contract: {0}")]
    BadAnswer(#[from] WireError),
}

/// What the key process says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The node.
    pub node: NodeId,
    /// Its current prekey.
    pub prekey: PrekeyId,
    /// Operations served since start.
    pub operations: u64,
    /// Links held.
    pub links: u32,
    /// Half-open handshakes.
    pub half_open: u32,
    /// Identities that this one goes on for.
    pub earlier: Vec<NodeId>,
}

/// A card that was just signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCard {
    /// Encoded `SignedStatement`.
    pub statement: Bytes,
    /// Its sequence.
    pub sequence: u64,
    /// Its end.
    pub expires_at: UnixMillis,
}

/// An HTTP signature as header values, ready to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSignature {
    /// Value of `Signature-Input`.
    pub signature_input: String,
    /// Value of `Signature`.
    pub signature: String,
    /// Value of `Content-Digest`.
    pub content_digest: String,
}

/// A link to issue.
#[derive(Clone, Debug)]
pub struct NewLink {
    /// The peer that the operator named.
    pub peer: NodeId,
    /// Its signed card, as received.
    pub card: Bytes,
    /// The directory that will route the offer.
    pub directory: NodeId,
    /// Methods that the operator allows.
    pub allowed: MethodSet,
    /// How to choose among them.
    pub schedule: Schedule,
    /// Life of the link.
    pub life: Duration,
}

/// A link that this node issued.
#[derive(Debug)]
pub struct IssuedLink {
    /// What was agreed.
    pub summary: LinkSummary,
    /// Sealed token row.
    pub row: Bytes,
    /// The offer to route.
    pub offer: Bytes,
    /// Pre-check keys.
    pub keys: LinkKeys,
}

/// A link that this node accepted.
#[derive(Debug)]
pub struct AcceptedLink {
    /// What was agreed.
    pub summary: LinkSummary,
    /// Sealed token row.
    pub row: Bytes,
    /// Signed receipt for the issuer.
    pub receipt: Bytes,
    /// Pre-check keys.
    pub keys: LinkKeys,
}

/// A handshake that the key process holds half-open, and the Noise message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HalfOpen {
    /// Names it.
    pub handshake: HandshakeId,
    /// Noise message 1 (initiator) or 2 (responder).
    pub noise: Bytes,
}

/// The operations that handshakes and sessions need. [`CryptodClient`] serves them over the socket; tests serve them by a
/// vault in the same process.
#[async_trait]
pub trait HandshakeKeys: Send + Sync {
    /// Initiator, phase one.
    async fn start_handshake(&self, row: Bytes) -> Result<HalfOpen, KeysError>;
    /// Responder, phase one to two.
    async fn answer_handshake(&self, row: Bytes, noise: Bytes, directory_head: Bytes) -> Result<HalfOpen, KeysError>;
    /// Initiator, phase two to three: Noise message 3 and the session.
    async fn finish_handshake(
        &self,
        handshake: HandshakeId,
        noise: Bytes,
        directory_head: Bytes,
    ) -> Result<(Bytes, SessionGrant), KeysError>;
    /// Responder, phase three.
    async fn complete_handshake(&self, handshake: HandshakeId, noise: Bytes) -> Result<SessionGrant, KeysError>;
    /// Initiator, phase one, without a link: to `peer` and nobody else.
    async fn start_direct(&self, method: Method, peer: NodeId) -> Result<HalfOpen, KeysError>;
    /// Responder, phase one to two, without a link.
    async fn answer_direct(&self, method: Method, noise: Bytes, directory_head: Bytes) -> Result<HalfOpen, KeysError>;
    /// Forgets a half-open handshake.
    async fn abandon_handshake(&self, handshake: HandshakeId) -> Result<(), KeysError>;
    /// Signs that a handshake ended, a moment after it did: this node's statement.
    async fn sign_session(&self, handshake: HandshakeId) -> Result<Bytes, KeysError>;
    /// Checks the peer's match proof.
    async fn validate_match(&self, row: Bytes, hash: [u8; 32], proof: [u8; 32]) -> Result<bool, KeysError>;
}

/// A client of the key process; clones share its connections.
#[derive(Clone, Debug)]
pub struct CryptodClient {
    connections: Arc<[Generated<Channel>; CONNECTIONS]>,
    turn: Arc<AtomicUsize>,
    /// What must arrive in the order in which it was asked: a link's REQUESTs carry rising timestamps, and one that overtook another would
    /// make the other a replay.
    handshakes: Handshakes,
}

impl CryptodClient {
    /// A client of the front on `socket`, whose listener the process `opened_by` opened; connects with the first call and again
    /// whenever that is needed. Whoever else listens there is told nothing.
    #[must_use]
    pub fn new(socket: &Path, opened_by: u32) -> Self {
        // The address is of no use to a connector that knows its socket.
        let endpoint = Endpoint::from_static("http://cryptod").connect_timeout(DEADLINE).timeout(DEADLINE);
        let listener = Listener::new(socket.to_owned(), opened_by);
        let connections: [_; CONNECTIONS] = std::array::from_fn(|_| Generated::new(listener.channel(&endpoint)));
        let handshakes = Handshakes::new(connections[0].clone());
        Self { connections: Arc::new(connections), turn: Arc::default(), handshakes }
    }

    /// The connection whose turn it is.
    fn next(&self) -> Generated<Channel> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.connections[turn % CONNECTIONS].clone()
    }

    /// Who the node is and what the key process did so far.
    ///
    /// # Errors
    /// [`KeysError`], as of every call below.
    pub async fn describe(&self) -> Result<Description, KeysError> {
        let reply = answer(self.next().describe(wire::DescribeRequest {}).await)?;
        Ok(Description {
            node: NodeId::from_bytes(array("node id", &reply.node_id)?),
            prekey: PrekeyId::from_bytes(array("prekey id", &reply.prekey_id)?),
            operations: reply.operations,
            links: reply.links,
            half_open: reply.half_open,
            earlier: reply
                .earlier
                .iter()
                .map(|node| array("node id", node).map(NodeId::from_bytes))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Builds and signs the node's card.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn sign_card(
        &self,
        fields: CardFields,
        suites: MethodSet,
        life: Duration,
    ) -> Result<SignedCard, KeysError> {
        let CardFields { endpoints, name, sector, listed } = fields;
        let request = wire::SignCardRequest {
            endpoints,
            name,
            sector,
            listed,
            suites: u32::from(suites.bits()),
            life_seconds: life.as_secs(),
        };
        let wire::SignedCard { statement, sequence, expires_at } = answer(self.next().sign_card(request).await)?;
        Ok(SignedCard { statement, sequence, expires_at: UnixMillis(expires_at) })
    }

    /// Signs an HTTP request to a directory (RFC 9421).
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn sign_http(
        &self,
        method: &str,
        target_uri: &str,
        content_sha256: [u8; 32],
        created: u64,
        nonce: [u8; 16],
    ) -> Result<HttpSignature, KeysError> {
        let request = wire::SignHttpRequest {
            method: method.to_owned(),
            target_uri: target_uri.to_owned(),
            content_sha256: Bytes::copy_from_slice(&content_sha256),
            created,
            nonce: Bytes::copy_from_slice(&nonce),
        };
        let reply = answer(self.next().sign_http(request).await)?;
        Ok(HttpSignature {
            signature_input: reply.signature_input,
            signature: reply.signature_header,
            content_digest: reply.content_digest,
        })
    }

    /// Issues a link.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn issue_link(&self, link: NewLink) -> Result<IssuedLink, KeysError> {
        let request = wire::IssueLinkRequest {
            peer: id_bytes(&link.peer),
            card: link.card,
            directory: id_bytes(&link.directory),
            allowed: u32::from(link.allowed.bits()),
            schedule: schedule(link.schedule),
            life_seconds: link.life.as_secs(),
        };
        issued(answer(self.next().issue_link(request).await)?)
    }

    /// Issues a link in the place of the one whose row this is. The row says who the peer is.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn renew_link(&self, row: Bytes, link: NewLink) -> Result<IssuedLink, KeysError> {
        let request = wire::RenewLinkRequest {
            row,
            card: link.card,
            directory: id_bytes(&link.directory),
            allowed: u32::from(link.allowed.bits()),
            schedule: schedule(link.schedule),
            life_seconds: link.life.as_secs(),
        };
        issued(answer(self.next().renew_link(request).await)?)
    }

    /// Opens and verifies an offer and marks nothing.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn inspect_offer(&self, offer: &ReceivedOffer) -> Result<LinkSummary, KeysError> {
        summary(answer(self.next().inspect_offer(received(offer)).await)?)
    }

    /// Takes an offer.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn accept_offer(&self, offer: &ReceivedOffer) -> Result<AcceptedLink, KeysError> {
        accepted(answer(self.next().accept_offer(received(offer)).await)?)
    }

    /// Opens and verifies an offer that renews the link of `row`, and marks nothing.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn inspect_renewal(&self, offer: &ReceivedOffer, row: Bytes) -> Result<LinkSummary, KeysError> {
        let request = wire::ReceivedRenewal { received: Some(received(offer)), row };
        summary(answer(self.next().inspect_renewal(request).await)?)
    }

    /// Takes an offer that renews the link of `row`.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn accept_renewal(&self, offer: &ReceivedOffer, row: Bytes) -> Result<AcceptedLink, KeysError> {
        let request = wire::ReceivedRenewal { received: Some(received(offer)), row };
        accepted(answer(self.next().accept_renewal(request).await)?)
    }

    /// Links that this node issued, that the key process holds and that are not revoked: a page of them, in rising order, from above
    /// `after`. The last page is shorter than [`LINKS_PAGE`](openred_proto::limits::LINKS_PAGE).
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn held_links(&self, after: Option<LinkId>) -> Result<Vec<LinkId>, KeysError> {
        let after = after.map(|link| Bytes::copy_from_slice(link.as_bytes())).unwrap_or_default();
        let reply = answer(self.next().list_links(wire::ListLinksRequest { after }).await)?;
        let links = reply.link_ids.iter().map(|link| array("link id", link).map(LinkId::from_bytes));
        Ok(links.collect::<Result<_, _>>()?)
    }

    /// The pre-check keys of a stored link.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn link_keys(&self, row: Bytes) -> Result<LinkKeys, KeysError> {
        link_keys(&answer(self.next().get_link_keys(wire::LinkRow { row }).await)?)
    }

    /// Ends a link.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn revoke_link(&self, link: LinkId) -> Result<(), KeysError> {
        let request = wire::LinkName { link_id: Bytes::copy_from_slice(link.as_bytes()) };
        answer(self.next().revoke_link(request).await).map(|_| ())
    }

    /// The key that seals the records of `purpose` at rest.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn store_key(&self, purpose: &str) -> Result<Secret<32>, KeysError> {
        let reply = answer(self.next().get_store_key(wire::StoreKeyRequest { purpose: purpose.to_owned() }).await)?;
        Ok(Secret::new(array("store key", &reply.key)?))
    }

    /// Has the audit trail say what this process saw.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn report(&self, seen: Seen, count: u32) -> Result<(), KeysError> {
        let event = match seen {
            Seen::SessionForged => wire::NodeEvent::SessionForged,
            Seen::Flooded => wire::NodeEvent::Flooded,
            Seen::DirectoryLied => wire::NodeEvent::DirectoryLied,
            Seen::OfferRefused => wire::NodeEvent::OfferRefused,
        };
        answer(self.next().report(wire::ReportRequest { event: event.into(), count }).await).map(|_| ())
    }
}

#[async_trait]
impl HandshakeKeys for CryptodClient {
    async fn start_handshake(&self, row: Bytes) -> Result<HalfOpen, KeysError> {
        half_open(self.handshakes.ask(Phase::Start(wire::LinkRow { row })).await?)
    }

    async fn answer_handshake(&self, row: Bytes, noise: Bytes, directory_head: Bytes) -> Result<HalfOpen, KeysError> {
        let request = wire::AnswerHandshakeRequest { row, noise, directory_head };
        half_open(self.handshakes.ask(Phase::Answer(request)).await?)
    }

    async fn finish_handshake(
        &self,
        handshake: HandshakeId,
        noise: Bytes,
        directory_head: Bytes,
    ) -> Result<(Bytes, SessionGrant), KeysError> {
        let request = wire::ContinueHandshakeRequest { handshake: handshake_bytes(&handshake), noise, directory_head };
        match self.handshakes.ask(Phase::Finish(request)).await? {
            Outcome::Finished(reply) => Ok((reply.noise, grant(present("session grant", reply.grant)?)?)),
            _ => Err(OTHER_CALL.into()),
        }
    }

    async fn complete_handshake(&self, handshake: HandshakeId, noise: Bytes) -> Result<SessionGrant, KeysError> {
        let directory_head = Bytes::new();
        let request = wire::ContinueHandshakeRequest { handshake: handshake_bytes(&handshake), noise, directory_head };
        match self.handshakes.ask(Phase::Complete(request)).await? {
            Outcome::Completed(reply) => grant(reply),
            _ => Err(OTHER_CALL.into()),
        }
    }

    async fn start_direct(&self, method: Method, peer: NodeId) -> Result<HalfOpen, KeysError> {
        let request = wire::StartDirectRequest { method: u32::from(method as u8), peer: id_bytes(&peer) };
        half_open(self.handshakes.ask(Phase::StartDirect(request)).await?)
    }

    async fn answer_direct(&self, method: Method, noise: Bytes, directory_head: Bytes) -> Result<HalfOpen, KeysError> {
        let request = wire::AnswerDirectRequest { method: u32::from(method as u8), noise, directory_head };
        half_open(self.handshakes.ask(Phase::AnswerDirect(request)).await?)
    }

    async fn abandon_handshake(&self, handshake: HandshakeId) -> Result<(), KeysError> {
        let request = wire::HandshakeName { handshake: handshake_bytes(&handshake) };
        self.handshakes.ask(Phase::Abandon(request)).await.map(|_| ())
    }

    async fn sign_session(&self, handshake: HandshakeId) -> Result<Bytes, KeysError> {
        let request = wire::HandshakeName { handshake: handshake_bytes(&handshake) };
        Ok(answer(self.next().sign_session(request).await)?.statement)
    }

    async fn validate_match(&self, row: Bytes, hash: [u8; 32], proof: [u8; 32]) -> Result<bool, KeysError> {
        let (hash, proof) = (Bytes::copy_from_slice(&hash), Bytes::copy_from_slice(&proof));
        let reply = answer(self.next().validate_match(wire::ValidateMatchRequest { row, hash, proof }).await)?;
        Ok(reply.matched)
    }
}

fn answer<T>(reply: Result<tonic::Response<T>, Status>) -> Result<T, KeysError> {
    reply.map(tonic::Response::into_inner).map_err(|status| failure(&status))
}

/// A refusal carries its code in a header; without one, the call itself failed.
fn failure(status: &Status) -> KeysError {
    let refused = status.metadata().get(REFUSAL_HEADER).and_then(|value| value.to_str().ok());
    refusal(refused, status.code())
}

fn refusal(refused: Option<&str>, code: Code) -> KeysError {
    if let Some(refused) = refused {
        return Refusal::from_code(refused).map_or(KeysError::RefusedOtherwise(code), KeysError::Refused);
    }
    match code {
        Code::Cancelled | Code::DeadlineExceeded => KeysError::Slow,
        Code::Unavailable | Code::Unknown | Code::Aborted | Code::Internal => KeysError::Away,
        code => KeysError::RefusedOtherwise(code),
    }
}

fn present<T>(what: &'static str, message: Option<T>) -> Result<T, WireError> {
    message.ok_or(WireError::Incomplete { what })
}

fn array<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| WireError::Malformed { what, why: "a fixed-size field has another length" })
}

fn id_bytes(id: &NodeId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn handshake_bytes(id: &HandshakeId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn received(offer: &ReceivedOffer) -> wire::ReceivedOffer {
    wire::ReceivedOffer {
        offer: Bytes::copy_from_slice(&offer.offer),
        sender: id_bytes(&offer.sender),
        directory: id_bytes(&offer.directory),
        allowed: u32::from(offer.allowed.bits()),
    }
}

const fn schedule(schedule: Schedule) -> u32 {
    match schedule {
        Schedule::Hourly => 0,
        Schedule::Daily => 1,
        Schedule::Seeded => 2,
    }
}

fn issued(reply: wire::IssuedLink) -> Result<IssuedLink, KeysError> {
    Ok(IssuedLink {
        summary: summary(present("issued link's summary", reply.summary)?)?,
        row: reply.row,
        offer: reply.offer,
        keys: link_keys(&present("issued link's keys", reply.keys)?)?,
    })
}

fn accepted(reply: wire::AcceptedLink) -> Result<AcceptedLink, KeysError> {
    Ok(AcceptedLink {
        summary: summary(present("accepted link's summary", reply.summary)?)?,
        row: reply.row,
        receipt: reply.receipt,
        keys: link_keys(&present("accepted link's keys", reply.keys)?)?,
    })
}

const OTHER_CALL: WireError = WireError::Malformed { what: "handshake answer", why: "it is of another phase" };

fn half_open(outcome: Outcome) -> Result<HalfOpen, KeysError> {
    let Outcome::Started(reply) = outcome else { return Err(OTHER_CALL.into()) };
    Ok(HalfOpen { handshake: HandshakeId::from_bytes(array("handshake id", &reply.handshake)?), noise: reply.noise })
}

fn summary(reply: wire::LinkSummary) -> Result<LinkSummary, KeysError> {
    Ok(LinkSummary {
        link: LinkId::from_bytes(array("link id", &reply.link_id)?),
        peer: NodeId::from_bytes(array("peer", &reply.peer)?),
        issuer: reply.issuer,
        method: Method::from_number(u64::from(reply.method))?,
        epoch: reply.epoch,
        not_before: UnixMillis(reply.not_before),
        not_after: UnixMillis(reply.not_after),
        registered: match reply.registered {
            0 => None,
            place => Some(Place::from_number(place.into())?),
        },
    })
}

fn link_keys(reply: &wire::LinkKeys) -> Result<LinkKeys, KeysError> {
    let pair = |tag: &[u8], mac1: &[u8]| -> Result<RequestKeys, WireError> {
        Ok(RequestKeys { tag: Secret::new(array("tag key", tag)?), mac1: Secret::new(array("mac1 key", mac1)?) })
    };
    Ok(LinkKeys {
        outgoing: pair(&reply.outgoing_tag, &reply.outgoing_mac1)?,
        incoming: pair(&reply.incoming_tag, &reply.incoming_mac1)?,
    })
}

fn grant(reply: wire::SessionGrant) -> Result<SessionGrant, KeysError> {
    Ok(SessionGrant {
        link: if reply.link_id.is_empty() { None } else { Some(LinkId::from_bytes(array("link id", &reply.link_id)?)) },
        peer: NodeId::from_bytes(array("peer", &reply.peer)?),
        method: Method::from_number(u64::from(reply.method))?,
        send: Secret::new(array("send secret", &reply.send)?),
        receive: Secret::new(array("receive secret", &reply.receive)?),
        hash: array("handshake hash", &reply.hash)?,
        mutual_link: array("mutual link", &reply.mutual_link)?,
        match_proof: array("match proof", &reply.match_proof)?,
        peer_card_sequence: reply.peer_card_sequence,
        peer_directory_head: reply.peer_directory_head.to_vec(),
    })
}
