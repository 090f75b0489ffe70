//! What to do with an offer that the key process has opened and verified: accept, keep for the operator, repeat the
//! receipt, or refuse. Sans-IO: everything it goes by is an argument, and it changes nothing.

use std::time::Duration;

use openred_proto::checked::receipt::Receipt;
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::CLOCK_GRACE;
use openred_proto::vault::LinkSummary;

use super::renewal::ended_by_renewal;
use super::state::{EndReason, Link, LinkState};
use crate::config::IncomingPolicy;

/// Offers that wait for the operator, in all: two pages of `link list`. More are refused, and may be sent again.
pub(crate) const WAITING: usize = 128;

/// A renewal of this node's that has been without an answer for this long does not go before the peer's own: the peer may have
/// left it, and said so where nobody heard.
const RIVAL_PATIENCE: Duration = Duration::from_secs(300);

/// Renewals that come before their time which are taken of a peer within [`EARLY_WITHIN`]: as many as there are methods to retire.
/// Each costs the key process a place, a signature and a record of its trail.
const EARLY: usize = 4;
const EARLY_WITHIN: Duration = Duration::from_secs(3600);

/// What the decision goes by, beside the links.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation<'a> {
    pub(crate) me: NodeId,
    pub(crate) policy: IncomingPolicy,
    pub(crate) allow: &'a [NodeId],
    /// The operator has said yes to this peer (by accepting or by requesting a link with it).
    pub(crate) approved: bool,
    /// Or no; then whatever the policy says.
    pub(crate) denied: bool,
    /// The peer's verified card names this node's sector.
    pub(crate) same_sector: bool,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Accept; then these links end.
    Accept(Vec<(LinkId, EndReason)>),
    /// Keep it until the operator says yes, in the place of the peer's older one if there is one.
    Wait(Option<LinkId>),
    /// Accepted before: send the same receipt again.
    Repeat(LinkId),
    /// It waits already.
    StillWaiting,
    /// Leave it.
    Refuse(RefusedOffer),
}

/// Why an offer was left. For the local log only: its sender hears nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefusedOffer {
    /// By this node itself.
    #[error("it comes from this node itself")]
    OwnOffer,
    /// Another offer with this link's id is here: a peer draws a new one for each.
    #[error("its link id belongs to another offer")]
    KnownLink,
    /// Its link has ended here.
    #[error("its link has ended here")]
    Ended,
    /// Past its life.
    #[error("it has expired")]
    Expired,
    /// `links.incoming` does not admit the peer.
    #[error("the incoming policy does not admit this peer")]
    Policy,
    /// The operator has said no to it.
    #[error("the operator has denied this peer")]
    Denied,
    /// This node's own offer of the same moment goes first.
    #[error("this node's own offer to that peer goes first")]
    OursGoesFirst,
    /// It renews a link that this node does not have, or not with its sender.
    #[error("it renews a link that is not here, or has ended here")]
    NothingToRenew,
    /// Issued before the link that stands: a late arrival.
    #[error("it is older than the link that stands with this peer")]
    Outdated,
    /// The link that it renews is young, and the peer has renewed young ones before.
    #[error("it comes long before its time, and so did others of this peer within the hour")]
    TooEarly,
    /// It came in direct contact, and so did another of this stranger a moment ago.
    #[error("another offer of this stranger was looked at a moment ago")]
    TooSoon,
    /// It has named a successor.
    #[error("its issuer has named a successor, and is that one from then on")]
    Succeeded,
    /// Too many offers wait for the operator.
    #[error("too many offers wait for the operator")]
    TooManyWaiting,
}

/// Judges an offer by its verified `summary`.
pub(crate) fn judge<'a>(
    situation: Situation<'_>,
    links: impl Iterator<Item = &'a Link> + Clone,
    summary: &LinkSummary,
    token_id: &[u8; 32],
    now: UnixMillis,
) -> Verdict {
    if let Some(known) = links.clone().find(|link| link.token_id == *token_id) {
        return match known.state {
            LinkState::Waiting if situation.denied => Verdict::Refuse(RefusedOffer::Denied),
            LinkState::Waiting if admits(situation, summary.peer) => accept(situation, links, summary),
            LinkState::Waiting => Verdict::StillWaiting,
            _ => seen_before(known),
        };
    }
    if let Some(refused) = unfit(situation.me, links.clone(), summary, now) {
        return Verdict::Refuse(refused);
    }
    if situation.denied {
        return Verdict::Refuse(RefusedOffer::Denied);
    }
    if admits(situation, summary.peer) {
        return accept(situation, links, summary);
    }
    if situation.policy != IncomingPolicy::Ask {
        return Verdict::Refuse(RefusedOffer::Policy);
    }
    let mut waiting = links.filter(|link| link.state == LinkState::Waiting);
    if let Some(older) = waiting.clone().find(|link| link.peer() == summary.peer) {
        // One a peer: whoever sends many displaces only his own.
        return Verdict::Wait(Some(older.id()));
    }
    if waiting.nth(WAITING - 1).is_some() {
        return Verdict::Refuse(RefusedOffer::TooManyWaiting);
    }
    Verdict::Wait(None)
}

/// Judges an offer that renews the link `old`. The operator is not asked: his word was for the peer, and the link lives
/// (PROTOCOL 4). Who does not want the peer any more revokes the link.
pub(crate) fn judge_renewal<'a>(
    me: NodeId,
    links: impl Iterator<Item = &'a Link> + Clone,
    old: &LinkId,
    summary: &LinkSummary,
    token_id: &[u8; 32],
    now: UnixMillis,
) -> Verdict {
    if let Some(known) = links.clone().find(|link| link.token_id == *token_id) {
        return seen_before(known);
    }
    if let Some(refused) = unfit(me, links.clone(), summary, now) {
        return Verdict::Refuse(refused);
    }
    let renewed = links.clone().find(|link| link.id() == *old && link.peer() == summary.peer && link.is_usable(now));
    let Some(renewed) = renewed else { return Verdict::Refuse(RefusedOffer::NothingToRenew) };
    if is_too_early(links.clone(), renewed, now) {
        return Verdict::Refuse(RefusedOffer::TooEarly);
    }
    let mut ends = Vec::new();
    for id in ended_by_renewal(links.clone(), renewed, summary.link) {
        let Some(link) = links.clone().find(|link| link.id() == id) else { continue };
        let is_rival = link.renews == Some(*old);
        match link.state {
            LinkState::Offered if is_rival && me < summary.peer && now <= link.changed_at.plus(RIVAL_PATIENCE) => {
                return Verdict::Refuse(RefusedOffer::OursGoesFirst);
            }
            LinkState::Offered => ends.push((id, EndReason::CrossedOffer)),
            _ if is_rival && summary.not_before <= joined_at(link) => return Verdict::Refuse(RefusedOffer::Outdated),
            _ if is_rival => ends.push((id, EndReason::Replaced)),
            // What the renewed link has renewed itself.
            _ => ends.push((id, EndReason::Renewed)),
        }
    }
    Verdict::Accept(ends)
}

/// Whether the peer renews `old` long before it is due, and has taken more than its share of such renewals. A method that it
/// retires is a good reason for a few. Counted by this node's own clock from when it got the link, which the peer may have done a
/// little earlier or later: half of the life is early by any reckoning.
fn is_too_early<'a>(links: impl Iterator<Item = &'a Link>, old: &Link, now: UnixMillis) -> bool {
    if now >= old.created_at.plus(old.life() / 2) {
        return false;
    }
    let recent = links.filter(|link| {
        let is_theirs = link.peer() == old.peer() && !link.summary.issuer && link.renews.is_some();
        is_theirs && now < link.created_at.plus(EARLY_WITHIN)
    });
    recent.count() >= EARLY
}

const fn seen_before(known: &Link) -> Verdict {
    match known.state {
        LinkState::Waiting => Verdict::StillWaiting,
        LinkState::Pending | LinkState::Active | LinkState::Renewing if !known.summary.issuer => {
            Verdict::Repeat(known.id())
        }
        LinkState::Offered | LinkState::Pending | LinkState::Active | LinkState::Renewing => {
            Verdict::Refuse(RefusedOffer::OwnOffer)
        }
        LinkState::Expired | LinkState::Revoked => Verdict::Refuse(RefusedOffer::Ended),
    }
}

/// What nobody's offer may be.
fn unfit<'a>(
    me: NodeId,
    mut links: impl Iterator<Item = &'a Link>,
    summary: &LinkSummary,
    now: UnixMillis,
) -> Option<RefusedOffer> {
    if summary.peer == me {
        Some(RefusedOffer::OwnOffer)
    } else if now > summary.not_after.plus(CLOCK_GRACE) {
        Some(RefusedOffer::Expired)
    } else if links.any(|link| link.id() == summary.link) {
        Some(RefusedOffer::KnownLink)
    } else {
        None
    }
}

fn admits(situation: Situation<'_>, peer: NodeId) -> bool {
    situation.approved
        || match situation.policy {
            IncomingPolicy::Open => true,
            IncomingPolicy::AllowList => situation.allow.contains(&peer),
            IncomingPolicy::Sector => situation.same_sector,
            IncomingPolicy::Ask => false,
        }
}

/// The policy admits it; what stands with the same peer decides the rest (PROTOCOL 4, "Life of a link").
fn accept<'a>(situation: Situation<'_>, links: impl Iterator<Item = &'a Link>, summary: &LinkSummary) -> Verdict {
    let mut ends = Vec::new();
    for link in links.filter(|link| link.peer() == summary.peer && link.id() != summary.link) {
        match link.state {
            // A renewal of ours says that the peer had a link; a first offer of the peer's says that it has it no more.
            LinkState::Offered if link.renews.is_some() => ends.push((link.id(), EndReason::Replaced)),
            LinkState::Offered if situation.me < summary.peer => return Verdict::Refuse(RefusedOffer::OursGoesFirst),
            LinkState::Offered => ends.push((link.id(), EndReason::CrossedOffer)),
            // The peer's own clock orders its acts: an offer that it made before it took part in the link that stands
            // came late, and on its side is gone already.
            LinkState::Pending | LinkState::Active | LinkState::Renewing if summary.not_before <= joined_at(link) => {
                return Verdict::Refuse(RefusedOffer::Outdated);
            }
            LinkState::Pending | LinkState::Active | LinkState::Renewing | LinkState::Waiting => {
                ends.push((link.id(), EndReason::Replaced))
            }
            LinkState::Expired | LinkState::Revoked => {}
        }
    }
    Verdict::Accept(ends)
}

/// When the peer joined a link, by the peer's clock: its receipt's time, or the time of its own offer. A link that was used before its
/// receipt came it joined before that first handshake: of that only this node's own clock is known, from which the peer's may differ.
fn joined_at(link: &Link) -> UnixMillis {
    if link.lacks_receipt() {
        link.changed_at.plus(CLOCK_GRACE)
    } else if link.summary.issuer {
        Receipt::verify(&link.receipt, &link.peer()).map_or(link.summary.not_before, |receipt| receipt.at)
    } else {
        link.summary.not_before
    }
}
