//! Operations of the handshake: what the machines in `handshake` need from keys and state, and what the state remembers of
//! them (PROTOCOL 5): the REQUEST timestamps sent and accepted, both durable before a byte leaves, the sent ones as what is reserved.

use openred_proto::checked::session_proof::SessionWord;
use openred_proto::id::{HandshakeId, NodeId, UnixMillis};
use openred_proto::method::Method;
use openred_proto::vault::{Capacity, Reply, SessionGrant};
use rand_core::CryptoRng;

use super::Unlocked;
use super::link_ops::OpenLink;
use crate::error::{Error, Result};
use crate::handshake::{Answered, Credentials, Established, Incoming, Linked, Mode, Refusal};
use crate::link::derive::match_proof;

/// Bytes of a directory head, where there is one.
const HEAD_BYTES: usize = 32;

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(error) => Error::PeerStatement(error),
            Refusal::Replayed => Error::PeerReplay,
            Refusal::NotWaiting => Error::MisuseHandshakeGone,
            Refusal::TooMany => Error::LocalFull(Capacity::HalfOpen),
            Refusal::NotAuthentic
            | Refusal::BadKemKey
            | Refusal::WrongPeer
            | Refusal::WrongSuite
            | Refusal::WrongKey => Error::PeerHandshake,
        }
    }
}

impl Unlocked {
    pub(super) fn start_handshake(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        row: &[u8],
    ) -> Result<Reply> {
        let link = self.open_link(now, row)?;
        let (id, method) = (link.record.link, link.record.method);
        // max(now, last sent + 1): rises even when the clock does not.
        let timestamp = UnixMillis(now.0.max(link.record.timestamp_sent.saturating_add(1)));
        let (node, peer) = (self.keyring.identity.node_id(), link.peer);
        let linked = self.linked(link, node, peer)?;
        let own = credentials(&self.statics, &self.state, method)?;
        let (handshake, noise) = self.handshakes.begin(now, random, timestamp, linked, &own)?;
        self.state.take_timestamp(&id, now, timestamp)?;
        Ok(Reply::HandshakeStarted { handshake, noise })
    }

    pub(super) fn answer_handshake(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        row: &[u8],
        noise: &[u8],
        directory_head: &[u8],
    ) -> Result<Reply> {
        check_head(directory_head)?;
        let link = self.open_link(now, row)?;
        let (id, method) = (link.record.link, link.record.method);
        let incoming = Incoming { message: noise, accepted: UnixMillis(link.record.timestamp_in), directory_head };
        let (node, peer) = (self.keyring.identity.node_id(), link.peer);
        let linked = self.linked(link, peer, node)?;
        let own = credentials(&self.statics, &self.state, method)?;
        let Answered { id: handshake, message: noise, accepted } =
            self.handshakes.answer(now, random, linked, &own, &incoming)?;
        self.state.change_link(&id, now, |record| {
            record.timestamp_in = accepted.0;
        })?;
        Ok(Reply::HandshakeAnswered { handshake, noise })
    }

    fn linked(&self, link: OpenLink, initiator: NodeId, responder: NodeId) -> Result<Mode> {
        let OpenLink { record, base, .. } = link;
        let psk = self.direction_keys(&record, &base, &initiator, &responder)?.psk;
        let registered = match record.registered {
            Some(place) => Some(self.state.node.methods.at(place)?.vetted.id),
            None => None,
        };
        let (link_id, method, epoch) = (record.link, record.method, record.epoch);
        Ok(Mode::Linked(Linked { link_id, method, registered, epoch, initiator, responder, psk, base }))
    }

    pub(super) fn finish_handshake(
        &mut self,
        now: UnixMillis,
        handshake: HandshakeId,
        noise: &[u8],
        directory_head: &[u8],
    ) -> Result<Reply> {
        check_head(directory_head)?;
        let (noise, established) = self.handshakes.finish(now, handshake, noise, directory_head)?;
        Ok(Reply::HandshakeFinished { noise, grant: self.grant(now, established)? })
    }

    pub(super) fn complete_handshake(
        &mut self,
        now: UnixMillis,
        handshake: HandshakeId,
        noise: &[u8],
    ) -> Result<Reply> {
        let established = self.handshakes.complete(now, handshake, noise)?;
        Ok(Reply::HandshakeCompleted { grant: self.grant(now, established)? })
    }

    pub(super) fn sign_session(&mut self, now: UnixMillis, handshake: HandshakeId) -> Result<Reply> {
        let concluded = self.handshakes.take_concluded(now, handshake)?;
        let word = SessionWord { role: concluded.role, hash: concluded.hash };
        Ok(Reply::SessionSigned { peer: concluded.peer, statement: self.keyring.identity.sign_session(&word) })
    }

    pub(super) fn abandon_handshake(&mut self, now: UnixMillis, handshake: HandshakeId) -> Result<Reply> {
        self.handshakes.abandon(now, handshake)?;
        Ok(Reply::Done)
    }

    /// What `noded` gets of a finished handshake; none when the link ended in the meantime, or there is one where none may be.
    fn grant(&mut self, now: UnixMillis, established: Established) -> Result<SessionGrant> {
        let (link, match_proof) = match &established.link {
            Some((link, base)) => {
                // Nothing here has to survive a crash: the timestamps, which do, were durable before.
                self.state.note_link(link, now, |record| {
                    record.proven = true;
                    record.operations = record.operations.saturating_add(1);
                })?;
                (Some(*link), match_proof(base, &self.keyring.identity.node_id(), &established.hash))
            }
            None => {
                // The responder learns only now who it is; at the initiator a link may have come about meanwhile.
                self.check_not_linked(now, &established.peer)?;
                (None, [0; 32])
            }
        };
        Ok(SessionGrant {
            link,
            peer: established.peer,
            method: established.method,
            match_proof,
            send: established.send,
            receive: established.receive,
            hash: established.hash,
            mutual_link: established.mutual_link,
            peer_card_sequence: established.peer_card_sequence,
            peer_directory_head: established.peer_directory_head,
        })
    }
}

pub(super) fn credentials<'a>(
    statics: &'a crate::statics::Statics,
    state: &'a crate::state::State,
    method: Method,
) -> Result<Credentials<'a>> {
    let certified = statics.certified(&state.node.statics, method)?;
    Ok(Credentials {
        static_secret: certified.secret,
        certificate: certified.certificate,
        card_sequence: state.node.card_sequence,
    })
}

pub(super) const fn check_head(head: &[u8]) -> Result<()> {
    if matches!(head.len(), 0 | HEAD_BYTES) { Ok(()) } else { Err(Error::MisuseNotAllowed) }
}
