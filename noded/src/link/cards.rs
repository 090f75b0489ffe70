//! Cards handed over inside sessions. Peers that talk to each other know each other's newest card without a directory, and so renew their links
//! without one for as long as they talk (docs/decisions/0019). A card proves itself: what is handed over is verified as if a directory had given it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::StatusCode;
use openred_proto::id::NodeId;
use openred_proto::limits::{CARD_BYTES, LINKS};

use super::Links;
use super::inside::{AT_ONCE, BODY_BYTES, ask_in_turn};
use crate::clock;
use crate::sensitive::Sensitive;

/// Takes the asking node's signed card, or nothing; answered with this node's.
pub(crate) const CARD: &str = "/link/card";
const _: () = assert!(CARD_BYTES <= BODY_BYTES);
/// A peer whose card did not come as it was named is not asked again before this: each of its sessions may name one that there is not.
const CARD_AGAIN: Duration = Duration::from_secs(60);

impl Links {
    pub(super) async fn answer_card(&self, peer: NodeId, card: Bytes) -> (StatusCode, Bytes) {
        if !card.is_empty() {
            self.take_card(peer, card).await;
        }
        self.carrier
            .own_card()
            .await
            .map_or((StatusCode::SERVICE_UNAVAILABLE, Bytes::new()), |own| (StatusCode::OK, own))
    }

    /// Whether the peer's card is at hand now, this one or a newer one.
    async fn take_card(&self, peer: NodeId, card: Bytes) -> bool {
        let taken = self.carrier.take_card(peer, card).await;
        self.hear_successions().await;
        if let Err(error) = &taken {
            tracing::info!(peer = %Sensitive(peer.short()), %error, "a card that a peer handed over was left");
        }
        taken.is_ok()
    }

    /// Exchanges cards with a peer inside a session, which is opened if need be. Whether its card came.
    pub(super) async fn exchange_cards(&self, peer: NodeId) -> bool {
        let Some(courier) = self.courier.get() else { return false };
        // Who has none at the moment may ask all the same.
        let own = self.carrier.own_card().await.unwrap_or_default();
        match ask_in_turn(&**courier, peer, CARD, own).await {
            Some(answer) => self.take_card(peer, answer.body).await,
            None => false,
        }
    }

    /// A session with a peer is open whose card has this sequence: it is asked for it if it is not here.
    pub(super) fn exchange_if_due(&self, peer: NodeId, sequence: u64) {
        if sequence == 0 || self.carrier.holds_card(&peer, sequence) {
            return;
        }
        let mut steps = self.steps();
        let now = clock::now();
        // One of the future was noted by a clock that was set back since.
        steps.cards_missed.retain(|_, at| *at <= now && now < at.plus(CARD_AGAIN));
        if steps.cards_missed.contains_key(&peer) {
            return;
        }
        if steps.cards_due.len() < LINKS {
            steps.cards_due.insert(peer, sequence);
            self.sync_wanted.notify_one();
        }
    }

    pub(super) async fn exchange_due(&self) {
        let due = std::mem::take(&mut self.steps().cards_due);
        futures_util::stream::iter(due)
            .for_each_concurrent(AT_ONCE, |(peer, sequence)| async move {
                self.exchange_cards(peer).await;
                if !self.carrier.holds_card(&peer, sequence) && self.steps().cards_missed.len() < LINKS {
                    self.steps().cards_missed.insert(peer, clock::now());
                }
            })
            .await;
    }
}
