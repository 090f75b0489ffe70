//! Two nodes with the messaging module, in virtual time: what is acknowledged is there once, whatever goes wrong between.
#![allow(clippy::unwrap_used, reason = "tests")]

use openred_messaging::{
    ConversationsQuery, DELETED_IDS, Delete, Deleted, InboxQuery, MESSAGE_CONTENT_TYPE, MESSAGE_COST, Messaging,
    PEER_BYTES, PEER_MESSAGES, Page, Peers, Sent, TEXT_LIMIT,
};
use openred_module::{Body, Event, Fault, NodeId, PeerRequest, Response, Status, TestHost, link};
use serde::de::DeserializeOwned;

const TEXT: &str = "text/plain; charset=utf-8";
const HOUR: u64 = 3_600_000;

async fn pair() -> (TestHost, TestHost) {
    let alice = TestHost::start(1, Messaging::default()).await;
    let bob = TestHost::start(2, Messaging::default()).await;
    link(&alice, &bob);
    (alice, bob)
}

fn send_request(to: NodeId, text: &str) -> PeerRequest {
    PeerRequest::post(format!("/send/{to}"), TEXT, Body::whole(text.to_owned()))
}

async fn ok<T: DeserializeOwned>(response: Response) -> T {
    let status = response.status;
    let body = response.body.collect(8 << 20).await.unwrap();
    assert!(status.is_success(), "{status:?}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

async fn refused(response: Response) -> (Status, String) {
    let status = response.status;
    assert!(!status.is_success());
    let problem: serde_json::Value = response.json_body().await.unwrap();
    (status, problem["code"].as_str().unwrap().to_owned())
}

async fn send(from: &TestHost, to: &TestHost, text: &str) -> Sent {
    ok(from.operator(send_request(to.id(), text)).await).await
}

async fn query(host: &TestHost, path: &str, query: &InboxQuery) -> Page {
    let body = Body::whole(serde_json::to_vec(query).unwrap());
    ok(host.operator(PeerRequest::post(path, "application/json", body)).await).await
}

async fn texts(host: &TestHost) -> Vec<String> {
    let page: Page = ok(host.operator(PeerRequest::get("/inbox")).await).await;
    page.messages.into_iter().map(|message| message.text.unwrap()).collect()
}

fn large_request(to: NodeId) -> PeerRequest {
    PeerRequest::post(format!("/send/{to}"), "application/octet-stream", Body::whole(vec![0xff; TEXT_LIMIT]))
}

async fn delete(host: &TestHost, sequences: &[u64], peer: Option<NodeId>) -> u64 {
    let peer = peer.map(|peer| peer.to_string());
    let order = serde_json::to_vec(&Delete { v: 1, sequences: sequences.to_vec(), peer }).unwrap();
    let request = PeerRequest::post("/delete", "application/json", Body::whole(order));
    ok::<Deleted>(host.operator(request).await).await.deleted
}

async fn conversations(host: &TestHost) -> Peers {
    ok(host.operator(PeerRequest::get("/conversations")).await).await
}

/// A message as a peer puts it on the wire, under this id.
fn delivery(id: u64, text: &str) -> PeerRequest {
    let head = format!(r#"{{"v":1,"id":"{id:032x}","sent_at":1,"content_type":"text/plain"}}"#);
    let mut bytes = u32::try_from(head.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(text.as_bytes());
    PeerRequest::post("/deliver", MESSAGE_CONTENT_TYPE, Body::whole(bytes))
}

#[tokio::test]
async fn a_message_arrives_and_is_read() {
    let (alice, bob) = pair().await;
    let sent = send(&alice, &bob, "hello").await;
    assert_eq!(sent.state, "delivered");
    let page = query(&bob, "/inbox", &InboxQuery { unread: true, ..InboxQuery::default() }).await;
    assert_eq!(page.messages.len(), 1);
    let message = &page.messages[0];
    assert_eq!(message.text.as_deref(), Some("hello"));
    assert_eq!((message.id.as_str(), message.peer.as_str()), (sent.id.as_str(), alice.id().to_string().as_str()));

    let order = serde_json::json!({ "v": 1, "sequences": [message.sequence, message.sequence, 999] });
    let body = || Body::whole(order.to_string());
    let answer: serde_json::Value =
        ok(bob.operator(PeerRequest::post("/read", "application/json", body())).await).await;
    assert_eq!(answer["marked"], 1);
    let unread = query(&bob, "/inbox", &InboxQuery { unread: true, ..InboxQuery::default() }).await;
    assert!(unread.messages.is_empty());
    assert_eq!(texts(&bob).await, ["hello"]);
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_message() {
    let (alice, bob) = pair().await;
    alice.faults([Fault::DropResponse, Fault::DropResponse]);
    assert_eq!(send(&alice, &bob, "once").await.state, "queued");
    assert_eq!(texts(&bob).await, ["once"], "the request itself arrived");
    alice.advance(HOUR).await;
    assert_eq!(alice.requests(), 3);
    assert_eq!(texts(&bob).await, ["once"]);
    assert_eq!(alice.count_rows(b"q/"), 0);
}

#[tokio::test]
async fn faults_of_every_kind_end_in_one_copy_in_order() {
    let (alice, bob) = pair().await;
    alice.faults([
        Fault::FailBefore,
        Fault::TruncateRequest(3),
        Fault::TruncateResponse(5),
        Fault::CorruptResponse(12),
        Fault::DropResponse,
        Fault::None,
        Fault::DropResponse,
        Fault::ExtendResponse(9),
    ]);
    for number in 0..5 {
        send(&alice, &bob, &format!("number {number}")).await;
    }
    alice.advance(HOUR).await;
    let expected: Vec<String> = (0..5).map(|number| format!("number {number}")).collect();
    assert_eq!(texts(&bob).await, expected);
    assert_eq!(alice.count_rows(b"q/"), 0);
}

#[tokio::test]
async fn an_offline_peer_gets_it_when_it_comes_back_and_after_a_restart_of_the_sender() {
    let (alice, bob) = pair().await;
    bob.set_offline(true);
    let sent = send(&alice, &bob, "later").await;
    assert_eq!((sent.state.as_str(), sent.waiting.as_deref()), ("queued", Some("peer-unreachable")));
    alice.advance(HOUR).await;
    let tried = alice.requests();
    assert!((8..60).contains(&tried), "an hour of back-off made {tried} attempts");
    bob.set_offline(false);
    alice.cut_power_and_restart(Messaging::default()).await;
    alice.advance(1).await;
    assert_eq!(texts(&bob).await, ["later"]);
}

#[tokio::test]
async fn a_session_with_the_peer_ends_the_rest() {
    let (alice, bob) = pair().await;
    bob.set_offline(true);
    send(&alice, &bob, "now").await;
    bob.set_offline(false);
    alice.event(Event::PeerReachable(bob.id())).await;
    assert_eq!(texts(&bob).await, ["now"]);
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_cut() {
    let (alice, bob) = pair().await;
    assert_eq!(send(&alice, &bob, "kept").await.state, "delivered");
    bob.cut_power_and_restart(Messaging::default()).await;
    assert_eq!(texts(&bob).await, ["kept"]);
}

#[tokio::test]
async fn a_full_disk_at_the_receiver_only_delays() {
    let (alice, bob) = pair().await;
    bob.set_full(true);
    let sent = send(&alice, &bob, "room?").await;
    assert_eq!((sent.state.as_str(), sent.waiting.as_deref()), ("queued", Some("peer-disk-full")));
    bob.set_full(false);
    alice.advance(HOUR).await;
    assert_eq!(texts(&bob).await, ["room?"]);
}

#[tokio::test]
async fn a_full_disk_at_the_sender_is_said() {
    let (alice, bob) = pair().await;
    alice.set_full(true);
    let answer = alice.operator(send_request(bob.id(), "no room")).await;
    assert_eq!(refused(answer).await, (Status::InsufficientStorage, "disk-full".to_owned()));
    assert!(texts(&bob).await.is_empty());
}

#[tokio::test]
async fn many_senders_at_once_lose_nothing_and_double_nothing() {
    let (alice, bob) = pair().await;
    let both = (0..100).map(|number| {
        let (alice, bob) = (&alice, &bob);
        async move {
            send(alice, bob, &format!("a{number}")).await;
            send(bob, alice, &format!("b{number}")).await;
        }
    });
    futures_util::future::join_all(both).await;
    alice.advance(HOUR).await;
    bob.advance(HOUR).await;
    for (host, letter) in [(&bob, 'a'), (&alice, 'b')] {
        let mut got = texts(host).await;
        got.sort();
        let mut wanted: Vec<String> = (0..100).map(|number| format!("{letter}{number}")).collect();
        wanted.sort();
        assert_eq!(got, wanted);
    }
    let summary: Peers = ok(bob.operator(PeerRequest::get("/conversations")).await).await;
    let summary = &summary.conversations[0];
    assert_eq!((summary.received, summary.sent, summary.unread, summary.waiting), (100, 100, 100, 0));
}

#[tokio::test]
async fn a_retried_send_with_the_same_key_is_one_message() {
    let (alice, bob) = pair().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let request = PeerRequest { idempotency_key: Some([9; 16]), ..send_request(bob.id(), "same") };
        let sent: Sent = ok(alice.operator(request).await).await;
        alice.advance(5).await;
        ids.push((sent.id, sent.sequence, sent.state));
    }
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[1], ids[2]);
    assert_eq!(texts(&bob).await, ["same"]);
    // Other content under the key would be lost without a word if it were taken for the same message.
    let other = PeerRequest { idempotency_key: Some([9; 16]), ..send_request(bob.id(), "other") };
    let answer = alice.operator(other).await;
    assert_eq!(refused(answer).await, (Status::Conflict, "idempotency-key-reused".to_owned()));
    let body = Body::whole("same");
    let retyped = PeerRequest::post(format!("/send/{}", bob.id()), "text/html", body);
    let answer = alice.operator(PeerRequest { idempotency_key: Some([9; 16]), ..retyped }).await;
    assert_eq!(refused(answer).await.1, "idempotency-key-reused");
    alice.advance(HOUR).await;
    assert_eq!(texts(&bob).await, ["same"]);
}

#[tokio::test]
async fn one_peer_fills_its_share_of_the_inbox_and_no_more() {
    let (alice, bob) = pair().await;
    let carol = TestHost::start(3, Messaging::default()).await;
    link(&carol, &bob);
    let fit = PEER_BYTES / (TEXT_LIMIT as u64 + MESSAGE_COST);
    for _ in 0..fit {
        let sent: Sent = ok(alice.operator(large_request(bob.id())).await).await;
        assert_eq!(sent.state, "delivered");
    }
    assert!(bob.no_room().is_none());
    // Refused, kept at the sender, and the reason is the true one.
    let sent: Sent = ok(alice.operator(large_request(bob.id())).await).await;
    assert_eq!((sent.state.as_str(), sent.waiting.as_deref()), ("queued", Some("peer-inbox-full")));
    assert_eq!(sent.detail.as_deref(), Some("the peer's inbox is full"));
    assert_eq!(send(&alice, &bob, "last").await.state, "queued", "order holds: nothing overtakes");
    let (status, code) = refused(bob.as_peer(alice.id(), delivery(1, &"x".repeat(TEXT_LIMIT))).await).await;
    assert_eq!((status, code.as_str()), (Status::TooMany, "inbox-full"));
    assert!(bob.no_room().unwrap().contains(&alice.id().short()), "the operator is told whose");
    let outbox: serde_json::Value = ok(alice.operator(PeerRequest::get("/outbox")).await).await;
    assert_eq!(outbox["queued"][0]["waiting"], "peer-inbox-full");
    alice.advance(HOUR).await;
    assert_eq!(bob.count_rows(b"i/") as u64, fit);
    // It is nobody else's share.
    assert_eq!(send(&carol, &bob, "from carol").await.state, "delivered");
    assert!(bob.no_room().is_some());

    let before = conversations(&bob).await;
    let of_alice = before.conversations.iter().find(|summary| summary.peer == alice.id().to_string()).unwrap();
    assert_eq!((of_alice.kept, of_alice.kept_bytes), (fit, fit * (TEXT_LIMIT as u64 + MESSAGE_COST)));
    let page = query(&bob, "/inbox", &InboxQuery::default()).await;
    let oldest: Vec<u64> = page.messages.iter().take(2).map(|message| message.sequence).collect();
    assert_eq!(delete(&bob, &oldest, None).await, 2);
    assert!(bob.no_room().is_none(), "there is room again");
    alice.advance(HOUR).await;
    assert_eq!(alice.count_rows(b"q/"), 0);
    assert_eq!(bob.count_rows(b"i/") as u64, fit + 1, "two went, the two that waited came");
}

#[tokio::test]
async fn the_number_of_a_peers_messages_is_bounded_too() {
    let (alice, bob) = pair().await;
    for number in 0..PEER_MESSAGES {
        ok::<serde_json::Value>(bob.as_peer(alice.id(), delivery(number, "x")).await).await;
    }
    assert_eq!(refused(bob.as_peer(alice.id(), delivery(PEER_MESSAGES, "x")).await).await.1, "inbox-full");
    // A repetition needs no room.
    let again: serde_json::Value = ok(bob.as_peer(alice.id(), delivery(7, "x")).await).await;
    assert_eq!(again["duplicate"], true);
    assert_eq!(delete(&bob, &[], Some(alice.id())).await, PEER_MESSAGES);
    for prefix in [&b"i/"[..], b"u/", b"v/"] {
        assert_eq!(bob.count_rows(prefix), 0);
    }
    assert_eq!(bob.count_rows(b"d/") as u64, DELETED_IDS, "remembered ids are bounded");
    assert_eq!(bob.count_rows(b"s/") as u64, DELETED_IDS);
    let summary = &conversations(&bob).await.conversations[0];
    assert_eq!((summary.received, summary.kept, summary.kept_bytes, summary.unread), (PEER_MESSAGES, 0, 0, 0));
    ok::<serde_json::Value>(bob.as_peer(alice.id(), delivery(PEER_MESSAGES, "x")).await).await;
    assert_eq!(texts(&bob).await, ["x"]);
}

#[tokio::test]
async fn a_deleted_message_is_gone_and_does_not_come_back() {
    let (alice, bob) = pair().await;
    let carol = TestHost::start(3, Messaging::default()).await;
    link(&carol, &bob);
    for text in ["one", "two", "three"] {
        send(&alice, &bob, text).await;
    }
    send(&carol, &bob, "of carol").await;
    // The receipt is lost, so alice will deliver it again, after it was deleted.
    alice.faults([Fault::DropResponse]);
    assert_eq!(send(&alice, &bob, "repeated").await.state, "queued");
    let page = query(&bob, "/inbox", &InboxQuery::default()).await;
    let sequence_of =
        |text: &str| page.messages.iter().find(|message| message.text.as_deref() == Some(text)).unwrap().sequence;
    let (two, repeated) = (sequence_of("two"), sequence_of("repeated"));
    assert_eq!(delete(&bob, &[two, two, repeated, 999], None).await, 2);
    assert_eq!(delete(&bob, &[sequence_of("of carol")], Some(alice.id())).await, 0, "not alice's");
    alice.advance(HOUR).await;
    assert_eq!(alice.count_rows(b"q/"), 0, "acknowledged again, so its sender is content");
    assert_eq!(texts(&bob).await, ["one", "three", "of carol"]);
    let path = format!("/conversations/{}", alice.id());
    assert_eq!(query(&bob, &path, &InboxQuery::default()).await.messages.len(), 2);
    assert_eq!(delete(&bob, &[], Some(alice.id())).await, 2);
    assert_eq!(texts(&bob).await, ["of carol"]);
    bob.kill_and_restart(Messaging::default()).await;
    assert_eq!(texts(&bob).await, ["of carol"]);
    let nothing = PeerRequest::post("/delete", "application/json", Body::whole("{}"));
    assert_eq!(refused(bob.operator(nothing).await).await, (Status::BadRequest, "nothing-named".to_owned()));
}

#[tokio::test]
async fn the_list_of_conversations_goes_on_beyond_one_page() {
    let bob = TestHost::start(2, Messaging::default()).await;
    for number in 0..1005_u64 {
        let mut id = [7; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        ok::<serde_json::Value>(bob.as_peer(NodeId::from_bytes(id), delivery(1, "hello")).await).await;
    }
    let mut page = conversations(&bob).await;
    assert!(page.more);
    let mut all = page.conversations;
    while page.more {
        let order = ConversationsQuery { after: page.next, limit: Some(3), ..ConversationsQuery::default() };
        let body = Body::whole(serde_json::to_vec(&order).unwrap());
        page = ok(bob.operator(PeerRequest::post("/conversations", "application/json", body)).await).await;
        all.extend(page.conversations.clone());
    }
    assert_eq!(all.len(), 1005);
    assert!(all.windows(2).all(|two| two[0].peer != two[1].peer));
}

#[tokio::test]
async fn a_cursor_walks_through_everything_once() {
    let (alice, bob) = pair().await;
    for number in 0..25 {
        send(&alice, &bob, &format!("{number}")).await;
        send(&bob, &alice, "noise in between").await;
    }
    let mut query_page = InboxQuery { limit: Some(7), ..InboxQuery::default() };
    let mut all = Vec::new();
    loop {
        let page = query(&bob, "/inbox", &query_page).await;
        all.extend(page.messages.into_iter().map(|message| message.text.unwrap()));
        query_page.after = page.next;
        if !page.more {
            break;
        }
    }
    assert_eq!(all, (0..25).map(|number| number.to_string()).collect::<Vec<_>>());
    let path = format!("/conversations/{}", alice.id());
    let conversation = query(&bob, &path, &InboxQuery::default()).await;
    let directions: Vec<&str> = conversation.messages.iter().map(|message| message.direction.as_str()).collect();
    assert_eq!(directions, ["in", "out"].repeat(25));
}

#[tokio::test]
async fn large_pages_are_split_by_bytes() {
    let (alice, bob) = pair().await;
    for _ in 0..6 {
        let big = Body::whole(vec![0xff; TEXT_LIMIT]);
        let path = format!("/send/{}", bob.id());
        let sent: Sent = ok(alice.operator(PeerRequest::post(path, "application/octet-stream", big)).await).await;
        assert_eq!(sent.state, "delivered");
    }
    let page = query(&bob, "/inbox", &InboxQuery::default()).await;
    assert!(page.more && page.messages.len() < 6 && !page.messages.is_empty());
    assert!(page.messages[0].text.is_none() && page.messages[0].data.is_some());
}

#[tokio::test]
async fn since_and_peer_filter() {
    let (alice, bob) = pair().await;
    send(&alice, &bob, "old").await;
    bob.advance(1000).await;
    send(&alice, &bob, "new").await;
    let since = bob.context().now();
    let page = query(&bob, "/inbox", &InboxQuery { since, ..InboxQuery::default() }).await;
    assert_eq!(page.messages.len(), 1);
    let stranger = Some(NodeId::from_bytes([9; 32]).to_string());
    let page = query(&bob, "/inbox", &InboxQuery { peer: stranger, ..InboxQuery::default() }).await;
    assert!(page.messages.is_empty() && !page.more);
}

#[tokio::test]
async fn wrong_calls_are_refused_by_name() {
    let (alice, bob) = pair().await;
    let stranger = NodeId::from_bytes([9; 32]);
    let cases = [
        (send_request(stranger, "hi"), Status::NotFound, "peer-not-linked"),
        (send_request(bob.id(), ""), Status::BadRequest, "empty-message"),
        (PeerRequest::post("/send/nobody", TEXT, Body::whole("x")), Status::BadRequest, "bad-peer"),
        (
            PeerRequest::post(format!("/send/{}", bob.id()), "what\never", Body::whole("x")),
            Status::BadRequest,
            "bad-content-type",
        ),
        (
            PeerRequest::post(format!("/send/{}", bob.id()), TEXT, Body::whole(vec![b'x'; TEXT_LIMIT + 1])),
            Status::TooLarge,
            "body-too-long",
        ),
        (PeerRequest::post("/inbox", "application/json", Body::whole("{")), Status::BadRequest, "bad-json"),
        (
            PeerRequest::post("/inbox", "application/json", Body::whole(r#"{"v":9}"#)),
            Status::BadRequest,
            "unknown-version",
        ),
        (PeerRequest::post("/inbox", "application/json", Body::whole(r#"{"x":1}"#)), Status::BadRequest, "bad-json"),
        (PeerRequest::get("/nothing"), Status::NotFound, "no-such-route"),
        (PeerRequest::get("/read"), Status::MethodNotAllowed, "wrong-method"),
        // A peer's route does not exist for the operator, nor the other way round.
        (PeerRequest::post("/deliver", TEXT, Body::whole("x")), Status::NotFound, "no-such-route"),
    ];
    for (request, status, code) in cases {
        let path = request.path.clone();
        assert_eq!(refused(alice.operator(request).await).await, (status, code.to_owned()), "{path}");
    }
    let answer = alice.as_peer(bob.id(), PeerRequest::get("/inbox")).await;
    assert_eq!(refused(answer).await, (Status::NotFound, "no-such-route".to_owned()));
}

#[tokio::test]
async fn garbage_from_a_peer_is_refused_and_stores_nothing() {
    let (alice, bob) = pair().await;
    for garbage in [vec![], vec![0; 3], vec![0xff; 40], vec![0; 40], b"\0\0\0\x02{}".to_vec()] {
        let request = PeerRequest::post("/deliver", MESSAGE_CONTENT_TYPE, Body::whole(garbage));
        let (status, code) = refused(bob.as_peer(alice.id(), request).await).await;
        assert_eq!((status, code.as_str()), (Status::BadRequest, "bad-message"));
    }
    let endless = Body::stream(futures_util::stream::repeat_with(|| Ok(vec![0; 65536].into())));
    let request = PeerRequest::post("/deliver", MESSAGE_CONTENT_TYPE, endless);
    assert_eq!(refused(bob.as_peer(alice.id(), request).await).await.0, Status::TooLarge);
    assert_eq!(bob.count_rows(b""), 0);
}

#[tokio::test]
async fn a_message_id_names_one_message_for_good() {
    let (alice, bob) = pair().await;
    let message = |text: &str| {
        let head = format!(r#"{{"v":1,"id":"{}","sent_at":1,"content_type":"text/plain"}}"#, "ab".repeat(16));
        let mut bytes = u32::try_from(head.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(text.as_bytes());
        PeerRequest::post("/deliver", MESSAGE_CONTENT_TYPE, Body::whole(bytes))
    };
    let first: serde_json::Value = ok(bob.as_peer(alice.id(), message("one")).await).await;
    let again: serde_json::Value = ok(bob.as_peer(alice.id(), message("one")).await).await;
    assert_eq!((&first["duplicate"], &again["duplicate"]), (&false.into(), &true.into()));
    let (status, code) = refused(bob.as_peer(alice.id(), message("two")).await).await;
    assert_eq!((status, code.as_str()), (Status::Conflict, "message-id-reused"));
    // The id is the peer's own: another peer may use it too.
    let other: serde_json::Value = ok(bob.as_peer(NodeId::from_bytes([9; 32]), message("one")).await).await;
    assert_eq!(other["duplicate"], false);
    assert_eq!(texts(&bob).await, ["one", "one"]);
}

#[tokio::test]
async fn a_queue_has_an_end_and_says_so() {
    let (alice, bob) = pair().await;
    bob.set_offline(true);
    for number in 0..1000 {
        send(&alice, &bob, &number.to_string()).await;
    }
    let answer = alice.operator(send_request(bob.id(), "one too many")).await;
    assert_eq!(refused(answer).await, (Status::TooMany, "outbox-full".to_owned()));
    bob.set_offline(false);
    alice.event(Event::PeerReachable(bob.id())).await;
    assert_eq!(bob.count_rows(b"i/"), 1000);
    assert_eq!(send(&alice, &bob, "room again").await.state, "delivered");
}

#[tokio::test]
async fn a_clock_that_jumps_back_does_not_hold_messages_up() {
    let (alice, bob) = pair().await;
    bob.set_offline(true);
    send(&alice, &bob, "first").await;
    bob.set_offline(false);
    alice.set_clock(1_000_000);
    assert_eq!(send(&alice, &bob, "second").await.state, "delivered");
    assert_eq!(texts(&bob).await, ["first", "second"]);
}

/// Polls a future so many times, then drops it: what a host does to a call whose caller has gone.
async fn drop_after(polls: usize, future: impl Future) {
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        if futures_util::poll!(future.as_mut()).is_ready() {
            return;
        }
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_at_any_moment_leaves_no_message_behind() {
    let mut delivered = 0;
    for polls in 0..12 {
        let (alice, bob) = pair().await;
        // The timer of the start must not be what saves it.
        alice.advance(1).await;
        drop_after(polls, alice.operator(send_request(bob.id(), "hello"))).await;
        let stored = alice.count_rows(b"o/");
        alice.advance(HOUR).await;
        assert_eq!(alice.count_rows(b"q/"), 0, "dropped after {polls} polls");
        assert_eq!(texts(&bob).await.len(), stored, "dropped after {polls} polls");
        delivered += stored;
    }
    assert!((1..12).contains(&delivered), "both outcomes were seen");
}

#[tokio::test]
async fn an_event_that_is_cut_short_at_any_moment_leaves_no_message_behind() {
    for polls in 0..30 {
        let (alice, bob) = pair().await;
        bob.set_offline(true);
        for number in 0..3 {
            send(&alice, &bob, &number.to_string()).await;
        }
        bob.set_offline(false);
        drop_after(polls, alice.event(Event::PeerReachable(bob.id()))).await;
        // The timer is spent when its handler begins.
        drop_after(polls, alice.advance(2_000)).await;
        alice.advance(HOUR).await;
        assert_eq!(texts(&bob).await, ["0", "1", "2"], "dropped after {polls} polls");
        assert_eq!(alice.count_rows(b"q/"), 0);
    }
}
