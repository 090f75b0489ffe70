//! What the vault talks to: begin, answer, finish, complete, each one call that moves a machine in or out of its table.
//!
//! A machine is taken out before its message is looked at, so a second try on a failed or finished handshake finds nothing.
//! Made durable by the caller before the bytes leave: the timestamp sent (begin) and the timestamp accepted (answer).

use openred_proto::checked::session::Side;
use openred_proto::id::{HandshakeId, LinkId, UnixMillis};
use rand_core::CryptoRng;

use super::certificates::Certificates;
use super::concluded::{Concluded, Conclusions};
use super::half_open::{HalfOpen, Place};
use super::initiator::ExpectVerify;
use super::responder::ExpectFinalize;
use super::{Credentials, Established, Mode, Refusal};

/// Every handshake that waits for its next message.
pub(crate) struct Handshakes {
    started: HalfOpen<ExpectVerify>,
    answered: HalfOpen<ExpectFinalize>,
    certificates: Certificates,
    concluded: Conclusions,
}

/// A REQUEST as it came in.
pub(crate) struct Incoming<'a> {
    /// Its Noise message.
    pub(crate) message: &'a [u8],
    /// The greatest timestamp that this link accepted before; zero without a link.
    pub(crate) accepted: UnixMillis,
    /// Latest directory head that this node saw: 32 bytes, or empty.
    pub(crate) directory_head: &'a [u8],
}

/// An answered REQUEST.
#[derive(Debug)]
pub(crate) struct Answered {
    /// Names the handshake here, and goes to the peer.
    pub(crate) id: HandshakeId,
    /// VERIFY's Noise message.
    pub(crate) message: Vec<u8>,
    /// The greatest timestamp that this link has accepted, from now on.
    pub(crate) accepted: UnixMillis,
}

impl Handshakes {
    pub(crate) const fn new() -> Self {
        Self {
            started: HalfOpen::new(),
            answered: HalfOpen::new(),
            certificates: Certificates::new(),
            concluded: Conclusions::new(),
        }
    }

    /// Initiator: begins in `mode` with a `timestamp` of `max(now, last sent + 1)`; returns REQUEST's Noise message.
    ///
    /// # Errors
    /// [`Refusal::TooMany`].
    pub(crate) fn begin(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        timestamp: UnixMillis,
        mode: Mode,
        own: &Credentials<'_>,
    ) -> Result<(HandshakeId, Vec<u8>), Refusal> {
        let place = mode.place();
        let answered = self.answered.held(now, place);
        self.started.admit(now, place, answered)?;
        let id = draw_id(random);
        let (machine, message) = ExpectVerify::request(random, timestamp, mode, own)?;
        self.started.insert(now, place, id, machine)?;
        Ok((id, message))
    }

    /// Responder: reads REQUEST in `mode` and answers with VERIFY.
    ///
    /// # Errors
    /// Any [`Refusal`]; nothing is kept.
    pub(crate) fn answer(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        mode: Mode,
        own: &Credentials<'_>,
        request: &Incoming<'_>,
    ) -> Result<Answered, Refusal> {
        let place = mode.place();
        let started = self.started.held(now, place);
        self.answered.admit(now, place, started)?;
        let id = draw_id(random);
        let answer = ExpectFinalize::answer(random, mode, own, request)?;
        self.answered.insert(now, place, id, answer.machine)?;
        Ok(Answered { id, message: answer.message, accepted: answer.timestamp })
    }

    /// Initiator: reads VERIFY and answers with FINALIZE's Noise message.
    ///
    /// # Errors
    /// Any [`Refusal`]; the handshake is over.
    pub(crate) fn finish(
        &mut self,
        now: UnixMillis,
        id: HandshakeId,
        verify: &[u8],
        directory_head: &[u8],
    ) -> Result<(Vec<u8>, Established), Refusal> {
        let finished = self.started.take(now, id)?.verify(now, verify, directory_head, &mut self.certificates)?;
        self.conclude(now, id, Side::Initiator, &finished.1);
        Ok(finished)
    }

    /// Responder: reads FINALIZE.
    ///
    /// # Errors
    /// Any [`Refusal`]; the handshake is over.
    pub(crate) fn complete(
        &mut self,
        now: UnixMillis,
        id: HandshakeId,
        finalize: &[u8],
    ) -> Result<Established, Refusal> {
        let established = self.answered.take(now, id)?.finalize(now, finalize, &mut self.certificates)?;
        self.conclude(now, id, Side::Responder, &established);
        Ok(established)
    }

    fn conclude(&mut self, now: UnixMillis, id: HandshakeId, role: Side, established: &Established) {
        // Direct contact is never signed: only a link's sessions are.
        let Some((link, _)) = established.link else { return };
        let Established { peer, hash, .. } = *established;
        self.concluded.push(Concluded { id, link, since: now, peer, role, hash });
    }

    /// What may be signed of a handshake that ended; once.
    ///
    /// # Errors
    /// [`Refusal::NotWaiting`].
    pub(crate) fn take_concluded(&mut self, now: UnixMillis, id: HandshakeId) -> Result<Concluded, Refusal> {
        self.concluded.take(now, id)
    }

    /// Forgets one handshake, in either role.
    ///
    /// # Errors
    /// [`Refusal::NotWaiting`].
    pub(crate) fn abandon(&mut self, now: UnixMillis, id: HandshakeId) -> Result<(), Refusal> {
        let started = self.started.take(now, id).map(drop);
        let answered = self.answered.take(now, id).map(drop);
        started.or(answered)
    }

    /// Whether a handshake that waits is without a link.
    pub(crate) fn is_direct(&self, id: &HandshakeId) -> bool {
        self.started.place(id).or_else(|| self.answered.place(id)) == Some(Place::Direct)
    }

    /// Forgets every handshake of a link that was revoked or replaced.
    pub(crate) fn forget(&mut self, link: LinkId) {
        self.started.forget(link);
        self.answered.forget(link);
        self.concluded.forget(link);
    }

    /// Drops what is over its time; called on the vault's timer.
    pub(crate) fn expire(&mut self, now: UnixMillis) {
        self.started.expire(now);
        self.answered.expire(now);
        self.concluded.expire(now);
    }

    /// How many wait, in both roles.
    pub(crate) fn len(&self) -> usize {
        self.started.len() + self.answered.len()
    }
}

fn draw_id(random: &mut impl CryptoRng) -> HandshakeId {
    let mut bytes = [0; 16];
    random.fill_bytes(&mut bytes);
    HandshakeId::from_bytes(bytes)
}
