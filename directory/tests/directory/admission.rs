//! Who may come: open, by work, by invite, by approval; bans of prefixes; shares of the connections and limits on all together.

use std::time::Duration;

use openred_directory::api::nodes::{NodeView, Page, Registered};
use openred_directory::api::problem::ProblemDocument;
use openred_directory::api::signed::Peer;
use openred_directory::config::{Config, Mode};
use openred_directory::store::CardStore as _;
use openred_directory::store::decision::{Author, Change, InviteLine};
use openred_directory::store::sqlite::SqliteStore;
use openred_proto::admission::{Challenge, Invite};

use crate::fixture::{HOUR, Node, Reply, TestDirectory, base64_text, request};

const PATH: &str = "/api/v3/nodes/register";

fn directory(mode: Mode) -> TestDirectory {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = 10_000;
    config.admission.mode = mode;
    *config.admission.work_bits.get_mut() = 10;
    TestDirectory::with(&config)
}

/// Registers with what stands beside the card.
async fn register(test: &TestDirectory, node: &Node, more: &str) -> Reply {
    let card = base64_text(&node.sign_card(&node.card(test.now())));
    test.call(node, "POST", PATH, format!("{{\"card\":\"{card}\"{more}}}").into_bytes()).await
}

fn problem(reply: &Reply) -> ProblemDocument {
    reply.refusal();
    serde_json::from_slice(&reply.body).unwrap()
}

fn work(test: &TestDirectory, node: &Node, time: u64, bits: u32) -> String {
    let challenge = Challenge::new(&test.directory.identity.id(), &node.id(), time);
    let nonce = challenge.search(bits, 0, u64::MAX).unwrap();
    format!(",\"work\":{{\"time\":{time},\"nonce\":{nonce}}}")
}

/// Changes the store as the operator's door does.
async fn change(test: &TestDirectory, change: Change) -> bool {
    let author = Author { uid: 7, at: test.now() };
    test.directory.store.call(move |store| store.change(&author, &change)).await.unwrap()
}

async fn invite(test: &TestDirectory, secret: u8, uses: u32) -> (Invite, String) {
    let invite = Invite::new(&test.directory.identity.id(), [secret; 16]);
    let not_after = test.now().plus(HOUR).0;
    let (hash, made_at) = (invite.hash(), test.now().0);
    let line = InviteLine { hash, uses, used: 0, made_at, not_after, revoked: false, note: String::new() };
    assert!(change(test, Change::Invite(line)).await);
    let more = format!(",\"invite\":\"{invite}\"");
    (invite, more)
}

#[tokio::test]
async fn new_nodes_work_for_their_place_and_known_ones_do_not() {
    let test = directory(Mode::Work);
    let (node, other) = (Node::new(1), Node::new(2));
    let refused = problem(&register(&test, &node, "").await);
    assert_eq!((refused.code.as_str(), refused.work_bits), ("admission.work", Some(10)));
    assert_eq!(refused.now, Some(test.now().seconds()), "the work is dated by the directory's clock");
    let now = test.now().seconds();
    let done = work(&test, &node, now, 10);
    for (who, wrong) in [
        (&other, done.clone()),
        (&node, work(&test, &node, now - 601, 10)),
        (&node, work(&test, &node, now + 601, 10)),
        (&node, ",\"work\":{\"time\":0,\"nonce\":0}".to_owned()),
    ] {
        assert_eq!(problem(&register(&test, who, &wrong).await).code, "admission.work", "{wrong}");
    }
    let stored: Registered = register(&test, &node, &done).await.ok();
    assert_eq!(stored.outcome, "stored");
    test.advance(HOUR);
    let renewed: Registered = register(&test, &node, "").await.ok();
    assert_eq!(renewed.outcome, "stored", "who is here works once");
    let (_, invited) = invite(&test, 1, 1).await;
    register(&test, &other, &invited).await.ok::<Registered>();
}

#[tokio::test]
async fn who_is_told_how_much_to_work_has_not_used_its_addresses_token() {
    let test = directory(Mode::Work);
    let come = async |node: &Node, more: &str| {
        let card = base64_text(&node.sign_card(&node.card(test.now())));
        let body = format!("{{\"card\":\"{card}\"{more}}}").into_bytes();
        test.call_from("192.0.2.1:9", node, "POST", PATH, body).await
    };
    for seed in 1..=32 {
        let node = Node::new(seed);
        assert_eq!(come(&node, "").await.code(), "admission.work", "{seed}");
        come(&node, &work(&test, &node, test.now().seconds(), 10)).await.ok::<Registered>();
    }
    let (late, now) = (Node::new(33), test.now().seconds());
    assert_eq!(come(&late, &work(&test, &late, now, 10)).await.code(), "rate.limited");
    // More that ask are told so without the store, which somebody else holds here.
    let mut other = SqliteStore::open(&test.folder.path().join("directory.sqlite"), 64).unwrap();
    other.begin().unwrap();
    for seed in 34..40 {
        let told = problem(&come(&Node::new(seed), "").await);
        assert_eq!((told.code.as_str(), told.work_bits, told.now), ("admission.work", Some(10), Some(now)));
    }
    let asked = test.call_from(
        "192.0.3.1:9",
        &late,
        "POST",
        PATH,
        crate::fixture::json("card", &late.sign_card(&late.card(test.now()))),
    );
    assert_eq!(asked.await.status, 503, "of another address it is asked");
    other.roll_back();
}

#[tokio::test]
async fn an_invite_lets_in_as_many_as_it_is_for_until_its_end() {
    let test = directory(Mode::Invite);
    let nodes: Vec<Node> = (1..8).map(Node::new).collect();
    assert_eq!(problem(&register(&test, &nodes[0], "").await).code, "admission.invite");
    let (_, two) = invite(&test, 1, 2).await;
    for node in &nodes[..2] {
        register(&test, node, &two).await.ok::<Registered>();
        register(&test, node, &two).await.ok::<Registered>();
    }
    let spent = problem(&register(&test, &nodes[2], &two).await);
    assert_eq!((spent.code.as_str(), spent.detail.contains("used")), ("admission.invite", true));
    let (revoked, text) = invite(&test, 2, 9).await;
    assert!(change(&test, Change::Revoke(revoked.hash())).await);
    assert!(!change(&test, Change::Revoke(revoked.hash())).await);
    assert!(problem(&register(&test, &nodes[2], &text).await).detail.contains("revoked"));
    let foreign = Invite::new(&Node::new(9).id(), [1; 16]);
    let detail = problem(&register(&test, &nodes[2], &format!(",\"invite\":\"{foreign}\"")).await).detail;
    assert!(detail.contains("another directory's"), "{detail}");
    for nonsense in ["", "invite-", "invite-0OIl", &"x".repeat(500), "'; DROP TABLE invites; --"] {
        let refused = problem(&register(&test, &nodes[2], &format!(",\"invite\":\"{nonsense}\"")).await);
        assert_eq!(refused.code, "admission.invite", "{nonsense}");
    }
    assert!(change(&test, Change::Approve(nodes[3].id())).await, "by name, before it comes");
    register(&test, &nodes[3], "").await.ok::<Registered>();
    let (_, ended) = invite(&test, 3, 9).await;
    test.advance(2 * HOUR);
    assert!(problem(&register(&test, &nodes[4], &ended).await).detail.contains("ended"));
    register(&test, &nodes[0], "").await.ok::<Registered>();
    // Its card ends, and its row is dropped: it is still let in.
    test.advance(30 * HOUR);
    register(&test, &nodes[0], "").await.ok::<Registered>();
}

#[tokio::test]
async fn a_quarantined_node_is_held_and_neither_shown_nor_routed_to() {
    let test = directory(Mode::Approval);
    let (node, invited) = (Node::new(1), Node::new(2));
    let (_, text) = invite(&test, 1, 1).await;
    register(&test, &invited, &text).await.ok::<Registered>();
    let held: Registered = register(&test, &node, "").await.ok();
    assert_eq!(held.outcome, "quarantined");
    let path = format!("/api/v3/nodes/{}", node.id());
    let listed = async || test.get("/api/v3/nodes/discover").await.ok::<Page>().nodes.len();
    assert_eq!(test.get(&path).await.refusal(), (404, "node.unknown".into()));
    assert_eq!(listed().await, 1);
    let to = invited.offer(&node.id(), test.now().plus(HOUR), 1);
    assert_eq!(test.request_connection(&invited, &to).await.code(), "recipient.unregistered");
    let from = node.offer(&invited.id(), test.now().plus(HOUR), 1);
    assert_eq!(test.request_connection(&node, &from).await.refusal(), (403, "node.quarantined".into()));
    assert_eq!(test.receive(&node, "?wait=0").await.code(), "node.quarantined");
    test.advance(HOUR / 2);
    let renewed: Registered = register(&test, &node, "").await.ok();
    assert_eq!(renewed.outcome, "quarantined", "a newer card changes nothing");
    let counts = test.directory.store.read(|store| store.counts(openred_proto::id::UnixMillis(0))).await.unwrap();
    assert_eq!((counts.nodes, counts.quarantined), (2, 1));
    assert!(change(&test, Change::Approve(node.id())).await);
    assert!(!change(&test, Change::Approve(node.id())).await);
    assert_eq!(test.get(&path).await.ok::<NodeView>().node, node.id().to_string());
    assert_eq!(listed().await, 2, "at once, without another registration");
    let renewed: Registered = register(&test, &node, "").await.ok();
    assert_eq!(renewed.outcome, "refreshed");
    assert!(change(&test, Change::Remove(node.id())).await);
    assert_eq!(test.get(&path).await.code(), "node.unknown");
    let back: Registered = register(&test, &node, "").await.ok();
    assert_eq!(back.outcome, "quarantined", "a removal takes the approval with it");
}

#[tokio::test]
async fn a_removed_node_leaves_a_tombstone() {
    let test = TestDirectory::new();
    let node = Node::new(1);
    let old = node.sign_card(&node.card(test.now()));
    test.advance(HOUR);
    test.register(&node).await.ok::<Registered>();
    assert!(change(&test, Change::Remove(node.id())).await);
    assert!(!change(&test, Change::Remove(node.id())).await);
    assert_eq!(test.register_bytes(&node, &old).await.code(), "card.rollback");
    test.advance(HOUR);
    test.register(&node).await.ok::<Registered>();
}

#[tokio::test]
async fn banned_addresses_are_refused_on_every_call_and_others_are_not() {
    let test = TestDirectory::new();
    let node = Node::new(1);
    test.directory.ban_prefix("192.0.2.0/24".parse().unwrap());
    test.directory.ban_prefix("2001:db8:7::/48".parse().unwrap());
    let call = async |address: &str| {
        let body = crate::fixture::json("card", &node.sign_card(&node.card(test.now())));
        test.call_from(address, &node, "POST", PATH, body).await
    };
    for banned in ["192.0.2.255:1", "[::ffff:192.0.2.1]:1", "[2001:db8:7:ffff::1]:1"] {
        assert_eq!(call(banned).await.refusal(), (403, "address.banned".into()), "{banned}");
    }
    for other in ["192.0.3.1:1", "[2001:db8:8::1]:1"] {
        call(other).await.ok::<Registered>();
    }
    test.directory.unban_prefix(&"192.0.2.0/24".parse().unwrap());
    call("192.0.2.255:1").await.ok::<Registered>();
}

#[tokio::test]
async fn everybody_together_is_limited() {
    let mut config = Config::default();
    *config.limits.overall_per_second.get_mut() = 5;
    let test = TestDirectory::with(&config);
    for _ in 0..5 {
        assert_eq!(test.get("/api/v3/health").await.status, 200);
    }
    let refused = test.get("/api/v3/health").await;
    assert_eq!(
        (refused.refusal(), &refused.headers["retry-after"]),
        ((503, "directory.busy".into()), &"1".parse().unwrap())
    );
    test.advance(Duration::from_secs(1));
    assert_eq!(test.get("/api/v3/health").await.status, 200);
}

/// Nine addresses of one network, and one of the next.
const NETWORKS: [(&str, &str); 2] = [("192.0.2.", "192.0.3.1:9"), ("[2001:db8:7:", "[2001:db8:8::1]:9")];

fn address(network: &str, number: u8) -> String {
    if network.starts_with('[') { format!("{network}{number:x}::1]:9") } else { format!("{network}{number}:9") }
}

#[tokio::test]
async fn many_addresses_of_one_network_are_limited_together() {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = 3;
    for (network, other) in NETWORKS {
        let test = TestDirectory::with(&config);
        let ask = async |from: &str| {
            let mut request = request("GET", "/api/v3/health", &[], Vec::new());
            request.extensions_mut().insert(Peer(from.parse().unwrap()));
            Reply::read(test.send(request).await).await
        };
        for number in 1..=8 {
            for _ in 0..3 {
                assert_eq!(ask(&address(network, number)).await.status, 200);
            }
        }
        let refused = ask(&address(network, 9)).await;
        assert_eq!(refused.refusal(), (429, "rate.limited".into()), "{network}");
        assert!(refused.headers.contains_key("retry-after"));
        assert_eq!(ask(other).await.status, 200);
        assert_eq!(ask("127.0.0.1:9").await.status, 200);
        test.advance(Duration::from_secs(1));
        assert_eq!(ask(&address(network, 9)).await.status, 200);
    }
}

#[tokio::test]
async fn new_nodes_of_one_network_are_limited_together() {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = 10_000;
    config.admission.mode = Mode::Invite;
    for (network, other) in NETWORKS {
        let test = TestDirectory::with(&config);
        let node = Node::new(1);
        let body = crate::fixture::json("card", &node.sign_card(&node.card(test.now())));
        let come = async |from: &str| test.call_from(from, &node, "POST", PATH, body.clone()).await.code();
        for number in 1..=8 {
            for _ in 0..32 {
                assert_eq!(come(&address(network, number)).await, "admission.invite");
            }
        }
        assert_eq!(come(&address(network, 9)).await, "rate.limited", "{network}");
        assert_eq!(come(other).await, "admission.invite");
    }
}
