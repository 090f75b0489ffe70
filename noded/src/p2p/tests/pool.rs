//! The pool by itself: who leaves when it is full, who does not, and what a sweep takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use openred_proto::vault::{LinkKeys, RequestKeys, SessionGrant};

use crate::p2p::pool::{Find, Pool, PoolFull, Pooled};
use crate::p2p::ports::LinkHandle;
use crate::p2p::settings::{RENEWAL_PAUSE, SUPERSEDED_IDLE};
use crate::p2p::{NetworkError, NetworkSettings};
use crate::session::{Session, SessionLimits};

const LIFE: Duration = Duration::from_secs(3600);

fn peer(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

fn secret(byte: u8) -> Secret<32> {
    Secret::new([byte; 32])
}

/// What a handshake with `peer` gave; `number` is its own.
pub(super) fn grant(peer: NodeId, link: Option<LinkId>, number: u8) -> SessionGrant {
    SessionGrant {
        link,
        peer,
        method: Method::Alpha,
        send: secret(number),
        receive: secret(number ^ 0x80),
        hash: [3; 32],
        mutual_link: [4; 16],
        match_proof: [5; 32],
        peer_card_sequence: 0,
        peer_directory_head: Vec::new(),
    }
}

/// A session with a peer that both sides hold, opened at `now`; `number` is its own.
pub(super) fn session(of: u8, number: u8, now: Instant) -> Arc<Pooled> {
    let keys = || RequestKeys { tag: secret(1), mac1: secret(2) };
    let link = LinkId::from_bytes([of; 16]);
    let grant = grant(peer(of), Some(link), number);
    let handle = LinkHandle {
        link,
        peer: peer(of),
        method: Method::Alpha,
        row: bytes::Bytes::new(),
        keys: LinkKeys { outgoing: keys(), incoming: keys() },
        outgoing_counter: 0,
        incoming_counter: 0,
        not_after: UnixMillis(u64::MAX),
    };
    let (session, _) = Session::as_responder(&grant, now).unwrap();
    let limits = SessionLimits { life: LIFE, ..SessionLimits::default() };
    let pooled = Pooled::new(session.with_limits(limits), Arc::new(handle), None);
    pooled.confirm();
    pooled
}

fn pool(sessions: usize, sessions_per_peer: usize) -> Arc<Pool> {
    Pool::new(&NetworkSettings { sessions, sessions_per_peer, ..NetworkSettings::default() })
}

fn holds(pool: &Pool, session: &Pooled) -> bool {
    pool.by_tag(session.session.incoming_tag()).is_some()
}

#[test]
fn of_those_that_nobody_uses_the_longest_unused_one_makes_room() {
    let begun = Instant::now();
    let at = |seconds| begun + Duration::from_secs(seconds);
    let pool = pool(3, 8);
    let sessions: Vec<_> = (1..=4).map(|number| session(number, number, begun)).collect();
    for (pooled, second) in sessions.iter().zip(0..3) {
        pool.insert(pooled, at(second)).unwrap();
    }
    // The first one is the oldest, and in use; the second has been used last.
    let using = sessions[0].hold(at(3));
    drop(sessions[1].hold(at(4)));
    pool.insert(&sessions[3], at(5)).unwrap();
    assert_eq!(sessions.iter().map(|held| holds(&pool, held)).collect::<Vec<_>>(), [true, true, false, true]);
    drop(using);
}

#[test]
fn where_all_have_one_in_use_only_who_takes_over_comes_in() {
    let now = Instant::now();
    let pool = pool(2, 8);
    let (one, other) = (session(1, 1, now), session(2, 2, now));
    let mut using = Vec::new();
    for pooled in [&one, &other] {
        pool.insert(pooled, now).unwrap();
        using.push(pooled.hold(now));
    }
    assert!(!pool.has_room(&peer(3)));
    assert_eq!(pool.insert(&session(3, 3, now), now), Err(PoolFull));
    // A peer that has a session may replace it, until there are twice as many as were asked for.
    for number in [4, 5] {
        let next = session(1, number, now);
        pool.insert(&next, now).unwrap();
        using.push(next.hold(now));
    }
    assert_eq!(pool.insert(&session(1, 6, now), now), Err(PoolFull));
    assert_eq!(pool.all().len(), 4);
    using.clear();
    pool.insert(&session(3, 3, now), now).expect("they are idle now");
}

/// Each holds what one peer may, and keeps it in use.
#[test]
fn a_few_peers_that_use_all_they_may_have_leave_room_for_the_rest() {
    let begun = Instant::now();
    let pool = pool(8, 4);
    let mut using = Vec::new();
    let mut come = |of, number| {
        let pooled = session(of, number, begun);
        pool.insert(&pooled, begun).map(|()| using.push(pooled.hold(begun))).map(|()| pooled)
    };
    for number in 1..=8 {
        come(1 + number % 2, number).unwrap();
    }
    let honest: Vec<_> = (11..=14).map(|number| come(number, number).unwrap()).collect();
    let of = |number| pool.all().iter().filter(|held| held.session.peer == peer(number)).count();
    assert_eq!((of(1), of(2), pool.all().len()), (2, 2, 8), "each that came took the place of one of whoever had most");
    // A peer with one session never makes way, so that none can be pushed out by another that has as much.
    for number in [15, 16] {
        come(number, number).unwrap();
    }
    assert_eq!((of(1), of(2)), (1, 1));
    assert_eq!((come(17, 17).unwrap_err(), pool.has_room(&peer(17))), (PoolFull, false));
    assert!(honest.iter().all(|held| holds(&pool, held)));
}

#[test]
fn one_peer_fills_its_own_places_alone() {
    let begun = Instant::now();
    let pool = pool(100, 2);
    let other = session(9, 9, begun);
    pool.insert(&other, begun).unwrap();
    let mut last = None;
    for number in 1..=6 {
        let pooled = session(1, number, begun);
        pool.insert(&pooled, begun + Duration::from_secs(u64::from(number))).unwrap();
        last = Some(pooled);
    }
    assert_eq!(pool.all().len(), 3);
    assert!(holds(&pool, &other) && holds(&pool, last.as_ref().unwrap()));
    let held: Vec<_> = pool.all().iter().map(|pooled| pooled.hold(begun)).collect();
    assert_eq!(pool.insert(&session(1, 7, begun), begun), Err(PoolFull), "also where the pool has room");
    drop(held);
}

#[test]
fn idle_sessions_serve_no_request_of_ours_and_go_a_little_later() {
    let begun = Instant::now();
    let idle = NetworkSettings::default().session_idle;
    let (pool, pooled) = (pool(9, 9), session(1, 1, begun));
    pool.insert(&pooled, begun).unwrap();
    assert!(pool.find(&peer(1), begun + idle - Duration::from_secs(1)).is_some());
    assert!(pool.find(&peer(1), begun + idle).is_none());
    pool.sweep(begun + idle);
    assert!(holds(&pool, &pooled), "the peer may count from a later moment");
    let using = pooled.hold(begun);
    pool.sweep(begun + idle + SUPERSEDED_IDLE);
    assert!(holds(&pool, &pooled) && pool.find(&peer(1), begun + idle).is_some(), "in use");
    drop(using);
    pool.sweep(Instant::now() + idle + SUPERSEDED_IDLE);
    assert!(!holds(&pool, &pooled));
}

#[test]
fn one_that_another_took_over_from_goes_sooner() {
    let begun = Instant::now();
    let (pool, before, next) = (pool(9, 9), session(1, 1, begun), session(1, 2, begun));
    pool.insert(&before, begun).unwrap();
    pool.insert(&next, begun).unwrap();
    pool.sweep(begun + SUPERSEDED_IDLE);
    assert!(!holds(&pool, &before) && holds(&pool, &next));
}

#[test]
fn a_renewal_is_begun_once_for_the_newest_when_it_is_due_and_after_a_failure_later() {
    let begun = Instant::now();
    let (pool, pooled) = (pool(9, 9), session(1, 1, begun));
    pool.insert(&pooled, begun).unwrap();
    assert!(pool.renew_due(&pooled, begun).is_none(), "not due");
    let due = begun + LIFE / 16 * 15;
    let using = pooled.hold(due);
    let opening = pool.renew_due(&pooled, due).unwrap();
    assert!(opening.is_renewal() && pool.renew_due(&pooled, due).is_none(), "one at a time");
    opening.end(Err(NetworkError::TimedOut), due);
    assert!(pool.renew_due(&pooled, due + RENEWAL_PAUSE / 2).is_none(), "a pause");
    let again = due + RENEWAL_PAUSE;
    pool.renew_due(&pooled, again).expect("after it").end(Err(NetworkError::TimedOut), again);
    assert!(pool.renew_due(&pooled, again + RENEWAL_PAUSE).is_none(), "a longer one");
    let later = again + 2 * RENEWAL_PAUSE;
    pool.renew_due(&pooled, later).expect("after that").end(Ok(()), later);
    assert!(pool.renew_due(&pooled, later).is_some(), "what went well leaves no pause");
    let next = session(1, 2, later);
    pool.insert(&next, later).unwrap();
    assert!(pool.renew_due(&pooled, later).is_none(), "another has taken over");
    assert!(matches!(pool.find_or_open(peer(1), later), Find::Session(found) if Arc::ptr_eq(&found, &next)));
    assert!(!pool.is_at_limit(&peer(1), later) && pool.is_at_limit(&peer(1), begun + LIFE));
    drop(using);
}
