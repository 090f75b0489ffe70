//! What one event changes among the links of this node: which of them are stored together, and as what. `state` knows one link,
//! `judge`, `renewal` and `sync` decide; here their decisions become rows. Sans-IO: links in, links as they are to be kept out.
//! `offers`, `renew`, `inside` and `upkeep` carry them out against store and key process, and the model in `tests/model` against
//! every order of events.

use openred_proto::checked::receipt::{Receipt, ReceiptKind};
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::method::MethodSet;

use super::renewal::{Turn, ended_by_renewal, turn};
use super::state::{EndReason, Link, LinkState, WrongState};

/// The link over which a handshake with the peer begins: the newest that is usable.
pub(super) fn preferred<'a>(links: impl Iterator<Item = &'a Link>, peer: &NodeId, now: UnixMillis) -> Option<&'a Link> {
    links.filter(|link| link.peer() == *peer && link.is_usable(now)).max_by_key(|link| link.created_at)
}

/// The link over which a handshake begins when the peer refuses it over the newest: the next newest that is usable. Each side may have
/// taken a renewal of which the other does not know, or has ended it; the link that both were made of still lives.
pub(super) fn fallback<'a>(
    links: impl Iterator<Item = &'a Link> + Clone,
    peer: &NodeId,
    now: UnixMillis,
) -> Option<&'a Link> {
    let newest = preferred(links.clone(), peer, now)?.id();
    preferred(links.filter(|link| link.id() != newest), peer, now)
}

/// A link as ended for `reason`: one that was renewed has run its course.
pub(super) fn ended_for(link: Link, reason: EndReason, now: UnixMillis) -> Result<Link, WrongState> {
    if reason == EndReason::Renewed { link.expired(reason, now) } else { link.ended(reason, now) }
}

/// What changes beside `link`, which was accepted: the one that it renews serves on, and `ends` are over.
pub(super) fn accepted<'a>(
    links: impl Iterator<Item = &'a Link>,
    link: &Link,
    ends: &[(LinkId, EndReason)],
    now: UnixMillis,
) -> Vec<Link> {
    links
        .filter_map(|other| match ends.iter().find(|(id, _)| *id == other.id()) {
            Some((_, reason)) => ended_for(other.clone(), *reason, now).ok(),
            None if link.renews == Some(other.id()) => other.clone().renewing(now).ok(),
            None => None,
        })
        .collect()
}

/// What the operator's yes to an offer that waits ends: all else that stands with the peer.
pub(super) fn replaced_by<'a>(links: impl Iterator<Item = &'a Link>, waiting: &Link) -> Vec<(LinkId, EndReason)> {
    let others = links.filter(|link| link.peer() == waiting.peer() && link.id() != waiting.id());
    others.filter(|link| !link.state.is_over()).map(|link| (link.id(), EndReason::Replaced)).collect()
}

/// What changes beside the link `new`, which was issued in the place of `old`: that one serves on, what else is about ends.
///
/// # Errors
/// `old` is not one that can be renewed.
pub(super) fn renewed<'a>(
    links: impl Iterator<Item = &'a Link> + Clone,
    old: &Link,
    new: LinkId,
    now: UnixMillis,
) -> Result<Vec<Link>, WrongState> {
    let ends: Vec<LinkId> = ended_by_renewal(links.clone(), old, new).collect();
    let ended = links.filter(|link| ends.contains(&link.id()));
    let mut changed: Vec<Link> = ended.filter_map(|link| link.clone().expired(EndReason::Renewed, now).ok()).collect();
    changed.push(old.clone().renewing(now)?);
    Ok(changed)
}

/// A link as revoked by the operator, and what ends with it: what it renews, or is renewed by, is the same relation.
///
/// # Errors
/// It is over already.
pub(super) fn revoked<'a>(
    links: impl Iterator<Item = &'a Link>,
    link: Link,
    now: UnixMillis,
) -> Result<(Link, Vec<Link>), WrongState> {
    // An offer that waits was never accepted: to leave it says nothing of what stands with the peer.
    let is_relation = link.state != LinkState::Waiting;
    let ended = link.ended(EndReason::Operator, now)?;
    let others = links.filter(|other| is_relation && other.peer() == ended.peer() && other.id() != ended.id());
    let others = others.filter_map(|other| other.clone().ended(EndReason::Operator, now).ok()).collect();
    Ok((ended, others))
}

/// The link that an offer has made here, and whose receipt its sender gets again. Others who have the bytes learn nothing by them.
pub(super) fn taken_before<'a>(
    mut links: impl Iterator<Item = &'a Link>,
    token_id: &[u8; 32],
    sender: &NodeId,
) -> Option<&'a Link> {
    let known = links.find(|link| link.token_id == *token_id)?;
    (known.state.is_live() && !known.summary.issuer && known.peer() == *sender).then_some(known)
}

/// The link whose offer a verified receipt confirms.
pub(super) fn confirmed_by<'a>(
    mut links: impl Iterator<Item = &'a Link>,
    me: &NodeId,
    receipt: &Receipt,
) -> Option<&'a Link> {
    if receipt.kind != ReceiptKind::Accepted || receipt.issuer != *me {
        return None;
    }
    links.find(|link| link.summary.issuer && link.token_id == receipt.token_id && link.peer() == receipt.recipient)
}

/// Offers that nobody has accepted and that were to renew one of `changed` which is over, as ended with it.
pub(super) fn orphans<'a>(links: impl Iterator<Item = &'a Link>, changed: &[Link], now: UnixMillis) -> Vec<Link> {
    let over: Vec<LinkId> = changed.iter().filter(|link| link.state.is_over()).map(Link::id).collect();
    let offered = links.filter(|link| link.state == LinkState::Offered);
    let orphans = offered.filter(|link| link.renews.is_some_and(|old| over.contains(&old)));
    let orphans = orphans.filter(|link| changed.iter().all(|other| other.id() != link.id()));
    orphans.filter_map(|link| link.clone().expired(EndReason::NoReceipt, now).ok()).collect()
}

/// What `link` leaves behind that has run out: whether it was the last of its relation, so that the peer is owed another; and the
/// renewal of it that nobody answered, which ends with it.
pub(super) fn lapsed<'a>(links: impl Iterator<Item = &'a Link>, link: &Link, now: UnixMillis) -> (bool, Vec<Link>) {
    let others = links.filter(|other| other.peer() == link.peer() && other.id() != link.id());
    let (ended, others): (Vec<&Link>, Vec<&Link>) = others.partition(|other| other.state.is_over());
    let (orphans, others): (Vec<&Link>, Vec<&Link>) =
        others.into_iter().partition(|other| other.renews == Some(link.id()) && other.state == LinkState::Offered);
    // An offer that nobody answered is made again for as long as the link is remembered that it was to follow.
    let ran_out = |link: &Link| matches!(link.reason, EndReason::Life | EndReason::MethodRetired);
    let is_last = others.is_empty() && (ran_out(link) || ended.into_iter().any(ran_out));
    let orphans = orphans.into_iter().filter_map(|orphan| orphan.clone().expired(EndReason::NoReceipt, now).ok());
    (is_last, orphans.collect())
}

/// A link whose row the key process does not open. It holds two links of a peer: a third row, of a link that was renewed twice
/// over, has nothing to open.
///
/// # Errors
/// It is over already.
pub(super) fn row_refused<'a>(
    mut links: impl Iterator<Item = &'a Link>,
    link: Link,
    now: UnixMillis,
) -> Result<Link, WrongState> {
    let is_renewed = links.any(|other| other.renews == Some(link.id()) && other.state.is_live());
    ended_for(link, if is_renewed { EndReason::Renewed } else { EndReason::RowRefused }, now)
}

/// What has been renewed and is not needed any more, and what was to be renewed and was not.
pub(super) fn outlived(links: &[Link], allowed: MethodSet, now: UnixMillis) -> Vec<Link> {
    let turns = links.iter().filter_map(|link| turn(link, links.iter(), allowed, now));
    turns
        .filter_map(|turn| match turn {
            Turn::Outlived(link) | Turn::Settled(link) => Some(*link),
            Turn::Renew => None,
        })
        .collect()
}
