//! A module's hold on its node: cheap to clone, nothing but calls of the [`Host`] and the small conveniences over them.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::error::ModuleError;
use crate::host::{
    AuditEvent, Batch, BlobName, CONTEXT_LIMIT, CallError, Committed, Host, HostError, OPERATE_LIMIT, OperateError,
    PeerError, SEAL_LIMIT, Scan, ScanPage, UnixMillis, Within,
};
use crate::message::{PeerRequest, Response};
use crate::module::TimerId;
use crate::status::NodeStatus;
use crate::stored::{StoreError, StoreInto, Stored};
use openred_proto::id::NodeId;

/// What a module may use of its node. Durability is the [`Host`]'s: a change is durable when its call has answered.
///
/// Rows that belong together change in one [`Batch`], under expectations:
///
/// ```
/// use openred_module::{Batch, Committed, Context, HostError};
///
/// /// Takes one of what is left; false if nothing is, or somebody was quicker.
/// async fn take(context: &Context, who: &str) -> Result<bool, HostError> {
///     let Some(left) = context.get("left").await?.filter(|left| left[0] > 0) else { return Ok(false) };
///     let batch = Batch::new()
///         .expect("left", Some(left.clone()))
///         .put("left", vec![left[0] - 1])
///         .put(format!("taken/{who}"), vec![1]);
///     Ok(context.apply(batch).await? == Committed::Yes)
/// }
/// ```
///
/// A call of a peer that brings no answer says whether it may have been carried out; whoever asks again uses a key, or asks what cannot harm twice:
///
/// ```
/// use openred_module::{Body, Context, NodeId, PeerError, PeerRequest};
///
/// async fn tell(context: &Context, peer: NodeId, text: String) -> &'static str {
///     match context.peer_request(peer, PeerRequest::post("/tell", "text/plain", Body::whole(text))).await {
///         Ok(answer) if answer.status.is_success() => "heard",
///         Ok(_) => "refused",
///         Err(PeerError::TimedOut | PeerError::Interrupted) => "perhaps heard",
///         Err(_) => "not heard",
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Context {
    host: Arc<dyn Host>,
    /// The call that is served with it; 0: none.
    call: u64,
}

impl Context {
    /// Wraps a host; for hosts, not for modules.
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self { host, call: 0 }
    }

    /// The same while a call is served.
    #[cfg(any(feature = "process", feature = "test-host"))]
    pub(crate) fn within(&self, call: u64) -> Self {
        Self { host: Arc::clone(&self.host), call }
    }

    /// The host behind it.
    pub(crate) fn host(&self) -> Arc<dyn Host> {
        Arc::clone(&self.host)
    }

    /// The operator's settings as they are written.
    #[cfg(feature = "sandbox")]
    pub(crate) fn settings(&self) -> String {
        self.host.settings()
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.host.node_id()
    }

    /// The time now.
    pub fn now(&self) -> UnixMillis {
        self.host.now()
    }

    /// The module's settings as they are now: the operator's values, and the manifest's defaults for the rest.
    ///
    /// # Errors
    /// `bad-settings`, where the operator's values are not what the manifest declares.
    pub fn config<C: Config>(&self) -> Result<C, ModuleError> {
        C::read(&self.host.settings())
    }

    /// 16 random bytes.
    pub fn unique_id(&self) -> [u8; 16] {
        self.host.unique_id()
    }

    /// One row.
    ///
    /// # Errors
    /// The host's.
    pub async fn get(&self, key: impl Into<Bytes> + Send) -> Result<Option<Bytes>, HostError> {
        self.host.get(key.into()).await
    }

    /// One row that holds JSON. A row that cannot be read is [`HostError::Storage`]: only this module writes them.
    ///
    /// # Errors
    /// The host's.
    pub async fn get_json<T: DeserializeOwned>(&self, key: impl Into<Bytes> + Send) -> Result<Option<T>, HostError> {
        let row = self.get(key).await?;
        row.map(|row| serde_json::from_slice(&row).map_err(|_| HostError::Storage)).transpose()
    }

    /// Writes one row; durable when it returns.
    ///
    /// # Errors
    /// The host's.
    pub async fn put(&self, key: impl Into<Bytes> + Send, value: impl Into<Bytes> + Send) -> Result<(), HostError> {
        self.unconditional(Batch::new().put(key, value)).await
    }

    /// Writes one row as JSON; durable when it returns.
    ///
    /// # Errors
    /// The host's, and [`HostError::Storage`] for what JSON cannot hold.
    pub async fn put_json<T: Serialize + Sync>(
        &self,
        key: impl Into<Bytes> + Send,
        value: &T,
    ) -> Result<(), HostError> {
        let value = serde_json::to_vec(value).map_err(|_| HostError::Storage)?;
        self.put(key, value).await
    }

    /// Writes one row only if it is `expected` (`None`: absent) now.
    ///
    /// # Errors
    /// The host's.
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes> + Send,
        expected: Option<Bytes>,
        value: impl Into<Bytes> + Send,
    ) -> Result<Committed, HostError> {
        let key = key.into();
        self.apply(Batch::new().expect(key.clone(), expected).put(key, value)).await
    }

    /// Removes one row; durable when it returns.
    ///
    /// # Errors
    /// The host's.
    pub async fn delete(&self, key: impl Into<Bytes> + Send) -> Result<(), HostError> {
        self.unconditional(Batch::new().delete(key)).await
    }

    async fn unconditional(&self, batch: Batch) -> Result<(), HostError> {
        match self.apply(batch).await? {
            Committed::Yes => Ok(()),
            // A batch without expectations cannot fail one: a host that says so is broken.
            Committed::No => Err(HostError::Storage),
        }
    }

    /// All of a batch in one transaction, or nothing; durable when it returns [`Committed::Yes`].
    ///
    /// # Errors
    /// The host's, and [`HostError::TooLarge`] before anything is touched.
    pub async fn apply(&self, batch: Batch) -> Result<Committed, HostError> {
        batch.check()?;
        self.host.apply(batch).await
    }

    /// Rows of a prefix in order.
    ///
    /// # Errors
    /// The host's.
    pub async fn scan(&self, scan: Scan) -> Result<ScanPage, HostError> {
        self.host.scan(scan).await
    }

    /// Writes into a blob; see [`Host::blob_write`].
    ///
    /// # Errors
    /// The host's.
    pub async fn blob_write(&self, name: &BlobName, offset: u64, bytes: Bytes) -> Result<(), HostError> {
        self.host.blob_write(name, offset, bytes).await
    }

    /// Reads of a blob; see [`Host::blob_read`].
    ///
    /// # Errors
    /// The host's.
    pub async fn blob_read(&self, name: &BlobName, offset: u64, most: usize) -> Result<Bytes, HostError> {
        self.host.blob_read(name, offset, most).await
    }

    /// A blob's length; `None` if there is no such blob.
    ///
    /// # Errors
    /// The host's.
    pub async fn blob_length(&self, name: &BlobName) -> Result<Option<u64>, HostError> {
        self.host.blob_length(name).await
    }

    /// Makes a blob durable.
    ///
    /// # Errors
    /// The host's.
    pub async fn blob_sync(&self, name: &BlobName) -> Result<(), HostError> {
        self.host.blob_sync(name).await
    }

    /// Syncs and renames a blob in one step.
    ///
    /// # Errors
    /// The host's.
    pub async fn blob_rename(&self, from: &BlobName, to: &BlobName) -> Result<(), HostError> {
        self.host.blob_rename(from, to).await
    }

    /// Removes a blob; an absent one is no error.
    ///
    /// # Errors
    /// The host's.
    pub async fn blob_delete(&self, name: &BlobName) -> Result<(), HostError> {
        self.host.blob_delete(name).await
    }

    /// Names of the module's blobs.
    ///
    /// # Errors
    /// The host's.
    pub async fn blob_list(&self, after: Option<&BlobName>) -> Result<Vec<BlobName>, HostError> {
        self.host.blob_list(after).await
    }

    /// Calls the same module of a linked peer.
    ///
    /// # Errors
    /// [`PeerError`] if no answer came; a refusal is an answer.
    pub async fn peer_request(&self, peer: NodeId, request: PeerRequest) -> Result<Response, PeerError> {
        self.host.peer_request(peer, request).await
    }

    /// Calls the same module of a linked peer, and has the node put the answer's body into a blob of this module, verified; see [`Host::peer_store`]. What does not
    /// verify must not be read as what it should be: keep a blob under a name of its own until all of it is [`Stored::Verified`], and rename it then.
    ///
    /// ```
    /// use openred_module::{Blake3, BlobName, Context, NodeId, PeerRequest, StoreError, StoreInto, Stored};
    ///
    /// /// Fetches a book whose hash and length are known; false if the peer has it not, or not as it should be.
    /// async fn fetch(context: &Context, peer: NodeId, length: u64, hash: [u8; 32]) -> Result<bool, StoreError> {
    ///     let (part, book) = (BlobName::new("book.part").expect("is a name"), BlobName::new("book").expect("is a name"));
    ///     let into = StoreInto { blob: part.clone(), offset: 0, length, hash: Blake3::Whole(hash) };
    ///     match context.peer_store(peer, PeerRequest::get("/book"), into).await? {
    ///         Stored::Verified => Ok(context.blob_rename(&part, &book).await.map(|()| true)?),
    ///         Stored::Wrong { .. } | Stored::Broken { .. } | Stored::Refused(_) => Ok(false),
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// [`StoreError`]; under a node without the feature `stores`, [`StoreError::Unsupported`]: then [`Context::peer_request`] gives the same body to read.
    pub async fn peer_store(&self, peer: NodeId, request: PeerRequest, into: StoreInto) -> Result<Stored, StoreError> {
        into.check()?;
        self.host.peer_store(peer, request, into).await
    }

    /// Whether there is an active link with that node.
    ///
    /// # Errors
    /// The host's.
    pub async fn is_linked(&self, peer: NodeId) -> Result<bool, HostError> {
        self.host.is_linked(peer).await
    }

    /// Every id under which this peer is known here, the oldest first, today's last; see [`Host::identities`].
    ///
    /// # Errors
    /// The host's, and [`HostError::Storage`] for a host that names none.
    pub async fn identities(&self, peer: NodeId) -> Result<Vec<NodeId>, HostError> {
        let identities = self.host.identities(peer).await?;
        if identities.is_empty() { Err(HostError::Storage) } else { Ok(identities) }
    }

    /// The id to keep state about this peer under: its first.
    ///
    /// # Errors
    /// As [`Context::identities`].
    pub async fn first_id(&self, peer: NodeId) -> Result<NodeId, HostError> {
        Ok(self.identities(peer).await?.first().copied().unwrap_or(peer))
    }

    /// The id to show for this peer: the one that it has today.
    ///
    /// # Errors
    /// As [`Context::identities`].
    pub async fn present_id(&self, peer: NodeId) -> Result<NodeId, HostError> {
        Ok(self.identities(peer).await?.last().copied().unwrap_or(peer))
    }

    /// Asks for a timer event; see [`Host::set_timer`].
    pub fn set_timer(&self, timer: TimerId, at: UnixMillis) {
        self.host.set_timer(timer, at);
    }

    /// Tells the operator that there is no room for more of what peers send; see [`Host::set_full`].
    pub fn set_full(&self, detail: Option<String>) {
        self.host.set_full(detail);
    }

    /// Has this node sign that this module said `body` in one of its domains; see [`Host::sign`]. Peers check it with
    /// [`crate::verify`].
    ///
    /// # Errors
    /// The host's; [`HostError::NotGranted`] without the permission `sign.domain`.
    pub async fn sign(&self, domain: &str, body: impl Into<Bytes> + Send) -> Result<Bytes, HostError> {
        let body = body.into();
        within_limit(body.len(), SEAL_LIMIT)?;
        self.host.sign(domain, body).await
    }

    /// Seals `body` so that only this module of this node opens it, under the same `context`; see [`Host::seal`].
    ///
    /// # Errors
    /// The host's; [`HostError::NotGranted`] without the permission `seal`.
    pub async fn seal(
        &self,
        context: impl Into<Bytes> + Send,
        body: impl Into<Bytes> + Send,
    ) -> Result<Bytes, HostError> {
        let (context, body) = (context.into(), body.into());
        within_limit(body.len(), SEAL_LIMIT)?;
        within_limit(context.len(), CONTEXT_LIMIT)?;
        self.host.seal(context, body).await
    }

    /// Opens what [`Context::seal`] gave.
    ///
    /// # Errors
    /// As there; [`HostError::NotSealed`] for anything else.
    pub async fn unseal(
        &self,
        context: impl Into<Bytes> + Send,
        sealed: impl Into<Bytes> + Send,
    ) -> Result<Bytes, HostError> {
        self.host.unseal(context.into(), sealed.into()).await
    }

    /// Calls another module of this node; see [`Host::call_module`]. What waits for the call that this context serves waits for this one too.
    ///
    /// # Errors
    /// [`CallError`] if no answer came; a refusal is an answer.
    pub async fn call_module(&self, module: &str, request: PeerRequest) -> Result<Response, CallError> {
        let within = Within { call: self.call, ..Within::default() };
        self.host.call_module(within, module, request).await
    }

    /// Carries out an operation of the node's operator; see [`Host::operate`].
    ///
    /// # Errors
    /// The node's refusal, or the host's; [`HostError::NotGranted`] without the permission `node.operate` for it.
    pub async fn operate(&self, operation: &str, request: impl Into<Bytes> + Send) -> Result<Bytes, OperateError> {
        let request = request.into();
        within_limit(request.len(), OPERATE_LIMIT)?;
        self.host.operate(operation, request).await
    }

    /// Calls an operator's route of another module, as the operator; see [`Host::operator_call`].
    ///
    /// # Errors
    /// [`CallError`] if no answer came; a refusal is an answer.
    pub async fn operator_call(&self, module: &str, request: PeerRequest) -> Result<Response, CallError> {
        self.host.operator_call(module, request).await
    }

    /// How the node, its processes and their cages are; see [`Host::node_status`].
    ///
    /// # Errors
    /// The host's; [`HostError::NotGranted`] without the permission `node.status`.
    pub async fn node_status(&self) -> Result<NodeStatus, HostError> {
        self.host.node_status().await
    }

    /// Tells the operator of something that he has to see, until `None` ends it; see [`Host::alert`].
    ///
    /// # Errors
    /// The host's; [`HostError::NotGranted`] without the permission `node.status`.
    pub async fn alert(&self, detail: Option<String>) -> Result<(), HostError> {
        self.host.alert(detail).await
    }

    /// Notes an event in the node's audit trail.
    pub fn audit(&self, event: AuditEvent<'_>) {
        self.host.audit(event);
    }
}

fn within_limit(length: usize, limit: usize) -> Result<(), HostError> {
    if length > limit { Err(HostError::TooLarge { limit }) } else { Ok(()) }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Context")
    }
}
