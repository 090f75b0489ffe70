//! What of a request goes into the audit trail, and the operator's requests about the trail itself.
//!
//! In: a request before it is served, its reply or refusal after. Out: one record for what gave a signature, a secret or a
//! change to somebody, or was refused; none for what only prepares it.

use openred_proto::audit::Event;
use openred_proto::checked::succession::{Step, Succession};
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::refusal::NO_MATCH;
use openred_proto::vault::{Refusal, Reply, Request, ShortKey};

use super::Unlocked;
use crate::audit::subject;
use crate::error::{Error, Result};

/// What a request is about, kept while it is served.
#[derive(Clone, Copy)]
pub(super) struct About {
    event: Event,
    /// Of a report: how many.
    count: u32,
    /// The peer, where the reply will not name it.
    peer: Option<NodeId>,
}

impl Unlocked {
    /// No wildcard arm: a new operation has to be placed here.
    pub(super) fn about(&self, request: &Request) -> About {
        let (mut count, mut peer) = (0, None);
        let event = match request {
            Request::Describe => Event::Described,
            Request::SignCard { .. } => Event::CardSigned,
            Request::SignHttp(_) => Event::HttpSigned,
            Request::IssueLink { .. } => Event::LinkIssued,
            Request::InspectOffer(_) => Event::OfferInspected,
            Request::AcceptOffer(_) => Event::LinkAccepted,
            Request::RenewLink { .. } => Event::RenewalIssued,
            Request::InspectRenewal(_) => Event::OfferInspected,
            Request::AcceptRenewal(_) => Event::RenewalAccepted,
            Request::ListLinks { .. } => Event::LinksListed,
            Request::LinkKeys { .. } => Event::LinkOpened,
            Request::RevokeLink { link } => {
                peer = self.state.peer_of(link);
                Event::LinkRevoked
            }
            Request::StartHandshake { .. } => Event::HandshakeBegun,
            Request::AnswerHandshake { .. } => Event::HandshakeAnswered,
            Request::FinishHandshake { handshake, .. } if self.handshakes.is_direct(handshake) => Event::DirectFinished,
            Request::FinishHandshake { .. } => Event::HandshakeFinished,
            Request::CompleteHandshake { handshake, .. } if self.handshakes.is_direct(handshake) => {
                Event::DirectCompleted
            }
            Request::CompleteHandshake { .. } => Event::HandshakeCompleted,
            Request::StartDirect { .. } => Event::DirectBegun,
            Request::AnswerDirect { .. } => Event::DirectAnswered,
            Request::AbandonHandshake { .. } => Event::HandshakeAbandoned,
            Request::SignSession { .. } => Event::SessionSigned,
            Request::ValidateMatch { .. } => Event::MatchChecked,
            Request::StoreKey { .. } => Event::StoreKeyGiven,
            Request::SealKey { .. } => Event::SealKeyGiven,
            Request::RegisterMethod { .. } => Event::MethodRegistered,
            Request::RetireMethod { .. } => Event::MethodRetired,
            Request::ListMethods => Event::MethodsListed,
            Request::SignModule { .. } => Event::ModuleSigned,
            Request::Report { event, count: several } | Request::Note { event, count: several } => {
                count = *several;
                Event::from_number(*event).unwrap_or(Event::Misbehaved)
            }
            Request::Rotate { what: ShortKey::Prekey } => Event::PrekeyMade,
            Request::Rotate { what: ShortKey::Statics } => Event::StaticsSigned,
            Request::AuditStatus | Request::AuditFiled { .. } | Request::AuditSubject { .. } | Request::Lock => {
                Event::Misbehaved
            }
        };
        About { event, count, peer }
    }

    /// Records what was done.
    ///
    /// # Errors
    /// [`Error::MisuseQuota`] for a report or note that had no place in the trail: it is not done then, and whoever made it keeps it.
    pub(super) fn record(&mut self, now: UnixMillis, about: About, reply: &Reply) -> Result<()> {
        let peer = match reply {
            // They give out nothing that was not given before, or are recorded with the phase that does.
            Reply::OfferInspected(_)
            | Reply::LinkKeys(_)
            | Reply::Links(_)
            | Reply::Methods(_)
            | Reply::HandshakeStarted { .. }
            | Reply::HandshakeAnswered { .. }
            | Reply::MatchValidated { matched: true } => return Ok(()),
            Reply::Done if about.event == Event::HandshakeAbandoned => return Ok(()),
            Reply::Done if about.event.is_of_node() || about.event.is_of_supervisor() => {
                let recorded = self.trail.record_reported(about.event, about.count, now);
                return if recorded { Ok(()) } else { Err(Error::MisuseQuota) };
            }
            Reply::MatchValidated { matched: false } => {
                self.trail.record_limited(about.event, NO_MATCH, 0, now);
                return Ok(());
            }
            Reply::LinkIssued { summary, .. } | Reply::LinkAccepted { summary, .. } => Some(summary.peer),
            Reply::HandshakeFinished { grant, .. } | Reply::HandshakeCompleted { grant } => Some(grant.peer),
            Reply::SessionSigned { peer, .. } => Some(*peer),
            _ => about.peer,
        };
        let subject = peer.map(|peer| subject(&self.keyring.audit, &peer));
        self.trail.record(about.event, about.count, subject, now);
        Ok(())
    }

    /// Records what the identity's key signed while no vault ran: each taking back of a word for a successor. Whether anything was
    /// recorded; what has no room waits for the next look. A crash between trail and state has it recorded twice.
    pub(super) fn tell_lineage(&mut self, now: UnixMillis) -> bool {
        let (before, own) = (self.state.node.told, self.keyring.identity.node_id());
        let is_owed = |word: &&Succession| (word.step, word.old) == (Step::TakeBack, own) && word.sequence > before;
        for word in self.keyring.lineage.steps().filter(is_owed) {
            if !self.trail.has_room() {
                break;
            }
            self.trail.record(Event::SuccessionTakenBack, 0, Some(subject(&self.keyring.audit, &word.new)), now);
            self.state.node.told = word.sequence;
        }
        self.state.node.told != before
    }

    /// Records that something was refused.
    pub(super) fn record_refusal(&mut self, now: UnixMillis, about: About, refused: Error) {
        self.trail.record_limited(about.event, Refusal::from(refused).number(), about.count, now);
    }

    /// Sees to it that the next request can be recorded.
    ///
    /// # Errors
    /// [`Error::LocalAuditFull`].
    pub(super) fn make_room(&mut self, now: UnixMillis) -> Result<()> {
        if self.trail.make_room(&self.keyring.identity, now)? {
            self.state.touch_node();
        }
        Ok(())
    }

    /// The operator's requests about the trail, which are served also when it is full; none for other requests.
    ///
    /// # Errors
    /// As [`Trail::filed`](crate::audit::Trail).
    pub(super) fn audit(&mut self, request: &Request) -> Result<Option<Reply>> {
        match request {
            Request::AuditStatus => Ok(Some(Reply::AuditStatus(self.trail.status()))),
            Request::AuditSubject { peer } => Ok(Some(Reply::AuditSubject(subject(&self.keyring.audit, peer)))),
            Request::AuditFiled { segment } => {
                self.trail.filed(*segment)?;
                self.state.touch_node();
                Ok(Some(Reply::Done))
            }
            _ => Ok(None),
        }
    }
}
