//! Two vaults against each other through the same frames as in service, and everything that one caller may not do.
#![allow(clippy::unwrap_used, reason = "tests")]

mod access;
mod audit;
mod direct;
mod links;
mod methods;
mod renewals;
mod sessions;

use std::time::Duration;

use openred_proto::checked::card::CardFields;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::NodeId;
use openred_proto::method::{MethodSet, Schedule};
use openred_proto::secret::Secret;
use openred_proto::vault::{LinkKeys, LinkSummary, ReceivedOffer, ReceivedRenewal, SessionGrant};
use rand_chacha::ChaCha20Rng;

use super::*;
use crate::audit::open::{Opening, Read};
use crate::testing::{NOW, random};

const DIRECTORY: NodeId = NodeId::from_bytes([0xd1; 32]);
const DAY: Duration = Duration::from_secs(86_400);

/// A vault with its file, its clock and its generator.
struct Node {
    vault: Vault,
    random: ChaCha20Rng,
    now: UnixMillis,
    file: Vec<u8>,
    trail: [Vec<u8>; 2],
    seed: u8,
}

impl Node {
    fn new(seed: u8) -> Self {
        Self::on_file(seed, Vec::new(), Default::default(), NOW)
    }

    fn on_file(seed: u8, file: Vec<u8>, trail: [Vec<u8>; 2], now: UnixMillis) -> Self {
        Self::of(Keyring::from_secrets(&mut [seed; 64]), seed, file, trail, now)
    }

    fn of(keyring: Keyring, seed: u8, file: Vec<u8>, trail: [Vec<u8>; 2], now: UnixMillis) -> Self {
        let mut random = random(u64::from(seed) + now.0 + file.len() as u64);
        let read = |file: &Vec<u8>, offset: u64, buffer: &mut [u8]| {
            let have = file.get(offset as usize..).unwrap_or(&[]);
            let length = have.len().min(buffer.len());
            buffer.fill(0);
            buffer[..length].copy_from_slice(&have[..length]);
            Ok(())
        };
        let state = State::load(&keyring.state, &mut |offset, buffer| read(&file, offset, buffer)).unwrap();
        let opening = Opening {
            identity: &keyring.identity,
            head: state.node.audit,
            anew: false,
            earlier: &[],
            taken: None,
            now,
        };
        let read_trail: Read<'_> = &mut |which, offset, buffer| read(&trail[which], offset, buffer);
        let opened = Trail::open(opening, read_trail).unwrap();
        let vault = Vault::open(keyring, state, opened, &Rates::default(), now, &mut random).unwrap();
        let mut node = Self { vault, random, now, file, trail, seed };
        node.commit();
        node
    }

    /// What a restart leaves: the file alone.
    fn restart(self) -> Self {
        Self::on_file(self.seed, self.file, self.trail, self.now)
    }

    fn id(&self) -> NodeId {
        self.vault.node_id()
    }

    fn commit(&mut self) {
        let changes = self.vault.commit(&mut self.random).unwrap();
        for write in changes.trail {
            lay(&mut self.trail[write.file], write.offset, &write.bytes);
        }
        for write in changes.state {
            lay(&mut self.file, write.offset, &write.bytes);
        }
    }

    /// Asks as `noded` would, and makes it durable as the loop would.
    fn ask(&mut self, body: Request) -> Reply {
        let outcome = self.vault.handle(self.now, &mut self.random, Role::Node, Frame { id: 7, body });
        assert_eq!(outcome.reply.id, 7);
        self.commit();
        outcome.reply.body
    }

    fn refusal(&mut self, body: Request) -> Refusal {
        match self.ask(body) {
            Reply::Refused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn card(&mut self) -> Vec<u8> {
        let fields = CardFields { endpoints: vec!["http://127.0.0.1:4000".into()], ..CardFields::default() };
        match self.ask(Request::SignCard { fields, suites: MethodSet::ALL, life: DAY }) {
            Reply::Card { statement, .. } => statement,
            other => panic!("{other:?}"),
        }
    }

    fn operations(&mut self) -> u64 {
        match self.ask(Request::Describe) {
            Reply::Described { operations, .. } => operations,
            other => panic!("{other:?}"),
        }
    }

    fn issue(&mut self, peer: NodeId, card: Vec<u8>, allowed: MethodSet) -> Link {
        let (directory, schedule, life) = (DIRECTORY, Schedule::Hourly, DAY);
        match self.ask(Request::IssueLink { peer, card, directory, allowed, schedule, life }) {
            Reply::LinkIssued { summary, row, offer, keys } => Link { summary, row, keys, bytes: offer },
            other => panic!("{other:?}"),
        }
    }

    fn accept(&mut self, offer: ReceivedOffer) -> Link {
        match self.ask(Request::AcceptOffer(offer)) {
            Reply::LinkAccepted { summary, row, receipt, keys } => Link { summary, row, keys, bytes: receipt },
            other => panic!("{other:?}"),
        }
    }
}

/// A request to a directory that `node` may have signed.
fn sign_http(node: NodeId) -> Request {
    Request::SignHttp(SignatureInput {
        method: "GET".into(),
        target_uri: "https://directory.example/".into(),
        content_sha256: [0; 32],
        created: NOW.seconds(),
        nonce: [0; 16],
        key_id: node,
    })
}

fn lay(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = offset as usize;
    file.resize(file.len().max(start + bytes.len()), 0);
    file[start..start + bytes.len()].copy_from_slice(bytes);
}

/// One side's half of a link; `bytes` is the offer or the receipt.
struct Link {
    summary: LinkSummary,
    row: Vec<u8>,
    keys: LinkKeys,
    bytes: Vec<u8>,
}

fn received(from: &Node, offer: &[u8]) -> ReceivedOffer {
    let (sender, directory, allowed) = (from.id(), DIRECTORY, MethodSet::ALL);
    ReceivedOffer { offer: offer.to_vec(), sender, directory, allowed }
}

/// Links two nodes with one of `allowed`.
fn link_by(alice: &mut Node, bob: &mut Node, allowed: MethodSet) -> (Link, Link) {
    let card = bob.card();
    let issued = alice.issue(bob.id(), card, allowed);
    let accepted = bob.accept(received(alice, &issued.bytes));
    (issued, accepted)
}

fn linked() -> (Node, Node, Link, Link) {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    let (issued, accepted) = link_by(&mut alice, &mut bob, MethodSet::ALL);
    (alice, bob, issued, accepted)
}

fn start(node: &mut Node, row: &[u8]) -> (openred_proto::id::HandshakeId, Vec<u8>) {
    match node.ask(Request::StartHandshake { row: row.to_vec() }) {
        Reply::HandshakeStarted { handshake, noise } => (handshake, noise),
        other => panic!("{other:?}"),
    }
}

fn answer_request(row: &[u8], noise: &[u8]) -> Request {
    Request::AnswerHandshake { row: row.to_vec(), noise: noise.to_vec(), directory_head: Vec::new() }
}

fn answer(node: &mut Node, row: &[u8], noise: &[u8]) -> (openred_proto::id::HandshakeId, Vec<u8>) {
    match node.ask(answer_request(row, noise)) {
        Reply::HandshakeAnswered { handshake, noise } => (handshake, noise),
        other => panic!("{other:?}"),
    }
}

/// A whole handshake; `initiator` begins over its row, `responder` answers over its own.
fn shake(initiator: &mut Node, row: &[u8], responder: &mut Node, other_row: &[u8]) -> (SessionGrant, SessionGrant) {
    let (started, request) = start(initiator, row);
    let (answered, verify) = answer(responder, other_row, &request);
    let directory_head = vec![9; 32];
    let finish = Request::FinishHandshake { handshake: started, noise: verify, directory_head };
    let (finalize, first) = match initiator.ask(finish) {
        Reply::HandshakeFinished { noise, grant } => (noise, grant),
        other => panic!("{other:?}"),
    };
    let second = match responder.ask(Request::CompleteHandshake { handshake: answered, noise: finalize }) {
        Reply::HandshakeCompleted { grant } => grant,
        other => panic!("{other:?}"),
    };
    (first, second)
}

#[test]
fn a_lost_vault_answers_nothing_but_that() {
    let mut node = Node::new(1);
    node.vault.lose();
    assert_eq!(node.refusal(Request::Describe), Refusal::StateLost);
    let changes = node.vault.commit(&mut node.random).unwrap();
    assert!(changes.trail.is_empty() && changes.state.is_empty());
}

#[test]
fn locking_is_the_operators_and_ends_the_vault() {
    let mut node = Node::new(1);
    let lock =
        |node: &mut Node, role| node.vault.handle(NOW, &mut node.random, role, Frame { id: 1, body: Request::Lock });
    let refused = lock(&mut node, Role::Node);
    assert!(matches!(refused.reply.body, Reply::Refused(Refusal::NotAllowed)) && refused.hang_up && !refused.ended);
    let locked = lock(&mut node, Role::Operator);
    assert!(matches!(locked.reply.body, Reply::Done) && locked.ended);
    assert_eq!(node.refusal(Request::Describe), Refusal::StateLost);
}

#[test]
fn secrets_of_the_two_sides_never_meet_in_a_frame() {
    // What noded may hold of a link is the sealed row and the request keys; the row of one side is nothing to the other.
    let (mut alice, mut bob, issued, accepted) = linked();
    assert_eq!(alice.refusal(Request::LinkKeys { row: accepted.row.clone() }), Refusal::RowSealed);
    assert_eq!(bob.refusal(Request::LinkKeys { row: issued.row.clone() }), Refusal::RowSealed);
    assert_ne!(Secret::new([0; 32]), issued.keys.outgoing.tag);
}
