//! The state survives restarts and torn writes, notices what was set back, and refuses by name what does not fit.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::image::{HEADER_BYTES, RECORD_BYTES, StateWrite};
use super::*;
use crate::testing::{NOW, random};

const KEY: Secret<32> = Secret::new([1; 32]);
/// Peers in these tests' files.
const FEW: usize = 6;

/// A file in memory.
#[derive(Clone, Default)]
struct File(Vec<u8>);

impl File {
    fn write(&mut self, write: &StateWrite, length: usize) {
        let start = write.offset as usize;
        self.0.resize(self.0.len().max(start + length), 0);
        self.0[start..start + length].copy_from_slice(&write.bytes[..length]);
    }

    fn apply(&mut self, writes: &[StateWrite]) {
        writes.iter().for_each(|write| self.write(write, write.bytes.len()));
    }

    fn load_under(&self, key: &Secret<32>) -> Result<State> {
        let mut read = |offset: u64, buffer: &mut [u8]| {
            let have = self.0.get(offset as usize..).unwrap_or(&[]);
            let length = have.len().min(buffer.len());
            buffer.fill(0);
            buffer[..length].copy_from_slice(&have[..length]);
            Ok(())
        };
        State::load_with(key, &mut read, FEW)
    }

    fn load(&self) -> Result<State> {
        self.load_under(&KEY)
    }

    fn swap(&mut self, one: usize, other: usize, length: usize) {
        for place in 0..length {
            self.0.swap(one + place, other + place);
        }
    }
}

fn peer(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

fn link(number: u8) -> LinkRecord {
    LinkRecord {
        link: LinkId::from_bytes([number; 16]),
        side: Side::Issuer,
        method: Method::Gamma,
        registered: None,
        epoch: 7,
        not_before: NOW,
        not_after: NOW.plus(Duration::from_secs(86_400)),
        row_version: 1,
        revoked: false,
        proven: false,
        timestamp_in: 0,
        timestamp_out: 0,
        timestamp_sent: 0,
        operations: 0,
        token_id: [number; 32],
        decided_at: NOW,
    }
}

/// A node with one link to each of its peers, committed.
fn state_with(peers: u8) -> (State, File) {
    let mut state = State::with_capacity(FEW);
    state.node.prekeys.rotate(NOW, &mut random(1)).unwrap();
    committed(state, peers)
}

/// Without a prekey, whose expansion is most of a load's time: for tests that load thousands of times.
fn bare_state_with(peers: u8) -> (State, File) {
    committed(State::with_capacity(FEW), peers)
}

fn committed(mut state: State, peers: u8) -> (State, File) {
    let mut file = File::default();
    state.node.statics.push(StaticRecord {
        method: Method::Beta,
        secret: Secret::new([5; 32]),
        not_before: NOW,
        not_after: NOW,
    });
    for number in 1..=peers {
        state.add_link(&peer(number), link(number), None, NOW).unwrap();
    }
    file.apply(&state.commit(&KEY, &mut random(2)).unwrap());
    (state, file)
}

fn use_link(state: &mut State, number: u8, timestamp: u64) {
    let change = |link: &mut LinkRecord| {
        link.timestamp_in = timestamp;
        link.operations += 1;
    };
    state.change_link(&LinkId::from_bytes([number; 16]), NOW, change).unwrap();
}

fn timestamp(state: &State, number: u8) -> u64 {
    state.link(&LinkId::from_bytes([number; 16]), NOW).unwrap().1.timestamp_in
}

#[test]
fn what_was_committed_is_loaded() {
    let (mut state, mut file) = state_with(3);
    for round in 1..5 {
        use_link(&mut state, 2, round);
        state.next_sequence(NOW);
        file.apply(&state.commit(&KEY, &mut random(round)).unwrap());
        let loaded = file.load().unwrap();
        assert_eq!(timestamp(&loaded, 2), round);
        assert_eq!(loaded.peer(&peer(1)), state.peer(&peer(1)));
        assert_eq!(loaded.node.last_sequence, state.node.last_sequence);
        assert_eq!(loaded.node.statics, state.node.statics);
        assert_eq!(loaded.node.prekeys.current().unwrap(), state.node.prekeys.current().unwrap());
        assert!(!loaded.is_dirty());
    }
}

#[test]
fn a_handshake_writes_one_header_and_one_record() {
    let (mut state, _) = state_with(4);
    use_link(&mut state, 2, 1);
    let writes = state.commit(&KEY, &mut random(3)).unwrap();
    assert_eq!(writes.iter().map(|write| write.bytes.len()).sum::<usize>(), HEADER_BYTES + RECORD_BYTES);
    assert!(state.commit(&KEY, &mut random(3)).unwrap().is_empty(), "nothing changed since");
}

#[test]
fn an_empty_file_is_a_new_node_and_another_key_opens_nothing() {
    let loaded = File::default().load().unwrap();
    assert!(loaded.is_dirty() && loaded.live_links(NOW) == 0);
    let (_, file) = state_with(1);
    assert!(matches!(file.load_under(&Secret::new([2; 32])), Err(Error::LocalStateForeign)));
}

/// After a cut, either nothing or all of the torn commit is there; the next commits and loads go on from that.
fn survives(mut file: File, before: u64, after: u64) {
    let mut state = file.load().unwrap();
    let (first, second) = (timestamp(&state, 1), timestamp(&state, 2));
    assert!((first, second) == (before, before) || (first, second) == (after, after), "{first} {second}");
    use_link(&mut state, 3, 99);
    file.apply(&state.commit(&KEY, &mut random(9)).unwrap());
    let state = file.load().unwrap();
    assert_eq!((timestamp(&state, 1), timestamp(&state, 2), timestamp(&state, 3)), (first, second, 99));
}

#[test]
fn a_commit_cut_at_every_byte_is_all_or_nothing() {
    let (mut state, mut file) = bare_state_with(3);
    for round in [10, 20] {
        use_link(&mut state, 1, round);
        use_link(&mut state, 2, round);
        let writes = state.commit(&KEY, &mut random(round)).unwrap();
        let before = timestamp(&file.load().unwrap(), 1);
        for order in [writes.clone(), writes.iter().rev().cloned().collect()] {
            let total: usize = order.iter().map(|write| write.bytes.len()).sum();
            for cut in 0..=total {
                let (mut torn, mut left) = (file.clone(), cut);
                for write in &order {
                    let length = left.min(write.bytes.len());
                    torn.write(write, length);
                    left -= length;
                }
                survives(torn, before, round);
            }
        }
        file.apply(&writes);
    }
}

#[test]
fn a_cut_repair_is_repaired_again() {
    let (mut state, mut file) = state_with(3);
    let good = file.clone();
    use_link(&mut state, 1, 10);
    use_link(&mut state, 2, 10);
    let writes = state.commit(&KEY, &mut random(4)).unwrap();
    file.apply(&writes[..1]);
    for kept in 0..3 {
        let mut torn = file.clone();
        let mut repairing = torn.load().unwrap();
        assert_eq!(timestamp(&repairing, 1), timestamp(&good.load().unwrap(), 1));
        assert!(repairing.is_dirty(), "the leftover is to be written over");
        let repair = repairing.commit(&KEY, &mut random(5)).unwrap();
        torn.apply(&repair[..kept.min(repair.len())]);
        survives(torn, 0, 0);
    }
}

#[test]
fn a_record_that_was_set_back_or_moved_is_noticed() {
    let (mut state, mut file) = state_with(3);
    let record = |index: usize, slot: usize| 2 * HEADER_BYTES + (2 * index + slot) * RECORD_BYTES;
    let old = file.clone();
    for round in 1..4 {
        use_link(&mut state, 1, round);
        file.apply(&state.commit(&KEY, &mut random(round)).unwrap());
        use_link(&mut state, 2, round);
        file.apply(&state.commit(&KEY, &mut random(round + 10)).unwrap());
    }
    assert!(file.load().is_ok());
    let mut set_back = file.clone();
    let both = record(0, 0)..record(0, 0) + 2 * RECORD_BYTES;
    set_back.0[both.clone()].copy_from_slice(&old.0[both]);
    assert!(matches!(set_back.load(), Err(Error::LocalStateRolledBack)));
    let mut moved = file.clone();
    moved.swap(record(0, 0), record(1, 0), 2 * RECORD_BYTES);
    assert!(matches!(moved.load(), Err(Error::LocalStateRolledBack)));
    let mut erased = file.clone();
    erased.0[record(0, 0)..record(0, 0) + 2 * RECORD_BYTES].fill(0);
    assert!(matches!(erased.load(), Err(Error::LocalStateRolledBack)));
    let mut headless = file.clone();
    headless.0[..2 * HEADER_BYTES].fill(0);
    assert!(matches!(headless.load(), Err(Error::LocalStateForeign)), "records without a header are no new node");
    let mut swapped = file;
    swapped.swap(0, HEADER_BYTES, HEADER_BYTES);
    assert!(matches!(swapped.load(), Err(Error::LocalStateForeign)));
}

#[test]
fn a_full_table_refuses_by_name_and_gives_stale_places_away() {
    let (mut state, _) = state_with(FEW as u8);
    assert_eq!(state.add_link(&peer(9), link(9), None, NOW), Err(Error::LocalFull(Capacity::Links)));
    let later = NOW.plus(Duration::from_secs(86_400)).plus(WINDOW_KEPT).plus(Duration::from_millis(1));
    let fresh = LinkRecord { not_before: later, not_after: later.plus(Duration::from_secs(60)), ..link(9) };
    state.add_link(&peer(9), fresh, None, later).unwrap();
    assert_eq!(state.link(&LinkId::from_bytes([9; 16]), later).unwrap().0, peer(9));
    assert_eq!(state.by_peer.len(), FEW);
}

#[test]
fn a_record_with_nothing_but_revoked_links_of_ones_own_is_free() {
    let (mut state, mut file) = state_with(FEW as u8);
    let id = |number: u8| LinkId::from_bytes([number; 16]);
    // Filling the table again and again, and revoking all of it, leaves room each time.
    for number in 1..=FEW as u8 {
        state.revoke_link(&id(number), NOW).unwrap();
    }
    file.apply(&state.commit(&KEY, &mut random(3)).unwrap());
    let mut state = file.load().unwrap();
    let soon = NOW.plus(Duration::from_millis(1));
    for number in 1..=FEW as u8 {
        state.add_link(&peer(100 + number), link(100 + number), None, soon).unwrap();
    }
    assert_eq!(state.by_peer.len(), FEW);
    assert_eq!(state.revoke_link(&id(1), soon), Err(Error::LocalLinkGone));
}

#[test]
fn a_record_that_guards_something_is_kept_when_a_link_is_revoked() {
    let (mut state, _) = state_with(FEW as u8);
    let second = LinkRecord { link: LinkId::from_bytes([50; 16]), ..link(1) };
    state.add_link(&peer(1), second.clone(), None, NOW).unwrap();
    let heard = LinkRecord { link: LinkId::from_bytes([51; 16]), side: Side::Acceptor, ..link(2) };
    state.add_link(&peer(2), heard.clone(), Some(NOW.0), NOW).unwrap();
    let kept = state.peer(&peer(1)).unwrap().keep_until;
    state.revoke_link(&link(1).link, NOW).unwrap();
    assert_eq!(state.peer(&peer(1)).unwrap().keep_until, kept, "its other link lives");
    let kept = state.peer(&peer(2)).unwrap().keep_until;
    state.revoke_link(&heard.link, NOW).unwrap();
    assert_eq!(state.peer(&peer(2)).unwrap().keep_until, kept, "sequences were heard: no offer is taken twice");
    state.revoke_link(&second.link, NOW).unwrap();
    assert_eq!(state.peer(&peer(1)).unwrap().keep_until, NOW);
}

#[test]
fn a_window_takes_each_of_the_last_64_once() {
    let mut window = Window::default();
    let base = NOW.0;
    window.take(base, NOW).unwrap();
    for sequence in [base, 0, base - 64] {
        assert_eq!(window.take(sequence, NOW), Err(Error::PeerReplay), "{sequence}");
    }
    window.take(base - 63, NOW).unwrap();
    assert_eq!(window.take(base - 63, NOW), Err(Error::PeerReplay));
    window.take(base + 10, NOW).unwrap();
    assert_eq!(window.take(base, NOW), Err(Error::PeerReplay), "still remembered after a move");
    assert_eq!(window.take(base - 60, NOW), Err(Error::PeerReplay), "fell out of the window");
    window.take(base + 9, NOW).unwrap();
    window.take(base + 1000, NOW).unwrap();
    assert_eq!(window.take(base + 10, NOW), Err(Error::PeerReplay));
    let ahead = NOW.plus(SEQUENCE_AHEAD).0;
    window.check(ahead, NOW).unwrap();
    assert!(matches!(window.check(ahead + 1, NOW), Err(Error::PeerStatement(_))));
}

#[test]
fn an_accepted_offer_replaces_links_in_use_but_not_this_nodes_own_offers() {
    let (mut state, _) = state_with(1);
    let accepted = LinkRecord { side: Side::Acceptor, ..link(2) };
    state.add_link(&peer(1), accepted.clone(), Some(NOW.0), NOW).unwrap();
    assert!(state.link(&link(1).link, NOW).is_ok(), "an own offer that was never used stays");
    let again = LinkRecord { link: LinkId::from_bytes([3; 16]), ..accepted };
    state.add_link(&peer(1), again.clone(), Some(NOW.0 + 1), NOW).unwrap();
    assert!(state.link(&again.link, NOW).is_ok());
    assert_eq!(state.link(&link(2).link, NOW).unwrap_err(), Error::LocalLinkGone);
    let replay = LinkRecord { link: LinkId::from_bytes([4; 16]), ..again };
    assert_eq!(state.add_link(&peer(1), replay, Some(NOW.0 + 1), NOW), Err(Error::PeerReplay));
}

#[test]
fn sequences_rise_even_when_the_clock_is_set_back() {
    let mut state = State::with_capacity(FEW);
    let first = state.next_sequence(NOW);
    assert_eq!(first, NOW.0);
    assert_eq!(state.next_sequence(NOW.minus(Duration::from_secs(3600))), first + 1);
    assert_eq!(state.next_sequence(NOW.plus(Duration::from_secs(1))), NOW.0 + 1000);
}

/// One step of a life with crashes.
#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    Use(u8),
    Sequence,
    Commit,
    /// Commits, but only the first `0` of a thousand parts of the bytes arrive; then a restart.
    Crash(u16),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..=FEW as u8).prop_map(Step::Add),
        (1..=FEW as u8).prop_map(Step::Use),
        Just(Step::Sequence),
        Just(Step::Commit),
        (0..=1000_u16).prop_map(Step::Crash),
    ]
}

/// What is visible of a state: its last sequence and each link's timestamp.
fn seen(state: &State) -> (u64, Vec<Option<u64>>) {
    let of = |number: u8| state.link(&LinkId::from_bytes([number; 16]), NOW).ok().map(|(_, link)| link.timestamp_in);
    (state.node.last_sequence, (1..=FEW as u8).map(of).collect())
}

fn write_part(file: &mut File, writes: &[StateWrite], parts: u16) {
    let total: usize = writes.iter().map(|write| write.bytes.len()).sum();
    let mut left = total * usize::from(parts) / 1000;
    for write in writes {
        let length = left.min(write.bytes.len());
        file.write(write, length);
        left -= length;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_life_with_crashes_loses_only_what_was_not_committed(steps in proptest::collection::vec(any_step(), 1..60)) {
        let (mut state, mut file) = bare_state_with(1);
        let mut durable = seen(&state);
        for (clock, step) in steps.into_iter().enumerate() {
            let mut random = random(clock as u64);
            match step {
                // A link that is there already is refused, and that changes nothing.
                Step::Add(number) => drop(state.add_link(&peer(number), link(number), None, NOW)),
                Step::Use(number) => {
                    let _ = state.change_link(&LinkId::from_bytes([number; 16]), NOW, |link| {
                        link.timestamp_in = clock as u64 + 1;
                    });
                }
                Step::Sequence => drop(state.next_sequence(NOW)),
                Step::Commit => {
                    file.apply(&state.commit(&KEY, &mut random).unwrap());
                    durable = seen(&state);
                }
                Step::Crash(parts) => {
                    let wanted = seen(&state);
                    let writes = state.commit(&KEY, &mut random).unwrap();
                    write_part(&mut file, &writes, parts);
                    state = file.load().unwrap();
                    let found = seen(&state);
                    prop_assert!(found == durable || found == wanted, "{:?} is neither {:?} nor {:?}", found, durable, wanted);
                    durable = found;
                }
            }
            prop_assert_eq!(&seen(&file.load().unwrap()), &durable);
        }
    }
}
