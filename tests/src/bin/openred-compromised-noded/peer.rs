//! A peer that plays along: a whole vault inside the attacker, with keys of its own, so that links and handshakes are real.

use anyhow::{Context, Result, bail};
use ed25519_dalek::SigningKey;
use openred_cryptod::audit::Trail;
use openred_cryptod::keyring::{Keyring, SECRETS_BYTES};
use openred_cryptod::state::State;
use openred_cryptod::vault::Vault;
use openred_cryptod::vault::quota::Rates;
use openred_cryptod::vault::serve::{clock, generator};
use openred_proto::checked::card::CardFields;
use openred_proto::id::{HandshakeId, NodeId};
use openred_proto::limits::{CARD_LIFE, LINK_LIFE};
use openred_proto::method::{MethodSet, Schedule};
use openred_proto::vault::{Frame, Reply, Request, Role, SessionGrant};
use rand_chacha::ChaCha20Rng;

/// The directory that all offers of this program name; nobody is there.
pub(crate) const DIRECTORY: NodeId = NodeId::from_bytes([4; 32]);

/// A node of the attacker's.
pub(crate) struct Peer {
    vault: Vault,
    random: ChaCha20Rng,
    pub(crate) id: NodeId,
    /// What its keys are derived from.
    pub(crate) root: [u8; 32],
    /// Its identity, for what its vault would not sign.
    pub(crate) key: SigningKey,
}

impl Peer {
    pub(crate) fn new() -> Result<Self> {
        let mut secrets = [0; SECRETS_BYTES];
        getrandom::fill(&mut secrets).ok().context("randomness")?;
        let root = std::array::from_fn(|place| secrets[place + 32]);
        let key = SigningKey::from_bytes(&std::array::from_fn(|place| secrets[place]));
        let (mut random, now) = (generator()?, clock());
        let keyring = Keyring::from_secrets(&mut secrets);
        let trail = Trail::fresh(keyring.identity(), now)?;
        let vault = Vault::open(keyring, State::new(), trail, &Rates::default(), now, &mut random)?;
        let id = vault.node_id();
        Ok(Self { vault, random, id, root, key })
    }

    pub(crate) fn ask(&mut self, body: Request) -> Result<Reply> {
        let outcome = self.vault.handle(clock(), &mut self.random, Role::Node, Frame { id: 1, body });
        self.vault.commit(&mut self.random)?;
        Ok(outcome.reply.body)
    }

    /// Its card.
    pub(crate) fn card(&mut self) -> Result<Vec<u8>> {
        let (fields, suites) = (CardFields::default(), MethodSet::ALL);
        match self.ask(Request::SignCard { fields, suites, life: CARD_LIFE })? {
            Reply::Card { statement, .. } => Ok(statement),
            other => bail!("a peer's card: {other:?}"),
        }
    }

    /// An offer to the node whose card this is: its own row, and the offer.
    pub(crate) fn offer(&mut self, to: NodeId, card: Vec<u8>) -> Result<(Vec<u8>, Vec<u8>)> {
        let (allowed, schedule) = (MethodSet::ALL, Schedule::Hourly);
        let terms = Request::IssueLink { peer: to, card, directory: DIRECTORY, allowed, schedule, life: LINK_LIFE };
        match self.ask(terms)? {
            Reply::LinkIssued { row, offer, .. } => Ok((row, offer)),
            other => bail!("a peer's offer: {other:?}"),
        }
    }

    /// REQUEST.
    pub(crate) fn start(&mut self, row: &[u8]) -> Result<(HandshakeId, Vec<u8>)> {
        match self.ask(Request::StartHandshake { row: row.to_vec() })? {
            Reply::HandshakeStarted { handshake, noise } => Ok((handshake, noise)),
            other => bail!("a peer's REQUEST: {other:?}"),
        }
    }

    /// VERIFY.
    pub(crate) fn answer(&mut self, row: &[u8], noise: Vec<u8>) -> Result<(HandshakeId, Vec<u8>)> {
        let request = Request::AnswerHandshake { row: row.to_vec(), noise, directory_head: Vec::new() };
        match self.ask(request)? {
            Reply::HandshakeAnswered { handshake, noise } => Ok((handshake, noise)),
            other => bail!("a peer's VERIFY: {other:?}"),
        }
    }

    /// FINALIZE.
    pub(crate) fn finish(&mut self, handshake: HandshakeId, noise: Vec<u8>) -> Result<(Vec<u8>, SessionGrant)> {
        match self.ask(Request::FinishHandshake { handshake, noise, directory_head: Vec::new() })? {
            Reply::HandshakeFinished { noise, grant } => Ok((noise, grant)),
            other => bail!("a peer's FINALIZE: {other:?}"),
        }
    }

    /// Takes FINALIZE.
    pub(crate) fn complete(&mut self, handshake: HandshakeId, noise: Vec<u8>) -> Result<SessionGrant> {
        match self.ask(Request::CompleteHandshake { handshake, noise })? {
            Reply::HandshakeCompleted { grant } => Ok(grant),
            other => bail!("a peer's end of a handshake: {other:?}"),
        }
    }
}
