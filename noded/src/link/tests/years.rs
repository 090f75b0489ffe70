//! Two nodes over years of virtual time: no directory, cards from hand to hand, and tables that stay as large as they were.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openred_proto::limits::LINK_LIFE_MAX;

use super::life::HOUR;
use super::nodes::{TestNode, pair};
use super::renewing::use_newest;
use super::services::{deliver_offer, deliver_receipt, round, run, states};
use crate::clock;
use crate::clock::stepped::Clock;
use crate::config::IncomingPolicy::Open;
use crate::link::state::LinkState;
use crate::p2p::ports::Links as _;

const DAY: Duration = Duration::from_secs(86_400);

/// Rows of every table.
async fn rows(node: &TestNode) -> BTreeMap<String, i64> {
    let count = |connection: &rusqlite::Connection| {
        let mut names = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
        let names: Vec<String> = names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let count = |name: String| {
            let rows = connection.query_row(&format!("SELECT count(*) FROM {name}"), [], |row| row.get(0))?;
            Ok((name, rows))
        };
        names.into_iter().map(count).collect()
    };
    node.store.call(count).await.unwrap()
}

/// Everything that both do by themselves, until nothing is left to do.
async fn settle(one: &TestNode, other: &TestNode) {
    for node in [one, other, one, other] {
        node.turn_keys();
        node.links.renew_due(clock::now()).await;
        round(node).await;
    }
}

#[test]
fn without_a_directory_two_nodes_renew_for_years_and_no_table_grows() {
    run(async {
        let (clock, begun) = (Clock::set(0), clock::now());
        let (alice, bob) = pair(Open).await;
        alice.links.request(bob.id, Some(LINK_LIFE_MAX)).await.unwrap();
        deliver_offer(&alice, &bob).await;
        deliver_receipt(&bob, &alice).await;
        use_newest(&alice, &bob).await;
        for (node, peer) in [(&alice, &bob), (&bob, &alice)] {
            node.reaches(peer);
            node.outbox.keeps_cards.store(true, Ordering::Relaxed);
            node.outbox.is_down.store(true, Ordering::Relaxed);
        }
        clock.pass(LINK_LIFE_MAX / 3 * 2);
        settle(&alice, &bob).await;
        assert_eq!(states(&alice), [LinkState::Active], "on a card of weeks ago nothing is renewed");
        alice.hands_over_cards();
        bob.hands_over_cards();
        let (mut before, mut seen) = (alice.links.all()[0].id(), Vec::new());
        // Two years: prekeys and cards end many times over.
        for turn in 0..37 {
            if turn > 0 {
                clock.pass(LINK_LIFE_MAX / 3 * 2);
            }
            clock.pass(Duration::from_secs(3600));
            settle(&alice, &bob).await;
            let link = alice.links.for_peer(&bob.id).unwrap();
            assert_ne!(link.link, before, "turn {turn}: {:?}", states(&alice));
            assert_eq!(bob.links.for_peer(&alice.id).unwrap().link, link.link);
            use_newest(&alice, &bob).await;
            before = link.link;
            seen.push([rows(&alice).await, rows(&bob).await]);
            for node in [&alice, &bob] {
                assert!(node.vault().held(None).await.unwrap().len() <= 2, "the key process keeps no more, either");
            }
        }
        assert!(clock::now() > begun.plus(DAY * 2 * 365));
        let flat = &seen[6];
        assert!(seen[6..].iter().all(|rows| rows == flat), "{seen:#?}");
        assert!(flat.iter().all(|rows| rows["link"] <= 4), "{flat:?}");
    });
}

#[test]
fn many_short_lives_and_offers_leave_no_more_rows_than_are_shown() {
    run(async {
        let clock = Clock::set(0);
        let (alice, bob) = pair(Open).await;
        alice.reaches(&bob);
        let most = i64::try_from(crate::link::state::ENDED_PER_PEER).unwrap() + 1;
        // A link that is ended and made again, faster than ended ones go by their age; then nothing for as long as they are shown.
        for _ in 0..40 {
            let link = alice.links.request(bob.id, Some(Duration::from_secs(10))).await.unwrap().id();
            settle(&alice, &bob).await;
            alice.links.sync(bob.id).await.unwrap();
            assert_eq!(alice.links.steps().len(), 1, "lists were compared with it");
            alice.links.revoke(link).await.unwrap();
            clock.pass(Duration::from_secs(60));
            let mut settled = 0;
            // What one has told the other may come after a whole round of it: the next round finds it.
            while settled == 0 || rows(&alice).await["link"].max(rows(&bob).await["link"]) > most {
                assert!(settled < 3, "{:?} {:?}", rows(&alice).await, rows(&bob).await);
                settle(&alice, &bob).await;
                settled += 1;
            }
        }
        clock.pass(crate::link::state::SHOWN_AFTER_END + HOUR);
        settle(&alice, &bob).await;
        for node in [&alice, &bob] {
            assert_eq!((rows(node).await["link"], node.vault().held(None).await.unwrap().len()), (0, 0));
        }
        // And at last that there was somebody; but not on whom the operator has a word, or a card was asked for of late.
        alice.store.keep_card(bob.id, bob.card(), 7, clock::now()).await.unwrap();
        bob.links.decide_peer(alice.id, false).await.unwrap();
        clock.pass(DAY * 29);
        settle(&alice, &bob).await;
        assert_eq!((rows(&alice).await["peer"], rows(&bob).await["peer"]), (1, 1));
        alice.store.forget_peer(bob.id).await.unwrap();
        clock.pass(DAY * 2);
        settle(&alice, &bob).await;
        assert_eq!((rows(&alice).await["peer"], rows(&bob).await["peer"]), (0, 1));
        bob.store.forget_peer(alice.id).await.unwrap();
        clock.pass(HOUR * 2);
        settle(&alice, &bob).await;
        for node in [&alice, &bob] {
            let left: i64 = rows(node).await.into_iter().filter(|(name, _)| name != "meta").map(|(_, rows)| rows).sum();
            assert_eq!(left, 0, "{:?}", rows(node).await);
            assert_eq!(node.links.steps().len(), 0, "nor in memory");
        }
    });
}

#[test]
fn a_peer_that_names_a_card_which_there_is_not_is_asked_once() {
    run(async {
        let (alice, bob) = pair(Open).await;
        let wire = alice.reaches(&bob);
        alice.hands_over_cards();
        bob.hands_over_cards();
        for _ in 0..3 {
            alice.links.exchange_if_due(bob.id, u64::MAX);
            alice.links.exchange_due().await;
        }
        assert_eq!(wire.asked.load(Ordering::Relaxed), 1, "his card came, but not the one that he named");
        alice.links.steps().forget(&bob.id);
        alice.links.exchange_if_due(bob.id, u64::MAX);
        alice.links.exchange_due().await;
        assert!(wire.asked.load(Ordering::Relaxed) > 1, "of one that is known anew it is asked again");
    });
}
