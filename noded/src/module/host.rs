//! What one module gets of the node: its rows in the store, its blobs on the disk, calls to peers, timers.
//!
//! Rows are sealed before they reach the database (`store::seal`). Blobs are plain files: what a module keeps there is
//! protected by the state directory's mode and the cage, no further (SECURITY.md).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use openred_module::manifest::PermissionName;
use openred_module::{
    AuditEvent, Batch, BlobName, Body, CallError, Check, Committed, DialError, Host, HostError, KEY_LIMIT, Method,
    NodeStatus, OperateError, PeerError, PeerRequest, Response, Scan, ScanPage, Sink, Status, StoreInto, Stored,
    TimerId, Within,
};
use openred_proto::checked::module_word::is_domain;
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::{NodeId, UnixMillis};
use sha2::{Digest as _, Sha256};

use super::blobs::{Disk, Written};
use super::built_in::BUILT_IN;
use super::egress::Egress;
use super::granted::Granted;
use super::ports::{ModuleKeys, PeerCaller};
use super::rate::Bounds;
use super::seals::{self, Seals};
use super::space::{Place, Space, batch_bytes};
use super::timers::Timers;
use super::{Beside, Parts, View};
use crate::clock;
use crate::health::Health;
use crate::hooks::Hooks;
use crate::store::{Pen, Store, StoreError};

/// The operation that is every operator's route of every module.
const CALL_MODULE: &str = "CallModule";

/// The host of one module.
pub(super) struct ModuleHost {
    me: NodeId,
    module: &'static str,
    store: Store,
    pen: Arc<Pen>,
    disk: Disk,
    peers: Arc<dyn PeerCaller>,
    timers: Arc<Timers>,
    space: Arc<Space>,
    hooks: Arc<Hooks>,
    keys: Arc<dyn ModuleKeys>,
    seals: Seals,
    egress: Egress,
    beside: Beside,
    granted: Arc<Granted>,
    /// What comes with the node is part of it: it signs, seals and calls unasked.
    is_ours: bool,
    health: Arc<Health>,
    view: Arc<View>,
    bounds: Arc<Bounds>,
    taken_out: Arc<AtomicBool>,
}

/// What the processes of one module share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) disk: Disk,
    pub(super) timers: Arc<Timers>,
    pub(super) space: Arc<Space>,
    pub(super) hooks: Arc<Hooks>,
    pub(super) bounds: Arc<Bounds>,
    pub(super) taken_out: Arc<AtomicBool>,
}

impl ModuleHost {
    pub(super) fn new(
        parts: &Parts,
        module: &'static str,
        pen: Arc<Pen>,
        shared: Shared,
        granted: Arc<Granted>,
    ) -> Self {
        let Shared { disk, timers, space, hooks, bounds, taken_out } = shared;
        Self {
            me: parts.me,
            module,
            store: parts.store.clone(),
            pen,
            disk,
            peers: Arc::clone(&parts.peers),
            timers,
            space,
            hooks,
            keys: Arc::clone(&parts.keys),
            seals: Seals::default(),
            egress: Egress::new(&parts.names),
            beside: Arc::clone(&parts.beside),
            granted,
            is_ours: BUILT_IN.iter().any(|ours| ours.id == module),
            health: Arc::clone(&parts.health),
            view: Arc::clone(&parts.view),
            bounds,
            taken_out,
        }
    }

    /// Only the active generation of a module changes what is not a row, which has no copies.
    fn active(&self) -> Result<(), HostError> {
        if self.pen.is_active() { Ok(()) } else { Err(HostError::ShuttingDown) }
    }
}

impl ModuleHost {
    fn unasked_or(&self, may: impl FnOnce(&Granted) -> bool) -> Result<(), HostError> {
        if self.is_ours || may(&self.granted) { Ok(()) } else { Err(HostError::NotGranted) }
    }

    /// Writes a line on the module's word, unless it has too many written. What comes with the node writes what it has to say.
    fn say(&self, line: impl FnOnce()) {
        if self.is_ours {
            return line();
        }
        let Some(left_out) = self.bounds.line(Instant::now()) else { return };
        if left_out > 0 {
            tracing::warn!(module = self.module, left_out, "lines of a module that says too much were left out");
        }
        line();
    }

    fn knows_peers(&self) -> Result<(), HostError> {
        if self.granted.knows_peers() { Ok(()) } else { Err(HostError::NotGranted) }
    }
}

impl From<StoreError> for HostError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full | StoreError::Quota => Self::Full,
            StoreError::Closed | StoreError::Replaced => Self::ShuttingDown,
            _ => Self::Storage,
        }
    }
}

#[async_trait]
impl Sink for ModuleHost {
    /// As [`Host::blob_write`] does, grants and quotas included, for each part of the body.
    async fn write(&self, name: &BlobName, offset: u64, bytes: Vec<Bytes>, check: Check) -> Result<Check, HostError> {
        self.active()?;
        self.granted.need(PermissionName::BlobQuota)?;
        let count = bytes.iter().map(|part| part.len() as u64).sum();
        let most = self.granted.bytes(PermissionName::BlobQuota);
        match self.disk.store(self.module, name, offset, bytes, most, check).await {
            Ok((Written::BeyondQuota, _)) => Err(self.space.own_full(self.module, Place::Blobs, count)),
            written => self.space.noted(self.module, Place::Blobs, count, written.map(|(_, check)| check)),
        }
    }
}

/// A module's request, for a module of this name here or at a peer.
fn to_head(module: &str, request: PeerRequest) -> (RequestHead, Body) {
    let head = RequestHead {
        module: module.to_owned(),
        method: match request.method {
            Method::Get => "GET".to_owned(),
            Method::Post => "POST".to_owned(),
        },
        path: request.path,
        content_type: request.content_type,
        length: request.length,
        deadline_millis: request.deadline.map_or(0, |at| at.saturating_sub(clock::now().0).max(1)),
        idempotency_key: request.idempotency_key.map_or_else(Vec::new, |key| key.to_vec()),
        from: 0,
    };
    (head, request.body)
}

fn to_response((head, body): (ResponseHead, Body)) -> Response {
    Response { status: Status::from_code(head.status), content_type: head.content_type, length: head.length, body }
}

#[async_trait]
impl Host for ModuleHost {
    fn node_id(&self) -> NodeId {
        self.me
    }

    fn now(&self) -> openred_module::UnixMillis {
        clock::now().0
    }

    fn unique_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        getrandom::fill(&mut id).expect("the kernel's generator answers since the probe at start");
        id
    }

    async fn get(&self, key: Bytes) -> Result<Option<Bytes>, HostError> {
        if key.len() > KEY_LIMIT {
            return Err(HostError::TooLarge { limit: KEY_LIMIT });
        }
        self.granted.need(PermissionName::KvQuota)?;
        Ok(self.store.row(self.pen.seal(), key).await?)
    }

    async fn apply(&self, batch: Batch) -> Result<Committed, HostError> {
        batch.check()?;
        self.granted.need(PermissionName::KvQuota)?;
        let (bytes, most) = (batch_bytes(&batch), self.granted.bytes(PermissionName::KvQuota));
        match self.store.apply(Arc::clone(&self.pen), batch, most).await {
            Err(StoreError::Quota) => Err(self.space.own_full(self.module, Place::Rows, bytes)),
            applied => self.space.noted(self.module, Place::Rows, bytes, applied.map_err(HostError::from)),
        }
    }

    async fn scan(&self, scan: Scan) -> Result<ScanPage, HostError> {
        self.granted.need(PermissionName::KvQuota)?;
        Ok(self.store.scan(self.pen.seal(), scan).await?)
    }

    async fn blob_write(&self, name: &BlobName, offset: u64, bytes: Bytes) -> Result<(), HostError> {
        self.active()?;
        self.granted.need(PermissionName::BlobQuota)?;
        let count = bytes.len() as u64;
        let most = self.granted.bytes(PermissionName::BlobQuota);
        match self.disk.write(self.module, name, offset, bytes, most).await {
            Ok(Written::BeyondQuota) => Err(self.space.own_full(self.module, Place::Blobs, count)),
            written => self.space.noted(self.module, Place::Blobs, count, written.map(drop)),
        }
    }

    async fn blob_read(&self, name: &BlobName, offset: u64, most: usize) -> Result<Bytes, HostError> {
        // Its answers may lie in its blobs, and are read here after it has ended: by a swap or of itself, but not by the operator's word.
        if self.taken_out.load(Ordering::Relaxed) {
            return Err(HostError::ShuttingDown);
        }
        self.granted.need(PermissionName::BlobQuota)?;
        self.disk.read(self.module, name, offset, most).await
    }

    async fn blob_length(&self, name: &BlobName) -> Result<Option<u64>, HostError> {
        self.granted.need(PermissionName::BlobQuota)?;
        self.disk.length(self.module, name).await
    }

    async fn blob_sync(&self, name: &BlobName) -> Result<(), HostError> {
        self.granted.need(PermissionName::BlobQuota)?;
        self.disk.sync(self.module, name).await
    }

    async fn blob_rename(&self, from: &BlobName, to: &BlobName) -> Result<(), HostError> {
        self.active()?;
        self.granted.need(PermissionName::BlobQuota)?;
        self.disk.rename(self.module, from, to).await
    }

    async fn blob_delete(&self, name: &BlobName) -> Result<(), HostError> {
        self.active()?;
        self.granted.need(PermissionName::BlobQuota)?;
        self.disk.delete(self.module, name).await?;
        self.space.blob_deleted(self.module);
        Ok(())
    }

    async fn blob_list(&self, after: Option<&BlobName>) -> Result<Vec<BlobName>, HostError> {
        self.granted.need(PermissionName::BlobQuota)?;
        self.disk.list(self.module, after).await
    }

    async fn peer_request(&self, peer: NodeId, request: PeerRequest) -> Result<Response, PeerError> {
        if self.pen.is_copy() {
            return Err(PeerError::Unreachable);
        }
        self.granted.need_peer()?;
        let mut chain = self.hooks.chain(Some(self.module));
        let request = match chain.outbound(self.module, peer, request).await {
            Ok(request) => request,
            // What a hook says in the peer's place is an answer.
            Err(response) => return Ok(chain.response(response).await),
        };
        let (head, body) = to_head(self.module, request);
        let response = to_response(self.peers.call(peer, head, body).await?);
        Ok(chain.response(response).await)
    }

    async fn peer_store(
        &self,
        peer: NodeId,
        request: PeerRequest,
        into: StoreInto,
    ) -> Result<Stored, openred_module::StoreError> {
        // Before the peer is asked.
        self.active()?;
        self.granted.need(PermissionName::BlobQuota)?;
        let response = self.peer_request(peer, request).await?;
        openred_module::receive(self, response, &into).await
    }

    async fn is_linked(&self, peer: NodeId) -> Result<bool, HostError> {
        self.knows_peers()?;
        Ok(self.peers.is_linked(&peer))
    }

    async fn identities(&self, peer: NodeId) -> Result<Vec<NodeId>, HostError> {
        self.knows_peers()?;
        Ok(self.peers.identities(&peer))
    }

    fn set_timer(&self, timer: TimerId, at: openred_module::UnixMillis) {
        if self.pen.is_active() && !self.timers.set(self.module, timer, UnixMillis(at)) {
            self.say(|| tracing::warn!(module = self.module, timer, "too many timers; this one is dropped"));
        }
    }

    async fn node_status(&self) -> Result<NodeStatus, HostError> {
        self.granted.need(PermissionName::NodeStatus)?;
        self.view.status(&self.health).await
    }

    async fn alert(&self, detail: Option<String>) -> Result<(), HostError> {
        self.granted.need(PermissionName::NodeStatus)?;
        if self.pen.is_active() {
            self.view.alert(self.module, detail, &self.health);
        }
        Ok(())
    }

    async fn operate(&self, operation: &str, request: Bytes) -> Result<Bytes, OperateError> {
        self.active()?;
        // Each operation is granted by its name; what the node has besides, nobody reaches this way.
        if !self.granted.may_do(PermissionName::NodeOperate, operation) {
            return Err(HostError::NotGranted.into());
        }
        self.view.operate(operation, request).await
    }

    async fn operator_call(&self, module: &str, request: PeerRequest) -> Result<Response, CallError> {
        if !self.pen.is_active() {
            return Err(CallError::Ended);
        }
        if !self.granted.may_do(PermissionName::NodeOperate, CALL_MODULE) {
            return Err(CallError::NotGranted);
        }
        if module == self.module {
            return Err(CallError::Cycle);
        }
        let modules = self.beside.get().and_then(Weak::upgrade).ok_or(CallError::Ended)?;
        let (head, body) = to_head(module, request);
        Ok(to_response(modules.operator_call(head, body).await))
    }

    fn set_full(&self, detail: Option<String>) {
        if self.pen.is_active() {
            self.space.module_full(self.module, detail);
        }
    }

    async fn sign(&self, domain: &str, body: Bytes) -> Result<Bytes, HostError> {
        if !is_domain(domain) {
            return Err(HostError::BadDomain);
        }
        self.unasked_or(|granted| granted.may_do(PermissionName::SignDomain, domain))?;
        // Each leaves a record in the trail, and the key process signs so many a second for all modules.
        if !self.bounds.signs(Instant::now()) {
            return Err(HostError::Busy);
        }
        let digest = Sha256::digest(&body).into();
        self.keys.sign(self.module, domain, digest, body.len() as u64).await.map_err(seals::failed)
    }

    async fn seal(&self, context: Bytes, body: Bytes) -> Result<Bytes, HostError> {
        self.unasked_or(|granted| granted.may(PermissionName::Seal))?;
        self.seals.of(self.module, self.keys.as_ref()).await?.seal(&context, &body)
    }

    async fn unseal(&self, context: Bytes, sealed: Bytes) -> Result<Bytes, HostError> {
        self.unasked_or(|granted| granted.may(PermissionName::Seal))?;
        self.seals.of(self.module, self.keys.as_ref()).await?.open(&context, &sealed)
    }

    async fn dial(&self, to: &str, sent: Body) -> Result<Body, DialError> {
        if !self.pen.is_active() {
            return Err(DialError::Unreachable);
        }
        self.egress.dial(&self.granted, to, sent).await
    }

    async fn call_module(&self, within: Within, module: &str, request: PeerRequest) -> Result<Response, CallError> {
        if !self.is_ours && !self.granted.may_do(PermissionName::ModuleCall, module) {
            return Err(CallError::NotGranted);
        }
        let modules = self.beside.get().and_then(Weak::upgrade).ok_or(CallError::Ended)?;
        modules.call_beside(self.module, within, module, request).await
    }

    fn audit(&self, event: AuditEvent<'_>) {
        // The signed trail is the key process's and comes with it; until then the local log has the event, without content.
        if !self.is_ours && !self.granted.declares(event.code) {
            let code = event.code;
            return self
                .say(|| tracing::warn!(module = self.module, code, "an event that its manifest does not declare"));
        }
        self.say(|| tracing::info!(module = self.module, code = event.code, outcome = event.outcome, "audit"));
    }
}
