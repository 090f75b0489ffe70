//! The loop on real descriptors, without a cage: framing, roles, group commit, and the ends it can come to.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;

use openred_proto::checked::card::CardFields;
use openred_proto::id::NodeId;
use openred_proto::method::{MethodSet, Schedule};
use openred_proto::vault::{ReceivedOffer, Request, decode_frame, encode_frame, split_frame};

use super::*;
use crate::audit::Trail;
use crate::keyring::Keyring;
use crate::state::State;
use crate::vault::quota::Rates;
use crate::vault::start;

/// A vault's loop, and the other ends of its sockets.
struct Bench<D: Disk = Files> {
    server: Server<D>,
    front: UnixStream,
    operator: UnixStream,
    _folder: tempfile::TempDir,
}

fn open_files(folder: &Path) -> Files {
    let trail = ["audit.a", "audit.b"].map(|name| open_state(&folder.join(name)));
    Files { state: open_state(&folder.join("state")), trail }
}

fn open_state(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn bench() -> Bench {
    bench_with(|files, _| files)
}

/// The same over the disk that `disk` makes of its files and of the front's end.
fn bench_with<D: Disk>(disk: impl FnOnce(Files, &UnixStream) -> D) -> Bench<D> {
    let folder = tempfile::tempdir().unwrap();
    let files = open_files(folder.path());
    let mut random = generator().unwrap();
    let vault =
        start::open(&mut [7; 64], &crate::keyring::Descent::default(), &files, &start::Orders::default(), &mut random)
            .unwrap();
    let (front, vault_front) = UnixStream::pair().unwrap();
    let (operator, vault_operator) = UnixStream::pair().unwrap();
    let files = disk(files, &front);
    let server = Server::new(vault, vault_front.into(), vault_operator.into(), files, random).unwrap();
    Bench { server, front, operator, _folder: folder }
}

impl<D: Disk> Bench<D> {
    fn turn(&mut self) -> Result<(), End> {
        self.server.turn(Duration::ZERO)
    }
}

fn send(stream: &mut UnixStream, id: u64, body: Request) {
    stream.write_all(&encode_frame(&Frame { id, body }).unwrap()).unwrap();
}

/// Every reply that is there.
fn replies(stream: &mut UnixStream) -> Vec<Frame<Reply>> {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = vec![0; 1 << 20];
    let length = stream.read(&mut bytes).unwrap_or(0);
    let mut rest = &bytes[..length];
    let mut found = Vec::new();
    while let Ok((body, used)) = split_frame(rest) {
        found.push(decode_frame(body).unwrap());
        rest = &rest[used..];
    }
    found
}

#[test]
fn a_turn_answers_every_frame_that_is_ready_on_both_sides() {
    let mut bench = bench();
    for id in 1..=5 {
        send(&mut bench.front, id, Request::Describe);
    }
    send(&mut bench.operator, 9, Request::Describe);
    bench.turn().unwrap();
    let ids: Vec<u64> = replies(&mut bench.front).iter().map(|frame| frame.id).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    assert!(matches!(&replies(&mut bench.operator)[..], [Frame { id: 9, body: Reply::Described { .. } }]));
}

/// The files, with a list of what was done to them; nothing is on its way to the front while that goes on.
struct Counted {
    files: Files,
    front: UnixStream,
    done: Rc<RefCell<Vec<(Which, &'static str)>>>,
}

impl Counted {
    fn note(&self, which: Which, what: &'static str) {
        let mut answered = [PollFd::new(self.front.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll::wait(&mut answered, Some(Duration::ZERO)).unwrap(), 0, "an answer before {what} of {which:?}");
        self.done.borrow_mut().push((which, what));
    }
}

impl Disk for Counted {
    fn write(&self, which: Which, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.note(which, "write");
        self.files.write(which, bytes, offset)
    }

    fn sync(&self, which: Which) -> std::io::Result<()> {
        self.files.sync(which)?;
        self.note(which, "sync");
        Ok(())
    }
}

/// As many changes as one turn takes cost one write and one fdatasync a file, the trail first, and are answered after both.
#[test]
fn a_turns_changes_are_made_durable_in_one_go() {
    const CARDS: u64 = 40;
    let done = Rc::new(RefCell::new(Vec::new()));
    let list = Rc::clone(&done);
    let mut bench = bench_with(|files, front| Counted { files, front: front.try_clone().unwrap(), done: list });
    done.borrow_mut().clear();
    for id in 1..=CARDS {
        let fields = CardFields::default();
        send(&mut bench.front, id, Request::SignCard { fields, suites: MethodSet::ALL, life: life() });
    }
    bench.turn().unwrap();
    let (trail, state) = (Which::Trail(0), Which::State);
    assert_eq!(*done.borrow(), [(trail, "write"), (trail, "sync"), (state, "write"), (state, "sync")]);
    let mut cards = Vec::new();
    while cards.len() < CARDS as usize {
        // What its socket did not hold.
        let more = replies(&mut bench.front);
        assert!(!more.is_empty() && more.iter().all(|frame| matches!(frame.body, Reply::Card { .. })), "{more:?}");
        cards.extend(more.iter().map(|frame| frame.id));
        bench.turn().unwrap();
    }
    assert_eq!(cards, (1..=CARDS).collect::<Vec<_>>());
    // What changes nothing touches no file.
    done.borrow_mut().clear();
    send(&mut bench.front, 99, Request::Describe);
    bench.turn().unwrap();
    assert_eq!((ids(&mut bench.front), done.borrow().len()), (vec![99], 0));
}

/// Something dear that comes to nothing, and takes no time: a row that opens nowhere.
fn refused_at_once() -> Request {
    Request::StartHandshake { row: vec![1; 97] }
}

fn life() -> Duration {
    Duration::from_secs(3600)
}

/// Dear work that the vault really does, as often as it is asked: it opens an offer, from a peer of its own.
fn offer_to(bench: &mut Bench) -> ReceivedOffer {
    let fields = CardFields { endpoints: vec!["http://127.0.0.1:4000".into()], ..CardFields::default() };
    send(&mut bench.front, 1, Request::SignCard { fields, suites: MethodSet::ALL, life: life() });
    bench.turn().unwrap();
    let [Frame { body: Reply::Card { statement: card, .. }, .. }] = &replies(&mut bench.front)[..] else {
        panic!("no card")
    };
    let (mut random, now, directory) = (generator().unwrap(), clock(), NodeId::from_bytes([9; 32]));
    let keyring = Keyring::from_secrets(&mut [8; 64]);
    let trail = Trail::fresh(keyring.identity(), now).unwrap();
    let mut peer = Vault::open(keyring, State::new(), trail, &Rates::default(), now, &mut random).unwrap();
    let (allowed, schedule, node) = (MethodSet::ALL, Schedule::Hourly, bench.server.vault.node_id());
    let issue = Request::IssueLink { peer: node, card: card.clone(), directory, allowed, schedule, life: life() };
    let reply = peer.handle(now, &mut random, Role::Node, Frame { id: 1, body: issue }).reply.body;
    let Reply::LinkIssued { offer, .. } = reply else { panic!("{reply:?}") };
    ReceivedOffer { offer, sender: peer.node_id(), directory, allowed }
}

fn inspect(offer: &ReceivedOffer) -> Request {
    let request = Request::InspectOffer(offer.clone());
    assert_eq!(request.lane(), Lane::Dear);
    request
}

/// Who was answered, in what order; what was dear was done, and not refused.
fn done(stream: &mut UnixStream) -> Vec<u64> {
    let replies = replies(stream);
    let is_done = |frame: &&Frame<Reply>| matches!(frame.body, Reply::OfferInspected(_) | Reply::Described { .. });
    assert_eq!(replies.iter().filter(is_done).count(), replies.len(), "{replies:?}");
    replies.iter().map(|frame| frame.id).collect()
}

fn ids(stream: &mut UnixStream) -> Vec<u64> {
    replies(stream).iter().map(|frame| frame.id).collect()
}

#[test]
fn what_is_cheap_is_answered_before_what_is_dear_and_came_first() {
    let mut bench = bench();
    let offer = offer_to(&mut bench);
    for id in 1..=20 {
        send(&mut bench.front, id, inspect(&offer));
    }
    send(&mut bench.front, 100, Request::Describe);
    bench.turn().unwrap();
    assert_eq!(done(&mut bench.front), [100, 1], "it is not kept from its answer by more than one");
    // Between dear ones it looks up: what is cheap waits for one turn at most, and is first in it.
    send(&mut bench.front, 101, Request::Describe);
    send(&mut bench.operator, 7, Request::Describe);
    bench.turn().unwrap();
    assert_eq!(done(&mut bench.front), [101, 2]);
    assert_eq!(done(&mut bench.operator), [7]);
    // With nothing cheap there, as many as a turn has, in their order.
    for from in [3, 11] {
        bench.turn().unwrap();
        assert_eq!(done(&mut bench.front), (from..from + DEAR_A_TURN as u64).collect::<Vec<_>>());
    }
    bench.turn().unwrap();
    assert_eq!(done(&mut bench.front), [19, 20]);
}

/// Puts a cheap request on the wire while the dear one before it is handled, and counts how many of those are handled after it came.
#[test]
fn what_is_cheap_waits_for_one_dear_operation_at_most() {
    let mut bench = bench();
    let offer = offer_to(&mut bench);
    let mut replies_so_far = Vec::new();
    for round in 0..4 {
        for id in 0..DEAR_A_TURN as u64 {
            send(&mut bench.front, 10 * round + id, inspect(&offer));
        }
        bench.server.take_in(0).unwrap();
        replies_so_far.clear();
        // It comes before any of them is done, and after the lanes were looked at.
        send(&mut bench.front, 1000 + round, Request::Describe);
        bench.server.handle_ready(clock(), &mut replies_so_far).unwrap();
        let order: Vec<u64> = replies_so_far.iter().map(|(_, reply)| reply.id).collect();
        let dear_before = order.iter().position(|id| *id == 1000 + round).unwrap();
        assert_eq!((dear_before, order.len()), (1, 2), "one before it, and with it the turn ends: {order:?}");
        assert!(matches!(replies_so_far[0].1.body, Reply::OfferInspected(_)), "and that one was done");
        // The rest, so that the next round begins anew.
        bench.turn().unwrap();
        bench.turn().unwrap();
    }
}

#[test]
fn a_lane_that_is_full_keeps_to_its_bound_and_loses_nothing() {
    let mut bench = bench();
    bench.front.set_nonblocking(true).unwrap();
    let (mut sent, mut answered) = (0, Vec::new());
    while sent < 500 {
        let frame = encode_frame(&Frame { id: sent + 1, body: refused_at_once() }).unwrap();
        // A full socket takes none, and never a part of one.
        match bench.front.write(&frame) {
            Ok(count) => {
                assert_eq!(count, frame.len());
                sent += 1;
            }
            Err(_) => {
                bench.turn().unwrap();
                answered.extend(ids(&mut bench.front));
            }
        }
    }
    for _ in 0..500 {
        bench.turn().unwrap();
        answered.extend(ids(&mut bench.front));
    }
    assert_eq!(answered, (1..=500).collect::<Vec<_>>());
}

#[test]
fn a_frame_in_pieces_waits_for_its_end() {
    let mut bench = bench();
    let frame = encode_frame(&Frame { id: 3, body: Request::Describe }).unwrap();
    for byte in &frame[..frame.len() - 1] {
        bench.front.write_all(&[*byte]).unwrap();
        bench.turn().unwrap();
        assert!(replies(&mut bench.front).is_empty());
    }
    bench.front.write_all(&frame[frame.len() - 1..]).unwrap();
    bench.turn().unwrap();
    assert_eq!(replies(&mut bench.front).len(), 1);
}

#[test]
fn a_reader_that_does_not_read_stops_only_itself() {
    let mut bench = bench();
    bench.front.set_nonblocking(true).unwrap();
    let frame = encode_frame(&Frame { id: 1, body: Request::Describe }).unwrap();
    for _ in 0..3000 {
        // Full buffers refuse the write: that is the back pressure.
        let _ = bench.front.write(&frame);
        bench.turn().unwrap();
    }
    send(&mut bench.operator, 2, Request::Describe);
    bench.turn().unwrap();
    assert_eq!(replies(&mut bench.operator).len(), 1);
}

#[test]
fn what_is_no_frame_or_out_of_role_ends_the_loop() {
    let oversized = (FRAME_BYTES as u32 + 1).to_le_bytes().to_vec();
    let garbage = [&8_u32.to_le_bytes()[..], &[0xff; 8]].concat();
    for bytes in [oversized, garbage] {
        let mut bench = bench();
        bench.front.write_all(&bytes).unwrap();
        assert_eq!(bench.turn(), Err(End::Misbehaved));
    }
    let mut bench = self::bench();
    send(&mut bench.front, 5, Request::Lock);
    assert_eq!(bench.turn(), Err(End::Misbehaved), "the operator's request on the front's socket");
    assert!(matches!(&replies(&mut bench.front)[..], [Frame { id: 5, body: Reply::Refused(Refusal::NotAllowed) }]));
}

#[test]
fn a_caller_that_leaves_and_a_lock_end_the_loop() {
    let mut bench = self::bench();
    drop(bench.front);
    assert_eq!(bench.server.serve(), End::FrontGone);
    let mut bench = self::bench();
    drop(bench.operator);
    assert_eq!(bench.server.serve(), End::OperatorGone);
    let mut bench = self::bench();
    send(&mut bench.operator, 1, Request::Lock);
    assert_eq!(bench.server.serve(), End::Locked);
    assert!(matches!(&replies(&mut bench.operator)[..], [Frame { id: 1, body: Reply::Done }]));
}

#[test]
fn a_state_that_cannot_be_written_is_final_and_nothing_is_given_out() {
    let mut bench = bench();
    let path = bench._folder.path().join("state");
    bench.server.files.state = File::open(path).unwrap();
    let card = || Request::SignCard {
        fields: openred_proto::checked::card::CardFields::default(),
        suites: openred_proto::method::MethodSet::ALL,
        life: Duration::from_secs(3600),
    };
    send(&mut bench.front, 1, card());
    send(&mut bench.front, 2, Request::Describe);
    assert_eq!(bench.turn(), Err(End::StateLost));
    let refused = replies(&mut bench.front);
    assert_eq!(refused.len(), 2);
    assert!(refused.iter().all(|frame| matches!(frame.body, Reply::Refused(Refusal::StateLost))));
    bench.server.files.state = open_state(&bench._folder.path().join("state"));
    send(&mut bench.front, 3, card());
    assert_eq!(bench.turn(), Err(End::StateLost), "a file that can be written again changes nothing");
}

#[test]
fn iso_a_trail_that_cannot_be_written_lets_nothing_out() {
    let mut bench = bench();
    let card = || Request::SignCard {
        fields: openred_proto::checked::card::CardFields::default(),
        suites: openred_proto::method::MethodSet::ALL,
        life: Duration::from_secs(3600),
    };
    send(&mut bench.front, 1, card());
    bench.turn().unwrap();
    assert!(matches!(&replies(&mut bench.front)[..], [Frame { id: 1, body: Reply::Card { .. } }]), "the control");
    bench.server.files.trail[0] = File::open(bench._folder.path().join("audit.a")).unwrap();
    send(&mut bench.front, 2, card());
    assert_eq!(bench.turn(), Err(End::StateLost));
    assert!(matches!(&replies(&mut bench.front)[..], [Frame { id: 2, body: Reply::Refused(Refusal::StateLost) }]));
}

#[test]
fn a_restart_finds_the_sequence_that_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut last = 0;
    for _ in 0..3 {
        let files = open_files(folder.path());
        let mut random = generator().unwrap();
        let vault = start::open(
            &mut [7; 64],
            &crate::keyring::Descent::default(),
            &files,
            &start::Orders::default(),
            &mut random,
        )
        .unwrap();
        let (mut front, vault_front) = UnixStream::pair().unwrap();
        let (_operator, vault_operator) = UnixStream::pair().unwrap();
        let mut server = Server::new(vault, vault_front.into(), vault_operator.into(), files, random).unwrap();
        let fields = openred_proto::checked::card::CardFields::default();
        let suites = openred_proto::method::MethodSet::ALL;
        send(&mut front, 1, Request::SignCard { fields, suites, life: Duration::from_secs(60) });
        server.turn(Duration::ZERO).unwrap();
        let sequence = match &replies(&mut front)[..] {
            [Frame { body: Reply::Card { sequence, .. }, .. }] => *sequence,
            other => panic!("{other:?}"),
        };
        assert!(sequence > last);
        last = sequence;
    }
}
