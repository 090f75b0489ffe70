//! The node behind a [`super::TestHost`]: what a host owes a module, in memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use futures_util::{StreamExt, future};
use openred_proto::id::NodeId;
use tokio::sync::watch;

use super::beside::Beside;
use super::callee::Callee;
use super::dial::Egress;
use super::fault::{Fault, truncated};
use crate::body::Body;
use crate::error::{ModuleError, Status};
use crate::host::{
    AuditEvent, BLOB_CHUNK, Batch, BlobName, CallError, Committed, Host, HostError, OperateError, PeerError,
    SCAN_BYTES, SCAN_LIMIT, Scan, ScanPage, UnixMillis, Within,
};
use crate::message::{PeerRequest, Request, Response};
use crate::module::TimerId;
use crate::network::DialError;
use crate::status::NodeStatus;
use crate::stored::{Check, Sink, StoreError, StoreInto, Stored, receive};

/// Where virtual time begins: some moment in 2027.
const EPOCH: UnixMillis = 1_800_000_000_000;
/// How long a node waits for a peer's answer when the module says nothing.
const CALL_MILLIS: u64 = 60_000;
/// Longest body of a request that arrives twice.
const TWIN_BYTES: usize = 16 << 20;

/// A node in memory: the host of one module.
pub(super) struct Node {
    pub(super) id: NodeId,
    state: Mutex<State>,
    /// The node was killed in the middle of a call.
    crashed: watch::Sender<bool>,
    this: Weak<Node>,
}

pub(super) struct State {
    pub(super) callee: Option<Callee>,
    pub(super) now: UnixMillis,
    pub(super) unique: u128,
    pub(super) rows: BTreeMap<Bytes, Bytes>,
    pub(super) blobs: BTreeMap<BlobName, Blob>,
    pub(super) peers: HashMap<NodeId, Weak<Node>>,
    pub(super) timers: BTreeMap<TimerId, UnixMillis>,
    pub(super) faults: VecDeque<Fault>,
    pub(super) offline: bool,
    pub(super) full: bool,
    pub(super) requests: u64,
    pub(super) body_bytes: Arc<std::sync::atomic::AtomicU64>,
    pub(super) audit: Vec<AuditEvent<'static>>,
    pub(super) no_room: Option<String>,
    pub(super) status: Option<NodeStatus>,
    pub(super) alert: Option<String>,
    pub(super) settings: String,
    /// Changes of rows after which it is killed.
    pub(super) crash_after: Option<usize>,
    /// Who goes on for whom, as this node knows it.
    pub(super) successors: BTreeMap<NodeId, NodeId>,
    /// A node of before the feature `stores`.
    pub(super) without_stores: bool,
    pub(super) beside: Beside,
    pub(super) egress: Egress,
    /// What the operator's operations do.
    pub(super) operations: Option<Operations>,
}

/// Operations of the operator, as a test wants them.
pub(super) type Operations = Arc<dyn Fn(&str, Bytes) -> Result<Bytes, OperateError> + Send + Sync>;

/// Bytes as a reader sees them, and as they would be after a power cut.
#[derive(Default)]
pub(super) struct Blob {
    pub(super) seen: Vec<u8>,
    pub(super) durable: Option<Vec<u8>>,
    pub(super) dirty: Vec<(usize, usize)>,
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

impl Node {
    pub(super) fn new(seed: u8) -> Arc<Self> {
        let state = State {
            callee: None,
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
            status: None,
            alert: None,
            successors: BTreeMap::new(),
            without_stores: false,
            crash_after: None,
            settings: String::new(),
            beside: Beside::default(),
            egress: Egress::default(),
            operations: None,
        };
        Arc::new_cyclic(|this| Self {
            id: NodeId::from_bytes([seed; 32]),
            state: Mutex::new(state),
            crashed: watch::Sender::new(false),
            this: Weak::clone(this),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }

    fn writable(&self) -> Result<MutexGuard<'_, State>, HostError> {
        let state = self.state();
        if state.full { Err(HostError::Full) } else { Ok(state) }
    }

    pub(super) fn this(&self) -> Weak<Self> {
        Weak::clone(&self.this)
    }

    pub(super) fn callee(&self) -> Option<Callee> {
        self.state().callee.clone()
    }

    /// Serves one call; a node that is killed meanwhile answers nothing more.
    pub(super) async fn dispatch(&self, request: Request) -> Response {
        let callee = self.callee().expect("a started host has a module");
        let this = self.this.upgrade().expect("whoever calls holds the node");
        let gone = || ModuleError::new(Status::Unavailable, "module-gone", "the node was killed").into();
        if *self.crashed.borrow() {
            return gone();
        }
        let running = this.begin(&request);
        tokio::select! {
            response = callee.dispatch(this.context_of(running.call), request) => response,
            () = self.killed() => gone(),
        }
    }

    /// Returns when it has been killed.
    pub(super) async fn killed(&self) {
        let mut crashed = self.crashed.subscribe();
        // The sender is in here, so it is not gone.
        let _ = crashed.wait_for(|crashed| *crashed).await;
    }

    /// It runs again.
    pub(super) fn revive(&self) {
        self.crashed.send_replace(false);
    }

    /// After a change of rows: whether this was the last one before the end.
    fn crashes_now(&self, state: &mut State) -> bool {
        let now = state.crash_after == Some(1);
        state.crash_after = state.crash_after.map(|left| left - 1).filter(|left| *left > 0);
        if now {
            self.crashed.send_replace(true);
            state.egress.end_all();
        }
        now
    }

    pub(super) fn next_timer(&self, end: UnixMillis) -> Option<TimerId> {
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

#[async_trait::async_trait]
impl Host for Node {
    fn node_id(&self) -> NodeId {
        self.id
    }

    fn now(&self) -> UnixMillis {
        self.state().now
    }

    fn settings(&self) -> String {
        self.state().settings.clone()
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
        let crashes = {
            let mut state = self.writable()?;
            if batch.expect.iter().any(|(key, value)| state.rows.get(key) != value.as_ref()) {
                return Ok(Committed::No);
            }
            // In the order of a node's store.
            state.rows.extend(batch.put);
            for key in batch.delete {
                state.rows.remove(&key);
            }
            self.crashes_now(&mut state)
        };
        if crashes {
            // Durable, and its writer hears nothing of it.
            future::pending::<()>().await;
        }
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
        let mut bytes = 0;
        let fits = rows.iter().take_while(|(_, value)| {
            let fits = bytes <= SCAN_BYTES;
            bytes += value.len();
            fits
        });
        let limit = limit.min(fits.count());
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
        let deadline = request.deadline.unwrap_or(u64::MAX).min(self.now().saturating_add(CALL_MILLIS));
        if fault == Fault::Duplicate {
            let first = twin(&mut request).await;
            drop(target.dispatch(first.into_request(self.id)).await);
        }
        let response = target.dispatch(request.into_request(self.id)).await;
        if *target.crashed.borrow() {
            return Err(PeerError::Interrupted);
        }
        if let Fault::Late(millis) = fault {
            self.state().now += millis;
            if self.now() > deadline {
                return Err(PeerError::TimedOut);
            }
        }
        let mut response = fault.on_response(response)?;
        let counter = Arc::clone(&self.state().body_bytes);
        response.body = Body::stream(response.body.inspect(move |item| {
            let length = item.as_ref().map_or(0, Bytes::len);
            counter.fetch_add(length as u64, std::sync::atomic::Ordering::Relaxed);
        }));
        Ok(response)
    }

    async fn peer_store(&self, peer: NodeId, request: PeerRequest, into: StoreInto) -> Result<Stored, StoreError> {
        if self.state().without_stores {
            return Err(StoreError::Unsupported);
        }
        let response = self.peer_request(peer, request).await?;
        receive(self, response, &into).await
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

    async fn dial(&self, to: &str, sent: Body) -> Result<Body, DialError> {
        self.dial_here(to, sent).await
    }

    fn set_timer(&self, timer: TimerId, at: UnixMillis) {
        self.state().timers.insert(timer, at);
    }

    async fn operate(&self, operation: &str, request: Bytes) -> Result<Bytes, OperateError> {
        let operations = self.state().operations.clone().ok_or(HostError::NotGranted)?;
        operations(operation, request)
    }

    async fn operator_call(&self, module: &str, request: PeerRequest) -> Result<Response, CallError> {
        self.operator_beside(module, request).await
    }

    async fn node_status(&self) -> Result<NodeStatus, HostError> {
        self.state().status.clone().ok_or(HostError::NotGranted)
    }

    async fn alert(&self, detail: Option<String>) -> Result<(), HostError> {
        let mut state = self.state();
        if state.status.is_none() {
            return Err(HostError::NotGranted);
        }
        state.alert = detail;
        Ok(())
    }

    fn set_full(&self, detail: Option<String>) {
        self.state().no_room = detail;
    }

    async fn sign(&self, domain: &str, body: Bytes) -> Result<Bytes, HostError> {
        self.sign_here(domain, &body)
    }

    async fn seal(&self, context: Bytes, body: Bytes) -> Result<Bytes, HostError> {
        self.seal_here(context, body)
    }

    async fn unseal(&self, context: Bytes, sealed: Bytes) -> Result<Bytes, HostError> {
        self.unseal_here(&context, &sealed)
    }

    async fn call_module(&self, within: Within, module: &str, request: PeerRequest) -> Result<Response, CallError> {
        self.call_beside(within, module, request).await
    }

    fn audit(&self, event: AuditEvent<'_>) {
        // For a test's life: a real host keeps no words of a module.
        let kept = |word: &str| -> &'static str { String::leak(word.to_owned()) };
        let event = AuditEvent { code: kept(event.code), peer: event.peer, outcome: kept(event.outcome) };
        self.state().audit.push(event);
    }
}

#[async_trait::async_trait]
impl Sink for Node {
    async fn write(
        &self,
        blob: &BlobName,
        offset: u64,
        bytes: Vec<Bytes>,
        mut check: Check,
    ) -> Result<Check, HostError> {
        let bytes = Bytes::from(bytes.concat());
        check.update(&bytes);
        let mut at = 0;
        // Nothing at all is a blob as well.
        while at == 0 || at < bytes.len() {
            let part = bytes.slice(at..bytes.len().min(at + BLOB_CHUNK));
            self.blob_write(blob, offset + at as u64, part).await?;
            at += BLOB_CHUNK;
        }
        Ok(check)
    }
}

/// The same request again; its body is in memory then.
async fn twin(request: &mut PeerRequest) -> PeerRequest {
    let body = std::mem::replace(&mut request.body, Body::empty());
    let bytes = body.collect(TWIN_BYTES).await.expect("a request that is to arrive twice is short and whole");
    request.body = Body::whole(bytes.clone());
    PeerRequest {
        method: request.method,
        path: request.path.clone(),
        content_type: request.content_type.clone(),
        length: request.length,
        deadline: request.deadline,
        idempotency_key: request.idempotency_key,
        body: Body::whole(bytes),
    }
}
