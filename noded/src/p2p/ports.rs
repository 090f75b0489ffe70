//! What the network layer needs from the rest of the node, and nothing more: links, dispatch, endpoints.
//!
//! The link store, the module host and the directory client implement these; the tests of the network layer have their
//! own implementations. Nothing here knows SQLite, gRPC or HTTP. All calls come from the one runtime thread of `noded`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use openred_module::Body;
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::method::{Method, MethodSet};
use openred_proto::vault::LinkKeys;

use crate::reports::Reports;

/// A link over which a handshake may run now: accepted by both sides, inside its life, not revoked.
#[derive(Debug)]
pub struct LinkHandle {
    /// The link.
    pub link: LinkId,
    /// The other party.
    pub peer: NodeId,
    /// Its method.
    pub method: Method,
    /// The sealed token row, as `cryptod` gave it.
    pub row: Bytes,
    /// What selects and pre-checks REQUESTs, from `cryptod` at start or with the link; never stored.
    pub keys: LinkKeys,
    /// Greatest counter of a REQUEST of this node that led to a session; zero before the first.
    pub outgoing_counter: u64,
    /// Greatest counter of a REQUEST of the peer that led to a session; zero before the first.
    pub incoming_counter: u64,
    /// End of the link's life.
    pub not_after: UnixMillis,
}

/// What an opened session adds to the link's record.
#[derive(Clone, Debug)]
pub struct SessionOpened {
    /// The link it runs over.
    pub link: LinkId,
    /// The proven peer.
    pub peer: NodeId,
    /// Whether this node was the initiator.
    pub initiator: bool,
    /// The REQUEST's counter: to be kept as greatest of its direction (a lower one changes nothing).
    pub counter: u64,
    /// Equal on both sides.
    pub mutual_link: [u8; 16],
    /// Sequence of the peer's latest card, as it says: a reason to look it up when ours is older.
    pub peer_card_sequence: u64,
    /// The peer's latest directory head; 32 bytes or empty.
    pub peer_directory_head: Vec<u8>,
    /// When.
    pub at: UnixMillis,
}

/// What both sides of a session signed (`audited` mode).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedSession {
    /// The link it ran over.
    pub link: LinkId,
    /// The peer.
    pub peer: NodeId,
    /// The final handshake hash that both signed.
    pub hash: [u8; 32],
    /// The initiator's statement.
    pub initiator: Bytes,
    /// The responder's.
    pub responder: Bytes,
    /// When.
    pub at: UnixMillis,
}

/// The link store. Which REQUEST belongs to which link is decided by the network layer's own tag table, which learns of
/// links by `PeerNetwork::link_added` and `link_removed`.
#[async_trait]
pub trait Links: Send + Sync {
    /// The link to open a session to `peer` with, if there is a live one.
    fn for_peer(&self, peer: &NodeId) -> Option<Arc<LinkHandle>>;

    /// Another live link with `peer`, to try when it refuses handshakes over that one: the two sides may not agree on what renewed it.
    fn fallback_for_peer(&self, peer: &NodeId) -> Option<Arc<LinkHandle>>;

    /// Records an opened session: durable when it returns if it changes the link's state, else soon. The window of tags tolerates the loss
    /// of the last few.
    async fn session_opened(&self, opened: SessionOpened);

    /// Answers what `peer` asks about links inside a session: status and body.
    async fn answer(&self, peer: NodeId, path: &str, body: Bytes) -> (u16, Bytes) {
        let _ = (peer, path, body);
        (404, Bytes::new())
    }

    /// Keeps what both sides signed; durable when it returns true. Otherwise the session is not opened.
    async fn session_signed(&self, signed: SignedSession) -> bool;

    /// Methods that the operator allows: what this node names to a stranger.
    fn allowed_methods(&self) -> MethodSet {
        MethodSet::ALL
    }

    /// Whether the operator has said no to `peer`, or cannot be heard: then it is met no more than a stranger who is not wanted.
    async fn is_denied(&self, peer: NodeId) -> bool {
        let _ = peer;
        false
    }

    /// Answers what `peer` asks in direct contact, whose words are those of `mutual_link`: status and body.
    async fn answer_contact(&self, peer: NodeId, mutual_link: [u8; 16], path: &str, body: Bytes) -> (u16, Bytes) {
        let _ = (peer, mutual_link, path, body);
        (404, Bytes::new())
    }

    /// Records the result of the cross-validation of the two tokens on an open session (PROTOCOL 4.5).
    async fn match_checked(&self, link: LinkId, matched: bool, at: UnixMillis);
}

/// Who answers the requests of peers.
#[async_trait]
pub trait Dispatch: Send + Sync {
    /// Answers one request of `peer`. Never fails: what cannot be answered is answered with a status. Dropped when the
    /// peer goes away or the deadline of the head passes; the body returned is then dropped, too.
    async fn dispatch(&self, peer: NodeId, head: RequestHead, body: Body) -> (ResponseHead, Body);
}

/// Where peers can be reached.
#[async_trait]
pub trait Endpoints: Send + Sync {
    /// Endpoints of `peer` (`http://` or `https://`, an IP literal as host) in the order to try; empty when none is known.
    async fn endpoints(&self, peer: &NodeId) -> Vec<String>;

    /// None of the endpoints given for `peer` answered: before the next attempt they are to be looked up anew.
    fn failed(&self, peer: &NodeId) {
        let _ = peer;
    }

    /// The latest directory head that this node saw: 32 bytes, or empty.
    fn directory_head(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// All that the network layer is given.
#[derive(Clone)]
pub struct Ports {
    /// The link store.
    pub links: Arc<dyn Links>,
    /// The module host.
    pub dispatch: Arc<dyn Dispatch>,
    /// The directory client.
    pub endpoints: Arc<dyn Endpoints>,
    /// What is seen of peers that belongs into the audit trail.
    pub reports: Arc<Reports>,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ports")
    }
}
