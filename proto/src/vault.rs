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
use crate::id::{HandshakeId, LinkId, NodeId, UnixMillis};
use crate::limits::FRAME_BYTES;
use crate::method::{Method, MethodSet, Schedule};
use crate::secret::Secret;

mod bounds;
mod grant;
mod lane;

pub use bounds::Bounded;
pub use grant::SessionGrant;
pub use lane::Lane;

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
    /// Its method.
    pub method: Method,
    /// The schedule's epoch at issue.
    pub epoch: u64,
    /// Start of life.
    pub not_before: UnixMillis,
    /// End of life.
    pub not_after: UnixMillis,
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
    /// To `StoreKey`.
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
}

/// Why the vault refused. Towards the network all of these look the same; this goes to the local log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The bytes are no request.
    #[error("the frame is malformed")]
    Malformed,
    /// This role may not ask this.
    #[error("this caller may not ask for this operation")]
    NotAllowed,
    /// Too many of these for now.
    #[error("quota used up; try again later")]
    Quota,
    /// A fixed table is full (links, half-open handshakes, memory).
    #[error("capacity reached: {0}")]
    Capacity(Capacity),
    /// The peer's statement was refused: card, offer, certificate.
    #[error("peer statement refused: {0}")]
    PeerStatement(StatementFault),
    /// The offer is for another node.
    #[error("the offer is for somebody else")]
    OfferForOther,
    /// The sender named by the router is not the offer's issuer.
    #[error("the offer's issuer is not its sender")]
    OfferSender,
    /// The offer names a prekey that this node does not hold (any more).
    #[error("the offer is sealed to a prekey that this node does not hold")]
    UnknownPrekey,
    /// The offer does not open: another key, another directory, or changed bytes.
    #[error("the offer does not open")]
    OfferSealed,
    /// Seen before, or older than the window.
    #[error("replayed or outdated")]
    Replay,
    /// No method is allowed on both sides.
    #[error("no common method; allow one of the peer's in `methods`")]
    NoCommonMethod,
    /// A sealed row does not open: changed, rolled back, of another node or epoch.
    #[error("the link row does not open (changed, rolled back or of another node)")]
    RowSealed,
    /// The link is unknown or revoked.
    #[error("the link is unknown or revoked")]
    LinkGone,
    /// The link is past its life.
    #[error("the link has expired; request a new one")]
    LinkExpired,
    /// No such half-open handshake, or it took over 10 s.
    #[error("no such half-open handshake")]
    HandshakeGone,
    /// The handshake message does not authenticate, or its peer is another.
    #[error("the handshake failed")]
    HandshakeFailed,
    /// The state could not be made durable: no key is used any more.
    #[error("the key process cannot write its state; it is locked until restarted")]
    StateLost,
    /// Both audit segments are full: no key is used until one is filed away.
    #[error(
        "the audit trail is full and its closed segment is not filed yet; free space on its disk (`openred status`)"
    )]
    AuditFull,
    /// A defect of ours, named so that it is reported.
    #[error("internal defect in the key process")]
    Bug,
    /// The offer's method is not among those that the operator allows.
    #[error("the offer's method is not allowed here (downgrade)")]
    Downgrade,
    /// Direct contact with a peer with which there is a live link: that one proves more.
    #[error(
        "there is a live link with this peer: direct contact is refused (downgrade); `openred link revoke` ends it"
    )]
    DirectDowngrade,
}

/// Which fixed table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Capacity {
    /// Links of this vault.
    #[error("4,096 links")]
    Links,
    /// Half-open handshakes in all or of one link.
    #[error("half-open handshakes")]
    HalfOpen,
    /// The arena.
    #[error("memory of the key process")]
    Memory,
    /// Prekeys that cards out there may still name.
    #[error("eight prekeys; one is dropped fourteen days after it was replaced")]
    Prekeys,
}

/// A [`WireError`] without its static names, so that it can cross the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StatementFault {
    /// Incomplete, malformed, too long or of an unknown version.
    #[error("malformed")]
    Malformed,
    /// The signature does not verify.
    #[error("bad signature")]
    BadSignature,
    /// Signed by another node than it speaks for.
    #[error("signed by another node")]
    WrongSigner,
    /// Its time window is over.
    #[error("expired")]
    Expired,
    /// Its time window has not begun.
    #[error("not valid yet; a clock is wrong: compare this machine's with the true time")]
    NotYetValid,
}

impl From<WireError> for StatementFault {
    fn from(error: WireError) -> Self {
        match error {
            WireError::BadSignature { .. } | WireError::BadNodeId => Self::BadSignature,
            WireError::WrongSigner { .. } => Self::WrongSigner,
            WireError::OutOfTime { early: false, .. } => Self::Expired,
            WireError::OutOfTime { early: true, .. } => Self::NotYetValid,
            _ => Self::Malformed,
        }
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::PeerStatement(error.into())
    }
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
