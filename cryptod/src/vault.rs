//! The vault: typed requests in, typed replies and state changes out; everything that a long-term key is used for.
//!
//! Sans-IO. Call contract: give each request to [`Vault::handle`] with the vault's own time and randomness and the role of the
//! descriptor it came on; keep the replies; ask [`Vault::commit`] for the writes when the ready frames are handled or
//! [`Vault::must_commit`] says so, make them durable, and only then send the replies. When a write fails, call
//! [`Vault::lose`]: no key is used again. Call [`Vault::handle_timeout`] now and then: half-open handshakes end and keys rotate.
//! The loop with its descriptors is `vault/serve`; what may be asked by whom is `vault/access`; what is done, the `_ops`.

use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::vault::{Frame, Refusal, Reply, Request, Role, decode_frame};
use rand_core::CryptoRng;

use crate::error::{Error, Result};
use crate::handshake::Handshakes;
use crate::keyring::Keyring;
use crate::state::State;
use crate::state::image::StateWrite;
use crate::statics::Statics;

mod access;
mod channel;
mod handshake_ops;
mod link_ops;
mod node_ops;
pub mod quota;
pub mod serve;
pub mod start;

use access::Class;
use quota::{Quotas, Rates};

/// The vault of one node.
pub struct Vault {
    // Boxed so that locking drops it from one place.
    unlocked: Option<Box<Unlocked>>,
    node: NodeId,
    quotas: Quotas,
    operations: u64,
}

/// Everything that is gone once the vault is locked.
struct Unlocked {
    keyring: Keyring,
    state: State,
    statics: Statics,
    handshakes: Handshakes,
}

/// What came of one frame.
#[derive(Debug)]
pub struct Outcome {
    /// To be sent once everything before it is durable.
    pub reply: Frame<Reply>,
    /// The caller misbehaved: its connection is to be closed after the reply.
    pub hang_up: bool,
    /// The vault was locked by this request: reply, then end.
    pub ended: bool,
}

impl Vault {
    /// Opens the vault on its secrets and its loaded state; makes the keys that are missing or over their time.
    ///
    /// # Errors
    /// [`Error::Bug`] when a key cannot be made.
    pub fn open(
        keyring: Keyring,
        state: State,
        rates: &Rates,
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<Self> {
        let node = keyring.identity.node_id();
        let (statics, handshakes) = (Statics::default(), Handshakes::new());
        let mut unlocked = Box::new(Unlocked { keyring, state, statics, handshakes });
        unlocked.maintain(now, random)?;
        Ok(Self { unlocked: Some(unlocked), node, quotas: Quotas::new(rates, now), operations: 0 })
    }

    /// This node.
    #[must_use]
    pub const fn node_id(&self) -> NodeId {
        self.node
    }

    /// Decodes one frame's body and handles it. A frame that is no request changes nothing here and ends its caller's
    /// connection; in service that ends the loop too, because callers come only with a new vault (docs/decisions/0010).
    pub fn handle_frame(&mut self, now: UnixMillis, random: &mut impl CryptoRng, role: Role, body: &[u8]) -> Outcome {
        match decode_frame::<Request>(body) {
            Ok(frame) => self.handle(now, random, role, frame),
            Err(_) => {
                let reply = Frame { id: 0, body: Reply::Refused(Refusal::Malformed) };
                Outcome { reply, hang_up: true, ended: false }
            }
        }
    }

    /// Handles one request of `role`.
    pub fn handle(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        role: Role,
        request: Frame<Request>,
    ) -> Outcome {
        let id = request.id;
        let class = Class::of(&request.body);
        // SANDBOX: the role is the descriptor; who asks for what is not his is not served again.
        if !class.is_for(role) {
            let reply = Frame { id, body: Reply::Refused(Refusal::NotAllowed) };
            return Outcome { reply, hang_up: true, ended: false };
        }
        let ended = matches!(request.body, Request::Lock);
        let body = match self.serve(now, random, class, request.body) {
            Ok(reply) => reply,
            Err(error) => Reply::Refused(error.into()),
        };
        Outcome { reply: Frame { id, body }, hang_up: false, ended }
    }

    fn serve(&mut self, now: UnixMillis, random: &mut impl CryptoRng, class: Class, request: Request) -> Result<Reply> {
        if matches!(request, Request::Lock) {
            self.lose();
            return Ok(Reply::Done);
        }
        let operations = self.operations;
        let unlocked = self.unlocked.as_mut().ok_or(Error::LocalStateUnreadable)?;
        if unlocked.state.is_full_of_changes() {
            return Err(Error::Bug("a commit is overdue"));
        }
        self.quotas.take(class, now)?;
        unlocked.maintain(now, random)?;
        if matches!(request, Request::Describe) {
            return unlocked.describe(operations, now);
        }
        self.operations += 1;
        unlocked.serve(now, random, request)
    }

    /// The writes that make every change so far durable.
    ///
    /// # Errors
    /// [`Error::Bug`], as [`State::commit`]; [`Vault::lose`] is to follow.
    pub fn commit(&mut self, random: &mut impl CryptoRng) -> Result<Vec<StateWrite>> {
        match self.unlocked.as_mut() {
            Some(unlocked) => unlocked.state.commit(&unlocked.keyring.state, random),
            None => Ok(Vec::new()),
        }
    }

    /// Whether the next request has to wait for a commit.
    #[must_use]
    pub fn must_commit(&self) -> bool {
        self.unlocked.as_ref().is_some_and(|unlocked| unlocked.state.must_commit())
    }

    /// Ends half-open handshakes that are over their time and rotates keys; for the loop's timer.
    ///
    /// # Errors
    /// [`Error::Bug`] when a key cannot be made.
    pub fn handle_timeout(&mut self, now: UnixMillis, random: &mut impl CryptoRng) -> Result<()> {
        match self.unlocked.as_mut() {
            Some(unlocked) => {
                unlocked.handshakes.expire(now);
                unlocked.state.settle();
                unlocked.maintain(now, random)
            }
            None => Ok(()),
        }
    }

    /// Drops every key, for good: the operator locked the vault, or its state could not be made durable.
    pub fn lose(&mut self) {
        self.unlocked = None;
    }
}

impl Unlocked {
    /// Rotates the prekey, makes static keys and signs their certificates, as far as any of it is due.
    fn maintain(&mut self, now: UnixMillis, random: &mut impl CryptoRng) -> Result<()> {
        let node = &mut self.state.node;
        let rotated = node.prekeys.rotate(now, random)?;
        let signed = self.statics.refresh(&mut node.statics, &self.keyring.identity, now, random)?;
        if rotated || signed {
            self.state.touch_node();
        }
        Ok(())
    }

    /// One call an arm.
    fn serve(&mut self, now: UnixMillis, random: &mut impl CryptoRng, request: Request) -> Result<Reply> {
        match request {
            Request::Describe | Request::Lock => Err(Error::Bug("served before this")),
            Request::SignCard { fields, suites, life } => self.sign_card(now, fields, suites, life),
            Request::SignHttp(input) => self.sign_http(now, &input),
            Request::IssueLink { peer, card, directory, allowed, schedule, life } => {
                let card = card.as_slice();
                let terms = crate::link::issue::IssueTerms { peer, card, directory, allowed, schedule, life };
                self.issue_link(now, random, &terms)
            }
            Request::InspectOffer(offer) => self.inspect_offer(now, &offer),
            Request::AcceptOffer(offer) => self.accept_offer(now, random, &offer),
            Request::LinkKeys { row } => self.link_keys(now, &row),
            Request::RevokeLink { link } => self.revoke_link(now, link),
            Request::StartHandshake { row } => self.start_handshake(now, random, &row),
            Request::AnswerHandshake { row, noise, directory_head } => {
                self.answer_handshake(now, random, &row, &noise, &directory_head)
            }
            Request::FinishHandshake { handshake, noise, directory_head } => {
                self.finish_handshake(now, handshake, &noise, &directory_head)
            }
            Request::CompleteHandshake { handshake, noise } => self.complete_handshake(now, handshake, &noise),
            Request::AbandonHandshake { handshake } => self.abandon_handshake(now, handshake),
            Request::ValidateMatch { row, hash, proof } => self.validate_match(now, &row, &hash, &proof),
            Request::StoreKey { purpose } => self.store_key(&purpose),
            Request::Rotate { what } => self.rotate(now, random, what),
        }
    }
}

#[cfg(test)]
mod tests;
