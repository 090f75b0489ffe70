//! Keeping two nodes' links in step: each tells the other, inside a session, which links it holds with it and where they stand, and
//! draws from the other's list what a crash or a lost message kept from it. The rules are functions of two lists; what they decide is
//! carried out in `inside`.

use std::time::Duration;

use openred_proto::checked::link_sync::{LinkSync, SYNC_ENTRIES, SyncEntry, SyncState};
use openred_proto::id::{LinkId, NodeId, UnixMillis};

use super::renewal::{is_settled, successor};
use super::state::{EndReason, Link, LinkState};

/// A link that changed here this recently may be on its way into the other's list: that it is missing there says nothing yet.
const SETTLING: Duration = Duration::from_secs(30);

/// What a list calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// The peer accepted it, and its receipt was lost.
    Receipt(Vec<u8>),
    /// The peer does not hold it any more: end it.
    End(LinkId, EndReason),
}

/// This node's list for `peer`: what is not over first, then what ended last.
pub(crate) fn list<'a>(links: impl Iterator<Item = &'a Link>, peer: &NodeId) -> LinkSync {
    let mut of_peer: Vec<&Link> = links.filter(|link| link.peer() == *peer).collect();
    of_peer.sort_by_key(|link| (link.state.is_over(), u64::MAX - link.changed_at.0));
    let entry = |link: &&Link| SyncEntry {
        link: link.id(),
        state: said(link.state),
        receipt: if link.state.is_live() && !link.summary.issuer { link.receipt.clone() } else { Vec::new() },
    };
    LinkSync { entries: of_peer.iter().take(SYNC_ENTRIES).map(entry).collect() }
}

const fn said(state: LinkState) -> SyncState {
    match state {
        LinkState::Offered => SyncState::Offered,
        LinkState::Waiting => SyncState::Waiting,
        LinkState::Pending | LinkState::Active | LinkState::Renewing => SyncState::Live,
        LinkState::Expired | LinkState::Revoked => SyncState::Over,
    }
}

/// What the peer's list calls for here. Its word is good for its own half of a link, and no more: nothing begins or comes back by it.
pub(crate) fn repairs<'a>(
    links: impl Iterator<Item = &'a Link> + Clone,
    peer: &NodeId,
    theirs: &LinkSync,
    now: UnixMillis,
) -> Vec<Repair> {
    let own = links.clone().filter(|link| link.peer() == *peer && !link.state.is_over());
    own.filter_map(|link| {
        let said = theirs.entries.iter().find(|entry| entry.link == link.id());
        match said {
            Some(entry) if entry.state == SyncState::Over && link.state != LinkState::Waiting => {
                Some(Repair::End(link.id(), why(links.clone(), link)))
            }
            Some(entry) if link.lacks_receipt() && !entry.receipt.is_empty() => {
                Some(Repair::Receipt(entry.receipt.clone()))
            }
            Some(_) => None,
            // An offer may not have arrived yet. What both had, and the peer has no more, it lost. A full list may leave out.
            None => {
                let is_lost =
                    link.state.is_live() && now > link.changed_at.plus(SETTLING) && theirs.entries.len() < SYNC_ENTRIES;
                is_lost.then(|| Repair::End(link.id(), why(links.clone(), link)))
            }
        }
    })
    .collect()
}

fn why<'a>(links: impl Iterator<Item = &'a Link>, link: &Link) -> EndReason {
    if successor(links, &link.id()).is_some_and(is_settled) { EndReason::Renewed } else { EndReason::PeerEnded }
}

/// Whether an open session is a reason to compare lists: something waits for the peer's word, or stands between two links, or is in
/// use without its receipt, which tells when the peer joined.
pub(crate) fn is_due<'a>(links: impl Iterator<Item = &'a Link>, peer: &NodeId, now: UnixMillis) -> bool {
    let mut own = links.filter(|link| link.peer() == *peer && now > link.changed_at.plus(SETTLING));
    own.any(|link| {
        let lacks_receipt = link.state.is_live() && link.lacks_receipt();
        matches!(link.state, LinkState::Offered | LinkState::Renewing) || lacks_receipt
    })
}
