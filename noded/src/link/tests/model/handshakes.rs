//! Two nodes that open sessions to each other over one link, searched exhaustively: messages that are lost, repeated, reordered and
//! replayed at any later time, both opening at once, crashes that take the last counts, time that runs out.
//!
//! The nodes are the real `Responder`, `Attempts` and `keeps_initiators_role`. The key process is told in a few lines: it answers later
//! and in any order, reads a REQUEST whose timestamp is greater than any before, and keeps a handshake for ten seconds; `cryptod`
//! holds its own machines to that. The network keeps all that was ever sent. From every state that can be reached each side must be able to open a session.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeRequest};
use openred_proto::id::{HandshakeId, LinkId, NodeId, UnixMillis};
use openred_proto::limits::{HALF_OPEN_LIFE, HALF_OPEN_PER_LINK, TAG_AHEAD, TAG_ATTEMPTS};
use openred_proto::method::Method;
use openred_proto::vault::LinkKeys;
use proptest::prelude::*;

use super::properties::NAMES;
use super::{holds, is_caught};
use crate::explore::{Machine, is_deep, wander};
use crate::handshake::attempts::Attempts;
use crate::handshake::cookie::{Fresh, LoadBounds, Source};
use crate::handshake::half_open::Finalize;
use crate::handshake::responder::{Answering, Arrival, Request, Responder};
use crate::handshake::tests::request_keys;
use crate::handshake::{keeps_initiators_role, request};
use crate::p2p::ports::LinkHandle;

const IDS: [NodeId; 2] = [NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32])];
const LINK: LinkId = LinkId::from_bytes([7; 16]);
/// Attempts that are lost on the way in one go: more than a window has counters.
const BURST: u64 = 60;

/// What was ever sent. A handshake is named by the number of its REQUEST.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Message {
    Request(usize),
    Verify(usize),
    Finalize(usize),
    Accept(usize),
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Start(usize),
    /// Attempts of which nothing arrives.
    Burst(usize),
    Deliver(Message),
    /// The key process of the responder is away for this one.
    Away(usize),
    /// It answers this REQUEST.
    Answer(usize),
    /// And completes the FINALIZE of this one.
    Complete(usize),
    GiveUp(usize),
    /// The counts are stored.
    Store(usize),
    Crash(usize),
    /// Ten seconds.
    Pass,
}

/// How a way is told; REQUESTs are counted from one.
impl Display for Action {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        let node = |who: &usize| NAMES[*who];
        match self {
            Self::Start(who) => write!(out, "{} begins", node(who)),
            Self::Burst(who) => write!(out, "{BURST} attempts of {}'s are lost", node(who)),
            Self::Deliver(message) => {
                let (what, number) = match message {
                    Message::Request(number) => ("REQUEST", number),
                    Message::Verify(number) => ("VERIFY", number),
                    Message::Finalize(number) => ("FINALIZE", number),
                    Message::Accept(number) => ("ACCEPT", number),
                };
                write!(out, "{what} {} arrives", number + 1)
            }
            Self::Away(number) => write!(out, "REQUEST {} arrives while the key process is away", number + 1),
            Self::Answer(number) => write!(out, "the key process answers REQUEST {}", number + 1),
            Self::Complete(number) => write!(out, "the key process completes FINALIZE {}", number + 1),
            Self::GiveUp(who) => write!(out, "{} gives up", node(who)),
            Self::Store(who) => write!(out, "{} stores its counts", node(who)),
            Self::Crash(who) => write!(out, "{} crashes", node(who)),
            Self::Pass => write!(out, "ten seconds pass"),
        }
    }
}

/// A REQUEST that was made.
#[derive(Clone)]
struct Made {
    from: usize,
    counter: u64,
    timestamp: u64,
    bytes: HandshakeRequest,
}

#[derive(Clone)]
struct Node {
    responder: Responder,
    attempts: Attempts,
    /// Counters of the link: sent and received, in memory and in the database.
    counters: [u64; 2],
    stored: [u64; 2],
    /// The REQUEST that is out.
    opening: Option<usize>,
    /// FINALIZE is sent, ACCEPT has not come.
    finished: BTreeSet<usize>,
    sessions: BTreeSet<usize>,
    /// What the key process has been asked, and has not answered: REQUESTs, and the counters of FINALIZEs.
    looking: BTreeMap<usize, Answering>,
    completing: BTreeMap<usize, u64>,
    keys: KeyProcess,
}

/// What the key process would do: half-open handshakes with their beginning, and timestamps.
#[derive(Clone, Default, Debug)]
struct KeyProcess {
    begun: BTreeMap<usize, Duration>,
    answered: BTreeMap<usize, Duration>,
    sent: u64,
    accepted: u64,
}

impl KeyProcess {
    fn has_room(&mut self, now: Duration) -> bool {
        for table in [&mut self.begun, &mut self.answered] {
            table.retain(|_, since| now < *since + HALF_OPEN_LIFE);
        }
        self.begun.len() + self.answered.len() < HALF_OPEN_PER_LINK
    }
}

#[derive(Clone)]
struct World {
    nodes: [Node; 2],
    made: Vec<Made>,
    sent: BTreeSet<Message>,
    passed: Duration,
    /// Sessions that a responder has opened, by handshake: how often.
    opened: BTreeMap<usize, u8>,
    left: Budget,
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    requests: usize,
    bursts: u8,
    crashes: u8,
    away: u8,
    passes: u8,
}

/// The rules that a test may put wrong ones in the place of.
#[derive(Clone, Copy)]
struct Rules {
    next: fn(&mut Attempts, u64) -> u64,
    /// Whether the key process reads a REQUEST with the second timestamp after one with the first.
    is_fresh: fn(u64, u64) -> bool,
    keeps_role: fn(&NodeId, &NodeId, bool) -> bool,
}

const REAL: Rules = Rules {
    next: |attempts, stored| attempts.next(LINK, stored),
    is_fresh: |accepted, timestamp| timestamp > accepted,
    keeps_role: keeps_initiators_role,
};

struct Model {
    rules: Rules,
    budget: Budget,
    base: Instant,
}

fn handle(who: usize, counters: [u64; 2]) -> Arc<LinkHandle> {
    // Keys by direction: what one sends is what the other receives.
    let keys = |from: usize| request_keys(if from == 0 { 10 } else { 20 });
    Arc::new(LinkHandle {
        link: LINK,
        peer: IDS[1 - who],
        method: Method::Alpha,
        row: Bytes::from_static(b"row"),
        keys: LinkKeys { outgoing: keys(who), incoming: keys(1 - who) },
        outgoing_counter: counters[0],
        incoming_counter: counters[1],
        not_after: UnixMillis(u64::MAX),
    })
}

fn id(number: usize) -> HandshakeId {
    HandshakeId::from_bytes([u8::try_from(number + 1).unwrap(); 16])
}

fn started(who: usize, stored: [u64; 2], keys: KeyProcess) -> Node {
    let mut responder = Responder::new(IDS[who], LoadBounds::default());
    assert!(responder.tags.insert(handle(who, stored)));
    Node {
        responder,
        attempts: Attempts::default(),
        counters: stored,
        stored,
        opening: None,
        finished: BTreeSet::new(),
        sessions: BTreeSet::new(),
        looking: BTreeMap::new(),
        completing: BTreeMap::new(),
        keys,
    }
}

impl Model {
    fn new(rules: Rules, budget: Budget) -> Self {
        Self { rules, budget, base: Instant::now() }
    }

    fn now(&self, world: &World) -> Instant {
        self.base + world.passed
    }

    fn act(&self, world: &mut World, action: Action) {
        match action {
            Action::Start(who) => self.begin(world, who),
            Action::Burst(who) => {
                for _ in 0..BURST {
                    let node = &mut world.nodes[who];
                    (self.rules.next)(&mut node.attempts, node.counters[0]);
                    node.keys.sent += 1;
                }
                world.left.bursts -= 1;
            }
            Action::Deliver(Message::Request(number)) => self.request(world, number, true),
            Action::Away(number) => {
                world.left.away -= 1;
                self.request(world, number, false);
            }
            Action::Deliver(Message::Verify(number)) => self.verify(world, number),
            Action::Deliver(Message::Finalize(number)) => self.finalize(world, number),
            Action::Deliver(Message::Accept(number)) => self.accept(world, number),
            Action::Answer(number) => self.answer(world, number),
            Action::Complete(number) => self.complete(world, number),
            Action::GiveUp(who) => {
                if let Some(number) = world.nodes[who].opening.take() {
                    world.nodes[who].keys.begun.remove(&number);
                    world.nodes[who].finished.remove(&number);
                }
            }
            Action::Store(who) => world.nodes[who].stored = world.nodes[who].counters,
            Action::Crash(who) => {
                world.left.crashes -= 1;
                let node = &world.nodes[who];
                world.nodes[who] = started(who, node.stored, node.keys.clone());
            }
            Action::Pass => {
                world.left.passes = world.left.passes.saturating_sub(1);
                world.passed += HALF_OPEN_LIFE;
            }
        }
    }

    /// As `p2p::open`: the key process first, then the counter, then REQUEST.
    fn begin(&self, world: &mut World, who: usize) {
        let (passed, number) = (world.passed, world.made.len());
        let node = &mut world.nodes[who];
        if node.opening.is_some() || !node.keys.has_room(passed) {
            return;
        }
        node.keys.sent += 1;
        let timestamp = node.keys.sent;
        node.keys.begun.insert(number, passed);
        let counter = (self.rules.next)(&mut node.attempts, node.counters[0]);
        let noise = [u8::try_from(who).unwrap(), u8::try_from(number).unwrap()];
        let handle = handle(who, node.counters);
        let bytes = request::build(&handle.keys.outgoing, &IDS[who], &IDS[1 - who], counter, &noise);
        node.opening = Some(number);
        world.made.push(Made { from: who, counter, timestamp, bytes });
        world.sent.insert(Message::Request(number));
    }

    /// As `p2p::answer::answer_request`: asks the key process.
    fn request(&self, world: &mut World, number: usize, is_there: bool) {
        let (now, made) = (self.now(world), world.made[number].clone());
        let who = 1 - made.from;
        let node = &mut world.nodes[who];
        // Of a carrier without addresses nobody asks for a cookie.
        let fresh = || -> Fresh { panic!("no cookie is asked for") };
        let asked = node.responder.handle_request(&made.bytes, Arrival { source: Source::Hidden, now, fresh });
        let Ok(Request::Ask(answering)) = asked else { return };
        if (self.rules.keeps_role)(&IDS[who], &IDS[made.from], node.opening.is_some()) || !is_there {
            return node.responder.refused(&answering, false);
        }
        node.looking.insert(number, answering);
    }

    /// As `p2p::answer::ask_for_verify`, when the key process has answered.
    fn answer(&self, world: &mut World, number: usize) {
        let (now, passed, made) = (self.now(world), world.passed, world.made[number].clone());
        let node = &mut world.nodes[1 - made.from];
        let Some(answering) = node.looking.remove(&number) else { return };
        if !node.keys.has_room(passed) || !(self.rules.is_fresh)(node.keys.accepted, made.timestamp) {
            return node.responder.refused(&answering, true);
        }
        node.keys.accepted = made.timestamp;
        node.keys.answered.insert(number, passed);
        node.responder.answered(answering, id(number), &Bytes::from_static(b"verify"), now);
        world.sent.insert(Message::Verify(number));
    }

    fn verify(&self, world: &mut World, number: usize) {
        let passed = world.passed;
        let node = &mut world.nodes[world.made[number].from];
        node.keys.has_room(passed);
        if node.opening == Some(number) && node.keys.begun.remove(&number).is_some() {
            node.finished.insert(number);
            world.sent.insert(Message::Finalize(number));
        }
    }

    /// As `p2p::answer::answer_finalize`: asks the key process.
    fn finalize(&self, world: &mut World, number: usize) {
        let now = self.now(world);
        let from = world.made[number].from;
        let node = &mut world.nodes[1 - from];
        let finalize = HandshakeFinalize { handshake: id(number), noise: vec![1] };
        let Ok(Finalize::Ask(_, counter)) = node.responder.handle_finalize(&finalize, now) else { return };
        if (self.rules.keeps_role)(&IDS[1 - from], &IDS[from], node.opening.is_some()) {
            node.keys.answered.remove(&number);
            return node.responder.failed(&id(number));
        }
        node.completing.insert(number, counter);
    }

    /// As `p2p::answer::ask_for_accept`, when the key process has completed it.
    fn complete(&self, world: &mut World, number: usize) {
        let passed = world.passed;
        let node = &mut world.nodes[1 - world.made[number].from];
        let Some(counter) = node.completing.remove(&number) else { return };
        node.keys.has_room(passed);
        if node.keys.answered.remove(&number).is_none() {
            return node.responder.failed(&id(number));
        }
        node.responder.completed(&id(number), &LINK, counter, &Bytes::from_static(b"accept"));
        node.counters[1] = counter.max(node.counters[1]);
        node.sessions.insert(number);
        *world.opened.entry(number).or_default() += 1;
        world.sent.insert(Message::Accept(number));
    }

    fn accept(&self, world: &mut World, number: usize) {
        let counter = world.made[number].counter;
        let node = &mut world.nodes[world.made[number].from];
        if node.finished.remove(&number) {
            node.opening = None;
            node.attempts.accepted(LINK, counter);
            node.counters[0] = counter.max(node.counters[0]);
            node.sessions.insert(number);
        }
    }

    /// From here each side opens a session, if messages arrive: within as many attempts as there are counters to try.
    fn fair_run(&self, world: &World) -> Result<(), String> {
        for (who, name) in NAMES.iter().enumerate() {
            let mut world = world.clone();
            for number in 0..world.made.len() {
                self.answer(&mut world, number);
                self.complete(&mut world, number);
            }
            (0..2).for_each(|who| self.act(&mut world, Action::GiveUp(who)));
            world.passed += HALF_OPEN_LIFE;
            let opened = (0..TAG_ATTEMPTS).any(|_| {
                let number = world.made.len();
                self.begin(&mut world, who);
                if number == world.made.len() {
                    return false;
                }
                self.request(&mut world, number, true);
                self.answer(&mut world, number);
                if world.sent.contains(&Message::Verify(number)) {
                    self.verify(&mut world, number);
                    self.finalize(&mut world, number);
                    self.complete(&mut world, number);
                    self.accept(&mut world, number);
                }
                self.act(&mut world, Action::GiveUp(who));
                world.nodes.iter().all(|node| node.sessions.contains(&number))
            });
            if !opened {
                return Err(format!("stuck: {name} opens no session"));
            }
        }
        Ok(())
    }
}

impl Machine for Model {
    type State = World;
    type Action = Action;

    fn start(&self) -> World {
        let node = |who| started(who, [0, 0], KeyProcess::default());
        World {
            nodes: [node(0), node(1)],
            made: Vec::new(),
            sent: BTreeSet::new(),
            passed: Duration::ZERO,
            opened: BTreeMap::new(),
            left: self.budget,
        }
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        let mut actions: Vec<Action> = world.sent.iter().copied().map(Action::Deliver).collect();
        for who in 0..2 {
            actions.extend(world.nodes[who].looking.keys().copied().map(Action::Answer));
            actions.extend(world.nodes[who].completing.keys().copied().map(Action::Complete));
            if world.made.len() < world.left.requests {
                actions.push(Action::Start(who));
            }
            if world.left.bursts > 0 {
                actions.push(Action::Burst(who));
            }
            actions.push(Action::GiveUp(who));
            if world.left.crashes > 0 {
                actions.extend([Action::Store(who), Action::Crash(who)]);
            }
        }
        if world.left.away > 0 {
            actions.extend((0..world.made.len()).map(Action::Away));
        }
        if world.left.passes > 0 {
            actions.push(Action::Pass);
        }
        actions
    }

    fn step(&self, world: &World, action: &Action) -> World {
        let mut world = world.clone();
        self.act(&mut world, *action);
        world
    }

    fn key(&self, world: &World) -> [u8; 16] {
        let mut key = blake3::Hasher::new();
        for node in &world.nodes {
            key.update(node.responder.sketch(self.base).as_bytes());
            key.update(node.attempts.sketch(&LINK).as_bytes());
            let sketch = (
                (node.counters, node.stored, node.opening),
                (&node.finished, &node.sessions, &node.keys),
                (node.looking.keys(), &node.completing),
            );
            key.update(format!("{sketch:?}").as_bytes());
        }
        let made: Vec<_> = world.made.iter().map(|made| (made.from, made.counter, made.timestamp)).collect();
        key.update(
            format!("{made:?} {:?} {:?} {:?} {:?}", world.sent, world.passed, world.opened, world.left).as_bytes(),
        );
        key.finalize().as_bytes()[..16].try_into().expect("16 of 32 bytes")
    }

    fn check(&self, world: &World) -> Result<(), String> {
        if let Some(number) = world.opened.iter().find(|(_, times)| **times > 1).map(|(number, _)| number) {
            return Err(format!("REQUEST {} was replayed into a second session", number + 1));
        }
        for (number, made) in world.made.iter().enumerate() {
            if world.nodes[made.from].sessions.contains(&number) && !world.opened.contains_key(&number) {
                return Err(format!("{} has a session that {} never opened", NAMES[made.from], NAMES[1 - made.from]));
            }
        }
        if world.nodes.iter().any(|node| node.keys.begun.len() + node.keys.answered.len() > HALF_OPEN_PER_LINK) {
            return Err("more half-open than a link may have".to_owned());
        }
        self.fair_run(world)
    }
}

const CALM: Budget = Budget { requests: 2, bursts: 0, crashes: 0, away: 0, passes: 1 };

#[test]
fn handshakes_under_every_order_of_messages() {
    let two = Budget { crashes: 1, ..CALM };
    let three = Budget { requests: 3, ..CALM };
    for (name, what, budget, deep) in [
        ("handshakes", "2 REQUESTs, 10 seconds", CALM, three),
        ("handshakes, crashes", "2 REQUESTs, a crash", Budget { passes: 0, ..two }, two),
        ("handshakes, lost attempts", "2 REQUESTs, 60 that are lost", Budget { bursts: 1, passes: 0, ..CALM }, three),
        ("handshakes, an absent key process", "2 REQUESTs, one unasked", Budget { away: 1, passes: 0, ..CALM }, two),
    ] {
        holds(name, what, &Model::new(REAL, if is_deep() { deep } else { budget }));
    }
}

#[test]
fn wrong_rules_of_handshakes_are_caught() {
    let astray = Rules { next: |attempts, stored| attempts.next(LINK, stored) + TAG_AHEAD, ..REAL };
    let replayed = Rules { is_fresh: |_, _| true, ..REAL };
    let stubborn = Rules { keeps_role: |_, _, _| true, ..REAL };
    for (name, rules, budget, property) in [
        ("counters run ahead of the window", astray, Budget { bursts: 1, ..CALM }, "stuck"),
        ("the key process reads old REQUESTs", replayed, Budget { crashes: 1, ..CALM }, "replayed"),
        ("a responder never yields", stubborn, CALM, "stuck"),
    ] {
        is_caught(name, &Model::new(rules, budget), property);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Far beyond what can be searched: long lists of events.
    #[test]
    fn long_lists_of_messages(choices in proptest::collection::vec(any::<u16>(), 1..100)) {
        let model = Model::new(REAL, Budget { requests: 20, bursts: 3, crashes: 3, away: 3, passes: 6 });
        if let Err(broken) = wander(&model, &choices) {
            prop_assert!(false, "{broken}");
        }
    }
}
