//! A node for one module inside a test: virtual time, state in memory, links to other such nodes, and faults on demand.
//!
//! Faithful where modules could be wrong: batches are atomic, what was not synced is lost at a power cut, a response can
//! be lost after the request was carried out, a body can stop or change in the middle. Nothing sleeps: time moves only by
//! [`TestHost::advance`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use futures_util::{StreamExt, future};
use openred_proto::id::NodeId;

use crate::body::{Body, BodyError};
use crate::context::Context;
use crate::error::ModuleError;
use crate::hook::{HookRequest, Verdict};
use crate::host::{
    AuditEvent, BLOB_CHUNK, Batch, BlobName, Committed, Host, HostError, PeerError, SCAN_LIMIT, Scan, ScanPage,
    UnixMillis,
};
use crate::instance::Instance;
use crate::message::{Caller, PeerRequest, Request, Response};
use crate::module::{Event, Module, TimerId};

/// Where virtual time begins: some moment in 2027.
const EPOCH: UnixMillis = 1_800_000_000_000;

/// What goes wrong with one peer request of this host. Faults are used up in order, one a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This request goes well.
    None,
    /// The request never leaves.
    FailBefore,
    /// The peer carries the request out, its answer is lost.
    DropResponse,
    /// The request's body stops after so many bytes.
    TruncateRequest(u64),
    /// The answer's body stops after so many bytes.
    TruncateResponse(u64),
    /// One bit of the answer's body is flipped in the byte at this offset.
    CorruptResponse(u64),
    /// The answer's body arrives with this many bytes appended.
    ExtendResponse(usize),
}

/// A module on a node of its own.
pub struct TestHost {
    node: Arc<Node>,
}

struct Node {
    id: NodeId,
    state: Mutex<State>,
    this: Weak<Node>,
}

struct State {
    instance: Option<Arc<Instance>>,
    now: UnixMillis,
    unique: u128,
    rows: BTreeMap<Bytes, Bytes>,
    blobs: BTreeMap<BlobName, Blob>,
    peers: HashMap<NodeId, Weak<Node>>,
    timers: BTreeMap<TimerId, UnixMillis>,
    faults: VecDeque<Fault>,
    offline: bool,
    full: bool,
    requests: u64,
    body_bytes: Arc<std::sync::atomic::AtomicU64>,
    audit: Vec<AuditEvent<'static>>,
    no_room: Option<String>,
    /// Who goes on for whom, as this node knows it.
    successors: BTreeMap<NodeId, NodeId>,
}

/// Bytes as a reader sees them, and as they would be after a power cut.
#[derive(Default)]
struct Blob {
    seen: Vec<u8>,
    durable: Option<Vec<u8>>,
    dirty: Vec<(usize, usize)>,
}

impl Blob {
    fn sync(&mut self) {
        let durable = self.durable.get_or_insert_default();
        durable.resize(self.seen.len(), 0);
        for (start, end) in self.dirty.drain(..) {
            durable[start..end].copy_from_slice(&self.seen[start..end]);
        }
    }
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

    async fn load<M: Module>(&self, module: M) -> Result<(), ModuleError> {
        let instance = Arc::new(Instance::load(module).expect("the module loads"));
        self.node.state().instance = Some(Arc::clone(&instance));
        instance.start(self.context()).await
    }

    /// Kills the node and starts it with a fresh module: timers and the module's memory are gone. What reached the
    /// operating system stays, as after `kill -9`.
    ///
    /// # Panics
    /// If the module cannot be started again.
    pub async fn kill_and_restart<M: Module>(&self, module: M) {
        self.node.state().timers.clear();
        self.node.state().no_room = None;
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
        let instance = self.node.instance().expect("a started host has a module");
        instance.hook(self.context(), hook, request).await
    }

    /// Tells the module of an event.
    pub async fn event(&self, event: Event) {
        if let Some(instance) = self.node.instance() {
            instance.event(self.context(), event).await;
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

    /// While offline, no peer request leaves or arrives.
    pub fn set_offline(&self, offline: bool) {
        self.node.state().offline = offline;
    }

    /// While full, nothing can be written.
    pub fn set_full(&self, full: bool) {
        self.node.state().full = full;
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

impl Node {
    fn new(seed: u8) -> Arc<Self> {
        let state = State {
            instance: None,
            now: EPOCH,
            unique: u128::from(seed) << 64,
            rows: BTreeMap::new(),
            blobs: BTreeMap::new(),
            peers: HashMap::new(),
            timers: BTreeMap::new(),
            faults: VecDeque::new(),
            offline: false,
            full: false,
            requests: 0,
            body_bytes: Arc::default(),
            audit: Vec::new(),
            no_room: None,
            successors: BTreeMap::new(),
        };
        Arc::new_cyclic(|this| Self {
            id: NodeId::from_bytes([seed; 32]),
            state: Mutex::new(state),
            this: Weak::clone(this),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }

    fn writable(&self) -> Result<MutexGuard<'_, State>, HostError> {
        let state = self.state();
        if state.full { Err(HostError::Full) } else { Ok(state) }
    }

    fn instance(&self) -> Option<Arc<Instance>> {
        self.state().instance.clone()
    }

    async fn dispatch(&self, request: Request) -> Response {
        let instance = self.instance().expect("a started host has a module");
        let this = self.this.upgrade().expect("whoever calls holds the node");
        instance.dispatch(Context::new(this), request).await
    }

    fn next_timer(&self, end: UnixMillis) -> Option<TimerId> {
        let mut state = self.state();
        let (timer, at) = state.timers.iter().map(|(timer, at)| (*timer, *at)).min_by_key(|(_, at)| *at)?;
        if at > end {
            return None;
        }
        state.timers.remove(&timer);
        state.now = state.now.max(at);
        Some(timer)
    }

    fn begin_request(&self, peer: NodeId) -> Result<(Arc<Node>, Fault), PeerError> {
        let peer = self.state().present(peer);
        let mut state = self.state();
        state.requests += 1;
        let fault = state.faults.pop_front().unwrap_or(Fault::None);
        let target = state.peers.get(&peer).ok_or(PeerError::NotLinked)?.upgrade().ok_or(PeerError::Unreachable)?;
        if state.offline || fault == Fault::FailBefore {
            return Err(PeerError::Unreachable);
        }
        Ok((target, fault))
    }
}

impl State {
    fn present(&self, peer: NodeId) -> NodeId {
        std::iter::successors(Some(peer), |at| self.successors.get(at).copied()).last().unwrap_or(peer)
    }
}

fn truncated(body: Body, after: u64) -> Body {
    Body::stream(body.limited(after).map(|item| item.map_err(|_| BodyError::Truncated)))
}

fn corrupted(body: Body, at: u64) -> Body {
    let mut offset = 0_u64;
    Body::stream(body.map(move |item| {
        item.map(|chunk| {
            let start = offset;
            offset += chunk.len() as u64;
            if !(start..offset).contains(&at) {
                return chunk;
            }
            let mut bytes = chunk.to_vec();
            bytes[usize::try_from(at - start).expect("inside the chunk")] ^= 1;
            Bytes::from(bytes)
        })
    }))
}

impl Fault {
    fn on_response(self, mut response: Response) -> Result<Response, PeerError> {
        match self {
            Self::DropResponse => return Err(PeerError::Interrupted),
            Self::TruncateResponse(after) => response.body = truncated(response.body, after),
            Self::CorruptResponse(at) => response.body = corrupted(response.body, at),
            Self::ExtendResponse(extra) => {
                let tail = futures_util::stream::once(future::ready(Ok(Bytes::from(vec![0; extra]))));
                response.body = Body::stream(response.body.chain(tail));
            }
            Self::None | Self::FailBefore | Self::TruncateRequest(_) => {}
        }
        Ok(response)
    }
}

#[async_trait::async_trait]
impl Host for Node {
    fn node_id(&self) -> NodeId {
        self.id
    }

    fn now(&self) -> UnixMillis {
        self.state().now
    }

    fn unique_id(&self) -> [u8; 16] {
        let mut state = self.state();
        state.unique += 1;
        state.unique.to_be_bytes()
    }

    async fn get(&self, key: Bytes) -> Result<Option<Bytes>, HostError> {
        Ok(self.state().rows.get(&key).cloned())
    }

    async fn apply(&self, batch: Batch) -> Result<Committed, HostError> {
        // Lets other tasks in between, as a real store does.
        tokio::task::yield_now().await;
        let mut state = self.writable()?;
        if batch.expect.iter().any(|(key, value)| state.rows.get(key) != value.as_ref()) {
            return Ok(Committed::No);
        }
        for key in batch.delete {
            state.rows.remove(&key);
        }
        state.rows.extend(batch.put);
        Ok(Committed::Yes)
    }

    async fn scan(&self, scan: Scan) -> Result<ScanPage, HostError> {
        let state = self.state();
        let limit = scan.limit.min(SCAN_LIMIT);
        let beyond = |key: &Bytes| match &scan.after {
            None => true,
            Some(after) if scan.backwards => key < after,
            Some(after) => key > after,
        };
        let all = state.rows.iter().filter(|(key, _)| key.starts_with(&scan.prefix) && beyond(key));
        let copy = |(key, value): (&Bytes, &Bytes)| (key.clone(), value.clone());
        let mut rows: Vec<_> = if scan.backwards {
            all.rev().take(limit + 1).map(copy).collect()
        } else {
            all.take(limit + 1).map(copy).collect()
        };
        let more = rows.len() > limit;
        rows.truncate(limit);
        Ok(ScanPage { rows, more })
    }

    async fn blob_write(&self, name: &BlobName, offset: u64, bytes: Bytes) -> Result<(), HostError> {
        if bytes.len() > BLOB_CHUNK {
            return Err(HostError::TooLarge { limit: BLOB_CHUNK });
        }
        tokio::task::yield_now().await;
        let mut state = self.writable()?;
        let blob = state.blobs.entry(name.clone()).or_default();
        let start = usize::try_from(offset).map_err(|_| HostError::Full)?;
        let end = start + bytes.len();
        let before = blob.seen.len();
        if end > before {
            blob.seen.resize(end, 0);
        }
        blob.seen[start..end].copy_from_slice(&bytes);
        blob.dirty.push((start.min(before), end));
        Ok(())
    }

    async fn blob_read(&self, name: &BlobName, offset: u64, most: usize) -> Result<Bytes, HostError> {
        let state = self.state();
        let seen = &state.blobs.get(name).ok_or(HostError::NoBlob)?.seen;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(seen.len());
        let end = start.saturating_add(most.min(BLOB_CHUNK)).min(seen.len());
        Ok(Bytes::copy_from_slice(&seen[start..end]))
    }

    async fn blob_length(&self, name: &BlobName) -> Result<Option<u64>, HostError> {
        Ok(self.state().blobs.get(name).map(|blob| blob.seen.len() as u64))
    }

    async fn blob_sync(&self, name: &BlobName) -> Result<(), HostError> {
        self.writable()?.blobs.get_mut(name).ok_or(HostError::NoBlob)?.sync();
        Ok(())
    }

    async fn blob_rename(&self, from: &BlobName, to: &BlobName) -> Result<(), HostError> {
        let mut state = self.writable()?;
        let mut blob = state.blobs.remove(from).ok_or(HostError::NoBlob)?;
        blob.sync();
        state.blobs.insert(to.clone(), blob);
        Ok(())
    }

    async fn blob_delete(&self, name: &BlobName) -> Result<(), HostError> {
        self.state().blobs.remove(name);
        Ok(())
    }

    async fn blob_list(&self, after: Option<&BlobName>) -> Result<Vec<BlobName>, HostError> {
        let state = self.state();
        Ok(state
            .blobs
            .keys()
            .filter(|name| after.is_none_or(|after| *name > after))
            .take(SCAN_LIMIT)
            .cloned()
            .collect())
    }

    async fn peer_request(&self, peer: NodeId, mut request: PeerRequest) -> Result<Response, PeerError> {
        tokio::task::yield_now().await;
        let (target, fault) = self.begin_request(peer)?;
        {
            let state = target.state();
            if state.offline {
                return Err(PeerError::Unreachable);
            }
            if !state.peers.contains_key(&self.id) {
                return Err(PeerError::NotLinked);
            }
        }
        if let Fault::TruncateRequest(after) = fault {
            request.body = truncated(request.body, after);
        }
        let response = target.dispatch(request.into_request(self.id)).await;
        let mut response = fault.on_response(response)?;
        let counter = Arc::clone(&self.state().body_bytes);
        response.body = Body::stream(response.body.inspect(move |item| {
            let length = item.as_ref().map_or(0, Bytes::len);
            counter.fetch_add(length as u64, std::sync::atomic::Ordering::Relaxed);
        }));
        Ok(response)
    }

    async fn is_linked(&self, peer: NodeId) -> Result<bool, HostError> {
        let state = self.state();
        Ok(state.peers.contains_key(&state.present(peer)))
    }

    async fn identities(&self, peer: NodeId) -> Result<Vec<NodeId>, HostError> {
        let state = self.state();
        let mut identities = vec![state.present(peer)];
        let earlier = |of: &NodeId| state.successors.iter().find(|(_, new)| *new == of).map(|(old, _)| *old);
        while let Some(old) = identities.last().and_then(earlier) {
            identities.push(old);
        }
        identities.reverse();
        Ok(identities)
    }

    fn set_timer(&self, timer: TimerId, at: UnixMillis) {
        self.state().timers.insert(timer, at);
    }

    fn set_full(&self, detail: Option<String>) {
        self.state().no_room = detail;
    }

    fn audit(&self, event: AuditEvent<'_>) {
        // For a test's life: a real host keeps no words of a module.
        let kept = |word: &str| -> &'static str { String::leak(word.to_owned()) };
        let event = AuditEvent { code: kept(event.code), peer: event.peer, outcome: kept(event.outcome) };
        self.state().audit.push(event);
    }
}
