//! Look-ups that need not say whom one seeks, withdrawals, and when nodes are told to come again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openred_directory::api::lookup::{Found, Sealed, open};
use openred_directory::api::nodes::{Registered, Withdrawn};
use openred_directory::config::Config;
use openred_directory::store::decision::{Author, Change};
use openred_directory::store::{CardStore as _, NewCard, Terms};
use openred_proto::checked::succession::Lineage;
use openred_proto::id::NodeId;

use crate::fixture::{HOUR, Node, Reply, START, TestDirectory, request};

async fn look_up(test: &TestDirectory, body: &str) -> Reply {
    let request = request("POST", "/api/v3/nodes/lookup", &[], body.as_bytes().to_vec());
    Reply::read(test.send(request).await).await
}

fn named(nodes: &[&Node]) -> String {
    let ids: Vec<String> = nodes.iter().map(|node| format!("\"{}\"", node.id())).collect();
    format!("{{\"nodes\":[{}]}}", ids.join(","))
}

fn hex_id(node: &Node) -> String {
    node.id().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn many_are_looked_up_at_once_in_the_order_asked_for() {
    let test = TestDirectory::new();
    let nodes: Vec<Node> = (1..5).map(Node::new).collect();
    for node in &nodes[..3] {
        test.register(node).await.ok::<Registered>();
    }
    test.directory.ban(nodes[1].id());
    let found: Found = look_up(&test, &named(&[&nodes[2], &nodes[3], &nodes[1], &nodes[0]])).await.ok();
    let ids: Vec<String> = found.nodes.iter().map(|view| view.node.clone()).collect();
    assert_eq!(ids, [nodes[2].id().to_string(), nodes[0].id().to_string()], "unknown and banned ones are absent");
    let most: Vec<&Node> = std::iter::repeat_n(&nodes[0], 64).collect();
    assert_eq!(look_up(&test, &named(&most)).await.ok::<Found>().nodes.len(), 64);
    let more: Vec<&Node> = std::iter::repeat_n(&nodes[0], 65).collect();
    for (body, code) in [
        (named(&more), "request.malformed"),
        (named(&[]), "request.malformed"),
        ("{\"nodes\":[\"bob\"]}".into(), "request.malformed"),
        ("{\"nodes\":[\"did:key:z6Mk' OR 1=1 --\"]}".into(), "request.malformed"),
        ("{}".into(), "body.malformed"),
        ("{\"nodes\":[],\"more\":1}".into(), "body.malformed"),
        ("x".repeat(8 * 1024 + 1), "body.too-large"),
    ] {
        assert_eq!(look_up(&test, &body).await.code(), code, "{}", &body[..body.len().min(60)]);
    }
}

#[tokio::test]
async fn a_prefix_shows_cards_to_those_alone_who_know_whose_they_are() {
    let test = TestDirectory::new();
    let (node, stranger) = (Node::new(1), Node::new(2));
    let mut card = node.card(test.now());
    card.fields.listed = false;
    let card = node.sign_card(&card);
    test.register_bytes(&node, &card).await.ok::<Registered>();
    let digits = hex_id(&node);
    for length in [1, 2, 7, 16] {
        let prefix = &digits[..length];
        let found: Sealed = test.get(&format!("/api/v3/nodes/prefix/{prefix}")).await.ok();
        let sealed: Vec<Vec<u8>> = found.sealed.iter().map(|text| STANDARD.decode(text).unwrap()).collect();
        assert_eq!(sealed.len(), 1);
        assert_eq!(open(prefix, &node.id(), &sealed[0]).unwrap().card, card);
        assert_eq!(open(prefix, &stranger.id(), &sealed[0]), None);
        assert_eq!(open("0000000000000000f", &node.id(), &sealed[0]), None, "for another prefix");
        let mut changed = sealed[0].clone();
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(open(prefix, &node.id(), &changed), None);
        assert!(!sealed[0].windows(32).any(|part| part == node.id().as_bytes()), "the id is not in what is shown");
    }
    let other = if digits.starts_with('0') { "1" } else { "0" };
    assert_eq!(test.get(&format!("/api/v3/nodes/prefix/{other}")).await.ok::<Sealed>().sealed.len(), 0);
    for wrong in ["", "g", "A", "0x", "01234567890abcdef", "%27", "..%2f", "a%00"] {
        let reply = test.get(&format!("/api/v3/nodes/prefix/{wrong}")).await;
        assert!([400, 404].contains(&reply.refusal().0), "{wrong}");
    }
    test.advance(30 * HOUR);
    let ended: Sealed = test.get(&format!("/api/v3/nodes/prefix/{}", &digits[..1])).await.ok();
    assert_eq!(ended.sealed.len(), 0, "its card has ended");
}

/// A row whose id begins with these bytes; what its card says is nobody's concern here.
fn row(first: [u8; 3]) -> NewCard {
    let mut id = [7; 32];
    id[..3].copy_from_slice(&first);
    NewCard {
        node: NodeId::from_bytes(id),
        sequence: 1,
        expires_at: START.plus(HOUR),
        listed: false,
        sector: String::new(),
        methods: 1,
        bytes: vec![7; 100],
        lineage: Lineage::default(),
    }
}

#[tokio::test]
async fn a_prefix_of_too_many_is_refused_until_it_is_long_enough() {
    let test = TestDirectory::with_store(&Config::default(), |store| {
        let rows = (0..65).map(|third| [0xab, 0xcd, third]).chain([[0xab, 0xce, 0], [0xab, 0xcc, 0xff]]);
        for first in rows {
            store.register(START, &row(first), &Terms::open(1000)).unwrap();
        }
    });
    for (prefix, expected) in [
        ("a", None),
        ("abc", None),
        ("abcd", None),
        ("abcd0", Some(16)),
        ("abcd3", Some(16)),
        ("abcd4", Some(1)),
        ("abcd5", Some(0)),
        ("abce", Some(1)),
        ("abcc", Some(1)),
        ("0", Some(0)),
        ("f", Some(0)),
    ] {
        let reply = test.get(&format!("/api/v3/nodes/prefix/{prefix}")).await;
        match expected {
            Some(number) => assert_eq!(reply.ok::<Sealed>().sealed.len(), number, "{prefix}"),
            None => assert_eq!(reply.refusal(), (422, "prefix.wide".into()), "{prefix}"),
        }
    }
}

#[tokio::test]
async fn a_prefix_is_looked_through_no_further_than_so_far() {
    let test = TestDirectory::with_store(&Config::default(), |store| {
        store.begin().unwrap();
        // Nodes that are here no more stand before the one that is.
        for number in 0..1030_u32 {
            let [.., high, low] = number.to_be_bytes();
            let gone = row([0xab, high, low]);
            store.register(START, &gone, &Terms::open(2000)).unwrap();
            assert!(store.withdraw(&gone.node).unwrap());
        }
        store.register(START, &row([0xab, 0xff, 0xff]), &Terms::open(2000)).unwrap();
        store.commit().unwrap();
    });
    for prefix in ["a", "ab"] {
        let reply = test.get(&format!("/api/v3/nodes/prefix/{prefix}")).await;
        assert_eq!(reply.refusal(), (422, "prefix.wide".into()), "{prefix}");
    }
    // With one digit more it stands before them no longer.
    for (prefix, expected) in [("abf", 1), ("ab04", 0), ("ab1", 0), ("b", 0)] {
        let found: Sealed = test.get(&format!("/api/v3/nodes/prefix/{prefix}")).await.ok();
        assert_eq!(found.sealed.len(), expected, "{prefix}");
    }
}

#[tokio::test]
async fn a_node_withdraws_its_own_card_and_no_older_one_comes_back() {
    let test = TestDirectory::new();
    let (node, other) = (Node::new(1), Node::new(2));
    let old = node.sign_card(&node.card(test.now()));
    test.advance(HOUR / 2);
    test.register(&node).await.ok::<Registered>();
    let path = format!("/api/v3/nodes/{}", node.id());
    assert_eq!(test.call(&other, "DELETE", &path, Vec::new()).await.refusal(), (403, "card.foreign".into()));
    let unsigned = Reply::read(test.send(request("DELETE", &path, &[], Vec::new())).await).await;
    assert_eq!(unsigned.code(), "signature.missing");
    let withdrawn: Withdrawn = test.call(&node, "DELETE", &path, Vec::new()).await.ok();
    assert!(withdrawn.withdrawn);
    assert_eq!(test.get(&path).await.code(), "node.unknown");
    let again: Withdrawn = test.call(&node, "DELETE", &path, Vec::new()).await.ok();
    assert!(!again.withdrawn);
    assert_eq!(test.register_bytes(&node, &old).await.code(), "card.rollback");
    test.advance(HOUR / 2);
    test.register(&node).await.ok::<Registered>();
    assert_eq!(test.get(&path).await.status, 200);
    let author = Author { uid: 0, at: test.now() };
    let change = Change::Ban(node.id(), String::new());
    assert!(test.directory.store.call(move |store| store.change(&author, &change)).await.unwrap());
}

#[tokio::test]
async fn nodes_are_told_when_to_come_again_and_later_where_there_are_many() {
    let test = TestDirectory::new();
    let told = async |seed| {
        let reply = test.register(&Node::new(seed)).await;
        let registered: Registered = reply.ok();
        assert_eq!(reply.headers["retry-after"], registered.announce_after_seconds.to_string().as_str());
        registered.announce_after_seconds
    };
    let mut spread = Vec::new();
    for seed in 1..20 {
        let seconds = told(seed).await;
        assert!((1080..=1320).contains(&seconds), "a third of the hour, {seconds}");
        spread.push(seconds);
    }
    spread.dedup();
    assert!(spread.len() > 1, "not all at once");
    let half_a_minute = std::time::Duration::from_secs(30);
    test.directory.note_registrations(90_000, half_a_minute);
    assert!((1620..=1980).contains(&told(21).await), "3,000 a second: later, so that 2,000 come");
    test.directory.note_registrations(60_000, half_a_minute);
    assert!((1620..=1980).contains(&told(21).await), "and now that 2,000 come, it stays so");
    test.directory.note_registrations(600_000_000, half_a_minute);
    assert!((2160..=2640).contains(&told(22).await), "but well before the lease is over");
}
