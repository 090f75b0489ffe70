//! Operations about the node itself: who it is, its card, HTTP signatures, store keys.

use std::time::Duration;

use openred_proto::checked::card::{Card, CardFields};
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::UnixMillis;
use openred_proto::limits::{CARD_LIFE, NAME_BYTES};
use openred_proto::method::MethodSet;
use openred_proto::vault::{Capacity, Reply, ShortKey};
use rand_core::CryptoRng;

use super::Unlocked;
use crate::error::{Error, Result};

impl Unlocked {
    pub(super) fn describe(&self, operations: u64, now: UnixMillis) -> Result<Reply> {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Reply::Described {
            node: self.keyring.identity.node_id(),
            prekey: self.state.node.prekeys.current()?.clone(),
            operations,
            links: count(self.state.live_links(now)),
            half_open: count(self.handshakes.len()),
            earlier: self.keyring.lineage.earlier(),
        })
    }

    /// Builds the card from its fields and signs it; what no peer would take is not signed.
    pub(super) fn sign_card(
        &mut self,
        now: UnixMillis,
        fields: CardFields,
        suites: MethodSet,
        life: Duration,
    ) -> Result<Reply> {
        if life > CARD_LIFE || life.is_zero() || suites.built_in().is_empty() {
            return Err(Error::MisuseNotAllowed);
        }
        self.state.check_clock(now)?;
        let card = Card {
            node_id: self.keyring.identity.node_id(),
            sequence: self.state.next_sequence(now),
            issued_at: now,
            expires_at: now.plus(life),
            fields,
            suites: suites.built_in(),
            methods: self.state.node.methods.ids(suites),
            prekey: self.state.node.prekeys.current()?.clone(),
            lineage: self.keyring.lineage.clone(),
        };
        let statement = self.keyring.identity.sign_card(&card)?;
        // The fields came from a parser that is not trusted; the peers' own check is the last word on them.
        if Card::verify(&statement, now)? != card {
            return Err(Error::MisuseNotAllowed);
        }
        self.state.node.card_sequence = card.sequence;
        Ok(Reply::Card { statement, sequence: card.sequence, expires_at: card.expires_at })
    }

    pub(super) fn sign_http(&self, now: UnixMillis, input: &SignatureInput) -> Result<Reply> {
        Ok(Reply::Signature(self.keyring.identity.sign_http(input, now)?.to_vec()))
    }

    /// Draws a short-term key anew, before its time.
    pub(super) fn rotate(&mut self, now: UnixMillis, random: &mut impl CryptoRng, what: ShortKey) -> Result<Reply> {
        match what {
            // One that a card out there may still name is not given up for it.
            ShortKey::Prekey if !self.state.node.prekeys.has_room() => {
                return Err(Error::LocalFull(Capacity::Prekeys));
            }
            ShortKey::Prekey => self.state.node.prekeys.replace(now, random)?,
            ShortKey::Statics => {
                self.state.node.statics.clear();
                self.statics = crate::statics::Statics::default();
            }
        }
        self.state.touch_node();
        // The new statics and their certificates, before anybody asks for one.
        self.maintain(now, random)?;
        Ok(Reply::Done)
    }

    /// `purpose` is a module's name: one DNS label.
    pub(super) fn store_key(&self, purpose: &str) -> Result<Reply> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=NAME_BYTES).contains(&purpose.len()) || !purpose.bytes().all(is_plain) {
            return Err(Error::MisuseNotAllowed);
        }
        Ok(Reply::StoreKey(self.keyring.store_key(purpose)))
    }
}
