//! Operations on links: issue, renew, inspect, accept, keys, match, revoke. What needs memory is decided here; what needs none is
//! in `link`.

use std::time::Duration;

use openred_proto::checked::offer::SealedHeader;
use openred_proto::checked::receipt::{Receipt, ReceiptKind};
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::method::{MethodSet, Place, Schedule};
use openred_proto::secret::Secret;
use openred_proto::vault::{LinkKeys, LinkSummary, ReceivedOffer, ReceivedRenewal, Reply, RequestKeys};
use rand_core::CryptoRng;

use super::Unlocked;
use crate::error::{Error, Result};
use crate::link::accept::{self, Opened, Renewed};
use crate::link::derive::{DirectionKeys, LinkTerms, match_proof_verifies, renewal_psk};
use crate::link::issue::{IssueTerms, issue};
use crate::link::transform::{Side, Transform};
use crate::prekey::{Prekeys, Psk};
use crate::registered::Methods;
use crate::seal::{RowBinding, claimed_link, open_row, seal_row};
use crate::state::{LinkRecord, Window};

/// Version of a link's first row.
const FIRST_ROW: u64 = 1;

/// What to renew, and how.
pub(super) struct Renewal<'a> {
    pub(super) row: &'a [u8],
    pub(super) card: &'a [u8],
    pub(super) directory: NodeId,
    pub(super) allowed: MethodSet,
    pub(super) schedule: Schedule,
    pub(super) life: Duration,
}

/// A link whose row opened.
pub(super) struct OpenLink {
    pub(super) peer: NodeId,
    pub(super) record: LinkRecord,
    pub(super) base: Secret<32>,
}

impl Unlocked {
    fn node(&self) -> NodeId {
        self.keyring.identity.node_id()
    }

    pub(super) fn issue_link(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        terms: &IssueTerms<'_>,
    ) -> Result<Reply> {
        self.issue(now, random, terms, None)
    }

    /// Issues a link in the place of the one whose row this is, which must be live; it lives on to its end.
    pub(super) fn renew_link(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        renewal: &Renewal<'_>,
    ) -> Result<Reply> {
        let Renewal { row, card, directory, allowed, schedule, life } = *renewal;
        let OpenLink { peer, record, base } = self.open_link(now, row)?;
        let secret = renewal_psk(&base, &record.link, &self.node(), &peer)?;
        let terms = IssueTerms { peer, card, directory, allowed, schedule, life };
        self.issue(now, random, &terms, Some(&Psk { link: record.link, secret }))
    }

    fn issue(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        terms: &IssueTerms<'_>,
        psk: Option<&Psk>,
    ) -> Result<Reply> {
        self.state.check_clock(now)?;
        let sequence = self.state.next_sequence(now);
        let choice = (&self.keyring.schedule, &self.state.node.methods);
        let issued = issue(&self.keyring.identity, choice, terms, psk, sequence, now, random)?;
        let token_id = openred_proto::checked::offer::Offer::token_id(&issued.offer);
        let record = record(&issued.header, issued.registered, Side::Issuer, token_id, now);
        let (summary, keys) = (summary(&terms.peer, &record), self.request_keys(&terms.peer, &record, &issued.base)?);
        let row = self.seal_token(&terms.peer, &record, &issued.base, random)?;
        match psk {
            Some(psk) => self.state.add_renewal(&terms.peer, record, None, &psk.link, now)?,
            None => self.state.add_link(&terms.peer, record, None, now)?,
        }
        Ok(Reply::LinkIssued { summary, row, offer: issued.offer, keys })
    }

    /// Opens and verifies all of an offer; marks nothing.
    pub(super) fn inspect_offer(&self, now: UnixMillis, received: &ReceivedOffer) -> Result<Reply> {
        self.inspect(now, received, None)
    }

    /// The same of one that renews the link of a row.
    pub(super) fn inspect_renewal(&self, now: UnixMillis, renewal: &ReceivedRenewal) -> Result<Reply> {
        let renewed = self.renewed(now, &renewal.row)?;
        self.inspect(now, &renewal.received, Some(&renewed))
    }

    fn renewed(&self, now: UnixMillis, row: &[u8]) -> Result<Renewed> {
        let OpenLink { peer, record, base } = self.open_link(now, row)?;
        let life = Duration::from_millis(record.not_after.0.saturating_sub(record.not_before.0));
        Ok(Renewed { link: record.link, peer, base, life })
    }

    fn inspect(&self, now: UnixMillis, received: &ReceivedOffer, renewed: Option<&Renewed>) -> Result<Reply> {
        let opened = accept::open(&self.node(), self.receiving(), received, renewed, now)?;
        let record = match self.accepted_before(&opened)? {
            Some(record) => record,
            None => {
                self.check_unseen(&opened, now)?;
                record(&opened.header, opened.registered, Side::Acceptor, opened.token_id, now)
            }
        };
        Ok(Reply::OfferInspected(summary(&opened.issuer, &record)))
    }

    /// Takes an offer; one that was taken before gets the same receipt again (PROTOCOL 4).
    pub(super) fn accept_offer(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        received: &ReceivedOffer,
    ) -> Result<Reply> {
        self.accept(now, random, received, None)
    }

    /// The same of one that renews the link of a row, which lives on to its end.
    pub(super) fn accept_renewal(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        renewal: &ReceivedRenewal,
    ) -> Result<Reply> {
        let renewed = self.renewed(now, &renewal.row)?;
        self.accept(now, random, &renewal.received, Some(&renewed))
    }

    fn accept(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        received: &ReceivedOffer,
        renewed: Option<&Renewed>,
    ) -> Result<Reply> {
        let opened = accept::open(&self.node(), self.receiving(), received, renewed, now)?;
        let known = self.accepted_before(&opened)?;
        let is_new = known.is_none();
        let record =
            known.unwrap_or_else(|| record(&opened.header, opened.registered, Side::Acceptor, opened.token_id, now));
        let receipt = self.keyring.identity.sign_receipt(&Receipt {
            kind: ReceiptKind::Accepted,
            token_id: opened.token_id,
            issuer: opened.issuer,
            recipient: self.node(),
            at: record.decided_at,
        })?;
        let keys = self.request_keys(&opened.issuer, &record, &opened.base)?;
        let row = self.seal_token(&opened.issuer, &record, &opened.base, random)?;
        let summary = summary(&opened.issuer, &record);
        if is_new {
            self.check_unseen(&opened, now)?;
            let sequence = Some(opened.header.sequence);
            match renewed {
                Some(renewed) => self.state.add_renewal(&opened.issuer, record, sequence, &renewed.link, now)?,
                None => self.state.add_link(&opened.issuer, record, sequence, now)?,
            }
            self.forget_ended(&opened.issuer, now);
        }
        Ok(Reply::LinkAccepted { summary, row, receipt, keys })
    }

    pub(super) fn link_keys(&self, now: UnixMillis, row: &[u8]) -> Result<Reply> {
        let link = self.open_link(now, row)?;
        Ok(Reply::LinkKeys(self.request_keys(&link.peer, &link.record, &link.base)?))
    }

    pub(super) fn validate_match(
        &self,
        now: UnixMillis,
        row: &[u8],
        hash: &[u8; 32],
        proof: &[u8; 32],
    ) -> Result<Reply> {
        let link = self.open_link(now, row)?;
        Ok(Reply::MatchValidated { matched: match_proof_verifies(&link.base, &link.peer, hash, proof) })
    }

    /// Ends a link, also one that has expired: the clock may be set back, the word of the operator not.
    pub(super) fn revoke_link(&mut self, now: UnixMillis, link: LinkId) -> Result<Reply> {
        self.state.revoke_link(&link, now)?;
        self.handshakes.forget(link);
        Ok(Reply::Done)
    }

    /// Opens a row under what the state remembers of its link, and gives back the base.
    pub(super) fn open_link(&self, now: UnixMillis, row: &[u8]) -> Result<OpenLink> {
        let (peer, record) = self.state.link(&claimed_link(row)?, now)?;
        let token = open_row(&self.keyring.row, &self.binding(&peer, record), row)?;
        let base = self.transform(&peer, record)?.reconstruct(&token, record.side);
        Ok(OpenLink { peer, record: record.clone(), base })
    }

    /// The record of this very offer, when it was accepted before.
    fn accepted_before(&self, opened: &Opened) -> Result<Option<LinkRecord>> {
        let held = self.state.peer(&opened.issuer).map(|peer| peer.links.iter().flatten());
        let known = held.into_iter().flatten().find(|link| link.token_id == opened.token_id);
        match known {
            Some(link) if link.revoked => Err(Error::LocalLinkGone),
            known => Ok(known.cloned()),
        }
    }

    fn check_unseen(&self, opened: &Opened, now: UnixMillis) -> Result<()> {
        let heard = self.state.peer(&opened.issuer).map_or_else(Window::default, |peer| peer.heard);
        heard.check(opened.header.sequence, now)
    }

    /// Ends the half-open handshakes of links that an accepted offer has replaced.
    fn forget_ended(&mut self, peer: &NodeId, now: UnixMillis) {
        let links = self.state.peer(peer).map(|peer| peer.links.iter().flatten());
        let ended = links.into_iter().flatten().filter(|link| link.revoked || link.is_expired(now));
        for link in ended.map(|link| link.link).collect::<Vec<_>>() {
            self.handshakes.forget(link);
        }
    }

    fn seal_token(
        &self,
        peer: &NodeId,
        record: &LinkRecord,
        base: &Secret<32>,
        random: &mut impl CryptoRng,
    ) -> Result<Vec<u8>> {
        let token = self.transform(peer, record)?.token(base, record.side);
        seal_row(&self.keyring.row, &self.binding(peer, record), &token, random)
    }

    fn binding(&self, peer: &NodeId, record: &LinkRecord) -> RowBinding {
        RowBinding {
            node: self.node(),
            link: record.link,
            peer: *peer,
            version: record.row_version,
            epoch: self.state.node.sealing_epoch,
        }
    }

    fn transform(&self, peer: &NodeId, record: &LinkRecord) -> Result<Transform> {
        let (issuer, acceptor) = match record.side {
            Side::Issuer => (self.node(), *peer),
            Side::Acceptor => (*peer, self.node()),
        };
        match record.registered {
            Some(place) => {
                Transform::registered(&self.state.node.methods.at(place)?.vetted, &record.link, &issuer, &acceptor)
            }
            None => Transform::new(record.method, &record.link, &issuer, &acceptor),
        }
    }

    /// What an offer is opened with.
    const fn receiving(&self) -> (&Prekeys, &Methods) {
        (&self.state.node.prekeys, &self.state.node.methods)
    }

    /// The keys of one direction of a link.
    pub(super) fn direction_keys(
        &self,
        record: &LinkRecord,
        base: &Secret<32>,
        initiator: &NodeId,
        responder: &NodeId,
    ) -> Result<DirectionKeys> {
        let terms = LinkTerms { link: record.link, method: record.method, epoch: record.epoch };
        match record.registered {
            Some(place) => {
                let method = &self.state.node.methods.at(place)?.vetted;
                DirectionKeys::derive_registered(base, &terms, method, initiator, responder)
            }
            None => DirectionKeys::derive(base, &terms, initiator, responder),
        }
    }

    fn request_keys(&self, peer: &NodeId, record: &LinkRecord, base: &Secret<32>) -> Result<LinkKeys> {
        let outgoing = self.direction_keys(record, base, &self.node(), peer)?;
        let incoming = self.direction_keys(record, base, peer, &self.node())?;
        Ok(LinkKeys { outgoing: for_requests(outgoing), incoming: for_requests(incoming) })
    }
}

fn for_requests(keys: DirectionKeys) -> RequestKeys {
    RequestKeys { tag: keys.tag, mac1: keys.mac1 }
}

const fn record(
    header: &SealedHeader,
    registered: Option<Place>,
    side: Side,
    token_id: [u8; 32],
    now: UnixMillis,
) -> LinkRecord {
    LinkRecord {
        link: header.link_id,
        side,
        method: header.method,
        registered,
        epoch: header.epoch,
        not_before: header.not_before,
        not_after: header.not_after,
        row_version: FIRST_ROW,
        revoked: false,
        proven: false,
        timestamp_in: 0,
        timestamp_out: 0,
        timestamp_sent: 0,
        operations: 0,
        token_id,
        decided_at: now,
    }
}

fn summary(peer: &NodeId, record: &LinkRecord) -> LinkSummary {
    LinkSummary {
        link: record.link,
        peer: *peer,
        issuer: record.side == Side::Issuer,
        method: record.method,
        epoch: record.epoch,
        not_before: record.not_before,
        not_after: record.not_after,
        registered: record.registered,
    }
}
