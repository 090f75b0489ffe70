//! Renewal as rules: when a link is due, who renews it, and until when the renewed one serves beside the one in its place. Sans-IO:
//! links and time in, what is to be done out.
//!
//! Two live links with a peer at most: the key process holds no more. What is renewed while another is still about ends that one.

use openred_proto::id::{LinkId, UnixMillis};
use openred_proto::method::MethodSet;

use super::state::{EndReason, Link, LinkState};

/// When this node renews a link (PROTOCOL 4): its issuer at two thirds of its life; its acceptor, in case the issuer does not,
/// at five sixths. Counted from when this node got it, by this node's own clock: the peer's may be hours off.
pub(crate) fn renewal_at(link: &Link) -> UnixMillis {
    let life = link.life();
    link.created_at.plus(if link.summary.issuer { life / 3 * 2 } else { life / 6 * 5 })
}

/// The link that is, or is to be, in the place of `link`.
pub(crate) fn successor<'a>(mut links: impl Iterator<Item = &'a Link>, link: &LinkId) -> Option<&'a Link> {
    links.find(|other| other.renews == Some(*link) && !other.state.is_over())
}

/// Whether both sides are known to hold it: an issuer knows by the receipt, an acceptor when the issuer has used it.
pub(crate) const fn is_settled(link: &Link) -> bool {
    match link.state {
        LinkState::Pending => link.summary.issuer,
        LinkState::Active | LinkState::Renewing => true,
        LinkState::Offered | LinkState::Waiting | LinkState::Expired | LinkState::Revoked => false,
    }
}

/// What renewal asks of a link now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Another one is to be offered in its place.
    Renew,
    /// It has been renewed, and is not needed any more: keep this instead.
    Outlived(Box<Link>),
    /// What was to take its place came to nothing: keep this instead.
    Settled(Box<Link>),
}

/// Looks at one of `links`. One whose method is not `allowed` any more is due whatever its age (PROTOCOL 3), and ends as soon as
/// there is another.
pub(crate) fn turn<'a>(
    link: &Link,
    links: impl Iterator<Item = &'a Link> + Clone,
    allowed: MethodSet,
    now: UnixMillis,
) -> Option<Turn> {
    if !link.state.is_live() {
        return None;
    }
    let is_retired = !link.summary.is_in(allowed);
    match successor(links.clone(), &link.id()) {
        // No grace for clocks: that is for links that nothing has replaced.
        Some(newer) if is_settled(newer) && (is_retired || now > link.summary.not_after) => {
            link.clone().expired(EndReason::Renewed, now).ok().map(|link| Turn::Outlived(Box::new(link)))
        }
        Some(_) => None,
        None if link.state == LinkState::Renewing => Some(Turn::Settled(Box::new(link.clone().settled(now)))),
        None => (is_retired || renewal_at(link) <= now).then_some(Turn::Renew),
    }
}

/// What ends when `old` is renewed by `new`: all else that is about with the peer but offers that wait for the operator.
pub(crate) fn ended_by_renewal<'a, I: Iterator<Item = &'a Link>>(
    links: I,
    old: &Link,
    new: LinkId,
) -> impl Iterator<Item = LinkId> + use<'a, I> {
    let (peer, old) = (old.peer(), old.id());
    let others = links.filter(move |link| link.peer() == peer && link.id() != old && link.id() != new);
    others.filter(|link| !link.state.is_over() && link.state != LinkState::Waiting).map(Link::id)
}
