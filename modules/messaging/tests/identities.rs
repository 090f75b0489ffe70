//! A peer that takes a new id and takes it back, as the node follows it: one conversation, and nothing in it twice.
#![allow(clippy::unwrap_used, reason = "tests")]

use openred_messaging::{Delete, Deleted, InboxQuery, MESSAGE_CONTENT_TYPE, Messaging, Page, Peers, Sent};
use openred_module::{Body, Event, NodeId, PeerRequest, Response, Status, TestHost, link};
use serde::de::DeserializeOwned;

async fn pair() -> (TestHost, TestHost) {
    let (alice, bob) = (TestHost::start(1, Messaging::default()).await, TestHost::start(2, Messaging::default()).await);
    link(&alice, &bob);
    (alice, bob)
}

async fn ok<T: DeserializeOwned>(response: Response) -> T {
    let status = response.status;
    let body = response.body.collect(1 << 20).await.unwrap();
    assert!(status.is_success(), "{status:?}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

async fn ask<T: DeserializeOwned>(host: &TestHost, path: &str, order: &impl serde::Serialize) -> T {
    let body = Body::whole(serde_json::to_vec(order).unwrap());
    ok(host.operator(PeerRequest::post(path, "application/json", body)).await).await
}

async fn send(from: &TestHost, to: &TestHost, text: &str) -> Sent {
    let request = PeerRequest::post(format!("/send/{}", to.id()), "text/plain", Body::whole(text.to_owned()));
    ok(from.operator(request).await).await
}

async fn texts(host: &TestHost) -> Vec<String> {
    let page: Page = ok(host.operator(PeerRequest::get("/inbox")).await).await;
    page.messages.into_iter().map(|message| message.text.unwrap()).collect()
}

/// A message as a peer puts it on the wire, under this id.
fn delivery(id: u64, text: &str) -> PeerRequest {
    let head = format!(r#"{{"v":1,"id":"{id:032x}","sent_at":1,"content_type":"text/plain"}}"#);
    let length = u32::try_from(head.len()).unwrap().to_be_bytes();
    let bytes = [&length[..], head.as_bytes(), text.as_bytes()].concat();
    PeerRequest::post("/deliver", MESSAGE_CONTENT_TYPE, Body::whole(bytes))
}

/// Delivers as this id of the peer; whether it was there before.
async fn deliver(host: &TestHost, sender: NodeId, id: u64, text: &str) -> bool {
    let receipt: serde_json::Value = ok(host.as_peer(sender, delivery(id, text)).await).await;
    receipt["duplicate"].as_bool().unwrap()
}

async fn lines(host: &TestHost) -> Vec<(String, u64, u64, u64)> {
    let peers: Peers = ok(host.operator(PeerRequest::get("/conversations")).await).await;
    assert!(peers.next.is_none());
    peers.conversations.into_iter().map(|line| (line.peer, line.received, line.sent, line.waiting)).collect()
}

async fn conversation(host: &TestHost, peer: NodeId) -> Vec<(String, String, Option<String>)> {
    let page: Page = ask(host, &format!("/conversations/{peer}"), &InboxQuery::default()).await;
    page.messages.into_iter().map(|message| (message.text.unwrap(), message.peer, message.identity)).collect()
}

#[tokio::test]
async fn a_conversation_goes_on_under_a_peers_new_id_and_back() {
    let (alice, bob) = pair().await;
    let (old, new) = (alice.id(), NodeId::from_bytes([9; 32]));
    send(&alice, &bob, "first").await;
    let repeated = 7;
    assert!(!deliver(&bob, old, repeated, "second").await);
    alice.set_offline(true);
    assert_eq!(send(&bob, &alice, "waits").await.state, "queued");

    bob.succeed(old, new).await;
    for sender in [new, old] {
        assert!(deliver(&bob, sender, repeated, "second").await, "repeated over the change");
    }
    let other = bob.as_peer(new, delivery(repeated, "other")).await;
    assert_eq!(other.status, Status::Conflict, "an id names one message");
    let third = 8;
    assert!(!deliver(&bob, new, third, "third").await);
    assert_eq!(lines(&bob).await, [(new.to_string(), 3, 1, 1)], "one line, by the id of today");
    let (shown, older) = (new.to_string(), Some(old.to_string()));
    let line = |text: &str, identity: &Option<String>| (text.to_owned(), shown.clone(), identity.clone());
    let all = [line("first", &older), line("second", &older), line("waits", &older), line("third", &None)];
    for id in [old, new] {
        assert_eq!(conversation(&bob, id).await, all);
        let only = InboxQuery { peer: Some(id.to_string()), ..InboxQuery::default() };
        let page: Page = ask(&bob, "/inbox", &only).await;
        assert_eq!(page.messages.len(), 3);
    }
    // Whatever memory held is gone; what is durable says the same.
    bob.kill_and_restart(Messaging::default()).await;
    assert_eq!(conversation(&bob, new).await, all);

    bob.take_back(old).await;
    assert_eq!(lines(&bob).await, [(old.to_string(), 3, 1, 1)], "all of it is the older one's again");
    let third_then = conversation(&bob, old).await.pop().unwrap();
    assert_eq!(
        third_then,
        ("third".to_owned(), old.to_string(), Some(new.to_string())),
        "and who it came from is said"
    );
    assert!(deliver(&bob, old, third, "third").await, "repeated over the taking back");
    assert!(conversation(&bob, new).await.is_empty());
    alice.set_offline(false);
    bob.event(Event::PeerReachable(old)).await;
    assert_eq!(texts(&alice).await, ["waits"], "what waited goes to whom it was for");
    let all = Delete { v: 1, sequences: Vec::new(), peer: Some(old.to_string()) };
    let deleted: Deleted = ask(&bob, "/delete", &all).await;
    assert_eq!(deleted.deleted, 3);
    assert_eq!(bob.count_rows(b"w/"), 0);
}

#[tokio::test]
async fn what_came_under_the_new_id_before_the_change_was_heard_is_one_conversation_with_it() {
    let (_alice, bob) = pair().await;
    let (old, new) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([9; 32]));
    for (number, sender) in [(0, old), (1, new), (2, old), (3, new)] {
        assert!(!deliver(&bob, sender, number, &number.to_string()).await);
    }
    assert_eq!(lines(&bob).await.len(), 2);
    bob.succeed(old, new).await;
    assert_eq!(lines(&bob).await, [(new.to_string(), 4, 0, 0)]);
    let texts = |page: Vec<(String, String, Option<String>)>| page.into_iter().map(|line| line.0).collect::<Vec<_>>();
    assert_eq!(texts(conversation(&bob, old).await), ["0", "1", "2", "3"], "in the order in which they came");
    // Page by page, too, whichever of the two has more.
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let one = InboxQuery { after, limit: Some(1), ..InboxQuery::default() };
        let page: Page = ask(&bob, &format!("/conversations/{new}"), &one).await;
        all.extend(page.messages.into_iter().map(|message| message.text.unwrap()));
        after = page.next;
        if !page.more {
            break;
        }
    }
    assert_eq!(all, ["0", "1", "2", "3"]);
    assert!(deliver(&bob, new, 1, "1").await);
    bob.take_back(old).await;
    assert_eq!(texts(conversation(&bob, old).await), ["0", "2"], "what was never carried over goes back to nobody");
    assert_eq!(texts(conversation(&bob, new).await), ["1", "3"]);
}
