//! The module's own calls, each to the [`Host`] that its attachment was given. What the host owes (durability, order) it owes here too:
//! an answer is sent when the host has answered.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use openred_proto::module as wire;
use openred_proto::module::host_server::Host as Contract;
use openred_proto::module::peers_server::Peers;
use tonic::{Request, Response as Reply, Status, Streaming};

use super::door::Connection;
use crate::body::Body;
use crate::host::{
    AuditEvent, BLOB_CHUNK, BlobName, CONTEXT_LIMIT, CallError, Committed, Host, HostError, KEY_LIMIT, OPERATE_LIMIT,
    OPERATE_REPLY, OperateError, SCAN_LIMIT, SEAL_LIMIT,
};
use crate::message::ModuleName;
use crate::stored::Stored;
use crate::wire::status::of_status;
use crate::wire::words::{NOT_ATTACHED, of_call, of_host, of_peer, of_store};
use crate::wire::{CONTENT_TYPE_BYTES, DETAIL_BYTES, NAME_BYTES, REFUSAL_BYTES, bodies, convert, stored};

/// Longest path that a module may ask a peer for: that of the session's request.
const PATH_BYTES: usize = 1024;
/// Measures in one word of telemetry.
const MEASURES: usize = 256;

type Outcome<T> = Result<Reply<T>, Status>;
type Frames = Pin<Box<dyn Stream<Item = Result<wire::PeerReplyFrame, Status>> + Send>>;

/// The services on one connection.
#[derive(Clone)]
pub(super) struct Hosting(Arc<Connection>);

impl Hosting {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self(connection)
    }

    pub(super) fn host(&self) -> Result<Arc<dyn Host>, Status> {
        let attachment = self.0.attachment().ok_or_else(|| Status::unauthenticated(NOT_ATTACHED))?;
        attachment.host().ok_or_else(|| Status::unauthenticated(NOT_ATTACHED))
    }
}

fn done<T>(outcome: Result<T, HostError>) -> Outcome<wire::Done> {
    outcome.map(|_| Reply::new(wire::Done {})).map_err(of_host)
}

fn blob(name: &str) -> Result<BlobName, Status> {
    BlobName::new(name).ok_or_else(|| Status::invalid_argument("bad-name"))
}

fn peer(bytes: &[u8]) -> Result<openred_proto::id::NodeId, Status> {
    convert::node_id(bytes).ok_or_else(|| Status::invalid_argument("bad-peer"))
}

fn malformed() -> Status {
    Status::invalid_argument("malformed")
}

/// A word of the module that goes into logs and the audit trail: kebab case.
fn is_word(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= NAME_BYTES
        && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[tonic::async_trait]
impl Contract for Hosting {
    async fn open(&self, request: Request<wire::OpenRequest>) -> Outcome<wire::Done> {
        let opened = self.0.open(&request.into_inner().ticket);
        opened.map(|()| Reply::new(wire::Done {})).map_err(|fault| Status::unauthenticated(fault.code()))
    }

    async fn kv_get(&self, request: Request<wire::KvGetRequest>) -> Outcome<wire::KvGetReply> {
        let key = request.into_inner().key;
        if key.len() > KEY_LIMIT {
            return Err(of_host(HostError::TooLarge { limit: KEY_LIMIT }));
        }
        let value = self.host()?.get(key).await.map_err(of_host)?;
        Ok(Reply::new(wire::KvGetReply { value }))
    }

    async fn kv_apply(&self, request: Request<wire::KvApplyRequest>) -> Outcome<wire::KvApplyReply> {
        let batch = convert::to_batch(request.into_inner()).ok_or_else(malformed)?;
        batch.check().map_err(of_host)?;
        let committed = self.host()?.apply(batch).await.map_err(of_host)? == Committed::Yes;
        Ok(Reply::new(wire::KvApplyReply { committed }))
    }

    async fn kv_scan(&self, request: Request<wire::KvScanRequest>) -> Outcome<wire::KvScanReply> {
        let mut scan = convert::to_scan(request.into_inner());
        scan.limit = scan.limit.min(SCAN_LIMIT);
        let longest = scan.prefix.len().max(scan.after.as_ref().map_or(0, bytes::Bytes::len));
        if longest > KEY_LIMIT {
            return Err(of_host(HostError::TooLarge { limit: KEY_LIMIT }));
        }
        let page = self.host()?.scan(scan).await.map_err(of_host)?;
        Ok(Reply::new(convert::of_page(page, BLOB_CHUNK)))
    }

    async fn blob_write(&self, request: Request<wire::BlobWriteRequest>) -> Outcome<wire::Done> {
        let wire::BlobWriteRequest { name, offset, body } = request.into_inner();
        if body.len() > BLOB_CHUNK {
            return Err(of_host(HostError::TooLarge { limit: BLOB_CHUNK }));
        }
        done(self.host()?.blob_write(&blob(&name)?, offset, body).await)
    }

    async fn blob_read(&self, request: Request<wire::BlobReadRequest>) -> Outcome<wire::BlobReadReply> {
        let wire::BlobReadRequest { name, offset, most } = request.into_inner();
        let most = (most as usize).min(BLOB_CHUNK);
        let body = self.host()?.blob_read(&blob(&name)?, offset, most).await.map_err(of_host)?;
        Ok(Reply::new(wire::BlobReadReply { body }))
    }

    async fn blob_length(&self, request: Request<wire::BlobName>) -> Outcome<wire::BlobLengthReply> {
        let length = self.host()?.blob_length(&blob(&request.into_inner().name)?).await.map_err(of_host)?;
        Ok(Reply::new(wire::BlobLengthReply { length }))
    }

    async fn blob_sync(&self, request: Request<wire::BlobName>) -> Outcome<wire::Done> {
        done(self.host()?.blob_sync(&blob(&request.into_inner().name)?).await)
    }

    async fn blob_rename(&self, request: Request<wire::BlobRenameRequest>) -> Outcome<wire::Done> {
        let wire::BlobRenameRequest { from, to } = request.into_inner();
        done(self.host()?.blob_rename(&blob(&from)?, &blob(&to)?).await)
    }

    async fn blob_delete(&self, request: Request<wire::BlobName>) -> Outcome<wire::Done> {
        done(self.host()?.blob_delete(&blob(&request.into_inner().name)?).await)
    }

    async fn blob_list(&self, request: Request<wire::BlobListRequest>) -> Outcome<wire::BlobListReply> {
        let after = request.into_inner().after.as_deref().map(blob).transpose()?;
        let names = self.host()?.blob_list(after.as_ref()).await.map_err(of_host)?;
        Ok(Reply::new(wire::BlobListReply { names: names.iter().map(|name| name.as_str().to_owned()).collect() }))
    }

    async fn is_linked(&self, request: Request<wire::PeerId>) -> Outcome<wire::IsLinkedReply> {
        let linked = self.host()?.is_linked(peer(&request.into_inner().peer)?).await.map_err(of_host)?;
        Ok(Reply::new(wire::IsLinkedReply { linked }))
    }

    async fn identities(&self, request: Request<wire::PeerId>) -> Outcome<wire::IdentitiesReply> {
        let peers = self.host()?.identities(peer(&request.into_inner().peer)?).await.map_err(of_host)?;
        Ok(Reply::new(wire::IdentitiesReply { peers: peers.into_iter().map(convert::of_node).collect() }))
    }

    async fn sign(&self, request: Request<wire::SignRequest>) -> Outcome<wire::SignReply> {
        let wire::SignRequest { statement, domain } = request.into_inner();
        within(statement.len(), SEAL_LIMIT)?;
        let signature = self.host()?.sign(&domain, statement).await.map_err(of_host)?;
        Ok(Reply::new(wire::SignReply { signature }))
    }

    async fn seal(&self, request: Request<wire::SealRequest>) -> Outcome<wire::SealReply> {
        let wire::SealRequest { body, bound } = request.into_inner();
        within(body.len(), SEAL_LIMIT)?;
        within(bound.len(), CONTEXT_LIMIT)?;
        let body = self.host()?.seal(bound, body).await.map_err(of_host)?;
        Ok(Reply::new(wire::SealReply { body }))
    }

    async fn unseal(&self, request: Request<wire::SealRequest>) -> Outcome<wire::SealReply> {
        let wire::SealRequest { body, bound } = request.into_inner();
        within(bound.len(), CONTEXT_LIMIT)?;
        let body = self.host()?.unseal(bound, body).await.map_err(of_host)?;
        Ok(Reply::new(wire::SealReply { body }))
    }

    async fn timer(&self, request: Request<wire::TimerRequest>) -> Outcome<wire::Done> {
        let wire::TimerRequest { timer, at } = request.into_inner();
        self.host()?.set_timer(timer, at);
        Ok(Reply::new(wire::Done {}))
    }

    async fn full(&self, request: Request<wire::FullRequest>) -> Outcome<wire::Done> {
        let detail = request.into_inner().detail;
        if detail.as_ref().is_some_and(|detail| detail.len() > DETAIL_BYTES) {
            return Err(malformed());
        }
        self.host()?.set_full(detail);
        Ok(Reply::new(wire::Done {}))
    }

    async fn audit(&self, request: Request<wire::AuditRequest>) -> Outcome<wire::Done> {
        let wire::AuditRequest { code, peer: about, outcome } = request.into_inner();
        if !is_word(&code) || !is_word(&outcome) {
            return Err(malformed());
        }
        let about = about.as_deref().map(peer).transpose()?;
        self.host()?.audit(AuditEvent { code: &code, peer: about, outcome: &outcome });
        Ok(Reply::new(wire::Done {}))
    }

    async fn node_status(&self, _: Request<wire::NodeStatusRequest>) -> Outcome<wire::NodeStatusReply> {
        let status = self.host()?.node_status().await.map_err(of_host)?;
        Ok(Reply::new(of_status(status)))
    }

    async fn alert(&self, request: Request<wire::AlertRequest>) -> Outcome<wire::Done> {
        let detail = request.into_inner().detail;
        if detail.as_ref().is_some_and(|detail| detail.len() > DETAIL_BYTES || detail.chars().any(char::is_control)) {
            return Err(malformed());
        }
        done(self.host()?.alert(detail).await)
    }

    async fn operate(&self, request: Request<wire::OperateRequest>) -> Outcome<wire::OperateReply> {
        let wire::OperateRequest { operation, request } = request.into_inner();
        within(request.len(), OPERATE_LIMIT)?;
        if operation.len() > NAME_BYTES {
            return Err(malformed());
        }
        let reply = match self.host()?.operate(&operation, request).await {
            Ok(reply) if reply.len() <= OPERATE_REPLY => wire::OperateReply { reply, refusal: None },
            Ok(_) => return Err(of_host(HostError::TooLarge { limit: OPERATE_REPLY })),
            Err(OperateError::Host(error)) => return Err(of_host(error)),
            Err(OperateError::Refused { status, code, detail }) => {
                let refusal = wire::Refusal { status: u32::from(status.code()), code, detail };
                wire::OperateReply { reply: bytes::Bytes::new(), refusal: Some(refusal) }
            }
        };
        Ok(Reply::new(reply))
    }

    async fn telemetry(&self, request: Request<wire::TelemetryRequest>) -> Outcome<wire::Done> {
        self.host()?;
        // Taken and bounded; who shows it is still to come.
        if request.into_inner().measures.len() > MEASURES {
            return Err(malformed());
        }
        Ok(Reply::new(wire::Done {}))
    }
}

#[tonic::async_trait]
impl Peers for Hosting {
    type PeerSendStream = Frames;
    type CallModuleStream = Frames;

    async fn peer_send(&self, request: Request<Streaming<wire::PeerSendFrame>>) -> Outcome<Frames> {
        let (head, first, frames) = begun(request.into_inner()).await?;
        // Another module is asked by CallModule.
        if !head.module.is_empty() || head.operator || head.store.is_some() {
            return Err(malformed());
        }
        let body = bodies::body(first, frames);
        let (peer, request) = convert::to_peer_request(head, body).ok_or_else(malformed)?;
        let response = self.host()?.peer_request(peer, request).await.map_err(of_peer)?;
        Ok(answered(response))
    }

    async fn peer_store(&self, request: Request<Streaming<wire::PeerSendFrame>>) -> Outcome<wire::PeerStoreReply> {
        let (mut head, first, frames) = begun(request.into_inner()).await?;
        if !head.module.is_empty() || head.operator {
            return Err(malformed());
        }
        let into = head.store.take().as_ref().and_then(stored::to_into).ok_or_else(malformed)?;
        into.check().map_err(of_store)?;
        let body = bodies::body(first, frames);
        let (peer, request) = convert::to_peer_request(head, body).ok_or_else(malformed)?;
        let length = into.length;
        let mut outcome = self.host()?.peer_store(peer, request, into).await.map_err(of_store)?;
        let body = match &mut outcome {
            Stored::Refused(refusal) => std::mem::replace(&mut refusal.body, Body::empty()),
            _ => Body::empty(),
        };
        // One that is too long, or breaks off, tells less than its status.
        let body = body.collect(REFUSAL_BYTES).await.unwrap_or_default();
        Ok(Reply::new(stored::of_stored(outcome, length, body)))
    }

    async fn call_module(&self, request: Request<Streaming<wire::PeerSendFrame>>) -> Outcome<Frames> {
        let (head, first, frames) = begun(request.into_inner()).await?;
        if !head.peer.is_empty() || head.store.is_some() || ModuleName::new(&head.module).is_none() {
            return Err(malformed());
        }
        let attachment = self.0.attachment().ok_or_else(|| Status::unauthenticated(NOT_ATTACHED))?;
        let within = attachment.within(head.parent).ok_or_else(|| of_call(CallError::Ended))?;
        let (module, operator, body) = (head.module.clone(), head.operator, bodies::body(first, frames));
        let request = convert::to_sent_request(head, body).ok_or_else(malformed)?;
        let response = match operator {
            true => self.host()?.operator_call(&module, request).await,
            false => self.host()?.call_module(within, &module, request).await,
        };
        let response = response.map_err(of_call)?;
        Ok(answered(response))
    }
}

/// The head of a request that a module makes, and where its body is.
async fn begun(
    mut frames: Streaming<wire::PeerSendFrame>,
) -> Result<(wire::PeerSendHead, wire::PeerSendFrame, Streaming<wire::PeerSendFrame>), Status> {
    let mut first = frames.message().await?.ok_or_else(malformed)?;
    let head = first.head.take().ok_or_else(malformed)?;
    let fits = head.path.len() <= PATH_BYTES && head.content_type.len() <= CONTENT_TYPE_BYTES;
    if fits { Ok((head, first, frames)) } else { Err(malformed()) }
}

fn answered(mut response: crate::message::Response) -> Reply<Frames> {
    let head = wire::PeerReplyHead {
        status: u32::from(response.status.code()),
        content_type: std::mem::take(&mut response.content_type),
        length: response.length,
    };
    let body = std::mem::replace(&mut response.body, Body::empty());
    let first = wire::PeerReplyFrame { head: Some(head), ..Default::default() };
    Reply::new(Box::pin(bodies::frames(first, body).map(Ok)))
}

fn within(length: usize, limit: usize) -> Result<(), Status> {
    if length > limit { Err(of_host(HostError::TooLarge { limit })) } else { Ok(()) }
}
