//! Peers that take what they are sent and never answer: what a host does then is to cut the handler of the event, and nobody else is to
//! lose by it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::pin::pin;
use std::sync::Arc;

use openred_messaging::{InboxQuery, MESSAGE_CONTENT_TYPE, Messaging, Page, Sent};
use openred_module::{
    Body, Context, Event, Manifest, Method, Module, ModuleError, PeerRequest, Request, Response, Routes, TestHost, link,
};
use serde_json::json;

const HOUR: u64 = 3_600_000;
/// Timers of messages and of read receipts.
const TIMERS: [u32; 2] = [1, 2];
/// Steps after which a handler that goes on has been given all that it can do.
const STEPS: usize = 2000;

/// Takes everything and says nothing.
struct Silent;

impl Module for Silent {
    fn manifest(&self) -> Manifest {
        Manifest { id: "messaging", version: "0.1.0", summary: "never answers" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.peer(Method::Post, "/deliver", 263_172, Self::nothing);
        routes.peer(Method::Post, "/receipts", 16_384, Self::nothing);
    }
}

impl Silent {
    async fn nothing(self: Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        std::future::pending().await
    }
}

/// Whether it ends within so many steps; it is cut off if not.
async fn ends(future: impl Future) -> bool {
    let mut future = pin!(future);
    for _ in 0..STEPS {
        if futures_util::poll!(future.as_mut()).is_ready() {
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

async fn send(from: &TestHost, to: &TestHost) -> String {
    let request = PeerRequest::post(format!("/send/{}", to.id()), "text/plain", Body::whole("hello"));
    from.operator(request).await.json_body::<Sent>().await.unwrap().state
}

async fn inbox(host: &TestHost) -> Page {
    let query = serde_json::to_vec(&InboxQuery::default()).unwrap();
    let request = PeerRequest::post("/inbox", "application/json", Body::whole(query));
    host.operator(request).await.json_body().await.unwrap()
}

fn delivery(id: u64) -> PeerRequest {
    let head = format!(r#"{{"v":1,"id":"{id:032x}","sent_at":1,"content_type":"text/plain"}}"#);
    let length = u32::try_from(head.len()).unwrap().to_be_bytes();
    PeerRequest::post("/deliver", MESSAGE_CONTENT_TYPE, Body::whole([&length[..], head.as_bytes(), b"x"].concat()))
}

/// A node with a message and a receipt for each of these, none of them tried yet since then.
async fn with_something_for(peers: &[TestHost]) -> TestHost {
    let alice = TestHost::start(1, Messaging::default()).await;
    alice.set_offline(true);
    for peer in peers {
        link(&alice, peer);
        assert_eq!(send(&alice, peer).await, "queued");
        alice.as_peer(peer.id(), delivery(1)).await;
    }
    let sequences: Vec<u64> = inbox(&alice).await.messages.iter().map(|message| message.sequence).collect();
    let order = json!({ "v": 1, "sequences": sequences }).to_string();
    assert!(
        alice.operator(PeerRequest::post("/read", "application/json", Body::whole(order))).await.status.is_success()
    );
    assert_eq!((alice.count_rows(b"q/"), alice.count_rows(b"r/")), (peers.len(), peers.len()));
    alice.set_clock(alice.context().now() + HOUR);
    alice.set_offline(false);
    alice
}

#[tokio::test]
async fn peers_that_never_answer_do_not_keep_the_timers_from_the_others() {
    let mut peers = Vec::new();
    // As many as are served at once, and before the others in every list.
    for seed in 10..18 {
        peers.push(TestHost::start(seed, Silent).await);
    }
    for seed in 98..100 {
        peers.push(TestHost::start(seed, Messaging::default()).await);
    }
    let alice = with_something_for(&peers).await;
    for timer in TIMERS {
        for _ in 0..2 {
            assert!(!ends(alice.event(Event::Timer(timer))).await, "it waits for those, and is cut");
        }
    }
    for peer in &peers[8..] {
        assert_eq!(inbox(peer).await.messages.len(), 1);
    }
    assert_eq!((alice.count_rows(b"q/"), alice.count_rows(b"r/")), (8, 8), "all but those that never answer");
}

#[tokio::test]
async fn an_event_does_not_wait_for_a_delivery_that_is_under_way() {
    let peers = [TestHost::start(10, Silent).await];
    let alice = with_something_for(&peers).await;
    let [of_messages, of_receipts] = TIMERS;
    let mut first = pin!(async {
        tokio::join!(alice.event(Event::Timer(of_messages)), alice.event(Event::Timer(of_receipts)));
    });
    assert!(!ends(first.as_mut()).await);
    // Each session that it opens, and each further timer, would take one more of the module's places.
    for event in [Event::PeerReachable(peers[0].id()), Event::Timer(of_messages), Event::Timer(of_receipts)] {
        assert!(ends(alice.event(event)).await, "{event:?}");
    }
}

#[tokio::test]
async fn a_peer_that_was_forgotten_waits_for_no_room() {
    let alice = TestHost::start(1, Messaging::default()).await;
    let bob = TestHost::start(2, Messaging::default()).await;
    link(&alice, &bob);
    for id in 0..10_001 {
        alice.as_peer(bob.id(), delivery(id)).await;
    }
    assert!(alice.no_room().is_some());
    alice.event(Event::PeerForgotten(bob.id())).await;
    assert_eq!(alice.no_room(), None);
}
