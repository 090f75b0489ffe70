//! What the node does for a module. `noded` implements [`Host`]; a module calls it through [`crate::Context`].
//!
//! One `Host` value belongs to one module: keys, blobs and peer requests are those of that module alone, so no method
//! names a module. Each method takes and returns data only, and may cross a process.
//!
//! Durability, which every implementation owes: **when [`Host::apply`], [`Host::blob_sync`], [`Host::blob_rename`] or
//! [`Host::blob_delete`] has answered, a `kill -9` or a power cut no longer undoes it.** [`Host::blob_write`] and
//! [`Host::peer_store`] alone promise only that a later read of the same host sees the bytes.

use bytes::Bytes;

use crate::body::Body;
use crate::error::Status;
use crate::message::{PeerRequest, Response};
use crate::module::TimerId;
use crate::network::DialError;
use crate::status::NodeStatus;
use crate::stored::{StoreError, StoreInto, Stored};
use openred_proto::id::NodeId;

/// Longest key, in bytes.
pub const KEY_LIMIT: usize = 256;
/// Longest value, in bytes: a message of 256 KiB with its head. Larger things are blobs.
pub const VALUE_LIMIT: usize = 512 * 1024;
/// Most rows that one scan returns, whatever was asked.
pub const SCAN_LIMIT: usize = 1000;
/// A scan ends after so many bytes of values, whatever was asked, so that a page of large rows does not fill the memory.
pub const SCAN_BYTES: usize = 4 << 20;
/// Most bytes in one read or write of a blob.
pub const BLOB_CHUNK: usize = 1024 * 1024;
/// Longest blob name.
const BLOB_NAME_LIMIT: usize = 96;

/// Milliseconds since 1970-01-01 UTC by this node's clock, which may be wrong and may jump.
pub type UnixMillis = u64;

/// Why the host could not do it. All of these are this node's own condition, never a peer's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// No space is left on the device, or the module's quota is used up.
    #[error("no space left for this module's state")]
    Full,
    /// A key, value or chunk beyond its limit.
    #[error("larger than the limit of {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// There is no blob of that name.
    #[error("no such blob")]
    NoBlob,
    /// The store or the disk failed.
    #[error("the node's store failed")]
    Storage,
    /// The node is stopping, or another version of this module may write in its place.
    #[error("the node stops, or another version of this module has taken its place")]
    ShuttingDown,
    /// The operator has not granted this module what it asks for.
    #[error("this module was not granted that")]
    NotGranted,
    /// What was to be unsealed is not what this module sealed under that context.
    #[error("it does not open: sealed by another module, under another context, or changed")]
    NotSealed,
    /// The name of a domain is not 1 to 64 of `a-z`, `0-9`, `-`, `.`.
    #[error("the name of a domain is 1 to 64 of a-z, 0-9, '-' and '.'")]
    BadDomain,
    /// The key process is away, or has more to do than it may.
    #[error("the key process cannot do it now; try again")]
    Busy,
}

/// Why another module of this node gave no answer. A refusal of its own is no error here: it is a [`Response`] with its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The operator has not granted this module to call that one.
    #[error("this module was not granted calls of that module")]
    NotGranted,
    /// There is no such module, or it does not run now.
    #[error("this node runs no such module")]
    NoModule,
    /// It would be the fifth module of a chain of calls.
    #[error("modules call each other at most {DEPTH} deep")]
    TooDeep,
    /// It waits for this very call, itself or through others.
    #[error("that module waits for this call already")]
    Cycle,
    /// Too many calls of modules are in flight there.
    #[error("too many calls are in flight there")]
    Busy,
    /// No answer before the deadline of the call in which it was made, or its own. It may have been carried out.
    #[error("that module did not answer in time")]
    TimedOut,
    /// The call in which it is made has ended, or the node is stopping.
    #[error("the call in which this one is made has ended")]
    Ended,
}

/// Why an operation of the operator was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    /// The host's, among them [`HostError::NotGranted`].
    #[error("{0}")]
    Host(#[from] HostError),
    /// The node refused, as it would have refused the operator.
    #[error("{code}: {detail}")]
    Refused {
        /// Class of the refusal.
        status: Status,
        /// Stable name.
        code: String,
        /// For people.
        detail: String,
    },
}

/// Longest message of an operation, in bytes.
pub const OPERATE_LIMIT: usize = 1024 * 1024;
/// Longest reply to one: what a message of gRPC may be, and room.
pub const OPERATE_REPLY: usize = 3 * 1024 * 1024;

/// Most modules in a chain of calls, the first and the last included.
pub const DEPTH: usize = 4;
/// Most bytes that are signed or sealed at once.
pub const SEAL_LIMIT: usize = 1024 * 1024;
/// Longest context of a seal.
pub const CONTEXT_LIMIT: usize = 256;

/// In which call a module calls another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Within {
    /// Its number in the module's attachment; 0: in none.
    pub call: u64,
    /// The modules that wait for each other up to here, the caller last. Filled by the node, which believes no module's word for it.
    pub via: Vec<String>,
    /// When the first of those that wait stops.
    pub deadline: Option<UnixMillis>,
}

/// Why a peer gave no answer. A refusal by the peer's module is no error here: it is a [`Response`] with its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is no active link with that node.
    #[error("not linked with that peer")]
    NotLinked,
    /// The module was not granted `peer.send`.
    #[error("the module was not granted peer.send")]
    NotGranted,
    /// No carrier reaches the peer, or the handshake failed. The request was not delivered.
    #[error("the peer cannot be reached")]
    Unreachable,
    /// No answer in time. The request may have been carried out.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// The connection broke after the request left. It may have been carried out.
    #[error("the connection to the peer broke")]
    Interrupted,
    /// Too many requests to that peer are open.
    #[error("too many requests to that peer are open")]
    Busy,
}

/// Changes that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows that must be exactly so (`None`: absent) for anything to happen.
    pub expect: Vec<(Bytes, Option<Bytes>)>,
    /// Rows to write.
    pub put: Vec<(Bytes, Bytes)>,
    /// Rows to remove; absent ones are no error.
    pub delete: Vec<Bytes>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if the row is exactly this.
    #[must_use]
    pub fn expect(mut self, key: impl Into<Bytes>, value: Option<Bytes>) -> Self {
        self.expect.push((key.into(), value));
        self
    }

    /// Writes a row.
    #[must_use]
    pub fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.put.push((key.into(), value.into()));
        self
    }

    /// Removes a row.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Bytes>) -> Self {
        self.delete.push(key.into());
        self
    }

    /// # Errors
    /// [`HostError::TooLarge`] for a key or value beyond its limit. Hosts call this before they touch their store.
    pub fn check(&self) -> Result<(), HostError> {
        let mut keys =
            self.expect.iter().map(|(key, _)| key).chain(self.put.iter().map(|(key, _)| key)).chain(&self.delete);
        if keys.any(|key| key.len() > KEY_LIMIT) {
            return Err(HostError::TooLarge { limit: KEY_LIMIT });
        }
        if self.put.iter().any(|(_, value)| value.len() > VALUE_LIMIT) {
            return Err(HostError::TooLarge { limit: VALUE_LIMIT });
        }
        Ok(())
    }
}

/// What became of a batch.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// All of it is done and durable.
    Yes,
    /// An expectation did not hold; nothing was changed.
    No,
}

/// Which rows to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Only keys that begin so.
    pub prefix: Bytes,
    /// Only keys beyond this one, in the scan's direction.
    pub after: Option<Bytes>,
    /// At most so many rows (and never more than [`SCAN_LIMIT`]).
    pub limit: usize,
    /// From the last key down.
    pub backwards: bool,
}

impl Scan {
    /// All rows of a prefix, upwards, up to [`SCAN_LIMIT`].
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Self { prefix: prefix.into(), after: None, limit: SCAN_LIMIT, backwards: false }
    }

    /// Beginning beyond `key`.
    #[must_use]
    pub fn after(mut self, key: Option<Bytes>) -> Self {
        self.after = key;
        self
    }

    /// At most `limit` rows.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// From the last key down.
    #[must_use]
    pub fn backwards(mut self) -> Self {
        self.backwards = true;
        self
    }
}

/// Rows of a scan, in order of their keys' bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// Keys (whole, prefix included) and values.
    pub rows: Vec<(Bytes, Bytes)>,
    /// Whether rows beyond the last one may exist. A host may stop early (say, at 4 MiB of values), never at zero rows.
    pub more: bool,
}

/// Name of a blob inside the module's own folder: 1 to 96 of `a-z`, `0-9`, `.`, `_`, `-`, not beginning with a dot. So it is
/// no path, on no file system.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobName(String);

impl BlobName {
    /// The name, if it is one.
    pub fn new(name: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        let fits = !name.is_empty() && name.len() <= BLOB_NAME_LIMIT && !name.starts_with('.');
        (fits && name.bytes().all(allowed)).then(|| Self(name.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Something an operator would want to find in the audit trail later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent<'a> {
    /// Stable name in kebab case, declared in the module's documentation.
    pub code: &'a str,
    /// The peer concerned, if any; the host hashes it before it is written.
    pub peer: Option<NodeId>,
    /// Outcome in a word (`ok`, `refused`, …). Never content.
    pub outcome: &'a str,
}

/// The node, for one module. See the file's head for what must be durable when.
#[async_trait::async_trait]
pub trait Host: Send + Sync + 'static {
    /// This node's id.
    fn node_id(&self) -> NodeId;

    /// The time now.
    fn now(&self) -> UnixMillis;

    /// The operator's settings for this module, as TOML; nothing where there are none.
    fn settings(&self) -> String {
        String::new()
    }

    /// 16 random bytes.
    fn unique_id(&self) -> [u8; 16];

    /// One row.
    async fn get(&self, key: Bytes) -> Result<Option<Bytes>, HostError>;

    /// All of a batch in one transaction, or nothing. **Durable when it returns [`Committed::Yes`].** The host may group
    /// batches that arrive together into one commit to the disk, as long as each is atomic and answered after it.
    async fn apply(&self, batch: Batch) -> Result<Committed, HostError>;

    /// Rows of a prefix in the order of their keys' bytes.
    async fn scan(&self, scan: Scan) -> Result<ScanPage, HostError>;

    /// Writes `bytes` (at most [`BLOB_CHUNK`]) at `offset`, making the blob if there is none and growing it as needed; a gap
    /// reads as zeros. Visible to later reads, **not yet durable**.
    async fn blob_write(&self, name: &BlobName, offset: u64, bytes: Bytes) -> Result<(), HostError>;

    /// Up to `most` bytes (capped at [`BLOB_CHUNK`]) at `offset`; fewer only at the end, none beyond it.
    async fn blob_read(&self, name: &BlobName, offset: u64, most: usize) -> Result<Bytes, HostError>;

    /// Length in bytes, or `None` if there is no such blob.
    async fn blob_length(&self, name: &BlobName) -> Result<Option<u64>, HostError>;

    /// **Makes all that was written to the blob durable**, and its existence.
    async fn blob_sync(&self, name: &BlobName) -> Result<(), HostError>;

    /// Syncs the blob and gives it another name in one step, replacing what had that name. **Durable when it returns.**
    async fn blob_rename(&self, from: &BlobName, to: &BlobName) -> Result<(), HostError>;

    /// Removes a blob; an absent one is no error. **Durable when it returns.**
    async fn blob_delete(&self, name: &BlobName) -> Result<(), HostError>;

    /// Names of all blobs of the module, at most [`SCAN_LIMIT`] beyond `after`, in order.
    async fn blob_list(&self, after: Option<&BlobName>) -> Result<Vec<BlobName>, HostError>;

    /// Sends a call to the same module of a linked peer, over an open session or a new one. Returns with the answer's head; its
    /// body streams, and fails with [`crate::BodyError::TimedOut`] if nothing of it comes for a while: a peer that stalls holds
    /// nobody up for ever. The host never retries on its own.
    async fn peer_request(&self, peer: NodeId, request: PeerRequest) -> Result<Response, PeerError>;

    /// The same, and puts the body of an answer that succeeds where `into` says, hashed while it comes. Returns when it is there or has ended: its bytes are **not yet
    /// durable**, and whatever was written counts for nothing unless the outcome is [`Stored::Verified`].
    async fn peer_store(&self, peer: NodeId, request: PeerRequest, into: StoreInto) -> Result<Stored, StoreError> {
        let _ = (peer, request, into);
        Err(StoreError::Unsupported)
    }

    /// Whether there is an active link with that node.
    async fn is_linked(&self, peer: NodeId) -> Result<bool, HostError>;

    /// Every id under which this peer is known here: the oldest first, the one that it has today last. Only its own, for one that
    /// never had another. The answer is the same for each of them, and never empty.
    ///
    /// A peer may take a new id, and take it back within days; the node follows both by signatures, durably. So this is asked, not
    /// told: **state about a peer is kept under the first id and shown under the last**, and then both changes carry it over without
    /// a row being moved. Rows that a module wrote under a later id, before the node heard of the change, are found under it.
    async fn identities(&self, peer: NodeId) -> Result<Vec<NodeId>, HostError>;

    /// Asks for [`crate::Event::Timer`] once at `at` or soon after, however busy the module is; a second call with the same id replaces the first. Timers do not
    /// survive a restart: set them in [`crate::Module::start`].
    fn set_timer(&self, timer: TimerId, at: UnixMillis);

    /// Tells the operator that this module has no room for more of what peers send, and what of: a condition of the node
    /// until `None` ends it. It does not survive a restart.
    fn set_full(&self, detail: Option<String>);

    /// Notes an event in the node's audit trail.
    fn audit(&self, event: AuditEvent<'_>);

    /// A statement that this module of this node has said `body` (at most [`SEAL_LIMIT`]) in one of its domains. The key process signs a
    /// record of module, domain, hash, length and time; never the bytes themselves. [`crate::verify`] checks it anywhere.
    async fn sign(&self, domain: &str, body: Bytes) -> Result<Bytes, HostError>;

    /// Seals `body` (at most [`SEAL_LIMIT`]) so that only this module of this node opens it, under the same `context` (at most
    /// [`CONTEXT_LIMIT`]).
    async fn seal(&self, context: Bytes, body: Bytes) -> Result<Bytes, HostError>;

    /// Opens what [`Host::seal`] gave.
    async fn unseal(&self, context: Bytes, sealed: Bytes) -> Result<Bytes, HostError>;

    /// Connects to a destination of the grant `net.egress`, and sends `sent`; what comes back. Both are pulled, and the connection ends with the
    /// second, or when that is dropped. A host that lets nobody out refuses.
    async fn dial(&self, to: &str, sent: Body) -> Result<Body, DialError> {
        let _ = (to, sent);
        Err(DialError::NotGranted)
    }

    /// Calls another module of this node. At most [`DEPTH`] deep, never in a circle, and no longer than who waits for the caller does; a call that a module
    /// makes of its own accord begins anew.
    async fn call_module(&self, within: Within, module: &str, request: PeerRequest) -> Result<Response, CallError>;
    /// Carries out an operation of the node's operator: `operation` of `openred.admin.v1.Node`, with its message (at most [`OPERATE_LIMIT`]);
    /// the reply's message, of a stream the last. Needs the permission `node.operate` for this operation. Who is behind it, the module has to know:
    /// the node takes it for the operator's word.
    async fn operate(&self, _operation: &str, _request: Bytes) -> Result<Bytes, OperateError> {
        Err(HostError::NotGranted.into())
    }

    /// Calls an operator's route of another module, as the operator. Needs the permission `node.operate` for `CallModule`.
    async fn operator_call(&self, _module: &str, _request: PeerRequest) -> Result<Response, CallError> {
        Err(CallError::NotGranted)
    }

    /// How the node, its processes and their cages are. [`HostError::NotGranted`] without the permission `node.status`.
    async fn node_status(&self) -> Result<NodeStatus, HostError> {
        Err(HostError::NotGranted)
    }

    /// Tells the operator of something that he has to see: a condition of the node until `None` ends it. It survives the module, not the
    /// node's process. [`HostError::NotGranted`] without the permission `node.status`.
    async fn alert(&self, _detail: Option<String>) -> Result<(), HostError> {
        Err(HostError::NotGranted)
    }
}
