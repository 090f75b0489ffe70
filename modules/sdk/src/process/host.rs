//! The node as the module's process sees it: [`Host`] over the second connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use openred_proto::id::NodeId;
use openred_proto::module as wire;
use openred_proto::module::host_client::HostClient;
use openred_proto::module::network_client::NetworkClient;
use openred_proto::module::peers_client::PeersClient;
use prost::Message as _;
use tonic::Status;
use tonic::transport::Channel;

use super::notes::Notes;
use crate::body::Body;
use crate::error::Status as RefusalStatus;
use crate::host::{
    AuditEvent, BLOB_CHUNK, Batch, BlobName, CallError, Committed, Host, HostError, KEY_LIMIT, OperateError, PeerError,
    Scan, ScanPage, UnixMillis, Within,
};
use crate::message::{PeerRequest, Response};
use crate::module::TimerId;
use crate::network::DialError;
use crate::status::NodeStatus;
use crate::stored::{StoreError, StoreInto, Stored};
use crate::wire::status::to_status;
use crate::wire::words::{to_call, to_dial, to_host, to_peer, to_store};
use crate::wire::{DETAIL_BYTES, MESSAGE_BYTES, bodies, convert, stored};

/// See the file's head.
pub(super) struct RemoteHost {
    node: NodeId,
    client: HostClient<Channel>,
    peers: PeersClient<Channel>,
    network: NetworkClient<Channel>,
    notes: Arc<Notes>,
    settings: Arc<Mutex<String>>,
    /// Whether the node stores answers for it.
    stores: bool,
}

impl RemoteHost {
    pub(super) fn new(
        node: NodeId,
        client: HostClient<Channel>,
        (peers, network): (PeersClient<Channel>, NetworkClient<Channel>),
        notes: Arc<Notes>,
        stores: bool,
    ) -> Self {
        Self { node, client, peers, network, notes, settings: Arc::default(), stores }
    }

    /// Where the operator's settings are kept once the node has said them.
    pub(super) fn settings(&self) -> Arc<Mutex<String>> {
        Arc::clone(&self.settings)
    }

    /// Calls share the connection; a clone is a handle.
    fn client(&self) -> HostClient<Channel> {
        self.client.clone()
    }
}

impl RemoteHost {
    /// Another module, as this one or as the operator.
    async fn call(
        &self,
        parent: u64,
        module: &str,
        operator: bool,
        mut request: PeerRequest,
    ) -> Result<Response, CallError> {
        let head = convert::of_module_request(parent, module, &request);
        let head = wire::PeerSendHead { operator, ..head };
        let body = std::mem::replace(&mut request.body, Body::empty());
        let frame = wire::PeerSendFrame { head: Some(head), ..Default::default() };
        let sent = self.peers.clone().call_module(bodies::frames(frame, body)).await;
        let mut replies = sent.map_err(|status| to_call(&status))?.into_inner();
        let first = replies.message().await.map_err(|status| to_call(&status))?;
        let frame = first.ok_or(CallError::Ended)?;
        let head = frame.head.clone().ok_or(CallError::Ended)?;
        let body = bodies::body(frame, replies);
        convert::to_response(head.status, head.content_type, head.length, body).ok_or(CallError::Ended)
    }
}

/// The node's refusal, in the SDK's words.
fn refused(status: Status) -> HostError {
    to_host(&status)
}

/// As much of a text as fits.
fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

fn named(name: &BlobName) -> wire::BlobName {
    wire::BlobName { name: name.as_str().to_owned() }
}

#[async_trait::async_trait]
impl Host for RemoteHost {
    fn node_id(&self) -> NodeId {
        self.node
    }

    fn now(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn settings(&self) -> String {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn unique_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        getrandom::fill(&mut id).expect("the kernel's generator answers since the machine was started");
        id
    }

    async fn get(&self, key: Bytes) -> Result<Option<Bytes>, HostError> {
        if key.len() > KEY_LIMIT {
            return Err(HostError::TooLarge { limit: KEY_LIMIT });
        }
        let reply = self.client().kv_get(wire::KvGetRequest { key }).await.map_err(refused)?;
        Ok(reply.into_inner().value)
    }

    async fn apply(&self, batch: Batch) -> Result<Committed, HostError> {
        let request = convert::of_batch(batch);
        if request.encoded_len() > MESSAGE_BYTES {
            return Err(HostError::TooLarge { limit: MESSAGE_BYTES });
        }
        let reply = self.client().kv_apply(request).await.map_err(refused)?;
        Ok(if reply.into_inner().committed { Committed::Yes } else { Committed::No })
    }

    async fn scan(&self, scan: Scan) -> Result<ScanPage, HostError> {
        let reply = self.client().kv_scan(convert::of_scan(scan)).await.map_err(refused)?;
        convert::to_page(reply.into_inner()).ok_or(HostError::Storage)
    }

    async fn blob_write(&self, name: &BlobName, offset: u64, bytes: Bytes) -> Result<(), HostError> {
        if bytes.len() > BLOB_CHUNK {
            return Err(HostError::TooLarge { limit: BLOB_CHUNK });
        }
        let request = wire::BlobWriteRequest { name: name.as_str().to_owned(), offset, body: bytes };
        self.client().blob_write(request).await.map(drop).map_err(refused)
    }

    async fn blob_read(&self, name: &BlobName, offset: u64, most: usize) -> Result<Bytes, HostError> {
        let most = u32::try_from(most.min(BLOB_CHUNK)).unwrap_or(u32::MAX);
        let request = wire::BlobReadRequest { name: name.as_str().to_owned(), offset, most };
        Ok(self.client().blob_read(request).await.map_err(refused)?.into_inner().body)
    }

    async fn blob_length(&self, name: &BlobName) -> Result<Option<u64>, HostError> {
        Ok(self.client().blob_length(named(name)).await.map_err(refused)?.into_inner().length)
    }

    async fn blob_sync(&self, name: &BlobName) -> Result<(), HostError> {
        self.client().blob_sync(named(name)).await.map(drop).map_err(refused)
    }

    async fn blob_rename(&self, from: &BlobName, to: &BlobName) -> Result<(), HostError> {
        let request = wire::BlobRenameRequest { from: from.as_str().to_owned(), to: to.as_str().to_owned() };
        self.client().blob_rename(request).await.map(drop).map_err(refused)
    }

    async fn blob_delete(&self, name: &BlobName) -> Result<(), HostError> {
        self.client().blob_delete(named(name)).await.map(drop).map_err(refused)
    }

    async fn blob_list(&self, after: Option<&BlobName>) -> Result<Vec<BlobName>, HostError> {
        let request = wire::BlobListRequest { after: after.map(|after| after.as_str().to_owned()) };
        let names = self.client().blob_list(request).await.map_err(refused)?.into_inner().names;
        names.iter().map(|name| BlobName::new(name).ok_or(HostError::Storage)).collect()
    }

    async fn peer_request(&self, peer: NodeId, mut request: PeerRequest) -> Result<Response, PeerError> {
        let head = convert::of_peer_request(peer, &request);
        let body = std::mem::replace(&mut request.body, Body::empty());
        let frame = wire::PeerSendFrame { head: Some(head), ..Default::default() };
        let sent = self.peers.clone().peer_send(bodies::frames(frame, body)).await;
        let mut replies = sent.map_err(|status| to_peer(&status))?.into_inner();
        let first = replies.message().await.map_err(|status| to_peer(&status))?;
        let frame = first.ok_or(PeerError::Interrupted)?;
        let head = frame.head.clone().ok_or(PeerError::Interrupted)?;
        let body = bodies::body(frame, replies);
        convert::to_response(head.status, head.content_type, head.length, body).ok_or(PeerError::Interrupted)
    }

    async fn peer_store(&self, peer: NodeId, mut request: PeerRequest, into: StoreInto) -> Result<Stored, StoreError> {
        if !self.stores {
            return Err(StoreError::Unsupported);
        }
        let store = Some(stored::of_into(&into));
        let head = wire::PeerSendHead { store, ..convert::of_peer_request(peer, &request) };
        let body = std::mem::replace(&mut request.body, Body::empty());
        let frame = wire::PeerSendFrame { head: Some(head), ..Default::default() };
        let sent = self.peers.clone().peer_store(bodies::frames(frame, body)).await;
        let reply = sent.map_err(|status| to_store(&status))?.into_inner();
        stored::to_stored(reply).ok_or(StoreError::Peer(PeerError::Interrupted))
    }

    async fn is_linked(&self, peer: NodeId) -> Result<bool, HostError> {
        let request = wire::PeerId { peer: convert::of_node(peer) };
        Ok(self.client().is_linked(request).await.map_err(refused)?.into_inner().linked)
    }

    async fn identities(&self, peer: NodeId) -> Result<Vec<NodeId>, HostError> {
        let request = wire::PeerId { peer: convert::of_node(peer) };
        let peers = self.client().identities(request).await.map_err(refused)?.into_inner().peers;
        peers.iter().map(|peer| convert::node_id(peer).ok_or(HostError::Storage)).collect()
    }

    async fn operate(&self, operation: &str, request: Bytes) -> Result<Bytes, OperateError> {
        let request = wire::OperateRequest { operation: operation.to_owned(), request };
        let reply = self.client().operate(request).await.map_err(refused)?.into_inner();
        match reply.refusal {
            None => Ok(reply.reply),
            Some(wire::Refusal { status, code, detail }) => {
                let status = RefusalStatus::from_code(u16::try_from(status).unwrap_or(500));
                Err(OperateError::Refused { status, code, detail })
            }
        }
    }

    async fn operator_call(&self, module: &str, request: PeerRequest) -> Result<Response, CallError> {
        self.call(0, module, true, request).await
    }

    async fn node_status(&self) -> Result<NodeStatus, HostError> {
        let reply = self.client().node_status(wire::NodeStatusRequest {}).await.map_err(refused)?;
        Ok(to_status(reply.into_inner()))
    }

    async fn alert(&self, detail: Option<String>) -> Result<(), HostError> {
        let detail = detail.map(|detail| cut(detail, DETAIL_BYTES));
        self.client().alert(wire::AlertRequest { detail }).await.map(drop).map_err(refused)
    }

    fn set_timer(&self, timer: TimerId, at: UnixMillis) {
        self.notes.timer(timer, at);
    }

    fn set_full(&self, detail: Option<String>) {
        self.notes.full(detail);
    }

    async fn sign(&self, domain: &str, body: Bytes) -> Result<Bytes, HostError> {
        let request = wire::SignRequest { statement: body, domain: domain.to_owned() };
        Ok(self.client().sign(request).await.map_err(refused)?.into_inner().signature)
    }

    async fn seal(&self, context: Bytes, body: Bytes) -> Result<Bytes, HostError> {
        let request = wire::SealRequest { body, bound: context };
        Ok(self.client().seal(request).await.map_err(refused)?.into_inner().body)
    }

    async fn unseal(&self, context: Bytes, sealed: Bytes) -> Result<Bytes, HostError> {
        if sealed.len() + context.len() > MESSAGE_BYTES {
            return Err(HostError::NotSealed);
        }
        let request = wire::SealRequest { body: sealed, bound: context };
        Ok(self.client().unseal(request).await.map_err(refused)?.into_inner().body)
    }

    async fn call_module(&self, within: Within, module: &str, request: PeerRequest) -> Result<Response, CallError> {
        self.call(within.call, module, false, request).await
    }

    async fn dial(&self, to: &str, sent: Body) -> Result<Body, DialError> {
        let frame = wire::DialFrame { to: to.to_owned(), ..Default::default() };
        // A body that is there already still comes behind the head: the node answers that before it reads on.
        let sent = self.network.clone().dial(bodies::frames(frame, sent)).await;
        let mut frames = sent.map_err(|status| to_dial(&status))?.into_inner();
        let first = frames.message().await.map_err(|status| to_dial(&status))?;
        Ok(bodies::body(first.ok_or(DialError::Unreachable)?, frames))
    }

    fn audit(&self, event: AuditEvent<'_>) {
        self.notes.audit(wire::AuditRequest {
            code: event.code.to_owned(),
            peer: event.peer.map(convert::of_node),
            outcome: event.outcome.to_owned(),
        });
    }
}
