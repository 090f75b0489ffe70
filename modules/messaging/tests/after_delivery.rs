//! What happens to a message after it was delivered: its files are fetched, its reading is told, it is swept. In virtual time, with
//! faults, against versions that know nothing of it, and with rows that such a version has written.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use openred_files::{Files, ShareView};
use openred_messaging::{
    ATTACHMENTS, InboxQuery, MESSAGE_CONTENT_TYPE, MessageView, Messaging, Page, Peers, Sent, Summary,
};
use openred_module::{
    Batch, Body, Context, Event, Fault, Manifest, Method, Module, ModuleError, NodeId, PeerRequest, Request, Response,
    Routes, Status, TestHost, link,
};
use serde::de::DeserializeOwned;
use serde_json::json;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

async fn pair() -> (TestHost, TestHost) {
    let (alice, bob) = (TestHost::start(1, Messaging::default()).await, TestHost::start(2, Messaging::default()).await);
    link(&alice, &bob);
    (alice, bob)
}

async fn ok<T: DeserializeOwned>(response: Response) -> T {
    let status = response.status;
    let body = response.body.collect(8 << 20).await.unwrap();
    assert!(status.is_success(), "{status:?}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

async fn code(response: Response) -> String {
    assert!(!response.status.is_success());
    response.json_body::<serde_json::Value>().await.unwrap()["code"].as_str().unwrap().to_owned()
}

fn order(path: &str, body: &serde_json::Value) -> PeerRequest {
    PeerRequest::post(path, "application/json", Body::whole(body.to_string()))
}

async fn send(from: &TestHost, to: &TestHost, text: &str) -> Sent {
    let request = PeerRequest::post(format!("/send/{}", to.id()), "text/plain", Body::whole(text.to_owned()));
    ok(from.operator(request).await).await
}

async fn list(host: &TestHost, path: &str) -> Vec<MessageView> {
    let query = serde_json::to_value(InboxQuery::default()).unwrap();
    ok::<Page>(host.operator(order(path, &query)).await).await.messages
}

async fn texts(host: &TestHost, path: &str) -> Vec<String> {
    list(host, path).await.into_iter().map(|message| message.text.unwrap()).collect()
}

async fn states(host: &TestHost) -> Vec<String> {
    list(host, "/sent").await.into_iter().map(|message| message.state).collect()
}

async fn read(host: &TestHost, sequences: &[u64]) -> Response {
    host.operator(order("/read", &json!({ "v": 1, "sequences": sequences }))).await
}

async fn read_all(host: &TestHost) {
    let sequences: Vec<u64> = list(host, "/inbox").await.iter().map(|message| message.sequence).collect();
    ok::<serde_json::Value>(read(host, &sequences).await).await;
}

async fn line(host: &TestHost) -> Summary {
    ok::<Peers>(host.operator(PeerRequest::get("/conversations")).await).await.conversations.remove(0)
}

/// A message as a version before attachments puts it on the wire.
fn delivery(id: u64, text: &str) -> PeerRequest {
    let head = format!(r#"{{"v":1,"id":"{id:032x}","sent_at":1,"content_type":"text/plain"}}"#);
    framed("/deliver", &head, text)
}

fn framed(path: &str, head: &str, text: &str) -> PeerRequest {
    let length = u32::try_from(head.len()).unwrap().to_be_bytes();
    let bytes = [&length[..], head.as_bytes(), text.as_bytes()].concat();
    PeerRequest::post(path, MESSAGE_CONTENT_TYPE, Body::whole(bytes))
}

#[tokio::test]
async fn a_sender_hears_that_its_message_was_read_and_when() {
    let (alice, bob) = pair().await;
    let sent = send(&alice, &bob, "one").await;
    send(&alice, &bob, "two").await;
    assert_eq!(states(&alice).await, ["delivered", "delivered"]);
    alice.advance(DAY).await;
    bob.advance(DAY).await;
    let number = list(&bob, "/inbox").await[0].sequence;
    ok::<serde_json::Value>(read(&bob, &[number, number]).await).await;
    bob.advance(1).await;
    let shown = list(&alice, &format!("/conversations/{}", bob.id())).await;
    assert_eq!((shown[0].id.as_str(), shown[0].state.as_str()), (sent.id.as_str(), "read"));
    assert_eq!(shown[0].read_at, Some(alice.context().now()));
    assert_eq!(shown[0].delivered_at, Some(alice.context().now() - DAY));
    assert_eq!((shown[1].state.as_str(), shown[1].read_at), ("delivered", None));
    assert_eq!(bob.count_rows(b"r/"), 0);
    assert_eq!(bob.requests(), 1);
    // Read again, nothing is said again.
    read_all(&bob).await;
    bob.advance(1).await;
    assert_eq!((states(&alice).await, bob.requests()), (vec!["read".to_owned(), "read".to_owned()], 2));
}

#[tokio::test]
async fn faults_of_every_kind_end_in_one_receipt() {
    let (alice, bob) = pair().await;
    send(&alice, &bob, "hello").await;
    bob.faults([Fault::FailBefore, Fault::TruncateRequest(3), Fault::DropResponse, Fault::Duplicate]);
    read_all(&bob).await;
    bob.advance(2_000).await;
    let first = list(&alice, "/sent").await[0].read_at;
    alice.advance(HOUR).await;
    bob.advance(HOUR).await;
    assert_eq!(states(&alice).await, ["read"]);
    if first.is_some() {
        assert_eq!(list(&alice, "/sent").await[0].read_at, first, "the first word counts");
    }
    assert_eq!(bob.count_rows(b"r/"), 0);
    // A peer that is away hears it when it is back.
    send(&alice, &bob, "again").await;
    alice.set_offline(true);
    read_all(&bob).await;
    bob.advance(HOUR).await;
    assert_eq!(bob.count_rows(b"r/"), 1);
    alice.set_offline(false);
    bob.event(Event::PeerReachable(alice.id())).await;
    assert_eq!(states(&alice).await, ["read", "read"]);
}

#[tokio::test]
async fn a_receipt_survives_the_end_of_either_process_at_any_change() {
    for (at_reader, changes) in [(true, 1), (true, 2), (false, 1)] {
        let (alice, bob) = pair().await;
        send(&alice, &bob, "hello").await;
        let number = list(&bob, "/inbox").await[0].sequence;
        let dying = if at_reader { &bob } else { &alice };
        dying.crash_after(changes);
        drop(read(&bob, &[number]).await);
        bob.advance(1).await;
        dying.kill_and_restart(Messaging::default()).await;
        bob.advance(HOUR).await;
        assert_eq!(states(&alice).await, ["read"], "{at_reader} {changes}");
        assert_eq!((bob.count_rows(b"r/"), bob.count_rows(b"u/")), (0, 0));
        assert_eq!(line(&bob).await.unread, 0);
    }
}

#[tokio::test]
async fn what_the_operator_forbids_is_not_said() {
    let alice_did = NodeId::from_bytes([1; 32]).to_string();
    let silent = [
        "read_receipts = false".to_owned(),
        format!("read_receipts_except = [\"{alice_did}\"]"),
        "read_receipts_except = [\"did:key:nobody\"]".to_owned(),
        "read_receipts = false\nread_receipts_except = [\"did:key:nobody\"]".to_owned(),
    ];
    for settings in silent {
        let (alice, bob) = pair().await;
        bob.configure(&settings);
        send(&alice, &bob, "hello").await;
        read_all(&bob).await;
        bob.advance(HOUR).await;
        assert_eq!((bob.requests(), bob.count_rows(b"r/")), (0, 0), "{settings}");
        assert_eq!(states(&alice).await, ["delivered"]);
        // Allowed later, what was read before stays unsaid.
        bob.configure("");
        bob.advance(HOUR).await;
        assert_eq!(bob.requests(), 0);
    }
    let (alice, bob) = pair().await;
    bob.configure(&format!("read_receipts = false\nread_receipts_except = [\"{alice_did}\"]"));
    send(&alice, &bob, "told").await;
    read_all(&bob).await;
    bob.advance(1).await;
    assert_eq!(states(&alice).await, ["read"]);
    // Forbidden while it waits.
    send(&alice, &bob, "hello").await;
    alice.set_offline(true);
    read_all(&bob).await;
    bob.advance(1).await;
    assert_eq!(bob.count_rows(b"r/"), 1);
    bob.configure("read_receipts = false");
    alice.set_offline(false);
    bob.event(Event::PeerReachable(alice.id())).await;
    assert_eq!(bob.count_rows(b"r/"), 0);
    assert_eq!(states(&alice).await, ["read", "delivered"]);
}

#[tokio::test]
async fn a_reading_that_overtakes_the_delivery_says_both() {
    let (alice, bob) = pair().await;
    alice.faults([Fault::DropResponse]);
    assert_eq!(send(&alice, &bob, "hello").await.state, "queued");
    read_all(&bob).await;
    bob.advance(1).await;
    assert_eq!((states(&alice).await, alice.count_rows(b"q/")), (vec!["read".to_owned()], 0));
    assert_eq!(line(&alice).await.waiting, 0);
    alice.advance(HOUR).await;
    assert_eq!(
        (states(&alice).await, texts(&bob, "/inbox").await),
        (vec!["read".to_owned()], vec!["hello".to_owned()])
    );
}

#[tokio::test]
async fn only_whom_a_message_was_for_says_that_it_was_read() {
    let (alice, bob) = pair().await;
    let sent = send(&alice, &bob, "hello").await;
    let said = |at: u64| order("/receipts", &json!({ "v": 1, "read": [{ "id": sent.id, "at": at }] }));
    ok::<serde_json::Value>(alice.as_peer(NodeId::from_bytes([9; 32]), said(1)).await).await;
    assert_eq!(states(&alice).await, ["delivered"]);
    for bad in [json!({}), json!({ "v": 1, "read": [{ "id": "ab", "at": 1 }] }), json!({ "v": 2, "read": [] })] {
        assert_eq!(code(alice.as_peer(bob.id(), order("/receipts", &bad)).await).await, "bad-receipts");
    }
    // A clock of its own: shown as no later than it was heard, and no earlier than it was sent.
    ok::<serde_json::Value>(alice.as_peer(bob.id(), said(u64::MAX)).await).await;
    ok::<serde_json::Value>(alice.as_peer(bob.id(), said(0)).await).await;
    assert_eq!(list(&alice, "/sent").await[0].read_at, Some(alice.context().now()));
    // What was refused was not read.
    let id = *b"0000000000000007";
    let head = format!(r#"{{"v":1,"id":"{}","sent_at":1,"content_type":"text/plain"}}"#, hex::encode(id));
    ok::<serde_json::Value>(bob.as_peer(alice.id(), framed("/deliver", &head, "other")).await).await;
    let request = PeerRequest::post(format!("/send/{}", bob.id()), "text/plain", Body::whole("this"));
    let sent: Sent = ok(alice.operator(PeerRequest { idempotency_key: Some(id), ..request }).await).await;
    assert_eq!(sent.state, "refused");
    read_all(&bob).await;
    bob.advance(1).await;
    let shown = list(&alice, "/sent").await.pop().unwrap();
    assert_eq!((shown.state.as_str(), shown.refused.as_deref()), ("refused", Some("message-id-reused")));
}

/// The peer's side of a version before read receipts and attachments.
#[derive(Default)]
struct Before;

impl Module for Before {
    fn manifest(&self) -> Manifest {
        Manifest { id: "messaging", version: "0.0.9", summary: "as it was" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.peer(Method::Post, "/deliver", 263_172, Self::receive);
    }
}

impl Before {
    async fn receive(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        let bytes = request.body.collect(263_172).await?;
        let length = u32::from_be_bytes(*bytes.first_chunk().unwrap()) as usize;
        let head: serde_json::Value = serde_json::from_slice(&bytes[4..4 + length]).unwrap();
        Response::json(Status::Ok, &json!({ "v": 1, "id": head["id"], "duplicate": false }))
    }
}

#[tokio::test]
async fn a_peer_of_the_version_before_is_told_nothing_that_it_does_not_know() {
    let alice = with_files(1).await;
    let old = TestHost::start(2, Before).await;
    link(&alice.messaging, &old);
    assert_eq!(send(&alice.messaging, &old, "plain").await.state, "delivered");
    ok::<serde_json::Value>(alice.messaging.as_peer(old.id(), delivery(1, "hello")).await).await;
    read_all(&alice.messaging).await;
    alice.messaging.advance(1).await;
    let asked = alice.messaging.requests();
    alice.messaging.advance(DAY).await;
    assert_eq!((alice.messaging.requests(), alice.messaging.count_rows(b"r/")), (asked, 0), "not tried again");
    let id = alice.share("report.txt", "content").await;
    let sent = attach(&alice.messaging, old.id(), "see", &id).await;
    assert_eq!((sent.state.as_str(), sent.refused.as_deref()), ("refused", Some("peer-takes-no-attachments")));
    assert_eq!(send(&alice.messaging, &old, "plain again").await.state, "delivered", "nothing is held up");
}

/// A node with both modules.
struct Both {
    messaging: TestHost,
    files: TestHost,
}

async fn with_files(seed: u8) -> Both {
    let messaging = TestHost::start(seed, Messaging::default()).await;
    let files = TestHost::start(seed, Files::default()).await;
    messaging.beside(&files);
    Both { messaging, files }
}

impl Both {
    async fn share(&self, name: &str, content: &str) -> String {
        let path = format!("/share/none/{name}");
        let request = PeerRequest::post(path, "application/octet-stream", Body::whole(content.to_owned()));
        ok::<ShareView>(self.files.operator(request).await).await.id.to_string()
    }
}

async fn attach(from: &TestHost, to: NodeId, text: &str, ids: &str) -> Sent {
    let request = PeerRequest::post(format!("/send/{to}/{ids}"), "text/plain", Body::whole(text.to_owned()));
    ok(from.operator(request).await).await
}

#[tokio::test]
async fn a_message_names_files_which_its_receiver_then_may_fetch() {
    let (alice, bob) = (with_files(1).await, with_files(2).await);
    link(&alice.messaging, &bob.messaging);
    link(&alice.files, &bob.files);
    let (one, other) = (alice.share("one.txt", "first").await, alice.share("other.txt", "second one").await);
    let fetch = async |id: &str| {
        let path = format!("/fetch/{}/{id}", alice.files.id());
        let answer = bob.files.operator(PeerRequest::post(path, "", Body::empty())).await;
        String::from_utf8(answer.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
    };
    assert!(!fetch(&one).await.contains("\"done\""), "shared with nobody");
    alice.messaging.faults([Fault::DropResponse, Fault::Duplicate]);
    let sent = attach(&alice.messaging, bob.messaging.id(), "see", &format!("{one},{other}")).await;
    assert_eq!(sent.attachments.len(), 2);
    alice.messaging.advance(HOUR).await;
    let shown = list(&bob.messaging, "/inbox").await;
    assert_eq!((shown.len(), shown[0].text.as_deref()), (1, Some("see")));
    let names: Vec<_> =
        shown[0].attachments.iter().map(|one| (one.id.as_str(), one.name.as_str(), one.length)).collect();
    assert_eq!(names, [(one.as_str(), "one.txt", 5), (other.as_str(), "other.txt", 10)]);
    assert_eq!(list(&alice.messaging, "/sent").await[0].attachments, shown[0].attachments);
    assert!(fetch(&one).await.contains("\"done\"") && fetch(&other).await.contains("\"done\""));
    // Without a text, too; and deleted with the message.
    attach(&alice.messaging, bob.messaging.id(), "", &one).await;
    assert_eq!(bob.messaging.count_rows(b"a/"), 2);
    let all = json!({ "v": 1, "peer": alice.messaging.id().to_string() });
    ok::<serde_json::Value>(bob.messaging.operator(order("/delete", &all)).await).await;
    assert_eq!(bob.messaging.count_rows(b"a/"), 0);
    assert_eq!(line(&bob.messaging).await.kept_bytes, 0, "what a message counts for goes with it");
}

#[tokio::test]
async fn what_is_attached_has_to_be_shared_here() {
    let (alice, bob) = (with_files(1).await, with_files(2).await);
    link(&alice.messaging, &bob.messaging);
    let refused = async |ids: &str| {
        let path = format!("/send/{}/{ids}", bob.messaging.id());
        code(alice.messaging.operator(PeerRequest::post(path, "text/plain", Body::whole("x"))).await).await
    };
    assert_eq!(refused(&"ab".repeat(32)).await, "attachment-not-shared");
    assert_eq!(refused("../secret").await, "no-such-route");
    assert_eq!(refused("secret").await, "bad-attachment");
    assert_eq!(alice.messaging.count_rows(b"o/"), 0);
    alice.messaging.withdraw_grants();
    assert_eq!(refused(&"ab".repeat(32)).await, "not-granted");
}

#[tokio::test]
async fn only_a_message_that_is_stored_lets_its_receiver_in_and_a_repeated_call_asks_for_nothing() {
    let (alice, bob) = (with_files(1).await, with_files(2).await);
    link(&alice.messaging, &bob.messaging);
    let (id, other) = (alice.share("a.txt", "x").await, alice.share("b.txt", "y").await);
    let readers = async || {
        let shares: openred_files::Shares = ok(alice.files.operator(PeerRequest::get("/shares")).await).await;
        shares.shares.iter().map(|share| share.audience.peers.len()).sum::<usize>()
    };
    let keyed = |text: &str, ids: &str| {
        let path = format!("/send/{}/{ids}", bob.messaging.id());
        let request = PeerRequest::post(path, "text/plain", Body::whole(text.to_owned()));
        PeerRequest { idempotency_key: Some([7; 16]), ..request }
    };
    let sent: Sent = ok(alice.messaging.operator(keyed("see", &id)).await).await;
    assert_eq!(readers().await, 1);
    assert_eq!(code(alice.messaging.operator(keyed("see", &other)).await).await, "idempotency-key-reused");
    // Though its file is not shared any more.
    let stopped = PeerRequest::post(format!("/unshare/{id}"), "", Body::empty());
    assert!(alice.files.operator(stopped).await.status.is_success());
    let again: Sent = ok(alice.messaging.operator(keyed("see", &id)).await).await;
    assert_eq!((again.sequence, again.attachments), (sent.sequence, sent.attachments));
    alice.messaging.set_offline(true);
    for _ in 0..1000 {
        send(&alice.messaging, &bob.messaging, "x").await;
    }
    let path = format!("/send/{}/{other}", bob.messaging.id());
    let refused = alice.messaging.operator(PeerRequest::post(path, "text/plain", Body::whole("y"))).await;
    assert_eq!(code(refused).await, "outbox-full");
    assert_eq!(readers().await, 0, "nobody was let in for what was refused");
}

#[tokio::test]
async fn what_a_peer_says_of_files_is_held_to_the_rules() {
    let (alice, bob) = pair().await;
    let named = |files: serde_json::Value| {
        let head =
            json!({ "v": 1, "id": "ab".repeat(16), "sent_at": 1, "content_type": "text/plain", "attachments": files });
        framed("/deliver/attached", &head.to_string(), "x")
    };
    let one = |number: usize, name: &str| json!({ "id": format!("{number:064x}"), "name": name, "length": 1 });
    let many: Vec<_> = (0..=ATTACHMENTS).map(|number| one(number, "a")).collect();
    for bad in [
        json!([one(1, "../../etc/passwd")]),
        json!([one(1, "a\u{202e}b")]),
        json!([one(1, "\u{1b}[2J")]),
        json!([one(1, "")]),
        json!([{ "id": "AB".repeat(32), "name": "a", "length": 1 }]),
        json!([{ "id": "ab".repeat(32), "name": "a", "length": u64::MAX }]),
        json!([{ "id": "ab".repeat(32), "name": "a", "length": -1 }]),
        json!([one(1, "a"), one(1, "b")]),
        json!(many),
        json!("all"),
    ] {
        assert_eq!(code(bob.as_peer(alice.id(), named(bad)).await).await, "bad-message");
    }
    assert_eq!(bob.count_rows(b""), 0);
    ok::<serde_json::Value>(bob.as_peer(alice.id(), named(json!([one(1, "a")]))).await).await;
    let again = bob.as_peer(alice.id(), named(json!([one(2, "a")]))).await;
    assert_eq!(code(again).await, "message-id-reused", "what is named is part of the message");
}

#[tokio::test]
async fn old_messages_are_swept_as_the_operator_says() {
    let (alice, bob) = pair().await;
    for text in ["read", "unread"] {
        send(&alice, &bob, text).await;
    }
    let number = list(&bob, "/inbox").await[0].sequence;
    ok::<serde_json::Value>(read(&bob, &[number]).await).await;
    bob.advance(1).await;
    bob.set_offline(true);
    send(&alice, &bob, "waits").await;
    alice.configure("retention_days = 30");
    bob.advance(400 * DAY).await;
    assert_eq!(bob.count_rows(b"i/"), 2, "for ever, unless the operator says otherwise");
    bob.configure("retention_days = 400");
    bob.advance(DAY).await;
    assert_eq!(texts(&bob, "/inbox").await, ["unread"]);
    let shown = line(&bob).await;
    assert_eq!((shown.received, shown.kept, shown.unread), (2, 1, 1));
    bob.configure("retention_days = 400\nretention_of = \"all\"");
    bob.advance(DAY).await;
    assert_eq!((bob.count_rows(b"i/"), bob.count_rows(b"u/"), line(&bob).await.unread), (0, 0, 0));
    // At the sender: what is settled goes, what waits stays, and still arrives.
    alice.advance(20 * DAY).await;
    assert_eq!(alice.count_rows(b"o/"), 3);
    alice.advance(11 * DAY).await;
    assert_eq!(texts(&alice, "/sent").await, ["waits"]);
    for (prefix, rows) in [(&b"k/"[..], 1), (b"e/", 0), (b"v/", 1), (b"q/", 1)] {
        assert_eq!(alice.count_rows(prefix), rows);
    }
    bob.set_offline(false);
    alice.event(Event::PeerReachable(bob.id())).await;
    assert_eq!(texts(&bob, "/inbox").await, ["waits"]);
}

#[tokio::test]
async fn a_swept_message_does_not_come_back_and_leaves_its_receipt() {
    let (alice, bob) = pair().await;
    bob.configure("retention_days = 1");
    alice.faults([Fault::DropResponse]);
    assert_eq!(send(&alice, &bob, "hello").await.state, "queued");
    alice.set_offline(true);
    read_all(&bob).await;
    bob.advance(2 * DAY).await;
    assert_eq!((bob.count_rows(b"i/"), bob.count_rows(b"r/")), (0, 1));
    bob.cut_power_and_restart(Messaging::default()).await;
    alice.set_offline(false);
    alice.event(Event::PeerReachable(bob.id())).await;
    assert_eq!(states(&alice).await, ["delivered"], "acknowledged again, so its sender is content");
    assert_eq!(bob.count_rows(b"i/"), 0, "and shown to nobody");
    bob.event(Event::PeerReachable(alice.id())).await;
    assert_eq!(states(&alice).await, ["read"]);
}

#[tokio::test]
async fn a_sweep_that_its_host_cuts_goes_on_where_it_was() {
    let (alice, bob) = pair().await;
    for number in 0..600 {
        ok::<serde_json::Value>(bob.as_peer(alice.id(), delivery(number, "x")).await).await;
    }
    bob.advance(2 * DAY).await;
    bob.configure("retention_days = 1\nretention_of = \"all\"");
    {
        let mut cut = std::pin::pin!(bob.event(Event::Timer(3)));
        while bob.count_rows(b"i/") == 600 {
            assert!(futures_util::poll!(cut.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    }
    assert!(bob.count_rows(b"i/") > 0);
    bob.advance(HOUR).await;
    assert_eq!(bob.count_rows(b"i/"), 0, "not hours later, from the beginning");
}

#[tokio::test]
async fn a_long_list_is_swept_in_parts_and_by_the_clock_of_this_node() {
    let (alice, bob) = pair().await;
    for number in 0..3_000 {
        ok::<serde_json::Value>(bob.as_peer(alice.id(), delivery(number, "x")).await).await;
    }
    bob.advance(2 * DAY).await;
    // Younger ones behind them stay.
    ok::<serde_json::Value>(bob.as_peer(alice.id(), delivery(3_000, "young")).await).await;
    bob.configure("retention_days = 1\nretention_of = \"all\"");
    // It ends in the middle, by a kill and by a full disk, and goes on.
    bob.crash_after(7);
    bob.advance(6 * HOUR).await;
    bob.kill_and_restart(Messaging::default()).await;
    assert!(bob.count_rows(b"i/") > 1);
    bob.advance(12 * HOUR).await;
    assert_eq!(texts(&bob, "/inbox").await, ["young"]);
    // Before their time a clock that jumps back sweeps nothing.
    bob.set_clock(1_000_000);
    bob.kill_and_restart(Messaging::default()).await;
    bob.advance(HOUR).await;
    assert_eq!(bob.count_rows(b"i/"), 1);
    let repeated: serde_json::Value = ok(bob.as_peer(alice.id(), delivery(2_999, "x")).await).await;
    assert_eq!(repeated["duplicate"], true);
}

/// Rows as the version before read receipts, attachments and retention has written them.
async fn as_before(name: &str, seed: u8) -> TestHost {
    let host = TestHost::start(seed, Messaging::default()).await;
    let mut batch = Batch::new();
    for line in include_str!("rows/before-receipts.txt").lines().filter(|line| line.starts_with(name)) {
        let words: Vec<&str> = line.split(' ').collect();
        batch = batch.put(hex::decode(words[1]).unwrap(), hex::decode(words[2]).unwrap());
    }
    assert_eq!(host.context().apply(batch).await.unwrap(), openred_module::Committed::Yes);
    host.kill_and_restart(Messaging::default()).await;
    host
}

#[tokio::test]
async fn rows_of_the_version_before_are_read_and_gone_on_with() {
    let (alice, bob) = (as_before("alice", 1).await, as_before("bob", 2).await);
    assert_eq!(texts(&bob, "/inbox").await, ["read", "unread", "seven", "of the older id", "of the newer id"]);
    assert_eq!(texts(&alice, "/sent").await, ["read", "unread", "deleted", "refused", "waiting"]);
    assert_eq!(states(&alice).await, ["delivered", "delivered", "delivered", "refused", "queued"]);
    link(&alice, &bob);
    alice.event(Event::PeerReachable(bob.id())).await;
    assert_eq!(states(&alice).await[4], "delivered");
    read_all(&bob).await;
    bob.advance(1).await;
    assert_eq!(states(&alice).await, ["delivered", "read", "delivered", "refused", "read"]);
    let shown = list(&bob, "/inbox").await;
    assert!(shown.iter().all(|message| message.state == "read" && message.attachments.is_empty()));
    for host in [&alice, &bob] {
        host.configure("retention_days = 1");
        host.advance(3 * DAY).await;
        for prefix in [&b"i/"[..], b"o/", b"v/", b"u/", b"q/", b"k/", b"w/"] {
            assert_eq!(host.count_rows(prefix), 0, "{}", String::from_utf8_lossy(prefix));
        }
    }
    assert_eq!(line(&bob).await.kept_bytes, 0);
}
