//! The life of one link as data: its states, which change leads where, and why it ended. Sans-IO.
//!
//! ```text
//! issuer:     offered ──receipt──▶ pending ──first handshake──▶ active ──▶ expired | revoked ──▶ (purged)
//! recipient:  [waiting ──operator's word──▶] pending ──first handshake──▶ active ──▶ …
//! renewal:    active ──a link is offered or accepted in its place──▶ renewing ──▶ expired (renewed)
//!             renewing ──that one came to nothing──▶ active
//! ```
//! A renewed link serves beside the one that takes its place until its own end; when it is due, and what ends it, is in `renewal`.
//! Every function takes a link by value and gives the next one, so a change that could not be stored has not happened.

use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::CLOCK_GRACE;
use openred_proto::vault::LinkSummary;

/// How long an ended link is still shown before it is purged.
pub(crate) const SHOWN_AFTER_END: std::time::Duration = std::time::Duration::from_secs(7 * 86400);

/// How long an offer waits for the operator, unless it ends before: within the fortnight that the prekey is kept to which it is sealed.
pub(crate) const WAITS: std::time::Duration = std::time::Duration::from_secs(7 * 86400);

/// How many ended links of one peer are shown; older ones are purged before their time.
pub(crate) const ENDED_PER_PEER: usize = 8;
/// Handshakes this close to each other may be seen in another order by the peer. Of their mutual links both sides show the greatest, so
/// that two people who compare them see the same.
const CROSSING: std::time::Duration = std::time::Duration::from_secs(5);

/// Where a link stands. The numbers are those in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum LinkState {
    /// Issued by this node; no receipt yet.
    Offered = 1,
    /// Received; the operator has not said yes yet. Nothing was accepted.
    Waiting = 2,
    /// Both sides hold their tokens; no handshake yet.
    Pending = 3,
    /// A handshake succeeded over it.
    Active = 4,
    /// Past its life.
    Expired = 5,
    /// Ended before: by the operator, or replaced.
    Revoked = 6,
    /// In use, and another one is on its way, or there, to take its place.
    Renewing = 7,
}

impl LinkState {
    pub(crate) const ALL: [Self; 7] =
        [Self::Offered, Self::Waiting, Self::Pending, Self::Active, Self::Expired, Self::Revoked, Self::Renewing];

    /// Name in the admin contract.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Renewing => "renewing",
        }
    }

    /// Whether this node may begin a handshake over it.
    pub(crate) const fn is_live(self) -> bool {
        matches!(self, Self::Pending | Self::Active | Self::Renewing)
    }

    /// Whether the peer may begin a handshake over it: an acceptor may be quicker than its receipt.
    pub(crate) const fn is_expected(self) -> bool {
        matches!(self, Self::Offered | Self::Pending | Self::Active | Self::Renewing)
    }

    /// Whether nothing leads out of it.
    pub(crate) const fn is_over(self) -> bool {
        matches!(self, Self::Expired | Self::Revoked)
    }
}

/// Why a link ended. The numbers are those in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EndReason {
    /// It has not ended.
    None = 0,
    /// Its life is over.
    Life = 1,
    /// The operator revoked it.
    Operator = 2,
    /// The peer's own offer, issued at the same time, goes first (lower node id).
    CrossedOffer = 3,
    /// A newer link with the same peer took its place.
    Replaced = 4,
    /// No receipt came before the offer's end.
    NoReceipt = 5,
    /// The key process does not open its row any more.
    RowRefused = 6,
    /// This node has a new identity: it was the earlier one's.
    OwnSuccession = 7,
    /// The peer has a new identity: it was the earlier one's.
    PeerSuccession = 8,
    /// The peer had the standing of an identity that has taken its word for it back.
    TakenBack = 9,
    /// A link that was made of it took its place.
    Renewed = 10,
    /// The peer has ended it, or does not know it any more.
    PeerEnded = 11,
    /// Its method is not allowed any more, and it could not be renewed with another in time.
    MethodRetired = 12,
    /// The peer has looked at the offer that was to renew a link, and left it.
    PeerRefused = 13,
    /// It waited for the operator for as long as an offer may.
    NotAccepted = 14,
    /// The operator left it.
    Refused = 15,
    /// The peer has looked at the offer that was brought in direct contact, and left it.
    PeerLeft = 16,
}

impl EndReason {
    pub(crate) const ALL: [Self; 17] = [
        Self::None,
        Self::Life,
        Self::Operator,
        Self::CrossedOffer,
        Self::Replaced,
        Self::NoReceipt,
        Self::RowRefused,
        Self::OwnSuccession,
        Self::PeerSuccession,
        Self::TakenBack,
        Self::Renewed,
        Self::PeerEnded,
        Self::MethodRetired,
        Self::PeerRefused,
        Self::NotAccepted,
        Self::Refused,
        Self::PeerLeft,
    ];

    /// For `link show`.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Life => "its life is over",
            Self::Operator => "revoked by the operator",
            Self::CrossedOffer => "the peer's own offer of the same moment goes first",
            Self::Replaced => "replaced by a newer link with this peer",
            Self::NoReceipt => "the peer did not accept in time",
            Self::RowRefused => "the key process refuses its row (changed, rolled back or of another node)",
            Self::OwnSuccession => "this node has a new identity; its peer is offered another link",
            Self::PeerSuccession => "the peer has a new identity; see `openred peers list`",
            Self::TakenBack => "the identity that it went on for has taken its word for it back",
            Self::Renewed => "renewed: the link that was made of it took its place",
            Self::PeerEnded => "the peer has ended it, or does not know it any more",
            Self::MethodRetired => "its method is not allowed any more, and no renewal with another came about in time",
            Self::PeerRefused => "the peer did not take this renewal; the link is renewed afresh",
            Self::NotAccepted => "nobody accepted it in time",
            Self::Refused => "refused by the operator",
            Self::PeerLeft => "the peer did not take this offer; its own log says why",
        }
    }
}

/// Result of the cross-validation of the two tokens. The numbers are those in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TokenMatch {
    /// Not checked yet.
    Unknown = 0,
    /// They come from one base.
    Matched = 1,
    /// They do not.
    Mismatched = 2,
}

impl TokenMatch {
    pub(crate) const ALL: [Self; 3] = [Self::Unknown, Self::Matched, Self::Mismatched];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Matched => "matched",
            Self::Mismatched => "mismatched",
        }
    }
}

/// A link as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) summary: LinkSummary,
    pub(crate) state: LinkState,
    pub(crate) created_at: UnixMillis,
    /// Of the last change of state.
    pub(crate) changed_at: UnixMillis,
    /// Sealed by the key process; empty while waiting.
    pub(crate) row: Vec<u8>,
    /// SHA-256 of the offer.
    pub(crate) token_id: [u8; 32],
    /// What is sent again until the receipt, or kept until the operator's word.
    pub(crate) offer: Vec<u8>,
    /// The directory that carried the offer.
    pub(crate) directory: NodeId,
    /// The acceptor's signed receipt.
    pub(crate) receipt: Vec<u8>,
    pub(crate) reason: EndReason,
    /// Whether the key process knows that it ended.
    pub(crate) vault_told: bool,
    /// Of the last handshake.
    pub(crate) mutual_link: Option<[u8; 16]>,
    pub(crate) matched: TokenMatch,
    pub(crate) matched_at: UnixMillis,
    pub(crate) handshake_at: UnixMillis,
    pub(crate) sent_counter: u64,
    pub(crate) received_counter: u64,
    /// The link that it renews.
    pub(crate) renews: Option<LinkId>,
}

/// Why a change was refused: the link stands where it cannot happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a link that is {} cannot be {change}", .state.name())]
pub(crate) struct WrongState {
    pub(crate) state: LinkState,
    pub(crate) change: &'static str,
}

impl Link {
    /// A link just issued, before its offer leaves.
    pub(crate) fn issued(
        summary: LinkSummary,
        row: Vec<u8>,
        offer: Vec<u8>,
        token_id: [u8; 32],
        directory: NodeId,
        now: UnixMillis,
    ) -> Self {
        Self { row, offer, ..Self::new(summary, LinkState::Offered, token_id, directory, now) }
    }

    /// An offer that waits for the operator.
    pub(crate) fn waiting(
        summary: LinkSummary,
        offer: Vec<u8>,
        token_id: [u8; 32],
        directory: NodeId,
        now: UnixMillis,
    ) -> Self {
        Self { offer, ..Self::new(summary, LinkState::Waiting, token_id, directory, now) }
    }

    /// An offer that the key process accepted.
    pub(crate) fn accepted(
        summary: LinkSummary,
        row: Vec<u8>,
        receipt: Vec<u8>,
        token_id: [u8; 32],
        directory: NodeId,
        now: UnixMillis,
    ) -> Self {
        Self { row, receipt, ..Self::new(summary, LinkState::Pending, token_id, directory, now) }
    }

    fn new(summary: LinkSummary, state: LinkState, token_id: [u8; 32], directory: NodeId, now: UnixMillis) -> Self {
        Self {
            summary,
            state,
            created_at: now,
            changed_at: now,
            row: Vec::new(),
            token_id,
            offer: Vec::new(),
            directory,
            receipt: Vec::new(),
            reason: EndReason::None,
            vault_told: true,
            mutual_link: None,
            matched: TokenMatch::Unknown,
            matched_at: UnixMillis(0),
            handshake_at: UnixMillis(0),
            sent_counter: 0,
            received_counter: 0,
            renews: None,
        }
    }

    pub(crate) const fn id(&self) -> LinkId {
        self.summary.link
    }

    pub(crate) const fn peer(&self) -> NodeId {
        self.summary.peer
    }

    /// Whether a handshake may run over it at `now`.
    pub(crate) fn is_usable(&self, now: UnixMillis) -> bool {
        self.state.is_live() && !self.is_past_life(now)
    }

    /// Whether this node has offered it, and has not got the receipt: the peer's handshake may come before that, or it was lost.
    pub(crate) const fn lacks_receipt(&self) -> bool {
        self.summary.issuer && self.receipt.is_empty()
    }

    /// Whether its life is over by any clock that may be right (PROTOCOL 1): the peer's may be hours off.
    pub(crate) fn is_past_life(&self, now: UnixMillis) -> bool {
        now > self.summary.not_after.plus(CLOCK_GRACE)
    }

    /// The acceptor's verified receipt has come. A second one changes nothing.
    pub(crate) fn with_receipt(mut self, receipt: Vec<u8>, now: UnixMillis) -> Result<Self, WrongState> {
        match self.state {
            LinkState::Offered => {
                self.receipt = receipt;
                self.offer = Vec::new();
                Ok(self.moved(LinkState::Pending, now))
            }
            LinkState::Pending | LinkState::Active | LinkState::Renewing if self.summary.issuer => {
                self.receipt = receipt;
                Ok(self)
            }
            state => Err(WrongState { state, change: "confirmed" }),
        }
    }

    /// A handshake over it succeeded: the peer holds its token, whether or not its receipt has come.
    pub(crate) fn with_handshake(
        mut self,
        initiator: bool,
        counter: u64,
        mutual_link: [u8; 16],
        now: UnixMillis,
    ) -> Result<Self, WrongState> {
        if !self.state.is_expected() {
            return Err(WrongState { state: self.state, change: "used for a handshake" });
        }
        self.offer = Vec::new();
        let greatest = if initiator { &mut self.sent_counter } else { &mut self.received_counter };
        *greatest = counter.max(*greatest);
        let crosses = now.0.abs_diff(self.handshake_at.0) < CROSSING.as_millis() as u64;
        self.mutual_link = self.mutual_link.filter(|_| crosses).max(Some(mutual_link));
        self.handshake_at = now;
        let is_proven = matches!(self.state, LinkState::Active | LinkState::Renewing);
        Ok(if is_proven { self } else { self.moved(LinkState::Active, now) })
    }

    /// Another link has been offered, or accepted, in its place.
    pub(crate) fn renewing(self, now: UnixMillis) -> Result<Self, WrongState> {
        match self.state {
            LinkState::Pending | LinkState::Active => Ok(self.moved(LinkState::Renewing, now)),
            LinkState::Renewing => Ok(self),
            state => Err(WrongState { state, change: "renewed" }),
        }
    }

    /// The one that was to take its place came to nothing: it is as it was.
    pub(crate) fn settled(self, now: UnixMillis) -> Self {
        if self.state == LinkState::Renewing { self.moved(LinkState::Active, now) } else { self }
    }

    /// The same link, as one that renews another.
    pub(crate) fn in_place_of(mut self, renews: Option<LinkId>) -> Self {
        self.renews = renews;
        self
    }

    /// How long it was made to live.
    pub(crate) fn life(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.summary.not_after.0.saturating_sub(self.summary.not_before.0))
    }

    /// The two tokens were compared on an open session.
    pub(crate) fn with_match(mut self, matched: bool, now: UnixMillis) -> Self {
        self.matched = if matched { TokenMatch::Matched } else { TokenMatch::Mismatched };
        self.matched_at = now;
        self
    }

    /// Ended before its life: revoked, replaced or refused. The key process is told afterwards.
    pub(crate) fn ended(self, reason: EndReason, now: UnixMillis) -> Result<Self, WrongState> {
        self.over(LinkState::Revoked, reason, now)
    }

    /// Past its life, or not needed any more because another took its place.
    pub(crate) fn expired(self, reason: EndReason, now: UnixMillis) -> Result<Self, WrongState> {
        self.over(LinkState::Expired, reason, now)
    }

    fn over(mut self, state: LinkState, reason: EndReason, now: UnixMillis) -> Result<Self, WrongState> {
        if self.state.is_over() {
            return Err(WrongState { state: self.state, change: "revoked" });
        }
        // A waiting offer was never accepted: the key process knows nothing of it.
        self.vault_told = self.state == LinkState::Waiting;
        self.reason = reason;
        self.offer = Vec::new();
        Ok(self.moved(state, now))
    }

    /// Until when it waits for the operator, if it does.
    pub(crate) fn waits_until(&self) -> Option<UnixMillis> {
        let end = self.summary.not_after.plus(CLOCK_GRACE).min(self.changed_at.plus(WAITS));
        (self.state == LinkState::Waiting).then_some(end)
    }

    /// What the passing of time does to it; `None` when nothing.
    pub(crate) fn aged(&self, now: UnixMillis) -> Option<Aged> {
        if self.state.is_over() {
            return (now > self.changed_at.plus(SHOWN_AFTER_END) && self.vault_told).then_some(Aged::Purge);
        }
        let has_waited = self.waits_until().is_some_and(|end| now > end);
        if !self.is_past_life(now) && !has_waited {
            return None;
        }
        let reason = match self.state {
            LinkState::Offered => EndReason::NoReceipt,
            LinkState::Waiting => EndReason::NotAccepted,
            _ => EndReason::Life,
        };
        self.clone().expired(reason, now).ok().map(|link| Aged::Expired(Box::new(link)))
    }

    fn moved(mut self, state: LinkState, now: UnixMillis) -> Self {
        self.state = state;
        self.changed_at = now;
        self
    }
}

/// See [`Link::aged`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Aged {
    /// It is past its life: keep this instead.
    Expired(Box<Link>),
    /// It has been over for long enough: drop it.
    Purge,
}
