//! The frame between the front (or the supervisor) and the vault: one enum each way, bounded.
//!
//! A frame is a u32 length (little-endian) and that many bytes of postcard: a request id and a [`Request`], or the same id
//! and a [`Reply`]. Nothing richer is parsed in the vault. Trailing bytes are refused. The role of a request is the
//! descriptor that it came on and is not in the frame.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checked::card::{CardFields, Prekey};
use crate::error::WireError;
use crate::http_signature::SignatureInput;
use crate::id::{HandshakeId, LinkId, MethodId, NodeId, UnixMillis};
use crate::limits::FRAME_BYTES;
use crate::method::{Method, MethodSet, Place, Schedule};
use crate::secret::Secret;

mod bounds;
mod grant;
mod lane;
mod refused;

pub use bounds::Bounded;
pub use grant::SessionGrant;
pub use lane::Lane;
pub use refused::{Capacity, Refusal, StatementFault};

/// Who may ask: decided by the descriptor (SANDBOX).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Pair 1: what `noded` may ask, through the front.
    Node,
    /// Pair 2: what the operator may ask, through the supervisor.
    Operator,
}

/// A request with the id that its reply repeats.
#[derive(Debug, Serialize, Deserialize)]
pub struct Frame<T> {
    /// Chosen by the asker; the vault only repeats it.
    pub id: u64,
    /// The request or the reply.
    pub body: T,
}

/// Everything that the vault can be asked. No operation takes bytes to sign or open as they are.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Who the node is, and how many operations were served. Both roles.
    Describe,
    /// Build and sign the node's card. Node.
    SignCard {
        /// What the operator chose.
        fields: CardFields,
        /// Methods that the operator allows.
        suites: MethodSet,
        /// Life of the card; at most 8 days.
        life: Duration,
    },
    /// Sign an HTTP request to a directory; `key_id` must be this node. Node.
    SignHttp(SignatureInput),
    /// Issue a link to the node whose card this is. Node.
    IssueLink {
        /// The peer that the operator named.
        peer: NodeId,
        /// Its signed card, as received.
        card: Vec<u8>,
        /// The directory that will route the offer.
        directory: NodeId,
        /// Methods that the operator allows.
        allowed: MethodSet,
        /// How to choose among them.
        schedule: Schedule,
        /// Life of the link.
        life: Duration,
    },
    /// Open an offer, verify all of it, mark nothing: for the policy to look at. Node.
    InspectOffer(ReceivedOffer),
    /// Take an offer: marks it seen, makes the acceptor's token. Node.
    AcceptOffer(ReceivedOffer),
    /// The keys that let `noded` look at REQUESTs of a link (they earn a look, nothing more). Node.
    LinkKeys {
        /// The sealed token row.
        row: Vec<u8>,
    },
    /// End a link: its row never opens again. Node.
    RevokeLink {
        /// Which.
        link: LinkId,
    },
    /// Initiator, phase one. Node.
    StartHandshake {
        /// The sealed token row of the link.
        row: Vec<u8>,
    },
    /// Responder, phase one to two. Node.
    AnswerHandshake {
        /// The sealed token row of the link that the tag named.
        row: Vec<u8>,
        /// Noise message 1.
        noise: Vec<u8>,
        /// Latest directory head seen; 32 bytes or empty.
        directory_head: Vec<u8>,
    },
    /// Initiator, phase two to three. Node.
    FinishHandshake {
        /// From `HandshakeStarted`.
        handshake: HandshakeId,
        /// Noise message 2.
        noise: Vec<u8>,
        /// Latest directory head seen; 32 bytes or empty.
        directory_head: Vec<u8>,
    },
    /// Responder, phase three. Node.
    CompleteHandshake {
        /// From `HandshakeAnswered`.
        handshake: HandshakeId,
        /// Noise message 3.
        noise: Vec<u8>,
    },
    /// Forget a half-open handshake. Node.
    AbandonHandshake {
        /// Which.
        handshake: HandshakeId,
    },
    /// Check the peer's match proof (PROTOCOL 4.5). Node.
    ValidateMatch {
        /// The sealed token row of the link.
        row: Vec<u8>,
        /// Final handshake hash.
        hash: [u8; 32],
        /// The peer's proof.
        proof: [u8; 32],
    },
    /// The key that `noded` seals one module's records with at rest. Node.
    StoreKey {
        /// Module name.
        purpose: String,
    },
    /// Something happened that belongs in the audit trail; only events that are of `noded`, and only at the rate of reports. Node.
    Report {
        /// Number of the event ([`crate::audit::Event`]).
        event: u16,
        /// How many.
        count: u32,
    },
    /// The same for events of the supervisor. Operator.
    Note {
        /// Number of the event ([`crate::audit::Event`]).
        event: u16,
        /// How many.
        count: u32,
    },
    /// Where the audit trail stands. Operator.
    AuditStatus,
    /// A closed segment lies filed, durable, and its place is zeros again. Operator.
    AuditFiled {
        /// The segment's number.
        segment: u64,
    },
    /// How a peer is named in the audit trail. Operator.
    AuditSubject {
        /// The peer.
        peer: NodeId,
    },
    /// Wipe the keys and end. Operator.
    Lock,
    /// Draw a short-term key anew, before its time. Operator.
    Rotate {
        /// Which.
        what: ShortKey,
    },
    /// Issue a link that takes the place of a live one with the same peer. Node.
    RenewLink {
        /// The sealed token row of the link that is renewed.
        row: Vec<u8>,
        /// The peer's signed card, as received.
        card: Vec<u8>,
        /// The directory that will route the offer, if it cannot go over a session.
        directory: NodeId,
        /// Methods that the operator allows.
        allowed: MethodSet,
        /// How to choose among them.
        schedule: Schedule,
        /// Life of the new link.
        life: Duration,
    },
    /// [`Request::InspectOffer`] of an offer that renews a link. Node.
    InspectRenewal(ReceivedRenewal),
    /// [`Request::AcceptOffer`] of an offer that renews a link; the renewed one lives on to its end. Node.
    AcceptRenewal(ReceivedRenewal),
    /// The links that this node issued, that are held and not revoked, a page at a time, so that `noded` can end those of which a
    /// crash left it nothing. Not those that it accepted: their issuers offer them again. Node.
    ListLinks {
        /// Where the last page ended; zeros for the first.
        after: LinkId,
    },
    /// Sign that a handshake ended: one that this vault ended itself, once, within 10 s (`audited` mode). Node.
    SignSession {
        /// From `HandshakeStarted` or `HandshakeAnswered`.
        handshake: HandshakeId,
    },
    /// Initiator, phase one, without a link. Refused while a live one with the peer is held. Node.
    StartDirect {
        /// The suite.
        method: Method,
        /// Whom this node means to reach: nobody else gets FINALIZE.
        peer: NodeId,
    },
    /// Responder, phase one to two, without a link; who it is shows in phase three. Node.
    AnswerDirect {
        /// The suite that the initiator chose.
        method: Method,
        /// Noise message 1.
        noise: Vec<u8>,
        /// Latest directory head seen; 32 bytes or empty.
        directory_head: Vec<u8>,
    },
    /// Hold a module's description of a method against the table and keep it; one that is kept already is only named again. Node.
    RegisterMethod {
        /// The module's id.
        module: String,
        /// Canonical [`MethodDescription`](crate::method::description::MethodDescription).
        description: Vec<u8>,
    },
    /// Its module is gone, or does without it: no new link is made with it. Those that live go on to their end. Node.
    RetireMethod {
        /// Which.
        method: MethodId,
    },
    /// The registered methods. Node.
    ListMethods,
    /// Sign what a module states in its own domain: built of these fields, of a body only its hash. Node.
    SignModule {
        /// The module's id.
        module: String,
        /// Which of its domains.
        domain: String,
        /// SHA-256 of the body.
        digest: [u8; 32],
        /// Bytes of the body.
        length: u64,
    },
    /// The key that `noded` seals with for a module. Node.
    SealKey {
        /// The module's id.
        module: String,
    },
}

/// Keys that live for days and are drawn anew on a schedule, or when the operator says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShortKey {
    /// What offers to this node are sealed to; the one before opens for as long as cards with it may be about.
    Prekey,
    /// What this node's half of a handshake is authenticated with, one a suite, with new certificates.
    Statics,
}

/// An offer as it reached this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceivedOffer {
    /// The offer's bytes.
    pub offer: Vec<u8>,
    /// The sender that the router named.
    pub sender: NodeId,
    /// The directory that routed it.
    pub directory: NodeId,
    /// Methods that the operator allows.
    pub allowed: MethodSet,
}

/// An offer that renews a link, as it reached this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceivedRenewal {
    /// The offer.
    pub received: ReceivedOffer,
    /// The sealed token row of the link that it says it renews.
    pub row: Vec<u8>,
}

/// What both sides know of a link; no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSummary {
    /// The link.
    pub link: LinkId,
    /// The other party.
    pub peer: NodeId,
    /// Whether this node issued it.
    pub issuer: bool,
    /// Its method; of a registered one, its suite.
    pub method: Method,
    /// The schedule's epoch at issue.
    pub epoch: u64,
    /// Start of life.
    pub not_before: UnixMillis,
    /// End of life.
    pub not_after: UnixMillis,
    /// Where its method stands in this node's table, if a module registered it.
    pub registered: Option<Place>,
}

impl LinkSummary {
    /// Whether its method is in `set`.
    #[must_use]
    pub const fn is_in(&self, set: MethodSet) -> bool {
        set.allows(self.method, self.registered)
    }
}

/// A registered method, as the vault holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredMethod {
    /// Where it stands.
    pub place: Place,
    /// Who registered it.
    pub module: String,
    /// Its canonical description.
    pub description: Vec<u8>,
    /// Which registration of this vault's it was, counted as sequences are; a place that is used again has a higher one.
    pub epoch: u64,
    /// No new link is made with it.
    pub retired: bool,
}

/// The keys of one link and direction that `noded` may hold: they select and pre-check REQUESTs.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestKeys {
    /// For `tag`.
    pub tag: Secret<32>,
    /// For `mac1`.
    pub mac1: Secret<32>,
}

/// Both directions of a link's request keys.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkKeys {
    /// For REQUESTs that this node sends.
    pub outgoing: RequestKeys,
    /// For REQUESTs that the peer sends.
    pub incoming: RequestKeys,
}

/// Where the audit trail stands: everything up to `sequence` is durable when this leaves the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// The segment that is written.
    pub segment: u64,
    /// Which of the two files it is in.
    pub file: u8,
    /// Its slots that are taken, of [`crate::audit::SLOTS`].
    pub slots: u32,
    /// The last record.
    pub sequence: u64,
    /// Its hash.
    pub hash: [u8; 32],
    /// A closed segment in the other file that waits to be filed.
    pub waiting: Option<u64>,
    /// Both are full: no key is used until the waiting one is filed.
    pub full: bool,
}

/// Everything that the vault answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To `Describe`.
    Described {
        /// The node.
        node: NodeId,
        /// Its current prekey.
        prekey: Prekey,
        /// Operations served since start.
        operations: u64,
        /// Links held.
        links: u32,
        /// Half-open handshakes.
        half_open: u32,
        /// Identities that this one goes on for; at most [`LINEAGE`](crate::limits::LINEAGE).
        earlier: Vec<NodeId>,
    },
    /// To `SignCard`: the signed statement.
    Card {
        /// Encoded `SignedStatement`.
        statement: Vec<u8>,
        /// Its sequence.
        sequence: u64,
        /// Its end.
        expires_at: UnixMillis,
    },
    /// To `SignHttp`: 64 bytes.
    Signature(Vec<u8>),
    /// To `IssueLink` and `RenewLink`.
    LinkIssued {
        /// What was agreed.
        summary: LinkSummary,
        /// Sealed token row for `noded`'s store.
        row: Vec<u8>,
        /// The offer to route.
        offer: Vec<u8>,
        /// Pre-check keys.
        keys: LinkKeys,
    },
    /// To `InspectOffer` and `InspectRenewal`.
    OfferInspected(LinkSummary),
    /// To `AcceptOffer` and `AcceptRenewal`; also to the same offer again.
    LinkAccepted {
        /// What was agreed.
        summary: LinkSummary,
        /// Sealed token row for `noded`'s store.
        row: Vec<u8>,
        /// Signed receipt for the issuer.
        receipt: Vec<u8>,
        /// Pre-check keys.
        keys: LinkKeys,
    },
    /// To `LinkKeys`.
    LinkKeys(LinkKeys),
    /// To `RevokeLink`, `AbandonHandshake`, `Report`, `Note`, `AuditFiled`, `Lock`, `Rotate`.
    Done,
    /// To `StartHandshake` and `StartDirect`.
    HandshakeStarted {
        /// Names the machine in the vault.
        handshake: HandshakeId,
        /// Noise message 1.
        noise: Vec<u8>,
    },
    /// To `AnswerHandshake` and `AnswerDirect`.
    HandshakeAnswered {
        /// Names the machine in the vault, and goes to the peer.
        handshake: HandshakeId,
        /// Noise message 2.
        noise: Vec<u8>,
    },
    /// To `FinishHandshake`.
    HandshakeFinished {
        /// Noise message 3.
        noise: Vec<u8>,
        /// The session.
        grant: SessionGrant,
    },
    /// To `CompleteHandshake`.
    HandshakeCompleted {
        /// The session.
        grant: SessionGrant,
    },
    /// To `ValidateMatch`.
    MatchValidated {
        /// Whether the two tokens come from one base.
        matched: bool,
    },
    /// To `StoreKey` and `SealKey`.
    StoreKey(Secret<32>),
    /// To `AuditStatus`.
    AuditStatus(AuditStatus),
    /// To `AuditSubject`.
    AuditSubject([u8; 32]),
    /// The request was refused; nothing was changed but, where said, a quota.
    Refused(Refusal),
    /// To `ListLinks`: in rising order, at most [`LINKS_PAGE`](crate::limits::LINKS_PAGE); fewer on the last page.
    Links(Vec<LinkId>),
    /// To `SignSession`.
    SessionSigned {
        /// Whom the handshake was with.
        peer: NodeId,
        /// Encoded `SignedStatement`.
        statement: Vec<u8>,
    },
    /// To `RegisterMethod`: where it stands from now on.
    MethodRegistered(Place),
    /// To `ListMethods`; at most [`PLACES`](crate::method::PLACES).
    Methods(Vec<RegisteredMethod>),
    /// To `SignModule`: encoded `SignedStatement`.
    ModuleSigned(Vec<u8>),
}

/// Encodes a frame, length prefix included.
///
/// # Errors
/// [`WireError::TooLong`] over the operation's own cap, which is at most [`FRAME_BYTES`].
pub fn encode_frame<T: Serialize + Bounded>(frame: &Frame<T>) -> Result<Vec<u8>, WireError> {
    let too_long = WireError::TooLong { what: "vault frame", limit: FRAME_BYTES };
    let body = postcard::to_allocvec(frame).map_err(|_| too_long)?;
    if body.len() > frame.body.most().min(FRAME_BYTES) {
        return Err(too_long);
    }
    let length = u32::try_from(body.len()).map_err(|_| too_long)?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Looks at the front of a byte stream: the body of the first whole frame and how many bytes it takes.
///
/// # Errors
/// [`WireError::Incomplete`] when more must come; [`WireError::TooLong`] as soon as the length says so.
pub fn split_frame(bytes: &[u8]) -> Result<(&[u8], usize), WireError> {
    let incomplete = WireError::Incomplete { what: "vault frame" };
    let (length, rest) = bytes.split_at_checked(4).ok_or(incomplete)?;
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if length > FRAME_BYTES {
        return Err(WireError::TooLong { what: "vault frame", limit: FRAME_BYTES });
    }
    let body = rest.get(..length).ok_or(incomplete)?;
    Ok((body, 4 + length))
}

/// Decodes a frame's body; trailing bytes are refused, and more of them than the operation may have.
///
/// # Errors
/// [`WireError::Malformed`].
pub fn decode_frame<'a, T: Deserialize<'a> + Bounded>(body: &'a [u8]) -> Result<Frame<T>, WireError> {
    let malformed = WireError::Malformed { what: "vault frame", why: "not a request or reply of this version" };
    match postcard::take_from_bytes::<Frame<T>>(body) {
        Ok((frame, [])) if body.len() <= frame.body.most() => Ok(frame),
        _ => Err(malformed),
    }
}
