//! The faults that a test can order: each is what a real node or network does, and a module has to live with.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use openred_module::{
    Batch, Body, BodyError, Context, DialError, DialFault, Fault, Json, Manifest, Method, Module, ModuleError, NodeId,
    PeerError, PeerRequest, Response, Routes, SCAN_BYTES, Scan, Status, Table, TestHost, async_trait, link,
};

/// Counts what arrives, and what was sent on.
struct Counter;

static COUNTS: Table<String, u64> = Table::new("counts");

#[async_trait]
impl Module for Counter {
    fn manifest(&self) -> Manifest {
        Manifest { id: "counter", version: "1.0.0", summary: "for tests" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.peer(Method::Post, "/count", 16, Self::count);
        routes.operator(Method::Post, "/twice", 0, Self::twice);
    }
}

impl Counter {
    async fn count(self: Arc<Self>, context: Context, _: NodeId) -> Result<Json<u64>, ModuleError> {
        Ok(Json(COUNTS.update(&context, &"all".to_owned(), |count| count.unwrap_or(0) + 1).await?))
    }

    /// Two rows that belong together, written one after the other: as a module must not.
    async fn twice(self: Arc<Self>, context: Context) -> Result<(), ModuleError> {
        COUNTS.put(&context, &"first".to_owned(), &1).await?;
        COUNTS.put(&context, &"second".to_owned(), &1).await?;
        Ok(())
    }
}

async fn counted(host: &TestHost) -> u64 {
    COUNTS.get(&host.context(), &"all".to_owned()).await.unwrap().unwrap_or(0)
}

async fn send(from: &TestHost, to: &TestHost, deadline: Option<u64>) -> Result<Response, PeerError> {
    let mut request = PeerRequest::post("/count", "text/plain", Body::whole("x"));
    request.deadline = deadline.map(|millis| from.context().now() + millis);
    from.context().peer_request(to.id(), request).await
}

async fn pair() -> (TestHost, TestHost) {
    let (alice, bob) = (TestHost::start(1, Counter).await, TestHost::start(2, Counter).await);
    link(&alice, &bob);
    (alice, bob)
}

#[tokio::test]
async fn a_late_answer_is_one_that_nobody_waits_for() {
    let (alice, bob) = pair().await;
    alice.faults([Fault::Late(5_000), Fault::Late(5_000), Fault::Late(61_000)]);
    let before = alice.context().now();
    assert_eq!(send(&alice, &bob, Some(10_000)).await.unwrap().status, Status::Ok);
    assert_eq!(alice.context().now() - before, 5_000);
    assert_eq!(send(&alice, &bob, Some(1_000)).await.err(), Some(PeerError::TimedOut));
    assert_eq!(send(&alice, &bob, None).await.err(), Some(PeerError::TimedOut), "a node's own patience");
    assert_eq!(counted(&bob).await, 3, "all were carried out");
}

#[tokio::test]
async fn a_request_can_arrive_twice_and_a_peer_be_away() {
    let (alice, bob) = pair().await;
    alice.faults([Fault::Duplicate]);
    let second: u64 = send(&alice, &bob, None).await.unwrap().json_body().await.unwrap();
    assert_eq!((second, counted(&bob).await), (2, 2));
    bob.set_offline(true);
    assert_eq!(send(&alice, &bob, None).await.err(), Some(PeerError::Unreachable));
    bob.set_offline(false);
    bob.set_full(true);
    assert_eq!(send(&alice, &bob, None).await.unwrap().status, Status::InsufficientStorage);
}

#[tokio::test]
async fn a_node_that_ends_between_a_change_and_its_answer_keeps_the_change() {
    let (alice, bob) = pair().await;
    bob.crash_after(1);
    assert_eq!(send(&alice, &bob, None).await.err(), Some(PeerError::Interrupted));
    assert_eq!(send(&alice, &bob, None).await.err(), Some(PeerError::Interrupted), "it is still down");
    bob.kill_and_restart(Counter).await;
    assert_eq!(counted(&bob).await, 1, "what was durable is there, though nobody heard of it");
    assert_eq!(send(&alice, &bob, None).await.unwrap().status, Status::Ok);
    // What this finds: rows that belong together and were not written together.
    bob.crash_after(1);
    let answer = bob.operator(PeerRequest::post("/twice", "", Body::empty())).await;
    assert_eq!(answer.status, Status::Unavailable);
    bob.kill_and_restart(Counter).await;
    let rows = COUNTS.all(&bob.context()).await.unwrap();
    assert!(rows.iter().any(|(name, _)| name == "first") && rows.iter().all(|(name, _)| name != "second"));
}

#[tokio::test]
async fn connections_go_where_they_were_granted_and_break_as_real_ones_do() {
    let host = TestHost::start(1, Counter).await;
    let dial = async |to: &str| host.context().dial(to, Body::whole("0123456789")).await;
    let heard = async |to: &str| dial(to).await.unwrap().collect(100).await;
    assert_eq!(dial("a.example:1").await.err(), Some(DialError::NotGranted));
    host.grant_egress("a.example:1", |sent| sent);
    assert_eq!(dial("a.example:2").await.err(), Some(DialError::NotGranted));
    assert_eq!(host.dials(), 0, "none of these was granted");
    assert_eq!(heard("a.example:1").await.unwrap(), "0123456789");

    let begun = host.context().now();
    host.dial_faults([
        DialFault::Refuse(DialError::Private),
        DialFault::Late(3_000),
        DialFault::Late(60_000),
        DialFault::EndAfter(4),
        DialFault::BreakAfter(4),
        DialFault::Corrupt(9),
        DialFault::EndAfter(40),
    ]);
    assert_eq!(dial("a.example:1").await.err(), Some(DialError::Private));
    assert_eq!(heard("a.example:1").await.unwrap(), "0123456789");
    assert_eq!(dial("a.example:1").await.err(), Some(DialError::TimedOut));
    assert_eq!(host.context().now() - begun, 13_000, "nobody waits longer than ten seconds");
    assert_eq!(heard("a.example:1").await.unwrap(), "0123");
    assert_eq!(heard("a.example:1").await, Err(BodyError::Failed));
    assert_eq!(heard("a.example:1").await.unwrap(), "0123456788");
    assert_eq!(heard("a.example:1").await.unwrap(), "0123456789");
    let begun = host.context().now();
    host.dial_faults([DialFault::StallAfter(4)]);
    assert_eq!(heard("a.example:1").await, Err(BodyError::TimedOut));
    assert_eq!(host.context().now() - begun, 600_000);

    host.set_offline(true);
    assert_eq!(dial("a.example:1").await.err(), Some(DialError::Unreachable));
    host.set_offline(false);
    host.withdraw_grants();
    assert_eq!(dial("a.example:1").await.err(), Some(DialError::NotGranted));
}

#[tokio::test]
async fn open_connections_have_an_end_and_end_with_the_node() {
    let host = TestHost::start(1, Counter).await;
    // Nothing ever comes.
    host.grant_egress("a.example:1", |_| Body::stream(futures_util::stream::pending()));
    let context = host.context();
    let dial = async || context.dial("a.example:1", Body::empty()).await;
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(dial().await.unwrap());
    }
    assert_eq!(dial().await.err(), Some(DialError::Busy));
    drop(held.pop());
    held.push(dial().await.unwrap());
    host.kill_and_restart(Counter).await;
    for body in held {
        assert_eq!(body.collect(1).await, Err(BodyError::Failed));
    }
    let open = dial().await.unwrap();
    host.crash_after(1);
    let key = "all".to_owned();
    let write = COUNTS.put(&context, &key, &1);
    tokio::select! {
        _ = write => panic!("nobody hears of it"),
        ended = open.collect(1) => assert_eq!(ended, Err(BodyError::Failed)),
    }
}

#[tokio::test]
async fn batches_and_pages_end_as_on_a_node() {
    let (alice, _bob) = pair().await;
    let context = alice.context();
    let _ = context.apply(Batch::new().delete("k").put("k", "v")).await.unwrap();
    assert_eq!(context.get("k").await.unwrap(), None, "what is written is deleted, not the other way round");
    let large = vec![0; 500 * 1024];
    for number in 0..12_u8 {
        context.put([b'r', number].to_vec(), large.clone()).await.unwrap();
    }
    let page = context.scan(Scan::prefix("r")).await.unwrap();
    let bytes: usize = page.rows.iter().map(|(_, value)| value.len()).sum();
    assert!(page.more && bytes > SCAN_BYTES && bytes - large.len() <= SCAN_BYTES, "{bytes}");
    let rest = context.scan(Scan::prefix("r").after(page.rows.last().map(|(key, _)| key.clone()))).await.unwrap();
    assert_eq!((page.rows.len() + rest.rows.len(), rest.more), (12, false));
}
