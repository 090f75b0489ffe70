//! Loading, dispatch and the test host itself: what every host and every module's tests rely on.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use bytes::Bytes;
use openred_module::{
    Batch, BlobName, Body, BodyError, Caller, Committed, Context, Event, Fault, HostError, Instance, KEY_LIMIT,
    LoadError, Manifest, Method, Module, ModuleError, PROBLEM_JSON, PeerError, PeerRequest, Request, Response, Routes,
    Scan, Status, TestHost, VALUE_LIMIT, async_trait, link,
};

/// Echoes, refuses, counts its timers, calls its peer.
#[derive(Default)]
struct Probe;

#[async_trait]
impl Module for Probe {
    fn manifest(&self) -> Manifest {
        Manifest { id: "probe", version: "1.0.0", summary: "for tests" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.peer(Method::Post, "/echo", 8, Self::echo);
        routes.operator(Method::Post, "/echo", 8, Self::echo);
        routes.operator(Method::Get, "/echo/{name}", 0, Self::name);
    }

    async fn event(self: Arc<Self>, context: Context, event: Event) {
        if let Event::Timer(timer) = event {
            context.put(format!("timer/{timer}"), context.now().to_be_bytes().to_vec()).await.unwrap();
        }
    }
}

impl Probe {
    async fn echo(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        let bytes = request.body.collect(100).await?;
        Ok(Response::new(Status::Ok, &request.content_type, Body::whole(bytes)))
    }

    async fn name(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        Err(ModuleError::not_found("no-such-name", request.params.get("name")))
    }
}

struct Broken(&'static str);

#[async_trait]
impl Module for Broken {
    fn manifest(&self) -> Manifest {
        Manifest { id: self.0, version: "0", summary: "" }
    }

    fn routes(routes: &mut Routes<Self>) {
        async fn never(_: Arc<Broken>, _: Context, _: Request) -> Result<Response, ModuleError> {
            Ok(Response::empty(Status::Ok))
        }
        routes.peer(Method::Get, "/a/{one}", 0, never);
        routes.operator(Method::Get, "/a/{one}", 0, never);
        routes.peer(Method::Get, "/a/{other}", 0, never);
    }
}

fn echo(body: Body) -> PeerRequest {
    PeerRequest::post("/echo", "text/plain", body)
}

#[test]
fn modules_with_bad_ids_or_routes_that_conflict_are_not_loaded() {
    for id in ["", "Upper", "with space", "this-id-is-longer-than-thirty-two-characters"] {
        assert_eq!(Instance::load(Broken(id)).unwrap_err(), LoadError::BadId(id));
    }
    let conflict = LoadError::Conflict { module: "broken", pattern: "/a/{other}" };
    assert_eq!(Instance::load(Broken("broken")).unwrap_err(), conflict);
    assert_eq!(Instance::load(Probe).unwrap().manifest().id, "probe");
}

#[tokio::test]
async fn refusals_are_problem_documents() {
    let host = TestHost::start(1, Probe).await;
    let answer = host.operator(PeerRequest::get("/echo/bob")).await;
    assert_eq!((answer.status, answer.content_type.as_str()), (Status::NotFound, PROBLEM_JSON));
    let problem: serde_json::Value = answer.json_body().await.unwrap();
    assert_eq!(problem["code"], "no-such-name");
    assert_eq!(problem["detail"], "bob");
    assert_eq!(problem["status"], 404);
    assert_eq!(problem["type"], "urn:openred:problem:no-such-name");
}

#[tokio::test]
async fn body_limits_hold_whatever_length_is_claimed() {
    let host = TestHost::start(1, Probe).await;
    assert_eq!(host.operator(echo(Body::whole("12345678"))).await.status, Status::Ok);
    assert_eq!(host.operator(echo(Body::whole("123456789"))).await.status, Status::TooLarge);
    let lie = PeerRequest { length: Some(1), ..echo(Body::whole("123456789")) };
    assert_eq!(host.operator(lie).await.status, Status::TooLarge);
    let claim = PeerRequest { length: Some(u64::MAX), ..echo(Body::whole("1")) };
    assert_eq!(host.operator(claim).await.status, Status::TooLarge);
}

#[tokio::test]
async fn a_caller_sees_its_own_routes_only() {
    let host = TestHost::start(1, Probe).await;
    let peer = host.as_peer(host.id(), PeerRequest::get("/echo/x")).await;
    assert_eq!(peer.status, Status::NotFound);
    let wrong_method = host.operator(PeerRequest::get("/echo")).await;
    assert_eq!(wrong_method.status, Status::MethodNotAllowed);
    let request = Request::new(Caller::Operator, Method::Get, "/".repeat(2000));
    let answer = Instance::load(Probe).unwrap().dispatch(host.context(), request).await;
    assert_eq!(answer.status, Status::NotFound);
}

#[test]
fn statuses_survive_their_numbers() {
    for code in 0..700_u16 {
        let status = Status::from_code(code);
        assert_eq!(status.is_success(), (200..300).contains(&code), "{code}");
        assert_eq!(Status::from_code(status.code()), status);
    }
}

#[tokio::test]
async fn batches_are_all_or_nothing() {
    let host = TestHost::start(1, Probe).await;
    let context = host.context();
    context.put("a", "1").await.unwrap();
    let stale = Batch::new().expect("a", None).put("b", "2").delete("a");
    assert_eq!(context.apply(stale).await.unwrap(), Committed::No);
    assert_eq!(context.get("a").await.unwrap().unwrap(), "1");
    assert!(context.get("b").await.unwrap().is_none());
    let right = Batch::new().expect("a", Some("1".into())).expect("b", None).put("b", "2").delete("a");
    assert_eq!(context.apply(right).await.unwrap(), Committed::Yes);
    assert!(context.get("a").await.unwrap().is_none());
    assert_eq!(context.compare_and_set("b", None, "3").await.unwrap(), Committed::No);
    let long = Bytes::from(vec![0; KEY_LIMIT + 1]);
    assert_eq!(context.put(long, "").await, Err(HostError::TooLarge { limit: KEY_LIMIT }));
    let large = vec![0; VALUE_LIMIT + 1];
    assert_eq!(context.put("c", large).await, Err(HostError::TooLarge { limit: VALUE_LIMIT }));
}

#[tokio::test]
async fn scans_go_both_ways_in_pages() {
    let host = TestHost::start(1, Probe).await;
    let context = host.context();
    for number in 0..10_u8 {
        context.put(vec![b'k', number], vec![number]).await.unwrap();
    }
    context.put("other", "x").await.unwrap();
    let numbers = |page: &openred_module::ScanPage| page.rows.iter().map(|(_, value)| value[0]).collect::<Vec<_>>();
    let page = context.scan(Scan::prefix("k").limit(4)).await.unwrap();
    assert_eq!((numbers(&page), page.more), (vec![0, 1, 2, 3], true));
    let page = context.scan(Scan::prefix("k").after(Some(vec![b'k', 3].into())).limit(6)).await.unwrap();
    assert_eq!((numbers(&page), page.more), (vec![4, 5, 6, 7, 8, 9], false));
    let page = context.scan(Scan::prefix("k").after(Some(vec![b'k', 2].into())).backwards()).await.unwrap();
    assert_eq!((numbers(&page), page.more), (vec![1, 0], false));
}

#[tokio::test]
async fn what_was_not_synced_is_lost_at_a_power_cut_and_kept_at_a_kill() {
    let host = TestHost::start(1, Probe).await;
    let context = host.context();
    let (a, b) = (BlobName::new("a").unwrap(), BlobName::new("b").unwrap());
    context.blob_write(&a, 0, "kept".into()).await.unwrap();
    context.blob_sync(&a).await.unwrap();
    context.blob_write(&a, 2, "LOST".into()).await.unwrap();
    context.blob_write(&b, 0, "never synced".into()).await.unwrap();
    host.kill_and_restart(Probe).await;
    assert_eq!(context.blob_read(&a, 0, 100).await.unwrap(), "keLOST");
    host.cut_power_and_restart(Probe).await;
    assert_eq!(context.blob_read(&a, 0, 100).await.unwrap(), "kept");
    assert_eq!(context.blob_length(&b).await.unwrap(), None);
    assert_eq!(context.blob_read(&b, 0, 1).await, Err(HostError::NoBlob));
    context.blob_rename(&a, &b).await.unwrap();
    host.cut_power_and_restart(Probe).await;
    assert_eq!(context.blob_list(None).await.unwrap(), [b]);
}

#[test]
fn blob_names_are_no_paths() {
    for bad in ["", ".", "..", ".a", "a/b", "a\\b", "A", "a b", "a\0", &"x".repeat(97)] {
        assert!(BlobName::new(bad).is_none(), "{bad:?}");
    }
    assert_eq!(BlobName::new("0-9_a.z").unwrap().as_str(), "0-9_a.z");
}

#[tokio::test]
async fn timers_fire_once_at_their_time() {
    let host = TestHost::start(1, Probe).await;
    let begun = host.context().now();
    host.context().set_timer(1, begun + 500);
    host.context().set_timer(1, begun + 100);
    host.context().set_timer(2, begun + 900);
    host.advance(300).await;
    assert_eq!(host.context().get("timer/1").await.unwrap().unwrap(), (begun + 100).to_be_bytes().to_vec());
    assert_eq!(host.count_rows(b"timer/"), 1);
    host.advance(1000).await;
    assert_eq!(host.context().get("timer/2").await.unwrap().unwrap(), (begun + 900).to_be_bytes().to_vec());
    assert_eq!(host.context().now(), begun + 1300);
}

#[tokio::test]
async fn each_fault_does_what_it_says() {
    let (alice, bob) = (TestHost::start(1, Probe).await, TestHost::start(2, Probe).await);
    let call = || alice.context();
    assert_eq!(call().peer_request(bob.id(), echo(Body::empty())).await.unwrap_err(), PeerError::NotLinked);
    link(&alice, &bob);
    alice.faults([Fault::FailBefore, Fault::DropResponse, Fault::TruncateRequest(2)]);
    alice.faults([Fault::TruncateResponse(2), Fault::CorruptResponse(1), Fault::ExtendResponse(1), Fault::None]);
    let mut outcomes = Vec::new();
    for _ in 0..7 {
        outcomes.push(match call().peer_request(bob.id(), echo(Body::whole("abcd"))).await {
            Ok(response) => Ok((response.status, response.body.collect(1000).await.map(|bytes| bytes.to_vec()))),
            Err(error) => Err(error),
        });
    }
    assert_eq!(outcomes[0], Err(PeerError::Unreachable));
    assert_eq!(outcomes[1], Err(PeerError::Interrupted));
    assert_eq!(outcomes[2].as_ref().unwrap().0, Status::BadRequest);
    assert_eq!(outcomes[3], Ok((Status::Ok, Err(BodyError::Truncated))));
    assert_eq!(outcomes[4], Ok((Status::Ok, Ok(b"accd".to_vec()))));
    assert_eq!(outcomes[5], Ok((Status::Ok, Ok(b"abcd\0".to_vec()))));
    assert_eq!(outcomes[6], Ok((Status::Ok, Ok(b"abcd".to_vec()))));
    bob.set_offline(true);
    assert_eq!(call().peer_request(bob.id(), echo(Body::empty())).await.unwrap_err(), PeerError::Unreachable);
    assert_eq!(alice.requests(), 9);
}
