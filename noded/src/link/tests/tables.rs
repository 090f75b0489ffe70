//! The tables of `docs/states.md` on links, rendered by asking the rules.

mod handshakes;

use std::time::Duration;

use openred_proto::checked::link_sync::{LinkSync, SyncEntry, SyncState};
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::CLOCK_GRACE;
use openred_proto::method::MethodSet;

use super::life::{HOUR, NOW, accepted, offered, summary, waiting};
use crate::config::IncomingPolicy;
use crate::link::judge::{Situation, Verdict, judge, judge_renewal};
use crate::link::renewal::{Turn, turn};
use crate::link::state::{Aged, EndReason, Link, LinkState, SHOWN_AFTER_END, WrongState};
use crate::link::sync::{Repair, repairs};
use crate::rendered::{is_current, table};

const PEER: u8 = 6;
/// A minute after everything that stands.
const LATER: UnixMillis = UnixMillis(NOW.0 + 60_000);

/// A link in each state that it can have, as its issuer and as its acceptor.
fn in_every_state() -> Vec<(String, Link)> {
    let over = |link: Link, state| match state {
        LinkState::Expired => link.expired(EndReason::Life, NOW).unwrap(),
        _ => link.ended(EndReason::Operator, NOW).unwrap(),
    };
    let mut links = Vec::new();
    for state in LinkState::ALL {
        let issued = match state {
            LinkState::Offered => Some(offered(1, PEER)),
            LinkState::Waiting => None,
            LinkState::Pending => Some(confirmed(1)),
            LinkState::Active => Some(used(confirmed(1))),
            LinkState::Renewing => Some(used(confirmed(1)).renewing(NOW).unwrap()),
            LinkState::Expired | LinkState::Revoked => Some(over(offered(1, PEER), state)),
        };
        let taken = match state {
            LinkState::Offered => None,
            LinkState::Waiting => Some(waiting(1, PEER)),
            LinkState::Pending => Some(accepted(1, PEER)),
            LinkState::Active => Some(used(accepted(1, PEER))),
            LinkState::Renewing => Some(used(accepted(1, PEER)).renewing(NOW).unwrap()),
            LinkState::Expired | LinkState::Revoked => Some(over(accepted(1, PEER), state)),
        };
        links.extend(issued.map(|link| (format!("{}, issuer", state.name()), link)));
        links.extend(taken.map(|link| (format!("{}, acceptor", state.name()), link)));
    }
    // A handshake came before the receipt.
    links.push(("active, issuer, without a receipt".to_owned(), used(offered(1, PEER))));
    links
}

/// One that this node has offered, and whose receipt is here.
fn confirmed(number: u8) -> Link {
    offered(number, PEER).with_receipt(vec![1], NOW).unwrap()
}

fn used(link: Link) -> Link {
    link.with_handshake(true, 1, [0; 16], NOW).unwrap()
}

fn to(before: &Link, after: Result<Link, WrongState>) -> String {
    match after {
        Ok(link) if link.state == before.state => "stays".to_owned(),
        Ok(link) => format!("**{}**", link.state.name()),
        Err(_) => "refused".to_owned(),
    }
}

fn ages(link: &Link, now: UnixMillis) -> String {
    match link.aged(now) {
        None => "stays".to_owned(),
        Some(Aged::Expired(next)) => format!("**{}**", next.state.name()),
        Some(Aged::Purge) => "purged".to_owned(),
    }
}

#[test]
fn one_link_and_what_happens_to_it() {
    let past = offered(1, PEER).summary.not_after.plus(CLOCK_GRACE + Duration::from_secs(1));
    let rows = in_every_state().into_iter().map(|(name, link)| {
        let receipt = to(&link, link.clone().with_receipt(vec![1], LATER));
        let handshake = to(&link, link.clone().with_handshake(false, 1, [0; 16], LATER));
        let renewed = to(&link, link.clone().renewing(LATER));
        let settled = to(&link, Ok(link.clone().settled(LATER)));
        let ended = to(&link, link.clone().ended(EndReason::Operator, LATER));
        let told = Link { vault_told: true, ..link.clone() };
        let purged = ages(&told, past.plus(SHOWN_AFTER_END + HOUR));
        let purged = if link.state.is_over() { purged } else { "—".to_owned() };
        vec![name, receipt, handshake, renewed, settled, ended, ages(&link, past), purged]
    });
    let head = [
        "where it stands",
        "receipt",
        "handshake",
        "another is offered or accepted in its place",
        "that one came to nothing",
        "revoked, replaced, refused",
        "life and grace are over",
        "7 days later",
    ];
    is_current("link", &table(&head, &rows.collect::<Vec<_>>()));
}

fn said(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept(ends) if ends.is_empty() => "accept".to_owned(),
        Verdict::Accept(ends) => {
            let reasons: Vec<String> = ends.iter().map(|(_, reason)| format!("{reason:?}")).collect();
            format!("accept; what stands ends: {}", reasons.join(", "))
        }
        Verdict::Wait(_) => "wait for the operator".to_owned(),
        Verdict::Repeat(_) => "the same receipt".to_owned(),
        Verdict::StillWaiting => "waits already".to_owned(),
        Verdict::Refuse(refused) => format!("leave: {refused:?}"),
    }
}

/// What may stand with the peer when its offer comes.
fn standing() -> Vec<(String, Vec<Link>)> {
    let mut cases = vec![("nothing".to_owned(), Vec::new())];
    cases.extend(in_every_state().into_iter().map(|(name, link)| (name, vec![link])));
    let renewal = offered(3, PEER).in_place_of(Some(used(offered(1, PEER)).id()));
    let renewing = used(confirmed(1)).renewing(NOW).unwrap();
    cases.push(("renewing, and this node's renewal offered".to_owned(), vec![renewing, renewal]));
    cases
}

#[test]
fn what_becomes_of_a_first_offer() {
    let rows = standing().into_iter().map(|(name, links)| {
        let judged = |me: u8, policy, made: UnixMillis| {
            let me = NodeId::from_bytes([me; 32]);
            let situation = Situation { me, policy, allow: &[], approved: false, denied: false, same_sector: false };
            said(&judge(situation, links.iter(), &summary(99, PEER, false, made), &[99; 32], LATER))
        };
        let (lower, higher) = (PEER - 1, PEER + 1);
        vec![
            name,
            judged(lower, IncomingPolicy::Open, LATER),
            judged(higher, IncomingPolicy::Open, LATER),
            judged(lower, IncomingPolicy::Open, NOW),
            judged(lower, IncomingPolicy::Ask, LATER),
            judged(lower, IncomingPolicy::AllowList, LATER),
        ]
    });
    let head = [
        "what stands with the peer",
        "the policy admits, this id is lower",
        "the policy admits, this id is higher",
        "older than what stands",
        "the operator is asked",
        "the policy does not admit",
    ];
    is_current("first offer", &table(&head, &rows.collect::<Vec<_>>()));
}

#[test]
fn what_becomes_of_a_renewal() {
    let rows = standing().into_iter().map(|(name, links)| {
        let old = used(offered(1, PEER)).id();
        let judged = |me: u8, now: UnixMillis| {
            let me = NodeId::from_bytes([me; 32]);
            said(&judge_renewal(me, links.iter(), &old, &summary(99, PEER, false, LATER), &[99; 32], now))
        };
        let patient = LATER.plus(Duration::from_secs(360));
        vec![name, judged(PEER - 1, LATER), judged(PEER + 1, LATER), judged(PEER - 1, patient)]
    });
    let head = [
        "where the link stands that it renews",
        "this id is lower",
        "this id is higher",
        "this id is lower, seven minutes on",
    ];
    is_current("renewal", &table(&head, &rows.collect::<Vec<_>>()));
}

#[test]
fn what_time_asks_of_a_renewal() {
    let turned = |link: &Link, next: Option<Link>, now: UnixMillis, allowed: MethodSet| {
        let links: Vec<Link> = std::iter::once(link.clone()).chain(next).collect();
        match turn(link, links.iter(), allowed, now) {
            None => "nothing".to_owned(),
            Some(Turn::Renew) => "renew".to_owned(),
            Some(Turn::Outlived(_)) => "it ends: Renewed".to_owned(),
            Some(Turn::Settled(_)) => "it is active again".to_owned(),
        }
    };
    let next = |link: Link| link.in_place_of(Some(offered(1, PEER).id()));
    let cases: Vec<(&str, Link, Option<Link>)> = vec![
        ("issued, none in its place", used(offered(1, PEER)), None),
        ("accepted, none in its place", used(accepted(1, PEER)), None),
        ("renewing, none in its place", used(offered(1, PEER)).renewing(NOW).unwrap(), None),
        ("renewing, the next is offered", used(offered(1, PEER)).renewing(NOW).unwrap(), Some(next(offered(2, PEER)))),
        ("renewing, the next has its receipt", used(offered(1, PEER)).renewing(NOW).unwrap(), Some(next(confirmed(2)))),
        (
            "renewing, the next is accepted",
            used(accepted(1, PEER)).renewing(NOW).unwrap(),
            Some(next(accepted(2, PEER))),
        ),
        (
            "renewing, the next is accepted and used",
            used(accepted(1, PEER)).renewing(NOW).unwrap(),
            Some(next(used(accepted(2, PEER)))),
        ),
    ];
    let rows = cases.into_iter().map(|(name, link, next)| {
        let at = |hours: u32| turned(&link, next.clone(), NOW.plus(HOUR * hours), MethodSet::ALL);
        let retired = turned(&link, next.clone(), NOW, MethodSet::EMPTY);
        vec![name.to_owned(), at(1), at(17), at(21), at(25), retired]
    });
    let head = [
        "a link of 24 hours",
        "at its beginning",
        "past two thirds",
        "past five sixths",
        "past its life, within grace",
        "its method is retired",
    ];
    is_current("turn", &table(&head, &rows.collect::<Vec<_>>()));
}

#[test]
fn what_a_comparison_calls_for() {
    let rows = in_every_state().into_iter().map(|(name, link)| {
        let looked = |said: Option<SyncState>, receipt: &[u8], after: u64| {
            let entry = said.map(|state| SyncEntry { link: link.id(), state, receipt: receipt.to_vec() });
            let theirs = LinkSync { entries: entry.into_iter().collect() };
            let now = UnixMillis(NOW.0 + after * 1000);
            match repairs(std::iter::once(&link), &NodeId::from_bytes([PEER; 32]), &theirs, now).first() {
                None => "nothing".to_owned(),
                Some(Repair::Receipt(_)) => "take the receipt".to_owned(),
                Some(Repair::End(_, reason)) => format!("end it: {reason:?}"),
            }
        };
        let offered = looked(Some(SyncState::Offered), b"", 60);
        let waiting = looked(Some(SyncState::Waiting), b"", 60);
        let live = looked(Some(SyncState::Live), b"receipt", 60);
        let over = looked(Some(SyncState::Over), b"", 60);
        vec![name, offered, waiting, live, over, looked(None, b"", 10), looked(None, b"", 60)]
    });
    let head = [
        "where it stands here",
        "offered there",
        "waiting there",
        "live there, with a receipt",
        "over there",
        "not there, changed 10 s ago",
        "not there, changed 60 s ago",
    ];
    is_current("sync", &table(&head, &rows.collect::<Vec<_>>()));
}
