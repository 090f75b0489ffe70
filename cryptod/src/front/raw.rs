//! Parts of the front for whoever drives them by himself: the generated service without its listener (the fuzz targets), and the link
//! to the vault without the service (the measurements). The same service, limits and link as behind the listener.

use std::convert::Infallible;
use std::sync::Arc;

use openred_proto::id::NodeId;
use openred_proto::vault::{Reply, Request as Asked};
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Service, ServiceExt};

use super::connection::Caller;
use super::link::VaultLink;

/// The service of `node`, asking the vault at the other end of `vault`. To be called inside a runtime.
pub fn service(
    vault: UnixStream,
    node: NodeId,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible> {
    let caller = Arc::new(Caller::new());
    super::contract(VaultLink::start(vault), node, Arc::default()).map_request(move |mut request: Request<Body>| {
        request.extensions_mut().insert(Arc::clone(&caller));
        request
    })
}

/// One caller's link to the vault.
#[derive(Clone)]
pub struct Link {
    link: VaultLink,
    caller: Arc<Caller>,
}

impl Link {
    /// To be called inside a runtime.
    #[must_use]
    pub fn start(vault: UnixStream) -> Self {
        Self { link: VaultLink::start(vault), caller: Arc::new(Caller::new()) }
    }

    /// Asks the vault; none when it does not answer.
    pub async fn ask(&self, request: Asked) -> Option<Reply> {
        self.link.ask(self.caller.places(), request).await.ok()
    }
}
