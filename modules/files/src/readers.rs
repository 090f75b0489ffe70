//! Who may read a share, over changes of the peers' ids: stored under the first id that a peer is known by, admitted under every
//! one, shown under the one that it has today.
//!
//! So a successor reads what its older id was given, and no more once that is taken back; nothing is moved for either. In: an
//! audience as the operator names it. Out: the one that is stored, and back.

use openred_module::{Context, HostError, NodeId};

use crate::document::{Audience, ShareView};
use crate::error::FilesError;

/// An audience as it was named, each peer with every id that it is known by.
pub(crate) struct Readers {
    all: bool,
    peers: Vec<Vec<String>>,
}

impl Readers {
    pub(crate) async fn named(context: &Context, audience: Audience) -> Result<Self, FilesError> {
        let mut peers = Vec::with_capacity(audience.peers.len());
        for peer in &audience.peers {
            let peer = peer.parse::<NodeId>().map_err(|_| FilesError::BadAudience)?;
            peers.push(context.identities(peer).await?.iter().map(ToString::to_string).collect());
        }
        Ok(Self { all: audience.all, peers })
    }

    /// Whether this is one of the ids of somebody who was named.
    pub(crate) fn names(&self, id: &String) -> bool {
        self.peers.iter().any(|ids| ids.contains(id))
    }

    /// As it is stored: a peer that is in `before` stays there under the same ids, another is put down under its first. So an
    /// audience that was shown and given back changes nobody's standing.
    pub(crate) fn stored(&self, before: Option<&Audience>) -> Result<Audience, FilesError> {
        let is_held = |id: &&String| before.is_some_and(|before| before.peers.contains(id));
        let mut peers = Vec::with_capacity(self.peers.len());
        for ids in &self.peers {
            let held = peers.len();
            peers.extend(ids.iter().filter(is_held).cloned());
            if peers.len() == held {
                peers.extend(ids.first().cloned());
            }
        }
        Audience { all: self.all, peers }.checked()
    }
}

/// Whether a share is for the peer with these ids.
pub(crate) fn admits(audience: &Audience, ids: &[NodeId]) -> bool {
    ids.iter().any(|id| audience.admits(*id))
}

/// A share as the operator sees it.
pub(crate) async fn shown(context: &Context, mut share: ShareView) -> Result<ShareView, HostError> {
    for peer in &mut share.audience.peers {
        *peer = present(context, peer).await?;
    }
    share.audience.peers.sort();
    share.audience.peers.dedup();
    Ok(share)
}

/// What the peer of this id is called today.
pub(crate) async fn present(context: &Context, peer: &str) -> Result<String, HostError> {
    match peer.parse::<NodeId>() {
        Ok(id) => Ok(context.present_id(id).await?.to_string()),
        Err(_) => Ok(peer.to_owned()),
    }
}
