//! Both ends of the contract over real sockets: a module that behaves, and ones that do not, made of bare frames.
#![allow(clippy::unwrap_used, reason = "tests")]

mod domain;
mod heads;
mod hooks;
mod migrations;
mod ranges;
mod recorded;
mod stores;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use openred_proto::id::NodeId;
use openred_proto::module as wire;
use openred_proto::module::attachment_client::AttachmentClient;
use openred_proto::module::host_client::HostClient;
use openred_proto::module::host_frame::Kind as FromHost;
use openred_proto::module::module_frame::Kind as FromModule;
use openred_proto::module::{End, HostFrame, ModuleFrame};
use openred_proto::secret::Secret;
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::{Attached, Door, Expected, Fault};
use crate::wire::convert::module_frame;
use crate::wire::{CALLS, CREDIT, FRAME_BYTES};
use crate::{
    AuditEvent, Body, BodyError, Caller, Context, Event, Instance, Manifest, Method, Module, ModuleError, PeerRequest,
    Request, Response, Routes, Scan, Status, TestHost, async_trait, process,
};

const LARGE: usize = 5 * CREDIT as usize + 17;

/// Uses all that a host gives.
#[derive(Default)]
struct Probe {
    started: Arc<AtomicUsize>,
    entered: Arc<Notify>,
    dropped: Arc<Notify>,
}

/// Says that a handler was dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[async_trait]
impl Module for Probe {
    fn manifest(&self) -> Manifest {
        Manifest { id: "probe", version: "1.2.3", summary: "for tests" }
    }

    fn middleware(hooks: &mut crate::Hooks<Self>) {
        hooks.on("gate", Self::gate);
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.operator(Method::Post, "/echo", 1 << 30, Self::echo);
        routes.operator(Method::Post, "/short", 8, Self::short);
        routes.operator(Method::Post, "/host", 0, Self::host);
        routes.operator(Method::Post, "/relay", 1 << 30, Self::relay);
        routes.operator(Method::Get, "/forever", 0, Self::forever);
        routes.operator(Method::Get, "/panic", 0, Self::panic);
        routes.operator(Method::Post, "/domain", 0, Self::domain);
        routes.operator(Method::Post, "/store", 0, Self::store);
        routes.operator(Method::Post, "/ranges", 1 << 16, Self::ranges);
        routes.peer(Method::Post, "/echo", 1 << 30, Self::echo);
    }

    async fn start(self: Arc<Self>, context: Context) -> Result<(), ModuleError> {
        self.started.fetch_add(1, Ordering::SeqCst);
        match context.get("refuse").await? {
            Some(_) => Err(ModuleError::new(Status::Conflict, "not-now", "told not to")),
            None => Ok(()),
        }
    }

    async fn migrate(self: Arc<Self>, context: Context, from: String) -> Result<(), ModuleError> {
        migrations::migrate(context, from).await
    }

    async fn event(self: Arc<Self>, context: Context, event: Event) {
        context.put("event", format!("{event:?}")).await.unwrap();
    }
}

impl Probe {
    async fn echo(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        let length = request.length;
        let mut response = Response::new(Status::Created, &request.content_type, request.body);
        response.length = response.length.or(length);
        Ok(response)
    }

    async fn short(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        request.body.collect(8).await?;
        Ok(Response::empty(Status::Ok))
    }

    async fn host(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        let name = |name| crate::BlobName::new(name).unwrap();
        context.put("row/a", "1").await?;
        assert_eq!(context.get("row/a").await?.unwrap(), "1");
        assert!(context.get("row/none").await?.is_none());
        assert_eq!(context.compare_and_set("row/a", None, "2").await?, crate::Committed::No);
        context.put("row/b", "").await?;
        let page = context.scan(Scan::prefix("row/").backwards().limit(1)).await?;
        assert_eq!((page.rows.len(), page.rows[0].0.as_ref()), (1, &b"row/b"[..]));
        let chunk = Bytes::from(vec![5; crate::BLOB_CHUNK]);
        context.blob_write(&name("part"), 3, chunk.clone()).await?;
        context.blob_sync(&name("part")).await?;
        context.blob_rename(&name("part"), &name("whole")).await?;
        assert_eq!(context.blob_length(&name("part")).await?, None);
        assert_eq!(context.blob_length(&name("whole")).await?, Some(3 + crate::BLOB_CHUNK as u64));
        assert_eq!(context.blob_read(&name("whole"), 3, usize::MAX).await?, chunk);
        assert_eq!(context.blob_list(None).await?, [name("whole")]);
        context.blob_delete(&name("whole")).await?;
        assert_eq!(context.blob_read(&name("whole"), 0, 1).await, Err(crate::HostError::NoBlob));
        assert_eq!(
            context.get(vec![0; crate::KEY_LIMIT + 1]).await,
            Err(crate::HostError::TooLarge { limit: crate::KEY_LIMIT })
        );
        let stranger = NodeId::from_bytes([9; 32]);
        assert!(!context.is_linked(stranger).await?);
        assert_eq!(context.identities(stranger).await?, [stranger]);
        context.set_full(Some("rows".into()));
        context.audit(AuditEvent { code: "tried", peer: Some(stranger), outcome: "ok" });
        Ok(Response::new(Status::Ok, "", Body::whole(context.node_id().to_string())))
    }

    async fn relay(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let peer = NodeId::from_bytes([2; 32]);
        Ok(context.peer_request(peer, PeerRequest::post("/echo", "text/x", request.body)).await?)
    }

    async fn forever(self: Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        let _dropped = Dropped(Arc::clone(&self.dropped));
        self.entered.notify_one();
        std::future::pending().await
    }

    async fn panic(self: Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        panic!("as asked")
    }
}

/// A node's end: a socket in a folder of its own, and a host in memory.
struct Node {
    door: Arc<Door>,
    socket: PathBuf,
    host: TestHost,
    _folder: tempfile::TempDir,
}

const PROOF: [u8; 32] = [7; 32];

impl Node {
    async fn new() -> Self {
        let host = TestHost::start(1, Probe::default()).await;
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("module.sock");
        let door = Door::new(host.id());
        tokio::spawn(Arc::clone(&door).serve(UnixListener::bind(&socket).unwrap()));
        Self { door, socket, host, _folder: folder }
    }

    fn expect(&self, proof: [u8; 32]) -> Expected {
        self.door.expect("probe", Secret::new(proof), self.host.context())
    }

    /// A module in service; it lives as long as its pipe.
    async fn attach(&self, probe: Probe) -> (Attached, DuplexStream) {
        let mut pipe = self.run(probe);
        let expected = self.expect(PROOF);
        pipe.write_all(&PROOF).await.unwrap();
        (expected.attached().await.unwrap(), pipe)
    }

    fn run(&self, probe: Probe) -> DuplexStream {
        let (pipe, proofs) = tokio::io::duplex(64);
        let (instance, socket) = (Arc::new(Instance::load(probe).unwrap()), self.socket.clone());
        tokio::spawn(async move { process::serve(instance, &socket, proofs).await });
        pipe
    }
}

fn post(path: &str, body: Body) -> Request {
    Request::new(Caller::Operator, Method::Post, path).with_body("text/plain", body)
}

fn get(path: &str) -> Request {
    Request::new(Caller::Operator, Method::Get, path)
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

async fn said(response: Response) -> (Status, String) {
    let status = response.status;
    let body = response.body.collect(1 << 20).await.unwrap();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn a_module_in_its_process_answers_like_a_linked_one() {
    run(async {
        let node = Node::new().await;
        let (attached, _pipe) = node.attach(Probe::default()).await;
        assert_eq!((attached.module(), attached.version()), ("probe", "1.2.3"));
        attached.start().await.unwrap();
        let answer = attached.dispatch(post("/echo", Body::whole("hello"))).await;
        assert_eq!((answer.length, answer.content_type.as_str()), (Some(5), "text/plain"));
        assert_eq!(said(answer).await, (Status::Created, "hello".into()));
        let peer = Request { caller: Caller::Peer(node.host.id()), ..post("/echo", Body::empty()) };
        assert_eq!(said(attached.dispatch(peer).await).await, (Status::Created, String::new()));
        let (status, problem) = said(attached.dispatch(get("/none")).await).await;
        assert!(status == Status::NotFound && problem.contains("no-such-route"), "{problem}");
        let long = attached.dispatch(post("/short", Body::whole("123456789"))).await;
        assert_eq!(long.status, Status::TooLarge);
        let answer = said(attached.dispatch(post("/host", Body::empty())).await).await;
        assert_eq!(answer, (Status::Ok, node.host.id().to_string()));
        let peer = NodeId::from_bytes([3; 32]);
        assert!(attached.event(Event::PeerReachable(peer)).await);
        let noted = node.host.context().get("event").await.unwrap().unwrap();
        assert_eq!(noted, format!("{:?}", Event::PeerReachable(peer)));
        while node.host.no_room().is_none() || node.host.audit_trail().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(node.host.audit_trail()[0].code, "tried");
    });
}

#[test]
fn bodies_of_any_length_pass_both_ways_and_break_off_by_name() {
    run(async {
        let node = Node::new().await;
        let (attached, _pipe) = node.attach(Probe::default()).await;
        let bytes: Vec<u8> = (0..LARGE).map(|number| (number % 251) as u8).collect();
        let pieces: Vec<_> = bytes.chunks(100_003).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let stream = || Body::stream(futures_util::stream::iter(pieces.clone()));
        let answers = (0..3).map(|_| attached.dispatch(post("/echo", stream())));
        for answer in futures_util::future::join_all(answers).await {
            assert_eq!(answer.body.collect(LARGE).await.unwrap(), bytes);
        }
        let broken = [Ok(Bytes::from(vec![1; 100_000])), Err(BodyError::TimedOut)];
        let answer = attached.dispatch(post("/echo", Body::stream(futures_util::stream::iter(broken)))).await;
        assert_eq!(answer.body.collect(LARGE).await, Err(BodyError::TimedOut));
        // A reader that leaves in the middle frees the call.
        let mut left = attached
            .dispatch(post("/echo", Body::stream(futures_util::stream::repeat(Ok(bytes.clone().into())))))
            .await;
        left.body.next().await.unwrap().unwrap();
        drop(left);
        assert_eq!(said(attached.dispatch(post("/echo", Body::whole("x"))).await).await.1, "x");
    });
}

#[test]
fn a_peers_answer_streams_through_the_second_connection() {
    run(async {
        let node = Node::new().await;
        let peer = TestHost::start(2, Probe::default()).await;
        let (attached, _pipe) = node.attach(Probe::default()).await;
        let refused = attached.dispatch(post("/relay", Body::whole("x"))).await;
        assert_eq!(refused.status, Status::NotFound, "not linked");
        crate::link(&node.host, &peer);
        let pieces: Vec<_> = vec![4; LARGE].chunks(77_777).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let relay = Request { path: "/relay".into(), ..post("", Body::stream(futures_util::stream::iter(pieces))) };
        let answer = attached.dispatch(relay).await;
        assert_eq!(answer.status, Status::Created);
        assert_eq!(answer.body.collect(LARGE).await.unwrap(), vec![4; LARGE]);
    });
}

#[test]
fn a_call_that_is_given_up_is_cancelled_and_a_panic_answered() {
    run(async {
        let node = Node::new().await;
        let probe = Probe::default();
        let (entered, dropped) = (Arc::clone(&probe.entered), Arc::clone(&probe.dropped));
        let (attached, _pipe) = node.attach(probe).await;
        let attached = Arc::new(attached);
        let forever = || {
            let attached = Arc::clone(&attached);
            tokio::spawn(async move { attached.dispatch(get("/forever")).await })
        };
        for _ in 0..CALLS + 3 {
            let call = forever();
            entered.notified().await;
            call.abort();
            dropped.notified().await;
        }
        assert_eq!(attached.dispatch(get("/panic")).await.status, Status::Internal);
        let mut open: Vec<_> = (1..CALLS).map(|_| forever()).collect();
        let over = loop {
            // One that found no place beside this loop's own call is answered as well.
            open.push(forever());
            tokio::task::yield_now().await;
            let answer = attached.dispatch(post("/echo", Body::empty())).await;
            if answer.status != Status::Created {
                break answer;
            }
        };
        assert_eq!(over.status, Status::TooMany);
        attached.end(Fault::Ended);
        for call in open {
            assert!(matches!(call.await.unwrap().status, Status::Unavailable | Status::TooMany));
        }
    });
}

#[test]
fn only_the_value_that_was_drawn_opens_and_only_once() {
    run(async {
        let node = Node::new().await;
        let mut pipe = node.run(Probe::default());
        let expected = node.expect(PROOF);
        // A wrong value, then the right one.
        pipe.write_all(&[8; 32]).await.unwrap();
        pipe.write_all(&PROOF).await.unwrap();
        let attached = expected.attached().await.unwrap();
        let again = Bare::dial(&node, PROOF).await;
        assert_eq!(again.err().unwrap(), "unproven");
        attached.start().await.unwrap();
    });
}

#[test]
fn a_module_goes_on_under_another_node_and_is_started_again() {
    run(async {
        let node = Node::new().await;
        let probe = Probe::default();
        let started = Arc::clone(&probe.started);
        let (first, mut pipe) = node.attach(probe).await;
        first.start().await.unwrap();
        let expected = node.expect([9; 32]);
        pipe.write_all(&[9; 32]).await.unwrap();
        let second = expected.attached().await.unwrap();
        assert_eq!(first.ended().await, Fault::Gone);
        assert_eq!(first.dispatch(post("/echo", Body::empty())).await.status, Status::Unavailable);
        node.host.context().put("refuse", "x").await.unwrap();
        let refused = second.start().await.unwrap_err();
        assert_eq!((refused.code, refused.detail.as_str()), ("module-not-started", "not-now: told not to"));
        assert_eq!(started.load(Ordering::SeqCst), 2);
        assert_eq!(said(second.dispatch(post("/echo", Body::whole("x"))).await).await.1, "x");
        drop(pipe);
        assert_eq!(second.ended().await, Fault::Gone, "without a supervisor it ends");
    });
}

/// A module of bare frames.
struct Bare {
    frames: Streaming<HostFrame>,
    send: mpsc::Sender<ModuleFrame>,
    host: HostClient<Channel>,
}

async fn channel(node: &Node) -> Channel {
    let mut stream = Some(UnixStream::connect(&node.socket).await.unwrap());
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().map(hyper_util::rt::TokioIo::new);
        async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    Endpoint::from_static("http://node").connect_with_connector(connector).await.unwrap()
}

fn hello(proof: [u8; 32]) -> wire::Hello {
    wire::Hello {
        proof: Bytes::copy_from_slice(&proof),
        module: "probe".into(),
        version: "1".into(),
        newest: 1,
        oldest: 1,
        ..Default::default()
    }
}

impl Bare {
    async fn dial(node: &Node, proof: [u8; 32]) -> Result<Self, String> {
        let (mut bare, ticket) = Self::first(node, hello(proof)).await?;
        bare.host.open(wire::OpenRequest { ticket }).await.map_err(|status| status.message().to_owned())?;
        Ok(bare)
    }

    /// The first connection, and the ticket for the second.
    async fn first(node: &Node, hello: wire::Hello) -> Result<(Self, Bytes), String> {
        // Connections of one process that prove nothing are few.
        while node.door.unproven() > 0 {
            tokio::task::yield_now().await;
        }
        let (send, out) = mpsc::channel(1024);
        send.send(module_frame(FromModule::Hello(hello))).await.unwrap();
        let out = futures_util::stream::unfold(out, |mut out| async { Some((out.recv().await?, out)) });
        let attached = AttachmentClient::new(channel(node).await).attach(out).await;
        let mut frames = attached.map_err(|status| status.message().to_owned())?.into_inner();
        let Some(FromHost::Welcome(welcome)) = frames.message().await.unwrap().unwrap().kind else {
            panic!("no welcome")
        };
        Ok((Self { frames, send, host: HostClient::new(channel(node).await) }, welcome.ticket))
    }

    async fn say(&self, kind: FromModule) {
        // Ended already by an earlier frame.
        let _ = self.send.send(module_frame(kind)).await;
    }

    /// The id of the next call.
    async fn call(&mut self) -> u64 {
        loop {
            if let Some(FromHost::Call(call)) = self.frames.message().await.unwrap().unwrap().kind {
                return call.call;
            }
        }
    }
}

fn reply(call: u64, body: &'static [u8], end: End) -> FromModule {
    let body = Bytes::from_static(body);
    FromModule::Reply(wire::Reply { call, status: 200, body, end: end.into(), ..Default::default() })
}

fn chunk(call: u64, length: usize, end: End) -> FromModule {
    FromModule::Chunk(wire::Chunk { call, body: Bytes::from(vec![1; length]), end: end.into(), limit: 0, range: None })
}

/// What a module says to its first call, and the fault that it is.
type Misdeed = (Fault, fn(u64) -> Vec<FromModule>);

const MISDEEDS: [Misdeed; 19] = [
    (Fault::UnknownCall, |call| vec![reply(call + 1, b"", End::Done)]),
    (Fault::UnknownCall, |_| vec![reply(0, b"", End::Done)]),
    (Fault::SecondAnswer, |call| vec![reply(call, b"", End::Done), reply(call, b"", End::Done)]),
    (Fault::SecondAnswer, |call| vec![reply(call, b"", End::More), reply(call, b"", End::Done)]),
    (Fault::SecondAnswer, |call| vec![reply(call, b"", End::Done), chunk(call, 1, End::More)]),
    (Fault::OutOfTurn, |call| vec![chunk(call, 1, End::More)]),
    (Fault::OutOfTurn, |call| vec![FromModule::Cancelled(wire::Cancelled { call })]),
    (Fault::OutOfTurn, |call| vec![FromModule::EventDone(wire::EventDone { call })]),
    (Fault::OutOfTurn, |_| vec![FromModule::Activated(wire::Activated {})]),
    (Fault::OutOfTurn, |_| vec![FromModule::Drained(wire::Drained {})]),
    (Fault::OutOfTurn, |_| vec![FromModule::Pong(wire::Pong { number: 77 })]),
    (Fault::OutOfTurn, |_| vec![FromModule::Hello(hello(PROOF))]),
    (Fault::BadHead, |call| vec![FromModule::Reply(wire::Reply { call, status: 7, end: 1, ..Default::default() })]),
    (Fault::BadBody, |call| vec![reply(call, b"", End::More), chunk(call, 0, End::More)]),
    (Fault::Overrun, |call| {
        let pieces = (0..=CREDIT as usize / 32_768).map(|_| chunk(call, 32_768, End::More));
        std::iter::once(reply(call, b"", End::More)).chain(pieces).collect()
    }),
    (Fault::BadCredit, |call| vec![FromModule::Credit(wire::Credit { call, bytes: u32::MAX })]),
    (Fault::BadCredit, |call| vec![FromModule::Credit(wire::Credit { call, bytes: 0 })]),
    (Fault::Garbage, |call| vec![FromModule::Reply(wire::Reply { call, status: 200, end: 99, ..Default::default() })]),
    (Fault::Garbage, |call| vec![reply(call, b"", End::More), chunk(call, FRAME_BYTES, End::More)]),
];

#[test]
fn what_is_out_of_contract_ends_the_attachment_by_name_and_answers_the_call() {
    run(async {
        let node = Node::new().await;
        for (number, (fault, misdeed)) in MISDEEDS.into_iter().enumerate() {
            let expected = node.expect(PROOF);
            let (bare, attached) = tokio::join!(Bare::dial(&node, PROOF), expected.attached());
            let (mut bare, attached) = (bare.unwrap(), attached.unwrap());
            let module = async {
                let call = bare.call().await;
                for kind in misdeed(call) {
                    bare.say(kind).await;
                }
            };
            let (answer, ()) = tokio::join!(attached.dispatch(post("/x", Body::empty())), module);
            assert_eq!(attached.ended().await, fault, "misdeed {number}");
            // It was answered: by the module, or in its place.
            let answered = matches!(answer.status, Status::Ok | Status::Unavailable);
            assert!(answered, "misdeed {number}: {:?}", answer.status);
            let read = answer.body.collect(1 << 20).await;
            assert!(read.is_ok() || read == Err(BodyError::Failed), "misdeed {number}: {read:?}");
            // The module hears why, and has nothing of the node any more.
            let last = loop {
                match bare.frames.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("misdeed {number}: it was not told"),
                    Err(status) => break status,
                }
            };
            assert!(last.message() == fault.code() || last.message().contains("h2"), "misdeed {number}: {last:?}");
            let late = bare.host.kv_get(wire::KvGetRequest { key: Bytes::from_static(b"x") }).await;
            assert!(late.is_err(), "misdeed {number}");
        }
    });
}

#[test]
fn a_hello_that_is_none_and_a_version_that_nobody_speaks_are_refused() {
    run(async {
        let node = Node::new().await;
        let _expected = node.expect(PROOF);
        let long = "x".repeat(100);
        for (word, hello) in [
            ("unproven", hello([0; 32])),
            ("unproven", wire::Hello { proof: Bytes::from_static(b"short"), ..hello(PROOF) }),
            ("unproven", wire::Hello { module: "other".into(), ..hello(PROOF) }),
            ("no-hello", wire::Hello { version: long.clone(), ..hello(PROOF) }),
            ("no-hello", wire::Hello { version: "1\n2".into(), ..hello(PROOF) }),
            ("no-hello", wire::Hello { features: vec![long], ..hello(PROOF) }),
        ] {
            assert_eq!(Bare::first(&node, hello).await.err().unwrap(), word);
        }
        let expected = node.expect(PROOF);
        let future = wire::Hello { newest: 9, oldest: 9, ..hello(PROOF) };
        let (refused, fault) = tokio::join!(Bare::first(&node, future), expected.attached());
        let said = fault.unwrap_err();
        assert_eq!((refused.err().unwrap().as_str(), said.code()), ("version", "version"));
        assert_eq!(said.to_string(), "it speaks versions 9 to 9 of the contract, this node 1 to 1");
    });
}

#[test]
fn the_second_connection_needs_its_ticket_and_its_attachment() {
    run(async {
        let node = Node::new().await;
        let expected = node.expect(PROOF);
        let (mut bare, ticket) = Bare::first(&node, hello(PROOF)).await.unwrap();
        let get = || wire::KvGetRequest { key: Bytes::from_static(b"x") };
        assert_eq!(bare.host.kv_get(get()).await.unwrap_err().message(), "not-attached");
        let wrong = wire::OpenRequest { ticket: Bytes::from_static(&[1; 32]) };
        assert_eq!(bare.host.open(wrong).await.unwrap_err().message(), "unproven");
        bare.host.open(wire::OpenRequest { ticket: ticket.clone() }).await.unwrap();
        bare.host.kv_get(get()).await.unwrap();
        let mut other = HostClient::new(channel(&node).await);
        assert_eq!(other.open(wire::OpenRequest { ticket }).await.unwrap_err().message(), "unproven", "once");
        let attached = expected.attached().await.unwrap();
        node.host.withdraw_grants();
        for refused in [
            bare.host.sign(wire::SignRequest::default()).await.map(drop),
            bare.host.seal(wire::SealRequest::default()).await.map(drop),
            bare.host.unseal(wire::SealRequest::default()).await.map(drop),
        ] {
            assert_eq!(refused.unwrap_err().message(), "not-granted");
        }
        let audit = wire::AuditRequest { code: "two\nlines".into(), outcome: "ok".into(), peer: None };
        assert_eq!(bare.host.audit(audit).await.unwrap_err().message(), "malformed");
        drop(attached);
        // A late write of what was replaced is refused.
        let late = wire::KvApplyRequest {
            put: vec![wire::Row { key: Bytes::from_static(b"late"), value: Some(Bytes::new()) }],
            ..Default::default()
        };
        assert!(bare.host.kv_apply(late).await.is_err());
        assert_eq!(node.host.context().get("late").await.unwrap(), None);
    });
}

#[test]
fn a_module_that_does_not_read_holds_up_nobody_but_its_callers() {
    run(async {
        let node = Node::new().await;
        let expected = node.expect(PROOF);
        let (bare, attached) = tokio::join!(Bare::dial(&node, PROOF), expected.attached());
        let (bare, attached) = (bare.unwrap(), Arc::new(attached.unwrap()));
        // More than the connection takes: the rest waits in the lane, and behind it the callers.
        let calls: Vec<_> = (0..CALLS)
            .map(|_| {
                let attached = Arc::clone(&attached);
                tokio::spawn(async move { attached.dispatch(post("/x", Body::whole(vec![0; 50_000]))).await.status })
            })
            .collect();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(calls.iter().all(|call| !call.is_finished()));
        // Another attachment is served meanwhile.
        let mut pipe = node.run(Probe::default());
        let other = node.expect([3; 32]);
        pipe.write_all(&[3; 32]).await.unwrap();
        let other = other.attached().await.unwrap();
        assert_eq!(said(other.dispatch(post("/echo", Body::whole("x"))).await).await.1, "x");
        attached.end(Fault::Silent);
        for call in calls {
            assert_eq!(call.await.unwrap(), Status::Unavailable);
        }
        drop(bare);
    });
}
