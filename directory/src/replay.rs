//! Whether a signed request is a new one (PROTOCOL 7): by its time and its nonce. Sans-IO: time is an argument. The API
//! ([`crate::api::signed`]) asks for the time before it verifies a signature, and for the nonce after that and after the bucket.
//!
//! Nonces are in memory, so a restart forgets them. Up to 60 s after the old run's end there are requests that it took, signed
//! by clocks that run ahead. Each run therefore leaves behind the greatest `created` that it took, and the next one takes only
//! greater ones. A run that was cut off left nothing behind: then everything up to 60 s after this start may have been used.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use openred_proto::id::{NodeId, UnixMillis};

use crate::limits::{NONCE_LIFE, NONCES, NONCES_PER_NODE, SIGNATURE_SKEW};
use crate::store::PreviousRun;

/// Generations that a nonce lives through at least; a young one has not begun yet.
const GENERATIONS: u64 = 4;

/// What tells new requests from old ones.
#[derive(Debug)]
pub struct Replay {
    started: u64,
    /// Up to here the run before may have taken requests.
    floor: u64,
    /// The greatest `created` that this run took.
    latest: u64,
    ended: bool,
    /// The youngest first.
    generations: [Generation; GENERATIONS as usize + 1],
    turned: u64,
    /// Keys of this run's fingerprints, which nobody else knows.
    keys: RandomState,
}

/// Nonces that are forgotten together, and how many each node has among them.
///
/// Both are kept as keyed fingerprints. A nonce that was seen always has the one that is kept, so no replay gets in; that a new one has
/// the fingerprint of another (one in 2^43 with a full table) refuses a request which its node then signs again.
#[derive(Debug, Default)]
struct Generation {
    nonces: HashSet<u64>,
    shares: HashMap<u32, u16>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Signed too long ago or too far ahead.
    Clock,
    /// The run before may have taken it: sign again after so long.
    Restarted(Duration),
    /// The nonce was seen before.
    Repeated,
    /// The node has [`NONCES_PER_NODE`] remembered.
    Share,
    /// [`NONCES`] are remembered, or the run has ended.
    Full,
}

impl Replay {
    /// For a run that starts now.
    #[must_use]
    pub fn new(started: UnixMillis, before: PreviousRun) -> Self {
        let started = started.seconds();
        let floor = match before {
            PreviousRun::Never => 0,
            PreviousRun::Ended { latest } => latest,
            PreviousRun::CutOff => started + SIGNATURE_SKEW.as_secs(),
        };
        Self {
            started,
            floor,
            latest: 0,
            ended: false,
            generations: Default::default(),
            turned: 0,
            keys: RandomState::new(),
        }
    }

    /// Whether a request of this `created` can be a new one.
    ///
    /// # Errors
    /// [`Refused::Clock`] or [`Refused::Restarted`].
    pub fn check_time(&self, now: UnixMillis, created: u64) -> Result<(), Refused> {
        let now = now.seconds();
        // What was signed before this run began came late, or its nonce is gone with the run before.
        if created < self.started || now.abs_diff(created) > SIGNATURE_SKEW.as_secs() {
            return Err(Refused::Clock);
        }
        match (created <= self.floor, (self.floor + 1).saturating_sub(now)) {
            (false, _) => Ok(()),
            // Past the floor a clock that is right signs above it.
            (true, 0) => Err(Refused::Clock),
            (true, wait) => Err(Refused::Restarted(Duration::from_secs(wait))),
        }
    }

    /// Takes a request whose time was checked at the same `now` and remembers its nonce.
    ///
    /// # Errors
    /// Repeated, or no room: nothing is forgotten early, because forgetting would let a replay in.
    pub fn take(&mut self, now: UnixMillis, created: u64, node: &NodeId, nonce: &[u8; 16]) -> Result<(), Refused> {
        if self.ended {
            return Err(Refused::Full);
        }
        self.turn(now);
        let fingerprint = self.keys.hash_one((node.as_bytes(), nonce));
        // Nodes with one fingerprint share their share.
        let of_node = self.keys.hash_one(node.as_bytes()) as u32;
        if self.generations.iter().any(|generation| generation.nonces.contains(&fingerprint)) {
            return Err(Refused::Repeated);
        }
        if self.generations.iter().map(|generation| generation.share(of_node)).sum::<usize>() >= NONCES_PER_NODE {
            return Err(Refused::Share);
        }
        if self.generations.iter().map(|generation| generation.nonces.len()).sum::<usize>() >= NONCES {
            return Err(Refused::Full);
        }
        let [young, ..] = &mut self.generations;
        young.nonces.insert(fingerprint);
        *young.shares.entry(of_node).or_default() += 1;
        self.latest = self.latest.max(created);
        Ok(())
    }

    /// Takes nothing from now on; the greatest `created` that may have been taken, for the next run.
    pub fn end(&mut self) -> u64 {
        self.ended = true;
        self.latest.max(self.floor)
    }

    /// Generations, so that forgetting is one move.
    fn turn(&mut self, now: UnixMillis) {
        let life = NONCE_LIFE.as_millis() as u64 / GENERATIONS;
        let age = now.0.saturating_sub(self.turned);
        if age < life {
            return;
        }
        for _ in 0..(age / life).min(GENERATIONS + 1) {
            self.generations.rotate_right(1);
            self.generations[0] = Generation::default();
        }
        self.turned = now.0;
    }
}

impl Generation {
    fn share(&self, node: u32) -> usize {
        self.shares.get(&node).copied().map_or(0, usize::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixMillis = UnixMillis(1_000_000_000);

    fn node(number: u16) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    fn nonce(number: usize) -> [u8; 16] {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&number.to_be_bytes());
        nonce
    }

    /// A request that comes to a directory: its time first, then its nonce.
    fn offer(replay: &mut Replay, now: UnixMillis, created: u64) -> Result<(), Refused> {
        replay.check_time(now, created)?;
        replay.take(now, created, &node(1), &[1; 16])
    }

    #[test]
    fn a_nonce_is_refused_for_its_whole_life_and_the_table_is_bounded() {
        let mut replay = Replay::new(START, PreviousRun::Never);
        let mut take = |after, node: NodeId, nonce| replay.take(UnixMillis(START.0 + after), 0, &node, &nonce);
        assert_eq!(take(0, node(1), [1; 16]), Ok(()));
        assert_eq!(take(0, node(2), [1; 16]), Ok(()), "nonces are per node");
        for after in [0, 60_000, 119_999, 121_999] {
            assert_eq!(take(after, node(1), [1; 16]), Err(Refused::Repeated), "{after}");
        }
        for number in 0..NONCES {
            let _ = take(122_000, node(u16::try_from(3 + number / NONCES_PER_NODE).unwrap_or(0)), nonce(number));
        }
        assert_eq!(take(122_000, node(400), [9; 16]), Err(Refused::Full));
        assert_eq!(take(400_000, node(400), [9; 16]), Ok(()));
    }

    #[test]
    fn one_node_fills_its_share_and_no_other() {
        let mut replay = Replay::new(START, PreviousRun::Never);
        for number in 0..NONCES_PER_NODE {
            assert_eq!(replay.take(START, 0, &node(1), &nonce(number)), Ok(()));
        }
        assert_eq!(replay.take(START, 0, &node(1), &[9; 16]), Err(Refused::Share));
        assert_eq!(replay.take(START, 0, &node(2), &[9; 16]), Ok(()));
        let next_generation = UnixMillis(START.0 + 122_000);
        assert_eq!(
            replay.take(next_generation, 0, &node(1), &[9; 16]),
            Err(Refused::Share),
            "the share goes over both"
        );
        assert_eq!(replay.take(UnixMillis(START.0 + 244_000), 0, &node(1), &[9; 16]), Ok(()));
    }

    #[test]
    fn no_moment_takes_a_request_twice() {
        // Signed as far ahead as is taken, or not at all, first sent in any part of a second, sent again at any later time.
        for first in [0, 1, 400, 999] {
            for ahead in [0, 59, 60] {
                let sent = UnixMillis(START.0 + first);
                let created = sent.seconds() + ahead;
                for after in (0..130_000).step_by(100) {
                    let mut replay = Replay::new(START, PreviousRun::Never);
                    assert_eq!(offer(&mut replay, sent, created), Ok(()));
                    let again = offer(&mut replay, UnixMillis(sent.0 + after), created);
                    assert!(again.is_err(), "sent at {first} ms, {ahead} s ahead, again after {after} ms");
                }
            }
        }
    }

    #[test]
    fn what_a_run_before_took_is_not_taken_again() {
        for ahead in [0, 1, 55, 60] {
            let mut first = Replay::new(START, PreviousRun::Never);
            let created = START.seconds() + ahead;
            assert_eq!(offer(&mut first, START, created), Ok(()));
            for before in [PreviousRun::Ended { latest: first.end() }, PreviousRun::CutOff] {
                for restart in [0, 1, 300, 5_000, 61_000] {
                    for after in (0..130_000).step_by(100) {
                        let start = UnixMillis(START.0 + restart);
                        let again = offer(&mut Replay::new(start, before), UnixMillis(start.0 + after), created);
                        assert!(again.is_err(), "{before:?} {ahead} s ahead, {restart} ms later, {after} ms on");
                    }
                }
            }
            assert_eq!(offer(&mut first, START, created), Err(Refused::Full), "a run that ended takes nothing");
        }
    }

    #[test]
    fn a_restart_holds_honest_clocks_up_only_as_long_as_it_must() {
        let later = |millis| UnixMillis(START.0 + millis);
        let honest = |replay: &Replay, now: UnixMillis| replay.check_time(now, now.seconds());
        assert_eq!(honest(&Replay::new(START, PreviousRun::Never), START), Ok(()), "nothing came before");
        let ended = Replay::new(START, PreviousRun::Ended { latest: START.seconds() - 1 });
        assert_eq!(honest(&ended, START), Ok(()));
        let ahead = Replay::new(START, PreviousRun::Ended { latest: START.seconds() + 2 });
        assert_eq!(honest(&ahead, START), Err(Refused::Restarted(Duration::from_secs(3))));
        assert_eq!(honest(&ahead, later(3_000)), Ok(()));
        assert_eq!(
            ahead.check_time(later(3_000), START.seconds() + 1),
            Err(Refused::Clock),
            "the way out is a better clock"
        );
        let cut = Replay::new(START, PreviousRun::CutOff);
        assert_eq!(honest(&cut, START), Err(Refused::Restarted(Duration::from_secs(61))));
        assert_eq!(honest(&cut, later(60_999)), Err(Refused::Restarted(Duration::from_secs(1))));
        assert_eq!(honest(&cut, later(61_000)), Ok(()));
        let mut idle = Replay::new(START, PreviousRun::CutOff);
        assert_eq!(idle.end(), START.seconds() + 60, "a short idle run keeps what it was told");
    }
}
