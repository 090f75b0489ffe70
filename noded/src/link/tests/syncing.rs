//! Two nodes' lists: what each draws from the other's, and that nothing begins, comes back or is another's business by it.

use openred_proto::checked::link_sync::{LinkSync, SYNC_ENTRIES, SyncEntry, SyncState};
use openred_proto::id::{LinkId, NodeId, UnixMillis};

use super::life::{NOW, accepted, offered, waiting};
use super::nodes::{Cut, TestNode, pair};
use super::renewing::{due, linked, lose_a_renewal};
use super::services::{deliver_offer, run, states};
use crate::clock;
use crate::config::IncomingPolicy::Open;
use crate::link::state::{EndReason, Link, LinkState};
use crate::link::sync::{Repair, is_due, list, repairs};

const PEER: NodeId = NodeId::from_bytes([2; 32]);
const SETTLED: UnixMillis = UnixMillis(NOW.0 + 31_000);

fn active(link: Link) -> Link {
    link.with_handshake(true, 1, [0; 16], NOW).unwrap()
}

fn says(link: &Link, state: SyncState) -> LinkSync {
    LinkSync { entries: vec![SyncEntry { link: link.id(), state, receipt: Vec::new() }] }
}

fn look(links: &[Link], theirs: &LinkSync) -> Vec<Repair> {
    repairs(links.iter(), &PEER, theirs, SETTLED)
}

#[test]
fn what_is_over_or_lost_there_ends_here_and_nothing_else() {
    for link in [active(offered(1, 2)), accepted(1, 2), offered(1, 2)] {
        let ends = vec![Repair::End(link.id(), EndReason::PeerEnded)];
        assert_eq!(look(std::slice::from_ref(&link), &says(&link, SyncState::Over)), ends);
    }
    let link = active(accepted(1, 2));
    let ends = vec![Repair::End(link.id(), EndReason::PeerEnded)];
    assert_eq!(look(std::slice::from_ref(&link), &LinkSync::default()), ends, "lost there");
    assert_eq!(repairs([&link].into_iter(), &PEER, &LinkSync::default(), NOW), [], "it may be on its way");
    let full = LinkSync {
        entries: (0..SYNC_ENTRIES)
            .map(|number| SyncEntry {
                link: LinkId::from_bytes([100 + u8::try_from(number).unwrap(); 16]),
                state: SyncState::Live,
                receipt: Vec::new(),
            })
            .collect(),
    };
    assert_eq!(look(std::slice::from_ref(&link), &full), [], "a full list may leave out");
    for state in [SyncState::Live, SyncState::Offered, SyncState::Waiting] {
        assert_eq!(look(std::slice::from_ref(&link), &says(&link, state)), []);
    }
    for silent in [offered(1, 2), waiting(1, 2)] {
        assert_eq!(look(&[silent], &LinkSync::default()), [], "an offer may not have arrived");
    }
    let anothers = active(accepted(1, 9));
    assert_eq!(look(std::slice::from_ref(&anothers), &says(&anothers, SyncState::Over)), [], "another peer's link");
    let over = link.clone().ended(EndReason::Operator, NOW).unwrap();
    assert_eq!(look(std::slice::from_ref(&over), &says(&over, SyncState::Live)), [], "nothing comes back");
}

#[test]
fn a_renewed_one_that_is_over_there_was_renewed() {
    let old = active(offered(1, 2)).renewing(NOW).unwrap();
    let newer = active(offered(3, 2).in_place_of(Some(old.id())));
    let mut theirs = says(&old, SyncState::Over);
    theirs.entries.extend(says(&newer, SyncState::Live).entries);
    assert_eq!(look(&[old.clone(), newer], &theirs), [Repair::End(old.id(), EndReason::Renewed)]);
}

#[test]
fn lists_tell_receipts_of_what_lives_and_the_living_first() {
    let over = accepted(1, 2).ended(EndReason::Operator, NOW).unwrap();
    let (live, own, anothers) = (accepted(3, 2), offered(4, 2), accepted(5, 9));
    let said = list([&over, &live, &own, &anothers].into_iter(), &PEER);
    let states: Vec<_> = said.entries.iter().map(|entry| (entry.state, entry.receipt.len())).collect();
    assert_eq!(said.entries.len(), 3);
    assert!(states[..2].contains(&(SyncState::Live, 1)) && states[..2].contains(&(SyncState::Offered, 0)));
    assert_eq!(states[2], (SyncState::Over, 0));
    assert!(is_due([&own].into_iter(), &PEER, SETTLED) && !is_due([&own].into_iter(), &PEER, NOW));
    assert!(!is_due([&live, &anothers].into_iter(), &PEER, SETTLED));
}

#[test]
fn a_link_that_was_used_before_its_receipt_came_still_wants_it() {
    let used = active(offered(1, 2));
    let mut theirs = says(&used, SyncState::Live);
    theirs.entries[0].receipt = vec![7];
    assert_eq!(look(std::slice::from_ref(&used), &theirs), [Repair::Receipt(vec![7])]);
    assert!(is_due([&used].into_iter(), &PEER, SETTLED) && !is_due([&used].into_iter(), &PEER, NOW));
    let confirmed = active(offered(1, 2).with_receipt(vec![7], NOW).unwrap());
    assert_eq!(look(std::slice::from_ref(&confirmed), &theirs), []);
    assert!(!is_due([&confirmed].into_iter(), &PEER, SETTLED));
}

#[test]
fn a_lost_receipt_comes_with_the_list() {
    run(async {
        let (alice, bob) = pair(Open).await;
        alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        alice.reaches(&bob);
        assert_eq!(alice.links.sync(bob.id).await, Ok(1));
        assert_eq!(alice.links.sync(bob.id).await, Ok(0), "asked again at once, it waits its turn");
        assert_eq!((states(&alice), states(&bob)), (vec![LinkState::Pending], vec![LinkState::Pending]));
    });
}

#[test]
fn a_revocation_is_heard_at_once_or_with_the_list() {
    run(async {
        let (alice, bob) = linked(Open).await;
        alice.reaches(&bob);
        let id = alice.links.all()[0].id();
        alice.links.revoke(id).await.unwrap();
        assert_eq!((states(&bob), bob.links.all()[0].reason), (vec![LinkState::Revoked], EndReason::PeerEnded));
    });
    run(async {
        let (alice, bob) = linked(Open).await;
        let wire = bob.reaches(&alice);
        *wire.cut.lock().unwrap() = Cut::Request;
        assert!(bob.links.sync(alice.id).await.is_err());
        let id = alice.links.all()[0].id();
        alice.links.revoke(id).await.unwrap();
        assert_eq!(states(&bob), [LinkState::Active], "not heard");
        *wire.cut.lock().unwrap() = Cut::No;
        assert_eq!(bob.links.sync(alice.id).await, Ok(1));
        assert_eq!(states(&bob), [LinkState::Revoked]);
    });
}

#[test]
fn a_peer_that_does_not_hear_a_farewell_holds_up_no_other_link() {
    run(async {
        use crate::p2p::ports::Links as _;
        let (alice, bob) = linked(Open).await;
        let wire = alice.reaches(&bob);
        *wire.cut.lock().unwrap() = Cut::Silent;
        let id = alice.links.all()[0].id();
        let mut revoking = Box::pin(alice.links.revoke(id));
        let ended = async {
            while states(&alice) != [LinkState::Revoked] {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = &mut revoking => panic!("nobody was told"),
            () = ended => {}
        }
        assert!(alice.links.turn.try_lock().is_ok(), "others go on");
        assert!(alice.links.for_peer(&bob.id).is_none() && !alice.told.all().contains("removed"));
        // The operator waits no longer.
        drop(revoking);
        assert!(alice.told.all().ends_with("removed forgotten"), "{}", alice.told.all());
    });
}

/// What Alice's key process holds.
async fn held(node: &TestNode) -> usize {
    node.vault().held(None).await.unwrap().len()
}

#[test]
fn what_a_crash_left_to_the_key_process_alone_is_ended_at_the_next_start() {
    run(async {
        let (alice, bob) = linked(Open).await;
        alice.links.tend(clock::now()).await;
        let old = alice.links.all()[0].clone();
        lose_a_renewal(&alice, &bob, &old).await;
        assert_eq!(held(&alice).await, 2);
        alice.links.tend(clock::now()).await;
        assert_eq!(held(&alice).await, 2, "looked at once a start");
        let alice = alice.restarted().await;
        alice.links.tend(clock::now()).await;
        assert_eq!((held(&alice).await, states(&alice)), (1, vec![LinkState::Active]));
        assert!(alice.vault().keys(old.row.into()).await.is_ok(), "and nothing else");
        // The place is free for a renewal.
        alice.links.renew_due(due()).await;
        assert_eq!(held(&alice).await, 2);
    });
}

#[test]
fn nonsense_inside_a_session_is_told_so_and_changes_nothing() {
    run(async {
        use crate::p2p::ports::Links as _;
        let (alice, bob) = linked(Open).await;
        // Each as another peer: one that asks too fast is told that instead.
        let ask = |who: u8, path: &'static str, body: &'static [u8]| {
            alice.links.answer(NodeId::from_bytes([who; 32]), path, body.into())
        };
        assert_eq!(ask(1, "/link/offer", b"short").await.0, 400);
        assert_eq!(ask(2, "/link/offer", &[7; 100]).await.0, 409);
        assert_eq!(ask(3, "/link/sync", &[0xff; 9]).await.0, 400);
        assert_eq!(ask(4, "/link/other", b"").await.0, 404);
        drop(bob);
        assert_eq!(states(&alice), [LinkState::Active]);
    });
}
