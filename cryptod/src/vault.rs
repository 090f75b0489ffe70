//! The vault: typed requests in, typed replies and state changes out; everything that a long-term key is used for.
//!
//! Sans-IO. Call contract: give each request to [`Vault::handle`] with the vault's own time and randomness and the role of the
//! descriptor it came on; keep the replies; ask [`Vault::commit`] for the writes when the ready frames are handled or
//! [`Vault::must_commit`] says so, make them durable, the audit trail's before the state's, and only then send the replies. When a
//! write fails, call [`Vault::lose`]: no key is used again. At the end call [`Vault::close`] and commit once more. Call [`Vault::handle_timeout`] now and then: half-open handshakes end and keys rotate.
//! The loop with its descriptors is `vault/serve`; what may be asked by whom is `vault/access`; what is done, the `_ops`.

use openred_proto::audit::Event;
use openred_proto::checked::module_word::ModuleWord;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::LINKS_PAGE;
use openred_proto::vault::{Frame, Refusal, Reply, Request, Role, decode_frame};
use rand_core::CryptoRng;

use crate::audit::{Trail, TrailWrite};
use crate::error::{Error, Result};
use crate::handshake::Handshakes;
use crate::keyring::Keyring;
use crate::state::State;
use crate::state::image::StateWrite;
use crate::statics::Statics;

mod access;
mod audit_ops;
mod channel;
mod direct_ops;
mod handshake_ops;
mod link_ops;
mod method_ops;
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
    /// Locked or stopped: the trail has its end, and no key is used any more.
    closed: bool,
}

/// Everything that is gone once the vault is locked.
struct Unlocked {
    keyring: Keyring,
    state: State,
    statics: Statics,
    handshakes: Handshakes,
    trail: Trail,
}

/// What makes every change so far durable.
#[derive(Debug, Default)]
pub struct Changes {
    /// First, each file with one fdatasync.
    pub trail: Vec<TrailWrite>,
    /// Then these, with another.
    pub state: Vec<StateWrite>,
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
    /// Opens the vault on its secrets, its loaded state and its trail; makes the keys that are missing or over their time.
    ///
    /// # Errors
    /// [`Error::Bug`] when a key cannot be made.
    pub fn open(
        keyring: Keyring,
        state: State,
        trail: Trail,
        rates: &Rates,
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<Self> {
        let node = keyring.identity.node_id();
        let (statics, handshakes) = (Statics::default(), Handshakes::new());
        let mut unlocked = Box::new(Unlocked { keyring, state, statics, handshakes, trail });
        // What the start found and began is the state's to remember.
        unlocked.state.touch_node();
        unlocked.maintain(now, random)?;
        Ok(Self { unlocked: Some(unlocked), node, quotas: Quotas::new(rates, now), operations: 0, closed: false })
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
                self.malformed(now);
                let reply = Frame { id: 0, body: Reply::Refused(Refusal::Malformed) };
                Outcome { reply, hang_up: true, ended: false }
            }
        }
    }

    /// Records a frame that is no request, for whoever decodes frames himself.
    pub fn malformed(&mut self, now: UnixMillis) {
        self.misbehaved(now, Refusal::Malformed);
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
            self.misbehaved(now, Refusal::NotAllowed);
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
            self.close(now, Event::Locked);
            return Ok(Reply::Done);
        }
        let operations = self.operations;
        let unlocked = self.unlocked.as_mut().filter(|_| !self.closed).ok_or(Error::LocalStateUnreadable)?;
        if unlocked.state.is_full_of_changes() {
            return Err(Error::Bug("a commit is overdue"));
        }
        let about = unlocked.about(&request);
        if let Err(refused) = self.quotas.take(class, now) {
            unlocked.record_refusal(now, about, refused);
            return Err(refused);
        }
        if matches!(request, Request::Describe) {
            return unlocked.describe(operations, now);
        }
        if let Some(reply) = unlocked.audit(&request)? {
            return Ok(reply);
        }
        if let Err(full) = unlocked.make_room(now) {
            // Counted, until there is room to say so; but not what is reported, which is said again.
            if !matches!(request, Request::Report { .. } | Request::Note { .. }) {
                unlocked.record_refusal(now, about, full);
            }
            return Err(full);
        }
        unlocked.maintain(now, random)?;
        self.operations += 1;
        match unlocked.serve(now, random, request) {
            Ok(reply) => unlocked.record(now, about, &reply).map(|()| reply),
            Err(refused) => {
                unlocked.record_refusal(now, about, refused);
                Err(refused)
            }
        }
    }

    /// The writes that make every change so far durable.
    ///
    /// # Errors
    /// [`Error::Bug`], as [`State::commit`]; [`Vault::lose`] is to follow.
    pub fn commit(&mut self, random: &mut impl CryptoRng) -> Result<Changes> {
        let Some(unlocked) = self.unlocked.as_mut() else { return Ok(Changes::default()) };
        let trail = unlocked.trail.commit();
        // The state remembers a place only once everything up to it was written before.
        unlocked.state.node.audit = unlocked.trail.head();
        let state = unlocked.state.commit(&unlocked.keyring.state, random)?;
        Ok(Changes { trail, state })
    }

    /// Whether the next request has to wait for a commit.
    #[must_use]
    pub fn must_commit(&self) -> bool {
        self.unlocked.as_ref().is_some_and(|unlocked| unlocked.state.must_commit() || unlocked.trail.must_commit())
    }

    /// Ends half-open handshakes that are over their time and rotates keys; for the loop's timer.
    ///
    /// # Errors
    /// [`Error::Bug`] when a key cannot be made.
    pub fn handle_timeout(&mut self, now: UnixMillis, random: &mut impl CryptoRng) -> Result<()> {
        match self.unlocked.as_mut().filter(|_| !self.closed) {
            Some(unlocked) => {
                unlocked.handshakes.expire(now);
                unlocked.state.settle();
                match unlocked.make_room(now) {
                    // Keys that are due are made when they are asked for; without room for the record nobody can ask.
                    Err(Error::LocalAuditFull) => Ok(()),
                    made => made.and_then(|()| unlocked.maintain(now, random)),
                }
            }
            None => Ok(()),
        }
    }

    /// Signs the trail's end, `Locked` or `Stopped`; the commit after it is the last, and [`Vault::lose`] follows.
    pub fn close(&mut self, now: UnixMillis, event: Event) {
        if let Some(unlocked) = self.unlocked.as_mut() {
            unlocked.trail.end(event, &unlocked.keyring.identity, now);
            unlocked.state.touch_node();
        }
        self.closed = true;
    }

    fn misbehaved(&mut self, now: UnixMillis, refusal: Refusal) {
        if let Some(unlocked) = self.unlocked.as_mut() {
            unlocked.trail.record_limited(Event::Misbehaved, refusal.number(), 0, now);
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
        if rotated {
            self.trail.record(Event::PrekeyMade, 0, None, now);
        }
        if signed {
            self.trail.record(Event::StaticsSigned, 0, None, now);
        }
        let told = self.tell_lineage(now);
        // A checkpoint asks for the state's word as well, so that what it covers cannot be cut off unnoticed.
        if self.trail.maintain(&self.keyring.identity, now) || rotated || signed || told {
            self.state.touch_node();
        }
        Ok(())
    }

    /// One call an arm.
    fn serve(&mut self, now: UnixMillis, random: &mut impl CryptoRng, request: Request) -> Result<Reply> {
        match request {
            Request::Describe
            | Request::Lock
            | Request::AuditStatus
            | Request::AuditFiled { .. }
            | Request::AuditSubject { .. } => Err(Error::Bug("served before this")),
            // Recorded after this, like everything else.
            Request::Report { event, .. } => reported(event, Event::is_of_node),
            Request::Note { event, .. } => reported(event, Event::is_of_supervisor),
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
            Request::RenewLink { row, card, directory, allowed, schedule, life } => {
                let renewal = link_ops::Renewal { row: &row, card: &card, directory, allowed, schedule, life };
                self.renew_link(now, random, &renewal)
            }
            Request::InspectRenewal(renewal) => self.inspect_renewal(now, &renewal),
            Request::AcceptRenewal(renewal) => self.accept_renewal(now, random, &renewal),
            Request::ListLinks { after } => Ok(Reply::Links(self.state.issued_after(&after, LINKS_PAGE))),
            Request::StartHandshake { row } => self.start_handshake(now, random, &row),
            Request::AnswerHandshake { row, noise, directory_head } => {
                self.answer_handshake(now, random, &row, &noise, &directory_head)
            }
            Request::FinishHandshake { handshake, noise, directory_head } => {
                self.finish_handshake(now, handshake, &noise, &directory_head)
            }
            Request::CompleteHandshake { handshake, noise } => self.complete_handshake(now, handshake, &noise),
            Request::AbandonHandshake { handshake } => self.abandon_handshake(now, handshake),
            Request::SignSession { handshake } => self.sign_session(now, handshake),
            Request::StartDirect { method, peer } => self.start_direct(now, random, method, peer),
            Request::AnswerDirect { method, noise, directory_head } => {
                self.answer_direct(now, random, method, &noise, &directory_head)
            }
            Request::ValidateMatch { row, hash, proof } => self.validate_match(now, &row, &hash, &proof),
            Request::StoreKey { purpose } => self.store_key(&purpose),
            Request::Rotate { what } => self.rotate(now, random, what),
            Request::RegisterMethod { module, description } => self.register_method(now, &module, description),
            Request::RetireMethod { method } => self.retire_method(&method),
            Request::ListMethods => Ok(self.list_methods()),
            Request::SignModule { module, domain, digest, length } => {
                self.sign_module(&ModuleWord { module, domain, digest, length, at: now })
            }
            Request::SealKey { module } => self.seal_key(&module),
        }
    }
}

/// Whether there is such an event, and the caller's to report.
fn reported(event: u16, is_its: fn(Event) -> bool) -> Result<Reply> {
    match Event::from_number(event).filter(|event| is_its(*event)) {
        Some(_) => Ok(Reply::Done),
        None => Err(Error::MisuseNotAllowed),
    }
}

#[cfg(test)]
mod tests;
