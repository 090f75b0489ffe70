//! `messaging`: what a peer delivers, what it says was read, and what it answers to a delivery.

use openred_messaging::{InboxQuery, MESSAGE_CONTENT_TYPE, MessageView, Messaging, Page, Sent};
use openred_module::{Body, PeerRequest, TestHost};
use prost::bytes::Bytes;
use serde_json::Value;

use super::{BOB, CAROL, Peer, answers, block_on, choice, is_plain, post, read, refused, value};

/// The id of the message that this node sends.
const ID: [u8; 16] = [0x70; 16];
/// Longer than the pause between two attempts.
const LATER: u64 = 600_000;

pub(crate) fn messaging(bytes: &[u8]) {
    let (which, bytes) = choice(bytes, 4);
    block_on(async {
        match which {
            0 => delivered("/deliver", bytes).await,
            1 => delivered("/deliver/attached", bytes).await,
            2 => said_to_be_read(bytes).await,
            _ => answered(bytes).await,
        }
    });
}

async fn messages(host: &TestHost, path: &str) -> Vec<MessageView> {
    let query = serde_json::to_vec(&InboxQuery::default()).unwrap();
    read::<Page>(host.operator(post(path, query)).await).await.messages
}

/// What is taken is one message, as it was sent, however often it comes; what is refused has left nothing.
async fn delivered(path: &str, bytes: &[u8]) {
    let host = TestHost::start(1, Messaging::default()).await;
    let deliver = || PeerRequest::post(path, MESSAGE_CONTENT_TYPE, Body::whole(bytes.to_vec()));
    let answer = host.as_peer(BOB, deliver()).await;
    let is_taken = answer.status.is_success();
    let inbox = messages(&host, "/inbox").await;
    assert_eq!(inbox.len(), usize::from(is_taken), "what was acknowledged is there, and nothing else");
    let Some(message) = inbox.first() else { return refused(answer).await };
    let receipt: Value = read(answer).await;
    assert_eq!((receipt["id"].as_str(), receipt["duplicate"].as_bool()), (Some(message.id.as_str()), Some(false)));
    assert!(message.text.as_ref().is_none_or(|text| bytes.ends_with(text.as_bytes())));
    assert!(message.attachments.iter().all(|file| is_plain(&file.name)), "{message:?}");
    let again: Value = read(host.as_peer(BOB, deliver()).await).await;
    assert_eq!(again["duplicate"], true);
    assert_eq!(messages(&host, "/inbox").await, inbox);
}

/// A node that has sent one message.
async fn sent(bytes: &[u8]) -> (TestHost, TestHost, Sent) {
    let host = TestHost::start(1, Messaging::default()).await;
    let peer = Peer::beside(&host, answers(bytes)).await;
    let request = PeerRequest::post(format!("/send/{BOB}"), "text/plain", Body::whole("hello"));
    let sent = read(host.operator(PeerRequest { idempotency_key: Some(ID), ..request }).await).await;
    (host, peer, sent)
}

/// Only a receipt that names the message says that it was read, and only from whom it was for.
async fn said_to_be_read(bytes: &[u8]) {
    let (host, _peer, sent) = sent(&delivery_receipt()).await;
    assert_eq!(sent.state, "delivered");
    host.as_peer(CAROL, post("/receipts", bytes.to_vec())).await;
    assert_eq!(messages(&host, "/sent").await[0].state, "delivered", "it was not for her");
    let answer = host.as_peer(BOB, post("/receipts", bytes.to_vec())).await;
    let named = value(bytes)["read"].as_array().is_some_and(|read| {
        read.iter().any(|one| one["id"].as_str().is_some_and(|id| id.eq_ignore_ascii_case(&sent.id)))
    });
    let is_read = answer.status.is_success() && named;
    let wanted = if is_read { "read" } else { "delivered" };
    assert_eq!(messages(&host, "/sent").await[0].state, wanted);
    if !answer.status.is_success() {
        refused(answer).await;
    }
}

/// Only a receipt for this very message takes it off the queue as delivered.
async fn answered(bytes: &[u8]) {
    let (host, _peer, _) = sent(bytes).await;
    host.advance(LATER).await;
    let sent = messages(&host, "/sent").await;
    assert_eq!(sent.len(), 1);
    let is_receipt = |body: &Bytes| value(body)["id"].as_str() == Some(sent[0].id.as_str());
    let receipts = answers(bytes).into_iter().filter(|(status, body)| status.is_success() && is_receipt(body)).count();
    match sent[0].state.as_str() {
        "delivered" => assert!(receipts > 0),
        "refused" => assert!(sent[0].refused.as_ref().is_some_and(|code| code.is_ascii())),
        state => assert_eq!(state, "queued"),
    }
}

fn delivery_receipt() -> Vec<u8> {
    super::corpus::said(0, format!(r#"{{"v":1,"id":"{}","duplicate":false}}"#, hex::encode(ID)))
}

/// A message of each form, receipts, answers of each kind.
pub(crate) fn corpus() -> Vec<(String, Vec<u8>)> {
    use super::corpus::{after, said};

    let framed = |head: &str, content: &[u8]| {
        [&u32::try_from(head.len()).unwrap().to_be_bytes(), head.as_bytes(), content].concat()
    };
    let id = hex::encode(ID);
    let head = |more: &str, kind: &str| format!(r#"{{"v":1,"id":"{id}","sent_at":1,"content_type":"{kind}"{more}}}"#);
    let file =
        |digit: char, name: &str| format!(r#"{{"id":"{}","name":"{name}","length":5}}"#, digit.to_string().repeat(64));
    let files = format!(r#","attachments":[{},{}]"#, file('a', "report.txt"), file('b', "Ünïcode 🙂"));
    let read = |id: &str| format!(r#"{{"v":1,"read":[{{"id":"{id}","at":5}}]}}"#);
    let problem = |code: &str| format!(r#"{{"code":"{code}","status":400}}"#);
    crate::corpus::numbered([
        after(0, framed(&head("", "text/plain"), b"hello")),
        after(0, framed(&head("", "application/octet-stream"), &[0xff, 0, 1])),
        after(0, framed(&head(r#","later":true"#, "text/plain"), b"")),
        after(1, framed(&head(&files, "text/plain"), b"see")),
        after(1, framed(&head(r#","attachments":[]"#, "text/plain"), b"none")),
        after(2, read(&id)),
        after(2, read(&"0".repeat(32))),
        after(3, delivery_receipt()),
        after(3, [said(7, ""), said(5, problem("inbox-full")), delivery_receipt()].concat()),
        after(3, said(3, problem("message-id-reused"))),
        after(3, [said(2, problem("body-truncated")), said(0, "{}"), said(6, "")].concat()),
    ])
}
