//! What the module host needs from the rest of the node: a way to call a peer.

use async_trait::async_trait;
use openred_module::{Body, PeerError};
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::NodeId;

/// Calls peers over sessions.
#[async_trait]
pub(crate) trait PeerCaller: Send + Sync {
    /// Sends one request, over an open session or a new one; gives the head of the answer and its body.
    async fn call(&self, peer: NodeId, head: RequestHead, body: Body) -> Result<(ResponseHead, Body), PeerError>;
    /// Whether there is a link over which requests can go.
    fn is_linked(&self, peer: &NodeId) -> bool;
    /// Every id under which a peer is known, the oldest first, today's last.
    fn identities(&self, peer: &NodeId) -> Vec<NodeId>;
}
