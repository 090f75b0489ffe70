//! What the operator says of peers and of the offers that wait, beside his yes (`offers`); and how near a sender is to this node, by which
//! its offers have precedence.

use openred_proto::checked::offer::Offer;
use openred_proto::id::NodeId;

use super::state::{EndReason, Link, LinkState, WrongState};
use super::{LinkError, Links};
use crate::clock;
use crate::config::IncomingPolicy;
use crate::sensitive::Sensitive;
use crate::store::Word;

/// How near the sender of an offer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rank {
    /// It says that it renews a link that lives with its sender.
    Renewal,
    /// A link, the operator's yes, or the list names its sender.
    Known,
    Stranger,
}

impl Rank {
    pub(crate) const ALL: [Self; 3] = [Self::Renewal, Self::Known, Self::Stranger];
}

impl Links {
    /// How near the sender of an offer is, by what is known here: nobody is asked, and nothing of the offer is believed.
    pub(crate) async fn rank(&self, sender: NodeId, offer: &[u8]) -> Rank {
        let renewed = Offer::decode(offer).ok().and_then(|offer| offer.routing.psk);
        let renewed = renewed.and_then(|old| self.link(&old)).filter(|old| old.peer() == sender);
        if renewed.is_some_and(|old| old.is_usable(clock::now())) {
            return Rank::Renewal;
        }
        let has_link = self.of_peer(&sender).is_some_and(|link| link.state.is_expected());
        let is_listed = self.config.incoming == IncomingPolicy::AllowList && self.config.allow.contains(&sender);
        if has_link || is_listed || matches!(self.store.word(sender).await, Ok(Word::Yes)) {
            Rank::Known
        } else {
            Rank::Stranger
        }
    }

    /// The operator's yes to a peer's offers, one that waits included; or his no, by which one that waits ends, and one that this node has
    /// made or is asked to make. Links that live stay either way, and what renews them.
    ///
    /// # Errors
    /// The node itself, or the key process or the store refuses.
    pub(crate) async fn decide_peer(&self, peer: NodeId, allow: bool) -> Result<(), LinkError> {
        let peer = self.current(&peer);
        if peer == self.me {
            return Err(LinkError::WithItself);
        }
        if allow {
            return self.approve(&peer.to_string()).await.map(drop);
        }
        let _turn = self.turn.lock().await;
        let now = clock::now();
        let of_peer = self.all().into_iter().filter(|link| link.peer() == peer);
        let ended = of_peer.filter_map(|link| match link.state {
            LinkState::Waiting => link.ended(EndReason::Refused, now).ok(),
            // The peer's receipt, or its first handshake, would make a link of it.
            LinkState::Offered if link.renews.is_none() => link.ended(EndReason::Operator, now).ok(),
            _ => None,
        });
        let ended: Vec<Link> = ended.collect();
        self.store.deny(peer, ended.clone(), now).await?;
        let given_up = self.give_up(&peer).await;
        // Stored already: it is shown whatever comes of the request.
        ended.into_iter().for_each(|link| self.show(link, None));
        given_up?;
        tracing::info!(peer = %Sensitive(peer.short()), "peer denied: its offers are refused");
        Ok(())
    }

    /// Leaves an offer that waits: that of a peer, or the one with this link id. The peer may send another.
    ///
    /// # Errors
    /// There is none, it does not wait, or the store refuses.
    pub(crate) async fn refuse_offer(&self, text: &str) -> Result<Link, LinkError> {
        let named = match text.parse::<NodeId>() {
            Ok(peer) => self.waiting_of(&self.current(&peer)).ok_or(LinkError::NotFound)?,
            Err(_) => self.select(text)?,
        };
        let _turn = self.turn.lock().await;
        let link = self.link(&named.id()).ok_or(LinkError::NotFound)?;
        if link.state != LinkState::Waiting {
            return Err(WrongState { state: link.state, change: "refused; `openred link revoke` ends it" }.into());
        }
        let refused = link.ended(EndReason::Refused, clock::now())?;
        self.keep(vec![refused.clone()]).await?;
        tracing::info!(link = %refused.id(), "offer refused");
        Ok(refused)
    }
}
