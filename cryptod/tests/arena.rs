//! What the vault's arena is laid out for is what a link and a half-open handshake really take, and a full one is an answer: this program's
//! allocator is the arena, so that each block is counted. One test, because the count is the process's.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use openred_cryptod::audit::Trail;
use openred_cryptod::keyring::{Descent, Keyring};
use openred_cryptod::state::State;
use openred_cryptod::vault::quota::Rates;
use openred_cryptod::vault::serve::{End, Files, MEMORY_KEPT, Server, generator};
use openred_cryptod::vault::{Vault, start};
use openred_policy::arena::{self, Arena};
use openred_proto::checked::card::CardFields;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::{HALF_OPEN, HALF_OPEN_PER_LINK, LINKS};
use openred_proto::method::{Method, MethodSet, Schedule};
use openred_proto::vault::{
    Capacity, Frame, ReceivedOffer, Refusal, Reply, Request, Role, decode_frame, encode_frame, split_frame,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

#[global_allocator]
static ARENA: Arena = Arena::new();

const NOW: UnixMillis = UnixMillis(1_780_000_000_000);
const DIRECTORY: NodeId = NodeId::from_bytes([9; 32]);
const DAY: Duration = Duration::from_secs(86_400);
/// Peers with which the cost of a link is levelled out: past the first growth of the tables.
const PEERS: u8 = 120;

struct Node(Vault, ChaCha20Rng);

impl Node {
    fn new(seed: u8) -> Self {
        let mut random = ChaCha20Rng::from_seed([seed; 32]);
        let keyring = Keyring::from_secrets(&mut [seed; 64]);
        let trail = Trail::fresh(keyring.identity(), NOW).unwrap();
        let vault = Vault::open(keyring, State::new(), trail, &Rates::default(), NOW, &mut random).unwrap();
        Self(vault, random)
    }

    fn ask(&mut self, body: Request) -> Reply {
        let reply = self.0.handle(NOW, &mut self.1, Role::Node, Frame { id: 1, body }).reply.body;
        drop(self.0.commit(&mut self.1).unwrap());
        reply
    }

    fn card(&mut self) -> Vec<u8> {
        match self.ask(Request::SignCard { fields: CardFields::default(), suites: MethodSet::ALL, life: DAY }) {
            Reply::Card { statement, .. } => statement,
            other => panic!("{other:?}"),
        }
    }

    /// Issues a link; gives its row and offer.
    fn issue(&mut self, peer: NodeId, card: Vec<u8>, allowed: MethodSet) -> (Vec<u8>, Vec<u8>) {
        let (directory, schedule, life) = (DIRECTORY, Schedule::Hourly, DAY);
        match self.ask(Request::IssueLink { peer, card, directory, allowed, schedule, life }) {
            Reply::LinkIssued { row, offer, .. } => (row, offer),
            other => panic!("{other:?}"),
        }
    }
}

/// Bytes that stay taken by what `act` leaves behind, divided by `count`.
fn each(count: usize, act: impl FnOnce()) -> usize {
    let before = arena::taken();
    act();
    (arena::taken() - before).div_ceil(count)
}

/// Four handshakes begun, then four answered, over a link of `method`: the dearer of the two.
fn handshake(method: Method) -> usize {
    let (mut alice, mut bob) = (Node::new(200), Node::new(201));
    let allowed = MethodSet::EMPTY.with(method);
    let card = bob.card();
    let (row, offer) = alice.issue(bob.0.node_id(), card, allowed);
    let sender = alice.0.node_id();
    let accepted = match bob.ask(Request::AcceptOffer(ReceivedOffer { offer, sender, directory: DIRECTORY, allowed })) {
        Reply::LinkAccepted { row, .. } => row,
        other => panic!("{other:?}"),
    };
    let mut requests = Vec::with_capacity(HALF_OPEN_PER_LINK);
    let begun = each(HALF_OPEN_PER_LINK, || {
        for _ in 0..HALF_OPEN_PER_LINK {
            match alice.ask(Request::StartHandshake { row: row.clone() }) {
                Reply::HandshakeStarted { noise, .. } => requests.push(noise),
                other => panic!("{other:?}"),
            }
        }
    });
    let answered = each(HALF_OPEN_PER_LINK, || {
        for noise in &requests {
            let answer =
                Request::AnswerHandshake { row: accepted.clone(), noise: noise.clone(), directory_head: Vec::new() };
            assert!(matches!(bob.ask(answer), Reply::HandshakeAnswered { .. }));
        }
    });
    // The messages that this test keeps are not the vault's; what counts may only be too much.
    begun.max(answered)
}

/// Asks a vault in service, and waits for its answer.
fn ask(stream: &mut UnixStream, body: Request) -> Reply {
    stream.write_all(&encode_frame(&Frame { id: 1, body }).unwrap()).unwrap();
    let (mut bytes, mut block) = (Vec::new(), [0; 4096]);
    loop {
        if let Ok((body, _)) = split_frame(&bytes) {
            return decode_frame::<Reply>(body).unwrap().body;
        }
        let count = stream.read(&mut block).unwrap();
        assert!(count > 0, "the vault ended");
        bytes.extend_from_slice(&block[..count]);
    }
}

/// With too little left for a turn `noded` is refused by name, the operator is not, and the vault goes on.
fn a_full_arena_is_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let open = |place: &Path| File::options().read(true).write(true).create_new(true).open(place).unwrap();
    let [state, first, second] = ["state", "a", "b"].map(|name| open(&folder.path().join(name)));
    let files = Files { state, trail: [first, second] };
    let mut random = generator().unwrap();
    let orders = start::Orders::default();
    let vault = start::open(&mut [7; 64], &Descent::default(), &files, &orders, &mut random).unwrap();
    let (mut front, vault_front) = UnixStream::pair().unwrap();
    let (mut operator, vault_operator) = UnixStream::pair().unwrap();
    let mut server = Server::new(vault, vault_front.into(), vault_operator.into(), files, random).unwrap();
    let served = std::thread::spawn(move || server.serve());
    assert!(matches!(ask(&mut front, Request::Describe), Reply::Described { .. }), "the control");
    let mut ballast = Vec::new();
    while arena::left() >= MEMORY_KEPT {
        ballast.push(vec![1_u8; 64 << 10]);
    }
    let full = |reply: Reply| matches!(reply, Reply::Refused(Refusal::Capacity(Capacity::Memory)));
    for _ in 0..3 {
        assert!(full(ask(&mut front, Request::Describe)));
    }
    let card = Request::SignCard { fields: CardFields::default(), suites: MethodSet::ALL, life: DAY };
    assert!(full(ask(&mut front, card)));
    assert!(matches!(ask(&mut operator, Request::AuditStatus), Reply::AuditStatus(_)), "the operator is heard");
    drop(ballast);
    assert!(matches!(ask(&mut front, Request::Describe), Reply::Described { .. }), "it goes on");
    drop(front);
    assert_eq!(served.join().unwrap(), End::FrontGone);
}

#[test]
fn links_and_handshakes_fit_what_the_arena_is_laid_out_for() {
    assert_eq!((arena::HANDSHAKES, arena::LINKS), (HALF_OPEN, LINKS));
    for method in Method::ALL {
        let bytes = handshake(method);
        assert!((1024..=arena::HANDSHAKE_BYTES).contains(&bytes), "{method}: {bytes} bytes a half-open handshake");
    }
    let mut alice = Node::new(1);
    let cards: Vec<_> = (2..2 + PEERS)
        .map(|seed| {
            let mut peer = Node::new(seed);
            (peer.0.node_id(), peer.card())
        })
        .collect();
    let bytes = each(PEERS.into(), || {
        for (peer, card) in &cards {
            drop(alice.issue(*peer, card.clone(), MethodSet::ALL));
        }
    });
    assert!((64..=arena::LINK_BYTES).contains(&bytes), "{bytes} bytes a link");
    a_full_arena_is_an_answer();
}
