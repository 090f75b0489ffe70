//! The operator's operations for modules that were granted them: the same code as behind the admin socket, called in this process.
//!
//! In: an operation's name and its message. Out: the reply's message, or the refusal that the operator would have had. Who may ask for what is decided
//! before (`module::host`); the table below is all that there is.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::StreamExt as _;
use openred_module::{HostError, OperateError, Status as Class};
use openred_proto::admin::node_server::Node as Contract;
use prost::Message;
use tokio::runtime::Handle;
use tonic::{Code, Request, Status};

use super::reply::CODE_HEADER;
use super::{Outcome, Service, reply};
use crate::module::Operate;
use crate::node::Node;

/// See the file's head.
pub(crate) struct Operations {
    node: Weak<Node>,
    main: Handle,
}

impl Operations {
    /// Those of this node. To be called on its runtime.
    pub(crate) fn new(node: &Arc<Node>) -> Self {
        Self { node: Arc::downgrade(node), main: Handle::current() }
    }
}

/// One call of the service for each name.
macro_rules! operations {
    ($service:ident, $operation:ident, $request:ident: $($name:literal => $function:ident,)*) => {
        match $operation {
            $($name => carried(|request| $service.$function(request), $request).await,)*
            "Ping" => ping(&$service, $request).await,
            _ => Err(reply::not_found("operation.unknown", "this node has no such operation")),
        }
    };
}

#[async_trait::async_trait]
impl Operate for Operations {
    async fn operate(&self, operation: &str, request: Bytes) -> Result<Bytes, OperateError> {
        let node = self.node.upgrade().ok_or(HostError::ShuttingDown)?;
        let service = Service { node, main: self.main.clone() };
        let done = operations! { service, operation, request:
            "GetStatus" => get_status,
            "RequestLink" => request_link,
            "AcceptLink" => accept_link,
            "ListLinks" => list_links,
            "ShowLink" => show_link,
            "RevokeLink" => revoke_link,
            "RefuseOffer" => refuse_offer,
            "ContactPeer" => contact_peer,
            "ConfirmContact" => confirm_contact,
            "DropContact" => drop_contact,
            "SyncLinks" => sync_links,
            "ListProofs" => list_proofs,
            "ListMethods" => list_methods,
            "DecideMethod" => decide_method,
            "ListHooks" => list_hooks,
            "ListPeers" => list_peers,
            "ShowPeer" => show_peer,
            "ForgetPeer" => forget_peer,
            "DecidePeer" => decide_peer,
            "ListGenerations" => list_generations,
        };
        done.map_err(|status| refused(&status))
    }
}

fn read<Q: Message + Default>(request: Bytes) -> Result<Request<Q>, Status> {
    let malformed = |_| reply::invalid("request.malformed", "not the operation's message");
    Q::decode(request).map(Request::new).map_err(malformed)
}

async fn carried<Q, R, F>(call: impl FnOnce(Request<Q>) -> F, request: Bytes) -> Result<Bytes, Status>
where
    Q: Message + Default,
    R: Message,
    F: Future<Output = Outcome<R>>,
{
    let reply = call(read(request)?).await?.into_inner();
    Ok(reply.encode_to_vec().into())
}

/// Of its stream the last word, which holds the whole.
async fn ping(service: &Service, request: Bytes) -> Result<Bytes, Status> {
    let mut reports = service.ping(read(request)?).await?.into_inner();
    let mut last = None;
    while let Some(report) = reports.next().await {
        last = Some(report?);
    }
    Ok(last.unwrap_or_default().encode_to_vec().into())
}

/// A refusal of the service, with its stable code.
fn refused(status: &Status) -> OperateError {
    let class = match status.code() {
        Code::InvalidArgument | Code::OutOfRange => Class::BadRequest,
        Code::NotFound => Class::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => Class::Forbidden,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => Class::Conflict,
        Code::ResourceExhausted => Class::TooMany,
        Code::DeadlineExceeded => Class::TimedOut,
        Code::Unavailable | Code::Cancelled => Class::Unavailable,
        _ => Class::Internal,
    };
    let code = status.metadata().get(CODE_HEADER).and_then(|code| code.to_str().ok());
    OperateError::Refused {
        status: class,
        code: code.unwrap_or("refused").to_owned(),
        detail: status.message().to_owned(),
    }
}
