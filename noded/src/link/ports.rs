//! What links need from the rest of the node: the key process, a directory to carry offers, and somebody to tell.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openred_proto::id::{LinkId, NodeId};
use openred_proto::method::MethodSet;
use openred_proto::vault::{LinkKeys, LinkSummary, ReceivedOffer};

use crate::directory::DirectoryError;
use crate::keys::{AcceptedLink, CryptodClient, IssuedLink, KeysError, NewLink};
use crate::p2p::ports::LinkHandle;

/// The key process's operations on links.
#[async_trait]
pub(crate) trait LinkVault: Send + Sync {
    async fn issue(&self, link: NewLink) -> Result<IssuedLink, KeysError>;
    /// Issues one in the place of the live link of `row`.
    async fn renew(&self, row: Bytes, link: NewLink) -> Result<IssuedLink, KeysError>;
    /// `renewed`: the row of the link that the offer says it renews.
    async fn inspect(&self, offer: &ReceivedOffer, renewed: Option<Bytes>) -> Result<LinkSummary, KeysError>;
    /// As `inspect`.
    async fn accept(&self, offer: &ReceivedOffer, renewed: Option<Bytes>) -> Result<AcceptedLink, KeysError>;
    /// A page of the links that it holds and that this node issued, from above `after`.
    async fn held(&self, after: Option<LinkId>) -> Result<Vec<LinkId>, KeysError>;
    async fn keys(&self, row: Bytes) -> Result<LinkKeys, KeysError>;
    async fn revoke(&self, link: LinkId) -> Result<(), KeysError>;
}

#[async_trait]
impl LinkVault for CryptodClient {
    async fn issue(&self, link: NewLink) -> Result<IssuedLink, KeysError> {
        self.issue_link(link).await
    }

    async fn renew(&self, row: Bytes, link: NewLink) -> Result<IssuedLink, KeysError> {
        self.renew_link(row, link).await
    }

    async fn inspect(&self, offer: &ReceivedOffer, renewed: Option<Bytes>) -> Result<LinkSummary, KeysError> {
        match renewed {
            Some(row) => self.inspect_renewal(offer, row).await,
            None => self.inspect_offer(offer).await,
        }
    }

    async fn accept(&self, offer: &ReceivedOffer, renewed: Option<Bytes>) -> Result<AcceptedLink, KeysError> {
        match renewed {
            Some(row) => self.accept_renewal(offer, row).await,
            None => self.accept_offer(offer).await,
        }
    }

    async fn held(&self, after: Option<LinkId>) -> Result<Vec<LinkId>, KeysError> {
        self.held_links(after).await
    }

    async fn keys(&self, row: Bytes) -> Result<LinkKeys, KeysError> {
        self.link_keys(row).await
    }

    async fn revoke(&self, link: LinkId) -> Result<(), KeysError> {
        self.revoke_link(link).await
    }
}

/// A peer's card, verified and not older than any seen before.
#[derive(Clone, Debug)]
pub(crate) struct FoundCard {
    /// Whose it is: the one that was asked for, or its successor.
    pub(crate) node: NodeId,
    /// Identities that it goes on for, by their own word.
    pub(crate) earlier: Vec<NodeId>,
    /// Signed, as received.
    pub(crate) card: Bytes,
    /// Its sector.
    pub(crate) sector: String,
    /// The directory that gave it, and that can carry an offer to the peer.
    pub(crate) directory: NodeId,
}

/// Carries offers and receipts, and finds cards.
#[async_trait]
pub(crate) trait Carrier: Send + Sync {
    /// The peer's newest card.
    async fn card(&self, peer: NodeId) -> Result<FoundCard, DirectoryError>;
    /// The card of a peer that was kept, if it still holds and was given no longer ago than `within`: good enough to renew a
    /// link by.
    async fn kept_card(&self, peer: NodeId, within: Duration) -> Option<FoundCard>;
    /// The same of somebody who is nobody here yet: nothing of it is kept.
    async fn introduction(&self, peer: NodeId) -> Result<FoundCard, DirectoryError>;
    /// This node's own card, signed anew where that is due.
    async fn own_card(&self) -> Option<Bytes>;
    /// Whether the peer's card of this sequence, or a later one, is at hand.
    fn holds_card(&self, peer: &NodeId, sequence: u64) -> bool;
    /// A peer hands its card over itself: verified, held against what is known, and kept.
    async fn take_card(&self, peer: NodeId, card: Bytes) -> Result<(), DirectoryError>;
    /// Hears whom such a card's node goes on for; keeps nothing else of it.
    async fn follow_card(&self, card: &Bytes);
    /// Nothing is known of this node any more.
    fn forget(&self, peer: &NodeId);
    /// Hands an offer to a directory; its signed word that it took it has been checked when this returns.
    async fn send_offer(&self, directory: NodeId, offer: Bytes) -> Result<(), DirectoryError>;
    /// Hands the acceptor's receipt to a directory.
    async fn acknowledge(&self, directory: NodeId, receipt: Bytes) -> Result<(), DirectoryError>;
    /// The operator allows these methods from now on: this node's card is to say so.
    async fn methods_changed(&self, allowed: MethodSet);
    /// A peer said that its card has this sequence: look it up when ours is older.
    fn card_hint(&self, peer: NodeId, sequence: u64);
    /// The heads of directories' logs that this node has checked, to hand to a peer.
    async fn own_heads(&self) -> Option<Bytes> {
        None
    }
    /// A peer hands over those that it has checked; each proves itself.
    fn take_heads(&self, _peer: NodeId, _heads: &[u8]) {}
    /// The directory has signed again and again for an offer to this peer, which says nothing.
    async fn unanswered(&self, _directory: NodeId, _peer: NodeId) {}
    /// Offers wait for an answer of these peers, and of no others.
    fn answered_but(&self, _waiting: &BTreeSet<NodeId>) {}
    /// Whether a card has brought news of a succession since this was asked last; they are in the store.
    fn take_news(&self) -> bool;
}

/// What a peer answered inside a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// Asks peers about links inside a session, which is opened if need be.
#[async_trait]
pub(crate) trait Courier: Send + Sync {
    /// Whether a session with the peer is open.
    fn has_session(&self, peer: &NodeId) -> bool;
    /// What the peer's module `openred` answers to a POST; none when it could not be reached in time.
    async fn ask(&self, peer: NodeId, path: &'static str, body: Bytes) -> Option<Answered>;
}

/// Hears of links that begin and end.
pub(crate) trait LinkObserver: Send + Sync {
    /// The peer may begin a handshake over it from now on.
    fn link_added(&self, link: Arc<LinkHandle>);
    /// No handshake may run over it any more; its sessions end.
    fn link_removed(&self, link: LinkId);
    /// The peer has accepted this node's offer: a first handshake can make the link active.
    fn link_confirmed(&self, peer: NodeId);
    /// The same of a link that renews one with the peer: the next session is to run over it.
    fn link_renewed(&self, peer: NodeId);
    /// A session with the peer has opened.
    fn peer_reachable(&self, peer: NodeId);
    /// No live link with the peer is left.
    fn peer_forgotten(&self, peer: NodeId);
    /// The peer has named a successor, or taken that back, and this node follows.
    fn identities_changed(&self, peer: NodeId);
}
