//! What the module host needs from the rest of the node: a way to call a peer, and the key process.

use async_trait::async_trait;
use bytes::Bytes;
use openred_module::{Body, PeerError};
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::NodeId;
use openred_proto::secret::Secret;

use crate::keys::{CryptodClient, KeysError};

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

/// What the key process does for a module, in the module's own domain.
#[async_trait]
pub(crate) trait ModuleKeys: Send + Sync {
    /// Signs that it stated a body of this hash and length.
    async fn sign(&self, module: &str, domain: &str, digest: [u8; 32], length: u64) -> Result<Bytes, KeysError>;
    /// The key of its seals.
    async fn seal_key(&self, module: &str) -> Result<Secret<32>, KeysError>;
}

#[async_trait]
impl ModuleKeys for CryptodClient {
    async fn sign(&self, module: &str, domain: &str, digest: [u8; 32], length: u64) -> Result<Bytes, KeysError> {
        self.sign_module(module, domain, digest, length).await
    }

    async fn seal_key(&self, module: &str) -> Result<Secret<32>, KeysError> {
        CryptodClient::seal_key(self, module).await
    }
}
