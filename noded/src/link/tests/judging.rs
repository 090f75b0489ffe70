//! What becomes of an offer, by policy and by what stands with its sender.

use std::time::Duration;

use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::CLOCK_GRACE;

use super::life::{HOUR, NOW, accepted, offered, summary, waiting};
use crate::config::IncomingPolicy;
use crate::link::judge::{RefusedOffer, Situation, Verdict, WAITING, judge, judge_renewal};
use crate::link::state::{EndReason, Link};

const ME: u8 = 5;
pub(super) const LATER: UnixMillis = UnixMillis(NOW.0 + 60_000);

fn situation(policy: IncomingPolicy) -> Situation<'static> {
    Situation {
        me: NodeId::from_bytes([ME; 32]),
        policy,
        allow: &[],
        approved: false,
        denied: false,
        same_sector: false,
    }
}

/// An offer of `peer`, made a minute after everything else in these tests.
fn verdict(situation: Situation<'_>, links: &[Link], peer: u8) -> Verdict {
    judge(situation, links.iter(), &summary(99, peer, false, LATER), &[99; 32], LATER)
}

#[test]
fn policies() {
    let accept = Verdict::Accept(Vec::new());
    assert_eq!(verdict(situation(IncomingPolicy::Open), &[], 9), accept);
    assert_eq!(verdict(situation(IncomingPolicy::Ask), &[], 9), Verdict::Wait(None));
    assert_eq!(verdict(Situation { approved: true, ..situation(IncomingPolicy::Ask) }, &[], 9), accept);
    let refused = Verdict::Refuse(RefusedOffer::Policy);
    assert_eq!(verdict(situation(IncomingPolicy::AllowList), &[], 9), refused);
    let allow = [NodeId::from_bytes([9; 32])];
    assert_eq!(verdict(Situation { allow: &allow, ..situation(IncomingPolicy::AllowList) }, &[], 9), accept);
    assert_eq!(verdict(Situation { allow: &allow, ..situation(IncomingPolicy::Ask) }, &[], 9), Verdict::Wait(None));
    assert_eq!(verdict(situation(IncomingPolicy::Sector), &[], 9), refused);
    assert_eq!(verdict(Situation { same_sector: true, ..situation(IncomingPolicy::Sector) }, &[], 9), accept);
}

#[test]
fn whom_the_operator_denied_no_policy_admits() {
    let refused = Verdict::Refuse(RefusedOffer::Denied);
    for policy in [IncomingPolicy::Open, IncomingPolicy::AllowList, IncomingPolicy::Sector, IncomingPolicy::Ask] {
        let allow = [NodeId::from_bytes([9; 32])];
        let denied = Situation { denied: true, same_sector: true, allow: &allow, ..situation(policy) };
        assert_eq!(verdict(denied, &[], 9), refused);
        // Neither does an offer that waits from before become a link, nor its repetition.
        let link = waiting(1, 9);
        let again = judge(denied, std::iter::once(&link), &link.summary, &link.token_id, LATER);
        assert_eq!(again, refused);
        // What was accepted before stands, and its issuer gets his receipt again.
        let live = accepted(1, 9);
        let again = judge(denied, std::iter::once(&live), &live.summary, &live.token_id, LATER);
        assert_eq!(again, Verdict::Repeat(live.id()));
    }
}

#[test]
fn of_two_offers_that_cross_the_lower_node_id_wins() {
    let open = situation(IncomingPolicy::Open);
    let crossed = vec![(offered(1, 2).id(), EndReason::CrossedOffer)];
    assert_eq!(verdict(open, &[offered(1, 2)], 2), Verdict::Accept(crossed), "theirs goes first");
    assert_eq!(verdict(open, &[offered(1, 9)], 9), Verdict::Refuse(RefusedOffer::OursGoesFirst));
    assert_eq!(verdict(open, &[offered(1, 8)], 9), Verdict::Accept(Vec::new()), "to somebody else");
}

#[test]
fn a_newer_offer_replaces_a_late_one_does_not() {
    let open = situation(IncomingPolicy::Open);
    let standing = accepted(1, 9);
    assert_eq!(
        verdict(open, std::slice::from_ref(&standing), 9),
        Verdict::Accept(vec![(standing.id(), EndReason::Replaced)])
    );
    let late = summary(99, 9, false, NOW);
    let judged = judge(open, std::iter::once(&standing), &late, &[99; 32], LATER);
    assert_eq!(judged, Verdict::Refuse(RefusedOffer::Outdated));
    let ask = situation(IncomingPolicy::Ask);
    assert_eq!(verdict(ask, &[standing], 9), Verdict::Wait(None), "a linked peer's fresh offer is a new request");
}

/// An acceptor's handshake may come before its receipt: what it offered before it took part comes late all the same.
#[test]
fn what_a_peer_offered_before_it_used_a_link_is_late_also_without_its_receipt() {
    let used = |link: Link| link.with_handshake(false, 1, [0; 16], NOW).unwrap();
    let (open, standing) = (situation(IncomingPolicy::Open), used(offered(1, 9)));
    let judged =
        |made: UnixMillis| judge(open, std::iter::once(&standing), &summary(99, 9, false, made), &[99; 32], made);
    assert_eq!(judged(LATER), Verdict::Refuse(RefusedOffer::Outdated));
    let ends = Verdict::Accept(vec![(standing.id(), EndReason::Replaced)]);
    assert_eq!(judged(NOW.plus(HOUR * 4)), ends, "by any clock it lost its state since");
    let old = used(accepted(2, 9)).renewing(NOW).unwrap();
    let links = [old.clone(), used(offered(3, 9)).in_place_of(Some(old.id()))];
    let crossed = summary(99, 9, false, LATER);
    let judged = judge_renewal(open.me, links.iter(), &old.id(), &crossed, &[99; 32], LATER);
    assert_eq!(judged, Verdict::Refuse(RefusedOffer::Outdated));
}

#[test]
fn offers_that_were_seen_before() {
    let again = |link: Link| {
        let summary = link.summary.clone();
        let token = link.token_id;
        judge(situation(IncomingPolicy::Ask), std::iter::once(&link), &summary, &token, LATER)
    };
    assert_eq!(again(accepted(1, 9)), Verdict::Repeat(accepted(1, 9).id()));
    assert_eq!(again(waiting(1, 9)), Verdict::StillWaiting);
    let ended = accepted(1, 9).ended(EndReason::Operator, NOW).unwrap();
    assert_eq!(again(ended), Verdict::Refuse(RefusedOffer::Ended), "a revoked link does not come back by a replay");
    assert_eq!(again(offered(1, 9)), Verdict::Refuse(RefusedOffer::OwnOffer));
}

#[test]
fn own_expired_and_too_many() {
    let open = situation(IncomingPolicy::Open);
    assert_eq!(verdict(open, &[], ME), Verdict::Refuse(RefusedOffer::OwnOffer));
    let old = summary(99, 9, false, NOW);
    let judged =
        judge(open, std::iter::empty(), &old, &[99; 32], old.not_after.plus(CLOCK_GRACE + Duration::from_secs(1)));
    assert_eq!(judged, Verdict::Refuse(RefusedOffer::Expired));
    let judged = judge(open, std::iter::empty(), &old, &[99; 32], old.not_after.plus(HOUR * 2));
    assert_eq!(judged, Verdict::Accept(Vec::new()), "the peer's clock may be two hours behind");
    let full: Vec<Link> = (0..WAITING).map(|number| waiting(u8::try_from(number % 90).unwrap(), 77)).collect();
    assert_eq!(verdict(situation(IncomingPolicy::Ask), &full, 9), Verdict::Refuse(RefusedOffer::TooManyWaiting));
    let again = verdict(situation(IncomingPolicy::Ask), &full, 77);
    assert_eq!(again, Verdict::Wait(Some(full[0].id())), "a peer's newer offer takes the place of its own");
}

#[test]
fn a_link_id_that_is_taken_is_nobodys_to_take_again() {
    for policy in [IncomingPolicy::Open, IncomingPolicy::Ask] {
        for held in [waiting(99, 8), accepted(99, 8), offered(99, 8)] {
            let taken =
                judge(situation(policy), std::iter::once(&held), &summary(99, 9, false, LATER), &[98; 32], LATER);
            assert_eq!(taken, Verdict::Refuse(RefusedOffer::KnownLink));
        }
    }
}
