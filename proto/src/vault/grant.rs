//! What becomes of a handshake that ended well.

use serde::{Deserialize, Serialize};

use crate::id::{LinkId, NodeId};
use crate::method::Method;
use crate::secret::Secret;

/// What an open handshake yields to `noded`: secrets of this one session, and what the two sides proved.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionGrant {
    /// The link it runs over; none in direct contact.
    pub link: Option<LinkId>,
    /// The proven peer.
    pub peer: NodeId,
    /// The link's method (it decides the session's AEAD).
    pub method: Method,
    /// Secret of what this node sends.
    pub send: Secret<32>,
    /// Secret of what this node receives.
    pub receive: Secret<32>,
    /// Final handshake hash, the first 32 bytes where the suite's hash is longer.
    pub hash: [u8; 32],
    /// Equal on both sides; shown as words and hex.
    pub mutual_link: [u8; 16],
    /// This node's match proof over the hash; zeros without a link.
    pub match_proof: [u8; 32],
    /// Sequence of the peer's latest card, as it says.
    pub peer_card_sequence: u64,
    /// The peer's latest directory head; 32 bytes or empty.
    pub peer_directory_head: Vec<u8>,
}
