//! Tests of the module host: a module behind the real host, rows and blobs on a real disk, and every refusal of dispatch.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ranges;
mod stores;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openred_module::manifest;
use openred_module::manifest::Grants;
use openred_module::{
    Body, CallError, Context, HookRequest, Hooks, HostError, Instance, Manifest, Method, Module, ModuleError, Mutation,
    OperateError, PeerError, PeerRequest, Request, Response, Routes, Status, Verdict,
};
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::NodeId;
use openred_proto::secret::Secret;

use super::callee::Callee;
use super::gates::Gates;
use super::{DiskThread, Granted, Loaded, Modules, Parts, Used, open_disk};
use crate::health::Health;
use crate::module::ports::PeerCaller;
use crate::p2p::ports::Dispatch as _;
use crate::store::{Pen, Store, StoreThread, Writer};

const ME: NodeId = NodeId::from_bytes([1; 32]);
const PEER: NodeId = NodeId::from_bytes([2; 32]);

/// Tries everything that a host gives.
struct Trial;

#[async_trait]
impl Module for Trial {
    fn manifest(&self) -> Manifest {
        Manifest { id: "trial", version: "1", summary: "test" }
    }

    fn middleware(hooks: &mut Hooks<Self>) {
        hooks.on("turn", Self::turn);
        hooks.on("gate", Self::gate);
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.operator(Method::Post, "/put/{key}", 1024, Self::put);
        routes.operator(Method::Get, "/get/{key}", 0, Self::get);
        routes.operator(Method::Post, "/blob", 1 << 22, Self::blob);
        routes.operator(Method::Get, "/forever", 0, Self::forever);
        routes.peer(Method::Get, "/who", 0, Self::who);
        routes.peer(Method::Get, "/long", 0, Self::long);
        routes.operator(Method::Get, "/long", 0, Self::long);
        routes.operator(Method::Post, "/relay", 1024, Self::relay);
    }
}

impl Trial {
    /// Puts a row elsewhere than was said.
    async fn turn(self: Arc<Self>, _: Context, request: HookRequest) -> Result<Verdict, ModuleError> {
        assert_eq!((request.path.as_deref(), request.body.as_deref()), (Some("/put/a"), Some(&b"one"[..])));
        assert_eq!((request.method, request.module, request.length), (None, None, None), "not declared");
        let changes = Mutation { path: Some("/put/b".into()), body: Some("two".into()), ..Mutation::default() };
        Ok(Verdict::Mutate(changes))
    }

    async fn gate(self: Arc<Self>, _: Context, request: HookRequest) -> Result<Verdict, ModuleError> {
        assert_eq!((request.path, request.status), (None, None));
        Ok(Verdict::deny("closed", "Not today."))
    }

    async fn put(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let key = request.params.get("key").to_owned();
        context.put(key, request.body.collect(1024).await?).await?;
        Ok(Response::empty(Status::Created))
    }

    async fn get(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        match context.get(request.params.get("key").to_owned()).await? {
            Some(value) => Ok(Response::new(Status::Ok, "text/plain", Body::whole(value))),
            None => Err(ModuleError::not_found("no-row", "no such row")),
        }
    }

    async fn blob(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let name = |name| openred_module::BlobName::new(name).unwrap();
        let (part, whole) = (name("part"), name("whole"));
        let bytes = request.body.collect(1 << 22).await?;
        for (number, chunk) in bytes.chunks(1 << 16).enumerate() {
            context.blob_write(&part, (number << 16) as u64, Bytes::copy_from_slice(chunk)).await?;
        }
        context.blob_rename(&part, &whole).await?;
        assert_eq!(context.blob_length(&part).await?, None);
        assert_eq!(context.blob_list(None).await?, std::slice::from_ref(&whole));
        let read = context.blob_read(&whole, 10, 20).await?;
        assert_eq!(context.blob_read(&whole, 1 << 40, 20).await?, Bytes::new());
        context.blob_delete(&whole).await?;
        assert_eq!(context.blob_read(&whole, 0, 1).await, Err(HostError::NoBlob));
        Ok(Response::new(Status::Ok, "", Body::whole(read)))
    }

    async fn forever(self: Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        std::future::pending().await
    }

    /// An answer that does not end while it is read.
    async fn long(self: Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        let first = futures_util::stream::iter([Ok(Bytes::from_static(b"first"))]);
        let body = futures_util::StreamExt::chain(first, futures_util::stream::pending());
        Ok(Response::new(Status::Ok, "", Body::stream(body)))
    }

    async fn who(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        Ok(Response::new(Status::Ok, "", Body::whole(request.peer()?.to_string())))
    }

    async fn relay(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        Ok(context.peer_request(PEER, PeerRequest::post("/x", "text/plain", request.body)).await?)
    }
}

/// A peer that answers with what it was asked.
struct EchoPeer;

#[async_trait]
impl PeerCaller for EchoPeer {
    async fn call(&self, peer: NodeId, head: RequestHead, body: Body) -> Result<(ResponseHead, Body), PeerError> {
        assert_eq!(
            (peer, head.module.as_str(), head.method.as_str(), head.path.as_str()),
            (PEER, "trial", "POST", "/x")
        );
        Ok((ResponseHead { status: 202, content_type: head.content_type, length: head.length }, body))
    }

    fn is_linked(&self, peer: &NodeId) -> bool {
        *peer == PEER
    }

    fn identities(&self, peer: &NodeId) -> Vec<NodeId> {
        vec![*peer]
    }
}

struct NoKeys;

#[async_trait]
impl super::ports::ModuleKeys for NoKeys {
    async fn sign(&self, _: &str, _: &str, _: [u8; 32], _: u64) -> Result<Bytes, crate::keys::KeysError> {
        Err(crate::keys::KeysError::Away)
    }

    async fn seal_key(&self, _: &str) -> Result<Secret<32>, crate::keys::KeysError> {
        Err(crate::keys::KeysError::Away)
    }
}

struct Bench {
    modules: Arc<Modules>,
    health: Arc<Health>,
    _directory: tempfile::TempDir,
    _threads: (StoreThread, DiskThread),
}

async fn bench(most_blobs: u64) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let (store, store_thread) = Store::open(directory.path(), 0).unwrap();
    let (disk, disk_thread) = open_disk(directory.path(), most_blobs).unwrap();
    let health = Arc::new(Health::default());
    let parts = Parts {
        names: Arc::default(),
        me: ME,
        store,
        disk,
        peers: Arc::new(EchoPeer),
        keys: Arc::new(NoKeys),
        beside: Arc::default(),
        health: Arc::clone(&health),
        hook_order: Vec::new(),
        view: Arc::default(),
    };
    let trial = Arc::new(Instance::load(Trial).unwrap());
    let modules = Modules::empty(parts, Used::nowhere(), None);
    let granted = Granted::new("trial", Grants::all(), &modules.used);
    let hosts = modules.hosts("trial", &Secret::new([5; 32]));
    let context = (hosts.make)(Pen::new(hosts.seal.of_state(0), Writer::Active(1)), granted);
    let callee = Callee::Linked(Arc::clone(&trial), context);
    let (places, meter, settings, life) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
    modules.put(Loaded { id: "trial", callee, hosts, places, meter, wanted: None, settings, gates: None, life });
    let modules = Arc::new(modules);
    Bench { modules, health, _directory: directory, _threads: (store_thread, disk_thread) }
}

fn head(method: &str, path: &str) -> RequestHead {
    RequestHead { module: "trial".into(), method: method.into(), path: path.into(), ..RequestHead::default() }
}

impl Bench {
    async fn operator(&self, method: &str, path: &str, body: impl Into<Bytes>) -> (u16, Bytes) {
        let (head, body) = self.modules.operator_call(head(method, path), Body::whole(body.into())).await;
        (head.status, body.collect(1 << 20).await.unwrap())
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_module_keeps_rows_and_blobs_through_its_host() {
    run(async {
        let bench = bench(0).await;
        assert_eq!(bench.operator("POST", "/put/a", "one").await.0, 201);
        assert_eq!(bench.operator("GET", "/get/a", "").await, (200, "one".into()));
        assert_eq!(bench.operator("GET", "/get/b", "").await.0, 404);
        let bytes: Vec<u8> = (0_u32..200_000).map(|number| (number % 251) as u8).collect();
        assert_eq!(bench.operator("POST", "/blob", bytes.clone()).await, (200, Bytes::copy_from_slice(&bytes[10..30])));
        assert_eq!(bench.operator("POST", "/relay", "ping").await, (202, "ping".into()));
    });
}

#[test]
fn blobs_beyond_the_quota_are_refused_as_full() {
    run(async {
        let bench = bench(100_000).await;
        assert_eq!(bench.operator("POST", "/blob", vec![1; 90_000]).await.0, 200);
        assert_eq!(bench.operator("POST", "/blob", vec![1; 110_000]).await.0, 507);
        assert_eq!(bench.health.report()[0].code, "blobs.full");
    });
}

#[test]
fn what_a_module_has_said_goes_with_it() {
    run(async {
        let bench = bench(0).await;
        bench.modules.parts.view.alert("trial", Some("a layer is off".to_owned()), &bench.health);
        bench.modules.space.module_full("trial", Some("no room".to_owned()));
        assert_eq!(bench.health.report().len(), 2);
        bench.modules.hush("other");
        assert_eq!(bench.health.report().len(), 2);
        bench.modules.hush("trial");
        assert!(bench.health.report().is_empty());
    });
}

#[test]
fn what_cannot_be_dispatched_is_answered_with_a_status() {
    run(async {
        let bench = bench(0).await;
        let refused = |request: RequestHead| async {
            let (head, _) = bench.modules.dispatch(PEER, request, Body::empty()).await;
            head.status
        };
        assert_eq!(refused(RequestHead { module: "none".into(), ..head("GET", "/who") }).await, 404);
        assert_eq!(refused(head("DELETE", "/who")).await, 405);
        assert_eq!(refused(RequestHead { idempotency_key: vec![1; 15], ..head("GET", "/who") }).await, 400);
        assert_eq!(refused(head("GET", "/get/a")).await, 404, "the operator's routes are not there for peers");
        let (answer, body) = bench.modules.dispatch(PEER, head("GET", "/who"), Body::empty()).await;
        assert_eq!((answer.status, body.collect(100).await.unwrap()), (200, PEER.to_string().into()));
    });
}

/// Says which operation was asked for.
struct Named;

#[async_trait]
impl super::Operate for Named {
    async fn operate(&self, operation: &str, request: Bytes) -> Result<Bytes, OperateError> {
        assert_eq!(request, "q");
        Ok(operation.to_owned().into())
    }
}

#[test]
fn an_operation_of_the_operator_needs_its_own_grant() {
    run(async {
        let bench = bench(0).await;
        bench.modules.operate_by(Arc::new(Named));
        let _ = bench.modules.parts.beside.set(Arc::downgrade(&bench.modules));
        assert_eq!(bench.operator("POST", "/put/a", "one").await.0, 201);
        let granted = |id: &'static str, grants: &[&str]| {
            let grants = Grants::parse(grants.iter().copied()).unwrap();
            let granted = Granted::new(id, grants, &bench.modules.used);
            let hosts = bench.modules.hosts(id, &Secret::new([6; 32]));
            (hosts.make)(Pen::new(hosts.seal.of_state(0), Writer::Active(1)), granted)
        };
        let narrow = granted("narrow", &["node.operate=ListLinks", "node.status"]);
        assert_eq!(narrow.operate("ListLinks", "q").await.unwrap(), "ListLinks");
        let refused = Err(OperateError::Host(HostError::NotGranted));
        assert_eq!(narrow.operate("ForgetPeer", "q").await, refused);
        assert_eq!(granted("none", &["kv.quota=1"]).operate("ListLinks", "q").await, refused);
        let get = || PeerRequest::get("/get/a");
        assert_eq!(narrow.operator_call("trial", get()).await.err(), Some(CallError::NotGranted));
        let caller = granted("caller", &["node.operate=CallModule"]);
        assert_eq!(caller.operate("ListLinks", "q").await, refused);
        let answer = caller.operator_call("trial", get()).await.unwrap();
        assert_eq!(answer.body.collect(100).await.unwrap(), "one");
        assert_eq!(caller.operator_call("caller", get()).await.err(), Some(CallError::Cycle), "not itself");
        assert_eq!(caller.operator_call("nobody", get()).await.unwrap().status, Status::NotFound);
    });
}

/// What the module's hooks are declared as: beside what they do.
const HOOKED: &str = r#"
id = "trial"
version = "1.0.0"
program = "trial"
description = "tries hooks"

[[hook]]
id = "turn"
point = "operator"
class = "transform"
reason = "to put rows elsewhere"
match = { modules = ["trial"], method = "POST", path = "/put/{key}" }
fields = ["path", "body"]
changes = ["path", "body"]

[[hook]]
id = "gate"
point = "inbound"
class = "authz"
reason = "to keep peers out"
"#;

#[test]
fn hooks_of_a_manifest_are_asked_around_calls_of_any_module() {
    run(async {
        let bench = bench(0).await;
        let hooked = HOOKED.replace("fields = [\"path\", \"body\"]", "fields = [\"path\"]");
        // What a hook changes it has to see: the manifest says so.
        assert!(manifest::Manifest::parse("openred.toml", &hooked).is_err());
        let manifest = manifest::Manifest::parse("openred.toml", HOOKED).unwrap();
        let who = || bench.modules.dispatch(PEER, head("GET", "/who"), Body::empty());
        assert_eq!(who().await.0.status, 200);
        bench.modules.set_hooks(&[&manifest]);
        let (refused, body) = who().await;
        let body = body.collect(1 << 20).await.unwrap();
        assert_eq!(refused.status, 403);
        assert!(String::from_utf8_lossy(&body).contains("trial/gate refuses it (closed): Not today."));
        assert_eq!(bench.operator("GET", "/get/a", "").await.0, 404);
        let report = bench.modules.hooks.report();
        let calls: Vec<_> = report.points.iter().flat_map(|point| &point.hooks).map(|hook| hook.calls).collect();
        assert_eq!(calls, [1, 0], "the transform is not asked about another method");
        bench.modules.set_hooks(&[]);
        assert_eq!(who().await.0.status, 200);
    });
}

#[test]
fn what_a_hook_changes_reaches_the_route() {
    run(async {
        let bench = bench(0).await;
        let manifest = manifest::Manifest::parse("openred.toml", HOOKED).unwrap();
        bench.modules.set_hooks(&[&manifest]);
        assert_eq!(bench.operator("POST", "/put/a", "one").await.0, 201);
        bench.modules.set_hooks(&[]);
        assert_eq!(bench.operator("GET", "/get/a", "").await.0, 404);
        assert_eq!(bench.operator("GET", "/get/b", "").await, (200, "two".into()));
    });
}

#[test]
fn an_answer_that_is_not_read_takes_a_place_of_its_peer() {
    run(async {
        let bench = bench(0).await;
        let long = async |peer: u8| {
            let (head, body) =
                bench.modules.dispatch(NodeId::from_bytes([peer; 32]), head("GET", "/long"), Body::empty()).await;
            (head.status, body)
        };
        let mut unread = Vec::new();
        let refused = loop {
            let (status, mut body) = long(2).await;
            if status != 200 {
                break status;
            }
            assert_eq!(futures_util::StreamExt::next(&mut body).await, Some(Ok(Bytes::from_static(b"first"))));
            unread.push(body);
            assert!(unread.len() <= 256, "one peer takes all that the module has");
        };
        assert_eq!((refused, unread.len()), (429, 32), "its share");
        assert_eq!(long(3).await.0, 200, "another's is another");
        unread.pop();
        assert_eq!(long(2).await.0, 200, "free when nobody reads it any more");
        drop(unread);
        // The operator's are none of it.
        let mut followed = Vec::new();
        for _ in 0..2 * super::places::OPERATOR {
            let (head, body) = bench.modules.operator_call(head("GET", "/long"), Body::empty()).await;
            assert_eq!(head.status, 200);
            followed.push(body);
        }
    });
}

#[test]
fn what_a_hook_changes_is_held_to_the_manifest() {
    run(async {
        let bench = bench(0).await;
        let route = "[[route]]\nmethod = \"POST\"\npath = \"/put/a\"\nauth = \"operator\"\nbody_bytes = 9\n";
        let manifest = manifest::Manifest::parse("openred.toml", &format!("{HOOKED}\n{route}")).unwrap();
        let granted = Granted::new("trial", Grants::all(), &bench.modules.used);
        let gates = Some(Gates::new(Arc::new(manifest.clone()), granted));
        let trial = bench.modules.get("trial").unwrap();
        let (callee, hosts) = (trial.callee.clone(), trial.hosts.clone());
        let (places, meter, settings, life) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        bench.modules.put(Loaded { id: "trial", callee, hosts, places, meter, wanted: None, settings, gates, life });
        assert_eq!(bench.operator("POST", "/put/a", "one").await.0, 201);
        bench.modules.set_hooks(&[&manifest]);
        assert_eq!(bench.operator("POST", "/put/a", "one").await.0, 404, "its manifest declares no /put/b");
        assert_eq!(bench.operator("POST", "/put/b", "one").await.0, 404, "whoever asks for it");
    });
}

#[test]
fn a_module_that_hangs_ends_at_the_deadline_and_its_places_are_bounded() {
    run(async {
        let bench = bench(0).await;
        // Virtual time, while no thread of the store or the disk is waited for.
        tokio::time::pause();
        let slow = RequestHead { deadline_millis: 1000, ..head("GET", "/forever") };
        let hang = || bench.modules.operator_call(slow.clone(), Body::empty());
        assert_eq!(hang().await.0.status, 504);
        let mut hanging = futures_util::stream::FuturesUnordered::new();
        (0..super::places::OPERATOR).for_each(|_| hanging.push(hang()));
        let all = async { while futures_util::StreamExt::next(&mut hanging).await.is_some() {} };
        let one_more = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(hang().await.0.status, 429);
            let (peers, _) = bench.modules.dispatch(PEER, head("GET", "/who"), Body::empty()).await;
            assert_eq!(peers.status, 200, "peers have places of their own");
        };
        tokio::join!(all, one_more);
        tokio::time::resume();
        assert_eq!(bench.operator("POST", "/put/a", "one").await.0, 201, "all places are free again");
    });
}
