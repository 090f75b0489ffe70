//! Feeds a target without knowing what its code covers: the corpus as it is, then mutations of it, the same each time.
//!
//! Seeded by the target's name, so that a failure repeats; the input that failed is written down before the panic goes on.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use crate::Target;

/// Values that sit on the edge of a length or a number.
const EDGES: [&[u8]; 10] =
    [&[0], &[1], &[0x7f], &[0x80], &[0xff], &[0xff, 0xff], &[0x80, 0x01], &[0xff; 4], &[0xff; 8], &[0xff; 10]];
/// Changes made to one input at the most.
const CHANGES: u64 = 6;

/// Where to write an input that failed, and for how long to go on.
pub struct Run<'a> {
    /// Folder for the input that failed.
    pub failures: &'a Path,
    /// After the corpus, mutations for this long.
    pub time: Duration,
}

impl Run<'_> {
    /// Runs `target` on `corpus` and its mutations; how many inputs it was given.
    ///
    /// # Panics
    /// When the target does; the input is in [`Run::failures`] then.
    pub fn drive(&self, target: &Target, corpus: &[Vec<u8>]) -> u64 {
        let mut inputs = 0;
        for input in corpus {
            self.feed(target, input);
            inputs += 1;
        }
        let mut mutator = Mutator::new(target, corpus);
        let begun = Instant::now();
        while begun.elapsed() < self.time {
            self.feed(target, &mutator.next());
            inputs += 1;
        }
        inputs
    }

    fn feed(&self, target: &Target, input: &[u8]) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
            let name = hex::encode(&Sha256::digest(input)[..8]);
            let path = self.failures.join(format!("{}-{name}", target.name));
            let kept = std::fs::create_dir_all(self.failures).and_then(|()| std::fs::write(&path, input));
            let place = kept.map_or_else(|_| hex::encode(input), |()| path.display().to_string());
            eprintln_failure(target.name, &place);
            resume_unwind(panic);
        }
    }
}

#[allow(clippy::print_stderr, reason = "the one line that says how to repeat a failure")]
fn eprintln_failure(target: &str, place: &str) {
    eprintln!("{target} failed on {place}; again: openred-fuzz input {target} {place}");
}

/// Makes inputs out of inputs.
struct Mutator<'a> {
    random: ChaCha8Rng,
    corpus: &'a [Vec<u8>],
    longest: usize,
}

impl<'a> Mutator<'a> {
    fn new(target: &Target, corpus: &'a [Vec<u8>]) -> Self {
        let seed = Sha256::digest(target.name.as_bytes()).into();
        Self { random: ChaCha8Rng::from_seed(seed), corpus, longest: target.longest }
    }

    /// A number below `most`; zero when there is none.
    fn below(&mut self, most: usize) -> usize {
        if most == 0 { 0 } else { (self.random.next_u64() % most as u64) as usize }
    }

    fn pick(&mut self) -> &'a [u8] {
        let which = self.below(self.corpus.len());
        self.corpus.get(which).map_or(&[], Vec::as_slice)
    }

    fn next(&mut self) -> Vec<u8> {
        let mut input = self.pick().to_vec();
        for _ in 0..=self.random.next_u64() % CHANGES {
            self.change(&mut input);
        }
        input.truncate(self.longest);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len());
        match self.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = self.random.next_u32() as u8,
            2 => input.truncate(at),
            3 => {
                let mut bytes = vec![0; self.below(16) + 1];
                self.random.fill_bytes(&mut bytes);
                input.splice(at..at, bytes);
            }
            4 => {
                let edge = EDGES[self.below(EDGES.len())];
                let end = (at + edge.len()).min(input.len());
                input.splice(at..end, edge.iter().copied());
            }
            5 => {
                let end = at + self.below((input.len() - at).min(64));
                input.drain(at..end);
            }
            6 => {
                // Twice what was there once: a repeated field, a repeated operation.
                let end = (at + self.below(64)).min(input.len());
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            7 => {
                let other = self.pick();
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = byte.wrapping_add(1);
                }
            }
        }
    }
}
