//! The front: gRPC on an AF_UNIX listener, each call one typed request to the vault, each reply one answer. It holds
//! no key of the node; what `noded` may have (secrets of sessions, store keys) passes through it.
//!
//! `callers` says who may connect, `connection` admits and meters them, `service` is the generated trait, `handshakes` its one stream, `convert` turns
//! protobuf into requests and replies into protobuf, `refused` tells the audit trail what was turned away here, and `outgoing` what HTTP/2 itself refused, `link`
//! multiplexes calls over the one stream to the vault, `places` says how many of which kind. In: bytes of `noded`. Out: bounded frames. It opens
//! nothing: listener and stream are inherited. It lives as long as the vault: when that is gone, calls answer UNAVAILABLE and
//! [`serve`] returns, so that the supervisor replaces both.

mod callers;
mod connection;
mod convert;
mod gather;
mod handshakes;
mod link;
mod methods;
mod outgoing;
mod places;
#[doc(hidden)]
pub mod raw;
mod refused;
mod service;

use std::sync::Arc;
use std::time::Duration;

use openred_proto::cryptod::cryptod_server::CryptodServer;
use openred_proto::id::NodeId;
use openred_proto::limits::FRAME_BYTES;
use openred_proto::vault::{Reply, Request};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::Server;
use tower::util::MapResponseLayer;

pub use callers::Callers;
use connection::Door;
use link::VaultLink;
use refused::Refused;
use service::Service;

/// Longest protobuf message: a request must fit a frame, and protobuf adds less than it.
const MESSAGE_BYTES: usize = 2 * FRAME_BYTES;
/// Longest header list: gRPC's own headers and a deadline.
const HEADER_BYTES: u32 = 4096;
/// A connection that stays silent this long is asked, and closed when it does not answer.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How often the supervisor is heard while nobody connects; it names a process a start, and its queue takes hundreds.
const HEAR: Duration = Duration::from_secs(5);
/// Once the vault is gone, calls under way have this long to be told.
const FAREWELL: Duration = Duration::from_millis(250);

/// Why the front ends.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The vault's stream closed, or carried what is no reply.
    #[error("front: the vault is gone; the supervisor starts both anew")]
    VaultGone,
    /// The listener failed.
    #[error("front: the listener failed; the supervisor starts front and vault anew")]
    Listener(#[source] tonic::transport::Error),
}

/// The generated service with its bounds on messages.
fn contract(link: VaultLink, node: NodeId, refused: Arc<Refused>) -> CryptodServer<Service> {
    CryptodServer::new(Service::new(link, node, refused))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES)
}

/// Serves `callers` until the vault is gone or the listener fails. `ready` is called once the vault has answered who the node is.
///
/// # Errors
/// Always ends with one: a front does not finish.
pub async fn serve(
    listener: UnixListener,
    vault: UnixStream,
    callers: Callers,
    ready: impl FnOnce(),
) -> Result<(), End> {
    let link = VaultLink::start(vault);
    // The vault opens its state first; its answer shows that it serves, and names the node for HTTP signatures.
    let node = match link.ask_patiently(Request::Describe).await {
        Ok(Reply::Described { node, .. }) => node,
        _ => return Err(End::VaultGone),
    };
    ready();
    let callers = Arc::new(callers);
    let refused = Arc::new(Refused::default());
    let service = contract(link.clone(), node, Arc::clone(&refused));
    let for_calls = Arc::clone(&refused);
    let served = Server::builder()
        .layer(MapResponseLayer::new(move |response: tonic::codegen::http::Response<tonic::body::Body>| {
            for_calls.see(response)
        }))
        .max_concurrent_streams(places::STREAMS)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(service)
        .serve_with_incoming_shutdown(
            Door::new(listener, Arc::clone(&callers), Arc::clone(&refused)).admit(),
            link.gone(),
        );
    let farewell = async {
        link.gone().await;
        tokio::time::sleep(FAREWELL).await;
    };
    let hearing = async {
        let mut ticks = tokio::time::interval(HEAR);
        loop {
            ticks.tick().await;
            callers.hear();
        }
    };
    tokio::select! {
        () = hearing => {}
        served = served => served.map_err(End::Listener)?,
        () = refused.report(&link) => {}
        () = farewell => {}
    }
    Err(End::VaultGone)
}
