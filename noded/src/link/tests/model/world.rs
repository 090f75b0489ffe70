//! What the model is made of: two nodes as a crash would leave them, their key processes, and a network that keeps all that was
//! ever sent.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::{Display, Formatter};
use std::time::Duration;

use openred_cryptod::keyring::Keyring;
use openred_cryptod::link::transform::Side;
use openred_cryptod::state::{LinkRecord, PeerRecord};
use openred_proto::checked::link_sync::LinkSync;
use openred_proto::checked::receipt::{Receipt, ReceiptKind};
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::CLOCK_GRACE;
use openred_proto::method::{Method, MethodSet};
use openred_proto::vault::LinkSummary;

use super::super::life::NOW;
use super::properties::NAMES;
use crate::config::IncomingPolicy;
use crate::explore::Machine;
use crate::link::changes;
use crate::link::judge::{Situation, Verdict, judge, judge_renewal};
use crate::link::renewal::{Turn, turn};
use crate::link::state::Link;
use crate::link::sync::{Repair, repairs};

/// How long links live here.
pub(super) const LIFE: Duration = Duration::from_secs(24 * 3600);
/// A step of time: ages of 3, 7, 11, 15, 19, 23, 27 and 31 hours each lie in another part of a life.
pub(super) const TICK: Duration = Duration::from_secs(4 * 3600);
/// Longer than any pause of the rules that is counted in minutes.
pub(super) const WAIT: Duration = Duration::from_secs(6 * 60);
/// The first link is this much older than the first tick.
const BEFORE: Duration = Duration::from_secs(3600);

type Judge = fn(Situation<'_>, &[Link], &LinkSummary, &[u8; 32], UnixMillis) -> Verdict;
type JudgeRenewal = fn(NodeId, &[Link], &LinkId, &LinkSummary, &[u8; 32], UnixMillis) -> Verdict;

/// The rules that a test may put wrong ones in the place of.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    pub(super) judge: Judge,
    pub(super) judge_renewal: JudgeRenewal,
    pub(super) turn: fn(&Link, &[Link], UnixMillis) -> Option<Turn>,
    pub(super) outlived: fn(&[Link], MethodSet, UnixMillis) -> Vec<Link>,
    pub(super) repairs: fn(&[Link], &NodeId, &LinkSync, UnixMillis) -> Vec<Repair>,
    /// Whether an initiator tries another link of the peer when it is refused over the newest.
    pub(super) falls_back: bool,
    /// Whether the key process keeps the sequences that it has heard, and the links of which it was told.
    pub(super) remembers: bool,
}

impl Rules {
    pub(super) const REAL: Self = Self {
        judge: |situation, links, summary, token, now| judge(situation, links.iter(), summary, token, now),
        judge_renewal: |me, links, old, summary, token, now| judge_renewal(me, links.iter(), old, summary, token, now),
        turn: |link, links, now| turn(link, links.iter(), MethodSet::ALL, now),
        outlived: changes::outlived,
        repairs: |links, peer, theirs, now| repairs(links.iter(), peer, theirs, now),
        falls_back: true,
        remembers: true,
    };
}

/// What bounds the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Offers, first ones and renewals.
    pub(super) offers: usize,
    pub(super) ticks: u8,
    pub(super) waits: u8,
    pub(super) revocations: u8,
    /// The node's process dies between a write of the key process's and its own.
    pub(super) crashes: u8,
    /// A backup, or a copy of the database, is put in the place of what is there.
    pub(super) restores: u8,
}

/// One node: its database, its key process, and whether it has just started.
#[derive(Clone)]
pub(super) struct Node {
    /// In the order of `Links::all`.
    pub(super) links: Vec<Link>,
    pub(super) vault: KeyProcess,
    /// The operator has said yes to the peer.
    pub(super) approved: bool,
    /// The peer is owed a link anew.
    pub(super) owed: bool,
    /// Started, and nothing fetched from the key process yet.
    pub(super) fresh: bool,
    /// Lists have been compared since it started; then they are again where `sync::is_due` says so.
    pub(super) in_step: bool,
    /// Links that were over here, as long as nothing was set back.
    pub(super) over: BTreeSet<LinkId>,
}

/// What a key process remembers of the other node.
#[derive(Clone)]
pub(super) struct KeyProcess {
    pub(super) record: PeerRecord,
    /// Rows and prekeys of an older one are worth nothing.
    pub(super) epoch: u8,
    pub(super) last_sequence: u64,
}

/// An offer that was made. Its number is its link's, too.
#[derive(Clone)]
pub(super) struct Offer {
    pub(super) from: usize,
    pub(super) header: LinkSummary,
    pub(super) sequence: u64,
    pub(super) renews: Option<LinkId>,
    /// The recipient's prekey that it is sealed to.
    pub(super) prekey: u8,
    /// It left its issuer.
    pub(super) sent: bool,
    /// How often its recipient's key process has taken it as a new one.
    pub(super) taken: u8,
}

/// All there is.
#[derive(Clone)]
pub(super) struct World {
    pub(super) now: UnixMillis,
    pub(super) nodes: [Node; 2],
    pub(super) offers: Vec<Offer>,
    /// Receipts that were sent: of which offer, with which time.
    pub(super) receipts: BTreeSet<(usize, UnixMillis)>,
    /// What a node looked like once: to be put back.
    pub(super) copies: [Option<Box<Node>>; 2],
    pub(super) left: Budget,
    /// Somebody has revoked, crashed or set something back.
    pub(super) disturbed: bool,
    /// Until when both have a link that nothing has ended.
    pub(super) bound_until: UnixMillis,
}

/// One event.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Request(usize),
    Approve(usize),
    Revoke {
        by: usize,
        heard: bool,
    },
    /// An offer comes through a directory; or, `lost`, its recipient's process dies before it has stored what it accepted.
    Offer {
        offer: usize,
        lost: bool,
    },
    /// It is made inside a session; its answer may be lost.
    Inside {
        offer: usize,
        answered: bool,
    },
    Receipt {
        offer: usize,
        at: UnixMillis,
    },
    Renew {
        by: usize,
        link: LinkId,
        lost: bool,
    },
    RequestLost(usize),
    Handshake {
        by: usize,
        accepted: bool,
    },
    Sync {
        by: usize,
        answered: bool,
    },
    Tend(usize),
    Tick,
    Wait,
    /// A copy is made of the node.
    Copy(usize),
    /// The copy is put back as a backup is: the sealing epoch rises.
    Restore(usize),
    /// The copy of the database alone is put back.
    SetBack(usize),
}

/// How a way is told; offers are counted from one, and each makes the link of its number.
impl Display for Action {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        let node = |by: &usize| NAMES[*by];
        let but = |is_so: bool, what: &'static str| if is_so { "" } else { what };
        match self {
            Self::Request(by) => write!(out, "{} asks for a link", node(by)),
            Self::RequestLost(by) => write!(out, "{} asks for a link and crashes before it is stored", node(by)),
            Self::Approve(by) => write!(out, "{}'s operator says yes", node(by)),
            Self::Revoke { by, heard } => write!(out, "{} revokes{}", node(by), but(*heard, " unheard")),
            Self::Offer { offer, lost } => {
                let end = but(!lost, " and is lost by a crash before it is stored");
                write!(out, "offer {} arrives{end}", offer + 1)
            }
            Self::Inside { offer, answered } => {
                write!(out, "offer {} is brought in a session{}", offer + 1, but(*answered, ", its answer lost"))
            }
            Self::Receipt { offer, .. } => write!(out, "the receipt of offer {} arrives", offer + 1),
            Self::Renew { by, link, lost } => {
                let end = but(!lost, " and crashes before it is stored");
                write!(out, "{} renews link {}{end}", node(by), link.as_bytes()[0])
            }
            Self::Handshake { by, accepted } => {
                write!(out, "{} opens a session{}", node(by), but(*accepted, ", ACCEPT lost"))
            }
            Self::Sync { by, answered } => {
                write!(out, "{} compares lists{}", node(by), but(*answered, ", the answer lost"))
            }
            Self::Tend(by) => write!(out, "{} looks after its links", node(by)),
            Self::Tick => write!(out, "four hours pass"),
            Self::Wait => write!(out, "six minutes pass"),
            Self::Copy(of) => write!(out, "{} is copied", node(of)),
            Self::Restore(of) => write!(out, "{}'s backup is restored", node(of)),
            Self::SetBack(of) => write!(out, "{}'s database is set back", node(of)),
        }
    }
}

/// The search's machine.
pub(super) struct Model {
    pub(super) rules: Rules,
    pub(super) ids: [NodeId; 2],
    pub(super) incoming: IncomingPolicy,
    /// What may happen at all.
    only: fn(&Action) -> bool,
    pub(super) skew: [Duration; 2],
    start: Option<Box<World>>,
    budget: Budget,
    keys: [Keyring; 2],
    signed: RefCell<BTreeMap<(usize, UnixMillis), Vec<u8>>>,
    /// The same by their bytes: nobody forges one here, and each is read often.
    receipts: RefCell<HashMap<Vec<u8>, Receipt>>,
    /// States of which it is known that a fair run ends with a link; and others, of which it ends with none on either side.
    pub(super) ends_linked: RefCell<HashSet<[u8; 16]>>,
    pub(super) ends_well: RefCell<HashSet<[u8; 16]>>,
}

impl Model {
    pub(super) fn new(budget: Budget) -> Self {
        let mut keys = [Keyring::from_secrets(&mut [1; 64]), Keyring::from_secrets(&mut [2; 64])];
        // A, the first, is the one with the lower id.
        keys.sort_by_key(|keys| keys.identity().node_id());
        let ids = [keys[0].identity().node_id(), keys[1].identity().node_id()];
        let (rules, incoming, skew) = (Rules::REAL, IncomingPolicy::Open, [Duration::ZERO; 2]);
        let only = |_: &Action| true;
        Self {
            rules,
            ids,
            incoming,
            only,
            skew,
            start: None,
            budget,
            keys,
            signed: RefCell::default(),
            receipts: RefCell::default(),
            ends_linked: RefCell::default(),
            ends_well: RefCell::default(),
        }
    }

    pub(super) fn incoming(self, incoming: IncomingPolicy) -> Self {
        Self { incoming, ..self }
    }

    pub(super) fn under(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    pub(super) fn only(self, only: fn(&Action) -> bool) -> Self {
        Self { only, ..self }
    }

    /// Clocks that run ahead by so much.
    pub(super) fn skewed(self, skew: [Duration; 2]) -> Self {
        // The link of the start was made by these clocks.
        Self { skew, ..self }.linked()
    }

    /// Begins with a link that both have used, issued by the first node; both operators have said yes.
    pub(super) fn linked(self) -> Self {
        let mut world = self.nothing();
        for action in [Action::Approve(1), Action::Request(0), Action::Offer { offer: 0, lost: false }] {
            self.act(&mut world, action);
        }
        let at = world.receipts.first().expect("the offer was accepted").1;
        for action in [Action::Receipt { offer: 0, at }, Action::Handshake { by: 0, accepted: true }] {
            self.act(&mut world, action);
        }
        self.note(&mut world);
        world.now = world.now.plus(TICK - BEFORE);
        Self { start: Some(Box::new(world)), ..self }
    }

    fn nothing(&self) -> World {
        let node = |peer: usize| Node {
            links: Vec::new(),
            vault: KeyProcess { record: PeerRecord::new(self.ids[peer]), epoch: 0, last_sequence: 0 },
            approved: false,
            owed: false,
            fresh: false,
            in_step: true,
            over: BTreeSet::new(),
        };
        World {
            now: NOW,
            nodes: [node(1), node(0)],
            offers: Vec::new(),
            receipts: BTreeSet::new(),
            copies: [None, None],
            left: self.budget,
            disturbed: false,
            bound_until: UnixMillis(0),
        }
    }

    /// A node's own clock.
    pub(super) fn clock(&self, world: &World, who: usize) -> UnixMillis {
        world.now.plus(self.skew[who])
    }

    /// A receipt that somebody has signed.
    pub(super) fn read(&self, bytes: &[u8]) -> Option<Receipt> {
        self.receipts.borrow().get(bytes).cloned()
    }

    /// A receipt as its recipient signs it.
    pub(super) fn receipt(&self, world: &World, offer: usize, at: UnixMillis) -> Vec<u8> {
        let from = world.offers[offer].from;
        let sign = || {
            let receipt = Receipt {
                kind: ReceiptKind::Accepted,
                token_id: token_id(offer),
                issuer: self.ids[from],
                recipient: self.ids[1 - from],
                at,
            };
            let bytes = self.keys[1 - from].identity().sign_receipt(&receipt).expect("its own receipt");
            self.receipts.borrow_mut().insert(bytes.clone(), receipt);
            bytes
        };
        // Of one number there may be two offers in two orders of events: the signer is in the time of one alone.
        let key = (offer * 2 + from, at);
        self.signed.borrow_mut().entry(key).or_insert_with(sign).clone()
    }
}

impl Machine for Model {
    type State = World;
    type Action = Action;

    fn start(&self) -> World {
        self.start.as_ref().map_or_else(|| self.nothing(), |world| (**world).clone())
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        for by in 0..2 {
            self.actions_of(world, by, &mut actions);
        }
        for (offer, made) in world.offers.iter().enumerate().filter(|(_, made)| made.sent) {
            actions.push(Action::Offer { offer, lost: false });
            if world.left.crashes > 0 {
                actions.push(Action::Offer { offer, lost: true });
            }
            if made.renews.is_some() {
                actions.extend([true, false].map(|answered| Action::Inside { offer, answered }));
            }
        }
        actions.extend(world.receipts.iter().map(|(offer, at)| Action::Receipt { offer: *offer, at: *at }));
        if world.left.ticks > 0 {
            actions.push(Action::Tick);
        }
        if world.left.waits > 0 {
            actions.push(Action::Wait);
        }
        actions.retain(self.only);
        actions
    }

    fn step(&self, world: &World, action: &Action) -> World {
        let mut world = world.clone();
        self.act(&mut world, *action);
        self.note(&mut world);
        world
    }

    fn key(&self, world: &World) -> [u8; 16] {
        let mut key = blake3::Hasher::new();
        key_of_world(&mut key, world);
        key.update(&[u8::from(world.disturbed), world.left.ticks, world.left.waits, world.left.revocations]);
        key.update(&[world.left.crashes, world.left.restores]);
        key.update(&world.bound_until.0.to_be_bytes());
        for (offer, at) in &world.receipts {
            key.update(&[u8::try_from(*offer).unwrap(), 1]).update(&at.0.to_be_bytes());
        }
        for copy in &world.copies {
            key.update(&[u8::from(copy.is_some())]);
            copy.iter().for_each(|copy| key_of_node(&mut key, copy));
        }
        short(&key)
    }

    fn check(&self, world: &World) -> Result<(), String> {
        self.properties(world)?;
        let end = self.fair_run(world)?;
        // Of all these ends a part is followed for three lives.
        let is_followed = world.nodes.iter().all(|node| node.approved) && self.key(world)[0] < 16;
        end.filter(|_| is_followed).map_or(Ok(()), |end| self.stays_linked(end))
    }
}

/// What decides how it goes on without the search's doing.
pub(super) fn essence(world: &World) -> [u8; 16] {
    let mut key = blake3::Hasher::new();
    key_of_world(&mut key, world);
    short(&key)
}

fn short(key: &blake3::Hasher) -> [u8; 16] {
    key.finalize().as_bytes()[..16].try_into().expect("16 of 32 bytes")
}

fn key_of_world(key: &mut blake3::Hasher, world: &World) {
    key.update(&world.now.0.to_be_bytes());
    for offer in &world.offers {
        key.update(&[u8::try_from(offer.from).unwrap(), offer.prekey, u8::from(offer.sent), offer.taken]);
        key.update(&offer.sequence.to_be_bytes());
        key.update(offer.renews.map_or([0; 16], |id| *id.as_bytes()).as_slice());
    }
    for node in &world.nodes {
        key_of_node(key, node);
    }
}

fn key_of_node(key: &mut blake3::Hasher, node: &Node) {
    key.update(b"node");
    key.update(&[u8::from(node.approved), u8::from(node.owed), u8::from(node.fresh), u8::from(node.in_step)]);
    key.update(&[node.vault.epoch]);
    key.update(&node.vault.last_sequence.to_be_bytes());
    key.update(&node.vault.record.heard.top.to_be_bytes()).update(&node.vault.record.heard.seen.to_be_bytes());
    for link in &node.links {
        key.update(link.id().as_bytes());
        key.update(&[
            link.state as u8,
            link.reason as u8,
            u8::from(link.vault_told),
            u8::from(link.receipt.is_empty()),
        ]);
        key.update(&link.row).update(&[0xff]);
        key.update(&link.created_at.0.to_be_bytes()).update(&link.changed_at.0.to_be_bytes());
    }
    for record in node.vault.record.links.iter().flatten() {
        key.update(b"held").update(record.link.as_bytes());
        key.update(&[u8::from(record.revoked), u8::from(record.proven), record.side as u8]);
        key.update(&record.decided_at.0.to_be_bytes());
    }
}

pub(super) fn token_id(offer: usize) -> [u8; 32] {
    [u8::try_from(offer + 1).expect("few offers"); 32]
}

pub(super) fn link_id(offer: usize) -> LinkId {
    LinkId::from_bytes([u8::try_from(offer + 1).expect("few offers"); 16])
}

impl KeyProcess {
    pub(super) fn row(&self, link: &LinkId) -> Vec<u8> {
        vec![link.as_bytes()[0], self.epoch]
    }

    /// The link of a row, if it opens (`Unlocked::open_link`).
    pub(super) fn open(&self, row: &[u8], now: UnixMillis) -> Option<&LinkRecord> {
        let held = self.record.links.iter().flatten().find(|held| held.link.as_bytes().first() == row.first())?;
        (row.get(1) == Some(&self.epoch) && !held.revoked && !held.is_expired(now)).then_some(held)
    }

    pub(super) fn revoke(&mut self, link: &LinkId) {
        if let Some(held) = self.record.links.iter_mut().flatten().find(|held| held.link == *link) {
            held.revoked = true;
        }
    }

    pub(super) fn proven(&mut self, link: &LinkId) {
        if let Some(held) = self.record.links.iter_mut().flatten().find(|held| held.link == *link) {
            held.proven = true;
        }
    }

    /// Whether an offer opens and may be taken (`Unlocked::inspect`): true when it was taken before.
    pub(super) fn opens(&self, made: &Offer, number: usize, row: Option<&[u8]>, now: UnixMillis) -> Option<bool> {
        let header = &made.header;
        let in_time = now.plus(CLOCK_GRACE) >= header.not_before && now <= header.not_after.plus(CLOCK_GRACE);
        let under = made.renews.is_none() || row.is_some_and(|row| self.open(row, now).is_some());
        if made.prekey != self.epoch || !in_time || !under || made.renews.is_some() != row.is_some() {
            return None;
        }
        match self.record.links.iter().flatten().find(|held| held.token_id == token_id(number)) {
            Some(held) if held.revoked => None,
            Some(_) => Some(true),
            None => self.record.heard.check(made.sequence, now).ok().map(|()| false),
        }
    }

    /// Takes a link in (`State::add`).
    pub(super) fn take(&mut self, made: &Offer, number: usize, side: Side, now: UnixMillis) -> bool {
        let record = LinkRecord {
            link: link_id(number),
            side,
            method: Method::Alpha,
            registered: None,
            epoch: 1,
            not_before: made.header.not_before,
            not_after: made.header.not_after,
            row_version: 1,
            revoked: false,
            proven: false,
            timestamp_in: 0,
            timestamp_out: 0,
            timestamp_sent: 0,
            operations: 0,
            token_id: token_id(number),
            decided_at: now,
        };
        let sequence = (side == Side::Acceptor).then_some(made.sequence);
        self.record.take(record, sequence, made.renews.as_ref(), now).is_ok()
    }
}
