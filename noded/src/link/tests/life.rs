//! One link through its life, in virtual time.

use std::time::Duration;

use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::CLOCK_GRACE;
use openred_proto::method::Method;
use openred_proto::vault::LinkSummary;

use crate::link::state::{Aged, EndReason, Link, LinkState, SHOWN_AFTER_END, TokenMatch, WAITS};

pub(super) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DIRECTORY: NodeId = NodeId::from_bytes([0xd1; 32]);

pub(super) fn summary(link: u8, peer: u8, issuer: bool, not_before: UnixMillis) -> LinkSummary {
    LinkSummary {
        link: LinkId::from_bytes([link; 16]),
        peer: NodeId::from_bytes([peer; 32]),
        issuer,
        method: Method::Alpha,
        epoch: 1,
        not_before,
        not_after: not_before.plus(HOUR * 24),
        registered: None,
    }
}

pub(super) fn offered(link: u8, peer: u8) -> Link {
    Link::issued(summary(link, peer, true, NOW), vec![1], vec![2], [link; 32], DIRECTORY, NOW)
}

pub(super) fn accepted(link: u8, peer: u8) -> Link {
    Link::accepted(summary(link, peer, false, NOW), vec![1], vec![3], [link; 32], DIRECTORY, NOW)
}

pub(super) fn waiting(link: u8, peer: u8) -> Link {
    Link::waiting(summary(link, peer, false, NOW), vec![2], [link; 32], DIRECTORY, NOW)
}

#[test]
fn an_issuer_goes_from_offered_over_pending_to_active() {
    let later = NOW.plus(HOUR);
    let link = offered(1, 2).with_receipt(vec![9], later).unwrap();
    assert_eq!((link.state, link.receipt.as_slice(), link.offer.len()), (LinkState::Pending, &[9][..], 0));
    let link = link.with_handshake(true, 5, [7; 16], later).unwrap();
    assert_eq!((link.state, link.sent_counter, link.mutual_link), (LinkState::Active, 5, Some([7; 16])));
    let link = link.with_handshake(true, 3, [8; 16], later).unwrap();
    assert_eq!(link.sent_counter, 5, "a counter never goes back");
    let link = link.with_handshake(false, 4, [8; 16], later).unwrap();
    assert_eq!((link.sent_counter, link.received_counter), (5, 4));
    assert_eq!(link.with_match(true, later).matched, TokenMatch::Matched);
}

#[test]
fn of_handshakes_that_cross_both_sides_show_the_same_mutual_link() {
    let (first, second) = ((true, 1, [7; 16]), (false, 2, [8; 16]));
    let seen = |order: [(bool, u64, [u8; 16]); 2]| {
        order.into_iter().fold(offered(1, 2), |link, (initiator, counter, mutual_link)| {
            link.with_handshake(initiator, counter, mutual_link, NOW).unwrap()
        })
    };
    assert_eq!(seen([first, second]).mutual_link, seen([second, first]).mutual_link);
    let link = seen([first, second]).with_handshake(true, 3, [1; 16], NOW.plus(HOUR)).unwrap();
    assert_eq!(link.mutual_link, Some([1; 16]), "a later one stands for itself");
}

#[test]
fn a_handshake_may_come_before_the_receipt() {
    let link = offered(1, 2).with_handshake(false, 1, [7; 16], NOW).unwrap();
    assert_eq!((link.state, link.offer.len()), (LinkState::Active, 0), "the peer proved that it holds its token");
    let link = link.with_receipt(vec![9], NOW).unwrap();
    assert_eq!((link.state, link.receipt.as_slice()), (LinkState::Active, &[9][..]));
}

#[test]
fn nothing_leads_out_of_the_end() {
    for reason in [EndReason::Operator, EndReason::Replaced, EndReason::CrossedOffer, EndReason::RowRefused] {
        let ended = offered(1, 2).ended(reason, NOW).unwrap();
        assert_eq!((ended.state, ended.reason, ended.vault_told), (LinkState::Revoked, reason, false));
        assert!(ended.clone().with_receipt(vec![9], NOW).is_err());
        assert!(ended.clone().with_handshake(true, 1, [0; 16], NOW).is_err());
        assert!(ended.ended(EndReason::Operator, NOW).is_err());
    }
    assert!(waiting(1, 2).with_receipt(vec![9], NOW).is_err(), "not this node's offer");
    assert!(waiting(1, 2).with_handshake(true, 1, [0; 16], NOW).is_err(), "not accepted");
    assert!(waiting(1, 2).ended(EndReason::Operator, NOW).unwrap().vault_told, "the key process knows nothing of it");
}

#[test]
fn an_offer_waits_a_week_or_until_its_own_end() {
    let day = waiting(1, 2);
    assert_eq!(day.waits_until(), Some(day.summary.not_after.plus(CLOCK_GRACE)));
    let mut month = waiting(1, 2);
    month.summary.not_after = NOW.plus(HOUR * 24 * 30);
    let end = NOW.plus(WAITS);
    assert_eq!((month.waits_until(), month.aged(end)), (Some(end), None));
    let Some(Aged::Expired(left)) = month.aged(end.plus(Duration::from_millis(1))) else { panic!("it waits on") };
    assert_eq!((left.state, left.reason, left.waits_until()), (LinkState::Expired, EndReason::NotAccepted, None));
    assert!(left.vault_told, "the key process knows nothing of it");
    assert_eq!((accepted(1, 2).waits_until(), offered(1, 2).waits_until()), (None, None));
}

#[test]
fn time_expires_then_purges() {
    let link = offered(1, 2);
    let end = link.summary.not_after.plus(CLOCK_GRACE);
    assert_eq!(link.aged(end), None, "by the peer's clock it may live still");
    assert!(accepted(1, 2).is_usable(end));
    let over = end.plus(Duration::from_millis(1));
    let Some(Aged::Expired(expired)) = link.aged(over) else { panic!("not expired") };
    assert_eq!((expired.state, expired.reason), (LinkState::Expired, EndReason::NoReceipt));
    assert!(!accepted(1, 2).is_usable(over));
    let Some(Aged::Expired(active)) = accepted(1, 2).aged(over) else { panic!("not expired") };
    assert_eq!(active.reason, EndReason::Life);
    let long_after = over.plus(SHOWN_AFTER_END).plus(HOUR);
    assert_eq!(expired.aged(long_after), None, "kept until the key process has been told");
    let told = Link { vault_told: true, ..*expired };
    assert_eq!(told.aged(over.plus(HOUR)), None, "still shown");
    assert_eq!(told.aged(long_after), Some(Aged::Purge));
}
