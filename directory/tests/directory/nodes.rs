//! Registering, looking up, discovering.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openred_directory::api::nodes::{NodeView, Page, Registered};
use openred_directory::config::Config;
use openred_directory::limits::{CARD_EVERY, CARDS_BURST, NEW_NODE_EVERY, NEW_NODES_BURST, REMARK_EVERY};
use openred_directory::store::Counts;
use openred_proto::id::UnixMillis;
use openred_proto::method::{Method, MethodSet};

use crate::fixture::{HOUR, Node, START, TestDirectory, base64, json};

async fn counts(test: &TestDirectory) -> Counts {
    test.directory.store.call(|store| store.counts(UnixMillis(0))).await.unwrap()
}

#[tokio::test]
async fn a_card_is_stored_refreshed_and_replaced() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    let first: Registered = test.register(&node).await.ok();
    assert_eq!((first.outcome.as_str(), first.sequence, first.lease_seconds), ("stored", START.0, 3600));
    assert!((1080..=1320).contains(&first.announce_after_seconds), "{}", first.announce_after_seconds);
    assert_eq!(first.node, node.id().to_string());
    let again: Registered = test.register(&node).await.ok();
    assert_eq!(again.outcome, "refreshed");
    test.advance(HOUR);
    let newer: Registered = test.register(&node).await.ok();
    assert_eq!((newer.outcome.as_str(), newer.sequence), ("stored", test.now().0));
    let view: NodeView = test.get(&format!("/api/v3/nodes/{}", node.id())).await.ok();
    assert_eq!(base64(&view.card), node.sign_card(&node.card(test.now())));
    assert!(view.fresh);
}

/// What is written to the log in a test.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_wrong_cards_of_one_node_do_not_fill_the_log() {
    let lines = Lines::default();
    let sink = lines.clone();
    let _heard = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(move || sink.clone()).finish());
    let said = || String::from_utf8_lossy(&lines.0.lock().unwrap()).matches("two cards of one sequence").count();
    let test = TestDirectory::new();
    let wrong = async |node: &Node| {
        let mut card = node.card(START);
        card.fields.name = "another".into();
        assert_eq!(test.register_bytes(node, &node.sign_card(&card)).await.code(), "card.equivocation");
    };
    let (one, other) = (Node::new(1), Node::new(2));
    for node in [&one, &other] {
        test.register_bytes(node, &node.sign_card(&node.card(START))).await.ok::<Registered>();
    }
    for _ in 0..30 {
        wrong(&one).await;
    }
    assert_eq!(said(), 4);
    wrong(&other).await;
    assert_eq!(said(), 5, "others are heard of");
    test.advance(REMARK_EVERY);
    wrong(&one).await;
    wrong(&one).await;
    assert_eq!(said(), 6);
}

#[tokio::test]
async fn an_older_or_another_card_of_the_same_sequence_is_refused_and_kept_as_evidence() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    let mut card = node.card(START);
    card.sequence = 500;
    assert_eq!(test.register_bytes(&node, &node.sign_card(&card)).await.status, 200);
    card.sequence = 499;
    let rollback = test.register_bytes(&node, &node.sign_card(&card)).await;
    assert_eq!(rollback.refusal(), (409, "card.rollback".into()));
    assert_eq!(counts(&test).await.evidence, 0);
    card.sequence = 500;
    card.fields.name = "other".into();
    for _ in 0..2 {
        let other = test.register_bytes(&node, &node.sign_card(&card)).await;
        assert_eq!(other.refusal(), (409, "card.equivocation".into()));
    }
    assert_eq!(counts(&test).await.evidence, 1, "kept once");
    let held = test.directory.store.call(move |store| store.node(&Node::new(1).id())).await.unwrap().unwrap();
    assert_eq!((held.sequence, held.evidence), (500, 1));
}

#[tokio::test]
async fn cards_that_are_not_the_callers_or_not_in_time_are_refused() {
    let (test, node, other) = (TestDirectory::new(), Node::new(1), Node::new(2));
    let foreign = test.register_bytes(&node, &other.sign_card(&other.card(START))).await;
    assert_eq!(foreign.refusal(), (403, "card.foreign".into()));
    let stolen = test.register_bytes(&other, &other.sign_card(&node.card(START))).await;
    assert_eq!(stolen.refusal(), (422, "card.signature".into()), "signed by another than it names");
    let mut ended = node.card(START);
    ended.expires_at = START.minus(4 * HOUR);
    ended.issued_at = START.minus(9 * HOUR);
    assert_eq!(test.register_bytes(&node, &node.sign_card(&ended)).await.refusal(), (422, "card.ended".into()));
    let mut ahead = node.card(START);
    ahead.sequence = START.plus(3 * HOUR).0;
    assert_eq!(test.register_bytes(&node, &node.sign_card(&ahead)).await.refusal(), (422, "card.malformed".into()));
    let bytes = node.sign_card(&node.card(START));
    for cut in [0, 1, 40, bytes.len() - 1] {
        assert_eq!(test.register_bytes(&node, &bytes[..cut]).await.refusal(), (422, "card.malformed".into()), "{cut}");
    }
    let mut flipped = bytes.clone();
    flipped[60] ^= 1;
    assert_eq!(test.register_bytes(&node, &flipped).await.refusal(), (422, "card.signature".into()));
    assert_eq!(counts(&test).await.nodes, 0);
}

#[tokio::test]
async fn a_node_whose_clock_is_two_hours_off_registers() {
    for (seed, off) in [(1, START.plus(2 * HOUR)), (2, START.minus(2 * HOUR))] {
        let (test, node) = (TestDirectory::new(), Node::new(seed));
        assert_eq!(test.register_bytes(&node, &node.sign_card(&node.card(off))).await.status, 200);
    }
}

#[tokio::test]
async fn a_card_ends_and_its_sequence_stays() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    test.register(&node).await;
    let path = format!("/api/v3/nodes/{}", node.id());
    test.advance(25 * HOUR);
    assert_eq!(test.get(&path).await.refusal(), (404, "node.unknown".into()));
    let now = test.now();
    assert_eq!(test.directory.store.call(move |store| store.purge(now)).await.unwrap(), 1);
    assert_eq!(counts(&test).await.nodes, 0);
    let mut older = node.card(test.now());
    older.sequence = START.0 - 1;
    assert_eq!(test.register_bytes(&node, &node.sign_card(&older)).await.code(), "card.rollback");
    assert_eq!(test.register(&node).await.ok::<Registered>().outcome, "stored");
}

#[tokio::test]
async fn look_ups_of_nobody_and_of_nonsense() {
    let test = TestDirectory::new();
    let unknown = test.get(&format!("/api/v3/nodes/{}", Node::new(9).id())).await;
    assert_eq!(unknown.refusal(), (404, "node.unknown".into()));
    for nonsense in ["did:key:zzz", "x", "%ff", "..%2f..%2fetc", "'%20OR%201=1--", &"a".repeat(4000)] {
        let reply = test.get(&format!("/api/v3/nodes/{nonsense}")).await;
        assert_eq!(reply.refusal(), (400, "request.malformed".into()), "{nonsense}");
    }
}

async fn discover(test: &TestDirectory, query: &str) -> Page {
    test.get(&format!("/api/v3/nodes/discover{query}")).await.ok()
}

#[tokio::test]
async fn discovery_shows_listed_nodes_by_sector_method_and_freshness() {
    let test = TestDirectory::new();
    let shown = |page: Page| page.nodes.into_iter().map(|node| node.node).collect::<Vec<_>>();
    for (seed, sector, listed, suites) in [
        (1, "lab", true, MethodSet::ALL),
        (2, "lab", false, MethodSet::ALL),
        (3, "home", true, MethodSet::EMPTY.with(Method::Alpha)),
    ] {
        let node = Node::new(seed);
        let mut card = node.card(START);
        card.fields.sector = sector.into();
        card.fields.listed = listed;
        card.suites = suites;
        assert_eq!(test.register_bytes(&node, &node.sign_card(&card)).await.status, 200);
    }
    let id = |seed| Node::new(seed).id().to_string();
    let mut both = vec![id(1), id(3)];
    both.sort_by_key(|id| *id.parse::<openred_proto::id::NodeId>().unwrap().as_bytes());
    assert_eq!(shown(discover(&test, "").await), both);
    assert_eq!(shown(discover(&test, "?sector=lab").await), [id(1)]);
    assert_eq!(shown(discover(&test, "?capability=beta").await), [id(1)]);
    assert_eq!(shown(discover(&test, "?capability=alpha").await), both);
    test.advance(HOUR / 2);
    assert_eq!(shown(discover(&test, "?fresh_seconds=60").await), [""; 0]);
    assert_eq!(shown(discover(&test, "").await), both);
    test.advance(HOUR);
    assert_eq!(shown(discover(&test, "?fresh_seconds=9999999").await), [""; 0], "over the lease");
    for wrong in ["?capability=omega", "?cursor=x", "?limit=0", "?limit=65", "?limit=x", "?colour=red"] {
        let reply = test.get(&format!("/api/v3/nodes/discover{wrong}")).await;
        assert_eq!(reply.refusal(), (400, "request.malformed".into()), "{wrong}");
    }
    assert_eq!(test.get(&format!("/api/v3/nodes/discover?sector={}", "x".repeat(64))).await.status, 400);
}

#[tokio::test]
async fn pages_hold_each_node_once_while_nodes_come_and_go() {
    let test = TestDirectory::new();
    for seed in 1..=25 {
        test.register(&Node::new(seed)).await;
    }
    let mut seen = Vec::new();
    let mut query = "?limit=4".to_owned();
    loop {
        let page = discover(&test, &query).await;
        seen.extend(page.nodes.iter().map(|node| node.node.clone()));
        // A node that comes in the middle may or may not be seen; it moves no other.
        test.register(&Node::new(100 + u8::try_from(seen.len()).unwrap())).await;
        match page.next {
            Some(next) => query = format!("?limit=4&cursor={next}"),
            None => break,
        }
    }
    let mut unique = seen.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), seen.len());
    assert!((1..=25).all(|seed| seen.contains(&Node::new(seed).id().to_string())));
}

#[tokio::test]
async fn a_full_directory_refuses_new_nodes_and_keeps_the_old() {
    let mut config = Config::default();
    config.limits.nodes = 2;
    let test = TestDirectory::with(&config);
    assert_eq!(test.register(&Node::new(1)).await.status, 200);
    assert_eq!(test.register(&Node::new(2)).await.status, 200);
    let third = test.register(&Node::new(3)).await;
    assert_eq!(third.refusal(), (503, "directory.full".into()));
    assert!(third.headers.contains_key("retry-after"));
    test.advance(HOUR);
    assert_eq!(test.register(&Node::new(1)).await.status, 200);
}

#[tokio::test]
async fn a_full_database_is_a_named_refusal_and_loses_nothing() {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = 10_000;
    let test = TestDirectory::with_store(&config, |store| store.limit_pages(40).unwrap());
    let mut stored = Vec::new();
    let refused = loop {
        let node = Node::new(u8::try_from(stored.len() + 1).unwrap());
        let reply = test.register(&node).await;
        if reply.status != 200 {
            break reply;
        }
        stored.push(node.id());
    };
    assert_eq!(refused.refusal(), (503, "directory.full".into()));
    assert!(refused.headers.contains_key("retry-after"));
    assert!(stored.len() > 5, "{}", stored.len());
    assert_eq!(test.get("/api/v3/health").await.status, 503);
    for node in &stored {
        assert_eq!(test.get(&format!("/api/v3/nodes/{node}")).await.status, 200);
    }
    assert_eq!(counts(&test).await.nodes, stored.len() as u64);
}

#[tokio::test]
async fn a_banned_node_is_refused_and_not_shown() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    test.register(&node).await;
    test.directory.ban(node.id());
    assert_eq!(test.register(&node).await.refusal(), (403, "node.banned".into()));
    assert_eq!(test.get(&format!("/api/v3/nodes/{}", node.id())).await.code(), "node.unknown");
    assert_eq!(discover(&test, "").await.nodes, []);
    test.directory.unban(&node.id());
    assert_eq!(test.register(&node).await.status, 200);
}

#[tokio::test]
async fn new_nodes_of_one_address_come_slowly_and_known_ones_as_before() {
    let test = TestDirectory::new();
    let path = "/api/v3/nodes/register";
    let register = async |seed: u8, address: &str| {
        let node = Node::new(seed);
        let card = json("card", &node.sign_card(&node.card(test.now())));
        test.call_from(address, &node, "POST", path, card).await
    };
    let most = u8::try_from(NEW_NODES_BURST).unwrap();
    for seed in 0..most {
        assert_eq!(register(seed, "192.0.2.1:9").await.status, 200, "{seed}");
    }
    let refused = register(most, "192.0.2.1:9").await;
    assert_eq!(refused.refusal(), (429, "rate.limited".into()));
    assert_eq!(refused.headers["retry-after"], "60");
    assert_eq!(register(0, "192.0.2.1:9").await.status, 200, "a node that has a card here goes on");
    assert_eq!(register(most, "192.0.2.2:9").await.status, 200, "another address");
    test.advance(NEW_NODE_EVERY);
    assert_eq!(register(most + 1, "192.0.2.1:9").await.status, 200);
    assert_eq!(register(most + 2, "192.0.2.1:9").await.status, 429);
}

#[tokio::test]
async fn look_ups_do_not_wait_for_those_who_register() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    test.register(&node).await;
    let (free, held) = std::sync::mpsc::sync_channel::<()>(0);
    let writing = tokio::spawn({
        let store = test.directory.store.clone();
        async move {
            let blocked = store.call(move |_| {
                let _ = held.recv();
                Ok(())
            });
            blocked.await
        }
    });
    tokio::task::yield_now().await;
    assert_eq!(test.get(&format!("/api/v3/nodes/{}", node.id())).await.status, 200);
    assert_eq!(discover(&test, "").await.nodes.len(), 1);
    drop(free);
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_node_adds_so_many_entries_to_the_log_and_no_more() {
    let test = TestDirectory::new();
    let (node, other) = (Node::new(1), Node::new(2));
    let entries = async || test.directory.store.read(|store| store.log_end()).await.unwrap().size;
    let mut held = Vec::new();
    for _ in 0..CARDS_BURST {
        test.advance(Duration::from_millis(1));
        held = node.sign_card(&node.card(test.now()));
        test.register_bytes(&node, &held).await.ok::<Registered>();
    }
    test.advance(Duration::from_millis(1));
    let newer = node.sign_card(&node.card(test.now()));
    for _ in 0..2 {
        let refused = test.register_bytes(&node, &newer).await;
        assert_eq!(refused.refusal(), (429, "rate.limited".into()), "also the second time");
        assert!(refused.headers.contains_key("retry-after"));
    }
    assert_eq!(test.register_bytes(&node, &held).await.ok::<Registered>().outcome, "refreshed");
    let path = format!("/api/v3/nodes/{}", node.id());
    assert_eq!(test.call(&node, "DELETE", &path, Vec::new()).await.code(), "rate.limited", "it would come again");
    assert_eq!(entries().await, u64::from(CARDS_BURST));
    test.register(&other).await.ok::<Registered>();
    test.advance(CARD_EVERY);
    test.register_bytes(&node, &newer).await.ok::<Registered>();
    assert_eq!(entries().await, u64::from(CARDS_BURST) + 2);
}
