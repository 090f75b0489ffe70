//! A node for one module inside a test: virtual time, state in memory, links to other such nodes, and faults on demand.
//!
//! Faithful where modules could be wrong: batches are atomic, what was not synced is lost at a power cut, a response can
//! be lost after the request was carried out, a body can stop or change in the middle, a request can arrive twice, the node can end
//! between a change and its answer. Nothing sleeps: time moves only by [`TestHost::advance`].

mod beside;
mod callee;
mod dial;
mod fault;
mod node;

use std::sync::Arc;

use bytes::Bytes;
use openred_proto::id::NodeId;

use crate::body::Body;
use crate::context::Context;
use crate::error::ModuleError;
use crate::hook::{HookRequest, Verdict};
use crate::host::{AuditEvent, Host, OperateError, UnixMillis};
use crate::instance::Instance;
use crate::message::{Caller, Method, PeerRequest, Request, Response};
use crate::module::{Event, Module};
use crate::status::NodeStatus;
pub(crate) use callee::Callee;
pub use dial::DialFault;
pub use fault::Fault;
use node::Node;

/// A module on a node of its own.
///
/// Two of them, linked, and an answer that is lost on its way:
///
/// ```
/// use std::sync::Arc;
///
/// use openred_module::{
///     Body, Context, Fault, Json, Manifest, Method, Module, ModuleError, NodeId, PeerError, PeerRequest, Routes, Table,
///     TestHost, link,
/// };
///
/// struct Counter;
///
/// static COUNTS: Table<String, u64> = Table::new("counts");
///
/// impl Module for Counter {
///     fn manifest(&self) -> Manifest {
///         Manifest { id: "counter", version: "1.0.0", summary: "Counts what arrives" }
///     }
///
///     fn routes(routes: &mut Routes<Self>) {
///         routes.peer(Method::Post, "/count", 0, Self::count);
///     }
/// }
///
/// impl Counter {
///     async fn count(self: Arc<Self>, context: Context, from: NodeId) -> Result<Json<u64>, ModuleError> {
///         Ok(Json(COUNTS.update(&context, &from.to_string(), |count| count.unwrap_or(0) + 1).await?))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (alice, bob) = (TestHost::start(1, Counter).await, TestHost::start(2, Counter).await);
/// link(&alice, &bob);
/// let count = async || alice.context().peer_request(bob.id(), PeerRequest::post("/count", "", Body::empty())).await;
///
/// alice.faults([Fault::DropResponse, Fault::Late(5_000)]);
/// assert_eq!(count().await.err(), Some(PeerError::Interrupted));
/// // It was carried out all the same; and this answer takes five seconds, which nobody waits for.
/// let (before, answer) = (alice.context().now(), count().await.unwrap());
/// assert_eq!(answer.json_body::<u64>().await.unwrap(), 2);
/// assert_eq!(alice.context().now() - before, 5_000);
///
/// // The node ends right after the next change: what is durable stays.
/// bob.crash_after(1);
/// assert_eq!(count().await.err(), Some(PeerError::Interrupted));
/// bob.kill_and_restart(Counter).await;
/// assert_eq!(COUNTS.get(&bob.context(), &alice.id().to_string()).await.unwrap(), Some(3));
/// # }
/// ```
pub struct TestHost {
    node: Arc<Node>,
}

/// Links two nodes, as a completed link offer would.
pub fn link(one: &TestHost, other: &TestHost) {
    one.node.state().peers.insert(other.id(), Arc::downgrade(&other.node));
    other.node.state().peers.insert(one.id(), Arc::downgrade(&one.node));
}

impl TestHost {
    /// A node whose id is 32 times `seed`, with the module loaded and started.
    ///
    /// # Panics
    /// If the module cannot be loaded or started.
    pub async fn start<M: Module>(seed: u8, module: M) -> Self {
        let host = Self { node: Node::new(seed) };
        host.load(module).await.expect("the module starts");
        host
    }

    /// A node without a module yet; calls wait for [`Self::serve_by`].
    #[cfg(feature = "sandbox")]
    pub(crate) fn without_module(seed: u8) -> Self {
        Self { node: Node::new(seed) }
    }

    /// From now on this module is called.
    #[cfg(feature = "sandbox")]
    pub(crate) fn serve_by(&self, attached: Arc<crate::remote::Attached>) {
        self.forget();
        self.node.revive();
        self.node.state().callee = Some(Callee::Process(attached));
    }

    /// What a node forgets when it ends.
    fn forget(&self) {
        let mut state = self.node.state();
        state.timers.clear();
        state.no_room = None;
        state.crash_after = None;
        state.egress.end_all();
    }

    async fn load<M: Module>(&self, module: M) -> Result<(), ModuleError> {
        let instance = Arc::new(Instance::load(module).expect("the module loads"));
        self.node.revive();
        self.node.state().callee = Some(Callee::Linked(Arc::clone(&instance)));
        instance.start(self.context()).await
    }

    /// Kills the node and starts it with a fresh module: timers and the module's memory are gone. What reached the
    /// operating system stays, as after `kill -9`.
    ///
    /// # Panics
    /// If the module cannot be started again.
    pub async fn kill_and_restart<M: Module>(&self, module: M) {
        self.forget();
        self.load(module).await.expect("the module starts again");
    }

    /// As [`Self::kill_and_restart`], and what was not durable is gone as well.
    pub async fn cut_power_and_restart<M: Module>(&self, module: M) {
        {
            let mut state = self.node.state();
            state.blobs.retain(|_, blob| blob.durable.is_some());
            for blob in state.blobs.values_mut() {
                blob.seen = blob.durable.clone().unwrap_or_default();
                blob.dirty.clear();
            }
        }
        self.kill_and_restart(module).await;
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.node.id
    }

    /// What the module holds.
    pub fn context(&self) -> Context {
        Context::new(Arc::clone(&self.node) as Arc<dyn Host>)
    }

    /// Calls an operator route.
    pub async fn operator(&self, request: PeerRequest) -> Response {
        self.node.dispatch(Request { caller: Caller::Operator, ..request.into_request(self.id()) }).await
    }

    /// Connects to the module as a client on this machine would: what it sends, and all that it gets.
    pub async fn connect(&self, sends: Body) -> Response {
        let path = "/127.0.0.1:9000/127.0.0.1:40000";
        let request = Request::new(Caller::Loopback, Method::Post, path).with_body("", sends);
        self.node.dispatch(request).await
    }

    /// How the node is from now on; without it the module was not granted to know.
    pub fn set_status(&self, status: NodeStatus) {
        self.node.state().status = Some(status);
    }

    /// What the module has told the operator.
    pub fn alerted(&self) -> Option<String> {
        self.node.state().alert.clone()
    }

    /// What the operator's operations do from now on, and that the module was granted them, its calls of modules beside it as the operator among
    /// them; before, it was not.
    pub fn set_operations(
        &self,
        operations: impl Fn(&str, Bytes) -> Result<Bytes, OperateError> + Send + Sync + 'static,
    ) {
        self.node.state().operations = Some(Arc::new(operations));
    }

    /// Calls a peer route as `peer`, without the peer's node taking part: for hostile input.
    pub async fn as_peer(&self, peer: NodeId, request: PeerRequest) -> Response {
        self.node.dispatch(request.into_request(peer)).await
    }

    /// Asks a hook of the module, as its node would. What that node's chain makes of the answer is not tried here.
    ///
    /// # Errors
    /// The handler's, and `no-such-hook`.
    ///
    /// # Panics
    /// Without a module.
    pub async fn hook(&self, hook: &str, request: HookRequest) -> Result<Verdict, ModuleError> {
        let callee = self.node.callee().expect("a started host has a module");
        callee.hook(self.context(), hook, request).await
    }

    /// Tells the module of an event.
    pub async fn event(&self, event: Event) {
        if let Some(callee) = self.node.callee() {
            tokio::select! {
                () = callee.event(self.context(), event) => {}
                () = self.node.killed() => {}
            }
        }
    }

    /// This node hears that `old` goes on as `new`: it follows, and tells the module.
    pub async fn succeed(&self, old: NodeId, new: NodeId) {
        self.node.state().successors.insert(old, new);
        self.event(Event::IdentitiesChanged(old)).await;
    }

    /// This node hears that `old` has taken its successor back.
    pub async fn take_back(&self, old: NodeId) {
        self.node.state().successors.remove(&old);
        self.event(Event::IdentitiesChanged(old)).await;
    }

    /// Moves time on and runs the timers that come due, each at its time.
    pub async fn advance(&self, millis: u64) {
        let end = self.node.state().now + millis;
        while let Some(timer) = self.node.next_timer(end) {
            self.event(Event::Timer(timer)).await;
        }
        self.node.state().now = end;
    }

    /// Sets the clock, backwards too: a clock may jump.
    pub fn set_clock(&self, now: UnixMillis) {
        self.node.state().now = now;
    }

    /// Queues faults for this node's coming peer requests.
    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.node.state().faults.extend(faults);
    }

    /// From now on it is a node of before the feature `stores`: its module reads the answers of peers itself.
    pub fn without_stores(&self) {
        self.node.state().without_stores = true;
    }

    /// While offline, no peer request leaves or arrives, and no connection is made.
    pub fn set_offline(&self, offline: bool) {
        self.node.state().offline = offline;
    }

    /// While full, nothing can be written.
    pub fn set_full(&self, full: bool) {
        self.node.state().full = full;
    }

    /// Kills the node right after so many more changes of rows: the last one is durable, and whoever made it hears nothing, nor does its caller. Calls
    /// are answered with 503 from then on, until [`Self::kill_and_restart`].
    pub fn crash_after(&self, changes: usize) {
        self.node.state().crash_after = Some(changes.max(1));
    }

    /// The operator's settings for the module, as TOML. A module in a cage is told them when it attaches next.
    pub fn configure(&self, settings: &str) {
        self.node.state().settings = settings.to_owned();
    }

    /// Peer requests that this node has tried to send.
    pub fn requests(&self) -> u64 {
        self.node.state().requests
    }

    /// Bytes of answers' bodies that this node has received.
    pub fn received_bytes(&self) -> u64 {
        self.node.state().body_bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The audit trail so far.
    pub fn audit_trail(&self) -> Vec<AuditEvent<'static>> {
        self.node.state().audit.clone()
    }

    /// What the module has no room for, as it says itself.
    pub fn no_room(&self) -> Option<String> {
        self.node.state().no_room.clone()
    }

    /// Rows in the store whose key has this prefix.
    pub fn count_rows(&self, prefix: &[u8]) -> usize {
        self.node.state().rows.keys().filter(|key| key.starts_with(prefix)).count()
    }

    /// Names and lengths of the blobs.
    pub fn blobs(&self) -> Vec<(String, usize)> {
        self.node.state().blobs.iter().map(|(name, blob)| (name.as_str().to_owned(), blob.seen.len())).collect()
    }
}
