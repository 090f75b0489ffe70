//! What is left of every kind of a vault's secrets in its memory once it is locked: nothing. Two vaults that are linked and have shaken
//! hands, both with their heap in this program's arena, which is searched from inside, because nobody else can.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Mutex;
use std::time::Duration;

use openred_cryptod::audit::Trail;
use openred_cryptod::keyring::Keyring;
use openred_cryptod::state::State;
use openred_cryptod::vault::Vault;
use openred_cryptod::vault::quota::Rates;
use openred_policy::arena::Arena;
use openred_policy::probe::memory::in_arena;
use openred_proto::checked::card::CardFields;
use openred_proto::id::{HandshakeId, NodeId, UnixMillis};
use openred_proto::method::{MethodSet, Schedule};
use openred_proto::vault::{Frame, ReceivedOffer, Reply, Request, Role, SessionGrant};
use openred_tests::secrets::{HeldLink, Secrets};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

#[global_allocator]
static ARENA: Arena = Arena::new();

const NOW: UnixMillis = UnixMillis(1_780_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);
const DIRECTORY: NodeId = NodeId::from_bytes([4; 32]);
/// The most secrets that are searched for.
const MOST: usize = 64;

/// What is searched for, with its name, kept outside the arena: by looking nothing is put into it.
static WANTED: Mutex<Wanted> = Mutex::new(Wanted { secrets: [([0; 32], [0; NAME]); MOST], count: 0 });
/// Longest name that is kept.
const NAME: usize = 48;

struct Wanted {
    secrets: [([u8; 32], [u8; NAME]); MOST],
    count: usize,
}

fn want(name: &str, secret: &[u8]) {
    let mut wanted = WANTED.lock().unwrap();
    let count = wanted.count;
    assert_eq!(secret.len(), 32, "{name}");
    let (kept, named) = &mut wanted.secrets[count];
    kept.copy_from_slice(secret);
    let length = name.len().min(NAME);
    named[..length].copy_from_slice(&name.as_bytes()[..length]);
    wanted.count += 1;
}

/// The names of those that are in the arena now.
fn found() -> Vec<String> {
    let wanted = WANTED.lock().unwrap();
    let there = wanted.secrets[..wanted.count].iter().filter(|(secret, _)| in_arena(|at| secret[at], 32) > 0);
    there.map(|(_, name)| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()).collect()
}

/// A vault, what it is made of, and its state as it would be on disk.
struct Node {
    vault: Vault,
    random: ChaCha20Rng,
    seed: u8,
    state: Vec<u8>,
}

/// Two secrets that stand nowhere in the program.
fn secrets(seed: u8) -> [u8; 64] {
    std::array::from_fn(|at| std::hint::black_box(at as u8).wrapping_mul(59) ^ seed)
}

impl Node {
    fn new(seed: u8) -> Self {
        let mut random = ChaCha20Rng::from_seed([seed; 32]);
        let keyring = Keyring::from_secrets(&mut secrets(seed));
        let trail = Trail::fresh(keyring.identity(), NOW).unwrap();
        let vault = Vault::open(keyring, State::new(), trail, &Rates::default(), NOW, &mut random).unwrap();
        let mut node = Self { vault, random, seed, state: Vec::new() };
        node.commit();
        node
    }

    fn commit(&mut self) {
        for write in self.vault.commit(&mut self.random).unwrap().state {
            let start = usize::try_from(write.offset).unwrap();
            let end = start + write.bytes.len();
            self.state.resize(self.state.len().max(end), 0);
            self.state[start..end].copy_from_slice(&write.bytes);
        }
    }

    fn ask(&mut self, role: Role, body: Request) -> Reply {
        let reply = self.vault.handle(NOW, &mut self.random, role, Frame { id: 1, body }).reply.body;
        self.commit();
        reply
    }

    fn card(&mut self) -> Vec<u8> {
        let fields = CardFields { endpoints: vec!["http://127.0.0.1:4000".into()], ..CardFields::default() };
        match self.ask(Role::Node, Request::SignCard { fields, suites: MethodSet::ALL, life: DAY }) {
            Reply::Card { statement, .. } => statement,
            other => panic!("{other:?}"),
        }
    }

    fn start(&mut self, row: &[u8]) -> (HandshakeId, Vec<u8>) {
        match self.ask(Role::Node, Request::StartHandshake { row: row.to_vec() }) {
            Reply::HandshakeStarted { handshake, noise } => (handshake, noise),
            other => panic!("{other:?}"),
        }
    }

    /// Adds all of its secrets to what is searched for, those of its one link with them.
    fn want_all(&self, held: &HeldLink) {
        let both = secrets(self.seed);
        let (seed, root) = (both[..32].try_into().unwrap(), both[32..].try_into().unwrap());
        let secrets = Secrets::read(self.vault.node_id(), seed, root, &self.state).unwrap();
        for (name, secret) in secrets.all.iter().chain(&secrets.of_link(held).unwrap()) {
            want(&format!("{name} of {}", self.seed), secret);
        }
    }

    /// As the operator does it, and as the loop does when it ends.
    fn lock(&mut self) {
        assert!(matches!(self.ask(Role::Operator, Request::Lock), Reply::Done));
        self.vault.lose();
    }
}

/// Links two nodes; what lies in the database of each.
fn link(alice: &mut Node, bob: &mut Node) -> [HeldLink; 2] {
    let (peer, sender) = (bob.vault.node_id(), alice.vault.node_id());
    let (card, directory, allowed) = (bob.card(), DIRECTORY, MethodSet::ALL);
    let issue = Request::IssueLink { peer, card, directory, allowed, schedule: Schedule::Hourly, life: DAY };
    let reply = alice.ask(Role::Node, issue);
    let Reply::LinkIssued { summary, row, offer, .. } = reply else { panic!("{reply:?}") };
    let (method, epoch) = (summary.method as u64, summary.epoch);
    let held = HeldLink { row, peer, issuer: true, method, epoch };
    let accepted = bob.ask(Role::Node, Request::AcceptOffer(ReceivedOffer { offer, sender, directory, allowed }));
    let Reply::LinkAccepted { row, .. } = accepted else { panic!("{accepted:?}") };
    [held, HeldLink { row, peer: sender, issuer: false, method, epoch }]
}

/// A whole handshake; the secrets that the two sides hold then are in these grants and nowhere else.
fn shake(alice: &mut Node, bob: &mut Node, held: &[HeldLink; 2]) -> [SessionGrant; 2] {
    let (started, noise) = alice.start(&held[0].row);
    let answer = Request::AnswerHandshake { row: held[1].row.clone(), noise, directory_head: Vec::new() };
    let reply = bob.ask(Role::Node, answer);
    let Reply::HandshakeAnswered { handshake, noise } = reply else { panic!("{reply:?}") };
    let reply =
        alice.ask(Role::Node, Request::FinishHandshake { handshake: started, noise, directory_head: Vec::new() });
    let Reply::HandshakeFinished { noise, grant } = reply else { panic!("{reply:?}") };
    let reply = bob.ask(Role::Node, Request::CompleteHandshake { handshake, noise });
    let Reply::HandshakeCompleted { grant: other } = reply else { panic!("{reply:?}") };
    [grant, other]
}

#[test]
fn iso_a_locked_vault_leaves_no_secret_of_any_kind_in_its_memory() {
    let (mut alice, mut bob) = (Node::new(0x3c), Node::new(0xa7));
    let held = link(&mut alice, &mut bob);
    // On the heap, where they would be looked for.
    let grants = Box::new(shake(&mut alice, &mut bob, &held));
    want("a session's secret, one way", grants[0].send.expose());
    want("a session's secret, the other way", grants[0].receive.expose());
    alice.want_all(&held[0]);
    bob.want_all(&held[1]);
    // A store key, while who asked for it holds it.
    let reply = Box::new(alice.ask(Role::Node, Request::StoreKey { purpose: "messaging".into() }));
    let Reply::StoreKey(store) = &*reply else { panic!("{reply:?}") };
    want("a store key", store.expose());
    // A handshake that is not at its end keeps the link's base for it.
    alice.start(&held[0].row);
    let open = found();
    for part in [
        "a session's secret, one way",
        "a session's secret, the other way",
        "a store key",
        "identity seed",
        "state key",
        "row key",
        "store root",
        "audit key",
        "X-Wing seed of prekey 0",
        "X25519 static 0",
        "link base",
    ] {
        assert!(open.iter().any(|name| name.starts_with(part)), "the control: {part} is not in {open:?}");
    }
    drop((reply, grants));
    alice.lock();
    bob.lock();
    let left = found();
    assert!(left.is_empty(), "{left:?}");
    assert!(WANTED.lock().unwrap().count >= 40, "{} secrets", WANTED.lock().unwrap().count);
}
