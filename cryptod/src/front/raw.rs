//! The generated service without its listener: one caller's calls as they come out of HTTP/2, for whoever drives it with bytes
//! of his own (the fuzz targets). The same service, limits and link to the vault as behind the listener.

use std::convert::Infallible;
use std::sync::Arc;

use openred_proto::id::NodeId;
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
    super::contract(VaultLink::start(vault), node).map_request(move |mut request: Request<Body>| {
        request.extensions_mut().insert(Arc::clone(&caller));
        request
    })
}
